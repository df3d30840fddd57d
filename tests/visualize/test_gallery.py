"""Galleries: what is drawn of a run, what the page says, and the page in a browser, with 2,000 pictures too."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import command
from matplotlib.figure import Figure
from untrained import splits, write_checkpoint

from data_kaist.classes import Classes
from data_kaist.detections import write_coco_results, write_images, write_kaist
from data_kaist.errors import DataError, Doubt, ImageError
from data_kaist.layouts import image_ids
from data_kaist.structures import Annotations, DetectionTable
from data_kaist.synthetic import write_dataset
from ssd_effnet import drawing as drawing
from ssd_effnet.build import build_dataset
from ssd_effnet.config.loading import load_experiment, save_experiment
from ssd_effnet.drawing import Marking, jpeg_address, with_caption
from ssd_effnet.evaluation.error_analysis import Errors, Kind
from ssd_effnet.evaluation.ground_truth import load_ground_truth
from ssd_effnet.evaluation.plots import miss_rate_figure
from ssd_effnet.evaluation.scores import write_results
from ssd_effnet.training.run_directory import describe_data
from ssd_effnet.visualize.gallery import album
from ssd_effnet.visualize.gallery.album import Item, below, cropped, fewest, markings, rings, whole, window
from ssd_effnet.visualize.gallery.compare import KINDS, write_comparison
from ssd_effnet.visualize.gallery.curves import write_curves
from ssd_effnet.visualize.gallery.errors import write_errors
from ssd_effnet.visualize.gallery.finished_run import FinishedRun, _with_images
from ssd_effnet.visualize.gallery.page import Bar, Chart, GalleryEntry, GalleryPage, Large, render, write_page
from ssd_effnet.visualize.panels import add_legend

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), "")


def made_up(truth: Sequence[Annotations], seed: int, share: float) -> DetectionTable:
    """Of each image: a share of its people, half of them twice, one beside a person and one on the sky."""
    random = np.random.default_rng(seed)
    rows: list[tuple[int, np.ndarray, float]] = []
    for i, annotations in enumerate(truth):
        for box in annotations.boxes_xyxy.astype(float):
            width = box[2] - box[0]
            if random.random() < share:
                rows.append((i, box, 0.3 + 0.7 * random.random()))
                if random.random() < 0.5:
                    rows.append((i, box + 0.1 * width * np.array([1, 0, 1, 0]), 0.25))
            elif random.random() < 0.5:
                rows.append((i, box + 0.5 * width * np.array([1, 0, 1, 0]), 0.3 + 0.7 * random.random()))
        rows.append((i, np.array([300.0, 10, 320, 60]), float(random.random())))
    boxes = np.array([row[1] for row in rows], float)
    return DetectionTable(np.array([row[0] for row in rows]), boxes, np.array([row[2] for row in rows]))


def run_of(out: Path, seed: int, share: float, *settings: str) -> Path:
    """A run directory as far as galleries need it."""
    e = load_experiment(ROOT / "experiments" / "lite0.yaml", [*settings, f"trainer.seed={seed}", "data.workers=0"])
    dataset = build_dataset(e, "test")
    frames = dataset.frames
    directory = out / f"seed{seed}"
    save_experiment(e, directory / "config.yaml")
    table = made_up([frame.annotations for frame in frames], seed, share)
    write_coco_results(directory / "detections.json", table, image_ids=image_ids(frames))
    write_kaist(directory / "detections_kaist.txt", table)
    write_results(directory / "environment.json", {"data": describe_data({"test": dataset})})
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, 40, (512, 640), 0)
    return root


@pytest.fixture(scope="module")
def visible(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return run_of(tmp_path_factory.mktemp("visible"), 0, 0.5, f"data.root={data}")


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    return run_of(tmp_path_factory.mktemp("halfway"), 1, 0.8, f"data.root={data}", "input.modality=halfway")


visualize = partial(command, "visualize")


def test_the_notebook_runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Its cells in order, with two runs of one experiment."""
    for seed, share in ((0, 0.5), (1, 0.8)):
        run_of(tmp_path / "runs" / "lite0-tiny", seed, share, f"data.root={data}", "name=lite0-tiny")
    write_checkpoint(tmp_path / "runs" / "lite0-tiny" / "seed0" / "checkpoints" / "best.ckpt")
    monkeypatch.chdir(tmp_path)
    cells: dict[str, Any] = {}
    exec(compile((ROOT / "docs" / "notebook.py").read_text(encoding="utf-8"), "notebook.py", "exec"), cells)
    said = capsys.readouterr().out
    assert "backbone" in said and "seed1" in said and len(cells["frames"]) == 12
    assert repr(cells["detector"]).startswith("Predictor(lite0: person in visible")
    table = cells["tables"]["seed1"]
    assert repr(table).startswith(f"{len(table)} detections of person, scores 0.")
    assert table._repr_html_().count("<tr>") == 11 and "detections" in DetectionTable.empty()._repr_html_()
    figure = table.of_image(0).plot(cells["picture"])
    assert len(figure.axes[0].patches) == len(table.of_image(0))
    if find_spec("pandas"):
        frame = table.to_pandas()
        assert list(frame.columns) == ["image", "class", "score", "x1", "y1", "x2", "y2"] and len(frame) == len(table)
    else:
        with pytest.raises(DataError, match="pip install pandas"):
            table.to_pandas()


