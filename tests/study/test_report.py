"""The report on a small study whose detections are made up: numbers, words, gaps, and the page in a browser."""

import csv
import html
import io
import json
import math
import re
import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from commands import command
from untrained import SIX_LEVELS, splits

from data_kaist.detections import write_coco_results, write_kaist
from data_kaist.errors import DataError, Doubt
from data_kaist.layouts import Frame, image_ids
from data_kaist.structures import Annotations, DetectionTable
from data_kaist.synthetic import write_dataset
from ssd_effnet.build import build_dataset, build_skeleton
from ssd_effnet.config.loading import ConfigError, ExperimentConfig, load_experiment, save_experiment
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.scores import score, write_results
from ssd_effnet.evaluation.subsets import SUBSETS
from ssd_effnet.study import latency as latency_module
from ssd_effnet.study import report
from ssd_effnet.study.disagreement import Side, most_disputed
from ssd_effnet.study.figures import ParetoPoint, forest, front, learning_curves, pareto
from ssd_effnet.study.latency import latency
from ssd_effnet.study.plan import check, plan, remember, runs_of
from ssd_effnet.study.records import Study, load_study
from ssd_effnet.training.callbacks import MetricsCsv
from ssd_effnet.training.run_directory import RunDirectory, RunError, describe_environment
from ssd_effnet.visualize.gallery.curves import write_curves
from ssd_effnet.visualize.gallery.finished_run import FinishedRun

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
SMALL = (*SIX_LEVELS, "backbone.name=efficientnet-b0", "backbone.levels=[0,1,2]", "trainer.epochs=3")
ODD = '_odd <i>&"|$x$'  # a name that HTML, Markdown, a legend and mathematics could each take for their own
WIDEN = "02_widen_3x3"


def detections(truth: Sequence[Annotations], share: float, seed: int) -> DetectionTable:
    """A share of the boxes, surely, and a false alarm on every third image that is less sure."""
    random = np.random.default_rng(seed)
    rows = []
    for i, annotations in enumerate(truth):
        rows += [(i, box, 0.6 + 0.4 * random.random()) for box in annotations.boxes_xyxy if random.random() < share]
        if i % 3 == 0:
            rows.append((i, np.array([200.0, 10, 220, 60]), 0.5 * random.random()))
    boxes = np.array([row[1] for row in rows], np.float64).reshape(-1, 4)
    return DetectionTable(np.array([row[0] for row in rows], np.int64), boxes, np.array([row[2] for row in rows]))


def finish(e: ExperimentConfig, out: Path, share: float, *, best: int = 3) -> None:
    """Write down a run as ``ssd_effnet.training.run`` does, with detections that are made up."""
    directory = RunDirectory.of(e, out)
    datasets = {stage: build_dataset(e, stage) for stage in ("train", "val", "test") if getattr(e.data, stage)}
    frames = datasets["test"].frames
    truth = [frame.annotations for frame in frames]
    table = detections(truth, share, e.trainer.seed)
    save_experiment(e, directory.config_file)
    directory.remember(describe_environment(datasets, build_skeleton(e)), resumed=False)
    write_coco_results(directory.detections_file, table, image_ids=image_ids(frames))
    results = {"experiment": e.name, "seed": e.trainer.seed, "epoch": best, "epochs": 3, "minutes": 30.0}
    results["checkpoint"] = "best.ckpt" if "val" in datasets else "last.ckpt"
    if "val" in datasets:
        results["val"] = {"monitor": "val/MR/reasonable_all", "best": 40.0}
    counted = {"split": e.data.test, "annotations": "kaist/annotations-xml", "images": len(frames)}
    results["test"] = counted | score(MissRateEvaluator(truth), table).as_dict()
    write_results(directory.results_file, results)
    metrics = MetricsCsv(directory.metrics_file)
    seen = {"val/MR/reasonable_all": [90.0, math.nan, 40.0]} if "val" in datasets else {}
    metrics.rows = [{"epoch": float(k)} | {key: values[k] for key, values in seen.items()} for k in range(3)]
    for k, row in enumerate(metrics.rows):
        row |= {"fusion/td0/in0": 0.25 * k, "fusion/td0/td1": -0.1 * k} if e.neck.fusion == "fast" else {}
    metrics._write()


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory, few_pairs: Path) -> Path:
    """02 and a better one of an odd name with three seeds; one like 02, a worse one and photographs with one seed."""
    root, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("studies") / "a <b> study"
    write_dataset(root, 40, (512, 640), 0)
    odd = out.parent / f"{ODD}.yaml"
    odd.write_text(
        f"base: {EXPERIMENTS / '02_widen_3x3.yaml'}\nchanges: [adapter.kind]\nadapter: {{kind: conv1x1}}\n"
        "description: 'Is <script>alert(1)</script> & \"this\" a | question? $\\alpha$'\n"
    )
    names = ("04_fpn", "05_deconv", "06_weighted_fusion", "07_repeated_fpn")
    files = [EXPERIMENTS / f"{WIDEN}.yaml", odd, *(EXPERIMENTS / f"{name}.yaml" for name in names)]
    settings, longer = [*SMALL, f"data.root={root}"], "_odd*:trainer.epochs=4"
    shares = {WIDEN: 0.4, ODD: 1.0, "04_fpn": 0.5, "05_deconv": 0.0, "06_weighted_fusion": 0.9}
    jobs = [*plan(files[:2], [0, 1, 9], [*settings, longer], out), *plan(files[2:], [0], settings, out)]
    for job in jobs:
        e = job.experiment
        if (e.trainer.seed == 0 and e.name in shares) or e.name in (WIDEN, ODD):
            finish(e, out, shares[e.name], best=2 if e.name == ODD else 3)
        elif e.name == "07_repeated_fpn" and e.trainer.seed == 0:
            save_experiment(e, job.directory.config_file)
            job.directory.fail('the loss is <nothing> & "nobody"')
    finish(load_experiment("lite0", [*SMALL, *splits(few_pairs)]), out, 1.0)  # photographs
    remember([*jobs, *plan([EXPERIMENTS / "lite0.yaml"], [0], [], out)], out, "a command")
    return out


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency_module, "ROUNDS", 1)
        yield


