"""Searching: what may be drawn, trials that are runs, and a search that survives what happens to it."""

import csv
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import command
from lightning.pytorch import Callback
from optuna.distributions import CategoricalDistribution
from optuna.distributions import FloatDistribution as Floats
from optuna.distributions import IntDistribution as Ints
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState, create_trial
from rich.console import Console
from untrained import of_pairs

from data_kaist.errors import DataError
from ssd_effnet.config.keys import settings
from ssd_effnet.config.loading import ConfigError, differences, layers_of, load_experiment, save_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.study.search import trials as searching
from ssd_effnet.study.search.space import read_space
from ssd_effnet.study.search.trials import SearchError, counts, open_study, plan_search, run_trials, write_best
from ssd_effnet.training.module import NonFiniteError
from ssd_effnet.training.run_directory import Interrupted, RunError

ROOT = Path(__file__).resolve().parents[2]
SPACE = """
optimizer.lr: {low: 1e-7, high: 1e-2, log: true}
schedule.warmup_steps: [0, 1]
"""


@pytest.fixture
def files(few_pairs: Path, tmp_path: Path) -> Path:
    keys = ("name=tiny", "data.test=never_there.json", "augment.names=[]", "schedule.name=constant")
    trainer = ("trainer.epochs=4", "trainer.ema_decay=0", "trainer.monitor=val/loss_total")
    save_experiment(of_pairs(few_pairs, *keys, *trainer), tmp_path / "tiny.yaml")
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


def planned(files: Path, *overrides: str) -> searching.Search:
    return plan_search(files / "tiny.yaml", files / "space.yaml", overrides, files / "search")


def space_of(tmp_path: Path, text: str) -> dict[str, Any]:
    (tmp_path / "space.yaml").write_text(text)
    return read_space(tmp_path / "space.yaml")


@pytest.mark.parametrize(
    ("text", "key", "draw"),
    [
        ("optimizer.lr: {low: 1e-5, high: 1e-2, log: true}", "optimizer.lr", Floats(1e-5, 1e-2, True)),
        ("optimizer.name: [sgd, adamw]", "optimizer.name", ["sgd", "adamw"]),
        ("optimizer.weight_decay: [1e-4, 0]", "optimizer.weight_decay", [1e-4, 0.0]),
        ("optimizer.decay_norms: [true, false]", "optimizer.decay_norms", [True, False]),
        ("neck.channels: [null, 64]", "neck.channels", [None, 64]),
        ("anchors.ratios: [[0.5, 1e-0], [0.4]]", "anchors.ratios", [[0.5, 1.0], [0.4]]),
        ("trainer.epochs: {low: 2, high: 10, step: 3}", "trainer.epochs", Ints(2, 8, False, 3)),
        ("neck.channels: {low: 16, high: 64, log: true}", "neck.channels", Ints(16, 64, True)),
        ("backbone.pretrained: [no, 1.10, 010]", "backbone.pretrained", ["no", "1.10", "010"]),
        ("trainer.epochs: {low: 010, high: 012}", "trainer.epochs", Ints(10, 12)),
        ("trainer.epochs: [010, 011]", "trainer.epochs", [10, 11]),
        ("augment.flip.p: {low: 0, high: 0.95, step: 0.1}", "augment.flip.p", Floats(0.0, 0.9, False, 0.1)),
    ],
)
def test_a_space_has_the_types_of_the_schema(tmp_path: Path, text: str, key: str, draw: Any) -> None:
    read = space_of(tmp_path, text)
    if isinstance(draw, list):
        assert json.dumps([json.loads(value) for value in read[key].choices]) == json.dumps(draw)
    else:
        assert read == {key: draw}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optimizer.lrr: [1, 2]", "key `optimizer.lrr` is unknown; did you mean `optimizer.lr`?"),
        ("optimizer.name: [sgdd, adamw]", "key `optimizer.name`: 'sgdd' is not one of sgd, rmsprop, adamw"),
        ("optimizer.lr: [fast, 1]", "key `optimizer.lr`: expected number, not 'fast'"),
        ("optimizer.lr: []", "two values or more"),
        ("optimizer.lr: {low: 1e-2, high: 1e-4}", "low=0.01, high=0.0001"),
        ("optimizer.lr: {low: 0, high: 1, log: true}", "log"),
        ("optimizer.lr: {low: .nan, high: 1}", "low, high and step are numbers"),
        ("optimizer.lr: {low: 0.1}", "lacks high"),
        ("trainer.epochs: {low: 3, high: 5, step: 4}", "nothing to draw"),
        ("optimizer.lr: {low: 0, high: 1, stepp: 1}", "did you mean `step`?"),
        ("trainer.epochs: {low: 1.5, high: 3}", "low, high and step are whole numbers"),
        ("optimizer.decay_norms: {low: 0, high: 1}", "only numbers have a range"),
        ("optimizer.lr: 0.1", "must be a list to choose from or {low: ..., high: ...}"),
        ("optimizer.lr: [1, 2]\noptimizer.lr: [3, 4]", "is a duplicate"),
        ("trainer.seed: [1, 2]", "cannot be searched"),
        ("data.train_annotations: [xml, paired]", "cannot be searched"),
        ("", "must hold `key: what to draw` lines"),
    ],
)
def test_a_wrong_space_is_refused_in_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space_of(tmp_path, text)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "space.yaml"))


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "spaces").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_spaces_beside_the_experiments_hold_the_experiment(path: Path) -> None:
    """Its own values lie inside: a search starts around them."""
    e = load_experiment(ROOT / "experiments" / path.name)
    for key, draw in plan_search(Path(path.stem), Path(path.stem)).space.items():  # both by name
        value = settings(e)[key]
        choices = isinstance(draw, CategoricalDistribution)
        assert json.dumps(value) in draw.choices if choices else draw.low <= value <= draw.high, key


