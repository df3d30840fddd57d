"""Transforms that change both images of a pair and their boxes together.

Each is a frozen dataclass called with a :class:`Sample` and a ``numpy`` generator; there is no other source of
randomness, so the same generator gives the same result. Pixel ``i`` covers ``[i, i + 1)``; boxes are continuous.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol

import cv2
import numpy as np

from data_kaist.structures import Daytime

MEAN_COLOUR = (88, 82, 72, 41)
"""R, G, B, LWIR mean of the KAIST training frames, 0..255 (0.3465, 0.3219, 0.2842; 0.1598): fills new canvas."""

Fit = Literal["stretch", "letterbox"]

# types of attributes with the limits that a config holds them to
Share = Annotated[float, "in 0..1"]
Positive = Annotated[tuple[float, float], "above 0"]
Fill = Annotated[tuple[int, int, int, int], "at least 0, at most 255"]

GONE_BELOW = 0.1
"""An object of which a crop leaves a smaller share than this disappears."""
IGNORE_BELOW = 0.5
"""An object of which a crop leaves a smaller share than this becomes an ignore region: neither person nor not."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One frame on its way to the network.

    Attributes:
        visible: uint8 ``(H, W, 3)`` RGB, or None where the modality has none.
        lwir: uint8 ``(H, W)``, or None.
        boxes_xyxy: float32 ``(n, 4)``, pixels of the images as they now are.
        labels: int64 ``(n,)``, class index from 1; of ignore regions any.
        ignore: bool ``(n,)``.
        original_size: (height, width) of the images as they were read.
        index: place of the frame in the data set.
        name: the frame's name.
        content_size: (height, width) after the resize, without padding to the right and below; None: not resized.
        daytime: ``"day"``, ``"night"`` or None if unknown.
        another: draws a frame of the same split, as it was read; None: there is no split.
        earlier: the frame so many places earlier in the split, as it was read, or its video's first; None: as above.
        present: bool ``(n, 2)``, whether the visible and the LWIR image have the object; None: all in both.
    """

    visible: np.ndarray | None
    lwir: np.ndarray | None
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    original_size: tuple[int, int]
    index: int = 0
    name: str = ""
    content_size: tuple[int, int] | None = None
    daytime: Daytime | None = None
    another: Callable[[np.random.Generator], Sample] | None = field(default=None, repr=False)
    earlier: Callable[[int], Sample] | None = field(default=None, repr=False)
    present: np.ndarray | None = None

    @property
    def in_sides(self) -> np.ndarray:
        """``present``, or all True, ``(n, 2)``."""
        return np.ones((len(self.labels), 2), bool) if self.present is None else self.present

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images as they now are."""
        image = self.visible if self.visible is not None else self.lwir
        if image is None:
            return self.content_size or self.original_size
        return image.shape[0], image.shape[1]

    def with_images(self, change: Callable[[np.ndarray], np.ndarray]) -> Sample:
        """The same change made to whichever images there are."""
        images = {"visible": self.visible, "lwir": self.lwir}
        changed: Any = {side: change(image) for side, image in images.items() if image is not None}
        return replace(self, **changed)

    def with_objects(self, keep: np.ndarray, boxes_xyxy: np.ndarray, ignore: np.ndarray) -> Sample:
        """The rows of ``keep`` with new boxes and flags. Shapes ``(n,)`` bool, ``(n, 4)`` and ``(n,)``."""
        return replace(
            self,
            boxes_xyxy=boxes_xyxy[keep].astype(np.float32),
            labels=self.labels[keep],
            ignore=ignore[keep],
            present=None if self.present is None else self.present[keep],
        )


