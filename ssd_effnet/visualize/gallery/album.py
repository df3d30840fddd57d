"""Draws frames with boxes: a gallery's thumbnails and enlarged pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from data_kaist.classes import is_among
from data_kaist.errors import DataError
from data_kaist.statistics import OCCLUSIONS
from ssd_effnet.drawing import Marking, beside, draw, save, with_caption
from ssd_effnet.evaluation.error_analysis import Errors, Kind
from ssd_effnet.evaluation.miss_rate import Outcome
from ssd_effnet.visualize.gallery.finished_run import FinishedRun
from ssd_effnet.visualize.gallery.page import GalleryEntry, GalleryPage, Large

MOST_ENTRIES = 2000
GAP = 4  # pixels between the images of a pair
_CONTEXT = 2.2  # a thumbnail shows so many times the object's longer side
_LEAST = 72.0  # pixels of the picture that a thumbnail shows at least
_SIDES = {1: 208, 2: 168}  # pixels of a thumbnail by the number of images in it
_SIDE = 140  # where there are more
_RING = 4  # pixels of the thumbnail between an object and the ring around it
_LARGEST = 960  # pixels: a photograph's longer side need not be larger on a page

_ALARMS = {Kind.BACKGROUND: "background", Kind.MISPLACED: "badly placed", Kind.DUPLICATE: "duplicate"}


@dataclass(frozen=True, eq=False)
class View:
    """A run with its errors on the frames.

    Attributes:
        run: the run.
        errors: its errors.
        name: written on its pictures where a gallery shows more than one run.
        words: labels of boxes that are not of its class, by place among all boxes.
    """

    run: FinishedRun
    errors: Errors
    name: str = ""
    words: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        every = np.concatenate([np.zeros(0, object), *(frame.annotations.labels for frame in self.run.frames)])
        others = ~is_among(every, self.run.classes.counted(self.run.of_class))
        object.__setattr__(self, "words", {int(g): str(every[g]) for g in np.flatnonzero(others)})


@dataclass(frozen=True, eq=False)
class Item:
    """An entry before it is drawn. Its frame and boxes ``(n, 4)`` on the thumbnail, the object first."""

    entry: GalleryEntry
    place: int
    boxes_xyxy: np.ndarray


def _item(view: View, kind: str, place: int, boxes: Sequence[np.ndarray], caption: str, **more: Any) -> Item:
    frame = view.run.frames[place]
    entry = GalleryEntry(kind, frame.name, caption, daytime=frame.annotations.daytime or "", **more)
    return Item(entry, place, np.stack(boxes))


def person(kind: str, view: View, g: int, caption: str, boxes: Sequence[np.ndarray] = ()) -> Item:
    """An item about a person, by its place among boxes."""
    errors = view.errors
    place = int(errors.truth.box_image[g])
    found = int(errors.matches.box_matched_by[g])
    height = float(errors.truth.height[g])
    occlusion = OCCLUSIONS[int(errors.truth.occlusion[g])]
    caption = f"{caption}{height:.0f} px tall, occlusion {occlusion}"
    score = float(errors.detections.scores[found]) if found >= 0 else None
    around = [errors.truth.boxes_xyxy[g], *boxes]
    return _item(view, kind, place, around, caption, height=height, occlusion=occlusion, score=score)


def alarm(kind: str, view: View, row: int) -> Item:
    """An item about a false alarm, by its row in the table."""
    errors = view.errors
    box, nearest = errors.detections.boxes_xyxy[row], int(errors.nearest[row])
    score, height = float(errors.detections.scores[row]), float(box[3] - box[1])
    near = [errors.truth.boxes_xyxy[nearest]] if nearest >= 0 else []
    said = f", IoU {below(errors.overlap[row])} with the nearest box" if near else ""
    caption = f"score {score:.2f}, {height:.0f} px tall{said}"
    return _item(view, kind, int(errors.detections.image_index[row]), [box, *near], caption, score=score, height=height)


def below(iou: float) -> str:
    """Two digits, truncated, so that values below a half stay below it."""
    return f"{int(100 * iou) / 100:.2f}"


def legend(run: FinishedRun) -> dict[str, Any]:
    """Of a page: kinds of box on the run's pictures, and their class."""
    others = ["another"] if run.classes.absent(run.of_class) else []
    return {"legend": [*GalleryPage.legend, *others], "of_class": run.of_class}


