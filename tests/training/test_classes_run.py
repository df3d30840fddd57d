"""Two classes are trained, scored and named in every file that a run and its detector write."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from untrained import LITE0, SMALL, splits

from ssd_effnet.cli.main import main
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.inference.export import describe
from ssd_effnet.inference.predictor import load_detector
from ssd_effnet.study.records import load_study
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import RunDirectory, RunError, checkpoint_file

CLASSES = "data.classes={person: [person], cyclist: [cyclist, rider]}"


@pytest.fixture(scope="module")
def root(few_pairs: Path) -> Path:
    """In every second image a cyclist in place of the person: two_train.json and two_val.json."""
    for split in ("train", "val"):
        content = json.loads((few_pairs / f"{split}.json").read_text())
        content["categories"] = [{"id": 1, "name": "person"}, {"id": 7, "name": " Cyclist"}, {"id": 9, "name": "bus"}]
        for row in content["annotations"][::2]:
            row["category_id"] = 7
        (few_pairs / f"two_{split}.json").write_text(json.dumps(content))
    return few_pairs


def settings(root: Path, *more: str) -> list[str]:
    data = (*splits(root, "two_train.json", "two_val.json", "two_val.json"), "data.allow_overlap=true")
    return [*SMALL, *data, "trainer.panel_images=1", "trainer.test_checkpoint=last", *more]


@pytest.fixture(scope="module")
def two(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, list[str]]:
    out, said = tmp_path_factory.mktemp("runs"), list[str]()
    e = load_experiment(LITE0, settings(root, CLASSES, "postprocess.score_threshold=0"))
    run(e, out, echo=said.append)
    return RunDirectory.of(e, out), said


def test_results_metrics_and_tensorboard_name_both_classes(two: tuple[RunDirectory, list[str]], root: Path) -> None:
    directory, said = two
    test = directory.results()["test"]
    assert list(test["classes"]) == ["person", "cyclist"] and test["ap"] == test["classes"]["person"]["ap"]
    assert [of["people"] for of in test["classes"].values()] == [1, 1]
    wanted = {f"val/{name}/{of}" for name in ("AP50", "MR/reasonable_all") for of in ("person", "cyclist")}
    assert wanted <= set(directory.metrics()[0])
    assert wanted <= set(EventAccumulator(str(directory.path)).Reload().Tags()["scalars"])
    assert any("rider" in line and "data.classes" in line for line in said)  # no box has this label
    categories = {row["category_id"] for row in json.loads(directory.detections_file.read_text())}
    assert categories == {1, 7}  # those of the data's file
    people = sum(row["category_id"] == 1 for row in json.loads(directory.detections_file.read_text()))
    assert len(directory.kaist_file.read_text().splitlines()) == people
    done = command("evaluate", "--annotations", root / "two_val.json", "--detections", directory.path)
    assert "class is ignored here" in done.stderr and "not persons, so ignore regions" in done.stdout, done.stderr


def test_a_detector_of_two_classes_names_them(two: tuple[RunDirectory, list[str]], root: Path, tmp_path: Path) -> None:
    directory = two[0]
    predictor = load_detector(directory.path, device="cpu")
    (found,) = predictor.predict([root / "visible" / "0.png"], score=0)
    assert predictor.classes == found.classes == ("person", "cyclist") and set(found.class_names) == {*found.classes}
    assert found.texts()[0].split()[0] == found.class_names[0]
    file = checkpoint_file(directory.path)
    assert json.loads(describe(file, predictor.experiment, (64, 96), "inside")["classes"])[1:] == ["person", "cyclist"]
    image = str(root / "visible" / "0.png")
    assert main(["detect", str(directory), image, "--score", "0", "--out", str(tmp_path)]) == 0
    listing = json.loads((tmp_path / "images.json").read_text())
    assert listing["categories"] == [{"id": 1, "name": "person"}, {"id": 2, "name": "cyclist"}]
    written = json.loads((tmp_path / "detections.json").read_text())
    assert {row["category_id"] for row in written} == {1, 2}
    lines = (tmp_path / "detections_kaist.txt").read_text().splitlines()
    assert len(lines) == sum(row["category_id"] == 1 for row in written)


def test_pages_and_reports_are_of_one_class(two: tuple[RunDirectory, list[str]], tmp_path: Path, capsys: Any) -> None:
    directory, out = two[0], str(tmp_path / "page")
    for name in ("person", "cyclist"):
        assert main(["visualize", "errors", str(directory), "--class", name, "--out", out]) == 0
        assert f"seed0, {name}" in (tmp_path / "page" / "index.html").read_text().replace("seed 0", "seed0")
    assert main(["visualize", "errors", str(directory), "--class", "bus", "--out", out]) == 1
    assert "person, cyclist" in capsys.readouterr().err
    (loaded,) = load_study(directory.path.parents[1]).runs
    assert (loaded.detections.labels == 1).all() and loaded.matcher.truth.counted == ("person",)


def test_a_class_without_a_box_is_refused(root: Path, tmp_path: Path) -> None:
    e = load_experiment(LITE0, settings(root, "data.classes={person: [person], lorry: [lorry]}"))
    with pytest.raises(RunError, match=r"contains no lorry .* 0 are labelled lorry \(data.classes\)"):
        run(e, tmp_path)
