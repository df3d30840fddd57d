"""Draws a gallery's thumbnails and enlarged frames within a byte limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from data_kaist.errors import DataError
from ssd_effnet.drawing import Marking, beside, jpeg_address, with_caption
from ssd_effnet.evaluation.error_analysis import Errors, box_column
from ssd_effnet.visualize.gallery.drawing import FinishedRun, cropped, labels, markings, rings, whole, window
from ssd_effnet.visualize.gallery.page import GalleryEntry, Large

MOST_BYTES = 55e6
MOST_ENTRIES = 2000
OCCLUSIONS = ("none", "partial", "heavy")
_SIDES = {1: 208, 2: 168}  # pixels of a thumbnail by the number of images in it
_SIDE = 140  # where there are more
_RING = 4  # pixels of the thumbnail between an object and the ring around it
_SCALES = (1.0, 0.8, 0.65, 0.5, 0.4)
_QUALITY, _SMALL_QUALITY = 72, 74
_LARGEST = 960  # pixels: a photograph's longer side need not be larger on a page
_SAMPLE = 12


@dataclass(frozen=True, eq=False)
class View:
    """A run with its errors on the frames.

    Attributes:
        run: which.
        errors: of it.
        name: written on its pictures where a gallery shows more than one run.
    """

    run: FinishedRun
    errors: Errors
    name: str = ""
    words: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", labels(self.run))


@dataclass(frozen=True, eq=False)
class Item:
    """The object of a gallery entry.

    Attributes:
        kind, caption, score, height, occlusion: as in :class:`ssd_effnet.visualize.gallery.page.Entry`.
        place: of the frame.
        boxes_xyxy: ``(n, 4)``, shown on the thumbnail; the first is the object itself.
    """

    kind: str
    place: int
    boxes_xyxy: np.ndarray
    caption: str
    score: float | None = None
    height: float | None = None
    occlusion: str = ""


def person(kind: str, view: View, g: int, caption: str, boxes: Sequence[np.ndarray] = ()) -> Item:
    """An item about a person of the ground truth, by its place among all boxes."""
    errors = view.errors
    place, row = int(errors.matches.box_image[g]), int(errors.matches.box_row[g])
    annotations = view.run.frames[place].annotations
    row_of = int(errors.matches.box_matched_by[g])
    height, occlusion = float(annotations.height[row]), OCCLUSIONS[int(annotations.occlusion[row])]
    return Item(
        kind,
        place,
        np.stack([errors.truth.boxes_xyxy[g], *boxes]),
        f"{caption}{height:.0f} px tall, occlusion {occlusion}",
        score=float(errors.detections.scores[row_of]) if row_of >= 0 else None,
        height=height,
        occlusion=occlusion,
    )


def alarm(kind: str, view: View, row: int) -> Item:
    """An item about a false alarm, by its row in the table."""
    errors = view.errors
    box, nearest = errors.detections.boxes_xyxy[row], int(errors.nearest[row])
    score, height = float(errors.detections.scores[row]), float(box[3] - box[1])
    near = [errors.truth.boxes_xyxy[nearest]] if nearest >= 0 else []
    said = f", IoU {below(errors.overlap[row])} with the nearest box" if near else ""
    place = int(errors.detections.image_index[row])
    return Item(kind, place, np.stack([box, *near]), f"score {score:.2f}, {height:.0f} px tall{said}", score, height)


def below(iou: float) -> str:
    """Two digits, truncated, so that values below a half stay below it."""
    return f"{int(100 * iou) / 100:.2f}"


def fewest(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` items, taken from the kinds in turn, so that rare kinds stay complete."""
    queues: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        queues.setdefault(item.kind, []).append(i)
    turns = [i for turn in zip_longest(*queues.values()) for i in turn if i is not None]
    return [items[i] for i in sorted(turns[:count])]