@pytest.mark.parametrize(
    ("overrides", "space", "says"),
    [
        (["optimizer.lr=0.1"], SPACE, "key `optimizer.lr` is drawn there and also given as an override"),
        (["data.val="], SPACE, "names no validation split"),
        (["data.val=never_there.json", "trainer.test_checkpoint=last"], SPACE, "is the test split"),
        ([], "class_loss.negative_ratio: [1, 2]", "changes what val/loss_total means"),
    ],
)
def test_a_search_that_would_deceive_is_refused(files: Path, overrides: list[str], space: str, says: str) -> None:
    (files / "space.yaml").write_text(space)
    with pytest.raises(ConfigError) as caught:
        planned(files, *overrides)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_images_that_test_choose_no_trial(files: Path) -> None:
    with pytest.raises(RunError, match=r"data\.val.*five\.json|five\.json.*data\.val"):
        open_study(planned(files, "data.test=five.json", "trainer.test_checkpoint=last"))


@pytest.mark.slow
def test_a_search_from_the_command_to_the_new_experiment(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "STARTUP", 1)
    out, epochs = files / "search", "trainer.epochs=3"
    line = ["search", files / "tiny.yaml", "--space", files / "space.yaml", "--out", out]
    study = open_study(planned(files, epochs))
    study.enqueue_trial({"optimizer.lr": 1e-3, "schedule.warmup_steps": "0"})
    study.enqueue_trial({"optimizer.lr": 1e-7, "schedule.warmup_steps": "1"})  # learns nothing, so it is pruned
    study.enqueue_trial({"optimizer.lr": 3e-3, "schedule.warmup_steps": "0"})
    assert command(*line, "--trials", 2, epochs).returncode == 0
    assert counts(study) == {"finished": 1, "pruned": 1, "failed": 0, "running": 0}

    # trials are ordinary runs, and none has looked at the test split, which is not even there
    runs = [out / f"tiny-trial{k}" / "seed0" for k in range(2)]
    results = json.loads((runs[0] / "results.json").read_text())
    assert "test" not in results and results["val"]["best"] == study.trials[0].value
    rows = [list(csv.DictReader((run / "metrics.csv").open())) for run in runs]
    assert len(rows[0]) == 3 and 1 <= len(rows[1]) <= 2
    values = [float(row["val/loss_total"]) for row in rows[0]]
    assert list(study.trials[0].intermediate_values.values()) == pytest.approx(values)
    assert (runs[1] / "failure.txt").read_text().startswith("pruned after epoch")

    # the same command goes on, and knows when it is done
    shown = [command(*line, "--trials", 3, epochs) for _ in range(2)]
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert all(done.returncode == 0 and not done.stderr for done in shown)
    assert "trial 1: " not in shown[0].stdout and "trial 2: " in shown[0].stdout

    # the result is a diff of the experiment
    result = out / "tiny_found.yaml"
    found, best = load_experiment(result), searching.best_trials(planned(files, epochs), study)[0]
    assert f"found: {result}" in shown[1].stdout and found.optimizer.lr == best.params["optimizer.lr"]
    assert (found.name, found.data.test, found.trainer.epochs) == ("tiny_found", "never_there.json", 3)
    changed = differences(found, load_experiment(layers_of(result)[1][0]))
    assert changed == sorted(found.changes) and "trainer.epochs" in changed
    assert result.read_text().startswith("base: ../tiny.yaml\n")


