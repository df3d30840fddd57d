"""Annotations, batches and detections, between files, loaders and metrics.

Names of box arrays state their format; units are pixels. Sizes are ``(height, width)``. Torch is imported for type
annotations only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_kaist.classes import PERSON
from data_kaist.errors import DataError

if TYPE_CHECKING:
    import pandas
    import torch
    from matplotlib.figure import Figure


Daytime = Literal["day", "night"]


@dataclass(frozen=True, eq=False)
class Annotations:
    """The objects of one image; one row per object.

    Attributes:
        boxes_xyxy: float32 ``(n, 4)``, pixels of the original image.
        labels: ``(n,)`` numpy array of str: ``person``, ``people``, ``cyclist``, ``person?`` ...
        ignore: bool ``(n,)``, the file's own ignore flag (bbGt's last but one column, COCO's ``ignore`` or
            ``iscrowd``). Other labels than ``person`` are not flagged; readers ignore them.
        occlusion: int64 ``(n,)``: 0 none, 1 partial, 2 heavy.
        height: float32 ``(n,)``, pixels, as the file states it (it need not equal ``y2 - y1`` after clipping).
        size: ``(height, width)`` of the image in pixels.
        daytime: ``"day"``, ``"night"`` or None if unknown.
    """

    boxes_xyxy: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    occlusion: np.ndarray
    height: np.ndarray
    size: tuple[int, int]
    daytime: Daytime | None = None

    @classmethod
    def from_rows(
        cls,
        boxes_xyxy: Sequence[Sequence[float]] | np.ndarray,
        labels: Sequence[str] | None = None,
        *,
        ignore: Sequence[bool] | None = None,
        occlusion: Sequence[int] | None = None,
        height: Sequence[float] | None = None,
        size: tuple[int, int],
        daytime: Daytime | None = None,
    ) -> Annotations:
        """Annotations from plain lists; defaults: ``person``, False, 0, y2 - y1."""
        boxes = np.asarray(boxes_xyxy, dtype=np.float32).reshape(-1, 4)
        n = len(boxes)
        return cls(
            boxes_xyxy=boxes,
            labels=np.asarray([PERSON] * n if labels is None else labels, dtype=object),
            ignore=np.zeros(n, bool) if ignore is None else np.asarray(ignore, dtype=bool),
            occlusion=np.zeros(n, np.int64) if occlusion is None else np.asarray(occlusion, dtype=np.int64),
            height=boxes[:, 3] - boxes[:, 1] if height is None else np.asarray(height, dtype=np.float32),
            size=size,
            daytime=daytime,
        )

    def __len__(self) -> int:
        return len(self.boxes_xyxy)


@dataclass(frozen=True, eq=False, repr=False)
class DetectionTable:
    """Detections of one or more images (numpy), one row each.

    Attributes:
        image_index: int64 ``(d,)``, 0-based index of the image in the list of frames.
        boxes_xyxy: float64 ``(d, 4)``, pixels of the original image; of a detector itself float32.
        scores: float64 ``(d,)``, any real number, higher is more confident; of a detector float32, 0..1.
        labels: int64 ``(d,)``, class index from 1; not given: all 1.
        classes: names of the class indices 1, 2, ...
        anchor_index: int64 ``(d,)``, anchor of each; None if unknown.
        size: (height, width) in pixels, of the detections of one image that a detector was given.
    """

    image_index: np.ndarray
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray = None  # type: ignore[assignment]
    classes: tuple[str, ...] = (PERSON,)
    anchor_index: np.ndarray | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.labels is None:
            object.__setattr__(self, "labels", np.ones(len(self.scores), np.int64))

    @classmethod
    def empty(cls) -> DetectionTable:
        return cls(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))

    @classmethod
    def joined(cls, tables: Sequence[DetectionTable]) -> DetectionTable:
        """Tables of several images as one, sorted by image and falling score."""
        if not tables:
            return cls.empty()
        columns = ("image_index", "boxes_xyxy", "scores", "labels")
        image, boxes, scores, labels = (np.concatenate([getattr(table, name) for table in tables]) for name in columns)
        whole = cls(image, boxes, scores, labels, tables[0].classes)
        return whole.rows(np.lexsort((-whole.scores, whole.image_index)))

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each row's class."""
        return tuple(self.classes[label - 1] for label in self.labels.tolist())

    def texts(self) -> list[str]:
        """Captions of boxes: score, after the class if there are several."""
        named = zip(self.class_names, self.scores.tolist(), strict=True)
        return [f"{name} {score:.2f}" if len(self.classes) > 1 else f"{score:.2f}" for name, score in named]

    def __repr__(self) -> str:
        best = f", scores {self.scores.min():.2f} to {self.scores.max():.2f}" if len(self) else ""
        return f"{len(self)} detections of {', '.join(self.classes)}{best}"

    def _repr_html_(self) -> str:
        """The first rows as a table, for notebooks."""
        head = "".join(f"<th>{name}</th>" for name in ("image", "class", "score", "x1, y1, x2, y2"))
        rows = [
            f"<tr><td>{image}</td><td>{name}</td><td>{score:.3f}</td><td>{', '.join(f'{x:.1f}' for x in box)}</td></tr>"
            for image, name, score, box in zip(
                self.image_index[:10], map(escape, self.class_names), self.scores, self.boxes_xyxy, strict=False
            )
        ]
        return f"<p>{escape(repr(self))}</p><table><tr>{head}</tr>{''.join(rows)}</table>"

    def to_pandas(self) -> pandas.DataFrame:
        """Columns image, class, score, x1, y1, x2 and y2. Needs pandas."""
        try:
            import pandas
        except ImportError as error:
            raise DataError("to_pandas needs pandas: pip install pandas") from error
        boxes = dict(zip(("x1", "y1", "x2", "y2"), self.boxes_xyxy.T, strict=True))
        columns = {"image": self.image_index, "class": self.class_names, "score": self.scores, **boxes}
        return pandas.DataFrame(columns)

    def plot(self, image: np.ndarray) -> Figure:
        """Matplotlib figure of the boxes on their image. uint8 ``(H, W, 3)`` RGB or ``(H, W)``."""
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        height, width = image.shape[:2]
        figure = Figure(figsize=(8, 8 * height / width), layout="constrained")
        axes = figure.subplots()
        axes.imshow(image, cmap="gray" if image.ndim == 2 else None)
        axes.set_axis_off()
        for (x1, y1, x2, y2), label, text in zip(self.boxes_xyxy, self.labels, self.texts(), strict=True):
            colour = f"C{label - 1}"
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=2))
            axes.annotate(text, (x1, y1), color="white", va="bottom", bbox={"facecolor": colour, "pad": 1, "lw": 0})
        return figure

    def of_image(self, index: int) -> DetectionTable:
        """The rows of one image."""
        return self.rows(self.image_index == index)

    def of_class(self, label: int) -> DetectionTable:
        """The rows of one class."""
        return self.rows(self.labels == label)

    def rows(self, kept: np.ndarray) -> DetectionTable:
        """Rows selected by a mask, bool ``(d,)``, or by indices, int64."""
        columns = ("image_index", "boxes_xyxy", "scores", "labels", "anchor_index")
        chosen: Any = {name: of[kept] for name in columns if (of := getattr(self, name)) is not None}
        return replace(self, **chosen)


