"""Log-average miss rate of the KAIST benchmark.

P. Dollar et al., "Pedestrian Detection: An Evaluation of the State of the Art", PAMI 2012, by the rules of the KAIST
devkit and of the script that most papers since 2021 ran.

    >>> people = Annotations.from_rows([(100, 100, 150, 220), (300, 100, 350, 220)], size=(512, 640))
    >>> detections = DetectionTable(np.array([0]), np.array([[102.0, 101, 149, 219]]), np.array([0.9]))
    >>> evaluator = MissRateEvaluator([people])     # pack the ground truth once
    >>> matcher = evaluator.match(detections)       # overlaps once, for all subsets and rule sets
    >>> matcher.result("reasonable_all").mr         # one of two people is missed
    0.5
    >>> matcher.matches("reasonable_all").outcome   # which detections were right (1), wrong (0) or dropped (-1)
    array([1], dtype=int8)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from data_kaist.classes import PERSON, Classes, is_among
from data_kaist.structures import Annotations, DetectionTable
from ssd_effnet.evaluation.subsets import RULES, SUBSETS, Rules, Subset

MIN_OVERLAP = 0.5
MAX_DETECTIONS_AN_IMAGE = 1000
BORDER = 5  # pixels; boxes that reach into this margin of the frame are ignored


class Outcome(IntEnum):
    """Outcome of a detection. ``DROPPED``: on an ignore region or beyond the first 1,000."""

    DROPPED = -1
    FALSE_POSITIVE = 0
    TRUE_POSITIVE = 1


@dataclass(frozen=True, eq=False)
class MissRate:
    """One subset's result under one rule set.

    Attributes:
        mr: log-average miss rate in 0..1; NaN where no box is counted.
        recall: true positives / counted boxes at the lowest score, in 0..1; NaN where no box is counted.
        counted: boxes in the denominator.
        images: images of the subset.
        fppi: float64 ``(k,)``, false positives per image as the score falls, without dropped detections.
        miss_rate: float64 ``(k,)``, 1 - recall at the same points; NaN where no box is counted.
        reference_fppi: float64 ``(9,)``, reference points of the mean.
        reference_miss_rate: float64 ``(9,)``, miss rate there, before the floor; NaN where no box is counted.
    """

    mr: float
    recall: float
    counted: int
    images: int
    fppi: np.ndarray
    miss_rate: np.ndarray
    reference_fppi: np.ndarray
    reference_miss_rate: np.ndarray


@dataclass(frozen=True, eq=False)
class Matches:
    """Matches of detections and boxes in one subset.

    Rows of detections are those of the table; boxes are those of all images in order, as the evaluator has them.

    Attributes:
        in_subset: bool ``(d,)``, the detection is on an image of the subset.
        outcome: int8 ``(d,)``, values of :class:`Outcome`.
        box_ignored: bool ``(g,)``, an ignore region in this subset; boxes of images outside it are ignored too.
        box_matched_by: int64 ``(g,)``, row of the true positive that found it, -1 where none.
    """

    in_subset: np.ndarray
    outcome: np.ndarray
    box_ignored: np.ndarray
    box_matched_by: np.ndarray


@dataclass(frozen=True, eq=False)
class Curve:
    """Data of one subset's miss-rate curve, by image.

    Attributes:
        true_positive: bool ``(k,)``, in order of falling score, without dropped detections.
        image: int64 ``(k,)``, the image each lies on.
        images: int64 ``(n,)``, the images of the subset.
        counted: int64, one per image of the evaluator: its boxes in the denominator, 0 outside the subset.
        rules: of the reading.
    """

    true_positive: np.ndarray
    image: np.ndarray
    images: np.ndarray
    counted: np.ndarray
    rules: Rules

    def read(self, weight: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Log-average miss rate of the curve with images weighted.

        Args:
            weight: float64 ``(n,)``, one per image of the evaluator.

        Returns:
            ``mr``, fppi ``(k,)``, miss rate ``(k,)``, miss rate at the references ``(r,)``; NaN where no box is
            counted.
        """
        of_detection, counted = weight[self.image], float(self.counted @ weight)
        right = of_detection * self.true_positive
        fppi = np.cumsum(of_detection - right) / max(float(weight[self.images].sum()), 1)
        references = self.rules.references
        if counted == 0:
            return np.nan, fppi, np.full(len(fppi), np.nan), np.full(len(references), np.nan)
        recall = np.cumsum(right) / counted
        place = np.searchsorted(fppi, references, side="right") - 1
        before_start = recall[-1] if self.rules.wraps_round and len(recall) else 0.0
        start = np.searchsorted(fppi + recall, 0, side="right")  # detections of weight 0 do not begin the curve
        read = np.where(place < start, before_start, recall[place] if len(recall) else 0.0)
        with np.errstate(divide="ignore"):  # the floor may be 0; exp(-inf) is then 0
            mr = float(np.exp(np.mean(np.log(np.maximum(1 - read, self.rules.floor)))))
        return mr, fppi, 1 - recall, 1 - read


