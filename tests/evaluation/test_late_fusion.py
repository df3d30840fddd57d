"""Late fusion of detections."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_kaist.detections import write_coco_results, write_images
from data_kaist.errors import DataError
from data_kaist.structures import DetectionTable
from ssd_effnet.cli.main import main
from ssd_effnet.evaluation.late_fusion import join


def table(
    *rows: tuple[int, float, float, float], label: int = 1, classes: tuple[str, ...] = ("person",)
) -> DetectionTable:
    """Rows of image, left edge, width and score; all are 10 high."""
    image, left, width, score = (np.array(column) for column in zip(*rows, strict=True))
    boxes = np.stack((left, 0 * left, left + width, 0 * left + 10), axis=1).astype(np.float64)
    return DetectionTable(image.astype(np.int64), boxes, score.astype(np.float64), np.full(len(rows), label), classes)


VISIBLE = table((0, 0, 10, 0.8), (0, 50, 10, 0.6), (1, 0, 10, 0.3))
LWIR = table((0, 2, 10, 0.6), (1, 30, 10, 0.9))  # the first has IoU 8 / 12 with the visible one


@pytest.mark.parametrize(
    ("by", "score", "left"),
    [
        # odds 4 and 1.5 multiply to 6; 0 and 2 weighted by 0.8 and 0.6
        ("proben", 6 / 7, 2 * 0.6 / 1.4),
        ("average", 0.7, 1.0),
        ("nms", 0.8, 0.0),
    ],
)
def test_by_hand(by: str, score: float, left: float) -> None:
    found = join([VISIBLE, LWIR], by, prior=0.5)
    assert found.image_index.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(found.scores, [score, 0.6, 0.9, 0.3])  # one that only one detector found is unchanged
    np.testing.assert_allclose(found.boxes_xyxy[:, 0], [left, 50, 30, 0], atol=1e-9)
    np.testing.assert_allclose(found.boxes_xyxy[:, 2], [left + 10, 60, 40, 10])


def test_the_best_of_each_detector_takes_part() -> None:
    """Of two boxes of one detector on an object the one of higher score; the other is dropped, of three all count."""
    near, far = (0, 1, 10, 0.5), (0, 3, 10, 0.75)
    found = join([table((0, 0, 10, 0.9)), table(near, far), table((0, 0, 10, 0.9))], prior=0.5)
    assert found.scores.tolist() == pytest.approx([243 / 244])  # odds 9 * 3 * 9


def test_scores_above_the_prior_speak_for_an_object() -> None:
    """Low scores, too, make each other likelier. Unless said, the prior is the mean of all scores."""
    agreeing, alone = [table((0, 0, 10, 0.2)), table((0, 0, 10, 0.2), (1, 0, 10, 0.05))], 0.2
    assert join(agreeing, prior=0.5).scores[0] < alone < join(agreeing, prior=0.1).scores[0]
    assert join(agreeing, prior=0.1).scores.tolist() == pytest.approx([9 / 25, 0.05])  # odds 1/4 * 1/4 * 9
    assert join(agreeing).scores.tolist() == join(agreeing, prior=0.15).scores.tolist()
    apart = [table((0, 0, 10, 0.9)), table((0, 4, 10, 0.5))]  # IoU 6 / 14
    assert join(apart).scores.tolist() == pytest.approx([0.9, 0.5])


def test_detectors_without_detections_classes_and_scores() -> None:
    assert len(join([DetectionTable.empty(), DetectionTable.empty()])) == 0
    assert join([DetectionTable.empty(), LWIR]).scores.tolist() == pytest.approx([0.6, 0.9])
    two = ("person", "cyclist")
    found = join([table((0, 0, 10, 0.8), classes=two), table((0, 0, 10, 0.6), label=2, classes=two)])
    assert sorted(found.labels.tolist()) == [1, 2]
    with pytest.raises(DataError, match="cyclist"):
        join([LWIR, table((0, 0, 10, 0.8), classes=two)])
    with pytest.raises(DataError, match=r"from 3 to 3 .*proben"):
        join([LWIR, table((0, 0, 10, 3.0))])
    assert join([LWIR, table((0, 0, 10, 3.0))], "nms").scores.max() == 3


def test_what_is_joined_says_of_which_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Detections of half of the images, joined, are read as of that half again."""
    root = tmp_path / "annotations-xml"
    names = [f"set0{s}/V000/I0{k:04d}" for s in (6, 9) for k in (19, 39, 59)]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        person = "<object><name>person</name><bndbox><x>100</x><y>100</y><w>40</w><h>100</h></bndbox>"
        (root / f"{name}.xml").write_text(f"<annotation>{person}<occlusion>0</occlusion></object></annotation>")
    night = DetectionTable(np.arange(3), np.tile([100.0, 100, 140, 200], (3, 1)), np.full(3, 0.9))
    for of in ("a", "b"):
        write_coco_results(tmp_path / of / "detections.json", night)
        write_images(tmp_path / of / "images.json", range(3), names[3:], [(512, 640)] * 3, {1: "person"})
    given = ["--annotations", str(tmp_path), "--split", "test-all-20"]
    main(["evaluate", *given, "--join", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "late")])
    capsys.readouterr()
    main(["evaluate", *given, "--detections", str(tmp_path / "late"), "--json", str(tmp_path / "r.json")])
    assert "late/detections.json: by the names in images.json, 3 of the 6 images" in capsys.readouterr().err
    assert json.loads((tmp_path / "r.json").read_text())["late"]["people"] == 3
    write_images(tmp_path / "a" / "images.json", range(3), names[:3], [(512, 640)] * 3, {1: "person"})
    assert main(["evaluate", *given, "--join", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "no image of" in capsys.readouterr().err


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs that each find one of two people: the joined detections, in the ids of the file, find both."""
    images = [{"id": 7 + i, "file_name": f"frame.000{i}.png", "width": 640, "height": 512} for i in range(2)]
    boxes = [{"id": 1 + i, "image_id": 7 + i, "category_id": 3, "bbox": [100, 100, 40, 100]} for i in range(2)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "person"}]}
    (tmp_path / "t.json").write_text(json.dumps(content))
    for i, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        box = DetectionTable(np.array([i]), np.array([[100.0, 100, 140, 200]]), np.array([0.9]))
        write_coco_results(tmp_path / name / "detections.json", box, image_ids=[7, 8], category_ids=[3])
    given = ["evaluate", "--annotations", str(tmp_path / "t.json"), "--join", str(tmp_path / "a"), str(tmp_path / "b")]
    out = tmp_path / "late" / "detections.json"
    assert main([*given, "--out", str(out.parent), "--json", str(tmp_path / "r.json")]) == 0
    scores = json.loads((tmp_path / "r.json").read_text())
    assert [scores[name]["ap"]["AP"] for name in scores] == pytest.approx([50.495, 50.495, 100], abs=0.01)
    assert [(row["image_id"], row["category_id"]) for row in json.loads(out.read_text())] == [(7, 3), (8, 3)]
    assert "joined by proben, prior 0.9" in capsys.readouterr().out
    again = [*given[:3], "--detections", str(out.parent), "--json", str(tmp_path / "r.json")]
    assert main(again) == 0 and json.loads((tmp_path / "r.json").read_text())["late"]["ap"]["AP"] == pytest.approx(100)
    before = out.read_bytes()
    for of_run in ("config.yaml", "results.json"):
        (out.parent / of_run).touch()
        assert main([*given, "--by", "nms", "--out", str(out.parent)]) == 1 and out.read_bytes() == before
        assert "late: is a run's folder" in capsys.readouterr().err
        (out.parent / of_run).unlink()
    with pytest.raises(SystemExit):
        main(["evaluate", "--annotations", "t.json", "--detections", "a.json", "--out", "b.json"])
