"""Small samples in each data set's own form become COCO files that load; bad input is one sentence."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_kaist.coco import read_coco
from data_kaist.convert import Box, convert
from data_kaist.errors import DataError
from data_kaist.loading import load_coco

ROOT = Path(__file__).parents[1]


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


CITY_OBJECTS = [
    {"instanceId": 24000, "bbox": [10, 20, 20, 50], "bboxVis": [10, 20, 20, 50], "label": "pedestrian"},
    {"instanceId": 24001, "bbox": [-5, 40, 20, 80], "bboxVis": [0, 40, 15, 24], "label": "pedestrian"},
    {"instanceId": 25000, "bbox": [60, 20, 20, 50], "bboxVis": [60, 20, 20, 40], "label": "rider"},
    {"instanceId": 0, "bbox": [100, 10, 40, 30], "bboxVis": [0, 0, 0, 0], "label": "ignore"},
    {"instanceId": 24002, "bbox": [300, 10, 10, 30], "bboxVis": [300, 10, 10, 30], "label": "pedestrian"},
]


@pytest.fixture
def citypersons(tmp_path: Path) -> Path:
    root = tmp_path / "cityscapes"
    for split, city in (("train", "aachen"), ("val", "munster")):
        name = f"{city}_000000_000019"
        image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        boxes = {"imgHeight": 100, "imgWidth": 200, "objects": CITY_OBJECTS if split == "train" else []}
        write(root / "gtBboxCityPersons" / split / city / f"{name}_gtBboxCityPersons.json", json.dumps(boxes))
    return root


def test_citypersons(citypersons: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train, val = convert("citypersons", citypersons, out)
    assert str(train).startswith(
        f"{out / 'train.json'}: 1 images, 2 persons, 2 ignore regions; 1 boxes left out: object 5"
    )
    assert (val.images, val.persons) == (1, 0)
    first, second, rider, region = rows(out / "train.json")
    assert first["bbox"] == [10, 20, 20, 50] and (first["ignore"], first["occlusion"]) == (0, 0)
    # cut at the border; its own height stays; 15 x 24 of 20 x 80 are seen
    assert second["bbox"] == [0, 40, 15, 60] and second["height"] == 80 and second["occlusion"] == 2
    assert (rider["ignore"], rider["occlusion"], region["ignore"], region["iscrowd"]) == (1, 1, 1, 1)
    (frame,) = load_coco(out, "train.json")
    assert frame.annotations.ignore.tolist() == [False, False, True, True]
    assert frame.visible is not None and not frame.visible.is_symlink() and (out / "leftImg8bit").is_symlink()

    convert("citypersons", citypersons, out, box="visible")  # links of before are kept
    first, second, rider, region = rows(out / "train.json")
    assert second["bbox"] == [0, 40, 15, 24] and second["height"] == 80
    assert region["bbox"] == [100, 10, 40, 30]  # nothing of an ignore region is called visible


@pytest.mark.parametrize(
    ("full", "visible", "box", "height"),
    [
        ([5, 5, 0, 0], [5, 5, 10, 20], "full", None),
        ([5, 5, 0, 0], [5, 5, 10, 20], "visible", 20),
        ([5, 5, 30, 0], [5, 90, 10, 20], "visible", 20),
        ([5, 5, 30, 40], [5, 5, 10, 20], "visible", 40),
        ([199.9999999, 5, 30, 40], [199.9999999, 5, 30, 40], "full", None),
        ([5, -40, 30, 40], [5, -40, 30, 40], "full", None),
        ([5, 5, -10, -20], [5, 5, 10, -20], "visible", None),
    ],
)
def test_what_is_written_can_be_read(
    citypersons: Path, tmp_path: Path, full: list[float], visible: list[float], box: Box, height: float | None
) -> None:
    (file,) = (citypersons / "gtBboxCityPersons" / "train").glob("*/*.json")
    objects = [{"label": "pedestrian", "bbox": full, "bboxVis": visible}]
    write(file, json.dumps({"imgHeight": 100, "imgWidth": 200, "objects": objects}))
    train, _ = convert("citypersons", citypersons, tmp_path / "out", box=box)
    (annotations,) = read_coco(train.file).annotations
    assert annotations.height.tolist() == ([] if height is None else [height])
    assert len(train.left_out) == (height is None)


@pytest.mark.parametrize("box", ["full", "visible"])
def test_no_box_is_too_odd_for_the_reader(citypersons: Path, tmp_path: Path, box: Box) -> None:
    (file,) = (citypersons / "gtBboxCityPersons" / "train").glob("*/*.json")
    values = (-1e15, -7.3, 0, 1e-300, 1e-7, 5, 99.9999999, 100, 199.9999999, 1e15)
    boxes = np.random.default_rng(0).choice(values, (3000, 2, 4)).tolist()
    objects = [{"label": "pedestrian", "bbox": full, "bboxVis": visible} for full, visible in boxes]
    write(file, json.dumps({"imgHeight": 100, "imgWidth": 200, "objects": objects}))
    train, _ = convert("citypersons", citypersons, tmp_path / "out", box=box)
    assert len(read_coco(train.file).annotations[0]) == train.persons == 3000 - len(train.left_out) > 100


def test_crowdhuman(tmp_path: Path) -> None:
    root, out = tmp_path / "CrowdHuman", tmp_path / "out"
    head = {"hbox": [12, 22, 5, 6], "head_attr": {"ignore": 0, "occ": 0, "unsure": 0}}
    person = {"tag": "person", "fbox": [10, 20, 20, 50], "vbox": [10, 20, 20, 40], "extra": {"box_id": 0, "occ": 1}}
    unsure = {**person, **head, "extra": {"box_id": 1, "ignore": 1}}
    mask = {"tag": "mask", "fbox": [50, 0, 30, 30], "vbox": [50, 0, 30, 30], "hbox": [50, 0, 30, 30]}
    mask["extra"] = {"ignore": 1}
    for split in ("train", "val"):
        line = json.dumps({"ID": f"273271,{split}", "gtboxes": [{**person, **head}, unsure, mask]})
        write(root / f"annotation_{split}.odgt", line + "\n\n")
        image(root / "Images" / f"273271,{split}.jpg")
    train, val = convert("crowdhuman", root, out, copy=True)
    assert (train.persons, train.ignored, val.images) == (1, 2, 1)
    assert [row["bbox"] for row in rows(out / "train.json")] == [[10, 20, 20, 50], [10, 20, 20, 50], [50, 0, 30, 30]]
    assert rows(out / "train.json")[0]["occlusion"] == 1
    data = read_coco(out / "val.json")
    assert data.images[0].size == (100, 200) and data.images[0].file_name == "Images/273271,val.jpg"
    assert not (out / "Images").is_symlink() and len(load_coco(out, "val.json")) == 1

    with (root / "annotation_train.odgt").open("a") as file:
        file.write('{"ID": "x", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3], "vbox": [1, 2, 3, 4]}]}\n')
    with pytest.raises(DataError, match=r"annotation_train\.odgt: line 3: box 1 has fbox \[1, 2, 3\], which should be"):
        convert("crowdhuman", root, out)
    write(root / "annotation_train.odgt", '{"ID": "x"\n')
    with pytest.raises(DataError, match=r"annotation_train\.odgt: line 1: is not valid JSON"):
        convert("crowdhuman", root, out)
    write(root / "annotation_train.odgt", '{"ID": "x", "gtboxes": []}\n')
    with pytest.raises(DataError, match=r"Images/x\.jpg: missing, the image of .*annotation_train\.odgt: line 1"):
        convert("crowdhuman", root, out)


VOC = """<annotation>
  <folder>train</folder><filename>{name}.jpg</filename>
  <size><width>200</width><height>100</height><depth>3</depth></size>
  <object><name>person</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
    <bndbox><xmin>10</xmin><ymin>20</ymin><xmax>30</xmax><ymax>70</ymax></bndbox></object>
  <object><name>person</name><difficult>1</difficult>
    <bndbox><xmin>60</xmin><ymin>20</ymin><xmax>80</xmax><ymax>70</ymax></bndbox></object>
