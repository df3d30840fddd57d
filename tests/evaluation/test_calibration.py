"""Calibration error and temperature by hand; a temperature keeps miss rates and AP."""

import math

import numpy as np
import pytest
import torch

from data_kaist.errors import DataError
from data_kaist.structures import Annotations, DetectionTable
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.evaluation.calibration import fit_temperature, judged, reliability, tempered
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.scores import score
from ssd_effnet.structures import RawOutputs

SCORES = np.array([0.9, 0.9, 0.9, 0.9, 0.2])
RIGHT = np.array([True, True, True, False, False])


def test_expected_calibration_error_by_hand() -> None:
    found = reliability(SCORES, RIGHT)
    assert found.ece == pytest.approx(4 / 5 * 0.15 + 1 / 5 * 0.2)
    assert len(found.count) == 15 and np.flatnonzero(found.count).tolist() == [2, 13]  # 0.2 is the end of the third
    assert found.precision[13] == 0.75 and math.isnan(found.precision[0])
    assert reliability(SCORES, RIGHT, bins=1).ece == pytest.approx(abs(3 / 5 - 3.8 / 5))
    assert reliability(np.array([0.0, 1.0]), np.array([False, True])).ece == 0
    assert math.isnan(reliability(SCORES[:0], RIGHT[:0]).ece)


def test_the_temperature_by_hand() -> None:
    """Three of four are right at a score of 0.9: log 9 / T is log 3."""
    assert fit_temperature(SCORES[:4], RIGHT[:4]) == pytest.approx(2, rel=1e-4)
    assert tempered(0.9, 2) == pytest.approx(0.75) and tempered(0.9, 1) == 0.9
    assert tempered(np.array([0.0, 0.5, 1.0]), 3).tolist() == [0, 0.5, 1]
    for wrong in (SCORES[:3], RIGHT[:3]), (SCORES[4:], RIGHT[4:]), (SCORES[:0], RIGHT[:0]), (SCORES, ~RIGHT):
        with pytest.raises(DataError, match=r"no temperature fits: \d of \d detections are right"):
            fit_temperature(*wrong)


def test_ignored_detections_are_not_judged() -> None:
    boxes = [(100, 100, 150, 220), (300, 100, 350, 220)]
    labels = ["person", "people"]
    truth = [Annotations.from_rows(boxes, labels, size=(512, 640), daytime=time) for time in ("day", "night")]
    at = np.array([boxes[0], (101, 100, 150, 220), boxes[1], (500, 100, 550, 220), boxes[0]], np.float64)
    table = DetectionTable(np.array([0, 0, 0, 0, 1]), at, np.array([0.8, 0.9, 0.7, 0.2, 0.6]))
    matcher = MissRateEvaluator(truth).match(table)
    assert [x.tolist() for x in judged(matcher, "reasonable_day")] == [[0.8, 0.9, 0.2], [False, True, False]]
    assert [x.tolist() for x in judged(matcher, "reasonable_night")] == [[0.6], [True]]
    assert [x.tolist() for x in judged(matcher, "reasonable_all", 0.6)] == [[0.8, 0.9, 0.6], [False, True, True]]


@pytest.mark.parametrize("temperature", [0.4, 2.5])
def test_a_temperature_keeps_miss_rates_and_ap(temperature: float) -> None:
    random = np.random.default_rng(0)
    corner = random.uniform(20, 400, (40, 2))
    people = np.concatenate([corner, corner + np.array([50, 100])], axis=1)
    truth = [Annotations.from_rows(people[i : i + 4], size=(512, 640), daytime="day") for i in range(0, 40, 4)]
    image = np.repeat(np.arange(10), 12)
    boxes = people[4 * image + random.integers(0, 4, 120)] + random.uniform(-30, 30, (120, 4))
    table = DetectionTable(image, boxes, random.uniform(0.01, 0.999, 120).astype(np.float32).astype(np.float64))
    after = DetectionTable(image, boxes, tempered(table.scores, temperature))
    evaluator = MissRateEvaluator(truth)
    before, then = score(evaluator, table), score(evaluator, after)
    assert before.as_dict() == then.as_dict() and 0 < before.ap["AP50"] < 100


@pytest.mark.parametrize(("activation", "classes"), [("softmax", 2), ("softmax", 4), ("sigmoid", 1), ("sigmoid", 3)])
def test_heads_with_and_without_background(activation: str, classes: int) -> None:
    """Of one class it is Guo's softmax of logits over T; of several, boxes, labels and their order stay too."""
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 50, classes, generator=random)
    centres = torch.rand(50, 2, generator=random) * 300
    anchors = torch.cat([centres, torch.full((50, 2), 40.0)], 1)
    outputs = RawOutputs(logits, torch.zeros(2, 50, 4), anchors)
    raw, found = (PostProcess(activation=activation, temperature=t)(outputs, (320, 320)) for t in (1.0, 2.5))  # type: ignore[arg-type]
    assert torch.equal(raw.boxes_xyxy, found.boxes_xyxy) and torch.equal(raw.labels, found.labels)
    assert (found.scores.diff() <= 0).all() and (found.scores[raw.scores == 0] == 0).all()
    np.testing.assert_allclose(found.scores, tempered(raw.scores.double().numpy(), 2.5), atol=1e-6)
    if classes == 2:
        wanted = (logits / 2.5).softmax(-1)[..., 1].gather(1, raw.anchor_index)
    elif activation == "sigmoid":
        wanted = (logits / 2.5).sigmoid().gather(1, raw.anchor_index[..., None].expand(-1, -1, classes))
        wanted = wanted.gather(2, (raw.labels - 1).clamp(min=0)[..., None])[..., 0]
    else:
        return
    torch.testing.assert_close(found.scores, wanted * (raw.labels > 0))