class Transform(Protocol):
    """Anything that turns a sample into another. ``after_resize = True`` to act on resized images."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample: ...


def areas(boxes_xyxy: np.ndarray) -> np.ndarray:
    """Areas ``(n,)`` in pixels of boxes ``(n, 4)``; 0 for inverted ones."""
    return np.asarray(np.prod(np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0), axis=1))


def crop(sample: Sample, window: tuple[int, int, int, int], fill: tuple[int, int, int, int] = MEAN_COLOUR) -> Sample:
    """Cut a window out of the images. Where it reaches beyond them, the canvas is filled.

    Objects are clipped to the part of the image that is left. What is left of a person decides what becomes of it:
    see :data:`GONE_BELOW` and :data:`IGNORE_BELOW`. Ignore regions stay as long as any area is left. ``window`` is
    (x1, y1, x2, y2) in whole pixels, ``fill`` R, G, B, LWIR.
    """
    left, top, right, bottom = window
    height, width = sample.size
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)

    def cut(image: np.ndarray) -> np.ndarray:
        part = image[y1:y2, x1:x2]
        if (x1, y1, x2, y2) == window:
            return part
        border = (y1 - top, bottom - y2, x1 - left, right - x2)
        colour = fill[:3] if image.ndim == 3 else fill[3:]
        # many times as fast as numpy, which fills a canvas three bytes at a time
        return np.asarray(cv2.copyMakeBorder(part, *border, cv2.BORDER_CONSTANT, value=colour))

    limits = np.array([x1, y1, x2, y2], np.float64)
    boxes = sample.boxes_xyxy.astype(np.float64)
    clipped = np.concatenate([np.maximum(boxes[:, :2], limits[:2]), np.minimum(boxes[:, 2:], limits[2:])], axis=1)
    left_area = areas(clipped)
    share = left_area / np.maximum(areas(boxes), 1e-6)
    keep = (left_area > 1) & ((share >= GONE_BELOW) | sample.ignore)
    clipped -= np.array([left, top, left, top])
    return sample.with_images(cut).with_objects(keep, clipped, sample.ignore | (share < IGNORE_BELOW))


@dataclass(frozen=True)
class Compose:
    """One transform after another."""

    transforms: tuple[Transform, ...]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


@dataclass(frozen=True)
class Resize:
    """Bilinear resize of both images.

    Boxes are clipped to the image here, so this belongs at the end of every chain; rows that hold no more than one
    pixel afterwards are dropped.

    Attributes:
        size: (height, width) in pixels.
        fit: ``stretch``: to exactly ``size``; ``letterbox``: to the largest size of the image's own shape within it,
            in whole pixels.
    """

    size: tuple[int, int]
    fit: Fit = "stretch"

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = self.size
        old_height, old_width = sample.size
        if self.fit == "letterbox":
            factor = min(height / old_height, width / old_width)
            height, width = (max(round(side * factor), 1) for side in sample.size)
        scale = np.array([width / old_width, height / old_height] * 2)
        boxes = np.clip(sample.boxes_xyxy * scale, 0, [width, height, width, height])
        resized = replace(sample.with_objects(areas(boxes) > 1, boxes, sample.ignore), content_size=(height, width))
        if (old_height, old_width) == (height, width):
            return resized
        return resized.with_images(lambda image: cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR))


@dataclass(frozen=True)
class Pad:
    """New canvas to the right and below, up to ``size``.

    Attributes:
        size: (height, width), at least the image's.
        fill: R, G, B, LWIR of new canvas.
    """

    size: tuple[int, int]
    fill: tuple[int, int, int, int]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = self.size
        return crop(sample, (0, 0, width, height), self.fill)


@dataclass(frozen=True)
class HorizontalFlip:
    """Left to right.

    Attributes:
        p: probability.
    """

    after_resize: ClassVar[bool] = True  # fewer pixels to turn
    p: Share = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        width = sample.size[1]
        boxes = sample.boxes_xyxy.copy()
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        return replace(sample.with_images(lambda image: cv2.flip(image, 1)), boxes_xyxy=boxes)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Zoom in or out at a random place. A smaller window or a larger canvas; follow with :class:`Resize`.

    Zooming in and out are equally likely; torchvision draws the area uniformly, which shrinks people in 4 of 5.

    Attributes:
        scale: range of the window's area relative to the image's, drawn log-uniformly.
        ratio: range of the window's width / height relative to the image's.
        p: probability.
        fill: R, G, B, LWIR of new canvas.
    """

    scale: Positive = (0.25, 4.0)
    ratio: Positive = (0.8, 1.2)
    p: Share = 0.5
    fill: Fill = MEAN_COLOUR

    def __post_init__(self) -> None:
        _refuse_falling(scale=self.scale, ratio=self.ratio)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        height, width = sample.size
        scale, ratio = (math.exp(rng.uniform(*np.log(limits))) for limits in (self.scale, self.ratio))
        new_height = max(round(height * math.sqrt(scale / ratio)), 1)
        new_width = max(round(width * math.sqrt(scale * ratio)), 1)
        return crop(sample, _window(sample.size, (new_height, new_width), rng), self.fill)