def fewest(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` items, taken from the kinds in turn. Rare kinds stay complete."""
    queues: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        queues.setdefault(item.entry.kind, []).append(i)
    turns = [i for turn in zip_longest(*queues.values()) for i in turn if i is not None]
    return [items[i] for i in sorted(turns[:count])]


def paste(views: Sequence[View], items: Sequence[Item], out: Path) -> list[GalleryEntry]:
    """Draw items into ``out/pictures`` and return their entries. Of one run, or several on the same frames."""
    (out / "index.html").unlink(missing_ok=True)  # it would show the new pictures below old words
    by_place: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        by_place.setdefault(item.place, []).append(i)
    entries = [item.entry for item in items]
    for place, of_place in by_place.items():
        try:
            images = [view.run.images(place) for view in views]
        except DataError as error:
            for i in of_place:
                entries[i] = replace(entries[i], caption=f"cannot be drawn: {error}")
            continue
        marked = [markings(view.errors, place, view.words) for view in views]
        size, zoom = views[0].run.frames[place].annotations.size, min(1.0, _LARGEST / max(images[0][0].shape))
        names = [f"pictures/frame{place}_{v}.jpg" for v in range(len(views))]
        for name, of_view, boxes in zip(names, images, marked, strict=True):
            save(whole(of_view, boxes, zoom), out / name)
        for i in of_place:
            small = _thumbnail(views, images, marked, items[i], size)
            save(small, out / (address := f"pictures/entry{i}.jpg"))
            larger = [
                Large(name, view.name, rings(items[i].boxes_xyxy[0], size, len(of_view), zoom))
                for name, view, of_view in zip(names, views, images, strict=True)
            ]
            height, width = small.shape[:2]
            entries[i] = replace(entries[i], thumbnail=address, width=width, height_shown=height, larger=larger)
    return entries


def _thumbnail(
    views: Sequence[View],
    images: Sequence[Sequence[np.ndarray]],
    marked: Sequence[Sequence[Marking]],
    item: Item,
    size: tuple[int, int],
) -> np.ndarray:
    side = _SIDES.get(sum(map(len, images)), _SIDE)
    shown = window(item.boxes_xyxy, size)
    # around the object, not on it: its own colour is still to be seen
    box = item.boxes_xyxy[0] + np.array([-1, -1, 1, 1]) * (shown[2] - shown[0]) * _RING / side
    focus = Marking("focus", box[None])
    parts = []
    for view, of_view, boxes in zip(views, images, marked, strict=True):
        part = cropped(of_view, [*boxes, focus], shown, side)
        parts.append(with_caption(part, view.name) if view.name else part)
    return beside(parts)


def markings(errors: Errors, place: int, words: Mapping[int, str] | None = None) -> list[Marking]:
    """All boxes of a frame with kinds at the operating point. ``words``: texts by a true box's place among all."""
    words, truth = words or {}, errors.truth
    here = np.arange(truth.box_start[place], truth.box_start[place + 1])
    counted, found, absent = errors.counted[here], errors.found[here], truth.is_absent[here]
    rows = np.flatnonzero((errors.detections.image_index == place) & errors.shown)
    outcome = errors.matches.outcome[rows]
    scores = dict(zip(rows.tolist(), errors.detections.rows(rows).texts(), strict=True))
    for kind, word in _ALARMS.items():
        scores |= {int(row): f"{scores[int(row)]} {word}" for row in rows[errors.kinds[kind][rows]]}

    def people(kind: str, which: np.ndarray, word: str = "") -> Marking:
        return Marking(kind, truth.boxes_xyxy[here[which]], [words.get(int(g), word) for g in here[which]])

    def detections(kind: str, which: Outcome) -> Marking:
        chosen = rows[outcome == which]
        return Marking(kind, errors.detections.boxes_xyxy[chosen], [scores[int(row)] for row in chosen])

    return [
        people("ignored", ~counted & ~absent),
        people("another", absent),
        detections("dropped", Outcome.DROPPED),
        people("truth", counted & found),
        detections("hit", Outcome.TRUE_POSITIVE),
        people("missed", counted & ~found, "missed"),
        detections("false_alarm", Outcome.FALSE_POSITIVE),
    ]


def window(boxes_xyxy: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Square xyxy around boxes ``(n, 4)`` that a thumbnail shows. Within a picture of ``size`` (height, width)."""
    x1, y1 = boxes_xyxy[:, :2].min(axis=0)
    x2, y2 = boxes_xyxy[:, 2:].max(axis=0)
    side = max(_CONTEXT * max(x2 - x1, y2 - y1), _LEAST)
    edges = []
    for centre, length in (((x1 + x2) / 2, size[1]), ((y1 + y2) / 2, size[0])):
        extent = min(round(side), length)
        start = min(max(round(centre - extent / 2), 0), length - extent)
        edges.append((start, start + extent))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def cropped(
    images: Sequence[np.ndarray], marked: Sequence[Marking], shown: tuple[int, int, int, int], side: int
) -> np.ndarray:
    """A part of each image with its boxes, side by side. The longer side of each has ``side`` pixels."""
    left, top, right, bottom = shown
    offset = np.array([left, top, left, top], float)
    inside = []
    for marking in marked:
        boxes = np.asarray(marking.boxes_xyxy, float).reshape(-1, 4)
        kept = (boxes[:, 0] < right) & (boxes[:, 2] > left) & (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
        texts = [text for text, keep in zip(marking.texts, kept, strict=False) if keep]
        inside.append(Marking(marking.kind, boxes[kept] - offset, texts))
    zoom = side / max(right - left, bottom - top)
    return beside([draw(image[top:bottom, left:right], inside, zoom=zoom) for image in images], GAP)


def whole(images: Sequence[np.ndarray], marked: Sequence[Marking], zoom: float) -> np.ndarray:
    """Each image with its boxes, beside each other, ``zoom`` times as large."""
    return beside([draw(image, marked, zoom=zoom) for image in images], GAP)


def rings(
    box_xyxy: np.ndarray, size: tuple[int, int], images: int, zoom: float
) -> list[tuple[float, float, float, float]]:
    """Where a box is on a picture of :func:`whole`. Left, top, width, height in 0..1, for so many images."""
    height, width = (max(round(length * zoom), 1) for length in size)
    total = images * width + (images - 1) * GAP
    x1, y1, x2, y2 = (float(v) * zoom for v in box_xyxy)
    parts = []
    for left in (i * (width + GAP) for i in range(images)):
        across, down = (left + x1) / total, y1 / height
        parts.append((round(across, 4), round(down, 4), round((x2 - x1) / total, 4), round((y2 - y1) / height, 4)))
    return parts
