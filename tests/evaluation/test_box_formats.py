"""Files of detections that were written another way than they are read are named; bad detectors are left in peace."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_kaist.structures import Annotations, DetectionTable
from ssd_effnet.evaluation.box_formats import doubt
from ssd_effnet.evaluation.ground_truth import GroundTruth, load_ground_truth
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator

WIDTH, HEIGHT = 640, 512
SIZE = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
Random = np.random.Generator


def people(random: Random, images: int) -> list[Annotations]:
    """One or two persons of 40 to 200 pixels on most images."""
    truth = []
    for _ in range(images):
        n = int(random.integers(0, 3))
        h = random.uniform(40, 200, n)
        x, y = random.uniform(10, 630 - 0.4 * h), random.uniform(10, 500 - h)
        truth.append(Annotations.from_rows(np.stack([x, y, x + 0.4 * h, y + h], 1), size=(HEIGHT, WIDTH)))
    return truth


def detector(truth: list[Annotations], random: Random, recall: float = 0.9) -> DetectionTable:
    """Most persons within a few pixels, and half as many boxes elsewhere."""
    rows = [(i, *box + random.normal(0, 2, 4), 0.9) for i, a in enumerate(truth) for box in a.boxes_xyxy]
    rows = [row for row in rows if random.random() < recall]
    for i in random.integers(0, len(truth), len(truth) // 2):
        x, y = random.uniform(0, 500), random.uniform(0, 300)
        rows.append((i, x, y, x + 60, y + 150, 0.3))
    table = np.array(sorted(rows))
    return DetectionTable(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5])


@pytest.fixture(scope="module")
def truth() -> list[Annotations]:
    return people(np.random.default_rng(0), 40)


@pytest.fixture(scope="module")
def evaluator(truth: list[Annotations]) -> MissRateEvaluator:
    return MissRateEvaluator(truth)


def xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def centred(boxes: np.ndarray) -> np.ndarray:
    wh = boxes[:, 2:] - boxes[:, :2]
    return np.concatenate([boxes[:, :2] + wh / 2, wh], 1)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (lambda b: b, "corners x1, y1, x2, y2"),
        (lambda b: xywh(b) / SIZE, "shares of the image"),
        (lambda b: b / SIZE, "corners x1, y1, x2, y2 in shares of the image"),
        (lambda b: centred(b) / SIZE, "centre x, centre y, width, height in shares of the image"),
        (lambda b: 100 * xywh(b) / SIZE, "per cent of the image"),
        (lambda b: 1000 * xywh(b) / SIZE, "thousandths of the image"),
        (centred, "centre x, centre y, width, height"),
        (lambda b: xywh(b) / 2, "half the size"),
        (lambda b: xywh(b) * 2, "twice the size"),
        (lambda b: 300 * xywh(b) / SIZE, "300x300"),
        (lambda b: xywh(b)[:, [1, 0, 3, 2]], "y, x, height, width"),
        (lambda b: xywh(b)[:, [0, 1, 3, 2]], "x, y, height, width"),
        (lambda b: xywh(np.stack([WIDTH - b[:, 2], b[:, 1], WIDTH - b[:, 0], b[:, 3]], 1)), "mirrored"),
        (lambda b: xywh(np.stack([b[:, 0], HEIGHT - b[:, 3], b[:, 2], HEIGHT - b[:, 1]], 1)), "y is counted from"),
        (lambda b: b[:, [0, 2, 1, 3]], "corners x1, x2, y1, y2"),
    ],
)
def test_numbers_that_mean_something_else(
    truth: list[Annotations], evaluator: MissRateEvaluator, written: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    table = detector(truth, np.random.default_rng(1))
    assert doubt(evaluator, table) == ""
    read = written(table.boxes_xyxy)  # as x, y, w, h
    read = np.concatenate([read[:, :2], read[:, :2] + read[:, 2:]], 1)
    said = doubt(evaluator, DetectionTable(table.image_index, read, table.scores))
    assert words in said and "% of the persons are found as the file is read" in said


@pytest.mark.parametrize(
    ("written", "words"),
    [(centred, "the annotations' boxes are centre x"), (lambda b: b, "the annotations' boxes are corners")],
)
def test_annotations_that_mean_something_else(
    truth: list[Annotations], written: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    table = detector(truth, np.random.default_rng(1))
    read = [np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], 1) for a in truth for b in [written(a.boxes_xyxy)]]
    moved = [Annotations.from_rows(boxes, size=(HEIGHT, WIDTH)) for boxes in read]
    assert words in doubt(MissRateEvaluator(moved), table)


@pytest.mark.parametrize(
    ("to", "words"),
    [
        (lambda i: i - 1, "every image number is one higher"),
        (lambda i: i + 1, "every image number is one lower"),
        (lambda i: 39 - i, "counted from the other end"),
    ],
)
def test_images_that_are_numbered_otherwise(
    truth: list[Annotations], evaluator: MissRateEvaluator, to: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    table = detector(truth, np.random.default_rng(1))
    index = to(table.image_index)
    moved = DetectionTable(index, table.boxes_xyxy, table.scores).rows((index >= 0) & (index < 40))
    assert words in doubt(evaluator, moved)


def people_of(truth: list[Annotations]) -> list[tuple[int, list[float]]]:
    return [(i, box) for i, a in enumerate(truth) for box in xywh(a.boxes_xyxy).tolist()]


def written(tmp_path: Path, truth: list[Annotations], named: list[tuple[int, str]], *categories: str) -> GroundTruth:
    images = [{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in named]
    annotations = [{"image_id": i, "category_id": 1, "bbox": box} for i, box in people_of(truth)]
    classes = [{"id": i, "name": name} for i, name in enumerate(categories or ["person"], 1)]
    content = {"images": images, "annotations": annotations, "categories": classes}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return load_ground_truth(tmp_path / "truth.json")


def test_categories_that_are_swapped(truth: list[Annotations], evaluator: MissRateEvaluator, tmp_path: Path) -> None:
    """Of a file of two categories; of its cars nobody asks while the persons are found."""
    rows = people_of(truth)
    ground_truth = written(tmp_path, truth, [(i, f"{i}.jpg") for i in range(40)], "person", "car")
    path = tmp_path / "results.json"
    for person, car, words in ((1, 2, ""), (2, 1, "its category 2 is"), (0, 1, "its category 0 is")):
        entries = [{"image_id": i, "category_id": person, "bbox": box, "score": 0.9} for i, box in rows]
        entries += [{"image_id": i, "category_id": car, "bbox": [20, 300, 300, 100], "score": 0.9} for i in range(40)]
        path.write_text(json.dumps(entries))
        said = ground_truth.doubt(path, ground_truth.read_detections(path), evaluator)
        assert words in said and bool(words) == bool(said)


def test_images_numbered_in_another_order(truth: list[Annotations], tmp_path: Path) -> None:
    """By the list of a file that is not sorted by its ids, and by names."""
    random = np.random.default_rng(2)
    listed, by_name = random.permutation(40), random.permutation(40).tolist()
    rows = people_of(truth)
    ground_truth = written(tmp_path, truth, [(i, f"{by_name.index(i):03d}.jpg") for i in listed.tolist()])
    evaluator, path = MissRateEvaluator(ground_truth.annotations), tmp_path / "results.txt"
    for order, words in ((list(range(40)), ""), (listed.tolist(), "file's list"), (by_name, "their names")):
        lines = [",".join(map(str, (order.index(i) + 1, *box, 0.9))) for i, box in rows]
        path.write_text("\n".join(lines))
        said = ground_truth.doubt(path, ground_truth.read_detections(path), evaluator)
        assert words in said and bool(words) == bool(said)


def test_results_that_stop_early(truth: list[Annotations], evaluator: MissRateEvaluator) -> None:
    table = detector(truth, np.random.default_rng(1))
    said = doubt(evaluator, table.rows(table.image_index < 24))
    assert "of 40" in said and "(40%) have no detection" in said
    for step in (2, 3):
        said = doubt(evaluator, table.rows(table.image_index % step == 0))
        assert f"{step} apart" in said and "of 40" in said
    six_of_ten = [Annotations.from_rows([(100, 100, 140, 200)], size=(HEIGHT, WIDTH))] * 10
    found = DetectionTable(np.arange(6), np.tile([100.0, 100, 140, 200], (6, 1)), np.ones(6))
    said = doubt(MissRateEvaluator(six_of_ten), found)
    assert said.startswith("it ends at image 6 of 10: the last 4 (40%) have no detection, while of those before 100%")
    # silence is no end: as long elsewhere, or nobody is there to be found
    assert doubt(MissRateEvaluator(six_of_ten), found.rows(np.isin(np.arange(6), (0, 5)))) == ""
    empty_street = [*six_of_ten[:6], *[Annotations.from_rows([], size=(HEIGHT, WIDTH))] * 4]
    assert doubt(MissRateEvaluator(empty_street), found) == ""


def test_bad_detectors_are_not_doubted() -> None:
    """Boxes at random, few and many, small and large, on few images and on many."""
    random = np.random.default_rng(0)
    said = []
    for images in (3, 10, 60):
        for a_frame in (0.5, 3, 40):
            for low, high in ((10, 60), (40, 200), (100, 400)):
                n = 1 + int(random.poisson(a_frame * images))
                h, x, y = random.uniform(low, high, n), random.uniform(0, 600, n), random.uniform(0, 450, n)
                boxes = np.stack([x, y, x + h * random.uniform(0.3, 1, n), y + h], 1)
                table = DetectionTable(np.sort(random.integers(0, images, n)), boxes, random.random(n))
                said.append(doubt(MissRateEvaluator(people(random, images)), table))
    assert said == [""] * len(said)


def test_a_true_miss_rate_near_100_is_not_doubted() -> None:
    random = np.random.default_rng(3)
    truth = people(random, 250)
    evaluator = MissRateEvaluator(truth)
    table = detector(truth, random, recall=0.01)
    mr = evaluator.match(table).result("reasonable_all").mr
    assert 0.98 < mr < 1 and doubt(evaluator, table) == ""


def test_published_results_are_not_doubted(shared: Path) -> None:
    truth = load_ground_truth(shared / "reference/kaist/KAIST_annotation.json")
    evaluator = MissRateEvaluator(truth.annotations)
    files = sorted((shared / "reference/kaist/results").iterdir())
    assert len(files) == 5
    assert [truth.doubt(file, truth.read_detections(file), evaluator) for file in files] == [""] * 5
