"""COCO's AP on cases small enough to work out by hand: pycocotools reads precision at 101 recalls."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from data_kaist.structures import Annotations, DetectionTable
from ssd_effnet.evaluation.average_precision import AveragePrecision

BOX = (100.0, 100.0, 130.0, 160.0)
ELSEWHERE = (300.0, 300.0, 330.0, 360.0)


def image(*boxes: Sequence[float], labels: list[str] | None = None, ignore: list[bool] | None = None) -> Annotations:
    return Annotations.from_rows(boxes, labels, ignore=ignore, size=(512, 640), daytime="day")


def table(*rows: tuple[int, Sequence[float], float]) -> DetectionTable:
    """Rows of (image, box xyxy, score)."""
    index, boxes, scores = zip(*rows, strict=True)
    return DetectionTable(np.array(index), np.array(boxes, float), np.array(scores, float))


def average_precision(truth: list[Annotations], found: DetectionTable) -> dict[str, float]:
    return AveragePrecision(truth, found).figures()


def test_one_of_two_found_at_an_overlap_of_four_fifths(capsys: pytest.CaptureFixture[str]) -> None:
    """Precision 1 up to recall 0.5, which is 51 of 101 recalls, at the seven thresholds from 0.50 to 0.80."""
    found = table((0, (100, 100, 130, 175), 0.9))
    scores = average_precision([image(BOX), image(BOX)], found)
    assert scores["AP50"] == scores["AP75"] == pytest.approx(100 * 51 / 101)
    assert scores["AP"] == pytest.approx(100 * 51 / 101 * 7 / 10)
    assert capsys.readouterr().out == ""


def test_other_labels_and_flagged_boxes_are_crowds() -> None:
    """Surer detections on a group and on a flagged person cost nothing; the one on nothing halves the precision."""
    truth = [image(BOX, ELSEWHERE, labels=["person", "people"]), image(BOX, ignore=[True])]
    found = [(0, BOX, 0.5), (0, ELSEWHERE, 0.9), (1, BOX, 0.8)]
    assert average_precision(truth, table(*found))["AP"] == pytest.approx(100)
    assert average_precision(truth, table(*found, (1, ELSEWHERE, 0.7)))["AP"] == pytest.approx(50)


def test_no_detections_are_zero_and_nobody_to_find_is_no_number() -> None:
    assert average_precision([image(BOX)], DetectionTable.empty()) == {"AP": 0, "AP50": 0, "AP75": 0}
    for nobody in ([], [image()], [image(BOX, ignore=[True])]):
        scores = average_precision(nobody, DetectionTable.empty())
        assert list(scores) == ["AP", "AP50", "AP75"] and all(map(math.isnan, scores.values()))


def test_precision_is_made_to_fall_only() -> None:
    """Right, wrong, right: precision 1 at the 51 recalls up to a half, then 2/3 at the other 50."""
    found = table((0, BOX, 0.9), (0, (500, 100, 530, 160), 0.8), (0, ELSEWHERE, 0.7))
    assert average_precision([image(BOX, ELSEWHERE)], found)["AP"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_the_best_hundred_of_an_image_enter() -> None:
    false = [(0, ELSEWHERE, 1 + i / 100) for i in range(99)]
    assert average_precision([image(BOX)], table(*false, (0, BOX, 0.5)))["AP"] == pytest.approx(1)
    assert average_precision([image(BOX)], table(*false, (0, ELSEWHERE, 5), (0, BOX, 0.5)))["AP"] == 0
