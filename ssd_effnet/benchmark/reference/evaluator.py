"""Miss rates as pedestrian devkits compute them: per image and subset, as pycocotools does.

Dictionaries go through ``prepare``, an overlap matrix per image, ``evaluate an image`` with small numpy arrays by IoU
threshold, and ``accumulate``; the whole flow runs again for each subset. Written afresh from the protocol.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np

from ssd_effnet.benchmark.reference.stages import overlap

Rows = dict[int, list[dict[str, Any]]]

_MOST = 1000  # detections per image


class DictionaryEvaluator:
    """One data set and one detector's detections.

    Args:
        truth: a list per image of ``{"label", "bbox" (xywh), "height", "occlusion", "ignore"}``.
        found: ``{"image", "bbox" (xywh), "score"}`` in any order.
        size: (height, width) of all images.
    """

    def __init__(self, truth: list[list[dict[str, Any]]], found: list[dict[str, Any]], size: tuple[int, int]) -> None:
        self.truth, self.found, self.size = truth, found, size
        self.thresholds = [0.5]

    def miss_rate(self, images: list[int]) -> float:
        """Log-average miss rate of the subset "reasonable" of these images, 0..1; NaN without counted people."""
        truth, found = self._prepare(images)
        overlaps = {image: self._overlaps(found[image], truth[image]) for image in images}
        evaluated = [self._evaluate(truth[image], found[image], overlaps[image]) for image in images]
        return self._accumulate(evaluated)

    def _prepare(self, images: list[int]) -> tuple[Rows, Rows]:
        truth: Rows = defaultdict(list)
        found: Rows = defaultdict(list)
        wanted = set(images)
        for image in images:
            for row in self.truth[image]:
                row = dict(row)
                x, y, w, h = row["bbox"]
                outside = x < 5 or y < 5 or x + w > self.size[1] - 5 or y + h > self.size[0] - 5
                small = row["height"] < 55 or row["occlusion"] not in (0, 1)
                row["_ignore"] = int(row["label"] != "person" or row["ignore"] or outside or small)
                truth[image].append(row)
        for row in self.found:
            if row["image"] in wanted:
                found[row["image"]].append(dict(row))
        return truth, found

    def _overlaps(self, found: list[dict[str, Any]], truth: list[dict[str, Any]]) -> np.ndarray:
        order = np.argsort([-row["score"] for row in found], kind="mergesort")[:_MOST]
        overlaps = np.zeros((len(order), len(truth)))
        for i, place in enumerate(order):
            for j, row in enumerate(truth):
                overlaps[i, j] = overlap(found[place]["bbox"], row["bbox"], of_first=bool(row["_ignore"]))
        return overlaps

    def _evaluate(
        self, truth: list[dict[str, Any]], found: list[dict[str, Any]], overlaps: np.ndarray
    ) -> dict[str, np.ndarray] | None:
        if not truth and not found:
            return None
        by_ignore = np.argsort([row["_ignore"] for row in truth], kind="mergesort")
        truth = [truth[i] for i in by_ignore]
        order = np.argsort([-row["score"] for row in found], kind="mergesort")[:_MOST]
        found = [found[i] for i in order]
        overlaps = overlaps[:, by_ignore] if len(truth) else overlaps
        ignored = np.array([row["_ignore"] for row in truth])
        taken = np.zeros((len(self.thresholds), len(truth)))
        matched = np.zeros((len(self.thresholds), len(found)))
        dropped = np.zeros((len(self.thresholds), len(found)))
        for t, threshold in enumerate(self.thresholds):
            for d in range(len(found)):
                best, best_overlap = -1, threshold
                for g in range(len(truth)):
                    if taken[t, g] and not ignored[g]:
                        continue
                    if best > -1 and not ignored[best] and ignored[g]:
                        break
                    if overlaps[d, g] < best_overlap:
                        continue
                    best, best_overlap = g, overlaps[d, g]
                if best == -1:
                    continue
                dropped[t, d], matched[t, d], taken[t, best] = ignored[best], 1, 1
        scores = np.array([row["score"] for row in found])
        return {"scores": scores, "matched": matched, "dropped": dropped, "ignored": ignored}

    def _accumulate(self, evaluated: list[dict[str, np.ndarray] | None]) -> float:
        rows = [row for row in evaluated if row is not None]
        counted = sum(np.count_nonzero(row["ignored"] == 0) for row in rows)
        if not counted:
            return math.nan
        order = np.argsort(-np.concatenate([row["scores"] for row in rows]), kind="mergesort")
        matched = np.concatenate([row["matched"] for row in rows], axis=1)[0, order]
        dropped = np.concatenate([row["dropped"] for row in rows], axis=1)[0, order]
        hits = np.cumsum(np.logical_and(matched, np.logical_not(dropped)))
        misses = np.cumsum(np.logical_and(np.logical_not(matched), np.logical_not(dropped)))
        fppi = misses / len(evaluated)
        logarithms = []
        for reference in 10.0 ** np.arange(-2, 0.01, 0.25):
            below = np.nonzero(fppi <= reference)[0]
            recall = hits[below[-1]] / counted if len(below) else 0.0
            logarithms.append(math.log(max(1 - recall, 1e-10)))
        return math.exp(sum(logarithms) / len(logarithms))