def test_another_search_has_no_place_in_the_directory(files: Path) -> None:
    open_study(planned(files))
    for epochs, space, says in (
        (5, SPACE, "was started with another experiment; these differ: trainer.epochs"),
        (4, SPACE.replace("1e-2", "1e-1"), "was started with another space; these differ: optimizer.lr"),
    ):
        (files / "space.yaml").write_text(space)
        with pytest.raises(SearchError, match=says):
            open_study(planned(files, f"trainer.epochs={epochs}"))
    (files / "space.yaml").write_text(SPACE)
    search = planned(files, "trainer.threads=2", "data.workers=1")  # where it runs is free
    fewer = shutil.copytree(search.base.data.root, files / "fewer")
    search.base.data.root = str(fewer)
    open_study(search)
    content = json.loads((fewer / "val.json").read_text())
    content["annotations"].pop()
    (fewer / "val.json").write_text(json.dumps(content))
    with pytest.raises(SearchError, match="was started with other data; these differ: val"):
        open_study(search)


def pretend(monkeypatch: pytest.MonkeyPatch, loss_of: Callable[[ExperimentConfig, int], float]) -> list[str]:
    """Replace training: epoch by epoch the callbacks see ``loss_of(experiment, epoch)``. Returns names as they run."""
    begun: list[str] = []

    def run(e: ExperimentConfig, out: Path, *, resume: bool, echo: Any, callbacks: list[Callback]) -> dict[str, Any]:
        assert resume and e.data.test == ""
        begun.append(e.name)
        best = math.inf
        trainer: Any = SimpleNamespace(max_epochs=e.trainer.epochs, logger=None)
        for epoch in range(e.trainer.epochs):
            trainer.current_epoch = epoch
            callbacks[0].on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
            loss = loss_of(e, epoch)
            best = min(best, loss)
            trainer.callback_metrics = {"val/loss_total": loss}
            callbacks[0].on_validation_end(trainer, None)  # type: ignore[arg-type]
        return {"val": {"best": best}, "epoch": e.trainer.epochs}

    monkeypatch.setattr(searching, "run", run)
    monkeypatch.setattr("optuna.study._optimize.gc", SimpleNamespace(collect=lambda: 0))  # slow, nothing to collect
    return begun


def by_rate(e: ExperimentConfig, epoch: int) -> float:
    """Best at a rate of 1e-4."""
    return abs(math.log10(e.optimizer.lr) + 4) + 1 / (1 + epoch)


def test_a_metric_that_is_always_the_same_chooses_nothing(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda e, epoch: 100.0)
    search = planned(files)
    study = open_study(search)
    run_trials(search, study, 3)
    description = load_experiment(write_best(search, study)).description
    assert "trial 0, the best of 3" in description and "2 more have the same value" in description
    for width in (200, 60):  # the table fits its terminal
        text = io.StringIO()
        Console(file=text, width=width).print(searching.trials_table(search, study))
        assert max(map(len, text.getvalue().splitlines())) <= width and "…" not in text.getvalue()


