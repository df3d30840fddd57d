"""scripts/evaluate.py as a user runs it: table, results file, picture, and one sentence when something is wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import command
from matplotlib.figure import Figure
from processes import ENVIRONMENT, script

from data_kaist.classes import Classes
from data_kaist.dataset import DetectionDataset
from data_kaist.detections import write_coco_results, write_images
from data_kaist.errors import DataError, Doubt
from data_kaist.layouts import Frame
from data_kaist.structures import Annotations, DetectionTable
from data_kaist.transforms import Resize
from ssd_effnet.evaluation.ground_truth import load_ground_truth, places_by_name
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.plots import miss_rate_figure, save_figure, shortened
from ssd_effnet.evaluation.scores import score, short_names
from ssd_effnet.evaluation.subsets import SUBSETS
from ssd_effnet.training.run import _write_detections
from ssd_effnet.training.run_directory import RunDirectory
from ssd_effnet.visualize.gallery.curves import write_curves

FRAMES = ("set06/V000/I00019", "set06/V000/I00039", "set09/V000/I00019")
XYWH = (100, 100, 30, 60)
PERSON = "<object><name>person</name><bndbox><x>{}</x><y>{}</y><w>{}</w><h>{}</h></bndbox>"
PERSON += "<occlusion>0</occlusion></object>"


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Three frames, each with one person; the first with one that is flagged, too."""
    box = {"category_id": 1, "bbox": XYWH, "height": XYWH[3], "occlusion": 0, "ignore": 0}
    people = box | {"id": 3, "image_id": 0, "bbox": (400, 100, 30, 60), "ignore": 1}  # as the improved file flags them
    document = {
        "images": [{"id": i, "im_name": name, "height": 512, "width": 640} for i, name in enumerate(FRAMES)],
        "annotations": [*({"id": i, "image_id": i, **box} for i in range(3)), people],
        "categories": [{"id": 0, "name": "__ignore__"}, {"id": 1, "name": "person"}],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def found(tmp_path: Path) -> Path:
    """The persons of the first two frames, then a false one on the second; the third frame stays silent."""
    path = tmp_path / "found.txt"
    path.write_text("1,100,100,30,60,0.9\n2,100,100,30,60,0.8\n2,300,300,30,60,0.7\n")
    return path


def cells(printed: str, start: str) -> list[list[str]]:
    """Of the rows of a table that begin so."""
    rows = [line for line in printed.splitlines() if line.startswith(start)]
    return [[cell.strip() for cell in row.strip("│ ").split("│")] for row in rows]


def test_table_results_and_picture(truth: Path, found: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "new" / "out.json", tmp_path / "plots" / "out.png"
    done = command("evaluate", "--annotations", truth, "--detections", found, "--json", out, "--plot", picture)
    assert done.returncode == 0, done.stderr
    assert not done.stderr

    # all, day and night (silent, so not counted by python), recall, people; AP, AP50: precision 1 at 67 of 101 recalls
    assert cells(done.stdout, "│ found") == [
        ["found", "matlab", "33.33", "0.00", "100.00", "66.67", "3", "66.34", "66.34"],
        ["found", "python", "0.00", "0.00", "-", "100.00", "2", "66.34", "66.34"],
    ]

    (results,) = json.loads(out.read_text()).values()
    assert set(results) == {"annotations", "matlab", "python", "recall", "people", "ap"}
    assert (results["annotations"], results["people"]) == (str(truth), 3)
    assert f"annotations: {truth}; 3 images, 3 boxes of persons\n" in done.stdout
    matlab, python = results["matlab"], results["python"]
    assert list(matlab) == list(python) == list(SUBSETS)
    assert matlab["reasonable_all"] == pytest.approx(100 / 3) and matlab["reasonable_night"] == 100
    assert matlab["near"] is None and python["reasonable_night"] is None
    assert results["recall"] == pytest.approx(200 / 3)
    assert results["ap"]["AP"] == results["ap"]["AP50"] == pytest.approx(100 * 67 / 101)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


def test_all_subsets_have_a_column_and_each_rule_set_a_row(truth: Path, found: Path) -> None:
    done = command("evaluate", "--annotations", truth, "--detections", found, "--subsets", "all")
    assert done.returncode == 0, done.stderr
    rows = cells(done.stdout, "│ f")
    rates = {"matlab": ["33.33", "0.00", "100.00", "-", "33.33"], "python": ["0.00", "0.00", "-", "-", "0.00"]}
    assert [row[:7] for row in rows] == [["found", rules, *of] for rules, of in rates.items()]
    assert rows[0][7:12] == ["-", "33.33", "-", "-", "33.33"]
    assert command("evaluate", "--annotations", truth, "--detections", found, "--subsets", "many").returncode == 2


def test_short_names(tmp_path: Path) -> None:
    assert short_names(["a/x.txt", "b/y.txt"]) == ["x", "y"]
    assert short_names(["a/x.txt", "a/x.json", "b/y.txt"]) == ["x.txt", "x.json", "y"]
    assert short_names(["r/a/0/x.txt", "r/b/0/x.txt"]) == ["a/0/x.txt", "b/0/x.txt"]
    with pytest.raises(DataError, match="given twice"):
        short_names(["a/x.txt", "a/../a/x.txt"])
    for run_of in ("04_fpn", "08_bifpn"):
        (tmp_path / run_of / "seed0").mkdir(parents=True)
        (tmp_path / run_of / "seed0" / "config.yaml").touch()
    assert short_names([tmp_path / "04_fpn" / "seed0"]) == ["04_fpn/seed0"]
    assert short_names([tmp_path / "04_fpn/seed0", tmp_path / "08_bifpn/seed0"]) == ["04_fpn/seed0", "08_bifpn/seed0"]


def test_a_file_without_detections_is_doubted_and_scored_alike_in_table_and_json(truth: Path, tmp_path: Path) -> None:
    nobody, out = tmp_path / "nobody.txt", tmp_path / "o.json"
    nobody.write_text("")
    done = command("evaluate", "--annotations", truth, "--detections", nobody, "--json", out)
    assert done.returncode == 0
    assert done.stderr.startswith(f"warning: {nobody}: only 0 of the 3 images") and done.stderr.count("\n") == 1
    rows = cells(done.stdout, "│ nobody")
    result = json.loads(out.read_text())["nobody"]
    for rules, row in zip(("matlab", "python"), rows, strict=True):
        numbers = [result[rules][f"reasonable_{time}"] for time in ("all", "day", "night")]
        numbers += [result["recall"], result["people"]] if rules == "matlab" else [None, 0]  # no image, nobody to find
        numbers += [result["ap"]["AP"], result["ap"]["AP50"]]
        assert row[2:] == ["-" if n is None else f"{n:.2f}" if isinstance(n, float) else str(n) for n in numbers]
    assert rows[0][2:5] == ["100.00"] * 3


def test_results_of_detect_go_by_the_names_of_its_images(truth: Path, tmp_path: Path) -> None:
    """images.json counts other images, in another order, and one that the annotations do not have."""
    out = tmp_path / "found"
    out.mkdir()
    names = ["elsewhere.jpg", "V000/visible/I00039.jpg", f"images/{FRAMES[2].replace('V000/', 'V000/visible/')}.jpg"]
    listing = {"images": [{"id": i, "file_name": name, "height": 512, "width": 640} for i, name in enumerate(names)]}
    listing |= {"annotations": [], "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}]}
    (out / "images.json").write_text(json.dumps(listing))
    entries = [{"image_id": i, "category_id": 2, "bbox": XYWH, "score": 0.9 - i / 10} for i in range(3)]
    (out / "detections.json").write_text(json.dumps(entries))
    (out / "detections_kaist.txt").write_text("".join(f"{i + 1},100,100,30,60,{0.9 - i / 10}\n" for i in range(3)))
    ground_truth = load_ground_truth(truth)
    for name in ("detections.json", "detections_kaist.txt"):
        with pytest.warns(Doubt, match=r"1 of 3 images are not in .*, and 1 of the 3 images of .* were not looked at"):
            table = ground_truth.read_detections(out / name)
        assert table.image_index.tolist() == [1, 2] and table.scores.tolist() == [0.8, 0.7]
    files = (out / "detections.json", out / "detections_kaist.txt")
    done = command("evaluate", "--annotations", truth, "--detections", *files)
    assert done.returncode == 0 and done.stderr.count("warning: ") == 2, done.stderr
    kept, (table, _) = ground_truth.read_all([*files])
    assert kept.names == ground_truth.names[1:] and table.image_index.tolist() == [0, 1]
    assert kept.annotations == ground_truth.annotations[1:] and "the 2 images that were looked at" in done.stdout
    listing["images"] = listing["images"][:1]
    (out / "images.json").write_text(json.dumps(listing))
    (out / "detections.json").write_text("[]")
    with pytest.raises(DataError, match=r"images\.json: none of its 1 images, as elsewhere, is in "):
        ground_truth.read_detections(out / "detections.json")


def test_images_of_another_size_are_doubted(truth: Path, tmp_path: Path) -> None:
    table = DetectionTable(np.array([0]), np.array([[100.0, 100, 130, 160]]), np.array([0.9]))
    write_coco_results(tmp_path / "detections.json", table)
    for turned in (2, 0):
        sizes = [(640, 512)] * turned + [(512, 640)] * (3 - turned)
        write_images(tmp_path / "images.json", range(3), [f"{name}.jpg" for name in FRAMES], sizes, {1: "person"})
        done = command("evaluate", "--annotations", truth, "--detections", tmp_path / "detections.json")
        assert done.returncode == 0 and done.stderr.count("another size") == bool(turned), done.stderr
        assert not turned or "images.json: 2 images" in done.stderr


def test_the_main_class_of_a_run_may_be_called_human(truth: Path, tmp_path: Path) -> None:
    annotations = load_ground_truth(truth).annotations
    frames = [Frame(FRAMES[i], None, None, of, place=i) for i, of in enumerate(annotations)]
    classes = Classes({"human": ("person",), "group": ("people",)})
    dataset = DetectionDataset(frames, "visible", Resize((64, 80)), classes=classes)
    boxes = np.array([frame.annotations.boxes_xyxy[0] for frame in frames], float)
    table = DetectionTable(np.arange(3), boxes, np.full(3, 0.9), np.array([1, 1, 2]), classes.names)
    _write_detections(RunDirectory(tmp_path / "run"), dataset, table)
    written = json.loads((tmp_path / "run" / "images.json").read_text())
    assert [of["name"] for of in written["categories"]] == ["person", "group"]
    done = command("evaluate", "--annotations", truth, "--detections", tmp_path / "run", "--json", tmp_path / "o.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "o.json").read_text())["run"]["recall"] == pytest.approx(200 / 3)


def test_a_run_on_some_images_of_a_coco_file_is_scored_on_those(tmp_path: Path) -> None:
    """Ids are not places. What its text numbers, images.json says."""
    of = {"annotations": [], "categories": [{"id": 4, "name": "person"}]}
    of |= {"images": [{"id": 101 + i, "file_name": f"{i}.png", "width": 640, "height": 512} for i in range(6)]}
    of["annotations"] = [{"id": i, "image_id": 101 + i, "category_id": 4, "bbox": XYWH} for i in range(6)]
    (tmp_path / "t.json").write_text(json.dumps(of))
    boxes = load_ground_truth(tmp_path / "t.json").annotations
    places = enumerate((0, 2, 4))
    frames = [Frame(str(i), None, None, boxes[i], place=n, image_id=101 + i, category_ids=(4,)) for n, i in places]
    table = DetectionTable(np.arange(3), np.tile([100.0, 100, 130, 160], (3, 1)), np.full(3, 0.9), np.ones(3, int))
    directory = RunDirectory(tmp_path / "run")
    _write_detections(directory, DetectionDataset(frames, "visible", Resize((64, 80))), table)
    for file in (directory.detections_file, directory.kaist_file):
        done = command("evaluate", "--annotations", tmp_path / "t.json", "--detections", file, "--json", tmp_path / "o")
        assert "3 of the 6 images of" in done.stderr and "the 3 images that were looked at" in done.stdout, done.stderr
        (scores,) = json.loads((tmp_path / "o").read_text()).values()
        assert scores["people"] == 3 and scores["recall"] == 100
    every = DetectionTable(np.arange(6), np.tile([0.0, 0, 30, 60], (6, 1)), np.full(6, 0.9))
    write_coco_results(tmp_path / "other.json", every, image_ids=range(101, 107), category_ids=[4])
    files = [directory.detections_file, tmp_path / "other.json"]  # what finds little is not doubted on fewer images
    with pytest.warns(Doubt, match="were not looked at") as said:
        write_curves(files, tmp_path / "curves.png", annotations=tmp_path / "t.json")
    assert len(said) == 1


def test_names_that_fit_several_are_refused() -> None:
    assert places_by_name(["a", "x/b"], ["p/a", "b", "x/b"], "images.json") == [0, 2]
    for names, message in ((["a"], "a may be p/a or q/a"), (["p/a", "o/p/a"], "p/a and o/p/a are both p/a")):
        with pytest.raises(DataError, match=message):
            places_by_name(names, ["p/a", "q/a"], "images.json")


def test_two_sets_of_annotations_are_refused(found: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    bbgt = "% bbGt version=3\nPerson 100 100 30 60 0 0 0 0 0 0 0\ncyclist 1 2 30 60 0 0 0 0 0 0 0\n"
    for folder, ending, text in (("annotations-xml", "xml", "<annotation/>"), ("annotations-bbgt", "txt", bbgt)):
        for name in FRAMES:
            file = root / folder / f"{name}.{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    done = command("evaluate", "--annotations", root, "--detections", found)
    assert done.returncode == 1 and f"{root / 'annotations-xml'}, {root / 'annotations-bbgt'}" in done.stderr
    one, out = root / "annotations-bbgt", tmp_path / "o.json"
    done = command("evaluate", "--annotations", one, "--detections", found, "--json", out)
    assert done.returncode == 0, done.stderr
    assert f"{one}, test-all-20; 3 images, 3 boxes of persons; not persons, so ignore regions: cyclist 3" in done.stdout
    assert json.loads(out.read_text())["found"]["annotations"] == f"{one}, test-all-20"


def test_texts_in_a_data_set_have_its_images_size(tmp_path: Path) -> None:
    bbgt = tmp_path / "annotations-bbgt" / f"{FRAMES[0]}.txt"
    image = tmp_path / "images" / Path(FRAMES[0]).parent / "visible" / f"{Path(FRAMES[0]).name}.png"
    for file in (bbgt, image):
        file.parent.mkdir(parents=True)
    bbgt.write_text("% bbGt version=3\nperson 10 10 30 60 0 0 0 0 0 0 0\n")
    cv2.imwrite(str(image), np.zeros((96, 128, 3), np.uint8))
    for path in (tmp_path, tmp_path / "annotations-bbgt"):
        assert [a.size for a in load_ground_truth(path, "test-day-20").annotations] == [(96, 128)]


def test_boxes_of_the_truth_without_area_are_left_out_and_counted(truth: Path, found: Path, tmp_path: Path) -> None:
    document = json.loads(truth.read_text())
    document["annotations"] += [{**document["annotations"][0], "id": 4, "bbox": [9, 9, 0, 60]}]
    truth.write_text(json.dumps(document))
    done = command("evaluate", "--annotations", truth, "--detections", found)
    assert done.returncode == 0 and "1 boxes without area are left out (the first: " in done.stderr
    assert "3 boxes of persons" in done.stdout
    for row in document["annotations"]:
        row["bbox"] = [0.2, 0.2, 0.05, 0.1]
    truth.write_text(json.dumps(document))
    done = command("evaluate", "--annotations", truth, "--detections", found)
    assert done.returncode == 0 and "persons 0 reach out of their image, 5 are under a pixel" in done.stderr
    file = tmp_path / "root" / "annotations-xml" / f"{FRAMES[0]}.xml"
    file.parent.mkdir(parents=True)
    file.write_text(f"<annotation>{PERSON.format(9, 9, 0, 60)}{PERSON.format(9, 9, 30, 60)}</annotation>")
    with pytest.warns(Doubt, match="1 boxes without area are left out"):
        assert len(load_ground_truth(tmp_path / "root").annotations[0]) == 1


def test_one_sentence_for_wrong_paths(truth: Path, found: Path, tmp_path: Path) -> None:
    for against, detections, named in (
        (tmp_path / "none.json", found, "none.json"),
        (truth, tmp_path / "none.txt", "none.txt"),
        (tmp_path, found, "no KAIST annotations"),
    ):
        done = command("evaluate", "--annotations", against, "--detections", detections)
        assert done.returncode != 0
        assert named in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("inside", ["annotations-xml", ""])
def test_a_root_with_xml(found: Path, tmp_path: Path, inside: str) -> None:
    """Below the root or given as the folder itself; a frame that is not of the split plays no part."""
    folder = tmp_path / "root" / inside
    for name in (*FRAMES, "set06/V000/I00020"):
        file = folder / f"{name}.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"<annotation>{PERSON.format(*XYWH)}</annotation>")
    done = command("evaluate", "--annotations", tmp_path / "root", "--detections", found, "--json", tmp_path / "o.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "o.json").read_text())["found"]["matlab"]["reasonable_all"] == pytest.approx(100 / 3)
    assert load_ground_truth(tmp_path / "root", "test-day-20").names == list(FRAMES[:2])


def test_compare(truth: Path, found: Path, tmp_path: Path) -> None:
    """One day image of two draws a false positive; B never finds anybody."""
    nothing_found = tmp_path / "silent.txt"
    nothing_found.write_text("")
    done = command("evaluate", "--annotations", truth, "--compare", found, nothing_found, "--rules", "matlab")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"warning: {nothing_found}: only 0 of the 3") and done.stderr.count("\n") == 1
    assert "A: found" in done.stdout and "B: silent" in done.stdout
    rows = cells(done.stdout, "│")
    assert [row[:5] for row in rows] == [
        ["matlab", "reasonable all", "33.33", "100.00", "-66.67"],
        ["matlab", "reasonable day", "0.00", "100.00", "-100.00"],
        ["matlab", "reasonable night", "100.00", "100.00", "+0.00"],
    ]
    assert [row[5:7] for row in rows] == [["-", "-"]] * 3  # three images, and a reading of zero
    assert all(row[7].startswith("cannot tell") for row in rows)

    assert f"annotations: {truth};" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --detections --compare --join is required"),
        (["--compare", "a.txt"], "--compare takes two files"),
        (["--compare", "a.txt", "a.txt"], "a.txt: was given twice"),
        (["--compare", "a.txt", "b.txt", "--detections", "c.txt"], "not allowed with argument --compare"),
        (["--compare", "a.txt", "b.txt", "--plot", "p.png"], "--subsets go with --detections or --join"),
        (["--compare", "a.txt", "b.txt"], "a.txt"),
        (["--detections", "a.txt", "--with", "b.txt"], "--with goes with --compare"),
        (["--detections", "a.txt", "--by", "nms"], "--by, --out and --prior go with --join"),
        (["--join", "a.txt", "b.txt", "--by", "nms", "--prior", "0.9"], "--prior goes with --by proben"),
        (["--detections", "a.txt", "--videos"], "--videos goes with --compare"),
        (["--detections", __file__, "--split", "test-day-20"], "truth.json: is no data set's root"),
    ],
)
def test_one_sentence_for_a_wrong_comparison(truth: Path, arguments: list[str], message: str) -> None:
    done = command("evaluate", "--annotations", truth, *arguments)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]


def curve_of(*names: str) -> Figure:
    truth = MissRateEvaluator([Annotations.from_rows(np.array([[10, 10, 40, 110]]), size=(200, 200))])
    return miss_rate_figure(dict.fromkeys(names, score(truth, DetectionTable.empty(), ("matlab",), with_ap=False)))


def test_the_backend_of_a_notebook_ends_no_command(truth: Path, found: Path, tmp_path: Path) -> None:
    """matplotlib refuses at its import a backend that is not installed here, as in `!scripts/evaluate.py ...`."""
    line = ["evaluate", "--annotations", truth, "--detections", found, "--plot", tmp_path / "curves.png"]
    done = subprocess.run(
        script(*line), capture_output=True, text=True, env=ENVIRONMENT | {"MPLBACKEND": "module://none.backend_inline"}
    )
    assert done.returncode == 0 and (tmp_path / "curves.png").is_file(), done.stderr


@pytest.mark.parametrize(("suffix", "mark"), [(".pdf", b"/FontFile2"), (".ps", b"/FontType 42")])
def test_fonts_are_embedded_as_truetype(suffix: str, mark: bytes, tmp_path: Path) -> None:
    figure = Figure()
    figure.text(0, 0, "a $10^{-2}$")
    save_figure(figure, tmp_path / f"curves{suffix}")
    content = (tmp_path / f"curves{suffix}").read_bytes()
    assert mark in content and b"/Type3" not in content.replace(b" ", b"") and b"/FontType 3" not in content


def test_shortened_names_stay_distinct() -> None:
    same = "05_deconv_with_a_long_and_telling_name_"
    names = ["short", "x" * 40, f"{same}a", f"{same}b", f"{same}{'c' * 30}", f"{same}c", f"{same}d{'c' * 29}"]
    short = shortened(names)
    assert list(short) == names and len(set(short.values())) == len(names)
    assert short["short"] == "short" and short["x" * 40] == "x" * 12 + "…" + "x" * 23
    pair = shortened([f"{same}a", f"{same}b"])
    assert all(len(cut) <= 36 and cut.endswith(name[-1]) for name, cut in pair.items())
    assert shortened(["x" * 40]) == {"x" * 40: "x" * 35 + "…"}
    legend = curve_of(f"{same}a", f"{same}b").axes[0].get_legend()
    assert legend is not None and len({text.get_text() for text in legend.get_texts()}) == 2


def test_a_name_in_another_script_has_one_warning(tmp_path: Path) -> None:
    private = "\U000f0123\U000f0124"  # no font has them
    figure = Figure()
    figure.text(0, 0, private)
    with pytest.warns(Doubt, match=f"no chosen font has {private}") as caught:
        for name in ("one.png", "two.svg", "three.pdf"):
            save_figure(figure, tmp_path / name)
    assert len(caught) == 1
