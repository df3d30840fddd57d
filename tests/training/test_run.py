"""End to end: a run directory tells all, a resumed run equals an uninterrupted one, a tiny set is learned."""

import hashlib
import json
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import command
from filelock import FileLock
from processes import in_the_background
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from untrained import LITE0, SMALL, Stop, of_pairs, stop_at

from data_kaist import corruptions
from data_kaist.dataset import DetectionDataset
from data_kaist.errors import DataError, Doubt
from data_kaist.layouts import Modality
from data_kaist.transforms import Compose, Sample
from ssd_effnet.build import build_dataset
from ssd_effnet.cli.test import experiments_of
from ssd_effnet.config.loading import ExperimentConfig, load_experiment, save_experiment
from ssd_effnet.evaluation.ground_truth import load_ground_truth
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.subsets import SUBSETS
from ssd_effnet.inference.predictor import load_detector
from ssd_effnet.models.backbones.pretrained import pretrained_weights
from ssd_effnet.models.weights import WeightsError
from ssd_effnet.registry import CORRUPTIONS, plugins
from ssd_effnet.study.records import load_study
from ssd_effnet.training.resume_checks import refuse_to_mix
from ssd_effnet.training.run import _under_stress, run
from ssd_effnet.training.run_directory import RunDirectory, RunError, State
from ssd_effnet.visualize import calibration
from ssd_effnet.visualize.gallery.finished_run import FinishedRun

EXTENDING = Path(__file__).parents[2] / "docs" / "extending.md"
Finished = tuple[ExperimentConfig, Path]


def experiment(root: Path, *overrides: str) -> ExperimentConfig:
    return load_experiment(LITE0, [f"data.root={root}", *SMALL, "trainer.batch_size=4", *overrides])