@pytest.fixture(scope="module")
def study(studied: Path) -> Study:
    return load_study(studied)


@pytest.fixture(scope="module")
def published(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first run's detections, as a file of somebody else's."""
    file = tmp_path_factory.mktemp("published") / "Their_own 100%.txt"
    write_kaist(file, study.runs[0].detections)
    return file


@pytest.fixture(scope="module")
def written(studied: Path, published: Path) -> Path:
    return report.write(studied, published=[published])


def words(page: Path) -> str:
    """The page without the pictures in it."""
    return re.sub(r"data:image/[^\"]*", "PICTURE", page.read_text(encoding="utf-8"))


def card(page: Path, name: str) -> str:
    """What is said of an experiment in the chain, as a reader sees it."""
    cards = re.findall(r"<article.*?</article>", words(page), re.DOTALL)
    (of_it,) = [text for text in cards if f"<h3>{html.escape(name, quote=False)}</h3>" in text.replace("&#34;", '"')]
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", of_it).split()))


def test_the_numbers_are_the_evaluators(written: Path, study: Study) -> None:
    rows = list(csv.DictReader(io.StringIO((written.parent / "results.csv").read_text(encoding="utf-8"))))
    assert [(r["experiment"], r["seed"]) for r in rows] == [(r.experiment.name, str(r.seed)) for r in study.runs]
    assert len(rows) == 10 and set(rows[0]) >= {f"MR_{subset}" for subset in SUBSETS}
    for row, run in zip(rows, study.runs, strict=True):
        truth = [frame.annotations for frame in study.frames[run.environment["data"]["test"]["fingerprint"]]]
        scores = score(MissRateEvaluator(truth), run.detections, ["matlab"])
        for subset, result in scores.miss_rates["matlab"].items():
            cell = row[f"MR_{subset}"]
            assert (cell == "") if math.isnan(result.mr) else float(cell) == pytest.approx(100 * result.mr, abs=1e-4)
        assert float(row["AP50"]) == pytest.approx(scores.ap["AP50"], abs=1e-4)
    of_odd, photographs = next(r for r in rows if r["experiment"] == ODD), rows[-1]
    assert of_odd["parent"] == WIDEN and of_odd["epoch"] == "2"
    assert photographs["MR_reasonable_day"] == "" and photographs["parent"] == "" and photographs["epoch"] == "3"


def test_the_table_to_paste(written: Path, study: Study) -> None:
    lines = (written.parent / "results.md").read_text(encoding="utf-8").splitlines()
    table = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    assert len(table) == 2 + 7 and {len(row) for row in table} == {len(table[0])}  # also where a name holds a |
    cells = {row[0].strip(): [cell.strip() for cell in row] for row in table[2:]}
    widen = study.experiment(WIDEN)
    assert widen is not None
    with (written.parent / "results.csv").open(newline="", encoding="utf-8") as file:
        of_seeds = [float(r["MR_reasonable_all"]) for r in csv.DictReader(file) if r["experiment"] == WIDEN]
    assert len(of_seeds) == 3
    mr, deviation = statistics.mean(of_seeds), statistics.stdev(of_seeds)
    interval = widen.estimate("MR/reasonable_all")
    assert cells[WIDEN][3] == f"{mr:.2f} ± {deviation:.2f} ({interval.low:.2f} to {interval.high:.2f})"
    odd = cells['\\_odd &lt;i&gt;&amp;"\\|$x$']
    assert odd[1:3] == [WIDEN, "adapter.kind: conv3x3 → conv1x1; also trainer.epochs: 3 → 4"]
    # with so few people verdicts are of AP; five differences are planned, and each counts
    assert study.metric == "AP" and study.planned == 5
    (difference,) = [d for d in study.differences if d.experiment.name == ODD]
    assert difference.adjusted == pytest.approx(min(1, 5 * difference.comparison.p))
    assert odd[7:9] == ["better", f"{difference.adjusted:.3f}"] and odd[6].startswith("+")
    assert odd[-3:] == ["4", "0.0001", "3"]
    for one_seed in ("04_fpn", "05_deconv"):
        assert cells[one_seed][7].startswith("cannot tell (too few seeds") and "(" not in cells[one_seed][6]
        assert cells[one_seed][8] == "–"  # nothing was tested
    assert cells["lite0"][4:9] == ["–", "–", "–", "–", "–"]
    assert "5.0 hours in all" in lines[-3] + lines[-4] + lines[-2] and "nan" not in "\n".join(lines).lower()
    assert any("fingerprint" in line and "test-all-20 in kaist/annotations-xml, 12 images" in line for line in lines)


def test_the_chain_says_what_changed_and_how_sure_that_is(written: Path) -> None:
    odd = card(written, ODD)
    assert 'Is <script>alert(1)</script> & "this" a | question?' in odd
    assert "▲ better than 02_widen_3x3 : AP +" in odd and "Doubt" not in odd
    assert "variance from seeds, from images" in odd
    assert "What the experiment changes key parent here adapter.kind conv3x3 conv1x1" in odd
    assert "What differs besides, unlisted key parent here trainer.epochs 3 4" in odd and "epochs 3 4 ×1.33" in odd
    assert "Seed 0: best at epoch 2 of 3 (val/MR/reasonable_all 40.00)" in odd
    fpn = card(written, "04_fpn")
    assert "? cannot tell it from 02_widen_3x3" in fpn and "Doubt: too few seeds" in fpn
    worse = card(written, "05_deconv")
    assert "? cannot tell it from 04_fpn" in worse and "100.00" in worse and "(100.00 to" not in worse  # of one seed
    assert "has finished runs" in card(written, WIDEN)


def test_only_direct_steps_stand_in_the_table_of_steps() -> None:
    """Without runs of its parent an experiment is compared with a farther one: that is no single step."""

    def step(name: str, parent: str, *ancestors: str) -> SimpleNamespace:
        named = SimpleNamespace(name=name, ancestors=list(ancestors))
        return SimpleNamespace(experiment=named, parent=SimpleNamespace(name=parent))

    near, far = step("c_without_b", "c", "c", "b"), step("c_without_a", "b", "c", "b")
    for added, kept in ((step("b", "a", "a"), True), (step("b", "0", "a", "0"), False)):
        study = cast(Study, SimpleNamespace(differences=[near, far, added]))
        assert report.taken_away(study) == [("b", added if kept else None, near)]


def test_experiments_of_other_labels_are_not_compared(studied: Path, tmp_path: Path) -> None:
    copy = copied(studied, tmp_path, "0[567]*", "lite0", "seed[19]")
    directory = RunDirectory(copy / ODD / "seed0")
    e = directory.experiment()
    e.data.classes = {"person": ["person", "car"]}
    save_experiment(e, directory.config_file)
    study = load_study(copy)
    assert study.experiment(ODD) is not None
    assert [(d.experiment.name, d.parent.name) for d in study.differences] == [("04_fpn", WIDEN)]


def test_a_plan_is_called_one(written: Path, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fixed before the training" in words(written)
    for drawing in ("curve_drawings", "pareto_drawings", "fusion_weights"):
        monkeypatch.setattr(report, drawing, lambda *_: {})
    monkeypatch.setattr(report, "figures", SimpleNamespace(forest=lambda _: "", learning_curves=lambda _: ""))
    unplanned = replace(study, out=tmp_path, experiments=study.experiments[:2])  # every run knows its parents
    page = report.page(unplanned, [report.ReportEntry(unplanned, e) for e in unplanned.experiments], report.Latency({}))
    assert len(unplanned.differences) == 1 and "No parents" not in page and "fixed before" not in page


def test_what_keeps_the_runs_apart_and_what_is_not_finished_stands_at_the_head(written: Path, study: Study) -> None:
    head = html.unescape(words(written).partition("<main>")[0])
    assert study.warnings and all(warning in head for warning in study.warnings)
    assert any("same test data" in warning for warning in study.warnings)
    assert "07_repeated_fpn seed0" in head and 'the loss is <nothing> & "nobody"' in head
    assert "<nothing>" not in words(written) and "12 images" in head and "5.0 hours in all" in head


def test_nothing_is_fetched_and_nothing_is_taken_for_markup(written: Path, study: Study) -> None:
    assert "Oblique" not in forest(study.differences)  # $x$ is no mathematics
    text = words(written)
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:)?//", text) and "@import" not in text
    assert "<script>alert" not in text and "<i>&" not in text and text.count("<script>") == 1
    assert "a &lt;b&gt; study" in text and "PICTURE" in text
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    assert "td0" in text and "0.50" in text and 'class="bar minus"' in text  # fusion weights after epoch 3
    assert len(written.read_bytes()) < 5e6


def test_pictures_are_of_the_people_about_whom_they_part(written: Path, study: Study) -> None:
    (difference,) = [d for d in study.differences if d.experiment.name == ODD]
    here, there = Side(difference.experiment.runs[0]), Side(difference.parent.runs[0])
    only = int((here.found & ~there.found & here.counted).sum())
    assert only > 0 and not (there.found & ~here.found).any()
    said = html.unescape(words(written))
    assert f"{ODD} seed 0 alone finds {only}, 02_widen_3x3 seed 0 alone 0" in said
    assert said.count("sees it: finds") >= 2 and 'loading="lazy"' in said
    assert "They find the same people." not in said.partition(f"{ODD} and {WIDEN}")[2].partition("<h3>")[0]


def test_most_disputed() -> None:
    image = np.array([0, 1, 1, 2, 3])
    here, there = np.array([1, 1, 1, 0, 0], bool), np.array([0, 0, 0, 1, 1], bool)
    assert most_disputed(image, here, there) == [1, 2, 0, 3]
    assert most_disputed(image, here, there, count=1) == [1]
    assert most_disputed(image, np.zeros(5, bool), np.zeros(5, bool)) == []


def test_the_front_holds_what_nothing_beats() -> None:
    a, b, c, d = (ParetoPoint(x, y, math.nan, math.nan) for x, y in ((1, 50), (2, 40), (2, 60), (3, 40)))
    assert front([d, c, b, a]) == [a, b]
    assert pareto({"a": ParetoPoint(1, math.nan, math.nan, math.nan)}, "ms", {"a": 0}) == ""
    assert "<svg" in pareto({"a": a}, "ms", {"a": 0})


def copied(studied: Path, to: Path, *without: str) -> Path:
    """The study without its report and some of its experiments."""
    return Path(shutil.copytree(studied, to / "study", ignore=shutil.ignore_patterns("report", *without)))


def test_a_study_is_not_scored_on_other_boxes_than_it_was_tested_on(studied: Path, tmp_path: Path) -> None:
    copy = copied(studied, tmp_path, "0[567]*", "_odd*")
    first, second = (copy / WIDEN / f"seed{seed}" for seed in (0, 1))
    for run in (first, second):
        content = json.loads((run / "environment.json").read_text())
        content["data"]["test"]["fingerprint"] = "0" * 64  # as if boxes had been mended since
        (run / "environment.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="its test data have changed"):
        FinishedRun.load(first)
    sentences = load_study(copy).left_out
    for run, sentence in zip((first, second), sentences, strict=True):
        assert sentence.startswith(f"{run}: its test data have changed") and "data.root=" in sentence
    (second / "results.json").write_text("{")
    named = [sentence.split(": ")[0] for sentence in load_study(copy).left_out]
    assert named == [str(second / "results.json"), str(first)]


def test_runs_of_one_data_set_keep_their_own_classes(few_pairs: Path, tmp_path: Path) -> None:
    root, known = Path(shutil.copytree(few_pairs, tmp_path / "data")), dict[str, Sequence[Frame]]()
    for file in (root / "train.json", root / "val.json"):
        document = json.loads(file.read_text())
        document["categories"].append({"id": 2, "name": "bicycle"})
        file.write_text(json.dumps(document))
    for name, others, label in (("one", "", 1), ("two", "bicycle: [bicycle], ", 2)):
        settings = [*SMALL, *splits(root), f"name={name}", f"data.classes={{{others}person: [person]}}"]
        finish(e := load_experiment("lite0", settings), tmp_path, 1.0)
        found = RunDirectory.of(e, tmp_path).tested(known=known)[2]
        assert len(found) and found.classes[label - 1] == "person"
        assert found.labels.tolist() == [label] * len(found)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its time and inode: what a write would change."""
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in [folder, *folder.rglob("*")]}


