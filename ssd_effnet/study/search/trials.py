"""A search with Optuna: each trial is an ordinary run, chosen by its validation split.

A search lives in one directory: ``search.db`` (Optuna's storage), one run directory per trial, and the experiment that
was found. Several processes may work on it. When the heartbeat of one stops, Optuna queues its trial again, and the
process that takes it resumes the run from its last checkpoint. In the storage each attempt is a trial of its own;
elsewhere all attempts are one trial.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from lightning.pytorch import Callback, LightningModule, Trainer
from optuna.distributions import CategoricalDistribution, IntDistribution, distribution_to_json
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from data_kaist.errors import DataError, Failure
from data_kaist.files import write_whole
from ssd_effnet.build import build_dataset
from ssd_effnet.config.keys import settings, unlike
from ssd_effnet.config.loading import WHERE, as_difference, find_experiment, load_experiment, save_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import ConfigError
from ssd_effnet.evaluation.metrics import Metric, metric_of
from ssd_effnet.study.report_entries import setting
from ssd_effnet.study.search.space import Space, read_space
from ssd_effnet.training.preflight import refuse_shared_images
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import Busy, Interrupted, RunDirectory, describe_data

STARTUP = 8  # trials that are drawn at random and run to their end
HEARTBEAT, GRACE = 5, 30  # seconds between two heartbeats, and without one after which a process counts as dead
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_CHANGE_THE_LOSS = ("anchors.", "matcher.", "class_loss.", "box_loss.", "data.min_height")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ExperimentalWarning)
    RETRY = RetryHeartbeatStaleTrialCallback(max_retry=5, inherit_intermediate_values=True)  # of dead processes
    AGAIN = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)  # of those that were stopped


class SearchError(Failure, RuntimeError):
    """A search cannot start or continue."""


@dataclass(frozen=True)
class Search:
    """A search in ``out`` around the experiment of ``file``. ``base`` is that with the overrides of all trials."""

    file: Path
    base: ExperimentConfig
    space: Space
    out: Path

    @property
    def metric(self) -> Metric:
        return metric_of(self.base.trainer.monitor)

    @property
    def snapshot(self) -> Path:
        """The experiment as the search was started with it. Its file may change meanwhile."""
        return self.out / "experiment.yaml"

    def experiment_with(self, values: dict[str, Any], *overrides: str) -> ExperimentConfig:
        """The experiment as it was started, with a trial's values, where this command says."""
        flat = settings(self.base)
        every = {key: flat[key] for key in WHERE} | values
        own = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in every.items()]
        return load_experiment(self.snapshot, [*own, *overrides])


def plan_search(file: Path, space_file: Path, overrides: Sequence[str] = (), out: Path | None = None) -> Search:
    """Read and check everything that a search needs; ``out`` None: ``runs/<experiment>-search``."""
    file, space_file = find_experiment(file), find_experiment(space_file, folder="spaces")
    base = load_experiment(file, overrides)
    space = read_space(space_file, base)
    given = {override.partition("=")[0].strip() for override in overrides}
    if both := sorted(given & space.keys()):
        raise ConfigError(f"{space_file}: key `{both[0]}` is drawn there and also given as an override; leave one out")
    if not base.data.val:
        raise ConfigError(f"{file}: key `data.val`: names no validation split, and nothing else may choose a trial")
    if base.data.val == base.data.test:
        raise ConfigError(f"{file}: key `data.val`: is the test split, which must not choose a trial")
    if base.trainer.devices * base.trainer.num_nodes > 1:
        raise ConfigError(f"{file}: key `trainer.devices`: a trial of a search runs on one device; set it to 1")
    shifting = [key for key in space if key.startswith(_CHANGE_THE_LOSS)]
    if shifting and base.trainer.monitor == "val/loss_total":
        raise ConfigError(
            f"{space_file}: key `{shifting[0]}` changes what val/loss_total means, so trials could not be compared "
            "by it; set trainer.monitor to another metric"
        )
    return Search(file, base, space, out or Path("runs") / f"{base.name}-search")