@pytest.fixture(scope="module")
def finished(synthetic: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("runs")
    e = experiment(synthetic, "trainer.epochs=2", "input.modality=early", "trainer.panel_images=2")
    run(e, out)
    return e, RunDirectory.of(e, out).path


def test_a_run_directory_tells_all(finished: Finished) -> None:
    e, directory = finished
    present = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    wanted = {"config.yaml", "environment.json", "metrics.csv", "detections.json", "detections_kaist.txt"}
    assert wanted | {"results.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= present
    events = EventAccumulator(str(directory)).Reload()
    assert {"val/miss_rate_over_fppi", "test/miss_rate_over_fppi"} <= set(events.Tags()["images"])
    pictures = [tag for tag in events.Tags()["images"] if tag.startswith("val/set02/V001/")]
    assert len(pictures) == 2 and len(events.Images(pictures[0])) == 2  # two frames, after both epochs
    assert events.Images(pictures[0])[0].encoded_image_string.startswith(b"\xff\xd8")  # JPEG

    checkpoint = torch.load(directory / "checkpoints" / "best.ckpt", weights_only=True)  # plain data
    torch.testing.assert_close(checkpoint["state_dict"]["detector.normalize.mean"], torch.tensor(e.input.mean))
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["packages"]["torch"] and set(environment["data"]) == {"train", "val", "test"}
    results = json.loads((directory / "results.json").read_text())
    counted = ~MissRateEvaluator(load_ground_truth(e.data.root).annotations).ignored(SUBSETS["reasonable_all"])
    assert results["test"]["annotations"] == f"{e.data.root}/annotations-xml"
    assert results["test"]["people"] == counted.sum() > 0
    assert 0 < results["data_share"] < 1
    assert set(results["test"]["matlab"]) >= {"reasonable_all", "reasonable_day", "reasonable_night", "near"}
    rows = RunDirectory(directory).metrics()
    assert [row["epoch"] for row in rows] == [0, 1]
    assert {"val/MR/reasonable_all", "val/AP50", "train_epoch/loss_total"} <= set(rows[0])


def test_stress_is_a_table_a_plot_and_scalars_of_several_runs(
    finished: Finished, few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two seeds; of the kinds one, and one of a plugin."""
    (code,) = re.findall(r"## A corruption\n.*?```python\n(.*?)```", EXTENDING.read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_weather.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(CORRUPTIONS, "_own", {})
    monkeypatch.setitem(plugins, "my_weather", str(tmp_path))
    seen: list[tuple[str, int, float]] = []

    def black_lwir(sample: Sample, rng: np.random.Generator, strength: int) -> Sample:
        seen.append((sample.name, strength, rng.random()))
        return replace(sample, lwir=np.zeros_like(sample.lwir))

    monkeypatch.setattr(corruptions, "CORRUPTIONS", {"black_lwir": black_lwir})
    runs = [tmp_path / "lite0" / "seed0", tmp_path / "lite0" / "seed1"]
    for run_of in runs:
        shutil.copytree(finished[1], run_of)
    before = (runs[0] / "results.json").read_bytes()
    pairs = ("data.kind=coco", f"data.root={few_pairs}", "data.test=five.json", "--subsets", "all_h20", "none")
    done = command("test", *runs, "--stress", *pairs, "--plugins", "my_weather")
    assert done.returncode == 0, done.stderr
    tables = done.stdout.split("Miss rate in percent (lower is better), ")[1:]
    assert [table.split(",")[0] for table in tables] == ["all h20", "none"]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in tables[0].splitlines() if "│" in line]
    assert [row[:2] for row in rows] == [["black lwir", "lite0"], ["rain", "lite0"]]
    assert (tmp_path / "stress.png").read_bytes().startswith(b"\x89PNG")
    assert "frozen: 1 of 5 frames" in done.stdout and (runs[0] / "results.json").read_bytes() == before

    (beside,) = (runs[0] / "tests").iterdir()
    assert "stress=0" in beside.name
    results = json.loads((beside / "results.json").read_text())
    assert set(results["stress"]) == {f"{kind} {s}" for kind in ("black_lwir", "rain") for s in (1, 2, 3)}
    mr = {kind: of["matlab"]["all_h20"] for kind, of in (results["stress"] | {"clean": results["test"]}).items()}
    assert rows[1][2:] == [f"{mr[kind]:.2f} ± 0.00" for kind in ("clean", "rain 1", "rain 2", "rain 3")]
    drawn = {(f"visible/{i}", s, np.random.default_rng((0, 0, i)).random()) for i in range(5) for s in (1, 2, 3)}
    assert set(seen) == drawn and len(seen) == 2 * len(drawn)  # the same for every run and strength
    events = EventAccumulator(str(beside)).Reload()
    scores = [results["test"], *(results["stress"][f"rain {s}"] for s in (1, 2, 3))]
    rates = [pytest.approx(of["matlab"]["reasonable_all"]) for of in scores]
    assert [(e.step, e.value) for e in events.Scalars("stress/rain/MR/reasonable_all")] == [*enumerate(rates)]
    again = command("test", runs[0], "--stress", *pairs, "--plugins", "my_weather")
    assert again.returncode == 0 and json.loads((beside / "results.json").read_text()) == results
    assert len(list(beside.glob("events.*"))) == 1
    other = command("test", runs[0], "--stress", "--seed", 1, "--name", beside.name, *pairs)
    assert other.returncode == 1 and "other settings" in other.stderr
    assert "--plot and --seed go with --stress" in command("test", runs[0], "--plot", "a.png").stderr


def test_runs_of_other_folders_are_no_seeds_of_one(tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("lite0/seed0", "low/lite0/seed1", "low/lite0/seed2", "02/seed0")]
    for directory in runs:
        directory.mkdir(parents=True)
    assert experiments_of(runs) == [f"{tmp_path.name}/lite0", "low/lite0", "low/lite0", "02"]


@pytest.mark.parametrize(("modality", "unread"), [("visible", "_lwir"), ("lwir", "_visible"), ("halfway", "none")])
def test_only_images_that_are_read_fail(modality: Modality, unread: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = _under_stress(DetectionDataset([], modality, Compose(())), 0)
    kept = [kind for kind in corruptions.CORRUPTIONS if not kind.endswith(unread)]
    if modality != "halfway":  # what is shifted is out of place beside another image alone
        kept.remove(f"shift_{modality}")
    assert list(found) == [(kind, s) for kind in kept for s in (1, 2, 3)]
    assert len(kept) == (14 if unread == "none" else 8)
    assert capsys.readouterr().out == ""


def test_calibration_of_a_run(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that finds nobody has no temperature; one is kept in the checkpoint alone, of the tested scores."""
    run_of, out = tmp_path / "lite0" / "seed0", tmp_path / "new" / "reliability.png"
    shutil.copytree(finished[1], run_of)
    before = {p: p.read_bytes() for p in run_of.rglob("*.*") if p.is_file()}
    words = ("visualize", "calibration", run_of, "--score", 0, "--out", out)
    done = command(*words)
    assert done.returncode == 0 and "no temperature fits: 0 of" in done.stderr, done.stderr
    assert out.read_bytes().startswith(b"\x89PNG") and "lite0/seed0 (early)" in done.stdout
    refused = command(*words, "--keep")
    assert refused.returncode == 1 and f"{run_of}: no temperature fits" in refused.stderr
    assert {p: p.read_bytes() for p in before} == before
    (validated,) = (run_of / "tests").iterdir()
    environment = run_of / "environment.json"
    for split, says in (("val", "the data of set02"), ("test", "its test data have changed")):
        changed = json.loads(before[environment])
        changed["data"][split]["fingerprint"] = "other"
        environment.write_text(json.dumps(changed))
        refused = command(*words, "--keep")
        assert refused.returncode == 1 and says in refused.stderr, refused.stderr
    environment.write_bytes(before[environment])
    assert {p: p.read_bytes() for p in before} == before
    assert json.loads((validated / "results.json").read_text())["test"]["split"] == finished[0].data.val

    given: list[int] = []
    monkeypatch.setattr(calibration, "fit_temperature", lambda scores, right: given.append(len(scores)) or 2.0)
    done = command(*words, "--keep")
    assert done.returncode == 0 and "2.000" in done.stdout and given[0] > 0, done.stderr
    directory = RunDirectory(run_of)
    (kept,) = (p for p in before if p.read_bytes() != before[p])
    assert kept.name == directory.results()["checkpoint"]
    assert torch.load(kept, weights_only=True)["temperature"] == 2.0
    assert load_detector(run_of).experiment.postprocess.temperature == 2.0 and not directory.edited(directory.trained())
    run(finished[0], tmp_path, resume=True)  # nothing to do


def test_a_run_is_tested_again(
    finished: Finished, few_pairs: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same data give the same figures; another split, annotation set or data set has a folder of its own."""
    run_of = tmp_path / "lite0" / "seed0"
    shutil.copytree(finished[1], run_of)
    shutil.copytree(finished[1], run_of.with_name("seed1"))
    own = json.loads((run_of / "results.json").read_text())
    before = {p: p.read_bytes() for p in run_of.glob("*.*")}
    both = (run_of, run_of.with_name("seed1"))
    done = command("test", *both, "data.images=images", "--name", "same", "--subsets", "all")
    assert done.returncode == 0, done.stderr
    same = json.loads((run_of / "tests" / "same" / "results.json").read_text())
    assert same["test"] == own["test"] and same["checkpoint"] == own["checkpoint"]
    assert (run_of / "tests/same/detections.json").read_text() == before[run_of / "detections.json"].decode()
    rows = [line.split("│") for line in done.stdout.splitlines() if "│ matlab" in line]
    assert [row[1].strip() for row in rows] == ["lite0/seed0", "lite0/seed1", "lite0, mean of 2 seeds"]
    assert rows[0][3:] == rows[2][3:] and len(rows[0]) == 18 and "± 0.00" in done.stdout
    assert "different data" not in done.stderr

    with monkeypatch.context() as patched:
        data = iter([{"test": {"fingerprint": "one"}}, {"test": {"fingerprint": "other"}}])
        patched.setattr("ssd_effnet.training.run.describe_data", lambda datasets: next(data))
        done = command("test", *both, "--name", "apart")
    assert done.returncode == 0 and "tested on different data" in done.stderr, done.stderr

    done = command("test", run_of, "data.test=test-day-20")
    assert done.returncode == 0, done.stderr
    day = json.loads((run_of / "tests" / "test=test-day-20" / "results.json").read_text())
    assert day["test"]["split"] == "test-day-20" and 0 < day["test"]["images"] < own["test"]["images"]
    assert day["settings"] == ["data.test=test-day-20"] and day["test"]["matlab"]["reasonable_night"] is None
    coco = ("data.kind=coco", f"data.root={few_pairs}", "data.test=five.json", "--name", "pairs")
    done = command("test", run_of, *coco)
    assert done.returncode == 0, done.stderr
    pairs = json.loads((run_of / "tests" / "pairs" / "results.json").read_text())
    assert (pairs["test"]["images"], pairs["test"]["people"], pairs["data"]["frames"]) == (5, 5, 5)

    improved = shared / "reference" / "kaist" / "KAIST_annotation.json"
    mini = (f"data.root={shared / 'data' / 'kaist-mini'}", f"data.test_annotations={improved}")
    done = command("test", run_of, *mini, "--name", "improved")
    assert done.returncode == 0, done.stderr
    of_run, out = json.loads((run_of / "tests" / "improved" / "results.json").read_text())["test"], tmp_path / "o.json"
    assert (of_run["images"], of_run["annotations"]) == (7, str(improved))
    found = run_of / "tests" / "improved" / "detections.json"
    assert command("evaluate", "--annotations", improved, "--detections", found, "--json", out).returncode == 0
    (scored,) = json.loads(out.read_text()).values()
    assert all(scored[key] == of_run[key] for key in ("matlab", "python", "recall", "people", "ap"))

    for words, says in (
        (["data.test=test-all-20", "--name", "pairs"], "other settings"),
        (["input.size=[64,64]"], "settled in a finished run"),
        (["data.test=nothing"], "unknown split"),
    ):
        done = command("test", run_of, *words)
        assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr
    assert {p: p.read_bytes() for p in run_of.glob("*.*")} == before
    assert not (run_of / "tests" / "test=nothing").exists()


def test_a_finished_run_is_not_done_again(finished: Finished) -> None:
    e, directory = finished
    out = directory.parents[1]
    before = (directory / "results.json").stat().st_mtime_ns
    run(e, out, resume=True)
    assert (directory / "results.json").stat().st_mtime_ns == before
    with pytest.raises(RunError, match="add --resume"):
        run(e, out)
    e.optimizer.lr *= 2
    with pytest.raises(RunError, match=r"these differ: optimizer\.lr"):
        run(e, out, resume=True)
    e.optimizer.lr /= 2
    e.trainer.threads, e.data.workers = 1, 1  # where and how comfortably: another machine may go on with it
    assert run(e, out, resume=True)["seed"] == 0


def test_an_edited_config_is_not_believed(finished: Finished, tmp_path: Path) -> None:
    """What was trained stands in the checkpoint; a loss of another kind once ended in a traceback."""
    e, directory = finished
    shutil.copytree(directory, copy := RunDirectory.of(e, tmp_path).path)
    edited = load_experiment(copy / "config.yaml", ["class_loss.name=focal", "optimizer.lr=0.5"])
    save_experiment(edited, copy / "config.yaml")
    says = rf"config\.yaml was edited since.*: class_loss\.name \({e.class_loss.name}, now focal\), optimizer\.lr \("
    for _ in range(2):
        with pytest.raises(RunError, match=says):
            run(edited, tmp_path, resume=True)
        (copy / "results.json").unlink(missing_ok=True)
    shutil.copytree(directory, again := tmp_path / "again" / "lite0" / "seed0")
    save_experiment(edited, again / "config.yaml")
    lines: list[str] = []
    run(e, tmp_path / "again", resume=True, echo=lines.append)
    assert f"{again / 'config.yaml'} was edited" in lines[0] and "optimizer.lr (" in lines[0]
    e.trainer.seed = 3
    again.rename(tmp_path / "again" / "lite0" / "seed3")
    with pytest.raises(RunError, match=r"seed3: holds lite0 seed 0"):  # "finished; nothing to do" it would be
        run(e, tmp_path / "again", resume=True)
    e.trainer.seed = 0


def test_a_gallery_and_the_report_read_what_was_trained(finished: Finished, tmp_path: Path) -> None:
    """An edited config is named; a damaged checkpoint leaves the results whole."""
    e, directory = finished
    shutil.copytree(directory, copy := RunDirectory.of(e, tmp_path).path)
    (copy / "checkpoints" / "last.ckpt").write_bytes(b"PK of another kind")
    with pytest.warns(Doubt, match=r"last\.ckpt .*damaged"):
        study = load_study(tmp_path)
    assert [run.directory.path for run in study.runs] == [copy] and not study.left_out
    save_experiment(load_experiment(copy / "config.yaml", ["input.modality=visible"]), copy / "config.yaml")
    with pytest.warns(Doubt, match=r"config\.yaml was edited.*: input\.modality \(early, now visible\)"):
        assert FinishedRun.load(copy).modality == "early"
    (copy / "results.json").unlink()
    with pytest.raises(WeightsError, match=r"last\.ckpt .*damaged"):  # this one is to go on from it
        RunDirectory(copy).trained()


def test_two_processes_do_not_work_on_one_run(synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = experiment(synthetic)
    directory = RunDirectory.of(e, tmp_path)

    def keep_it(locked: Event) -> None:
        with directory.lock():
            locked.set()
            time.sleep(60)

    with in_the_background(keep_it):
        assert directory.state is State.RUNNING
        with pytest.raises(RunError, match="another process is at work on this run"):
            run(e, tmp_path)
        monkeypatch.setattr("ssd_effnet.training.run_directory.fcntl", None)  # as on Windows
        assert directory.state is State.RUNNING
    assert directory.state is State.ABSENT  # the lock of a killed process is gone, and nothing was begun
    monkeypatch.undo()
    assert directory.state is State.ABSENT


def test_who_looks_at_a_run_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    with ThreadPoolExecutor(1) as pool, FileLock(tmp_path / ".lock"):
        at_work = pool.submit(lambda: directory.lock().__enter__())
        time.sleep(0.1)  # it finds the directory locked, as while somebody asks for its state
        assert not at_work.done()
    at_work.result()


def test_why_a_run_failed_is_written_down(synthetic: Path, tmp_path: Path) -> None:
    e = experiment(synthetic, "data.test=train-night-9999999")
    with pytest.raises(DataError) as caught:
        run(e, tmp_path)
    directory = RunDirectory.of(e, tmp_path)
    assert (directory.state, directory.failure()) == (State.FAILED, str(caught.value))


@pytest.mark.parametrize(("broken", "why"), [("{", "cannot be read"), ("[]", "must hold a JSON object")])
def test_results_that_somebody_has_broken_are_named(tmp_path: Path, broken: str, why: str) -> None:
    directory = RunDirectory(tmp_path)
    directory.results_file.write_text(broken)
    with pytest.raises(RunError, match=rf"results\.json: {why}"):
        directory.results()


@pytest.mark.parametrize(
    ("monitor", "who"),
    [
        ("val/MR/reasonable_all", "person counted by the subset reasonable_all"),
        ("val/AP", "person without the ignore flag"),
        ("val/AP50", "person without the ignore flag"),
    ],
)
def test_a_validation_split_without_anybody_is_refused(monitor: str, who: str, synthetic: Path, tmp_path: Path) -> None:
    shutil.copytree(synthetic, tmp_path / "copy")
    for path in (tmp_path / "copy" / "annotations-xml" / "set02" / "V001").glob("*.xml"):
        path.write_text("<annotation></annotation>")
    with pytest.raises(RunError, match=rf"contains no {who}, so {monitor} is undefined; set trainer\.monitor to"):
        run(experiment(tmp_path / "copy", f"trainer.monitor={monitor}"), tmp_path / "runs")


def test_who_is_no_person_and_what_is_doubtful_is_said_before_training(synthetic: Path, tmp_path: Path) -> None:
    shutil.copytree(synthetic / "images", tmp_path / "copy" / "images")
    box = "<bndbox><x>{}</x><y>9</y><w>20</w><h>50</h></bndbox><occlusion>0</occlusion>"
    objects = [("person", 20), (" Person", 635), ("person", 636), ("cyclist", 90)]  # two reach over the border
    text = "".join(f"<object><name>{name}</name>{box.format(x)}</object>" for name, x in objects)
    for path in (synthetic / "annotations-xml").rglob("*.xml"):
        copied = tmp_path / "copy" / "annotations-xml" / path.relative_to(synthetic / "annotations-xml")
        copied.parent.mkdir(parents=True, exist_ok=True)
        in_val = path.parent.name == "V001" and path.parent.parent.name == "set02"
        copied.write_text("<annotation/>" if in_val else f"<annotation>{text}</annotation>")
    lines: list[str] = []
    with pytest.raises(RunError, match="contains no person"):  # after what is tested here, before the first step
        run(experiment(tmp_path / "copy"), tmp_path / "runs", echo=lines.append)
    frames = int(next(line for line in lines if line.startswith("train: not person")).split()[-1])
    assert frames > 3 and f"train: not person, so ignore regions: cyclist {frames}" in lines
    doubt = next(line for line in lines if line.startswith("warning: train: "))
    assert f"of {3 * frames} boxes of persons {2 * frames} reach out of their image, 0 are under a pixel" in doubt


def test_two_sets_of_annotations_that_may_be_meant_are_asked_for(synthetic: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    for name in ("images", "annotations-xml"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(synthetic / name)
    (root / "annotations-xml-new").mkdir()
    build_dataset(experiment(root), "test")  # an empty folder is no other set
    shutil.copytree(synthetic / "annotations-xml", root / "annotations-xml-new", dirs_exist_ok=True)
    with pytest.raises(DataError, match=r"annotations-xml and .*annotations-xml-new may both be meant"):
        build_dataset(experiment(root), "test")
    assert len(build_dataset(experiment(root, "data.annotations_dir=annotations-xml-new"), "test"))


def test_bad_frames_stop_a_run_or_are_left_out_and_listed(synthetic: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(synthetic, root)
    kinds = ("images/set00/V000/visible", "annotations-xml/set00/V000")
    images, annotations = (sorted(root.glob(f"{kind}/I*")) for kind in kinds)
    images[0].write_bytes(images[0].read_bytes()[:2000])
    annotations[-1].write_text("<annotation><object>")
    with pytest.raises(DataError) as caught:
        run(experiment(root), tmp_path / "stop")
    assert str(annotations[-1]) in str(caught.value) and "\n" not in str(caught.value)
    good = annotations[0].read_text()
    annotations[-1].write_text(good)
    with pytest.raises(DataError) as caught:  # met by a worker of the loader
        run(experiment(root, "data.workers=1", "data.train=train-day-02"), tmp_path / "stop")
    assert str(caught.value).startswith(f"{images[0]}: ") and "\n" not in str(caught.value)
    annotations[-1].write_text("<annotation><object>")
    results = run(experiment(root, "trainer.epochs=1", "data.on_bad_frame=skip"), tmp_path / "skip")
    reasons = [reason for _, reason in results["skipped_frames"]["train"]]
    assert len(reasons) == 2 and str(annotations[-1]) in reasons[0] and str(images[0]) in reasons[1]


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    state = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert isinstance(state, dict)
    return state


def test_a_run_goes_on_only_with_the_data_it_was_started_with(finished: Finished, tmp_path: Path) -> None:
    e, directory = finished
    shutil.copytree(directory, (copy := RunDirectory.of(e, tmp_path)).path)
    copy.results_file.unlink()
    content = copy.environment()
    content["data"]["val"]["fingerprint"] = "of other boxes"
    copy.environment_file.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"its data have changed since it was started \(val\)"):
        run(e, tmp_path, resume=True)


def few(root: Path, *overrides: str) -> ExperimentConfig:
    """A run of a second: four pairs of ``few_pairs``, constant rate."""
    recipe = ("schedule.name=constant", "trainer.ema_decay=0.5", "optimizer.gradient_clip=1")
    return of_pairs(root, *recipe, *overrides)


@pytest.fixture(scope="module")
def begun(few_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch."""
    e, out = few(few_pairs), tmp_path_factory.mktemp("begun")
    run(e, out)
    return RunDirectory.of(e, out).path


@pytest.fixture(scope="module")
def longer(few_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two epochs."""
    e, out = few(few_pairs, "trainer.epochs=2"), tmp_path_factory.mktemp("longer")
    run(e, out)
    return e, RunDirectory.of(e, out).path


def test_the_saved_config_stopped_and_resumed_gives_the_same_run(longer: Finished, tmp_path: Path) -> None:
    """Its folder was moved before it goes on."""
    _, whole = longer
    e = load_experiment(whole / "config.yaml")
    e = replace(e, data=replace(e.data, workers=1))  # reads ahead, and must read the same
    with pytest.raises(Stop):
        run(e, tmp_path / "before", echo=stop_at(2))
    (tmp_path / "before").rename(tmp_path / "after")
    run(e, tmp_path / "after", resume=True)
    resumed = RunDirectory.of(e, tmp_path / "after").path
    assert (resumed / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert len(json.loads((resumed / "environment.json").read_text())["resumed"]) == 1
    left, right = weights_of(resumed), weights_of(whole)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_begins_with_the_weights_that_another_was_tested_with(
    begun: Path, few_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name under its own normalisation; what has another shape is listed; resumed, it needs the file no more."""
    shutil.copytree(begun, source := tmp_path / "source")
    tested = source / "checkpoints" / json.loads((source / "results.json").read_text())["checkpoint"]
    other = source / "checkpoints" / ("last.ckpt" if tested.name == "best.ckpt" else "best.ckpt")
    other.write_bytes(b"not the one")
    change = ("input.mean=[0.5,0.5,0.5,0.5]", "anchors.ratios=[0.5,1,2]", "backbone.pretrained=/nowhere.pth")
    e = few(few_pairs, *change, f"init_from={source}", "trainer.epochs=2", "optimizer.lr=1e-12", "name=next")
    with pytest.raises(Stop):
        run(e, tmp_path, echo=stop_at(2))
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("init_from: ")]
    assert "of another shape: head." in said and "normalize" not in said and f"from {tested}" in said
    digest = hashlib.sha256(tested.read_bytes()).hexdigest()
    shutil.rmtree(source)
    run(e, tmp_path, resume=True)
    directory = RunDirectory.of(e, tmp_path)
    assert directory.environment()["init_from"] == {"file": str(tested), "sha256": digest}
    before = torch.load(begun / "checkpoints" / tested.name, weights_only=True)["state_dict"]
    after = weights_of(directory.path)
    torch.testing.assert_close(after["detector.normalize.mean"], torch.full((3,), 0.5))
    names = [name for name in after if name.endswith(".weight") and not name.startswith("detector.head.")]
    assert len(names) > 20
    for name in names:  # with next to no rate they stay
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    assert {before[name].shape == after[name].shape for name in after if "head." in name} == {False}


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no such checkpoint, run directory"), (b"x", "is not read"), ({}, "not one of")],
)
def test_weights_that_are_not_begun_with(content: object, says: str, few_pairs: Path, tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save({"normalize.mean": torch.zeros(3), "elsewhere.weight": torch.zeros(3)}, file)
    with pytest.raises(WeightsError, match=rf"key `init_from`: .*{says}") as caught:
        run(few(few_pairs, f"init_from={file}"), tmp_path / "runs")
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_pretrained_weights_is_written_down(few_pairs: Path, tmp_path: Path) -> None:
    file = pretrained_weights("efficientnet-lite0", "imagenet")
    assert file is not None
    e = few(few_pairs, f"backbone.pretrained={file}")
    run(e, tmp_path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert RunDirectory.of(e, tmp_path).environment()["pretrained"] == {"file": str(file), "sha256": digest}


def test_norms_are_not_frozen_without_statistics(begun: Path, few_pairs: Path, tmp_path: Path) -> None:
    """Weights of one stream do not fill two, and a frozen norm stays as it begins."""
    change = (f"init_from={begun}", "backbone.norm=frozen", "input.modality=halfway")
    with pytest.raises(RunError, match=r"`backbone\.norm`: frozen, but 30 of 30 norms find no statistics in .*\.ckpt"):
        run(few(few_pairs, *change), tmp_path)


def test_more_epochs_are_those_of_a_longer_run(begun: Path, longer: Finished, few_pairs: Path, tmp_path: Path) -> None:
    e, unbroken = longer
    shutil.copytree(begun, directory := RunDirectory.of(e, tmp_path).path)
    (directory / "detections_kaist.txt").write_text("of one epoch")
    lines: list[str] = []
    results = run(e, tmp_path, resume=True, echo=lines.append)
    assert any(line.startswith(f"{directory}: goes on after 1 epochs to 2") for line in lines)
    assert (results["epochs"], json.loads((directory / "results_1_epochs.json").read_text())["epochs"]) == (2, 1)
    assert (directory / "detections_kaist_1_epochs.txt").read_text() == "of one epoch"
    left, right = weights_of(directory), weights_of(unbroken)
    assert all(torch.equal(left[name], right[name]) for name in right)
    assert (directory / "metrics.csv").read_text() == (unbroken / "metrics.csv").read_text()
    assert run(e, tmp_path, resume=True) == results  # finished again
    with pytest.raises(RunError, match=r"these differ: trainer\.epochs \(2, now 1\)"):
        run(few(few_pairs), tmp_path, resume=True)


@pytest.mark.parametrize("schedule", ["multistep", "cosine"])
def test_no_more_epochs_where_the_schedule_is_laid_out_over_all(schedule: str, few_pairs: Path, tmp_path: Path) -> None:
    e = few(few_pairs, f"schedule.name={schedule}", "trainer.epochs=3")
    directory = RunDirectory.of(e, out := tmp_path / "my runs")  # quoted for the shell
    save_experiment(e, directory.config_file)
    directory.results_file.write_text("{}")
    more = few(few_pairs, f"schedule.name={schedule}", "trainer.epochs=4")
    with pytest.raises(RunError, match=rf"from 3 to 4 epochs: the schedule {schedule} .* 'init_from={directory}'"):
        run(more, out, resume=True)


@pytest.mark.slow
def test_seven_real_pairs_are_learned(shared: Path, tmp_path: Path) -> None:
    """The proof that nothing between JPEG and miss rate is shifted, flipped or scaled: about five minutes."""
    data = (f"data.root={shared / 'data' / 'kaist-mini'}", "data.train=test-all-20", "data.val=", "data.workers=0")
    inputs = ("input.modality=early", "input.size=[320,400]", "augment.names=[flip]", "schedule.warmup_steps=0")
    machine = ("trainer.accelerator=cpu", "trainer.threads=2", "trainer.test_checkpoint=last")
    recipe = ("trainer.batch_size=7", "trainer.epochs=100", "trainer.ema_decay=0.9")
    e = load_experiment(LITE0, [*data, *inputs, *machine, *recipe])
    results = run(e, tmp_path)
    print(results["test"])
    assert results["test"]["images"] == 7
    assert results["test"]["matlab"]["reasonable_all"] < 5
    shutil.rmtree(tmp_path)


def test_a_run_stopped_before_its_first_checkpoint_is_not_in_the_way(synthetic: Path, tmp_path: Path) -> None:
    e = experiment(synthetic)
    directory = RunDirectory.of(e, tmp_path)
    directory.path.mkdir(parents=True)
    save_experiment(experiment(synthetic, "optimizer.lr=0.5"), directory.config_file)
    refuse_to_mix(directory, e, resume=False)
    directory.last.parent.mkdir()
    begun = asdict(experiment(synthetic, "optimizer.lr=0.5"))
    torch.save({"experiment": begun, "state_dict": {"detector.weight": torch.zeros(1)}}, directory.last)
    with pytest.raises(RunError, match="holds a run already"):
        refuse_to_mix(directory, e, resume=False)
    with pytest.raises(RunError, match=r"these differ: optimizer\.lr \(0\.5, now 0\.001\); choose another --out"):
        refuse_to_mix(directory, e, resume=True)
    directory.config_file.unlink()  # as if checkpoints alone had been copied
    for resume, says in ((False, "holds a run already"), (True, r"is no run directory, it has no config\.yaml")):
        with pytest.raises(RunError, match=says):
            run(e, tmp_path, resume=resume)
    assert directory.last.is_file()


def test_a_folder_that_cannot_be_made_is_named_with_what_to_do(synthetic: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/below/lite0/seed0: cannot be made \(.*\); choose another --out"):
        run(experiment(synthetic), tmp_path / "file" / "below")


def test_a_folder_without_a_run_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nobody: is no run directory, it has no config\.yaml"):
        RunDirectory(tmp_path / "nobody").experiment()
