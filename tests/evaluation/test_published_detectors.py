"""The evaluator against five published detectors: every number of the reference, to the second decimal."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_kaist.structures import DetectionTable
from ssd_effnet.evaluation.miss_rate import Matcher, MissRateEvaluator
from ssd_effnet.evaluation.scores import GroundTruth, load_ground_truth
from ssd_effnet.evaluation.subsets import SUBSETS

DETECTORS = ("MLPD", "MSDS-RCNN", "IATDNN-IAMSS", "TC-Det-thermal", "YOLOv3-visible")


@pytest.fixture(scope="module")
def expected(shared: Path) -> dict[str, dict[str, Any]]:
    return json.loads((shared / "reference/kaist/expected_miss_rates.json").read_text())


@pytest.fixture(scope="module")
def truth(shared: Path) -> GroundTruth:
    return load_ground_truth(shared / "reference/kaist/KAIST_annotation.json")


@pytest.fixture(scope="module")
def evaluator(truth: GroundTruth) -> MissRateEvaluator:
    return MissRateEvaluator(truth.annotations)


@pytest.fixture(scope="module", params=DETECTORS)
def published(
    request: pytest.FixtureRequest,
    shared: Path,
    expected: dict[str, dict[str, Any]],
    truth: GroundTruth,
    evaluator: MissRateEvaluator,
) -> tuple[dict[str, Any], Matcher, int]:
    """What is published of a detector, its matches, and how many images it is silent on."""
    table = truth.read_detections(shared / f"reference/kaist/results/{request.param}.txt")
    silent = len(truth.annotations) - len(set(table.image_index.tolist()))
    return expected[request.param], evaluator.match(table), silent


def test_the_reference_holds_these_detectors(expected: dict[str, dict[str, Any]]) -> None:
    assert set(expected) == set(DETECTORS)


def test_detections_are_all_read(published: tuple[dict[str, Any], Matcher, int]) -> None:
    numbers, matcher, silent = published
    assert len(matcher.detections) == numbers["detections"]
    assert silent == numbers["images_without_detections"]


def test_matlab_rules(published: tuple[dict[str, Any], Matcher, int]) -> None:
    numbers, matcher, _ = published
    ours = {name: round(100 * matcher.result(name, "matlab").mr, 2) for name in SUBSETS}
    assert ours == numbers["kaist_matlab_rule"]


def test_python_rules(published: tuple[dict[str, Any], Matcher, int]) -> None:
    numbers, matcher, _ = published
    results = {name: matcher.result(f"reasonable_{name}", "python") for name in ("all", "day", "night")}
    ours: dict[str, float] = {f"reasonable_{name}": round(100 * r.mr, 2) for name, r in results.items()}
    ours["recall_all"] = round(100 * results["all"].recall, 2)
    ours["ground_truth_counted"] = results["all"].counted
    assert ours == numbers["python_script_rule"]


def test_counted_boxes_and_images_of_the_test_frames(evaluator: MissRateEvaluator) -> None:
    matcher = evaluator.match(DetectionTable.empty())
    results = [matcher.result(f"reasonable_{time}", "matlab") for time in ("all", "day", "night")]
    assert [result.counted for result in results] == [1455, 989, 466]
    assert [result.images for result in results] == [2252, 1455, 797]