def open_study(search: Search) -> optuna.Study:
    """The search's study, begun where there is none.

    Raises:
        SearchError: the directory holds another search, or a file that is none.
        DataError: the data cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    datasets = {stage: build_dataset(search.base, stage) for stage in ("train", "val")}
    data, e = describe_data(datasets), search.base
    if e.data.test and not e.data.allow_overlap:
        with suppress(DataError):  # test data need not be there
            datasets["test"] = build_dataset(e, "test")
        refuse_shared_images(replace(e, trainer=replace(e.trainer, test_checkpoint="best")), datasets)
    search.out.mkdir(parents=True, exist_ok=True)
    database = search.out / "search.db"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # Optuna's heartbeat
            storage = RDBStorage(
                f"sqlite:///{database}",
                engine_kwargs={"connect_args": {"timeout": 60}},  # SQLite's own lock
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=RETRY,
            )
            study = optuna.create_study(
                storage=storage,
                study_name="search",
                direction="minimize" if search.metric.lower_is_better else "maximize",
                pruner=optuna.pruners.MedianPruner(STARTUP, n_warmup_steps=search.base.trainer.epochs // 4),
                load_if_exists=True,
            )
    except Exception as error:
        raise SearchError(f"{database}: is not the storage of a search ({str(error).splitlines()[0]})") from error
    _refuse_another(search, study, {stage: of["fingerprint"] for stage, of in data.items()})
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        storage.record_heartbeat(trial._trial_id)  # a process that died before its first one would never be missed
    return study


def _refuse_another(search: Search, study: optuna.Study, data: dict[str, str]) -> None:
    """Refuse to go on with another search than was begun. What a new one searches is written down."""
    now: dict[str, dict[str, Any]] = {
        "another space": {key: distribution_to_json(draw) for key, draw in search.space.items()},
        "other data": data,
    }
    if "begun" not in study.user_attrs:
        save_experiment(search.base, search.snapshot)
        study.set_user_attr("begun", now)
    # what a later schema has more was its default then, as for a run that goes on
    differ = {"another experiment": unlike(load_experiment(search.snapshot), search.base).keys() - {*WHERE}}
    for what, here in now.items():
        before = study.user_attrs["begun"][what]
        differ[what] = {key for key in before | here if before.get(key) != here.get(key)}
    for what, keys in differ.items():
        if keys:
            raise SearchError(
                f"{search.out}: was started with {what}; these differ: {', '.join(sorted(keys))}; choose another "
                "--out, or delete it"
            )


def run_trials(search: Search, study: optuna.Study, trials: int, echo: Callable[[str], None] = print) -> None:
    """Run trials in turn until ``trials`` are finished or pruned. Those of other processes count.

    A trial that fails is written down with its sentence, and another one takes its place.

    Raises:
        Busy, Interrupted, DataError, OSError: what the next trial would meet as well. The trial is not lost: it is
            queued again.
        SearchError: ten trials have failed, and few others did not; the storage cannot be written, or another process
            has taken over the trial.
    """
    failed_before = counts(study)["failed"]

    def refuse_to_fail_on(study: optuna.Study, _: FrozenTrial) -> None:
        number = counts(study)
        failed, ended = number["failed"] - failed_before, number["finished"] + number["pruned"]
        if failed >= 10 + 2 * ended:
            last = list(failures(study).values())[-1]
            raise SearchError(f"{search.out}: {failed} trials failed and {ended} did not; the last one: {last}")

    if len(study.get_trials(deepcopy=False, states=_ENDED)) >= trials:
        return
    stop = MaxTrialsCallback(trials, states=_ENDED)
    try:
        study.optimize(lambda t: _run_trial(search, t, echo), callbacks=[refuse_to_fail_on, stop], gc_after_trial=True)
    except optuna.exceptions.OptunaError as error:
        raise SearchError(f"{search.out / 'search.db'}: {str(error).splitlines()[0]}") from error


def trial_number(trial: FrozenTrial) -> int:
    """Number of a trial's first attempt, which names its run."""
    return int(trial.system_attrs.get("failed_trial", trial.number))  # as Optuna's retried_trial_number() reads it


def last_attempts(study: optuna.Study) -> dict[int, FrozenTrial]:
    """Every trial in the state of its last attempt, by its number."""
    return {trial_number(trial): trial for trial in study.get_trials(deepcopy=False)}


def counts(study: optuna.Study) -> dict[str, int]:
    """How many trials are finished, pruned, failed and running. Those left by dead processes count as running."""
    states = [trial.state for trial in last_attempts(study).values()]
    names = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
    return {name: states.count(TrialState[state]) for name, state in names.items()}


def failures(study: optuna.Study) -> dict[int, str]:
    """Reasons of failed trials, by number."""
    failed = {k: trial for k, trial in last_attempts(study).items() if trial.state == TrialState.FAIL}
    return {k: trial.user_attrs.get("failure", "its process died again and again") for k, trial in failed.items()}


def drawn(search: Search, trial: optuna.Trial | FrozenTrial) -> dict[str, Any]:
    """The settings of a trial, with the types of the schema."""
    return {
        key: json.loads(trial.params[key]) if isinstance(draw, CategoricalDistribution) else trial.params[key]
        for key, draw in search.space.items()
    }


def _suggest(search: Search, trial: optuna.Trial) -> dict[str, Any]:
    """Draw the trial's settings. A trial that is tried again has them already."""
    # a seed per trial: parallel workers draw differently, and a search can be repeated
    trial.study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=trial.number)
    for key, draw in search.space.items():
        if isinstance(draw, CategoricalDistribution):
            trial.suggest_categorical(key, draw.choices)
        else:
            suggest: Any = trial.suggest_int if isinstance(draw, IntDistribution) else trial.suggest_float
            suggest(key, draw.low, draw.high, step=draw.step, log=draw.log)
    return drawn(search, trial)


