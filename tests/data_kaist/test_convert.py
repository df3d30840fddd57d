"""Small samples in each data set's own form become COCO files that load; bad input is one sentence."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data_kaist.coco import read_coco
from data_kaist.convert import convert, settings_for
from data_kaist.errors import DataError, Doubt
from data_kaist.layouts import DataSource
from ssd_effnet.build import build_dataset
from ssd_effnet.cli.convert import main
from ssd_effnet.config.loading import load_experiment

ROOT = Path(__file__).parents[2]


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
    write(xml, VOC.replace("<xmax>30<", "<xmax>wide<"))
    with pytest.raises(DataError, match=r"010001\.xml: object 1 has xmax 'wide', which is not a finite number"):
        convert("llvip", root, out)
    for old, new, message in (
        (">200<", ">20.5<", "<size> says 20.5x100 pixels, which should be whole and above 0"),
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


YOLO = "0 0.2 0.5 0.1 0.5\n1 0.6 0.5 0.2 0.2\n"  # 20x50 from (30, 25), and another class


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """images/{train,val,test} and labels/..., with data.yaml; one training image has no text, one an outline."""
    root = tmp_path / "export"
    for split, count in (("train", 3), ("val", 1), ("test", 1)):
        for i in range(count):
            image(root / "images" / split / f"{split}{i}.jpg")
            if i < 2:
                write(root / "labels" / split / f"{split}{i}.txt", YOLO if i == 0 else "0 0.1 0.1 0.2 0.1 0.2 0.5\n\n")
    write(
        root / "data.yaml", "path: .\ntrain: images/train\nval: images/val\ntest: images/test\nnames: [Person , car]\n"
    )
    return root


def test_yolo(yolo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(yolo / "labels" / "val" / "lost.txt", YOLO)
    with pytest.warns(Doubt) as said:
        done = {split.file.name: split for split in convert("yolo", yolo, out)}
    assert [str(one.message).removeprefix(f"{yolo}: ") for one in said] == [
        f"1 images have no text and count as without objects (the first: {yolo / 'images/train/train2.jpg'})",
        f"1 texts of boxes have no image that is listed, and are left out (the first: {yolo / 'labels/val/lost.txt'})",
    ]
    assert {name: split.images for name, split in done.items()} == {"train.json": 3, "val.json": 1, "test.json": 1}
    train = rows(out / "train.json")
    assert [row["bbox"] for row in train] == [[30, 25, 20, 50], [100, 40, 40, 20], [20, 10, 20, 40]]
    assert [(row["category_id"], row["ignore"]) for row in train] == [(1, 0), (2, 0), (1, 0)]
    assert str(done["train.json"]).endswith("train.json: 3 images, 2 person, 1 car, 0 ignore regions")
    data = read_coco(out / "train.json")
    assert data.annotations[0].labels.tolist() == ["person", "car"] and data.person_categories == {1}
    assert [frame.name for frame in DataSource("coco", out).frames("train.json")] == [
        f"images/train/train{i}" for i in range(3)
    ]
    assert (out / "images").is_symlink() and len(DataSource("coco", out).frames("test.json")) == 1


@pytest.mark.parametrize("layout", ["roboflow", "lists", "classes", "beside"])
def test_other_layouts_of_yolo(layout: str, tmp_path: Path) -> None:
    root, out = tmp_path / "export", tmp_path / "out"
    names = {"roboflow": "{split}/{kind}/{i}", "lists": "{kind}/{i}", "classes": "{split}/{kind}/{i}", "beside": "{i}"}
    for i, split in enumerate(["train", "train", "train", "valid", "valid"]):
        image(root / (names[layout].format(split=split, kind="images", i=i) + ".png"))
        write(root / (names[layout].format(split=split, kind="labels", i=i) + ".txt"), "0 0.2 0.5 0.1 0.5\n")
    if layout == "roboflow":
        write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: {0: pedestrian}\n")
    elif layout == "lists":
        write(root / "train.txt", "./images/0.png\n./images/1.png\nimages/2.png\n")
        write(root / "val.txt", f"{root / 'images' / '3.png'}\n{root / 'images' / '4.png'}\n")
        write(root / "data.yaml", "train: train.txt\nval: [val.txt]\nnames: [person]\n")
    else:
        write(root / "classes.txt", "person\ncar\n")
    source = root / "data.yaml" if layout == "lists" else root
    train, val = convert("yolo", source, out)
    assert (train.images, val.images) == ((4, 1) if layout == "beside" else (3, 2))
    assert {tuple(row["bbox"]) for row in rows(train.file) + rows(val.file)} == {(30, 25, 20, 50)}
    assert len(DataSource("coco", out).frames("train.json")) == train.images


def test_yolos_shares_are_of_the_upright_picture(yolo: Path, tmp_path: Path) -> None:
    file = yolo / "images" / "train" / "train0.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # a telephone that was held upright
    with Image.open(file) as stored:
        stored.save(file, exif=exif)
    convert("yolo", yolo, tmp_path / "out")
    data = read_coco(tmp_path / "out" / "train.json")
    assert data.images[0].size == (200, 100) and data.annotations[0].boxes_xyxy[0].tolist() == [15, 50, 25, 150]


def test_yolo_that_cannot_be(yolo: Path, tmp_path: Path) -> None:
    label, data = yolo / "labels" / "train" / "train0.txt", (yolo / "data.yaml").read_text()
    for text, message in (
        ("0 32 50 10 20", r"train0\.txt: line 1 has numbers beyond 0\.\.1"),
        ("0 0.1 0.1 0.2", r"train0\.txt: line 1 has 4 columns"),
        ("0 0.1 0.1 0.2 0.1 0.9", r"train0\.txt: line 1 has 6 columns"),
        ("7 0.1 0.1 0.2 0.1", r"train0\.txt: line 1 is of class 7, which has no name"),
        ("0 0.1 nan 0.2 0.1", r"train0\.txt: line 1 has number 'nan'"),
    ):
        write(label, text)
        with pytest.raises(DataError, match=message):
            convert("yolo", yolo, tmp_path / "out")
    write(label, YOLO)
    for text, message in (
        (data.replace("images/val", "images/no"), "names 'images/no', but .* is not there"),
        ("train: images/train\n", "has no list 'names'"),
    ):
        write(yolo / "data.yaml", text)
        with pytest.raises(DataError, match=message):
            convert("yolo", yolo, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (yolo / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"neither data\.yaml nor classes\.txt"):
        convert("yolo", yolo, tmp_path / "out")


PLAIN_VOC = """<annotation><filename>{name}.jpg</filename><size><width>200</width><height>100</height></size>
<object><name>Person</name><bndbox><xmin>30</xmin><ymin>25</ymin><xmax>50</xmax><ymax>75</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>
<object><name>person</name><difficult>1</difficult><bndbox><xmin>60</xmin><ymin>25</ymin><xmax>80</xmax><ymax>75</ymax>
</bndbox></object></annotation>"""


def test_voc(tmp_path: Path) -> None:
    root, out = tmp_path / "VOC2007", tmp_path / "out"
    for i in range(6):
        image(root / "JPEGImages" / f"{i:06d}.jpg")
        write(root / "Annotations" / f"{i:06d}.xml", PLAIN_VOC.format(name=f"{i:06d}"))
    train, val = convert("voc", root, out)
    assert (train.images, val.images) == (5, 1)
    for split, text in (
        ("train", "000000\n000001 1\n"),
        ("val", "000002  1\n"),
        ("trainval", "000000\n"),
        ("test", "000005\n"),
    ):
        write(root / "ImageSets" / "Main" / f"{split}.txt", text)
    done = {split.file.name: split for split in convert("voc", root, out)}
    assert {name: split.images for name, split in done.items()} == {"train.json": 2, "val.json": 1, "test.json": 1}
    assert (done["train.json"].labels, done["train.json"].ignored) == ({"person": 2, "dog": 2}, 2)
    assert [(row["bbox"], row["ignore"]) for row in rows(out / "val.json")] == [
        ([30, 25, 20, 50], 0),
        ([1, 2, 29, 38], 0),
        ([60, 25, 20, 50], 1),
    ]
    assert [frame.name for frame in DataSource("coco", out).frames("test.json")] == ["JPEGImages/000005"]
    write(root / "ImageSets" / "Main" / "val.txt", "000009\n")
    with pytest.raises(DataError, match=r"val\.txt: line 1 names 000009, of which there is no XML file"):
        convert("voc", root, out)


def test_voc_beside_the_images(tmp_path: Path) -> None:
    root, out = tmp_path / "export", tmp_path / "out"
    for split, i in (("train", 0), ("train", 1), ("valid", 0)):  # equal names in two folders
        image(root / split / f"{i}.jpg")
        write(root / split / f"{i}.xml", PLAIN_VOC.format(name=i))
    train, val = convert("voc", root, out)
    assert (train.images, val.images, val.labels["person"]) == (2, 1, 1)
    assert [frame.visible for frame in DataSource("coco", out).frames("val.json")] == [out / "valid" / "0.jpg"]
    (root / "train" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"1\.xml: its image, .* is missing"):
        convert("voc", root, out)


@pytest.mark.parametrize(
    ("form", "called", "command"),
    [
        ("llvip", "scripts/convert.py", ["scripts/train.py", "experiments/lite0.yaml"]),
        ("pennfudan", "scripts/convert.py", ["scripts/train.py", "experiments/lite0.yaml"]),
        ("yolo", "ssd-effnet", ["ssd-effnet", "train", "lite0"]),
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
    assert main([form, str(source), str(out)]) == 0
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


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_several_classes_survive_as_labels(form: str, tmp_path: Path) -> None:
    """Each can be trained on; every file has all categories; nothing is renamed. VOC's bus is difficult."""
    root, out = tmp_path / "in", tmp_path / "out"
    for i, split in enumerate(("train", "train", "val")):
        image(root / "images" / split / f"{i}.jpg")
        if form == "voc":
            text = PLAIN_VOC.replace("Person", "car").replace("person", "bus")
            write(root / "images" / split / f"{i}.xml", text if i < 2 else text.replace("dog", "car"))
        else:
            write(root / "labels" / split / f"{i}.txt", "0 0.2 0.5 0.1 0.5\n" + "1 0.6 0.5 0.2 0.2\n" * (i < 2))
            write(root / "classes.txt", "car\nbus\n")
    done = convert(form, root, out)
    (classes,) = [word for word in settings_for(done) if word.startswith("data.classes")]
    settings = ("data.kind=coco", f"data.root={out}", *settings_for(done))
    names = ("car", "dog") if form == "voc" else ("bus", "car")
    e = load_experiment("lite0", settings)
    assert tuple(e.data.classes) == names and classes == f"data.classes={{{', '.join(f'{n}: [{n}]' for n in names)}}}"
    labels = build_dataset(e, "train").annotations[0].labels.tolist()
    assert labels == (["car", "dog", "bus"] if form == "voc" else ["car", "bus"])
    assert len(build_dataset(e, "val")) == 1
