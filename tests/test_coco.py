"""The reader of COCO ground truth, in more detail than test_detections.py: every complaint, raised or collected."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_kaist.coco import read_coco
from data_kaist.errors import AnnotationError

Document = dict[str, Any]


def document() -> Document:
    """Three images, out of order, two boxes on the second."""
    return {
        "images": [
            {"id": 7, "im_name": "set06/V000/I00019", "height": 512, "width": 640},
            {"id": 3, "file_name": "visible/a.png", "height": 100, "width": 200, "daytime": "night"},
            {"id": 12, "file_name": "set09_V000_visible_I00039.jpg", "height": 512, "width": 640},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 60]},
            {
                "id": 2,
                "image_id": 7,
                "category_id": 2,
                "bbox": [1.5, 2, 3, 4],
                "height": 9,
                "occlusion": 2,
                "ignore": 1,
            },
            {"id": 3, "image_id": 3, "category_id": 3, "bbox": [-5, 0, 20, 40], "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "cyclist"}, {"id": 3, "name": "pedestrian"}],
    }


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "truth.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def complaint(tmp_path: Path, content: object) -> str:
    """What the reader says; it is one line and names the file."""
    path = written(tmp_path, content)
    with pytest.raises(AnnotationError) as caught:
        read_coco(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


def test_columns(tmp_path: Path) -> None:
    coco = read_coco(written(tmp_path, document()))
    first, second, _ = coco.annotations
    assert second.boxes_xyxy.tolist() == [[10, 20, 40, 80], [1.5, 2, 4.5, 6]]
    assert second.labels.tolist() == ["person", "cyclist"]
    assert second.ignore.tolist() == [False, True]
    assert second.occlusion.tolist() == [0, 2]
    assert second.height.tolist() == [60, 9]
    assert second.size == (512, 640)
    assert first.labels.tolist() == ["person"]  # a pedestrian is one
    assert first.ignore.tolist() == [True]  # a crowd
    assert first.boxes_xyxy.tolist() == [[-5, 0, 15, 40]]  # over the edge is allowed
    assert coco.person_categories == {1, 3}


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"nowhere\.json: cannot be read"):
        read_coco(tmp_path / "nowhere.json")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(AnnotationError, match=r"truth\.json: is not a text file"):
        read_coco(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"images": [', ": is not valid JSON"),
        ("", ": is not valid JSON"),
        ([1, 2], ": should hold an object"),
        ({"annotations": [], "categories": []}, ": has no list 'images'"),
        ({"images": [{}], "annotations": {}, "categories": []}, ": has no list 'annotations'"),
        ({"images": [{}], "annotations": []}, ": has no list 'categories'"),
        ({"images": [], "annotations": [], "categories": []}, ": lists no images"),
    ],
)
def test_broken_files(tmp_path: Path, content: object, words: str) -> None:
    assert words in complaint(tmp_path, content)


def _set(part: str, index: int, **values: object) -> Callable[[Document], None]:
    def change(content: Document) -> None:
        content[part][index].update(values)

    return change


def _drop(part: str, index: int, key: str) -> Callable[[Document], None]:
    def change(content: Document) -> None:
        del content[part][index][key]

    return change


def _replace(part: str, index: int, value: object) -> Callable[[Document], None]:
    def change(content: Document) -> None:
        content[part][index] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop("images", 1, "width"), ": image 3 has no 'width'"),
        (_drop("images", 1, "id"), ": image at place 1 has no 'id'"),
        (_drop("images", 1, "file_name"), ": image 3 has neither 'im_name' nor 'file_name'"),
        (_replace("images", 1, 5), ": image at place 1 should be an object"),
        (_set("images", 1, id="three"), "image three has an id that is not a whole number"),
        (_set("images", 1, id=7), ": image id 7 occurs twice"),
        (_set("images", 1, height=0), "image 3 has height 0 and width 200"),
        (_set("images", 1, width=20.5), "image 3 has height 100 and width 20.5"),
        (_set("images", 1, daytime="dusk"), "image 3 has daytime 'dusk'"),
        (_drop("categories", 0, "name"), ": category 0 has no 'name'"),
        (_set("categories", 0, id=2), ": category id 2 occurs twice"),
        (_set("categories", 0, id=[1]), ": category 0 has an id that is not a whole number"),
        (_drop("annotations", 1, "bbox"), ": annotation 2 has no 'bbox'"),
        (_drop("annotations", 1, "image_id"), ": annotation 2 has no 'image_id'"),
        (_drop("annotations", 1, "category_id"), ": annotation 2 has no 'category_id'"),
        (_replace("annotations", 1, None), ": annotation at place 1 should be an object"),
        (_set("annotations", 1, id=1), ": annotation 1 has an id that occurs twice"),
        (_set("annotations", 1, id=[1]), "has an id that is neither a number nor a text"),
        (_set("annotations", 1, image_id=99), "annotation 2 is on image id 99"),
        (_set("annotations", 1, category_id=99), "annotation 2 is of category id 99"),
    ],
)
def test_missing_keys_and_ids(tmp_path: Path, change: Callable[[Document], None], words: str) -> None:
    content = document()
    change(content)
    assert words in complaint(tmp_path, content)


BAD_BOXES = [
    ({"bbox": [float("nan"), 2, 3, 4]}, "four finite numbers"),
    ({"bbox": [1, 2, float("inf"), 4]}, "four finite numbers"),
    ({"bbox": [1, 2, 10**400, 4]}, "four finite numbers"),
    ({"bbox": [1, 2, 3]}, "four finite numbers"),
    ({"bbox": [1, 2, "3", 4]}, "four finite numbers"),
    ({"bbox": 5}, "four finite numbers"),
    ({"bbox": [1, 2, 0, 4]}, "a box without area"),
    ({"bbox": [1, 2, 3, -4]}, "a box without area"),
    ({"bbox": [640, 2, 3, 4]}, "lies outside its 640x512 image"),
    ({"bbox": [1, 512, 3, 4]}, "lies outside its 640x512 image"),
    ({"bbox": [-3, 2, 3, 4]}, "lies outside its 640x512 image"),
    ({"bbox": [1, -4, 3, 4]}, "lies outside its 640x512 image"),
    ({"height": float("nan")}, "has height nan"),
    ({"height": "tall"}, "has height 'tall'"),
    ({"occlusion": 3}, "has occlusion 3"),
]


@pytest.mark.parametrize(("values", "words"), BAD_BOXES)
def test_numbers_that_cannot_be_true(tmp_path: Path, values: dict[str, object], words: str) -> None:
    content = document()
    content["annotations"][1].update(values)
    message = complaint(tmp_path, content)
    assert message.startswith(": annotation 2 ")
    assert words in message


@pytest.mark.parametrize(("values", "words"), BAD_BOXES)
def test_bad_boxes_are_collected_where_that_is_asked_for(tmp_path: Path, values: dict[str, object], words: str) -> None:
    content = document()
    content["annotations"][1].update(values)
    bad: dict[int, str] = {}
    coco = read_coco(written(tmp_path, content), bad)
    assert list(bad) == [7]
    assert words in bad[7]
    assert coco.image_ids == [3, 7, 12]
    assert [len(of_image) for of_image in coco.annotations] == [1, 1, 0]


def test_the_first_reason_of_an_image_is_kept(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0]["bbox"] = [1, 2, 0, 4]
    content["annotations"][1]["occlusion"] = 9
    bad: dict[int, str] = {}
    read_coco(written(tmp_path, content), bad)
    assert "without area" in bad[7]


def test_a_broken_file_is_not_collected(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError):
        read_coco(written(tmp_path, "{"), {})
