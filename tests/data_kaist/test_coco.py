"""The reader of COCO ground truth, in more detail than test_detections.py: every complaint, raised or collected."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_kaist.annotations import doubt_of_boxes, other_labels
from data_kaist.coco import read_coco
from data_kaist.errors import AnnotationError, Doubt
from data_kaist.structures import Annotations

Document = dict[str, Any]


def document() -> Document:
    """Three images, out of order, two boxes on the second."""
    own = {"height": 9, "occlusion": 2, "ignore": 1}
    return {
        "images": [
            {"id": 7, "im_name": "set06/V000/I00019", "height": 512, "width": 640},
            {"id": 3, "file_name": "visible/a.png", "height": 100, "width": 200, "daytime": "night"},
            {"id": 12, "file_name": "set09_V000_visible_I00039.jpg", "height": 512, "width": 640},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 60]},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [1.5, 2, 3, 4], **own},
            {"id": 3, "image_id": 3, "category_id": 3, "bbox": [-5, 0, 20, 40], "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "cyclist"}, {"id": 3, "name": "pedestrian"}],
    }


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "truth.json"
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"images": [', ": is not valid JSON"),
        ("", ": is not valid JSON"),
        (b"\xff\xfe\x00{", ": is not a text file"),
        ([1, 2], ": should hold an object"),
        ({"images": [{}], "annotations": {}, "categories": []}, ": has no list 'annotations'"),
        ({"images": [], "annotations": [], "categories": []}, ": lists no images"),
    ],
)
def test_broken_files(tmp_path: Path, content: object, words: str) -> None:
    assert words in complaint(tmp_path, content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["images"][1].pop("width"), ": image 3 has no 'width'"),
        (lambda d: d["images"][1].pop("id"), ": image at place 1 has no 'id'"),
        (lambda d: d["images"][1].pop("file_name"), ": image 3 has neither 'im_name' nor 'file_name'"),
        (lambda d: d["images"].append(5), ": image at place 3 should be an object"),
        (lambda d: d["images"][1].update(id=7), ": image id 7 occurs twice"),
        (lambda d: d["images"][1].update(height=0), "image 3 has height 0 and width 200"),
        (lambda d: d["images"][1].update(daytime="dusk"), "image 3 has daytime 'dusk'"),
        (lambda d: d["categories"][0].update(id=2), ": category id 2 occurs twice"),
        (lambda d: d["categories"][0].update(id=[1]), ": category 0 has an id that is not a whole number"),
        (lambda d: d["annotations"][1].pop("bbox"), ": annotation 2 has no 'bbox'"),
        (lambda d: d["annotations"][1].update(id=[1]), "has an id that is neither a number nor a text"),
        (lambda d: d["annotations"][1].update(image_id=99), "annotation 2 is on image id 99"),
        (lambda d: d["annotations"][1].update(category_id=99), "annotation 2 is of category id 99"),
    ],
)
def test_missing_keys_and_ids(tmp_path: Path, change: Callable[[Document], None], words: str) -> None:
    content = document()
    change(content)
    assert words in complaint(tmp_path, content)


BAD_BOXES: list[tuple[dict[str, object], str]] = [
    ({"bbox": [float("nan"), 2, 3, 4]}, "four finite numbers"),
    ({"bbox": [1, 2, 10**400, 4]}, "four finite numbers"),
    ({"bbox": [1, 2, 3]}, "four finite numbers"),
    ({"bbox": 5}, "four finite numbers"),
    ({"bbox": [1, 2, 3, -4]}, "a box without area"),
    ({"bbox": [1, -4, 3, 4]}, "lies outside its 640x512 image"),
    ({"height": "tall"}, "has height 'tall'"),
    ({"occlusion": 3}, "has occlusion 3"),
]


@pytest.mark.parametrize(("values", "words"), BAD_BOXES)
def test_numbers_that_cannot_be_true(tmp_path: Path, values: dict[str, object], words: str) -> None:
    content = document()
    content["annotations"][1].update(values)
    message = complaint(tmp_path, content)
    assert message.startswith(": annotation 2 ") and words in message
    content["annotations"].append({"id": 9, "image_id": 7, "category_id": 1, "bbox": [1, 2, -1, 0]})
    bad: dict[int, str] = {}  # where that is asked for, the first reason of each image is collected
    coco = read_coco(written(tmp_path, content), bad)
    assert list(bad) == [7] and words in bad[7]
    assert coco.image_ids == [3, 7, 12] and [len(of_image) for of_image in coco.annotations] == [1, 1, 0]


def test_what_is_odd_is_read_and_said(tmp_path: Path) -> None:
    content = document()
    content["annotations"][1]["id"] = 1
    content["images"][0] |= {"id": "7", "width": 640.0, "im_name": "set06\\V000\\visible\\I00019.jpg"}
    content["annotations"][0] |= {"image_id": 7.0, "category_id": " 1 "}
    with pytest.warns(Doubt) as said:
        coco = read_coco(written(tmp_path, content))
    words = ("4 ids", "1 file names", "1 annotation ids")
    assert [word in str(one.message) for one, word in zip(said, words, strict=True)] == [True] * 3
    assert (coco.image_ids, coco.names[1]) == ([3, 7, 12], "set06/V000/I00019")
    assert coco.annotations[1].labels.tolist() == ["person", "cyclist"] and coco.annotations[1].daytime == "day"
    content["images"][1]["file_name"] = "./set06/V000/visible/I00019.jpg"
    content["images"][1].pop("im_name", None)
    with pytest.warns(Doubt, match=r"1 images are listed more than once \(set06/V000/visible/I00019\.jpg: 2 times\)"):
        read_coco(written(tmp_path, content))
    content["images"][0]["id"] = "seven"
    with pytest.raises(AnnotationError, match="image seven has an id that is not a whole number"):
        read_coco(written(tmp_path, content))


def test_case_and_blanks_of_category_names_do_not_count(tmp_path: Path) -> None:
    content = document()
    for category, name in zip(content["categories"], (" Person", "Cyclist ", "PEDESTRIAN"), strict=True):
        category["name"] = name
    coco = read_coco(written(tmp_path, content))
    assert coco.person_categories == {1, 3} and other_labels(coco.annotations) == "Cyclist  1"
    content["categories"], content["annotations"] = [{"id": 1, "name": "car"}], content["annotations"][:1]
    with pytest.warns(Doubt, match="its only category, 'car', is read as person"):
        assert read_coco(written(tmp_path, content)).annotations[1].labels.tolist() == ["person"]


def test_boxes_without_area_are_left_out_and_counted(tmp_path: Path) -> None:
    content = document()
    content["annotations"][0]["bbox"] = [10, 20, 0, 60]
    with pytest.warns(Doubt, match=r"1 boxes without area are left out \(the first: .*annotation 1\)"):
        coco = read_coco(written(tmp_path, content))
    assert [len(of_image) for of_image in coco.annotations] == [1, 1, 0]


def people(*boxes: tuple[float, float, float, float], **more: Any) -> Annotations:
    return Annotations.from_rows(boxes, size=(512, 640), **more)


def test_boxes_that_cannot_be_what_they_say_are_doubted() -> None:
    right = [people((300, 100, 340, 220)), people((320, 200, 360, 320), (330, 210, 370, 330))]
    assert doubt_of_boxes(right) == doubt_of_boxes([]) == doubt_of_boxes([people()]) == ""
    corners = [people((300, 100, 640, 320)), people((320, 200, 680, 520), (330, 210, 700, 540))]
    assert "of 3 boxes of persons 2 reach out of their image, 0 are under" in doubt_of_boxes(corners)
    assert "and 2 become" in doubt_of_boxes(corners)
    shares = [people((0.4, 0.2, 0.46, 0.5))]
    assert "0 reach out of their image, 1 are under a pixel wide or high and 1 become" in doubt_of_boxes(shares)
    small = [people((10, 10, 20, 20), (30, 30, 40, 40), (100, 100, 150, 200))]
    assert "2 become ignore regions" in doubt_of_boxes(small) and doubt_of_boxes(small, min_height=5) == ""
    # where every box fits as another form, a tenth over the border is enough, but at least three
    few = people((50, 60, 150, 260), (60, 70, 170, 250), (300, 100, 641, 320))
    assert "or corners?" in doubt_of_boxes([few] * 3) and doubt_of_boxes([few]) == ""
    # the same below: centres, as many of 60 x 180 whose feet reach over the lower border
    centres = people((50, 100, 110, 280), (300, 200, 360, 380), (600, 420, 660, 600))
    assert "or centres?" in doubt_of_boxes([centres] * 3)
    cut = people((0, 100, 60, 280), (300, 200, 360, 380), (600, 420, 660, 600))  # as x, y, w, h: one on the left too
    assert doubt_of_boxes([cut] * 3) == ""
