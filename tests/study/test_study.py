"""A study runs everything once, goes on past what fails and after what is killed, and mixes nothing."""

import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from commands import Done, command
from processes import script, started
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from untrained import SMALL as SMALLEST

from ssd_effnet.cli.study import parse, show_estimates
from ssd_effnet.config.loading import ConfigError, ExperimentConfig, save_experiment
from ssd_effnet.evaluation.scores import write_results
from ssd_effnet.models.cost import Cost
from ssd_effnet.registry import BOX_LOSSES, plugins
from ssd_effnet.study import plan as planning
from ssd_effnet.study.estimate import RunEstimate
from ssd_effnet.study.execute import RunOutcome
from ssd_effnet.study.plan import Job, check, plan, read_study, remember, runs_of
from ssd_effnet.study.progress import Display, status_table
from ssd_effnet.training.run_directory import RunDirectory, RunError, State

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
LITE0, WIDEN = EXPERIMENTS / "lite0.yaml", EXPERIMENTS / "02_widen_3x3.yaml"
SMALL = [*SMALLEST, "backbone.name=efficientnet-lite0", "data.kind=coco"]
SMALL += ["data.train=train.json", "data.val=val.json", "data.test=five.json", "data.allow_overlap=true"]


def test_one_seed_of_everything_comes_before_the_second_of_any(tmp_path: Path) -> None:
    jobs = plan([WIDEN, LITE0], [0, 3], ["trainer.epochs=5", "lite*:optimizer.lr=0.5"], tmp_path)
    names = ["02_widen_3x3 seed 0", "lite0 seed 0", "02_widen_3x3 seed 3", "lite0 seed 3"]
    assert [job.name for job in jobs] == names
    assert {job.experiment.trainer.epochs for job in jobs} == {5}
    assert [job.experiment.optimizer.lr for job in jobs[:2]] == [1e-4, 0.5]
    assert jobs[3].directory.path == tmp_path / "lite0" / "seed3"
    (job,) = plan([LITE0], [0], ["lite*:trainer.epochs=010", "lite0:data.root=2024_01", "l*:name=1.10"], tmp_path)
    assert (job.experiment.trainer.epochs, job.experiment.data.root, job.experiment.name) == (10, "2024_01", "1.10")