@pytest.mark.usefixtures("print_size")
def test_a_figure_has_a_row_per_detector_and_a_column_per_frame(
    visible: Path, halfway: Path, data: Path, tmp_path: Path
) -> None:
    """Runs and files of others alike; both modalities, also of a detector that sees one; PDF and PNG at print size."""
    theirs = tmp_path / "Theirs.txt"
    shutil.copy(halfway / "detections_kaist.txt", theirs)
    names = [frame.name for frame in FinishedRun.load(visible).frames][:2]
    frames = ("--frames", names[0], names[1].replace("/", "_"))
    words = (*frames, "--detectors", visible, halfway, theirs, "--out", tmp_path / "a" / "fig.v1", "--width", "5")
    done = visualize("figure", *words, "--score", "0.2")
    assert done.returncode == 0, done.stderr
    picture = drawing.cv2.imread(str(tmp_path / "a" / "fig.v1.png"))
    assert picture.shape[1] == 1500 and (tmp_path / "a" / "fig.v1.pdf").read_bytes().startswith(b"%PDF")
    for kind in ("truth", "missed", "hit", "false_alarm"):  # each in its colour, at least in the legend
        assert (abs(picture[:, :, ::-1].astype(int) - drawing.KINDS[kind].colour).max(2) < 12).sum() > 20
    runs = list(FinishedRun.load_all([visible, halfway, theirs]).values())
    assert [run.name for run in runs] == ["lite0 seed 0", "lite0 seed 1", "Theirs"]
    np.testing.assert_allclose(runs[2].detections.boxes_xyxy, runs[1].detections.boxes_xyxy)
    assert [image.shape for image in runs[0].images(0, whole_pair=True)] == [(512, 640, 3)] * 2

    (tmp_path / "few.txt").write_text("")
    with pytest.warns(Doubt, match="images have a detection"):
        FinishedRun.load_all([visible, tmp_path / "few.txt"])
    of_root = list(FinishedRun.load_all([visible, theirs], annotations=data).values())
    assert [run.modality for run in of_root] == ["halfway"] * 2 and len(of_root[1].images(0)) == 2
    assert [run.sees for run in (*runs, *of_root)] == ["visible", "halfway", "", "visible", ""]
    assert "seed0, visible; miss rate" in write_comparison(*of_root, tmp_path / "c").lead[0]
    assert [len(run.detections) for run in of_root] == [len(runs[0].detections), len(runs[1].detections)]
    for more, says in (
        ((*frames, "nowhere", "--detectors", visible), "nowhere: is none of the"),
        ((*frames, "--detectors", visible, "--subset", "reasonable_night"), f"{names[0]}: is not of the night"),
        ((*frames, "--detectors", theirs), "--annotations"),
        ((*frames, "--detectors", theirs, "--names", "a", "b", "--annotations", data), "2 names"),
    ):
        done = visualize("figure", *more, "--out", tmp_path / "no")
        assert done.returncode == 1 and says in done.stderr and not list(tmp_path.glob("no*"))


