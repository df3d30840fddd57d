"""An image is a file: where the names of a COCO file lead, and which files two splits share."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from data_kaist.dataset import fingerprint
from data_kaist.errors import AnnotationError, ImageError, SplitError
from data_kaist.layouts import DataSource
from data_kaist.layouts import shared as shared_frames
from ssd_effnet.build import build_dataset
from ssd_effnet.cli.main import main
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.training.preflight import refuse_shared_images
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import RunError

SIZE = (96, 128)
OLD_FINGERPRINT = "8012a3f512b300fa7e3be493e89ea044b84a3cbcaa0afc4d078cd737bb0f9e2e"
SETTINGS = ("data.kind=coco", "input.modality=visible", "trainer.threads=1")


def picture(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    cv2.imwrite(str(file), image)


def truth(file: Path, names: list[str], box: tuple[float, ...] = (20, 10, 30, 70), **more: Any) -> None:
    """A COCO file of one person per image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(names)]
    rows = [{"id": i, "image_id": i, "category_id": 1, "bbox": list(box), **more} for i in range(len(names))]
    file.write_text(json.dumps({"images": images, "annotations": rows, "categories": [{"id": 1, "name": "person"}]}))


def export(root: Path, *places: tuple[str, str], count: int = 2) -> Path:
    """JSON files and the folders of their images, with names that each split begins anew."""
    for part, (file, folder) in enumerate(places):
        names = [f"frame_{i:06d}.png" for i in range(count)]
        truth(root / file, names)
        for i, name in enumerate(names):
            picture(root / folder / name, 10 * part + i)
    return root


def experiment(root: Path, *splits: str, more: tuple[str, ...] = ()) -> ExperimentConfig:
    given = [f"data.{stage}={split}" for stage, split in zip(("train", "val", "test"), splits, strict=True)]
    return load_experiment("lite0", [*SETTINGS, f"data.root={root}", *given, *more], tiny=True)


