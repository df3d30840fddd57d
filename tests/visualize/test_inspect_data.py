"""What a data set holds: the numbers, the command that prints them, and what it says of bad data."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from commands import command

from data_kaist.layouts import Frame
from data_kaist.statistics import channel_statistics, count_objects, height_quantiles
from data_kaist.structures import Annotations
from ssd_effnet.cli.main import main

SIZE = (64, 80)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sheet's default place is the current folder."""
    monkeypatch.chdir(tmp_path)


def write_image(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imencode(path.suffix, image)[1].tofile(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four test frames of one person each, and none for training."""
    root = tmp_path / "kaist"
    rng = np.random.default_rng(0)
    for name in ("set06/V000/I00019", "set06/V000/I00039", "set09/V000/I00019", "set09/V000/I00039"):
        video, _, number = name.rpartition("/")
        write_image(root / "images" / video / "visible" / f"{number}.jpg", rng.integers(0, 255, (*SIZE, 3), np.uint8))
        write_image(root / "images" / video / "lwir" / f"{number}.jpg", rng.integers(0, 255, SIZE, np.uint8))
        path = root / "annotations-xml" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "<annotation><size><width>80</width><height>64</height></size><object><name>person</name>"
            "<bndbox><x>9</x><y>4</y><w>20</w><h>50</h></bndbox><occlusion>1</occlusion></object></annotation>"
        )
    return root


def row_of(output: str, group: str) -> list[str]:
    """The words of the first line that begins with a group's name."""
    return next(line for line in output.splitlines() if line.startswith(f"{group} "))[len(group) :].split()


def test_tables(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(root)]) == 0
    output = capsys.readouterr().out
    assert "train-all-02: no frames here" in output
    assert row_of(output, "all") == ["4", "4", "4", "4", "0"]
    assert row_of(output, "day") == ["2", "2", "2", "2", "0"]
    assert row_of(output, "occl. partial") == ["4", "4", "4", "4", "0"]
    assert "test-all-20: heights in pixels: 5 % below 50, 25 % below 50, 50 % below 50" in output
    assert Path("sheet.png").is_file()


def test_annotations_alone(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.rmtree(root / "images")
    assert main(["inspect", str(root), "--split", "test-night-20"]) == 0
    assert row_of(capsys.readouterr().out, "all")[0] == "2"
    assert main(["inspect", str(root), "--sheet", str(tmp_path / "sheet.png")]) == 1
    assert "annotations only, and --stats and --sheet need images" in capsys.readouterr().err


def test_sheet_and_channels(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "new" / "sheet.png"
    assert main(["inspect", str(root), "--sheet", str(path), "--stats", "--pictures", "3"]) == 0
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert picture.shape[1] > 4 * SIZE[1]  # two columns of pairs
    green = (abs(picture.astype(int) - (0, 158, 115)) < 12).all(axis=2)
    assert green.sum() > 6 * 100  # a box on each of three pairs
    output = capsys.readouterr().out
    assert "LWIR" in output
    assert len(row_of(output, "mean")) == 4
    assert main(["inspect", str(root), "--sheet", str(tmp_path / "none.png"), "--pictures", "0"]) == 0
    assert not (tmp_path / "none.png").exists()


def test_coco_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "a.png", np.zeros((*SIZE, 3), np.uint8))
    document: dict[str, Any] = {
        "images": [{"id": 0, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 2, 10, 11]}],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(document))
    for arguments in ([str(tmp_path / "train.json")], [str(tmp_path)], [str(tmp_path), "--kind", "coco"]):
        assert main(["inspect", *arguments, "--stats"]) == 0
        output = capsys.readouterr().out
        assert row_of(output, "all") == ["1", "1", "1", "1", "1"]  # 11 pixels are too low to train on
        assert row_of(output, "mean") == ["0.0000"] * 3
        assert f"train.json: annotations: {tmp_path / 'train.json'}\n" in output
        assert "of 1 boxes of persons 0 reach out of their image, 0 are under a pixel wide or high and 1" in output
    document["categories"] = [{"id": 1, "name": "Person "}, {"id": 2, "name": "car"}]
    document["annotations"] += [{"id": i, "image_id": 0, "category_id": 2, "bbox": [1, 2, 10, 20]} for i in (1, 2)]
    (tmp_path / "train.json").write_text(json.dumps(document))
    assert main(["inspect", str(tmp_path)]) == 0
    assert "train.json: not person: car 2\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "kept", "message"),
    [
        ("images/set06/V000/visible/I00039.jpg", -100, "I00039.jpg: the image is truncated"),
        ("annotations-xml/set06/V000/I00039.xml", -20, "I00039.xml: not readable as XML"),
        ("images/set06/V000/visible/I00039.jpg", None, "I00039.jpg: missing, the visible image of set06/V000/I00039"),
    ],
)
def test_a_bad_frame_stops_or_is_skipped(root: Path, file: str, kept: int | None, message: str) -> None:
    whole = (root / file).read_bytes()
    (root / file).unlink() if kept is None else (root / file).write_bytes(whole[:kept])
    words = ("inspect", root, "--stats", "--modality", "visible")
    done = command(*words)
    assert done.returncode == 1 and message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    done = command(*words, "--on-bad-frame", "skip")
    assert done.returncode == 0 and message in done.stdout
    assert "bad frames skipped: 1" in done.stdout and "channels over 3 frames" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["empty"], "empty: no data set there; looked for images/, annotations-xml/, *.json and */*.json"),
        (["empty", "--kind", "coco"], "empty: no COCO file there"),
        (["kaist", "--annotations", "paired"], "no KAIST annotations there; looked for the folder annotations-paired"),
        (["kaist", "--sheet", "sheet.xyz"], "sheet.xyz: a sheet's name ends in .png or .jpg"),
    ],
)
def test_bad_requests(root: Path, arguments: list[str], message: str) -> None:
    Path("empty").mkdir()
    done = command("inspect", *arguments)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("limits", [(9000, 7000), (7000, 7000), ("nan", 7000), (0, "inf")])