@dataclass(frozen=True)
class SSDCrop:
    """SSD's random crop (Liu et al. 2016, section 2.2, data augmentation).

    Draws a least overlap; 0 allows any window, None leaves the image whole. Then tries windows until one has some
    person's centre and overlaps some person by that IoU; if none does, the image stays whole.

    Attributes:
        min_ious: the choices, each as likely.
        min_side: smallest side of the window as a share of the image's.
        ratio: range of the window's width : height relative to the image's own.
        trials: windows tried.
    """

    min_ious: tuple[float | None, ...] = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
    min_side: Share = 0.3
    ratio: Positive = (0.5, 2.0)
    trials: Annotated[int, "at least 1"] = 40

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        min_iou = self.min_ious[int(rng.integers(len(self.min_ious)))]
        people = sample.boxes_xyxy[~sample.ignore].astype(np.float64)
        if min_iou is None or not len(people):
            return sample
        height, width = sample.size
        for _ in range(self.trials):
            w, h = rng.uniform(self.min_side, 1, size=2)
            if not self.ratio[0] <= w / h <= self.ratio[1]:
                continue
            new_width, new_height = max(round(width * w), 1), max(round(height * h), 1)
            place = _window(sample.size, (new_height, new_width), rng)
            window = np.array(place)
            common = areas(
                np.concatenate([np.maximum(people[:, :2], window[:2]), np.minimum(people[:, 2:], window[2:])], 1)
            )
            iou = common / (areas(people) + new_width * new_height - common)
            centres = (people[:, :2] + people[:, 2:]) / 2
            inside = ((centres > window[:2]) & (centres < window[2:])).all(axis=1)
            if inside.any() and iou.max() >= min_iou:
                return crop(sample, place)
        return sample


@dataclass(frozen=True)
class PhotometricJitter:
    """Brightness, contrast, saturation and a little hue of the visible image. LWIR: brightness and contrast.

    The visible changes are one affine map of the colour (a 3x4 matrix), so that they cost one pass over the pixels.

    Attributes:
        strength: factors are 1 - strength ... 1 + strength; hue turns by up to strength / 10 of a circle.
        p: probability.
    """

    strength: Share = 0.3
    p: Share = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        # Numbers are drawn whether used or not, so that both modalities see the same visible image.
        apply = rng.random() < self.p
        factors = 1 + self.strength * rng.uniform(-1, 1, size=5)
        turn = self.strength * rng.uniform(-0.1, 0.1) * 2 * math.pi
        if not apply:
            return sample
        visible, lwir = sample.visible, sample.lwir
        if visible is not None:
            visible = cv2.transform(visible, _colour_map(cv2.mean(visible)[:3], factors[:3], turn))
        if lwir is not None:
            brightness, contrast = factors[3:]
            mean = cv2.mean(lwir)[0]
            levels = brightness * (mean + contrast * (np.arange(256) - mean))
            lwir = cv2.LUT(lwir, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
        return replace(sample, visible=visible, lwir=lwir)


@dataclass(frozen=True)
class Mosaic:
    """Four frames around a point (YOLOv4, section 3.3). This one at the upper left, others of the split.

    Each is resized within this frame's size, its shape kept, and lies with a corner at the point, as in YOLOv5's code;
    what reaches over the border is cut off as by :func:`crop`. Put it first: what follows changes all four alike.

    Attributes:
        centre: range of the point's place in the image's height and width.
        scale: range of the sides of each frame relative to the image's, drawn log-uniformly.
        p: probability.
        fill: R, G, B, LWIR of new canvas.
    """

    centre: Annotated[tuple[float, float], "in 0..1"] = (0.3, 0.7)
    scale: Annotated[tuple[float, float], "above 0, at most 1"] = (0.5, 1.0)
    p: Share = 0.5
    fill: Fill = MEAN_COLOUR

    def __post_init__(self) -> None:
        _refuse_falling(centre=self.centre, scale=self.scale)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if sample.another is None:
            raise ValueError("mosaic needs samples of a data set, from which it draws others")
        height, width = sample.size
        if rng.random() >= self.p or min(height, width) < 2:
            return sample
        y, x = (min(max(round(side * rng.uniform(*self.centre)), 1), side - 1) for side in (height, width))
        parts: list[Sample] = []
        boxes = []
        for top, left in ((True, True), (True, False), (False, True), (False, False)):
            part = sample.another(rng) if parts else sample
            factor = math.exp(rng.uniform(*np.log(self.scale)))
            within = max(round(height * factor), 1), max(round(width * factor), 1)
            part = Resize(within, "letterbox")(part, rng)
            (h, w), (rows, columns) = part.size, (y if top else height - y, x if left else width - x)
            x1, y1 = w - x if left else 0, h - y if top else 0
            parts.append(crop(part, (x1, y1, x1 + columns, y1 + rows), self.fill))
            boxes.append(parts[-1].boxes_xyxy + np.array([0 if left else x, 0 if top else y] * 2, np.float32))

        def joined(side: str) -> np.ndarray | None:
            images = [getattr(part, side) for part in parts]
            if images[0] is None:
                return None
            return np.concatenate([np.concatenate(images[:2], axis=1), np.concatenate(images[2:], axis=1)])

        return replace(
            sample,
            visible=joined("visible"),
            lwir=joined("lwir"),
            boxes_xyxy=np.concatenate(boxes),
            labels=np.concatenate([part.labels for part in parts]),
            ignore=np.concatenate([part.ignore for part in parts]),
            present=np.concatenate([part.in_sides for part in parts]),
            daytime=sample.daytime if all(part.daytime == sample.daytime for part in parts) else None,
        )


@dataclass(frozen=True)
class SemiUnpaired:
    """Crop and flip a pair, or each image apart. MLPD: Kim et al., RA-L 2021.

    After changes apart, a person is an object per image that shows it, present in that one alone; where boxes of one
    label (or ignore regions) come to lie on each other, one object with the visible image's box. Written from the
    paper's description.

    Attributes:
        p: probability that each image is changed apart.
        crop: changes by it, as in ``resized_crop``, with its scale and ratio.
        flip: probability of a flip.
        scale: as in ``resized_crop``.
        ratio: as in ``resized_crop``.
        same_iou: least IoU of two boxes that are one object.
    """

    p: Share = 0.5
    crop: Share = 0.5
    flip: Share = 0.5
    scale: Positive = (0.25, 4.0)
    ratio: Positive = (0.8, 1.2)
    same_iou: Share = 0.5

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        zoom = RandomResizedCrop(self.scale, self.ratio, self.crop)
        change = Compose((zoom, Resize(sample.size), HorizontalFlip(self.flip)))
        if rng.random() >= self.p or sample.visible is None or sample.lwir is None:
            return change(sample, rng)
        rows = replace(sample, labels=np.arange(len(sample.labels)), present=sample.in_sides)
        visible = change(replace(rows, lwir=None, present=rows.in_sides & [True, False]), rng)
        lwir = change(replace(rows, visible=None, present=rows.in_sides & [False, True]), rng)
        alike = sample.labels[visible.labels][:, None] == sample.labels[lwir.labels]
        alike &= visible.ignore[:, None] == lwir.ignore
        i, k = np.nonzero(alike & visible.in_sides[:, :1] & lwir.in_sides[:, 1])
        a, b = visible.boxes_xyxy[i], lwir.boxes_xyxy[k]
        shared = areas(np.concatenate([np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])], axis=1))
        same = shared >= self.same_iou * (areas(a) + areas(b) - shared)
        visible.in_sides[i[same]], lwir.in_sides[k[same]] = True, False
        both = [visible, lwir]
        joined = replace(
            sample,
            visible=visible.visible,
            lwir=lwir.lwir,
            boxes_xyxy=np.concatenate([side.boxes_xyxy for side in both]),
            labels=sample.labels[np.concatenate([side.labels for side in both])],
            ignore=np.concatenate([side.ignore for side in both]),
            present=np.concatenate([side.in_sides for side in both]),
        )
        return joined.with_objects(joined.in_sides.max(1), joined.boxes_xyxy, joined.ignore)


