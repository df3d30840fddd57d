"""Small samples in each data set's own form become COCO files that load; bad input is one sentence."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_kaist.coco import read_coco
from data_kaist.convert import convert
from data_kaist.errors import DataError
from data_kaist.layouts import DataSource
from ssd_effnet.build import build_dataset
from ssd_effnet.cli.main import main
from ssd_effnet.config.loading import load_experiment


def image(path: Path, size: tuple[int, int] = (100, 200)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), 90, np.uint8))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def rows(file: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(file.read_text())["annotations"]
    return content


VOC = """<annotation>
  <folder>train</folder><filename>{name}.jpg</filename>
  <size><width>200</width><height>100</height><depth>3</depth></size>
  <object><name>person</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
    <bndbox><xmin>10</xmin><ymin>20</ymin><xmax>30</xmax><ymax>70</ymax></bndbox></object>
  <object><name>person</name><difficult>1</difficult>
    <bndbox><xmin>60</xmin><ymin>20</ymin><xmax>80</xmax><ymax>70</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def llvip(tmp_path: Path) -> Path:
    root = tmp_path / "LLVIP"
    for split, name in (("train", "010001"), ("train", "010002"), ("test", "190001")):
        image(root / "visible" / split / f"{name}.jpg")
        image(root / "infrared" / split / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", VOC.format(name=name))
    return root


def test_llvip_is_read_as_pairs(llvip: Path, tmp_path: Path) -> None:
    root, out = llvip, tmp_path / "out"
    done = {c.file.stem: c for c in convert("llvip", root, out)}
    assert set(done) == {"train", "test"} and (done["train"].labels["person"], done["train"].ignored) == (2, 2)
    assert rows(out / "test.json")[0]["bbox"] == [10, 20, 20, 50]
    pair = DataSource("coco", out).frames("train.json", modality="early")[0]
    assert pair.lwir is not None and pair.lwir.resolve() == root / "infrared" / "train" / "010001.jpg"

    xml = root / "Annotations" / "010001.xml"
    for old, new, message in (
        ("<xmax>30<", "<xmax>wide<", "object 1 has xmax 'wide', which is not a finite number"),
        (">200<", ">20.5<", "<size> says 20.5x100 pixels, which should be whole and above 0"),
        ("size>", "sizes>", "has no <size>"),
        ("<xmin>10<", "<xmin>-1e300<", "object 1 has the corners .*, which lie beyond any image"),
        (VOC[100:], "", r"not readable as XML \(.*line"),
    ):
        write(xml, VOC.replace(old, new))
        with pytest.raises(DataError, match=rf"010001\.xml.* {message}"):
            convert("llvip", root, out)
    xml.unlink()
    with pytest.raises(DataError, match=r"010001\.xml: cannot be read"):
        convert("llvip", root, out)
    (root / "infrared" / "train" / "010001.jpg").unlink()
    write(xml, VOC)
    with pytest.raises(DataError, match=r"infrared/train/010001\.jpg: missing"):
        convert("llvip", root, out)


def test_boxes_are_cut_at_the_border_and_all_that_is_written_can_be_read(llvip: Path, tmp_path: Path) -> None:
    xml = llvip / "Annotations" / "190001.xml"
    values = (-5e14, -7.3, 0, 1e-300, 1e-7, 5, 99.9999999, 100, 199.9999999, 5e14)
    boxes = [(-5, 40, 15, 120), *np.random.default_rng(0).choice(values, (1000, 4)).tolist()]
    head, tags = "<annotation><size><width>200</width><height>100</height></size>", ("xmin", "ymin", "xmax", "ymax")
    corners = ("".join(f"<{tag}>{x}</{tag}>" for tag, x in zip(tags, box, strict=True)) for box in boxes)
    objects = (f"<object><name>person</name><bndbox>{text}</bndbox></object>" for text in corners)
    write(xml, head + "".join(objects) + "</annotation>")
    done = {c.file.stem: c for c in convert("llvip", llvip, tmp_path / "out")}["test"]
    (annotations,) = read_coco(done.file).annotations
    assert annotations.boxes_xyxy[0].tolist() == [0, 40, 15, 100] and annotations.height[0] == 80
    assert len(annotations) == done.labels["person"] == 1001 - len(done.left_out) > 50


PASCAL = """# Compatible with PASCAL Annotation Version 1.00
Image filename : "PennFudanPed/PNGImages/{name}.png"
Image size (X x Y x C) : 200 x 100 x 3
Database : "The Penn-Fudan-Pedestrian Database"
Objects with ground truth : 1 {{ "PASpersonWalking" }}
# Note there may be some objects not included in the ground truth list for they are severe-occluded
# or have very small size.
# Top left pixel co-ordinates : (1, 1)

# Details for pedestrian 1 ("PASpersonWalking")
Original label for object 1 "PASpersonWalking" : "PennFudanPed"
Bounding box for object 1 "PASpersonWalking" (Xmin, Ymin) - (Xmax, Ymax) : (11, 21) - (30, 70)
Pixel mask for object 1 "PASpersonWalking" : "PennFudanPed/PedMasks/{name}_mask.png"
"""


@pytest.fixture
def pennfudan(tmp_path: Path) -> Path:
    root = tmp_path / "PennFudanPed"
    for i in range(1, 6):
        image(root / "PNGImages" / f"FudanPed{i:05d}.png")
        write(root / "Annotation" / f"FudanPed{i:05d}.txt", PASCAL.format(name=f"FudanPed{i:05d}"))
    return root


def test_pennfudan(pennfudan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train, val = convert("pennfudan", pennfudan, out)
    assert (train.images, val.images, val.labels["person"]) == (4, 1, 1)
    assert rows(out / "val.json")[0]["bbox"] == [10, 20, 20, 50]  # from (1, 1) to (0, 0), both corners inside
    (frame,) = DataSource("coco", out).frames("val.json")
    assert frame.name == "PNGImages/FudanPed00005" and frame.annotations.size == (100, 200)

    file = pennfudan / "Annotation" / "FudanPed00002.txt"
    for old, new, message in (
        (") - (30, 70)", ") (30, 70)", r"FudanPed00002\.txt: states 1 objects, but has 0 boxes"),
        ("200 x 100 x 3", "200 x", r"FudanPed00002\.txt: no line says 'Image size"),
        ("truth : 1", "truth : 2", r"FudanPed00002\.txt: states 2 objects, but has 1 boxes"),
    ):
        write(file, PASCAL.format(name="FudanPed00002").replace(old, new))
        with pytest.raises(DataError, match=message):
            convert("pennfudan", pennfudan, out)


@pytest.mark.parametrize(
    ("form", "called", "command"),
    [
        ("llvip", "scripts/convert.py", ["scripts/train.py", "experiments/lite0.yaml"]),
        ("pennfudan", "ssd-effnet", ["ssd-effnet", "train", "lite0"]),
    ],
)
def test_the_command_that_is_printed_runs(
    form: str,
    called: str,
    command: list[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its settings are accepted, every split has images, and those of the test split are those of test.json."""
    out = tmp_path / "my data"
    monkeypatch.setattr(sys, "argv", [called])
    source = request.getfixturevalue(form)
    assert main(["convert", form, str(source), str(out)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to train: ")]
    words = shlex.split(line.partition("to train: ")[2])
    experiment = load_experiment(Path(words[len(command) - 1]).stem, words[len(command) :])
    assert words[: len(command)] == command and experiment.data.root == str(out)
    datasets = {stage: build_dataset(experiment, stage) for stage in ("train", "val", "test")}
    assert all(map(len, datasets.values()))
    test = "val.json" if form == "pennfudan" else "test.json"
    assert experiment.data.test == test
    assert experiment.trainer.test_checkpoint == ("last" if test == "val.json" else "best")


def test_refusals(llvip: Path, pennfudan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="unknown data set 'coco'; it should be one of llvip, pennfudan"):
        convert("coco", llvip, out)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        convert("llvip", tmp_path / "nowhere", out)
    with pytest.raises(DataError, match="visible: no file "):
        convert("llvip", pennfudan, out)
    image(out / "PNGImages" / "other.png")
    with pytest.raises(DataError, match=r"PNGImages: is there already and is not .*choose another OUT"):
        convert("pennfudan", pennfudan, out)
    convert("pennfudan", pennfudan, pennfudan)  # into the data set's own folder: nothing to link
    assert len(DataSource("coco", pennfudan).frames("train.json")) == 4
    (pennfudan / "Annotation" / "FudanPed00001.txt").unlink()
    with pytest.raises(DataError, match="too few images for a split 'val'"):
        convert("pennfudan", pennfudan, out)