def test_looking_at_a_study_writes_nothing_into_it(studied: Path, tmp_path: Path) -> None:
    copy = copied(studied, tmp_path, ".lock", "0[2456]*", "_*")
    before = tree(copy)
    done = command("study", "status", copy)
    assert done.returncode == 0 and "failed" in done.stdout
    assert command("study", "report", copy, "--no-latency", "--out", tmp_path / "here").returncode == 0
    assert tree(copy) == before and (tmp_path / "here" / "index.html").is_file()
    (copy / "report").write_text("")  # as if the disk were read-only
    done = command("study", "report", copy, "--no-latency")
    assert done.returncode == 1 and "choose another --out" in done.stderr


def test_a_damaged_run_blocks_no_other(studied: Path, tmp_path: Path) -> None:
    out = copied(studied, tmp_path, "05*", "06*", "seed9")
    sound, root = out / "lite0" / "seed0", RunDirectory(out / WIDEN / "seed0").experiment().data.root
    damaged = {
        f"{out / WIDEN / 'seed0'}/environment.json: lacks `data": ("environment.json", '{"git": {}}'),
        f"{out / WIDEN / 'seed1'}/results.json: cannot be read": ("results.json", ""),
        f"{out / '04_fpn' / 'seed0'}/config.yaml: key `matcher.pull` is unknown": ("config.yaml", "matcher: {pull: 1}"),
        f"{out / ODD / 'seed0'}/results.json: lacks `minutes`": ("results.json", '{"experiment": "a", "seed": 0}'),
        f"{out / ODD / 'seed1'}/metrics.csv: cannot be read": ("metrics.csv", "epoch\nmany\n"),
    }
    for sentence, (file, text) in damaged.items():
        (Path(sentence.split(f"/{file}")[0]) / file).write_text(text)
    done = command("study", "status", out)
    said = " ".join(done.stdout.split())
    assert done.returncode == 0 and "lite0" in said and all(f"left out: {sentence}" in said for sentence in damaged)
    study = load_study(out)
    assert sound in [run.directory.path for run in study.runs]
    assert all(any(line.startswith(sentence) for line in study.left_out) for sentence in damaged)
    files = [EXPERIMENTS / f"{name}.yaml" for name in (WIDEN, "04_fpn")]
    jobs = plan(files, [0], [*SMALL, f"data.root={root}"], out)
    assert all(any(sentence in note for note in check(jobs)) for sentence in damaged)
    done = command("study", "run", *files, *SMALL, f"data.root={root}", "--out", out)  # nothing else is to do
    assert done.returncode == 1 and "0 runs: 0 finished, 0 to do" in done.stdout
    assert f"not finished: {WIDEN} seed 0: {next(iter(damaged))}" in done.stdout
    with pytest.warns(Doubt, match=r"left out: .*seed1/results\.json|left out: .*lacks `data"):
        scores = write_curves([out / WIDEN / "seed0", sound], tmp_path / "curves.png")
    assert len(scores) == 1