AUGMENTATIONS: dict[str, Callable[..., Transform]] = {
    "jitter": PhotometricJitter,
    "resized_crop": RandomResizedCrop,
    "ssd_crop": SSDCrop,
    "flip": HorizontalFlip,
    "mosaic": Mosaic,
    "semi_unpaired": SemiUnpaired,
}

_LUMA = np.array([0.299, 0.587, 0.114])
_RGB_TO_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


def _colour_map(mean_rgb: tuple[float, ...], factors: np.ndarray, turn: float) -> np.ndarray:
    """The 3x4 matrix of saturation, hue (in YIQ), contrast and brightness."""
    brightness, contrast, saturation = (float(factor) for factor in factors)
    chroma = saturation * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    in_yiq = np.eye(3)
    in_yiq[1:, 1:] = chroma
    matrix = brightness * contrast * (_YIQ_TO_RGB @ in_yiq @ _RGB_TO_YIQ)
    offset = brightness * (1 - contrast) * float(_LUMA @ np.array(mean_rgb))
    return np.concatenate([matrix, np.full((3, 1), offset)], axis=1)


def _refuse_falling(**ranges: tuple[float, float]) -> None:
    for key, limits in ranges.items():
        if limits[0] > limits[1]:
            raise ValueError(f"{key} must be [smallest, largest], not {list(limits)}")


def _window(size: tuple[int, int], new: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random xyxy window: inside the image along sides that are smaller, around it along larger ones."""
    y, x = size[0] - new[0], size[1] - new[1]
    x, y = (int(rng.integers(min(slack, 0), max(slack, 0) + 1)) for slack in (x, y))
    return x, y, x + new[1], y + new[0]