def test_a_range_goes_from_low_to_high(root: Path, limits: tuple[object, object]) -> None:
    assert command("inspect", root, "--pictures", 0, "--lwir-range", *limits).returncode == 2


def few_cars(folder: Path) -> Path:
    """A COCO file, cars.json, of three cars on one image that is not there."""
    boxes = [{"id": i, "image_id": 0, "category_id": 4, "bbox": [1 + 9 * i, 2, 10, 20 + i]} for i in range(3)]
    images = [{"id": 0, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 4, "name": "car"}]}
    (folder / "cars.json").write_text(json.dumps(content))
    return folder


def test_the_experiment_of_the_anchors_has_the_classes(tmp_path: Path) -> None:
    keys = ("data.classes={car: [car]}", "data.min_height=21", "input.size=[64,80]")
    done = command("inspect", few_cars(tmp_path), "--anchors", "lite0", *keys)
    assert (done.returncode, done.stderr) == (0, "")
    assert row_of(done.stdout, "all") == ["1", "1", "3", "3", "1"] and "car" in row_of(done.stdout, "   ")
    assert row_of(done.stdout, "height 12 to 45")[0] == "2" and Path("lite0_anchors.yaml").is_file()


@pytest.mark.parametrize(
    ("file", "kind", "says"),
    [
        ("", (), "no data set there"),
        ("", ("--kind", "coco"), "--annotations paired is of KAIST"),
        ("cars.json", (), "--annotations paired is of KAIST"),
    ],
)
def test_annotations_are_chosen_of_kaist_alone(file: str, kind: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = command("inspect", few_cars(tmp_path) / file, "--annotations", "paired", *kind)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1) and says in done.stderr


def test_kaist_beside_a_coco_file_is_found_by_its_annotations(root: Path) -> None:
    (root / "annotations-xml").rename(root / "own")
    few_cars(root)
    done = command("inspect", root, "--annotations", "own", "--pictures", 0, "--split", "test-all-20")
    assert done.returncode == 0 and row_of(done.stdout, "all")[0] == "4"


def test_channel_statistics_by_hand(tmp_path: Path) -> None:
    """Channels of two levels, half and half over two images: mean in the middle, deviation half the distance."""
    nothing = Annotations.from_rows([], size=(2, 4))
    frames = []
    for i, bgr in enumerate([(0, 51, 102), (255, 51, 204)]):
        visible = write_image(tmp_path / f"v{i}.png", np.full((2, 4, 3), bgr, np.uint8))
        lwir = write_image(tmp_path / f"l{i}.png", np.full((2, 4), 102 * i, np.uint8))
        frames.append(Frame(str(i), visible, lwir, nothing))
    result = channel_statistics(frames, "early")
    assert result.channels == ("R", "G", "B", "LWIR")
    np.testing.assert_allclose(result.mean, [0.6, 0.2, 0.5, 0.2], atol=1e-9)
    np.testing.assert_allclose(result.std, [0.2, 0, 0.5, 0.2], atol=1e-7)
    assert channel_statistics(frames, "lwir").channels == ("LWIR",)
    assert channel_statistics(frames, "visible").mean == result.mean[:3]


def test_object_statistics_by_hand() -> None:
    boxes = [[0, 0, 10, 11.5], [0, 0, 10, 12], [0, 0, 10, 170], [0, 0, 10, 60]]
    labels = ["person", "person", "person", "people"]
    first = Annotations.from_rows(boxes, labels, occlusion=[0, 0, 2, 0], size=(200, 200), daytime="day")
    frames = [Frame("a", None, None, first), Frame("b", None, None, Annotations.from_rows([], size=(200, 200)))]
    rows = {row.group: row for row in count_objects(frames)}
    assert list(rows) == ["all", "day", "unknown", "occl. none", "occl. partial", "occl. heavy"]
    assert rows["all"].counts == (2, 1, 4, 3, 2)
    assert rows["occl. heavy"].counts[0] == rows["occl. heavy"].counts[3] == 1
    assert rows["unknown"].counts == (1, 0, 0, 0, 0)
    assert [row.group for row in count_objects(frames[1:])] == ["all"]  # neither time nor occlusion is known
    found = height_quantiles(frames, shares=(25, 50, 100))
    assert found == {25: 11.75, 50: 12, 100: 170}  # the group of 60 is no person
    assert height_quantiles(frames[1:]) == {}