def paste(
    views: Sequence[View], items: Sequence[Item], most_bytes: float = MOST_BYTES
) -> tuple[list[GalleryEntry], dict[str, str]]:
    """Draw the items.

    Args:
        views: one run, or several on the same frames.
        items: in the order of the entries.
        most_bytes: thumbnails and large pictures together take about so many at most; large pictures shrink to a scale
            that fits, and where the least one does not, the last entries have none and enlarge to their thumbnail.
            Thumbnails never shrink: of pairs they take 20 kB each.

    Returns:
        The entries in that order, and the addresses of the large pictures.
    """
    by_place: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        by_place.setdefault(item.place, []).append(i)
    scale, room = _scale(views, items, by_place, most_bytes)
    entries: dict[int, GalleryEntry] = {}
    pictures: dict[str, str] = {}
    for place, of_place in by_place.items():
        frame = views[0].run.frames[place]
        try:
            images = [view.run.images(place) for view in views]
        except DataError as error:
            for i in of_place:
                entries[i] = _entry(items[i], frame.name, frame.annotations.daytime, f"cannot be drawn: {error}")
            continue
        marked = [markings(view.errors, place, view.words) for view in views]
        zoom = scale * min(1.0, _LARGEST / max(images[0][0].shape))
        drawn = {}
        for v, view in enumerate(views):
            drawn[f"{v}/{place}"] = jpeg_address(whole(images[v], marked[v], zoom), _QUALITY), view.name
        size = sum(len(address) for address, _ in drawn.values())
        if size > room:
            drawn = {}
        pictures |= {key: address for key, (address, _) in drawn.items()}
        room -= size if drawn else 0
        for i in of_place:
            small = _thumbnail(views, images, marked, items[i])
            larger = [
                Large(key, name, rings(items[i].boxes_xyxy[0], frame.annotations.size, len(images[v]), zoom))
                for v, (key, (_, name)) in enumerate(drawn.items())
            ]
            entry = _entry(items[i], frame.name, frame.annotations.daytime)
            address = jpeg_address(small, _SMALL_QUALITY)
            entries[i] = GalleryEntry(
                **{**vars(entry), "thumbnail": address, "width": small.shape[1], "height_shown": small.shape[0]}
                | {"larger": larger}
            )
    return [entries[i] for i in range(len(items))], pictures


def _entry(item: Item, name: str, daytime: str | None, caption: str = "") -> GalleryEntry:
    return GalleryEntry(
        item.kind,
        name,
        caption or item.caption,
        daytime=daytime or "",
        occlusion=item.occlusion,
        height=item.height,
        score=item.score,
    )


def _thumbnail(
    views: Sequence[View], images: Sequence[Sequence[np.ndarray]], marked: Sequence[Sequence[Marking]], item: Item
) -> np.ndarray:
    side = _SIDES.get(sum(map(len, images)), _SIDE)
    shown = window(item.boxes_xyxy, views[0].run.frames[item.place].annotations.size)
    # around the object, not on it: its own colour is still to be seen
    box = item.boxes_xyxy[0] + np.array([-1, -1, 1, 1]) * (shown[2] - shown[0]) * _RING / side
    focus = Marking("focus", box[None])
    parts = []
    for view, of_view, boxes in zip(views, images, marked, strict=True):
        part = cropped(of_view, [*boxes, focus], shown, side)
        parts.append(with_caption(part, view.name) if view.name else part)
    return beside(parts)


def _scale(
    views: Sequence[View], items: Sequence[Item], by_place: dict[int, list[int]], most_bytes: float
) -> tuple[float, float]:
    """The largest scale of the large pictures with which all fit, by a sample of the frames; and the bytes for them."""
    places = list(by_place)[:: max(len(by_place) // _SAMPLE, 1)]
    sizes: dict[float, list[int]] = {scale: [] for scale in _SCALES}
    small = []
    for place in places:
        try:
            images = [view.run.images(place) for view in views]
        except DataError:
            continue
        marked = [markings(view.errors, place) for view in views]
        small.append(len(jpeg_address(_thumbnail(views, images, marked, items[by_place[place][0]]), _SMALL_QUALITY)))
        shrunk = min(1.0, _LARGEST / max(images[0][0].shape))
        for scale, of_scale in sizes.items():
            drawn = [whole(i, m, scale * shrunk) for i, m in zip(images, marked, strict=True)]
            of_scale.append(sum(len(jpeg_address(picture, _QUALITY)) for picture in drawn))
    if not small:
        return 1.0, most_bytes
    left = most_bytes - float(np.mean(small)) * len(items)
    fits = (scale for scale, of_scale in sizes.items() if np.mean(of_scale) * len(by_place) <= left)
    return next(fits, _SCALES[-1]), 1.05 * left  # a sample may err a little


def heights_of(view: View) -> np.ndarray:
    """float ``(g,)``: heights of all boxes as the annotations state them."""
    return box_column([frame.annotations for frame in view.run.frames], "height")
