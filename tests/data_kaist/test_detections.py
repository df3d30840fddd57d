"""Detections read in three forms and written in two, and what is said of files that are wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_kaist.detections import read_detections, write_coco_results, write_kaist
from data_kaist.errors import DetectionFileError, Doubt
from data_kaist.structures import DetectionTable

NAMES = ["set06/V000/I00019", "set06/V000/I00039", "set09/V000/I00019"]
TABLE = DetectionTable(
    np.array([2, 0, 2]),
    np.array([[10.5, 20, 30, 80.25], [1, 2, 3, 4], [-3, 0, 700, 512]]),
    np.array([0.1, -7.25, 1e-9]),
)
GOOD = "1,10,20,30,40,0.5\n"


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("form", ["d.txt", "d.csv", "d.json"])
def test_round_trip(tmp_path: Path, form: str) -> None:
    path = tmp_path / "new" / form
    if form == "d.json":
        write_coco_results(path, TABLE, image_ids=[7, 8, 9])
    else:
        write_kaist(path, TABLE)
    again = read_detections(path, 3, image_ids=[7, 8, 9], person_categories={1})
    assert again.image_index.tolist() == TABLE.image_index.tolist()
    np.testing.assert_allclose(again.boxes_xyxy, TABLE.boxes_xyxy, rtol=0, atol=1e-7)
    assert again.scores.tolist() == TABLE.scores.tolist()
    assert not list(path.parent.glob(".*"))  # nothing of the temporary file is left


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_scores_come_back_exactly(tmp_path_factory: pytest.TempPathFactory, score: float) -> None:
    path = tmp_path_factory.getbasetemp() / "score.txt"
    write_kaist(path, DetectionTable(np.array([0]), np.array([[1.0, 2, 3, 4]]), np.array([score])))
    assert read_detections(path, 1).scores.tolist() == [score]


def test_what_the_forms_say(tmp_path: Path) -> None:
    one = DetectionTable(np.array([2]), np.array([[10.0, 20, 30, 80]]), np.array([0.5]))
    write_kaist(tmp_path / "d.txt", one)
    write_coco_results(tmp_path / "d.json", one)
    assert (tmp_path / "d.txt").read_text() == "3,10,20,20,60,0.5\n"
    entry = {"image_id": 2, "category_id": 1, "bbox": [10, 20, 20, 60], "score": 0.5}
    assert json.loads((tmp_path / "d.json").read_text()) == [entry]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_lines_found_nothing(tmp_path: Path, text: str) -> None:
    assert len(read_detections(write(tmp_path / "d.txt", text), 3)) == 0
    assert len(read_detections(write(tmp_path / "d.json", "[]"), 3, person_categories={1})) == 0


def test_spaces_blank_lines_windows_and_byte_order_marks(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_bytes("\ufeff1, 10,20,30,40, 5e-1\r\n  \r\n\r\n2,1,2,3,4,-1\r\n".encode())
    found = read_detections(tmp_path / "d.txt", 3)
    assert found.boxes_xyxy.tolist() == [[10, 20, 40, 60], [1, 2, 4, 6]]
    assert (found.image_index.tolist(), found.scores.tolist()) == ([0, 1], [0.5, -1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,10,20,30,40", "line 3: has 5 columns"),
        ("1 10 20 30 40 0.5", "line 3: has 1 columns"),
        ("1,10,twenty,30,40,0.5", "line 3: has y 'twenty', which is not a finite number"),
        ("0,10,20,30,40,0.5", "line 3: has image number 0, which should be a whole number from 1"),
        ("1.5,10,20,30,40,0.5", "line 3: has image number 1.5, which should be a whole number"),
        ("4,10,20,30,40,0.5", "line 3: has image number 4, but there are only 3 images"),
        ("1,10,20,30,-4,0.5", "line 3: has a box of width 30 and height -4"),
        ("1,10,20,30,40,nan", "line 3: has score 'nan', which is not a finite number"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "bad.txt", f"{GOOD}\n{line}\n{GOOD}")  # the blank line counts as a line
    with pytest.raises(DetectionFileError, match=r"bad\.txt, ") as raised:
        read_detections(path, 3)
    assert message in str(raised.value) and "\n" not in str(raised.value)


ENTRY = {"image_id": 0, "category_id": 1, "bbox": [10, 20, 30, 40], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": 0,\n', "line 2: is not valid JSON"),
        ({"annotations": []}, "should hold a list"),
        ([ENTRY, 7], "entry 2 should be an object"),
        ([ENTRY, ENTRY | {"image_id": 3}], "entry 2 has image_id 3, which the 3 images do not have"),
        ([ENTRY, ENTRY | {"image_id": "a.jpg"}], "entry 2 has image_id 'a.jpg'"),
        ([ENTRY, ENTRY | {"bbox": [1, 2, 3, "4"]}], "entry 2 has h '4'"),
        ([ENTRY, ENTRY | {"bbox": [1, 2, -1, 4]}], "entry 2 has a box of width -1"),
        ([ENTRY, ENTRY | {"score": math.inf}], "entry 2 has score inf"),
        ([ENTRY | {"bbox": [10, -(10**400), 30, 40]}], "entry 1 has y -1000"),  # JSON has no limit to its numbers
    ],
)
def test_bad_results(tmp_path: Path, content: object, message: str) -> None:
    path = write(tmp_path / "bad.json", content)
    with pytest.raises(DetectionFileError, match=r"bad\.json") as raised:
        read_detections(path, 3, person_categories={1})
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("set06_V000_I00020", "person 1 2 3 4 0.5", "is named after no frame"),
        ("set06_V000_I00019", "person 1 2 3 4", "line 1: has 4 columns, not the 5 of x1 y1"),
        ("set06_V000_I00019", "people 1 2 3 4 0.5", "line 1: detects 'people'"),
        ("set06_V000_I00019", "person 3 2 1 4 0.5", "line 1: has a box of width -2"),
        ("set06_V000_I00019", "person 1 2 3 x 0.5", "line 1: has y2 'x', which is not a finite number"),
    ],
)
def test_bad_devkit_files(tmp_path: Path, name: str, line: str, message: str) -> None:
    write(tmp_path / f"{name}.txt", line)
    with pytest.raises(DetectionFileError, match=name) as raised:
        read_detections(tmp_path, 3, names=NAMES)
    assert message in str(raised.value)


def test_ids_as_text_and_boxes_without_area_are_read_and_said(tmp_path: Path) -> None:
    entries = [ENTRY | {"image_id": "2", "category_id": 1.0}, ENTRY, ENTRY | {"bbox": [1, 2, 0, 4]}]
    with pytest.warns(Doubt) as said:
        found = read_detections(write(tmp_path / "d.json", entries), 3, person_categories={1})
    assert found.image_index.tolist() == [2, 0]
    wanted = ("1 image ids are written as '2'", "1 boxes of width or height 0")
    assert [words in str(one.message) for words, one in zip(wanted, said, strict=True)] == [True] * 2
    with pytest.warns(Doubt, match="2 boxes of width or height 0 are left out"):
        found = read_detections(write(tmp_path / "d.txt", f"{GOOD}1,10,20,0,40,0.5\n{GOOD}2,1,2,3,0,0.5\n"), 3)
    assert found.image_index.tolist() == [0, 0]
    write(tmp_path / "set06_V000_I00019.txt", "Person 1 2 1 4 0.5\nperson 1 2 3 4 0.5\n")
    (tmp_path / "d.txt").unlink()
    with pytest.warns(Doubt, match="1 boxes of width or height 0 are left out"):
        assert read_detections(tmp_path, 3, names=NAMES).boxes_xyxy.tolist() == [[2, 3, 4, 5]]


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(DetectionFileError, match="no such file"):
        read_detections(tmp_path / "none.txt", 3)
    for names, says in ((NAMES, "holds no set"), (None, "needs the names of the frames to be read")):
        with pytest.raises(DetectionFileError, match=says):
            read_detections(tmp_path, 3, names=names)
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DetectionFileError, match="not a text file"):
        read_detections(tmp_path / "d.txt", 3)


@pytest.mark.parametrize("write", [write_kaist, write_coco_results])
def test_what_could_not_be_read_is_not_written(tmp_path: Path, write: Callable[[Path, DetectionTable], None]) -> None:
    bad = DetectionTable(np.array([0]), np.array([[1.0, 2, 1, 4]]), np.array([0.5]))
    with pytest.raises(DetectionFileError, match="detection 0 on image 0"):
        write(tmp_path / "d", bad)
    assert not list(tmp_path.iterdir())


def test_other_categories_are_left_out_and_ids_are_places_unless_given(tmp_path: Path) -> None:
    of_two = ENTRY | {"image_id": 2}
    path = write(tmp_path / "d.json", [of_two, of_two | {"category_id": 2, "score": 0.4}])
    assert read_detections(path, 3, person_categories={1}).scores.tolist() == [0.5]
    with pytest.warns(Doubt, match=r"d\.json: holds categories 1, 2; all are taken as person"):
        assert read_detections(path, 3).scores.tolist() == [0.5, 0.4]
        assert read_detections(path, 3).image_index.tolist() == [2, 2]
        assert read_detections(path, 3, image_ids=[5, 2, 8]).image_index.tolist() == [1, 1]


def test_devkit_frames_without_a_file_are_silent(tmp_path: Path) -> None:
    write(tmp_path / "set09_V000_I00019.txt", "person 9 19 39 79 0.5\n\nperson 9 19 39 79 -1\n")
    found = read_detections(tmp_path, 3, names=NAMES)
    assert found.image_index.tolist() == [2, 2]
    assert found.boxes_xyxy.tolist() == [[10, 20, 40, 80]] * 2
    write(tmp_path / "set09_V000_I00019.txt", "person 9 19 39 79 0.5\n\nperson 9 19 39 79 nan\n")
    with pytest.raises(DetectionFileError, match=r"I00019\.txt, line 3: has score 'nan'"):
        read_detections(tmp_path, 3, names=NAMES)