def refusal(e: ExperimentConfig, out: Path) -> str:
    with pytest.raises(RunError) as caught:
        run(e, out, echo=lambda line: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


ROBOFLOW = [(f"{part}/_annotations.coco.json", part) for part in ("train", "valid", "test")]
COCO = [(f"annotations/instances_{part}2017.json", f"{part}2017") for part in ("train", "val")]
CVAT = [("annotations/instances_default.json", "images/default")]
FLAT = [("train.json", "images/train"), ("instances_val.json", "val")]


@pytest.mark.parametrize("places", [ROBOFLOW, COCO, CVAT, FLAT])
def test_exports_are_read_as_they_come(places: list[tuple[str, str]], tmp_path: Path) -> None:
    root = export(tmp_path / "data", *places)
    for file, folder in places:
        frames = DataSource("coco", root).frames(file)
        assert [frame.visible for frame in frames] == [root / folder / f"frame_00000{i}.png" for i in range(2)]
        assert [frame.name for frame in frames] == ["frame_000000", "frame_000001"]


def test_inspecting_finds_the_files_of_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = export(tmp_path / "coco", *COCO)
    (coco / "annotations/captions_train2017.json").write_text("{}")
    assert main(["inspect", str(coco), "--sheet", str(tmp_path / "sheet.png")]) == 0
    out = capsys.readouterr().out
    files = [file for file, _ in COCO]
    assert [line for line in out.splitlines() if line in files] == files and "captions" not in out
    cvat = export(tmp_path / "cvat", *CVAT)
    assert main(["inspect", str(cvat / CVAT[0][0]), "--sheet", str(tmp_path / "other.png")]) == 0
    assert (tmp_path / "other.png").is_file()
    assert main(["inspect", str(export(tmp_path / "robo", *ROBOFLOW)), "--pictures", "0"]) == 0
    assert {file for file, _ in ROBOFLOW} <= set(capsys.readouterr().out.splitlines())


def test_equal_names_in_three_folders_are_different_images(tmp_path: Path) -> None:
    export(tmp_path, *[(f"{part}/a.json", part) for part in ("train", "valid", "test")], count=4)
    e = experiment(tmp_path / "train", "a.json", "../valid/a.json", "../test/a.json")
    found = {stage: build_dataset(e, stage).frames for stage in ("train", "val", "test")}
    files = {stage: {str(frame.visible and frame.visible.resolve()) for frame in of} for stage, of in found.items()}
    assert {stage: len(of) for stage, of in files.items()} == {"train": 4, "val": 4, "test": 4}  # nothing is cut out
    assert all(str(tmp_path / "valid") in file for file in files["val"])
    assert len(set.union(*files.values())) == 12


def test_the_root_may_be_the_folder_of_the_training_images(tmp_path: Path) -> None:
    """The names are equal in both folders, and each JSON file means its own."""
    root = export(tmp_path, *COCO) / "train2017"
    for part in ("train2017", "val2017"):
        frames = DataSource("coco", root).frames(f"../annotations/instances_{part}.json")
        assert [frame.visible and frame.visible.resolve().parent for frame in frames] == [tmp_path / part] * 2


def test_two_folders_that_fit_are_refused_and_a_key_decides(tmp_path: Path) -> None:
    export(tmp_path, ("train.json", "."), ("train.json", "images"))
    with pytest.raises(SplitError, match=r"train\.json: .* frame_000000\.png is in .*, .*/images; set data\.images"):
        DataSource("coco", tmp_path).frames("train.json")
    for images in ("images", ".", str(tmp_path / "images")):
        frames = DataSource("coco", tmp_path, images=images).frames("train.json")
        assert frames[0].visible == tmp_path / images / "frame_000000.png"
    assert build_dataset(experiment(tmp_path, "train.json", "", "", more=("data.images=images",)), "train").frames
    (tmp_path / "second").mkdir()
    (tmp_path / "second/images").symlink_to(tmp_path / "images")  # one folder by two names is one
    shutil.copy(tmp_path / "train.json", tmp_path / "second/train.json")
    for name in ("frame_000000.png", "frame_000001.png"):
        (tmp_path / name).unlink()
    assert DataSource("coco", tmp_path).frames("second/train.json")


def test_names_below_the_root_stay_valid(tmp_path: Path) -> None:
    export(tmp_path, ("train.json", "images"))
    truth(tmp_path / "lists/train.json", ["images/frame_000000.png", "images/frame_000001.png"])
    truth(tmp_path / "train.json", ["images/frame_000000.png", "images/frame_000001.png"])
    old, new = (DataSource("coco", tmp_path).frames(file) for file in ("train.json", "lists/train.json"))
    assert [frame.visible for frame in old] == [frame.visible for frame in new]
    # as it was before the JSON file's folder counted
    assert fingerprint(old) == fingerprint(new) == OLD_FINGERPRINT


def test_where_it_was_looked_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth(tmp_path / "annotations/instances_a.json", ["1.jpg", "2.jpg"])
    with pytest.raises(ImageError) as caught:
        DataSource("coco", tmp_path).frames("annotations/instances_a.json")
    said = str(caught.value)
    assert "none of 2 images" in said and "1.jpg: missing" in said
    for base in (tmp_path / "annotations", tmp_path):
        assert all(str(base / name) in said for name in ("", "images", "a", "images/a"))
    assert "data.images" in said
    assert main(["inspect", str(tmp_path), "--pictures", "0"]) == 0  # boxes alone can be counted
    assert "none of 2 images" in capsys.readouterr().out


def test_a_url_is_no_file(tmp_path: Path) -> None:
    export(tmp_path, ("train.json", "images"))
    truth(tmp_path / "train.json", ["frame_000000.png", "https://example.org/frame_000001.png"])
    with pytest.raises(AnnotationError, match=r"train\.json: image 1 has the file name 'https://.*', a URL"):
        DataSource("coco", tmp_path).frames("train.json")


def test_a_missing_image_is_named_without_a_modality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(tmp_path, ("train.json", "images"), count=4)
    for i in (0, 2):
        (tmp_path / f"images/frame_00000{i}.png").unlink()
    assert main(["inspect", str(tmp_path), "--pictures", "0"]) == 1
    assert "images/frame_000000.png: missing" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path), "--pictures", "0", "--on-bad-frame", "skip"]) == 0
    out = capsys.readouterr().out
    assert "frame_000000.png" in out and "frame_000002.png" in out and "bad frames skipped: 2" in out


