"""Readers of KAIST's annotation files: published counts, and every way in which a file can be wrong."""

import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_kaist.annotations import BBGT_HEADER, parse_bbgt, parse_xml, read_annotation, training_ignore
from data_kaist.classes import PERSON
from data_kaist.errors import AnnotationError
from data_kaist.splits import FrameName, parse_split
from data_kaist.structures import Annotations

NAME = "set06/V001/I00459"
OBJECT = (
    "<object><name>{name}</name><bndbox><x>{x}</x><y>{y}</y><w>{w}</w><h>{h}</h></bndbox>"
    "<occlusion>{occlusion}</occlusion></object>"
)


def xml(*objects: dict[str, object], size: str = "") -> str:
    defaults: dict[str, object] = {"name": "person", "x": 10, "y": 20, "w": 30, "h": 60, "occlusion": 0}
    return f"<annotation>{size}{''.join(OBJECT.format(**defaults | o) for o in objects)}</annotation>"


@pytest.mark.slow
def test_all_annotations_hold_the_published_counts(shared: Path) -> None:
    """Labels of all objects, and the counts of train-all-02."""
    labels: Counter[str] = Counter()
    train: Counter[str] = Counter()
    rule = parse_split("train-all-02")
    with tarfile.open(shared / "reference/kaist/annotations-xml.tar.gz") as archive:
        for member in archive:
            if not member.name.endswith(".xml"):
                continue
            file = archive.extractfile(member)
            annotations = parse_xml(file.read().decode(), member.name)
            labels.update(annotations.labels)
            labels["frames"] += 1
            if FrameName.parse("/".join(member.name.split("/")[1:])[:-4]) in rule:
                person = annotations.labels == PERSON
                reasonable = person & (annotations.height >= 55) & (annotations.occlusion < 2)
                train["frames with objects"] += len(annotations) > 0
                train["person"] += int(person.sum())
                train["reasonable"] += int(reasonable.sum())
                train["frames with reasonable"] += bool(reasonable.any())
    assert labels == {"person": 87_297, "people": 14_209, "cyclist": 6_538, "person?": 1_585, "frames": 95_324}
    assert (train["frames with objects"], train["frames with reasonable"]) == (11_069, 7_098)
    assert (train["person"], train["reasonable"]) == (20_733, 14_108)


def test_real_file(shared: Path) -> None:
    annotations = read_annotation(shared / "data/kaist-mini/annotations-xml" / f"{NAME}.xml", NAME)
    assert annotations.size == (512, 640)
    assert annotations.daytime == "day"
    np.testing.assert_array_equal(annotations.boxes_xyxy[0], [282, 209, 282 + 52, 209 + 111])
    assert annotations.boxes_xyxy.dtype == np.float32
    assert annotations.labels[0] == "person"


def test_xml_fields() -> None:
    size = "<size><width>100</width><height>80</height></size>"
    objects = [{"name": "people", "occlusion": 2}, {"x": -5, "y": 30.5, "h": 49.5}]
    annotations = parse_xml(xml(*objects, size=size), "a.xml", size=(1, 1), daytime="night")
    assert annotations.size == (80, 100)
    np.testing.assert_allclose(annotations.boxes_xyxy, [[10, 20, 40, 80], [-5, 30.5, 25, 80]])
    assert list(annotations.labels) == ["people", "person"]
    assert list(annotations.occlusion) == [2, 0]
    assert list(annotations.height) == [60, 49.5]
    assert not annotations.ignore.any()
    assert annotations.daytime == "night"