</annotation>"""


def test_llvip_is_read_as_pairs(tmp_path: Path) -> None:
    root, out = tmp_path / "LLVIP", tmp_path / "out"
    for split, name in (("train", "010001"), ("test", "190001")):
        image(root / "visible" / split / f"{name}.jpg")
        image(root / "infrared" / split / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", VOC.format(name=name))
    done = {c.file.stem: c for c in convert("llvip", root, out)}
    assert set(done) == {"train", "test"} and (done["train"].persons, done["train"].ignored) == (1, 1)
    assert rows(out / "test.json")[0]["bbox"] == [10, 20, 20, 50]
    (pair,) = load_coco(out, "train.json", modality="early")
    assert pair.lwir is not None and pair.lwir.resolve() == root / "infrared" / "train" / "010001.jpg"
    convert("llvip", root, tmp_path / "copies", copy=True)
    (pair,) = load_coco(tmp_path / "copies", "test.json", modality="halfway")
    assert pair.lwir == tmp_path / "copies" / "lwir" / "test" / "190001.jpg"

    with pytest.raises(DataError, match="llvip has one box a person only"):
        convert("llvip", root, out, box="visible")
    xml = root / "Annotations" / "010001.xml"
    write(xml, VOC.replace("<xmax>30<", "<xmax>wide<"))
    with pytest.raises(DataError, match=r"010001\.xml: object 1 has xmax 'wide', which is not a finite number"):
        convert("llvip", root, out)
    for old, new, message in (
        (">100<", ">1e300<", r"<size> says 200x1e\+300 pixels, which should be whole and above 0"),
        (">200<", ">0<", "<size> says 0x100 pixels"),
        (">200<", ">20.5<", "<size> says 20.5x100 pixels"),
        ("<size>", "<size><height/></size><size>", "<size> has height ''"),
        ("size>", "sizes>", "has no <size>"),
        ("<xmin>10<", "<xmin>-1e300<", "object 1 has the corners .*, which lie beyond any image"),
    ):
        write(xml, VOC.replace(old, new))
        with pytest.raises(DataError, match=rf"010001\.xml.* {message}"):
            convert("llvip", root, out)
    write(xml, VOC[:100])
    with pytest.raises(DataError, match=r"010001\.xml: not readable as XML \(.*line"):
        convert("llvip", root, out)
    xml.unlink()
    with pytest.raises(DataError, match=r"010001\.xml: cannot be read"):
        convert("llvip", root, out)
    (root / "infrared" / "train" / "010001.jpg").unlink()
    write(xml, VOC)
    with pytest.raises(DataError, match=r"infrared/train/010001\.jpg: missing"):
        convert("llvip", root, out)


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
    assert (train.images, val.images, val.persons) == (4, 1, 1)
    assert rows(out / "val.json")[0]["bbox"] == [10, 20, 20, 50]  # from (1, 1) to (0, 0), both corners inside
    (frame,) = load_coco(out, "val.json")
    assert frame.name == "PNGImages/FudanPed00005" and frame.annotations.size == (100, 200)

    file = pennfudan / "Annotation" / "FudanPed00002.txt"
    for old, new, message in (
        (") - (30, 70)", ") (30, 70)", r"FudanPed00002\.txt: line 12 is no box"),
        ("200 x 100 x 3", "200 x", r"FudanPed00002\.txt: line 3 is not 'Image size"),
        ("200 x 100 x 3", "0 x 100 x 3", r"FudanPed00002\.txt: line 3 is not 'Image size"),
        ("truth : 1", "truth : 2", r"FudanPed00002\.txt: states 2 objects, but has 1 boxes"),
    ):
        write(file, PASCAL.format(name="FudanPed00002").replace(old, new))
        with pytest.raises(DataError, match=message):
            convert("pennfudan", pennfudan, out)


def test_refusals(citypersons: Path, pennfudan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="unknown data set 'coco'; it should be one of citypersons, crowdhuman"):
        convert("coco", citypersons, out)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        convert("citypersons", tmp_path / "nowhere", out)
    with pytest.raises(DataError, match="gtBboxCityPersons: no such folder; looked there for CityPersons' boxes"):
        convert("citypersons", pennfudan, out)
    with pytest.raises(DataError, match=r"no file annotation_\*\.odgt there"):
        convert("crowdhuman", pennfudan, out)
    with pytest.raises(DataError, match="too few images for a split 'val'"):
        convert("pennfudan", pennfudan, out, val_step=6)
    image(out / "leftImg8bit" / "other.png")
    with pytest.raises(DataError, match=r"leftImg8bit: is there already and is not .*choose another OUT"):
        convert("citypersons", citypersons, out)
    convert("citypersons", citypersons, citypersons)  # into the data set's own folder: nothing to link
    assert len(load_coco(citypersons, "train.json")) == 1


def test_the_script(citypersons: Path, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "convert.py", "citypersons"]
    done = subprocess.run([*command, citypersons, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0 and "train.json: 1 images, 2 persons" in done.stdout, done.stderr
    assert "data.kind=coco" in done.stdout and "data.val=val.json" in done.stdout
    bad = subprocess.run([*command, tmp_path / "no", tmp_path / "out"], capture_output=True, text=True)
    assert bad.returncode == 1 and bad.stderr == f"error: {tmp_path / 'no'}: no such folder\n"