def test_a_trial_has_the_last_value_and_its_backbones_mean(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last checkpoint is tested; the best value would be of weights that are thrown away."""
    means, lines = {}, list[str]()

    def worse_and_worse(e: ExperimentConfig, epoch: int) -> float:
        means[e.backbone.name] = e.input.mean
        return 1.0 + epoch

    pretend(monkeypatch, worse_and_worse)
    (files / "space.yaml").write_text("backbone.name: [efficientnet-lite0, efficientnet-b0]\n")
    search = planned(files, "trainer.test_checkpoint=last")
    study = open_study(search)
    study.enqueue_trial({"backbone.name": '"efficientnet-b0"'})
    run_trials(search, study, 1, lines.append)
    assert study.trials[0].value == 4.0 and lines[-1] == "trial 0: val/loss_total 4 in epoch 4"
    assert load_experiment(write_best(search, study)).input.mean == means["efficientnet-b0"] != search.base.input.mean


def test_equal_trials_stand_as_they_were_begun_with_their_epochs(files: Path) -> None:
    search = planned(files, "trainer.epochs=5", "trainer.validate_every=2")
    study = open_study(search)
    drawn: dict[str, Any] = {"params": {"optimizer.lr": 1e-3, "schedule.warmup_steps": "0"}}
    for first, value in ((None, None), (None, 0.5), (0, 0.5)):  # the process of the first one died
        drawn |= {"system_attrs": {} if first is None else {"failed_trial": first}, "distributions": search.space}
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        study.add_trial(create_trial(state=state, value=value, intermediate_values={1: 2.0, 3: 0.5}, **drawn))
    assert [searching.trial_number(trial) for trial in searching.best_trials(search, study)] == [0, 1]
    text = io.StringIO()
    Console(file=text, width=200).print(searching.trials_table(search, study))
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in text.getvalue().splitlines()[-3:-1]]
    assert rows == [["0", "0.5", "5"], ["1", "0.5", "5"]]


def test_a_search_that_goes_on_elsewhere_trains_there(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = []

    def loss(e: ExperimentConfig, epoch: int) -> float:
        where.append((e.data.root, e.data.workers))
        return by_rate(e, epoch)

    pretend(monkeypatch, loss)
    root = Path(planned(files).base.data.root)
    shutil.copytree(root, moved := files / "möved")
    for place, trials in ((root, 1), (moved, 2)):
        search = planned(files, f"data.root={place}", f"data.workers={trials}")
        run_trials(search, open_study(search), trials)
    assert list(dict.fromkeys(where)) == [(str(root), 1), (str(moved), 2)]
    assert load_experiment(write_best(search, open_study(search))).data.root == str(moved)


def test_a_search_that_knows_fewer_keys_goes_on_with_their_defaults(files: Path) -> None:
    search = planned(files)
    open_study(search)
    text = search.snapshot.read_text()
    assert "delta" in text
    search.snapshot.write_text(re.sub(r" *delta: .*\n", "", text))  # as if a later schema had gained it
    open_study(search)
    with pytest.raises(SearchError, match=r"these differ: box_loss\.delta"):
        open_study(planned(files, "box_loss.delta=0.5"))


def test_a_trial_that_fails_stops_nothing(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explodes(e: ExperimentConfig, epoch: int) -> float:
        if e.optimizer.lr > 1e-3:
            raise NonFiniteError("the loss is nan at step 3\nwith a second line")
        if e.optimizer.lr < 1e-4:
            raise RunError("the validation split holds nobody of the subset")
        return by_rate(e, epoch)

    pretend(monkeypatch, explodes)
    rates = "optimizer.lr: [1e-5, 1e-4, 3e-4, 1e-3, 1e-2]"
    (files / "space.yaml").write_text(f"{rates}\nschedule.name: [constant, cosine, plateau]\n")
    search = planned(files, "schedule.warmup_steps=1")  # plateau refuses a warm-up
    study = open_study(search)
    lines: list[str] = []
    for rate, name in ((1e-2, "cosine"), (1e-5, "cosine"), (1e-4, "plateau"), (1e-4, "cosine"), (3e-4, "constant")):
        study.enqueue_trial({"optimizer.lr": json.dumps(rate), "schedule.name": json.dumps(name)})
    run_trials(search, study, 2, lines.append)
    sentences = list(searching.failures(study).values())
    assert counts(study) == {"finished": 2, "pruned": 0, "failed": 3, "running": 0}
    assert r"failed: the loss is nan at step 3\nwith a second line" in sentences
    assert "failed: the validation split holds nobody of the subset" in sentences
    assert any("key `schedule.warmup_steps`: must be 0 with plateau" in sentence for sentence in sentences)
    assert any(line.endswith("with a second line") for line in lines)


def test_a_search_in_which_everything_fails_ends(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explodes(e: ExperimentConfig, epoch: int) -> float:
        raise NonFiniteError("the loss is nan")

    begun = pretend(monkeypatch, explodes)
    search = planned(files)
    with pytest.raises(SearchError, match="10 trials failed and 0 did not; the last one: failed: the loss is nan"):
        run_trials(search, open_study(search), 3)
    assert len(begun) == 10
    with pytest.raises(SearchError, match="no trial has finished"):
        write_best(search, open_study(search))


@pytest.mark.parametrize(
    "error", [DataError("a.jpg: is truncated"), Interrupted("stopped in epoch 2"), OSError("full")]
)
def test_what_stops_the_search_costs_no_trial(files: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    troubles: list[Exception] = [error] * 7

    def trouble(e: ExperimentConfig, epoch: int) -> float:
        if epoch == 2 and troubles:
            raise troubles.pop()
        return by_rate(e, epoch)

    begun = pretend(monkeypatch, trouble)
    search = planned(files)
    study = open_study(search)
    while troubles:
        with pytest.raises(type(error), match=str(error)):
            run_trials(search, study, 2)
    run_trials(search, open_study(search), 2)
    assert begun == ["tiny-trial0"] * 8 + ["tiny-trial8"]
    assert counts(study) == {"finished": 2, "pruned": 0, "failed": 0, "running": 0}


def in_processes(count: int, task: Callable[[], None]) -> list[int | None]:
    processes = [multiprocessing.get_context("fork").Process(target=task) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@pytest.mark.slow
def test_the_trial_of_a_dead_process_goes_on(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "HEARTBEAT", 1)
    monkeypatch.setattr(searching, "GRACE", 1)

    def dies(e: ExperimentConfig, epoch: int) -> float:
        if epoch == 1:
            os._exit(9)
        return by_rate(e, epoch)

    def later(trials: int, echo: Callable[[str], None] = print) -> None:
        study = open_study(search)
        time.sleep(2.5)
        run_trials(search, study, trials, echo)

    search = planned(files)
    study = open_study(search)
    monkeypatch.setattr(searching.RETRY, "_max_retry", 1)
    pretend(monkeypatch, dies)
    assert in_processes(1, lambda: later(1)) == [9]
    assert counts(study)["running"] == 1
    begun, lines = pretend(monkeypatch, by_rate), []
    later(1, lines.append)  # type: ignore[arg-type]
    assert begun == ["tiny-trial0"] and counts(study) == {"finished": 1, "pruned": 0, "failed": 0, "running": 0}
    first, last = study.trials[0], study.trials[-1]
    assert first.state == TrialState.FAIL and last.params == first.params and len(last.intermediate_values) == 4
    assert lines[0].startswith("trial 0: goes on: ")
    assert "trial 0, the best of 1" in load_experiment(write_best(search, study)).description

    pretend(monkeypatch, dies)
    for _ in range(2):
        assert in_processes(1, lambda: later(2)) == [9]
    begun = pretend(monkeypatch, by_rate)
    later(2)
    assert searching.failures(study) == {2: "its process died again and again"} and begun == ["tiny-trial4"]


def test_processes_at_the_same_time_share_the_trials(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, by_rate)
    search = planned(files)
    study = open_study(search)
    assert in_processes(3, lambda: run_trials(search, open_study(search), 8)) == [0, 0, 0]
    assert 8 <= len(study.trials) <= 10 and counts(study)["running"] == 0  # two may draw the last one at once
    rates = [trial.params["optimizer.lr"] for trial in study.trials]
    assert len(set(rates)) == len(rates)  # not the same draws three times


def test_a_file_that_is_no_storage_is_named(files: Path) -> None:
    (files / "search").mkdir()
    (files / "search" / "search.db").write_text("no database, but long enough to look like one " * 100)
    with pytest.raises(SearchError, match=r"search\.db: is not [^\n]*$"):
        open_study(planned(files))


def test_a_storage_that_cannot_be_written_ends_in_a_sentence(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(e: ExperimentConfig, epoch: int) -> float:
        raise StorageInternalError("database or disk is full\nmore")

    pretend(monkeypatch, full)
    search = planned(files)
    with pytest.raises(SearchError, match=r"search\.db: database or disk is full$"):
        run_trials(search, open_study(search), 2)


def test_without_optuna_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("optuna", "ssd_effnet.study.search"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = command("search", "a.yaml", "--space", "b.yaml", "--trials", 1)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "optuna" in done.stderr and "'.[search]'" in done.stderr