def test_other_categories_of_a_file_are_no_people(few_pairs: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "coco", 0, 1.0, *splits(few_pairs))
    rows = json.loads((run / "detections.json").read_text())
    (tmp_path / "theirs.json").write_text(json.dumps([*rows, *(row | {"category_id": 99} for row in rows)]))
    own, theirs = FinishedRun.load_all([run, tmp_path / "theirs.json"]).values()
    assert len(own.detections) == len(theirs.detections) > 0


def listed(run: FinishedRun, out: Path, categories: dict[int, str], frames: int) -> Path:
    """The run's detections with images.json of its first frames, whose categories they have in turns."""
    chosen, table = run.frames[:frames], run.detections
    table = table.rows(table.image_index < frames)
    table = replace(table, labels=np.arange(len(table)) % len(categories) + 1, classes=tuple(categories.values()))
    write_coco_results(out / "detections.json", table, category_ids=[*categories])
    names, sizes = [f"{frame.name}.jpg" for frame in chosen], [frame.annotations.size for frame in chosen]
    write_images(out / "images.json", range(frames), names, sizes, categories)
    return out / "detections.json"


def test_what_looked_at_some_test_images_is_refused(visible: Path, data: Path, tmp_path: Path) -> None:
    run = FinishedRun.load(visible)
    every = listed(run, tmp_path / "every", {1: "person"}, len(run.frames))
    half = listed(run, tmp_path / "half", {1: "person"}, len(run.frames) // 2)
    assert [len(of.detections) for of in FinishedRun.load_all([visible, every]).values()] == [len(run.detections)] * 2
    with pytest.warns(Doubt, match="were not looked at"), pytest.raises(DataError, match="not of the same images"):
        FinishedRun.load_all([visible, every, half])
    with pytest.warns(Doubt, match="were not looked at"):
        found = FinishedRun.load_all([visible, half], annotations=data)
    assert {len(of.frames) for of in found.values()} == {len(run.frames) // 2}


def test_runs_scored_for_other_labels_are_not_compared(visible: Path, data: Path, tmp_path: Path) -> None:
    people = run_of(tmp_path / "people", 2, 0.5, f"data.root={data}")
    groups = run_of(tmp_path / "groups", 2, 0.5, f"data.root={data}", "data.classes={group: [people]}")
    assert len(FinishedRun.load_all([visible, people])) == 2
    with pytest.raises(DataError, match="boxes and labels"):
        FinishedRun.load_all([visible, groups])


def test_a_file_of_several_classes_shows_the_one_that_is_asked_for(data: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, 0, 0.5, f"data.root={data}", "data.classes={human: [person], group: [people]}")
    loaded = FinishedRun.load(run)
    theirs = listed(loaded, tmp_path / "theirs", {3: "lorry", 7: "group", 9: "person"}, len(loaded.frames))
    rows = json.loads(theirs.read_text())
    for of_class, category in (("group", 7), ("human", 9)):
        found = FinishedRun.load_all([run, theirs], of_class=of_class)[theirs].detections
        wanted = [row["score"] for row in rows if row["category_id"] == category]
        assert sorted(found.scores.tolist()) == sorted(wanted) and wanted


def test_a_text_of_others_does_not_fit_a_run_that_skipped_a_frame(few_pairs: Path, tmp_path: Path) -> None:
    """Image numbers of a text are places, which the run's frames have no longer."""
    root = shutil.copytree(few_pairs, tmp_path / "pairs")
    keys = splits(root, train="val.json", test="train.json")
    run = run_of(tmp_path / "whole", 0, 1.0, *keys)
    text = shutil.copy(run / "detections_kaist.txt", tmp_path / "theirs.txt")
    assert len(FinishedRun.load_all([run, text])) == 2
    (root / "visible" / "1.png").unlink()
    run = run_of(tmp_path / "gap", 0, 1.0, *keys, "data.on_bad_frame=skip")
    assert [frame.place for frame in FinishedRun.load(run).frames] == [0, 2, 3]
    text.write_text("1,20,20,27,64,0.9\n")
    with pytest.raises(DataError, match="some were left out"):
        FinishedRun.load_all([run, text])


@pytest.mark.filterwarnings("error::data_kaist.errors.Doubt")
def test_names_with_a_dot_lead_to_their_images(few_pairs: Path, tmp_path: Path) -> None:
    content = json.loads((few_pairs / "val.json").read_text())
    for entry in content["images"]:
        name = f"frame.000{entry['id']}.png"
        for side in ("visible", "lwir"):
            (tmp_path / side).mkdir(exist_ok=True)
            shutil.copy(few_pairs / side / f"{entry['id']}.png", tmp_path / side / name)
        entry["file_name"] = f"visible/{name}"
    (tmp_path / "val.json").write_text(json.dumps(content))
    frames = _with_images(load_ground_truth(tmp_path / "val.json"), tmp_path)
    names = [f"frame.000{i}.png" for i in (4, 5)]
    assert [frame.visible for frame in frames] == [tmp_path / "visible" / name for name in names]
    assert [frame.lwir for frame in frames] == [tmp_path / "lwir" / name for name in names]


def test_files_look_as_runs_do(visible: Path, halfway: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ("--annotations", FinishedRun.load(visible).frames[0].visible.parents[4])  # type: ignore[union-attr]
    files = []
    for run in (visible, halfway):
        files.append(tmp_path / f"{run.name}.txt")
        shutil.copy(run / "detections_kaist.txt", files[-1])
    pages = []
    for a, b, name in ((visible, halfway, "runs"), (*files, "files"), (visible, files[1], "mixed")):
        done = visualize("compare", a, b, "--out", tmp_path / name, "--count", "2", *data)
        assert done.returncode == 0, done.stderr
        pages.append([int(number) for number in re.findall(r"(?:misses|alone): (\d+)", done.stdout)])
    assert pages[0] == pages[1] == pages[2] and len(pages[0]) == 4 and sum(pages[0]) > 2  # of all, not of the pictures
    monkeypatch.chdir(tmp_path)
    done = visualize("errors", files[0], "--count", "5", *data)
    page = Path(f"errors_{str(files[0])[1:-4].replace('/', '_')}", "index.html")  # not that of a namesake
    assert done.returncode == 0 and page.is_file(), done.stderr


@pytest.mark.usefixtures("print_size")
def test_curves_have_subsets_a_size_an_order_and_names(visible: Path, halfway: Path, tmp_path: Path) -> None:
    out = tmp_path / "curves.png"
    words = (halfway, visible, "--names", "second", "first", "--order", "given", "--subsets", "near", "all_h20")
    done = visualize("curves", *words, "--size", "5", "3", "--out", out)
    assert done.returncode == 0, done.stderr
    assert drawing.cv2.imread(str(out)).shape == (360, 600, 3)
    assert "MR near" in done.stdout and "MR night" not in done.stdout
    assert [w for line in done.stdout.splitlines() for w in ("second", "first") if w in line] == ["second", "first"]
    of_b, of_a = (write_curves([run], out) for run in (visible, halfway))
    scores = {"b": of_b["visible0/seed0"], "a": of_a["halfway0/seed1"]}
    for best_first in (False, True):
        legend = miss_rate_figure(scores, size=(4, 4), best_first=best_first).axes[0].get_legend().get_texts()
        order = [text.get_text()[-1] for text in legend]
        rates = [scores[name].miss_rates["matlab"]["reasonable_all"].mr for name in order]
        assert order == ["b", "a"] if not best_first else rates == sorted(rates)
    assert visualize("curves", visible, "--names", "a", "b", "--out", out).returncode == 1


def test_a_thumbnail_is_around_its_object_and_inside_the_picture() -> None:
    box = np.array([[100.0, 100, 140, 200]])
    assert window(box, (512, 640)) == (10, 40, 230, 260)
    assert window(np.array([[0.0, 0, 10, 20]]), (512, 640)) == (0, 0, 72, 72)  # small ones with some context
    assert window(np.array([[600.0, 400, 640, 512]]), (512, 640)) == (394, 266, 640, 512)
    assert window(np.array([[0.0, 0, 90, 96]]), (96, 128)) == (0, 0, 128, 96)  # not more than there is
    picture = np.zeros((512, 640, 3), np.uint8)
    marked = [Marking("missed", box, ["missed"]), Marking("truth", box + 400, [""])]
    small = cropped([picture, picture[:, :, 0]], marked, window(box, (512, 640)), 110)
    missed, truth = ((small == colour).all(2) for colour in ((230, 159, 0), (0, 158, 115)))
    assert small.shape == (110, 224, 3) and missed.any() and not truth.any()
    drawn = whole([picture, picture], marked, 0.5)
    (x, y, w, h), (x2, *_) = rings(box[0], (512, 640), 2, 0.5)
    assert drawn.shape == (256, 644, 3)
    assert np.allclose([x * 644, y * 256, w * 644, h * 256], [50, 50, 20, 50], atol=0.1) and abs(x2 * 644 - 374) < 0.1


def test_rare_kinds_stay_whole() -> None:
    items = [Item(GalleryEntry(kind, ""), i, np.zeros((1, 4))) for i, kind in enumerate("aaaaabbc")]
    kept = [(item.entry.kind, item.place) for item in fewest(items, 5)]
    assert kept == list(zip("aabbc", (0, 1, 5, 6, 7), strict=True))
    assert fewest(items, 99) == items
    assert below(0.499) == "0.49" and below(0.5) == "0.50"


def test_what_is_on_a_frame_is_told_in_words_too(visible: Path) -> None:
    run = FinishedRun.load(visible)
    errors = Errors(run.truth, run.detections, min_score=0.0)
    marked = [m for place in range(len(run.frames)) for m in markings(errors, place)]
    texts = [text for m in marked if m.kind == "false_alarm" for text in m.texts]
    words = {"background": Kind.BACKGROUND, "duplicate": Kind.DUPLICATE, "badly placed": Kind.MISPLACED}
    for word, kind in words.items():
        assert sum(word in text for text in texts) == errors.kinds[kind].sum() > 0
    assert sum(len(m.boxes_xyxy) for m in marked if m.kind == "missed") == errors.missed.sum() > 0
    assert sum(len(m.boxes_xyxy) for m in marked) == len(run.detections) + len(run.truth.box_image)


def test_another_class_is_no_ignore_region_and_a_true_box_is_called_by_its_class(visible: Path, tmp_path: Path) -> None:
    classes = Classes({"person": ("person",), "car": ("car",)})
    boxes = Annotations.from_rows([(10, 20, 50, 100), (70, 20, 120, 100)], ["person", "car"], size=(512, 640))
    frames = [replace(FinishedRun.load(visible).frames[0], annotations=boxes)]
    run = FinishedRun("mine", "visible", frames, DetectionTable.empty(), classes, "car")
    marked = {m.kind: m.boxes_xyxy.tolist() for m in markings(Errors(run.truth, run.detections, "none"), 0)}
    assert marked["another"] == [[10, 20, 50, 100]] and not marked["ignored"]
    write_errors(run, tmp_path, subset="none")
    words = re.findall("</i>([^<]*)<", (tmp_path / "index.html").read_text(encoding="utf-8"))
    assert {"car", "car, missed", "another class"} < {*words} and "person" not in words
    add_legend(figure := Figure(), ["truth", "missed"], "car")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["car", "car, missed"]


def test_the_errors_of_a_run(visible: Path, tmp_path: Path) -> None:
    done = visualize("errors", visible, "--out", tmp_path, "--fppi", "0.5")
    run = FinishedRun.load(visible)
    errors = Errors(run.truth, run.detections, fppi=0.5)
    numbers = {kind: len(errors.at_point(kind)) for kind in Kind}
    assert sum(numbers.values()) > 5 and f"{sum(numbers.values())} pictures" in done.stdout and done.returncode == 0
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    for kind, number in numbers.items():
        assert text.count(f'data-kind="{kind}"') == number
    assert f"{errors.fppi:.3f} false alarms per image" in html.unescape(text)
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:)?//", text) and "@import" not in text
    assert f"{100 * errors.miss_rate_if_put_right():.1f} %" in text


def test_pictures_are_files_beside_the_page(visible: Path, tmp_path: Path) -> None:
    page = write_errors(FinishedRun.load(visible), tmp_path / "all")
    for entry in page.entries:
        for address in (entry.thumbnail, *(large.address for large in entry.larger)):
            assert (tmp_path / "all" / address).stat().st_size > 500
    few = write_errors(FinishedRun.load(visible), tmp_path / "few", count=4)
    assert len(few.entries) == 4 and any("4 of" in line for line in few.lead)


def test_a_frame_that_cannot_be_read_says_so(visible: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: FinishedRun, place: int) -> list[np.ndarray]:
        raise ImageError(f"frame {place} is truncated")

    monkeypatch.setattr(album.FinishedRun, "images", broken)
    page = write_errors(FinishedRun.load(visible), tmp_path)
    assert page.entries and all("is truncated" in entry.caption and not entry.thumbnail for entry in page.entries)


def test_two_runs_of_different_modality(visible: Path, halfway: Path, tmp_path: Path) -> None:
    done = visualize("compare", visible, halfway, "--out", tmp_path, "--fppi", "0.3")
    assert done.returncode == 0 and "A finds, B misses:" in done.stdout
    a, b = (FinishedRun.load(path) for path in (visible, halfway))
    page = write_comparison(a, b, tmp_path, fppi=0.3)
    mine, other = (Errors(run.truth, run.detections, fppi=0.3) for run in (a, b))
    counts = {kind: sum(entry.kind == kind for entry in page.entries) for kind in KINDS}
    assert counts["only_a"] == (mine.counted & mine.found & ~other.found).sum()
    assert counts["only_b"] == (mine.counted & ~mine.found & other.found).sum() > 0
    assert {len(shown.rings) for shown in page.entries[0].larger} == {1, 2}  # one image for A, two for B
    assert f"{mine.fppi:.3f} of A, {other.fppi:.3f} of B" in page.charts[0].note
    row = page.charts[0].rows[0]
    assert sum(int(cell.words) for cell in row if isinstance(cell, Bar)) == int(str(row[1])) == mine.counted.sum()


def refused(*arguments: object) -> str:
    """The sentence, which ends with exit code 1."""
    done = visualize(*arguments)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    return done.stderr


def test_what_cannot_be_compared(visible: Path, few_pairs: Path, tmp_path: Path) -> None:
    other = run_of(tmp_path, 3, 0.5, *splits(few_pairs))
    for line in (("compare", visible, other, "--out", tmp_path / "out"), ("curves", visible, other)):
        assert "not tested on the same frames" in refused(*line)
    assert not (tmp_path / "out").exists()
    for name in ("errors", "curves"):
        assert "split test-day-20: takes frames of a root" in refused(name, visible, "--split", "test-day-20")
    best = other / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    best.touch()
    (other / "results.json").write_text('{"checkpoint": "last.ckpt"}')
    assert "those of last.ckpt, not of this checkpoint" in refused("errors", best)
    (other / "results.json").write_text('{"checkpoint": "best.ckpt"}')
    assert visualize("errors", best).returncode == 0 and (other / "errors" / "index.html").is_file()
    (other / "detections.json").unlink()
    assert "the run is not finished" in refused("errors", other)
    assert "nowhere: there is no such run" in refused("errors", tmp_path / "nowhere")


@pytest.mark.parametrize("wrong", ["--fppi=0", "--fppi=nan", "--fppi=inf", "--count=-3", "--count=x", "--score=2"])
def test_options_that_mean_nothing(visible: Path, wrong: str) -> None:
    done = visualize("errors", visible, wrong)
    assert done.returncode == 2 and wrong.partition("=")[0] in done.stderr


def test_curves_of_runs_and_files(visible: Path, halfway: Path, data: Path, tmp_path: Path) -> None:
    files = (visible / "detections.json", halfway, "--annotations", data)
    shown = [
        visualize("curves", visible, halfway / "detections_kaist.txt", "--out", tmp_path / "one.png"),
        visualize("curves", *files, "--out", tmp_path / "two.svg"),
    ]
    numbers = [re.findall(r"\d+\.\d\d", done.stdout) for done in shown]
    assert numbers[0] == numbers[1] and len(numbers[0]) >= 8  # a run is its file
    assert (tmp_path / "one.png").stat().st_size > 10_000 and "<svg" in (tmp_path / "two.svg").read_text()
    (tmp_path / "few.txt").write_text("")
    done = visualize("curves", tmp_path / "few.txt", *files[2:], "--out", tmp_path / "few.png")
    assert "few.txt: only 0 of the" in done.stderr
    assert "--annotations" in refused("curves", halfway / "detections_kaist.txt", "--out", tmp_path / "three.png")
    for name in ("curves", "calibration"):
        done = visualize(name, visible, "--out", tmp_path / "three.xyz")
        assert done.returncode == 2 and "three.xyz" in done.stderr


ODD = "<script>alert(1)</script> & \"quoted\" \\ 'x' </script>"


def made_page(entries: int) -> GalleryPage:
    """Entries whose values are known: the score is the place, the height falls, day and night in turns."""
    shown = [
        GalleryEntry(
            "odd" if i % 10 == 0 else "missed",
            f"{ODD} {i:05d}",
            ODD,
            jpeg_address(np.zeros((208, 208, 3), np.uint8)),
            208,
            208,
            [] if i % 7 == 3 else [Large(f"pictures/{i}.jpg", "A", [(0.1, 0.2, 0.3, 0.4)])],
            daytime="night" if i % 2 else "day",
            height=float(entries - i),
            score=i / entries,
        )
        for i in range(entries)
    ]
    kinds = {"missed": "missed", "odd": ODD, "none": "of which there are none"}
    chart = Chart(ODD, (ODD, "number", "share"), [(ODD, "3", Bar("50 %", 0.5)), (ODD, "–", Bar("-1", 0.1, minus=True))])
    return GalleryPage(ODD, [ODD], shown, kinds, [chart])


def test_names_stand_for_themselves() -> None:
    text = render(made_page(3))
    assert "<script>alert" not in text and "alert(1)&lt;/script&gt;" in text
    blocks = re.findall(r"<script[^>]*>.*?</script>", text, re.DOTALL)
    large = json.loads(re.sub(r"</?script[^>]*>", "", blocks[0]))
    assert len(blocks) == 2 and large == [[[f"pictures/{i}.jpg", "A", [[0.1, 0.2, 0.3, 0.4]]]] for i in range(3)]


CHECK = """<script>addEventListener("load", () => {
  document.querySelector("[name=daytime]").value = "night";
  document.querySelector("[name=order]").value = "-score";
  for (const name of ["daytime", "order"])
    document.querySelector(`[name=${name}]`).dispatchEvent(new Event("input", {bubbles: true}));
  document.querySelector(".card:not([hidden]) button").click();
});</script></body>"""


@pytest.mark.skipif(not CHROMIUM, reason="no chromium here to open the page in")
def test_in_a_browser(tmp_path: Path) -> None:
    """Filtered by night, sorted by score, the first one enlarged."""
    write_page(tmp_path / "page.html", made_page(100))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(text.replace("</body>", CHECK), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")
    line = [CHROMIUM, *options, (tmp_path / "page.html").as_uri()]
    seen = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "50 of 100 pictures" in seen and html.escape(f"1 of 50: missed; {ODD}; {ODD} 00099", quote=False) in seen
    assert re.findall(r'data-i="(\d+)"', seen)[:2] == ["99", "98"] and seen.count('class="ring"') == 1
    assert seen.count("hidden=") == 50 and 'src="pictures/99.jpg"' in seen


def test_a_name_that_a_picture_cannot_show_is_said_once() -> None:
    drawing._say_what_is_not_drawn.cache_clear()
    blank = np.zeros((40, 200, 3), np.uint8)
    with pytest.warns(Doubt, match="other letters show as") as caught:
        for name in ("\u591c", "plain", "\u663c"):
            with_caption(blank, name)
    assert len(caught) == 1