def _run_trial(search: Search, trial: optuna.Trial, echo: Callable[[str], None]) -> float:
    """Run a trial and return its value. NaN, which Optuna counts as failed, if it failed by itself."""
    number, t = trial_number(trial.study.trials[trial.number]), search.base.trainer

    def say(line: str) -> None:
        echo(f"trial {number}: {line}")

    values, pruner = _suggest(search, trial), Pruner(search, trial)
    say(("goes on: " if pruner.reported else "") + ", ".join(f"{k} {setting(v)}" for k, v in values.items()))
    name = f"{search.base.name}-trial{number}"
    directory = RunDirectory(search.out / name / f"seed{t.seed}")
    # the test split chooses nothing, so it is not even looked at
    try:
        experiment = search.experiment_with(values, f"name={name}", "data.test=")
        results = run(experiment, search.out, resume=True, echo=say, callbacks=[pruner])
        # of the checkpoint that is tested, or of the last validation before it
        epoch = results["epoch"] if t.test_checkpoint == "best" else max(pruner.reported) + 1
        value = float(results["val"]["best"]) if t.test_checkpoint == "best" else pruner.reported[epoch - 1]
        if math.isfinite(value):
            say(f"{t.monitor} {value:.4g} in epoch {epoch}")
            return value
        note = f"failed: {t.monitor} was never a finite number"
    except optuna.TrialPruned as pruned:
        directory.fail(str(pruned))
        say(str(pruned))
        raise
    except (Exception, KeyboardInterrupt) as error:
        # refused settings, a loss that is not finite and too little memory are the trial's own; all else is not
        if isinstance(error, Busy | Interrupted | DataError) or not isinstance(error, ValueError | RuntimeError):
            AGAIN(trial.study, trial.study.trials[trial.number])
            raise
        note = f"failed: {' '.join(str(error).split())[:500]}"
    if directory.path.is_dir():
        directory.fail(note)
    trial.set_user_attr("failure", note)
    say(note)
    return math.nan


class Pruner(Callback):
    """Reports each validation to Optuna, and stops trials that it prunes.

    The run is stopped when the next epoch begins: by then everything about the last one is written.
    """

    def __init__(self, search: Search, trial: optuna.Trial) -> None:
        self.search = search
        self.trial = trial
        self.reported = dict(trial.study.trials[trial.number].intermediate_values)  # of earlier attempts
        self.hopeless = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, monitor = trainer.current_epoch, self.search.base.trainer.monitor
        if monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[monitor])
        if epoch not in self.reported:  # a resumed run may repeat the epoch in which it was stopped
            self.trial.report(value, epoch)
        self.reported[epoch] = value
        self.hopeless = self.trial.should_prune()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.hopeless:
            best = f"{self.search.base.trainer.monitor} {self.search.metric.best(self.reported.values()):.4g}"
            raise optuna.TrialPruned(f"pruned after epoch {trainer.current_epoch} of {trainer.max_epochs}, {best}")


def best_trials(search: Search, study: optuna.Study) -> list[FrozenTrial]:
    """Finished trials, best first. Equal ones in the order in which they were begun."""
    sign = 1 if search.metric.lower_is_better else -1
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(finished, key=lambda trial: (sign * (trial.value or 0.0), trial_number(trial)))


def trials_table(search: Search, study: optuna.Study, count: int = 10) -> Table:
    """Table of the best trials, one per row; it fits any terminal."""
    title = f"{search.base.name}: {', '.join(f'{n} {name}' for name, n in counts(study).items() if n)}"
    table = Table("trial", search.base.trainer.monitor, "epochs", title=title, title_justify="left")
    for column in table.columns:
        column.overflow = "fold"
    table.add_column("settings", overflow="fold")
    for trial in best_trials(search, study)[:count]:
        values = drawn(search, trial)
        epochs = setting(values.get("trainer.epochs", search.base.trainer.epochs))
        said = ", ".join(f"{key} {setting(value)}" for key, value in values.items())
        table.add_row(str(trial_number(trial)), setting(trial.value), epochs, said)
    return table


def write_best(search: Search, study: optuna.Study) -> Path:
    """Write the best trial as an experiment file. It states differences from the experiment searched around."""
    ranking = best_trials(search, study)
    if not ranking:
        raise SearchError(f"{search.out}: no trial has finished, so nothing is found")
    best, number, path = ranking[0], counts(study), search.out / f"{search.base.name}_found.yaml"
    equal = sum(trial.value == best.value for trial in ranking) - 1
    values = drawn(search, best)
    found, parent = search.experiment_with(values), load_experiment(search.file)
    found.trainer.threads = parent.trainer.threads
    changes = list(unlike(found, parent))
    description = (
        f"Which {', '.join(values)} suit {search.base.name}? Found by ssd-effnet search: trial {trial_number(best)}, "
        f"the best of {number['finished'] + number['pruned']} ({number['pruned']} of them pruned; {number['failed']} "
        f"more failed), with {search.base.trainer.monitor} {best.value:.4g} on the validation split "
        f"{search.base.data.val}, one seed: better than what another seed or the test split will show."
        + (f" {equal} more have the same value, which does not choose among them." if equal else "")
    )
    base = Path(os.path.relpath(search.file.resolve(), path.resolve().parent)).as_posix()
    flat = settings(found)  # what is chosen anew has dropped the arguments of the old
    write_whole(path, as_difference(base, description, changes, {key: flat[key] for key in changes if key in flat}))
    return path