@pytest.mark.parametrize(
    ("files", "override", "message"),
    [
        ([LITE0, LITE0], "trainer.epochs=1", "two experiments are called lite0"),
        ([LITE0, WIDEN], "name=both", "two experiments are called both"),
        ([LITE0], "trainer.seed=7", "the seeds of a study are those of --seeds"),
        ([LITE0], "0*:trainer.epochs=1", "none of the experiments lite0 fits"),
        ([LITE0], "lite*:trainer.epoch=1", r"did you mean `trainer\.epochs`"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(files: list[Path], override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(files, [0], [override], tmp_path)


def test_the_study_remembers_what_its_experiments_are_differences_from(tmp_path: Path) -> None:
    remember(plan([WIDEN], [0, 1], [], tmp_path), tmp_path, "first")
    remember(plan([LITE0], [0], [], tmp_path), tmp_path, "second")
    written = read_study(tmp_path)
    assert written["experiments"]["02_widen_3x3"]["ancestors"] == ["01_effnet_b4", "00b_vgg16_rmsprop", "00_vgg16"]
    assert list(written["experiments"]) == ["02_widen_3x3", "lite0"] and written["commands"] == ["first", "second"]
    with pytest.raises(RunError, match="holds no runs"):
        runs_of(tmp_path)


def test_seeds_grow_until_results_the_metric_is_of_all_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = {"many": 150, "few": 5}

    def evaluator(e: ExperimentConfig) -> SimpleNamespace:
        return SimpleNamespace(ignored=lambda subset: np.zeros(people[e.data.root], bool))

    monkeypatch.setattr(planning, "_evaluator", evaluator)
    on = ["0*:data.root=many", "l*:data.root=few"]
    remember(plan([WIDEN, LITE0], [0, 1, 2], on, tmp_path), tmp_path, "nothing ran")
    assert read_study(tmp_path)["metric"] == "AP"
    for seeds, wanted in (([3, 4], [0, 1, 2, 3, 4]), ([5], [0, 1, 2, 3, 4])):
        remember(plan([LITE0], seeds, [], tmp_path), tmp_path, "more")
        assert read_study(tmp_path)["experiments"]["lite0"]["seeds"] == wanted
        (tmp_path / "lite0" / "seed0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lite0" / "seed0" / "results.json").write_text("{}")
    assert parse(["run", "lite0", "--seeds", "trainer.epochs=1"]).seeds == [0]


def test_runs_are_told_by_their_own_names(tmp_path: Path) -> None:
    """The configs of two runs have one file name; a copy of a run is none; a study file that is cut short says so."""
    for job in plan([WIDEN, LITE0], [0], [], tmp_path):
        save_experiment(job.experiment, job.directory.config_file)
    (tmp_path / "lite0" / "seed0").rename(tmp_path / "lite0" / "seed0.bak")
    found, (left_out,) = runs_of(tmp_path)
    assert [str(directory) for directory in found] == [str(tmp_path / "02_widen_3x3" / "seed0")]
    assert left_out.startswith(f"{tmp_path / 'lite0' / 'seed0.bak'}: holds lite0 seed 0")
    (tmp_path / "lite0" / "seed0.bak").rename(tmp_path / "lite0" / "seed0")
    jobs = plan([run.config_file for run in runs_of(tmp_path)[0]], [1], ["lite*:optimizer.lr=0.5"], tmp_path)
    assert [job.name for job in jobs] == ["02_widen_3x3 seed 1", "lite0 seed 1"]
    assert jobs[1].experiment.optimizer.lr == 0.5
    remember(jobs, tmp_path, "again")
    assert list(read_study(tmp_path)["experiments"]) == ["02_widen_3x3", "lite0"]
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(RunError, match=r"study\.json: cannot be read"):
        runs_of(tmp_path)


PART = """from ssd_effnet.detection.losses import SmoothL1
from ssd_effnet.registry import BOX_LOSSES

@BOX_LOSSES.register("mine")
class Mine(SmoothL1):
    pass
"""


class Ran(NamedTuple):
    out: Path
    done: Done
    refused: Done
    lite0: Path


@pytest.fixture(scope="module")
def ran(few_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Two experiments side by side, one of which cannot work; the other one needs a plugin. Forked, to save time."""
    out, here = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("mine")
    (here / "box_of_mine.py").write_text(PART)
    lite0 = here / "lite0.yaml"
    lite0.write_text(f"base: {LITE0}\nplugins: [box_of_mine]\nbox_loss: {{name: mine}}\n")
    settings = ("--seeds", "0", *SMALL, "02*:optimizer.lr=1e30", f"data.root={few_pairs}", f"--out={out}", "--jobs=2")
    words = ("study", "run", WIDEN, lite0, *settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        fork = multiprocessing.get_context("fork")
        if not torch.cuda.is_available():  # which cannot be forked
            patch.setattr(multiprocessing, "get_context", lambda kind: fork)
        refused = command(*words)
        done = command(*words, "--plugins", "box_of_mine")
    yield Ran(out, done, refused, lite0)
    for table in (sys.modules, plugins, BOX_LOSSES.plugins, BOX_LOSSES):
        table.pop("mine" if "mine" in table else "box_of_mine", None)  # type: ignore[attr-defined]


def test_a_study_knows_its_plugins(ran: Ran) -> None:
    assert ran.refused.returncode == 1 and "--plugins box_of_mine" in ran.refused.stderr
    assert runs_of(ran.out)[0][1].experiment().plugins == ["box_of_mine"]
    assert f"study report {ran.out} --plugins box_of_mine" in ran.done.stdout


@pytest.mark.slow
def test_the_processes_of_a_study_have_its_plugins(ran: Ran, few_pairs: Path, tmp_path: Path) -> None:
    done = command("study", "run", ran.lite0, *SMALL, f"data.root={few_pairs}", f"--out={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 1/1" in (tmp_path / "lite0" / "seed0" / "train.log").read_text()


def test_it_goes_on_past_a_run_that_fails(ran: Ran) -> None:
    out, done, _, _ = ran
    assert done.returncode == 1
    assert "lite0 seed 0: finished" in done.stdout and "2 runs: 0 finished, 2 to do" in done.stdout
    assert "not finished: 02_widen_3x3 seed 0: " in done.stdout and "the loss is" in done.stdout
    (failed, finished), _ = runs_of(out)
    assert (failed.state, finished.state) == (State.FAILED, State.FINISHED)
    assert "the loss is" in failed.failure()


def test_tensorboard_lists_what_differs_from_the_defaults(ran: Ran) -> None:
    out = ran.out
    listed = [hparams_of(file) for file in (out / "lite0" / "seed0").glob("events.out.tfevents*")]
    (shown,) = filter(None, listed)
    assert {"Experiment", "Seed", "optimizer.lr"} <= shown.keys() and "optimizer.accumulate" not in shown
    assert not list((out / "lite0").glob("seed0/*/events.out.tfevents*"))  # no run beside the run


def hparams_of(file: Path) -> dict[str, object]:
    """What one event file tells the HParams tab."""
    events = EventAccumulator(str(file)).Reload()
    tag = "_hparams_/session_start_info"
    if tag not in events.summary_metadata:
        return {}
    content = HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)
    return dict(content.session_start_info.hparams)


def test_what_is_finished_is_not_done_again_and_what_failed_is_tried_again(ran: Ran, few_pairs: Path) -> None:
    out = ran.out
    before = (out / "lite0" / "seed0" / "results.json").stat().st_mtime_ns
    again = command("study", "run", ran.lite0, *SMALL, f"data.root={few_pairs}", f"--out={out}")
    assert again.returncode == 0 and "1 runs: 1 finished, 0 to do" in again.stdout, again.stderr
    assert (out / "lite0" / "seed0" / "results.json").stat().st_mtime_ns == before
    status = command("study", "status", out)
    assert "the loss" in status.stdout and "finished" in status.stdout and status.returncode == 0


def test_other_configs_and_other_data_are_refused(ran: Ran, few_pairs: Path, tmp_path: Path) -> None:
    out = ran.out
    with pytest.raises(RunError, match=r"lite0/seed0: was started .*: optimizer\.lr \(0\.001, now 0\.5\)"):
        check(plan([ran.lite0], [0], [*SMALL, f"data.root={few_pairs}", "optimizer.lr=0.5"], out))
    jobs = plan([ran.lite0], [0], [*SMALL, f"data.root={few_pairs}"], out)
    check(jobs)
    environment_file = jobs[0].directory.environment_file
    text = environment_file.read_text()
    environment = jobs[0].directory.environment()
    try:
        environment["data"]["train"]["fingerprint"] = "something else"
        write_results(environment_file, environment)
        with pytest.raises(RunError, match=r"its data have changed since it was started \(train\)"):
            check(jobs)
    finally:
        environment_file.write_text(text)


def test_a_dry_run_says_how_large_and_how_long_and_leaves_nothing(few_pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "none"
    seeds = ("--seeds", "0", "1", "--dry-run")
    done = command("study", "run", WIDEN, *seeds, *SMALL, f"data.root={few_pairs}", "--out", out)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "02_widen_3x3" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[1:3] == ["0 1", "64x96"] and cells[7].endswith("per run")
    assert float(cells[3]) > 0 and cells[5] == "756"  # millions of parameters; (8 x 12 + 24 + 6) x 6 anchors
    assert " min; from a few steps" in done.stdout and not out.exists()


@pytest.mark.parametrize(("runs", "side_by_side", "told"), [(2, 4, "10"), (5, 4, "20"), (3, 1, "30")])
def test_a_dry_run_adds_whole_runs(
    runs: int,
    side_by_side: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ssd_effnet.study.estimate.estimate_run", lambda e, jobs: RunEstimate(Cost(1, 1, 1), 10.0))
    show_estimates(plan([ROOT / "experiments" / "lite0.yaml"], list(range(runs)), [], tmp_path), side_by_side, tmp_path)
    assert f"about {told} min" in capsys.readouterr().out


def test_complaints_are_one_sentence(tmp_path: Path) -> None:
    assert "unknown arguments: nonsense" in command("study", "status", tmp_path, "nonsense").stderr
    for option, number in (("--seeds", "one"), ("--seeds", "²"), ("--jobs", "0"), ("--jobs", "9" * 5000)):
        done = command("study", "run", LITE0, option, number)
        assert done.returncode == 2 and f"argument {option}: " in done.stderr and done.stderr.count("\n") == 1
    done = command("study", "status", tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_the_display_without_a_terminal_is_lines(tmp_path: Path) -> None:
    text = io.StringIO()
    jobs = plan([LITE0], [0], ["trainer.epochs=8"], tmp_path)
    _write_epochs(jobs[0], 2)
    with Display(jobs, Console(file=text)) as display:
        display.on_start(jobs[0])
        display.on_look(jobs)
        display.on_end(RunOutcome(jobs[0], State.FAILED, "no loss"))
    begun, failed = text.getvalue().splitlines()
    assert begun == "lite0 seed 0: begins from epoch 3" and failed.startswith("lite0 seed 0: failed  no loss  (1/1")


def test_status_of_a_run_that_was_stopped(tmp_path: Path) -> None:
    (job,) = plan([LITE0], [0], ["trainer.epochs=4"], tmp_path)
    _write_epochs(job, 2)
    job.directory.config_file.write_text("name: lite0\ntrainer: {epochs: 4}\n")
    table = status_table([job.directory], "a study")
    cells = [str(next(iter(column.cells))) for column in table.columns]
    assert cells[1:5] == ["0", "interrupted", "2/4", "60.00"]


def _write_epochs(job: Job, epochs: int) -> None:
    job.directory.path.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{epoch},{70 - 5 * epoch}\n" for epoch in range(1, epochs + 1))
    job.directory.metrics_file.write_text(f"epoch,val/MR/reasonable_all\n{rows}")


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(few_pairs: Path, tmp_path: Path) -> None:
    settings = (*SMALL, f"data.root={few_pairs}", "trainer.epochs=30")
    directory = RunDirectory(tmp_path / "lite0" / "seed0")
    with started(script("study", "run", LITE0, *settings, f"--out={tmp_path}"), directory.path) as process:
        other = command("study", "run", LITE0, *settings, f"--out={tmp_path}")  # beside it: leaves the run alone
        assert "in another process: lite0 seed 0" in other.stdout
        os.killpg(process.pid, signal.SIGKILL)
    time.sleep(1)
    assert directory.state is State.INTERRUPTED
    done = command("study", "run", LITE0, *settings, f"--out={tmp_path}")
    assert done.returncode == 0 and "begins from epoch" in done.stdout, done.stdout + done.stderr
    assert len(directory.metrics()) == 30 and directory.environment()["resumed"]


@pytest.mark.slow
@pytest.mark.parametrize("all_of_them", [True, False])
def test_sigterm_stops_a_study_and_no_run_counts_as_failed(all_of_them: bool, few_pairs: Path, tmp_path: Path) -> None:
    """Sent to the study alone, as ``kill`` does, or to its runs and their workers too, as ``timeout`` does."""
    settings = (*SMALL, f"data.root={few_pairs}", "trainer.epochs=500", "data.workers=1", f"--out={tmp_path}")
    directory = RunDirectory(tmp_path / "lite0" / "seed0")
    with started(script("study", "run", LITE0, *settings), directory.path) as process:
        (os.killpg if all_of_them else os.kill)(process.pid, signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said, said
    assert directory.state is State.INTERRUPTED and "stopped in epoch" in directory.log_file.read_text()
