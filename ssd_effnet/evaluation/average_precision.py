"""COCO's average precision by pycocotools, with weights per image (T.-Y. Lin et al., ECCV 2014)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_kaist.classes import PERSON, is_among
from data_kaist.structures import Annotations, DetectionTable, xywh_rows

_MAX_DETECTIONS_AN_IMAGE = 100
AP_NAMES = ("AP", "AP50", "AP75")


class AveragePrecision:
    """Average precision of one table of detections. They are matched once for all image weights.

    Objects with the ignore flag or a label that is not counted are crowd regions: neither they nor detections on them
    count. Height, occlusion and border, unlike in the miss rate, have no influence.

    Args:
        annotations: one per image.
        detections: boxes in pixels of the original images; at most the best 100 per image are used.
        counted, absent: labels, as of :class:`.miss_rate.MissRateEvaluator`.
    """

    def __init__(
        self,
        annotations: Sequence[Annotations],
        detections: DetectionTable,
        counted: Sequence[str] = (PERSON,),
        absent: Sequence[str] = (),
    ) -> None:
        from pycocotools.cocoeval import COCOeval  # here, because miss rates need no pycocotools

        rows = _truth_rows(annotations, counted, absent)
        to_find = [row["image_id"] for row in rows if not row["iscrowd"]]
        self.counted = np.bincount(np.array(to_find, np.int64), minlength=len(annotations)).astype(np.float64)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print
            evaluation = COCOeval(_coco(len(annotations), rows), _results(len(annotations), detections), "bbox")
            evaluation.params.areaRng = [[0, 1e10]]
            evaluation.params.areaRngLbl = ["all"]
            evaluation.params.maxDets = [_MAX_DETECTIONS_AN_IMAGE]
            evaluation.evaluate()
        self._recalls, thresholds = evaluation.params.recThrs, len(evaluation.params.iouThrs)
        images = [of for of in evaluation.evalImgs if of is not None]
        scores = np.concatenate([np.zeros(0), *(of["dtScores"] for of in images)])
        order = np.argsort(-scores, kind="mergesort")  # as pycocotools sorts
        self._image = np.repeat([of["image_id"] for of in images], [len(of["dtScores"]) for of in images])[order]
        matched, ignored = (
            np.concatenate([np.zeros((thresholds, 0)), *(of[key] for of in images)], axis=1)[:, order].astype(bool)
            for key in ("dtMatches", "dtIgnore")
        )
        self._right, self._wrong = matched & ~ignored, ~matched & ~ignored

    def figures(self, weight: np.ndarray | None = None) -> dict[str, float]:
        """``AP``, ``AP50``, ``AP75`` in percent; 0 without detections, NaN without objects.

        Args:
            weight: float64 ``(n,)``, how often each image counts; None: once.
        """
        weight = np.ones(len(self.counted)) if weight is None else weight
        counted = float(self.counted @ weight)
        if counted == 0:
            return dict.fromkeys(AP_NAMES, float("nan"))
        if not len(self._image):
            return dict.fromkeys(AP_NAMES, 0.0)
        of_detection = weight[self._image]
        right, wrong = (np.cumsum(rows * of_detection, axis=1) for rows in (self._right, self._wrong))
        recall, precision = right / counted, right / (right + wrong + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        by_threshold = []
        for at, of in zip(recall, precision, strict=True):
            place = np.searchsorted(at, self._recalls, side="left")
            by_threshold.append(100 * np.append(of, 0.0)[np.minimum(place, len(of))].mean())
        return {"AP": float(np.mean(by_threshold)), "AP50": float(by_threshold[0]), "AP75": float(by_threshold[5])}


def _coco(images: int, rows: list[dict[str, Any]]) -> object:
    """A ``pycocotools.coco.COCO`` of one category. Annotation ids start at 1, because 0 stands for "not matched"."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(images)],
        "categories": [{"id": 1}],
        "annotations": [{"id": i, "category_id": 1, **row} for i, row in enumerate(rows, start=1)],
    }
    coco.createIndex()
    return coco


def _truth_rows(
    annotations: Sequence[Annotations], counted: Sequence[str], absent: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for image, of_image in enumerate(annotations):
        crowd = ~is_among(of_image.labels, counted) | of_image.ignore
        there = ~is_among(of_image.labels, absent)
        for box, is_crowd in zip(xywh_rows(of_image.boxes_xyxy[there]), crowd[there].tolist(), strict=True):
            rows.append({"image_id": image, "bbox": box, "area": box[2] * box[3], "iscrowd": int(is_crowd)})
    return rows


def _results(images: int, detections: DetectionTable) -> object:
    columns = (detections.image_index.tolist(), xywh_rows(detections.boxes_xyxy), detections.scores.tolist())
    return _coco(
        images,
        [
            {"image_id": image, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score}
            for image, box, score in zip(*columns, strict=True)
        ],
    )
