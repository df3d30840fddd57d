"""Labels are data: which belong to which class, which count, which are ignore regions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_kaist.annotations import other_labels, training_ignore
from data_kaist.classes import PEOPLE, Classes, is_among
from data_kaist.dataset import DetectionDataset
from data_kaist.layouts import DataSource, Frame, category_ids
from data_kaist.structures import Annotations, DetectionTable
from data_kaist.transforms import Resize
from ssd_effnet.evaluation.scores import classes_as_dict, named_figures, score_classes

TWO = Classes({"person": ("person",), "cyclist": (" Cyclist",)})
RIDERS_TOO = Classes({"person": ("person", "cyclist")})
ALL = Classes({"person": ("person", "people", "cyclist", "person?")})
ROAD = Classes({"user": ("person", "car"), "truck": ("truck",)})
BOXES = [(100, 100, 140, 200), (200, 100, 240, 200), (300, 100, 340, 200), (400, 100, 440, 200)]
LABELS = ["Person ", "cyclist", "people", "person?"]
SIZE = (512, 640)


def image() -> Annotations:
    return Annotations.from_rows(BOXES, LABELS, size=SIZE)


@pytest.mark.parametrize(
    ("classes", "indices", "ignored", "others"),
    [
        (PEOPLE, [1, 0, 0, 0], [False, True, True, True], "cyclist 1, people 1, person? 1"),
        (TWO, [1, 2, 0, 0], [False, False, True, True], "people 1, person? 1"),
        (RIDERS_TOO, [1, 1, 0, 0], [False, False, True, True], "people 1, person? 1"),
        (ALL, [1, 1, 1, 1], [False] * 4, ""),
    ],
)
def test_a_label_belongs_to_its_class_in_training(
    classes: Classes, indices: list[int], ignored: list[bool], others: str
) -> None:
    assert classes.indices(LABELS).tolist() == indices
    assert training_ignore(image(), classes=classes).tolist() == ignored
    assert other_labels([image()], classes) == others
    frame = Frame("a", None, None, image())
    dataset = DetectionDataset([frame], "visible", Resize((64, 80)), classes=classes)
    dataset._images = lambda index: (np.zeros((*SIZE, 3), np.uint8), None)  # type: ignore[method-assign]
    sample = dataset[0]
    assert sample.ignore.tolist() == ignored and sample.labels.tolist() == [max(i, 1) for i in indices]


@pytest.mark.parametrize(
    ("classes", "name", "counted", "absent", "main"),
    [
        (PEOPLE, "person", ("person",), (), "person"),
        (RIDERS_TOO, "person", ("person",), (), "person"),  # KAIST's protocol
        (ALL, "person", ("person",), (), "person"),
        (TWO, "person", ("person",), (), "person"),
        (TWO, "cyclist", (" Cyclist",), ("person",), "person"),
        (ROAD, "user", ("person", "car"), ("truck",), "user"),  # no data of KAIST
        (ROAD, "truck", ("truck",), ("person", "car"), "user"),
        (Classes({"b": ("b",), "a": ("a",)}), "a", ("a",), ("b",), "b"),
    ],
)
def test_what_counts_where_a_class_is_scored(
    classes: Classes, name: str, counted: tuple[str, ...], absent: tuple[str, ...], main: str
) -> None:
    assert (classes.counted(name), classes.absent(name), classes.main) == (counted, absent, main)


def test_the_published_name_of_people_is_person() -> None:
    """Result files of any detector of people are read alike, whatever its class is called."""
    assert Classes({"human": ("Person ",), "group": ("people",)}).published == ("person", "group")
    assert (ROAD.published, TWO.published) == (("person", "truck"), ("person", "cyclist"))


def test_labels_are_compared_without_case_and_blanks() -> None:
    assert is_among([" PERSON", "Pedestrian", "persons"], ["person"]).tolist() == [True, True, False]


def found(*rows: tuple[int, int]) -> DetectionTable:
    """Perfect detections of (place of the box, class index), the first the surest."""
    boxes = np.array([BOXES[place] for place, _ in rows], float)
    scores = np.linspace(0.9, 0.5, len(rows))
    labels = np.array([label for _, label in rows], np.int64)
    return DetectionTable(np.zeros(len(rows), np.int64), boxes, scores, labels, ("person", "cyclist"))


def test_each_class_is_scored_by_itself() -> None:
    # the person is found; what was taken for a cyclist is the person, then the cyclist; on `people` both are dropped
    table = found((0, 2), (0, 1), (1, 2), (2, 1), (2, 2))
    scores = score_classes([image()], table, TWO)
    assert scores["person"].ap["AP"] == pytest.approx(100) and scores["cyclist"].ap["AP50"] == pytest.approx(50)
    assert scores["person"].miss_rates["matlab"]["reasonable_all"].fppi.tolist() == [0.0]
    assert scores["cyclist"].miss_rates["matlab"]["reasonable_all"].fppi.tolist() == [1.0, 1.0]
    results = classes_as_dict(scores, TWO)
    assert results["ap"] == results["classes"]["person"]["ap"] and results["classes"]["cyclist"]["people"] == 1
    assert "scored_labels" not in results
    named = dict(named_figures(scores, TWO))
    assert named["AP50"] == named["AP50/person"] == pytest.approx(100) and named["AP50/cyclist"] == pytest.approx(50)
    assert "MR/reasonable_all/cyclist" in named


def test_people_of_training_who_do_not_count_in_the_protocol() -> None:
    """A rider found as a person is no false alarm, one missed is no miss; the results say by which label it counts."""
    one = {"labels": np.ones(2, np.int64), "classes": ("person",)}
    scores = score_classes([image()], replace(found((0, 1), (1, 1)), **one), RIDERS_TOO)
    alone = score_classes([image()], replace(found((0, 1), (1, 1)), **one), PEOPLE)
    results = classes_as_dict(scores, RIDERS_TOO)
    assert results.pop("scored_labels") == {"person": ["person"]}
    assert results == classes_as_dict(alone, PEOPLE)
    assert results["people"] == 1 and results["ap"]["AP"] == pytest.approx(100)


def test_categories_of_a_coco_file_belong_to_classes(few_pairs: Path) -> None:
    classes = Classes({"human": ("person",), "bus": ("bus",)})
    frames = DataSource("coco", few_pairs, classes=classes).frames("train.json")
    assert category_ids(frames, classes) == [1, 2]  # a category of its own for the one that the file lacks
    with pytest.raises(Exception, match=r"none of its categories \(person\) is 'bus' or 'car'"):
        DataSource("coco", few_pairs, classes=Classes({"a": ("bus",), "b": ("car",)})).frames("train.json")
