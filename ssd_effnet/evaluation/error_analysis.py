"""Errors of a detector by kind, and what each kind costs.

In the spirit of TIDE (D. Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020,
section 2): each error has one kind, and a kind's cost is the miss rate without that kind alone. Edited tables of
detections are matched again by the evaluator. The costs do not add up.

An *operating point* is a least score; people not found from that score on are missed there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

import numpy as np

from data_kaist.structures import DetectionTable
from ssd_effnet.evaluation.miss_rate import MIN_OVERLAP, MissRateEvaluator, Outcome
from ssd_effnet.evaluation.subsets import REASONABLE, SUBSETS

FPPI = 0.1
NEAR = 0.1  # TIDE's threshold between background and a badly localised box
HEIGHTS = (0, 45, 55, 80, 115, 200, float("inf"))  # pixels; 45, 55 and 115 are the benchmark's


class Kind(StrEnum):
    """Kinds of error: one for each missed person and each false alarm.

    A missed person is ``MISSED_MISPLACED`` if a ``MISPLACED`` false alarm at the operating point is nearest to it; else
    ``MISSED_UNSURE`` if a correct detection has a score below the operating point; else ``MISSED_UNSEEN``. A false
    alarm's kind depends on its greatest IoU with a box of its image, ignore regions included: ``BACKGROUND`` below 0.1,
    ``MISPLACED`` below 0.5, else ``DUPLICATE``.
    """

    MISSED_UNSEEN = "missed_unseen"
    MISSED_UNSURE = "missed_unsure"
    MISSED_MISPLACED = "missed_misplaced"
    BACKGROUND = "background"
    MISPLACED = "misplaced"
    DUPLICATE = "duplicate"


WORDS: dict[Kind, str] = {
    Kind.MISSED_UNSEEN: "missed, no right box at any score",
    Kind.MISSED_UNSURE: "missed, right box but score too low",
    Kind.MISSED_MISPLACED: "missed, box badly placed",
    Kind.BACKGROUND: "false alarm, background",
    Kind.MISPLACED: "false alarm, badly placed",
    Kind.DUPLICATE: "false alarm, duplicate",
}


def nearest_box(truth: MissRateEvaluator, detections: DetectionTable) -> tuple[np.ndarray, np.ndarray]:
    """Box that each detection overlaps most, with its IoU. Index ``(d,)``, -1 for none; ignore regions included."""
    row, box, iou, _ = truth.touching(detections.image_index, detections.boxes_xyxy)
    order = np.lexsort((iou, row))
    nearest, most = np.full(len(detections), -1, np.int64), np.zeros(len(detections))
    nearest[row[order]], most[row[order]] = box[order], iou[order]  # of equal rows the last, the greatest, stays
    return nearest, most


class Errors:
    """Errors of one table of detections in one subset.

    Args:
        subset: people in it count.
        fppi: the operating point is the lowest score within this number of false positives per image, at least one
            false positive in all; equal highest scores are always shown.
        min_score: if given, the operating point in place of ``fppi``.

    Attributes:
        images: of the subset.
        shown: bool ``(d,)``, detections from the operating point on.
        min_score: the least score that is shown; NaN without detections.
        fppi: false positives per image there.
        found, counted, missed: bool ``(g,)``, boxes found by shown detections; people in the denominator; those missed.
        kinds: ``[kind]``: bool ``(g,)``, people missed at the operating point; or bool ``(d,)``, false alarms at *all*
            scores.
        nearest, overlap: ``(d,)``, of :func:`nearest_box`.
    """

    def __init__(
        self,
        truth: MissRateEvaluator,
        detections: DetectionTable,
        subset: str = REASONABLE[0],
        *,
        fppi: float = FPPI,
        min_score: float | None = None,
    ) -> None:
        self.truth, self.detections = truth, detections
        self.subset = subset
        self.images = int(truth.image_is[SUBSETS[subset].daytime].sum())
        self.matches = truth.match(detections).matches(subset)
        alarms = self.matches.in_subset & (self.matches.outcome == Outcome.FALSE_POSITIVE)
        self.shown = self._shown(alarms, fppi, min_score)
        self.min_score = float(detections.scores[self.shown].min()) if self.shown.any() else float("nan")
        self.fppi = float((alarms & self.shown).sum() / max(self.images, 1))
        matched = self.matches.box_matched_by >= 0
        self.found = matched.copy()
        self.found[matched] = self.shown[self.matches.box_matched_by[matched]]
        self.counted = ~self.matches.box_ignored
        self.missed = self.counted & ~self.found
        self.nearest, self.overlap = nearest_box(truth, detections)
        misplaced = alarms & (self.overlap >= NEAR) & (self.overlap < MIN_OVERLAP)
        touched = np.zeros(len(self.found), bool)
        touched[self.nearest[misplaced & self.shown]] = True
        self.kinds = {
            Kind.BACKGROUND: alarms & (self.overlap < NEAR),
            Kind.MISPLACED: misplaced,
            Kind.DUPLICATE: alarms & (self.overlap >= MIN_OVERLAP),
            Kind.MISSED_UNSEEN: self.missed & ~touched & ~matched,
            Kind.MISSED_UNSURE: self.missed & ~touched & matched,
            Kind.MISSED_MISPLACED: self.missed & touched,
        }

    def _shown(self, alarms: np.ndarray, fppi: float, min_score: float | None) -> np.ndarray:
        scores = self.detections.scores
        if min_score is not None:
            return np.asarray(scores >= min_score)
        wrong = np.sort(scores[alarms])[::-1]
        allowed = max(int(fppi * self.images + 1e-9), 1)
        limit = wrong[allowed] if len(wrong) > allowed else -np.inf
        return np.asarray(scores > limit if (scores > limit).any() else scores >= limit)

    def at_point(self, kind: Kind) -> np.ndarray:
        """Errors of a kind at the operating point: rows of boxes or detections."""
        rows = self.kinds[kind]
        return np.flatnonzero(rows if is_miss(kind) else rows & self.shown)

    def miss_rate(self, detections: DetectionTable | None = None) -> float:
        """Miss rate (0..1) of these detections or an edited table. NaN without people."""
        return self.truth.match(self.detections if detections is None else detections).result(self.subset).mr

    def miss_rate_without(self, kind: Kind) -> float:
        """Miss rate without this kind of error.

        False alarms of the kind are removed at all scores; for misses see :meth:`miss_rate_if_found`.
        """
        if is_miss(kind):
            return self.miss_rate_if_found(self.kinds[kind])
        return self.miss_rate(self.detections.rows(~self.kinds[kind]))

    def miss_rate_if_found(self, people: np.ndarray) -> float:
        """Miss rate if these people, bool ``(g,)``, were found at every score.

        Each counted person gets a detection of its box with the highest score; the one that had found it is removed.
        """
        people = people & self.counted
        found_by = self.matches.box_matched_by[people]
        kept = np.ones(len(self.detections), bool)
        kept[found_by[found_by >= 0]] = False
        rest = self.detections.rows(kept)
        above = (float(self.detections.scores.max()) if len(self.detections) else 0.0) + 1
        return self.miss_rate(
            DetectionTable(
                np.concatenate((rest.image_index, self.truth.box_image[people])),
                np.concatenate((rest.boxes_xyxy, self.truth.boxes_xyxy[people])),
                np.concatenate((rest.scores, np.full(int(people.sum()), above))),
            )
        )

    def miss_rate_if_put_right(self) -> float:
        """Miss rate with each ``MISPLACED`` false alarm on its nearest box.

        The table is matched again. New false alarms are removed, as NMS would: moved detections of people already
        found, and correct detections with a lower score than a moved one.
        """
        moved = self.kinds[Kind.MISPLACED]
        boxes = self.detections.boxes_xyxy.copy()
        boxes[moved] = self.truth.boxes_xyxy[self.nearest[moved]]
        table = replace(self.detections, boxes_xyxy=boxes)
        after = self.truth.match(table).matches(self.subset)
        was_right = self.matches.outcome == Outcome.TRUE_POSITIVE
        superseded = (after.outcome == Outcome.FALSE_POSITIVE) & (moved | was_right)
        return self.miss_rate(table.rows(~superseded))


def is_miss(kind: Kind) -> bool:
    """Whether the kind is a miss, not a false alarm."""
    return kind.value.startswith("missed")


@dataclass(frozen=True)
class Group:
    """People of one sort: number, number missed, miss rate (0..1) if found."""

    words: str
    people: int
    missed: int
    miss_rate_if_found: float


def groups(errors: Errors) -> dict[str, list[Group]]:
    """Counted people by time of day, height and occlusion, without empty groups."""
    found: dict[str, list[Group]] = {}
    for sort, parts in people_groups(errors.truth).items():
        found[sort] = []
        for words, who in parts:
            missed = who & errors.missed
            if people := int((who & errors.counted).sum()):
                found[sort].append(Group(words, people, int(missed.sum()), errors.miss_rate_if_found(missed)))
    return found


def people_groups(truth: MissRateEvaluator) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Boxes by time of day, height, occlusion: ``[sort]`` has names and bool ``(g,)``."""
    height, occlusion = truth.height, truth.occlusion
    day, night = (truth.image_is[time][truth.box_image] for time in ("day", "night"))
    return {
        "time of day": [("day", day), ("night", night), ("unknown", ~day & ~night)],
        "height in pixels": [
            (f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} and more", (height >= low) & (height < high))
            for low, high in pairwise(HEIGHTS)
        ],
        "occlusion": [(words, occlusion == level) for level, words in enumerate(("none", "partial", "heavy"))],
    }
