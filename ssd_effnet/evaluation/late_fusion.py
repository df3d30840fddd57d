"""Late fusion: detections of several detectors on the same images become one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from data_kaist.errors import DataError
from data_kaist.structures import DetectionTable, xywh_rows

OVERLAP = 0.5
"""IoU from which boxes of two detectors are of one object."""


def proben(scores: np.ndarray, boxes_xyxy: np.ndarray, prior: float = 0.5) -> tuple[float, np.ndarray]:
    """Bayes' rule for conditionally independent detectors. ProbEn: Chen et al., ECCV 2022.

    The odds of ``m`` scores are multiplied and divided by the prior's ``m - 1`` times; the box is the mean weighted by
    score (the paper's s-avg). A detector that found nothing has no say.

    Args:
        prior: share of the boxes that are of an object. Scores below it speak against one. The paper's is 0.5, for
            detections cut there: of lower ones two that agree would make each other less likely.
    """
    s = np.clip(scores, 1e-12, 1 - 1e-12)
    evidence = np.log(s / (1 - s)).sum() - (len(s) - 1) * np.log(prior / (1 - prior))
    return float(1 / (1 + np.exp(-evidence))), np.average(boxes_xyxy, axis=0, weights=s)


def mean_score(tables: Sequence[DetectionTable]) -> float:
    """Mean of all scores: of calibrated ones the share of the boxes that are of an object."""
    scores = np.concatenate([table.scores for table in tables])
    return float(scores.mean()) if len(scores) else 0.5


def average(scores: np.ndarray, boxes_xyxy: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean score and mean box of the detectors that found the object."""
    return float(scores.mean()), boxes_xyxy.mean(axis=0)


def best_alone(scores: np.ndarray, boxes_xyxy: np.ndarray) -> tuple[float, np.ndarray]:
    """The best detection alone, as by non-maximum suppression over all."""
    return float(scores[0]), boxes_xyxy[0]


JOINS: dict[str, Callable[..., tuple[float, np.ndarray]]] = {"proben": proben, "average": average, "nms": best_alone}
"""From the scores ``(m,)`` and boxes ``(m, 4)`` of one object, best first, to one score and box ``(4,)``."""


def join(tables: Sequence[DetectionTable], by: str = "proben", prior: float | None = None) -> DetectionTable:
    """Merge detections of several detectors into one table.

    From the best down, a detection is joined with every other detector's best one of the same class and image whose IoU
    is at least :data:`OVERLAP`. Others that overlap as much are dropped.

    Args:
        prior: of :func:`proben`; None: :func:`mean_score`.

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
    joining = JOINS[by]
    if by == "proben":
        prior = mean_score(tables) if prior is None else prior
        joining = partial(proben, prior=float(np.clip(prior, 1e-6, 1 - 1e-6)))
    order = np.lexsort((-scores, labels, image))
    starts = np.flatnonzero(np.diff(image[order], prepend=-1) | np.diff(labels[order], prepend=-1))
    for group in np.split(order, starts[1:]) if len(order) else ():
        while len(group):
            same = overlaps(sized[group[:1]], sized[group], np.zeros(len(group), bool))[0] >= OVERLAP
            same[0] = True
            near = group[same]
            chosen = near[np.sort(np.unique(source[near], return_index=True)[1])]  # the first of each is its best
            rows.append((image[chosen[0]], labels[chosen[0]], *joining(scores[chosen], boxes[chosen])))
            group = group[~same]
    if not rows:
        return DetectionTable.empty()
    images, classes, joined, joined_boxes = zip(*rows, strict=True)
    found = DetectionTable(
        np.array(images), np.array(joined_boxes, np.float64), np.array(joined), np.array(classes), tables[0].classes
    )
    return DetectionTable.joined([found])