BROKEN_XML = {
    "cut off": (xml({})[:-30], "not readable as XML"),
    "entities": ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "not readable as XML"),
    "no name": (xml({}, {"name": ""}), "object 2 has no <name>"),
    "no box": ("<annotation><object><name>person</name></object></annotation>", r"object 1 \(person\) has no <bndbox>"),
    "no x": (xml({}).replace("<x>10</x>", ""), r"object 1 \(person\) has no <x>"),
    "no occlusion": (xml({}).replace("<occlusion>0</occlusion>", ""), "has no <occlusion>"),
    "nan": (xml({"y": "nan"}), "has y 'nan', which is not a finite number"),
    "no box's width": (xml({"w": -1}), r"has a box without area \(x 10, y 20, w -1, h 60\)"),
    "right of the frame": (xml({"x": 640}), "lies outside its 640x512 image"),
    "below its size": (xml({"y": 48}, size="<size><width>60</width><height>48</height></size>"), "outside its 60x48 "),
    "occlusion": (xml({"occlusion": 3}), "has occlusion 3.*, which should be 0, 1 or 2"),
    "size": (xml(size="<size><width>0</width><height>5</height></size>"), "<size> says 0x5 pixels"),
}


@pytest.mark.parametrize("case", BROKEN_XML)
def test_broken_xml_is_one_sentence_that_names_the_file(case: str, tmp_path: Path) -> None:
    data, message = BROKEN_XML[case]
    path = tmp_path / "set06/V000/I00001.xml"
    path.parent.mkdir(parents=True)
    path.write_text(data)
    with pytest.raises(AnnotationError, match=message) as error:
        read_annotation(path, "set06/V000/I00001")
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"I1\.xml: cannot be read \(No such file"):
        read_annotation(tmp_path / "I1.xml", "set06/V000/I1")


def bbgt(*lines: str) -> str:
    return "\n".join([BBGT_HEADER, *lines, ""])


def test_bbgt_fields(tmp_path: Path) -> None:
    path = tmp_path / "set03/V000/I00001.txt"
    path.parent.mkdir(parents=True)
    path.write_text(bbgt("person 10 20 30 60 1 0 0 0 0 0 0", "person? 600 0 41 512 2 0 0 0 0 1 0"))
    annotations = read_annotation(path, "set03/V000/I00001")
    np.testing.assert_array_equal(annotations.boxes_xyxy, [[10, 20, 40, 80], [600, 0, 641, 512]])
    assert list(annotations.labels) == ["person", "person?"]
    assert list(annotations.ignore) == [False, True]
    assert list(annotations.occlusion) == [1, 2]
    assert list(annotations.height) == [60, 512]
    assert annotations.daytime == "night"
    assert len(parse_bbgt(bbgt(), "a.txt")) == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "the first line should be '% bbGt version=3'"),
        ("person 1 2 3 4 0 0 0 0 0 0 0\n", "the first line should be"),
        (bbgt("person 10 20 30 60"), "object 1 has 5 columns, which should be 12"),
        (bbgt("person 10 20 x 60 0 0 0 0 0 0 0"), r"object 1 \(person\) has w 'x'"),
        (bbgt("", "person 10 600 30 60 0 0 0 0 0 0 0"), "outside its 640x512 image"),
    ],
)
def test_broken_bbgt(data: str, message: str) -> None:
    with pytest.raises(AnnotationError, match=message) as error:
        parse_bbgt(data, "a.txt")
    assert str(error.value).startswith("a.txt: ")


def test_training_ignore() -> None:
    inside = [[0, 0, 20, 40], [10, 10, 20, 40], [10, 10, 20, 40], [10, 10, 20, 21.9], [10, 10, 20, 22]]
    across = [[-1, 0, 9, 30], [90, 0, 101, 80], [90, 50, 100, 81], [5, -0.6, 9, 30], [80, 40, 100.4, 80]]
    labels, ignore = ["person", "people", *["person"] * 8], [False, False, True, *[False] * 7]
    annotations = Annotations.from_rows([*inside, *across], labels, ignore=ignore, size=(80, 100))
    expected = [False, True, True, True, False, True, True, True, True, False]  # the last one is rounded
    assert list(training_ignore(annotations)) == expected
    assert not training_ignore(annotations, min_height=5)[3]
