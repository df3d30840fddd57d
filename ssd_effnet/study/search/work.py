"""A search with Optuna: each trial is an ordinary run, chosen by its validation split.

A search lives in one directory: ``search.db`` (Optuna's storage), one run directory per trial, and in the end the
experiment that was found. Several processes, started together or one after the other, work on it. Each sends a
heartbeat while it works on a trial; when the heartbeat stops, Optuna queues the trial again, and the process that takes
it resumes the run from its last checkpoint. In the storage each attempt is a trial of its own; elsewhere it is one.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from optuna.distributions import CategoricalDistribution, IntDistribution, distribution_to_json
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, TrialState

from data_kaist.errors import DataError, Failure
from ssd_effnet.build import build_dataset
from ssd_effnet.config.keys import unlike
from ssd_effnet.config.loading import WHERE, find_experiment, load_experiment, save_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import ConfigError
from ssd_effnet.evaluation.metrics import Metric, metric_of
from ssd_effnet.study.search.space import Space, read_space
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import Busy, Interrupted, RunDirectory, describe_data

_HEARTBEAT = 5  # seconds between two
_GRACE = 30  # seconds without a heartbeat after which a process counts as dead
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ExperimentalWarning)
    # of a trial whose process died or was stopped: so often, before it counts as failed
    _RETRY = RetryHeartbeatStaleTrialCallback(max_retry=5, inherit_intermediate_values=True)


class SearchError(Failure, RuntimeError):
    """A search cannot start or continue."""


@dataclass(frozen=True)
class Search:
    """Settings of a search, made by :func:`plan_search`.

    Attributes:
        file: the experiment that is searched around.
        base: what it holds, with the overrides that all trials share.
        space: what is drawn.
        out: the search's directory.
        seed: of the draws; the trials have that of the experiment.
        startup: so many trials are drawn at random and run to their end before any is pruned.
        pruning: whether trials that do worse than the median are stopped early.
    """

    file: Path
    base: ExperimentConfig
    space: Space
    out: Path
    seed: int
    startup: int
    pruning: bool

    @property
    def monitor(self) -> str:
        return self.base.trainer.monitor

    @property
    def metric(self) -> Metric:
        return metric_of(self.monitor)


def plan_search(
    file: Path,
    space_file: Path,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    seed: int = 0,
    startup: int = 8,
    pruning: bool = True,
) -> Search:
    """Read and check everything that a search needs.

    Args:
        out: None: ``runs/<experiment>-search``.

    Raises:
        ConfigError: one sentence that names file or override, key, and what would be right.
    """
    file = find_experiment(file)
    base = load_experiment(file, overrides)
    space_file = find_experiment(space_file, folder="spaces")
    space = read_space(space_file, base)
    given = {override.partition("=")[0].strip() for override in overrides}
    if both := sorted(given & space.keys()):
        raise ConfigError(f"{space_file}: key `{both[0]}` is drawn there and also given as an override; leave one out")
    if not base.data.val:
        raise ConfigError(f"{file}: key `data.val`: names no validation split, and nothing else may choose a trial")
    if base.data.val == base.data.test:
        raise ConfigError(
            f"{file}: key `data.val`: is the test split, which must not choose a trial; cut a validation split out of "
            "data.train"
        )
    if base.trainer.devices * base.trainer.num_nodes > 1:
        raise ConfigError(f"{file}: key `trainer.devices`: a trial of a search runs on one device; set it to 1")
    if base.trainer.monitor == "val/loss_total":
        shifting = [
            key
            for key in space
            if key.startswith(("anchors.", "matcher.", "class_loss.", "box_loss.")) or key == "data.min_height"
        ]
        if shifting:
            raise ConfigError(
                f"{space_file}: key `{shifting[0]}` changes what val/loss_total means, so trials could not be compared "
                "by it; set trainer.monitor to another metric"
            )
    out = out or Path("runs") / f"{base.name}-search"
    return Search(Path(file), base, space, out, seed, startup, pruning)


def open_study(search: Search) -> optuna.Study:
    """The search's study, begun where there is none.

    Raises:
        SearchError: the directory holds another search, or a file that is none.
        DataError: the data cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search.out.mkdir(parents=True, exist_ok=True)
    database = search.out / "search.db"
    pruner = optuna.pruners.MedianPruner(search.startup, n_warmup_steps=search.base.trainer.epochs // 4)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # Optuna's heartbeat
            storage = RDBStorage(
                f"sqlite:///{database}",
                engine_kwargs={"connect_args": {"timeout": 60}},  # SQLite's own lock
                heartbeat_interval=_HEARTBEAT,
                grace_period=_GRACE,
                heartbeat_stale_trial_callback=_RETRY,
            )
            study = optuna.create_study(
                storage=storage,
                study_name="search",
                direction="minimize" if search.metric.lower_is_better else "maximize",
                pruner=pruner if search.pruning else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
    except Exception as error:
        raise SearchError(f"{database}: is not the storage of a search ({str(error).splitlines()[0]})") from error
    _refuse_another(search, study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        storage.record_heartbeat(trial._trial_id)  # a process that died before its first one would never be missed
    return study


def snapshot(search: Search) -> Path:
    """The experiment with its overrides as the search was started with it: the file may change while it runs."""
    return search.out / "experiment.yaml"


def _refuse_another(search: Search, study: optuna.Study) -> None:
    """Write down what is searched, or hold it against what the search was begun with."""
    data = describe_data({stage: build_dataset(search.base, stage) for stage in ("train", "val")})
    now: dict[str, dict[str, Any]] = {
        "another space": {key: distribution_to_json(draw) for key, draw in search.space.items()},
        "other draws": {"seed": search.seed},
        "other data": {stage: of["fingerprint"] for stage, of in data.items()},
    }
    if "begun" not in study.user_attrs:
        save_experiment(search.base, snapshot(search))
        study.set_user_attr("begun", now)
    # what a later schema has more was its default then, as for a run that goes on
    differ = {"another experiment": unlike(load_experiment(snapshot(search)), search.base).keys() - {*WHERE}}
    for what, before in study.user_attrs["begun"].items():
        differ[what] = {key for key in before | now[what] if before.get(key) != now[what].get(key)}
    for what, keys in differ.items():
        if keys:
            raise SearchError(
                f"{search.out}: was started with {what}; these differ: {', '.join(sorted(keys))}; choose another "
                "--out, or delete it"
            )


def run_trials(search: Search, study: optuna.Study, trials: int, echo: Callable[[str], None] = print) -> None:
    """Run trials, one after the other, until ``trials`` are finished or pruned, by whatever process.

    A trial that fails is written down with its sentence, and another one takes its place.

    Args:
        echo: called with one line per step.

    Raises:
        Busy, Interrupted, DataError, OSError: what the next trial would meet as well. The trial is not lost: it is
            queued again.
        SearchError: so much fails that something else must be wrong, or the storage cannot be written.
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
    try:
        study.optimize(
            lambda trial: _run_trial(search, trial, echo),
            callbacks=[refuse_to_fail_on, MaxTrialsCallback(trials, states=_ENDED)],
            gc_after_trial=True,
        )
    except UpdateFinishedTrialError as error:
        raise SearchError(f"{search.out}: no sign of this process for {_GRACE} s, so its trial is another's") from error
    except StorageInternalError as error:
        raise SearchError(f"{search.out / 'search.db'}: cannot be written ({error.__cause__ or error})") from error


def trial_number(trial: FrozenTrial) -> int:
    """The number of a trial's first attempt, by which its run is named."""
    number: int = trial.system_attrs.get("failed_trial", trial.number)  # as Optuna's retried_trial_number() reads it
    return number


def last_attempts(study: optuna.Study) -> dict[int, FrozenTrial]:
    """Every trial in the state of its last attempt, by its number."""
    return {trial_number(trial): trial for trial in study.get_trials(deepcopy=False)}


def counts(study: optuna.Study) -> dict[str, int]:
    """How many trials are finished, pruned, failed and running; those left by dead processes count as running."""
    states = [trial.state for trial in last_attempts(study).values()]
    names = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
    return {name: states.count(TrialState[state]) for name, state in names.items()}


def failures(study: optuna.Study) -> dict[int, str]:
    """Reasons of failed trials, by number."""
    failed = {k: trial for k, trial in last_attempts(study).items() if trial.state == TrialState.FAIL}
    return {k: trial.user_attrs.get("failure", "its process died again and again") for k, trial in failed.items()}


def _suggest(search: Search, trial: optuna.Trial, number: int) -> None:
    """Draw the trial's settings; a trial that is tried again has them already."""
    # one seed per trial: parallel workers must not draw the same, and a resumed search draws what an unbroken one does
    seed = int(np.random.SeedSequence((search.seed, number)).generate_state(1)[0])
    trial.study.sampler = optuna.samplers.TPESampler(n_startup_trials=search.startup, seed=seed)
    for key, draw in search.space.items():
        if isinstance(draw, CategoricalDistribution):
            trial.suggest_categorical(key, draw.choices)
        else:
            suggest: Any = trial.suggest_int if isinstance(draw, IntDistribution) else trial.suggest_float
            suggest(key, draw.low, draw.high, step=draw.step, log=draw.log)


def drawn(search: Search, trial: optuna.Trial | FrozenTrial) -> dict[str, Any]:
    """The settings of a trial, with the types of the schema; numbers have six digits, so that people can read them."""
    values: dict[str, Any] = {}
    for key, draw in search.space.items():
        values[key] = trial.params[key]
        if isinstance(draw, CategoricalDistribution):
            values[key] = json.loads(values[key])
        elif isinstance(values[key], float):
            values[key] = min(max(float(f"{values[key]:.6g}"), draw.low), draw.high)
    return values


def as_overrides(values: dict[str, Any]) -> list[str]:
    """``key=value``, as :func:`ssd_effnet.config.loading.load_experiment` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _run_trial(search: Search, trial: optuna.Trial, echo: Callable[[str], None]) -> float:
    """The trial's run and its value; NaN, which Optuna counts as failed, where it failed by itself."""
    number = trial_number(trial.study.trials[trial.number])

    def say(line: str) -> None:
        echo(f"trial {number}: {line}")

    _suggest(search, trial, number)
    values, judge = drawn(search, trial), Judge(search, trial)
    say(
        ("goes on: " if judge.reported else "")
        + ", ".join(f"{key} {value_text(value)}" for key, value in values.items())
    )
    name = f"{search.base.name}-trial{number}"
    directory = RunDirectory(search.out / name / f"seed{search.base.trainer.seed}")
    overrides = [
        *as_overrides(values),
        f"name={name}",
        f"trainer.threads={search.base.trainer.threads}",
        "data.test=",  # the test split chooses nothing, so it is not even looked at
    ]
    try:
        experiment = load_experiment(snapshot(search), overrides)
        results = run(experiment, search.out, resume=True, echo=say, callbacks=[judge])
        value = float(results["val"]["best"])
        if math.isfinite(value):
            say(f"{search.monitor} {value:.4g} in epoch {results['epoch']}")
            return value
        note = f"failed: {search.monitor} was never a finite number"
    except optuna.TrialPruned as pruned:
        directory.fail(str(pruned))
        say(str(pruned))
        raise
    except UpdateFinishedTrialError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        # refused settings, a loss that is not finite and too little memory are the trial's own; all else is not
        if isinstance(error, Busy | Interrupted | DataError) or not isinstance(error, ValueError | RuntimeError):
            _RETRY(trial.study, trial.study.trials[trial.number])
            raise
        note = f"failed: {' '.join(str(error).split())[:500]}"
    if directory.path.is_dir():
        directory.fail(note)
    trial.set_user_attr("failure", note)
    say(note)
    return math.nan


class Judge(Callback):
    """Reports each validation to Optuna, and stops pruned trials.

    The run is stopped when the next epoch begins: by then everything about the last one is written.
    """

    def __init__(self, search: Search, trial: optuna.Trial) -> None:
        self.search = search
        self.trial = trial
        self.reported = dict(trial.study.trials[trial.number].intermediate_values)  # of earlier attempts
        self.hopeless = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if self.search.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.search.monitor])
        if epoch not in self.reported:  # a resumed run may repeat the epoch in which it was stopped
            self.trial.report(value, epoch)
        self.reported[epoch] = value
        self.hopeless = self.trial.should_prune()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.hopeless:
            self._show(trainer)
            best = self.search.metric.best(self.reported.values())
            raise optuna.TrialPruned(
                f"pruned after epoch {trainer.current_epoch} of {trainer.max_epochs}, {self.search.monitor} {best:.4g}"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer)

    def _show(self, trainer: Trainer) -> None:
        """The trial's line in TensorBoard's HParams tab."""
        if isinstance(trainer.logger, TensorBoardLogger) and self.reported:
            values = {key: value_text(value) for key, value in drawn(self.search, self.trial).items()}
            best = self.search.metric.best(self.reported.values())
            trainer.logger.log_hyperparams(values, {f"search/best {self.search.monitor}": best})


def value_text(value: Any) -> str:
    """A value for a table or a line."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