def test_a_missing_side_is_named_without_a_modality(
    few_pairs: Path, synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(few_pairs, tmp_path / "pairs")
    (root / "lwir/2.png").unlink()
    assert main(["inspect", str(root / "train.json"), "--pictures", "0"]) == 1
    assert "lwir/2.png: missing" in capsys.readouterr().err
    twin = shutil.copytree(synthetic, tmp_path / "twin")
    gone = min(twin.glob("images/set0[0-5]/V*/lwir/*.jpg"))
    gone.unlink()
    assert main(["inspect", str(twin), "--split", "train-all-01", "--pictures", "0"]) == 1
    assert f"{gone}: missing" in capsys.readouterr().err


def test_shared_images_are_found_by_file_then_by_content(tmp_path: Path) -> None:
    export(tmp_path, ("train.json", "a"), count=4)
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a/frame_000000.png", tmp_path / "b/copy.png")
    (tmp_path / "b/link.png").symlink_to(tmp_path / "a/frame_000001.png")
    picture(tmp_path / "b/other.png", 99)
    raw = (tmp_path / "a/frame_000002.png").read_bytes()
    (tmp_path / "b/equal_size.png").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    truth(tmp_path / "val.json", [f"b/{name}.png" for name in ("other", "copy", "equal_size", "link")])
    train_frames = DataSource("coco", tmp_path, images="a").frames("train.json")
    val = DataSource("coco", tmp_path).frames("val.json")
    assert [frame.name for frame in shared_frames(val, train_frames)] == ["b/copy", "b/link"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train.json has images 0..5, test.json three of them, new.json and newer.json others, copy.json a copy of 0."""
    root = export(tmp_path / "data", ("train.json", "images"), count=6)
    truth(root / "test.json", [f"frame_00000{i}.png" for i in (3, 4, 5)])
    for i in range(4):
        picture(root / f"images/new_{i}.png", 50 + i)
    shutil.copy(root / "images/frame_000000.png", root / "images/copy_0.png")
    truth(root / "new.json", [f"new_{i}.png" for i in (0, 1)])
    truth(root / "newer.json", [f"new_{i}.png" for i in (1, 2, 3)])
    truth(root / "copy.json", ["copy_0.png", "new_3.png"])
    return root


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        (("train.json", "new.json", "test.json"), "data.test (test.json) shares 3 of 3 images with data.train"),
        (("train.json", "test.json", "new.json"), "data.val (test.json) shares 3 of 3 images with data.train"),
        (("train.json", "copy.json", ""), "data.val (copy.json) shares 1 of 2 images with data.train"),
        (("train.json", "train.json%3", "test.json"), "data.test (test.json) shares 2 of 3 images with data.train"),
        (("train.json", "train.json%3", "test.json"), "data.test (test.json) shares 1 of 3 images with data.val"),
        (("train.json", "new.json", "newer.json"), "data.test (newer.json) shares 1 of 3 images with data.val"),
    ],
)
def test_shared_images_are_refused_with_their_count(
    splits: tuple[str, str, str], says: str, root: Path, tmp_path: Path
) -> None:
    said = refusal(experiment(root, *splits), tmp_path / "runs")
    assert says in said and "data.allow_overlap: true" in said


def test_kaist_splits_that_share_frames_are_refused() -> None:
    """Validation is cut out of training; the test split is not."""

    def of(*numbers: int) -> Any:
        return SimpleNamespace(frames=[SimpleNamespace(name=f"set06/V000/I{i:05}") for i in numbers])

    e = load_experiment("lite0", ["data.val=test-day-20"])
    refuse_shared_images(e, {"train": of(1, 2), "val": of(2, 3), "test": of(4)})
    with pytest.raises(RunError, match=r"data\.test \(test-all-20\) shares 1 of 2 images with data\.val"):
        refuse_shared_images(e, {"train": of(1), "val": of(2, 3), "test": of(3, 4)})
    with pytest.raises(RunError, match=r"with data\.train .*, set06/V000/I00004 first"):
        refuse_shared_images(e, {"train": of(4), "val": of(1), "test": of(3, 4)})


class Begun(Exception):
    """The data were accepted."""


@pytest.mark.parametrize(
    ("splits", "overrides"),
    [
        (("train.json", "train.json%3", "newer.json"), ()),
        (("train.json", "new.json", "new.json"), ("trainer.test_checkpoint=last",)),  # val chooses nothing
        (("train.json", "train.json", "test.json"), ("data.allow_overlap=true",)),
        (("train.json", "test.json", "new.json"), ("data.allow_overlap=true",)),
    ],
)
def test_what_may_be_shared_is_trained_on(
    splits: tuple[str, str, str],
    overrides: tuple[str, ...],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin(*arguments: Any, **named: Any) -> None:
        raise Begun

    monkeypatch.setattr("ssd_effnet.training.run.build_detector", begin)
    e = experiment(root, *splits, more=overrides)
    with pytest.raises(Begun):
        run(e, tmp_path / "runs", echo=lambda line: None)
    assert len(build_dataset(e, "train")) == (6 if overrides else 4)


@pytest.mark.parametrize(
    "how", [{"box": (0.1, 0.1, 0.2, 0.2)}, {"iscrowd": 1}, {"box": (-5, 10, 30, 70)}, {"box": (5, 5, 4, 11)}]
)
def test_a_training_split_with_nobody_to_be_found_is_refused(how: dict[str, Any], root: Path, tmp_path: Path) -> None:
    truth(root / "nobody.json", [f"frame_00000{i}.png" for i in range(6)], **how)
    said = refusal(experiment(root, "nobody.json", "new.json", ""), tmp_path / "runs")
    assert "'nobody.json'" in said and "6 objects" in said and "6 are persons" in said