class MissRateEvaluator:
    """Ground truth of a set of images, packed for matching detection tables.

    Args:
        annotations: one per image; in the order of ``DetectionTable.image_index``.
        counted: labels of boxes to be found; all others are ignore regions.
        absent: labels of boxes that are left out.
    """

    def __init__(
        self, annotations: Sequence[Annotations], counted: Sequence[str] = (PERSON,), absent: Sequence[str] = ()
    ) -> None:
        self.annotations = annotations
        counts = np.array([len(a) for a in annotations], np.int64)
        sizes = np.array([a.size for a in annotations], np.float64).reshape(-1, 2)
        daytimes = np.array([a.daytime or "" for a in annotations], dtype="U5")
        self.n_images = len(counts)
        self.box_start = np.concatenate([[0], np.cumsum(counts)])
        self.box_image = np.repeat(np.arange(self.n_images), counts)
        self.image_is = {None: np.ones(self.n_images, bool), "day": daytimes == "day", "night": daytimes == "night"}
        boxes = [a.boxes_xyxy for a in annotations]
        self.boxes_xyxy = np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float64)
        self.height = np.concatenate([np.zeros(0), *(a.height for a in annotations)]).astype(np.float64)
        self.occlusion = np.concatenate([np.zeros(0, np.int64), *(a.occlusion for a in annotations)])
        labels = np.concatenate([np.zeros(0, object), *(a.labels for a in annotations)])
        flagged = np.concatenate([np.zeros(0, bool), *(a.ignore for a in annotations)])
        x1, y1, x2, y2 = self.boxes_xyxy.T
        height, width = sizes[self.box_image].T
        crosses = (x1 < BORDER) | (y1 < BORDER) | (x2 > width - BORDER) | (y2 > height - BORDER)
        self.counted, self.absent = tuple(counted), tuple(absent)
        self.of_class = is_among(labels, counted) & ~flagged
        """bool ``(g,)``: boxes whose label is counted and that the file does not flag."""
        self.is_absent = is_among(labels, absent)
        self._never_counted = ~self.of_class | crosses

    @classmethod
    def for_class(cls, annotations: Sequence[Annotations], classes: Classes, name: str) -> MissRateEvaluator:
        """Ground truth of one class, by its scored labels."""
        return cls(annotations, classes.counted(name), classes.absent(name))

    def ignored(self, subset: Subset) -> np.ndarray:
        """Ignore regions of a subset, bool ``(g,)``."""
        wanted = np.isin(self.occlusion, subset.occlusions)
        too_small_or_large = (self.height < subset.min_height) | (self.height > subset.max_height)
        ignored: np.ndarray = self._never_counted | too_small_or_large | ~wanted
        return ignored

    def touching(
        self, image: np.ndarray, boxes_xyxy: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Overlapping pairs of a detection and a box, ignore regions included.

        Args:
            image: int64 ``(d,)``, of each detection.
            boxes_xyxy: float64 ``(d, 4)``.

        Returns:
            Row of the detection (ascending), index of the box among all (ascending within a row), their IoU, and the
            share of the detection that the box covers; each ``(p,)``.
        """
        counts = np.diff(self.box_start)[image]
        row = np.repeat(np.arange(len(image)), counts)
        box = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        box += self.box_start[image[row]]
        d, g = boxes_xyxy[row].T, self.boxes_xyxy[box].T
        overlap_w = np.minimum(d[2], g[2]) - np.maximum(d[0], g[0])
        overlap_h = np.minimum(d[3], g[3]) - np.maximum(d[1], g[1])
        kept = (overlap_w > 0) & (overlap_h > 0) & ~self.is_absent[box]
        row, box, d, g = row[kept], box[kept], d[:, kept], g[:, kept]
        shared = overlap_w[kept] * overlap_h[kept]
        area_d = (d[2] - d[0]) * (d[3] - d[1])
        area_g = (g[2] - g[0]) * (g[3] - g[1])
        return row, box, shared / (area_d + area_g - shared), shared / area_d

    def match(self, detections: DetectionTable) -> Matcher:
        """Overlaps of the detections with the boxes, for all subsets.

        Raises:
            ValueError: a detection that is not finite, or on an image without annotation.
        """
        return Matcher(self, detections)


class Matcher:
    """One table of detections matched to ground truth, by :meth:`MissRateEvaluator.match`.

    Internally detections are indexed by *rank*: order by falling score, then image, then row. This is the order of
    greedy matching within an image and of the curve over all images. Only pairs that overlap enough are kept, for all
    subsets.
    """

    def __init__(self, truth: MissRateEvaluator, detections: DetectionTable) -> None:
        image = np.asarray(detections.image_index, np.int64)
        if len(image) and (image.min() < 0 or image.max() >= truth.n_images):
            raise ValueError(f"detections on images {image.min()} to {image.max()} of {truth.n_images} images")
        if not (np.isfinite(detections.scores).all() and np.isfinite(detections.boxes_xyxy).all()):
            raise ValueError("detections with a score or a coordinate that is not finite cannot be ranked")
        self.truth = truth
        self.detections = detections
        self._row = np.lexsort((image, -np.asarray(detections.scores, np.float64)))  # rank -> row of the table
        self._image = image[self._row]
        self._considered = _place_in_group(self._image) < MAX_DETECTIONS_AN_IMAGE
        self._has_detection = np.bincount(image, minlength=truth.n_images) > 0
        self._pair_rank, self._pair_box, self._pair_iou = self._pairs(
            np.asarray(detections.boxes_xyxy, np.float64)[self._row]
        )
        self._cache: dict[tuple[float, float, tuple[int, ...]], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def _pairs(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Candidate pairs, ``(p,)`` each: rank of the detection, box, IoU; best IoU and last box first.

        The box covers half of the detection: enough for an ignore region, and implied by an IoU of 0.5.
        """
        among = np.flatnonzero(self._considered)
        row, box, iou, covered = self.truth.touching(self._image[among], boxes[among])
        enough = np.maximum(iou, covered) >= MIN_OVERLAP  # the maximum only prevents rounding errors
        rank, box, iou = among[row[enough]], box[enough], iou[enough]
        order = np.lexsort((-box, -iou, rank))
        return rank[order], box[order], iou[order]

    def _outcomes(self, subset: Subset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Outcome and box found (-1: none), ``(d,)`` by rank; ignored boxes, ``(g,)``.

        Shared by subsets that differ only in the time of day.
        """
        key = (subset.min_height, subset.max_height, subset.occlusions)
        if key not in self._cache:
            ignored = self.truth.ignored(subset)
            on_ignored = ignored[self._pair_box]
            candidates = ~on_ignored & (self._pair_iou >= MIN_OVERLAP)
            found = np.full(len(self._row), -1, np.int64)
            taken: set[int] = set()
            for rank, box in zip(
                self._pair_rank[candidates].tolist(), self._pair_box[candidates].tolist(), strict=True
            ):
                if found[rank] < 0 and box not in taken:
                    found[rank] = box
                    taken.add(box)
            outcome = np.full(len(self._row), Outcome.FALSE_POSITIVE, np.int8)
            outcome[self._pair_rank[on_ignored]] = Outcome.DROPPED
            outcome[~self._considered] = Outcome.DROPPED
            outcome[found >= 0] = Outcome.TRUE_POSITIVE
            self._cache[key] = outcome, found, ignored
        return self._cache[key]

    def curve(self, subset: str, rules: str = "matlab") -> Curve:
        """Detections, images and counted boxes of one subset under one rule set."""
        of, by = SUBSETS[subset], RULES[rules]
        outcome, _, ignored = self._outcomes(of)
        images = self.truth.image_is[of.daytime]
        on_curve = images[self._image] & (outcome != Outcome.DROPPED)
        boxes = ~ignored & (images & self._has_detection if by.skips_silent_images else images)[self.truth.box_image]
        return Curve(
            true_positive=outcome[on_curve] == Outcome.TRUE_POSITIVE,
            image=self._image[on_curve],
            images=np.flatnonzero(images),
            counted=np.bincount(self.truth.box_image[boxes], minlength=self.truth.n_images),
            rules=by,
        )

    def result(self, subset: str, rules: str = "matlab") -> MissRate:
        """Miss rate, recall and curve of one subset under one rule set."""
        curve = self.curve(subset, rules)
        counted = int(curve.counted.sum())
        mr, fppi, miss_rate, at_references = curve.read(np.ones(self.truth.n_images))
        return MissRate(
            mr=mr,
            recall=float(curve.true_positive.sum() / counted) if counted else np.nan,
            counted=counted,
            images=len(curve.images),
            fppi=fppi,
            miss_rate=miss_rate,
            reference_fppi=np.array(curve.rules.references),
            reference_miss_rate=at_references,
        )

    def matches(self, subset: str) -> Matches:
        """Outcomes of detections and boxes in one subset. They are equal under both rule sets."""
        truth, of = self.truth, SUBSETS[subset]
        outcome, found, ignored = self._outcomes(of)
        images = truth.image_is[of.daytime]
        rank_of_row = np.argsort(self._row)
        matched_by = np.full(len(ignored), -1, np.int64)
        matched_by[found[found >= 0]] = self._row[found >= 0]
        return Matches(
            in_subset=images[self._image[rank_of_row]],
            outcome=outcome[rank_of_row],
            box_ignored=ignored | ~images[truth.box_image],
            box_matched_by=matched_by,
        )


def _place_in_group(group: np.ndarray) -> np.ndarray:
    """Number of earlier equal elements, int64 ``(n,)``."""
    order, place = np.argsort(group, kind="stable"), np.empty(len(group), np.int64)
    place[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    return place