def xywh_rows(boxes_xyxy: np.ndarray) -> list[list[float]]:
    """Boxes ``(n, 4)`` as lists of left, top, width, height."""
    boxes = boxes_xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    rows: list[list[float]] = boxes.tolist()
    return rows


@dataclass
class Targets:
    """The objects of a batch, padded to the largest number ``M``.

    Attributes:
        boxes_xyxy: float32 ``(N, M, 4)``, pixels of the network's input.
        labels: int64 ``(N, M)``, class index; 0 (background) marks padding.
        ignore: bool ``(N, M)``, regions that are neither positive nor negative; False on padding.
        present: bool ``(N, M, 2)``, whether the visible and the LWIR image have the object; None: all in both.
    """

    boxes_xyxy: torch.Tensor
    labels: torch.Tensor
    ignore: torch.Tensor
    present: torch.Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        return self.each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Targets:
        """Apply a function to every tensor."""
        present = None if self.present is None else change(self.present)
        return Targets(change(self.boxes_xyxy), change(self.labels), change(self.ignore), present)

    @property
    def is_object(self) -> torch.Tensor:
        """Objects, neither padding nor ignored, bool ``(N, M)``."""
        return (self.labels > 0) & ~self.ignore


@dataclass
class Batch:
    """A batch of images and targets.

    Attributes:
        images: uint8 ``(N, C, H, W)``, channels_last in memory; channels are R, G, B, LWIR as far as the modality has
            them. Not normalised: the detector does that.
        targets: objects in pixels of ``images``.
        original_sizes: int64 ``(N, 2)``, (height, width) of each image before it was resized.
        content_sizes: int64 ``(N, 2)``, (height, width) of the part of each, from the top left, that is no padding.
        daytime: int64 ``(N,)``: 1 day, 0 night, -1 unknown.
        indices: int64 ``(N,)``, into the data set's frames.
        names: frame names, for messages.
    """

    images: torch.Tensor
    targets: Targets
    original_sizes: torch.Tensor
    content_sizes: torch.Tensor
    daytime: torch.Tensor
    indices: torch.Tensor
    names: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """Indices and names stay on the host."""
        names = ("images", "original_sizes", "content_sizes", "daytime")
        changed: Any = {name: change(getattr(self, name)) for name in names}
        return replace(self, targets=self.targets.each(change), **changed)
