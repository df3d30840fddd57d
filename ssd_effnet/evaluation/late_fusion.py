"""Late fusion: detections of several detectors on the same images become one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data_kaist.errors import DataError
from data_kaist.structures import DetectionTable, xywh_rows

OVERLAP = 0.5
"""IoU from which boxes of two detectors are of one object."""


def proben(scores: np.ndarray, boxes_xyxy: np.ndarray) -> tuple[float, np.ndarray]:
    """Bayes' rule for conditionally independent detectors. Chen et al., ECCV 2022, equation 4, a uniform prior.

    ``p = prod(s) / (prod(s) + prod(1 - s))``, and the mean of the boxes weighted by score (the paper's s-avg). A
    detector that found nothing has no say.
    """
    s = np.clip(scores, 1e-12, 1 - 1e-12)
    evidence = np.log(s / (1 - s)).sum()
    return float(1 / (1 + np.exp(-evidence))), np.average(boxes_xyxy, axis=0, weights=s)


def average(scores: np.ndarray, boxes_xyxy: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean score and mean box of the detectors that found the object."""
    return float(scores.mean()), boxes_xyxy.mean(axis=0)


def best_alone(scores: np.ndarray, boxes_xyxy: np.ndarray) -> tuple[float, np.ndarray]:
    """The best detection alone, as by non-maximum suppression over all."""
    return float(scores[0]), boxes_xyxy[0]


JOINS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]] = {
    "proben": proben,
    "average": average,
    "nms": best_alone,
}
"""From the scores ``(m,)`` and boxes ``(m, 4)`` of one object, best first, to one score and box ``(4,)``."""


def join(tables: Sequence[DetectionTable], by: str = "proben", overlap: float = OVERLAP) -> DetectionTable:
    """Merge detections of several detectors into one table.

    From the best down, a detection is joined with every other detector's detection of largest IoU, if that is at least
    ``overlap``. Others of the same class and image that overlap as much are dropped.

    Raises:
        DataError: other classes, or for ``proben`` scores that are no probabilities.
    """
    from pycocotools.mask import iou as overlaps

    for table in tables:
        if table.classes != tables[0].classes:
            raise DataError(f"detections of {table.classes} cannot be joined with those of {tables[0].classes}")
        if by == "proben" and len(table) and not (table.scores.min() >= 0 and table.scores.max() <= 1):
            raise DataError(
                f"scores from {table.scores.min():g} to {table.scores.max():g} are no probabilities, which proben "
                "needs; take nms"
            )
    source = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    image, boxes, scores, labels = (
        np.concatenate([getattr(table, column) for table in tables])
        for column in ("image_index", "boxes_xyxy", "scores", "labels")
    )
    rows, sized = list[tuple[int, int, float, np.ndarray]](), np.array(xywh_rows(boxes), np.float64)
    order = np.lexsort((-scores, labels, image))
    starts = np.flatnonzero(np.diff(image[order], prepend=-1) | np.diff(labels[order], prepend=-1))
    for group in np.split(order, starts[1:]) if len(order) else ():
        while len(group):
            iou = overlaps(sized[group[:1]], sized[group], np.zeros(len(group), bool))[0]
            iou[0] = 1
            same = iou >= overlap
            members = [0]
            for other in set(source[group[same]].tolist()) - {source[group[0]]}:
                members.append(int(np.where(same & (source[group] == other), iou, -1).argmax()))
            chosen = group[sorted(members)]
            rows.append((image[chosen[0]], labels[chosen[0]], *JOINS[by](scores[chosen], boxes[chosen])))
            group = group[~same]
    if not rows:
        return DetectionTable.empty()
    images, classes, joined, joined_boxes = zip(*rows, strict=True)
    found = DetectionTable(
        np.array(images), np.array(joined_boxes, np.float64), np.array(joined), np.array(classes), tables[0].classes
    )
    return DetectionTable.joined([found])
