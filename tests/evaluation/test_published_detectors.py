"""The evaluator against five published detectors: every number of the reference, to the second decimal."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_kaist.structures import DetectionTable
from ssd_effnet.evaluation.ground_truth import GroundTruth, load_ground_truth
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
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


@pytest.mark.parametrize("name", DETECTORS)
def test_every_published_number(
    name: str, expected: dict[str, dict[str, Any]], truth: GroundTruth, evaluator: MissRateEvaluator, shared: Path
) -> None:
    assert set(expected) == set(DETECTORS)
    numbers, table = expected[name], truth.read_detections(shared / f"reference/kaist/results/{name}.txt")
    assert len(table) == numbers["detections"]
    assert len(truth.annotations) - len(set(table.image_index.tolist())) == numbers["images_without_detections"]
    matcher = evaluator.match(table)
    matlab = {name: round(100 * matcher.result(name, "matlab").mr, 2) for name in SUBSETS}
    assert matlab == numbers["kaist_matlab_rule"]
    results = {name: matcher.result(f"reasonable_{name}", "python") for name in ("all", "day", "night")}
    python: dict[str, float] = {f"reasonable_{name}": round(100 * r.mr, 2) for name, r in results.items()}
    python |= {"recall_all": round(100 * results["all"].recall, 2), "ground_truth_counted": results["all"].counted}
    assert python == numbers["python_script_rule"]


def test_counted_boxes_and_images_of_the_test_frames(evaluator: MissRateEvaluator) -> None:
    matcher = evaluator.match(DetectionTable.empty())
    results = [matcher.result(f"reasonable_{time}", "matlab") for time in ("all", "day", "night")]
    assert [result.counted for result in results] == [1455, 989, 466]
    assert [result.images for result in results] == [2252, 1455, 797]