def test_data_are_found_from_elsewhere(synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the run was started, around the run, here, or where data.root says; the fingerprint decides."""
    started, away = tmp_path / "started", tmp_path / "away"
    (away / "twin").mkdir(parents=True)  # of the same name, and not the data
    started.mkdir()
    (started / "twin").symlink_to(synthetic)
    monkeypatch.chdir(started)
    e = load_experiment(EXPERIMENTS / "lite0.yaml", [*SMALL, "data.root=twin"])
    finish(e, Path("runs"), 1.0)
    directory = RunDirectory(started / "runs" / "lite0" / "seed0")
    assert directory.at_hand(e).data.root == "twin"
    monkeypatch.chdir(away)
    assert directory.at_hand(e).data.root == str(started / "twin")
    images = len(FinishedRun.load(directory.path).frames)
    (started / "runs").rename(away / "runs")
    (started / "twin").rename(tmp_path / "moved")
    directory = RunDirectory(away / "runs" / "lite0" / "seed0")
    with pytest.raises(DataError):
        FinishedRun.load(directory.path)
    said = ["data.root=../moved"]
    assert len(FinishedRun.load(directory.path, said).frames) == images
    assert load_study(Path("runs"), said).left_out == []
    other = tmp_path / "other"
    write_dataset(other, 30, (512, 640), 5)
    with pytest.raises(RunError, match="lite0/seed0: its test data have changed"):
        load_study(Path("runs"), [f"data.root={other}"])
    with pytest.raises(ConfigError, match=r"`optimizer\.lr` is settled in a finished run"):
        load_study(Path("runs"), ["optimizer.lr=1"])
    (away / "twin").rmdir()
    (tmp_path / "twin").symlink_to(synthetic)  # above the run, as in a tree that was moved
    assert directory.at_hand(e).data.root == str(tmp_path / "twin")


def test_seeds_of_one_experiment_are_alike_or_are_not_one(studied: Path, tmp_path: Path) -> None:
    copy = copied(studied, tmp_path, "0[4567]*", "_odd*")
    second = RunDirectory(copy / WIDEN / "seed1")
    e = second.experiment()
    e.optimizer.lr, e.trainer.threads = 0.01, 2  # threads are the machine's
    save_experiment(e, second.config_file)
    environment = json.loads(second.environment_file.read_text())
    environment["git"] = {"commit": "0" * 40, "dirty": False}
    second.environment_file.write_text(json.dumps(environment))
    warnings = load_study(copy).warnings
    assert f"the seeds of {WIDEN} do not have the same config: optimizer.lr" in warnings
    (code,) = [warning for warning in warnings if warning.startswith("not all runs have the same code")]
    assert code.endswith(f". 0000000: {WIDEN} seed 1")
    jobs = plan([EXPERIMENTS / f"{WIDEN}.yaml"], [5], [*SMALL, f"data.root={e.data.root}"], copy)
    with pytest.raises(RunError, match=rf"{WIDEN}/seed1: .* these differ: optimizer\.lr \(0\.01, now"):
        check(jobs)
    shutil.copytree(copy / "lite0" / "seed0", photographs := copy / WIDEN / "seed2")
    config = RunDirectory(photographs).experiment()
    config.name, config.trainer.seed = WIDEN, 2
    save_experiment(config, photographs / "config.yaml")
    results = json.loads((photographs / "results.json").read_text()) | {"experiment": WIDEN, "seed": 2}
    (photographs / "results.json").write_text(json.dumps(results))
    study = load_study(copy)
    assert study.left_out == [f"{photographs}: was tested on other data than other seeds"]
    assert seeds_of(study, WIDEN) == [0, 1, 9]
    for run, file in ((RunDirectory(copy / WIDEN / "seed0"), "best.ckpt"), (second, "last.ckpt")):
        e, environment = run.experiment(), json.loads(run.environment_file.read_text())
        e.init_from, e.backbone.pretrained = "runs/before", "w.pth"
        environment |= {key: {"file": file, "sha256": file} for key in ("init_from", "pretrained")}
        save_experiment(e, run.config_file)
        run.environment_file.write_text(json.dumps(environment))
    for given in ("runs/before", "w.pth"):
        sentence = f"not all runs that began from {given} found the same weights there (SHA-256)"
        assert sentence in load_study(copy).warnings


def seeds_of(study: Study, name: str) -> list[int]:
    return [run.seed for e in study.experiments if e.name == name for run in e.runs]


def write_weights(e: ExperimentConfig, file: Path) -> None:
    """A checkpoint that knows its experiment and next to no weights."""
    file.parent.mkdir(exist_ok=True)
    torch.save({"epoch": 2, "experiment": asdict(e), "state_dict": {"detector.weight": torch.zeros(1)}}, file)


def test_copied_and_renamed_runs_are_left_out_by_name(studied: Path, tmp_path: Path) -> None:
    """By folder, config, results and checkpoint, whichever disagrees; `run` refuses to take one for its own."""
    copy = copied(studied, tmp_path, "0[567]*", "_odd*", "lite0", "seed9")
    shutil.copytree(copy / WIDEN, copy / f"{WIDEN}_old")
    for seed in (2, 3, 4):
        shutil.copytree(copy / WIDEN / "seed0", copy / WIDEN / f"seed{seed}")
    (copy / "04_fpn").rename(copy / "04_renamed")
    third = RunDirectory(copy / WIDEN / "seed3")
    e = third.experiment()
    write_weights(e, RunDirectory(copy / WIDEN / "seed4").best)
    for seed in (3, 4):  # somebody made the config fit
        e.trainer.seed = seed
        save_experiment(e, copy / WIDEN / f"seed{seed}" / "config.yaml")
    (copy / WIDEN / "seed4" / "results.json").unlink()  # nothing but the checkpoint tells
    strangers = [*(f"{WIDEN}/seed{seed}" for seed in (2, 3, 4)), f"{WIDEN}_old/seed0", f"{WIDEN}_old/seed1"]
    named = [str(copy / name) for name in [*strangers, "04_renamed/seed0"]]
    study = load_study(copy)
    assert [sentence.split(": ")[0] for sentence in study.left_out] == named
    assert f"{copy / '04_renamed' / 'seed0'}: holds 04_fpn seed 0" in study.left_out[-1]
    assert seeds_of(study, WIDEN) == [0, 1] and study.experiment("04_fpn") is None
    found, left_out = runs_of(copy)
    assert left_out == study.left_out and len(found) == 2
    jobs = plan([EXPERIMENTS / f"{WIDEN}.yaml"], [5], [*SMALL, f"data.root={e.data.root}"], copy)
    assert {f"left out: {sentence}" for sentence in left_out} <= set(check(jobs))
    jobs = plan([EXPERIMENTS / f"{WIDEN}.yaml"], [2], [*SMALL, f"data.root={e.data.root}"], copy)
    assert any(f"{WIDEN}/seed2: holds {WIDEN} seed 0" in note for note in check(jobs))
    assert jobs[0].directory.damage()  # the command leaves it out and ends with 1


def test_a_config_that_was_edited_after_the_training_is_named_and_not_believed(studied: Path, tmp_path: Path) -> None:
    copy = copied(studied, tmp_path, "0[2567]*", "_odd*", "lite0")
    directory = RunDirectory(copy / "04_fpn" / "seed0")
    e = directory.experiment()
    write_weights(e, directory.best)
    assert load_study(copy).warnings == []
    rate = e.optimizer.lr
    e.optimizer.lr, e.data.workers = 0.5, 7  # where it runs is the config's
    save_experiment(e, directory.config_file)
    study = load_study(copy)
    (warning,) = [warning for warning in study.warnings if str(directory.config_file) in warning]
    assert warning.endswith(f": optimizer.lr ({rate}, now 0.5)")
    (run,) = study.experiment("04_fpn").runs  # type: ignore[union-attr]
    assert (run.experiment.optimizer.lr, run.experiment.data.workers) == (rate, 7)


def test_a_parent_with_a_name_of_its_own_and_a_runs_config_as_base(studied: Path, tmp_path: Path) -> None:
    copy = copied(studied, tmp_path, "0[4567]*", "_odd*", "lite0", "seed[19]")
    settings = [*SMALL, f"data.root={RunDirectory(copy / WIDEN / 'seed0').experiment().data.root}"]
    (tmp_path / "parent_file.yaml").write_text(f"base: {EXPERIMENTS / 'lite0.yaml'}\nname: called_otherwise\n")
    (tmp_path / "child.yaml").write_text("base: parent_file.yaml\n")
    (tmp_path / "on_a_run.yaml").write_text(f"base: study/{WIDEN}/seed0/config.yaml\n")
    (tmp_path / "on_that.yaml").write_text("base: on_a_run.yaml\n")
    files = [tmp_path / f"{name}.yaml" for name in ("parent_file", "child", "on_a_run", "on_that")]
    jobs = plan(files, [0], settings, copy)
    for job in jobs:
        if job.experiment.name != "on_a_run":
            finish(job.experiment, copy, 0.5)
    remember(jobs, copy, "a command")
    remember(plan([copy / "child" / "seed0" / "config.yaml"], [0], [], copy), copy, "the run once more")
    study = load_study(copy)
    parents = {difference.experiment.name: difference.parent.name for difference in study.differences}
    assert (parents["child"], parents["on_that"]) == ("called_otherwise", WIDEN)
    (lost,) = [e.ancestors for e in study.experiments if e.name == "on_that"]
    assert lost == ["on_a_run", WIDEN, *load_experiment(EXPERIMENTS / f"{WIDEN}.yaml").ancestors]
    (copy / "study.json").unlink()  # every run knows its own
    assert load_study(copy).differences[0].experiment.name in parents


def test_without_validation_there_is_no_learning_curve(written: Path, study: Study) -> None:
    photographs = study.experiment("lite0")
    assert photographs is not None
    assert learning_curves([photographs]) == "" and "<svg" in learning_curves(study.experiments)
    assert "Seed 0: epoch 3 of 3 is tested: the last one, nothing was chosen" in card(written, "lite0")


def test_latency_is_measured_once(written: Path, study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert latency(study.experiments, tmp_path / "absent.json", measure=False).ms == {}
    assert "Latency: median at" in words(written)

    def fail(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(latency_module, "_measure", fail)
    again = latency(study.experiments, written.parent / "latency.json")
    assert again.ms.keys() == {e.name for e in study.experiments} and all(ms > 0 for ms in again.ms.values())
    other = json.loads((written.parent / "latency.json").read_text())
    other["configs"]["lite0"]["input.size"] = [320, 320]
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert "lite0" not in latency(study.experiments, tmp_path / "other.json", measure=False).ms
    with pytest.raises(AssertionError, match="measured again"):
        latency(study.experiments, tmp_path / "other.json")
    monkeypatch.setattr(latency_module, "machine_line", lambda *_: "another machine")
    with pytest.raises(AssertionError, match="measured again"):
        latency(study.experiments, written.parent / "latency.json")


def test_the_table_for_a_paper(studied: Path, written: Path, study: Study, published: Path, tmp_path: Path) -> None:
    """Nine subsets with deviations, costs and speed; published detections are scored here and stand above."""
    widen = study.experiment(WIDEN)
    assert widen is not None
    text = (written.parent / "results.tex").read_text(encoding="utf-8")
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.endswith(r" \\")]
    assert rows[0][1:10] == ["all", "day", "night", "near", "medium", "far", "none", "partial", "heavy"]
    assert len(rows) == 2 + 6 and {len(row) for row in rows} == {15} and "nan" not in text
    assert rows[0][10:] == ["parameters, M", "multiply-adds, G", "ms", "images/s", "seeds"]
    assert rows[1][0] == r"Their\_own 100\%" and rows[1][1] == f"{widen.runs[0].figure('MR/reasonable_all'):.2f}"
    assert rows[1][10:] == ["--"] * 5 and rows[2][0] == r"02\_widen\_3x3" and r"\_odd \textless{}i" in rows[3][0]
    markdown = (written.parent / "results.md").read_text(encoding="utf-8").splitlines()[2:4]
    assert markdown[0].startswith(f"| Their_own 100% | – | – | {' | '.join(rows[1][1:4])} | – ")
    assert markdown[1].startswith("| 02_widen_3x3 |") and len({line.count(" | ") for line in markdown}) == 1
    page = written.read_text(encoding="utf-8").partition('id="subsets"')[2]
    assert re.findall(r'<th scope="row" class="l">(.*?)</th>', page)[:2] == ["Their_own 100%", WIDEN]
    assert f">{float(rows[1][1]):.1f}</td>" in page.partition("Their_own")[2].partition("</tr>")[0]
    mean, deviation = widen.mean("MR/reasonable_all"), widen.deviation("MR/reasonable_all")
    assert rows[2][1] == rf"{mean:.2f} $\pm$ {deviation:.2f}" and rows[2][14] == "3"
    assert float(rows[2][12]) * float(rows[2][13]) == pytest.approx(1000, rel=0.05)
    theirs = tmp_path / published.name
    theirs.write_text("99,1,1,9,9,0.5\n")
    done = command("study", "report", studied, "--out", tmp_path / "no", "--no-latency", "--published", theirs)
    assert done.returncode == 1 and "image number 99" in done.stderr and not list((tmp_path / "no").glob("*"))


def test_the_command_where_nothing_is_finished_and_where_nothing_is(studied: Path, tmp_path: Path) -> None:
    bad = command("study", "report", tmp_path)
    assert bad.returncode == 1 and "holds no runs" in bad.stderr and "Traceback" not in bad.stderr
    shutil.copytree(studied / "07_repeated_fpn", tmp_path / "07_repeated_fpn")
    theirs = tmp_path / "theirs.txt"  # without a run of one's own it cannot be scored
    theirs.write_text("1,1,1,9,9,0.5\n")
    done = command("study", "report", tmp_path, "--no-latency", "--published", theirs)
    assert done.stdout.strip() == str(tmp_path / "report" / "index.html") and done.returncode == 0, done.stderr
    text = words(tmp_path / "report" / "index.html")
    assert "No run is finished." in text and "no study.json" in text and "the loss is" in text
