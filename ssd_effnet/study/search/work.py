"""A search with Optuna: each trial is an ordinary run, chosen by its validation split.

A search lives in one directory: ``search.db`` (Optuna's storage), a run directory a trial, and in the end the
experiment that was found. Several processes, started together or one after the other, work on it: whoever holds the
search's lock may read and write the storage, and whoever works on a trial holds the trial's lock. The system drops the
locks of a process that dies; its trial is then known to be left, and resumes from its last checkpoint. (Optuna's
heartbeat does not work with ``ask`` and ``tell``, and would let minutes pass.)
"""

from __future__ import annotations

import fcntl
import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from optuna.trial import FrozenTrial, TrialState

from data_kaist.errors import DataError, Failure
from ssd_effnet.build import build_dataset
from ssd_effnet.config.keys import settings
from ssd_effnet.config.loading import WHERE, find_experiment, load_experiment, save_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import ConfigError
from ssd_effnet.evaluation.metrics import Metric, metric_of
from ssd_effnet.study.search.space import Choice, Range, Space, read_space
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import Busy, Interrupted, RunDirectory, State, describe_data

_STARTS = 3  # of one trial, each ended by the death of its process, before it counts as failed


class SearchError(Failure, RuntimeError):
    """A sentence about why a search cannot start or go on."""


@dataclass(frozen=True)
class Search:
    """What is searched, how and where; :func:`plan` makes one.

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


def plan(
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
    space = read_space(space_file)
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
        shifting = [key for key in space if key.startswith(("anchors.", "loss.")) or key == "data.min_height"]
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
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search.out.mkdir(parents=True, exist_ok=True)
    database = search.out / "search.db"
    epochs = search.base.trainer.epochs
    pruner = optuna.pruners.MedianPruner(search.startup, n_warmup_steps=epochs // 4)
    with _alone(search):
        try:
            study = optuna.create_study(
                # our own processes wait at the lock; the time is for others who look at the file
                storage=optuna.storages.RDBStorage(
                    f"sqlite:///{database}", engine_kwargs={"connect_args": {"timeout": 60}}
                ),
                study_name="search",
                direction="minimize" if search.metric.lower_is_better else "maximize",
                pruner=pruner if search.pruning else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
        except Exception as error:
            raise SearchError(f"{database}: is not the storage of a search ({str(error).splitlines()[0]})") from error
        described = json.loads(json.dumps(_describe(search)))
        if "search" not in study.user_attrs:
            study.set_user_attr("search", described)
        _refuse_another(study.user_attrs["search"], described, search)
        if not snapshot(search).is_file():
            save_experiment(search.base, snapshot(search))
    return study


def snapshot(search: Search) -> Path:
    """The experiment with its overrides as the search was started with it: the file may change while it runs."""
    return search.out / "experiment.yaml"


def _describe(search: Search) -> dict[str, Any]:
    values = {key: value for key, value in settings(search.base).items() if key not in WHERE}
    space = {key: draw.plain() for key, draw in search.space.items()}
    data = describe_data({stage: build_dataset(search.base, stage) for stage in ("train", "val")})
    return {
        "experiment": {"name": search.base.name, **values},
        "space": space,
        "draws": {"seed": search.seed},
        "data": {stage: of["fingerprint"] for stage, of in data.items()},
    }


def _refuse_another(started: dict[str, Any], now: dict[str, Any], search: Search) -> None:
    # what a later schema has more was its default then, as for a run that goes on
    defaults = json.loads(json.dumps(settings(ExperimentConfig())))
    for what, before in started.items():
        before = {**defaults, **before} if what == "experiment" else before
        keys = sorted((before.keys() | now[what].keys()) - {*WHERE})
        changed = [key for key in keys if before.get(key) != now[what].get(key)]
        if changed:
            what = {"draws": "other draws", "data": "other data"}.get(what, f"another {what}")
            raise SearchError(
                f"{search.out}: was started with {what}; these differ: {', '.join(changed)}; choose another --out, or "
                "delete it"
            )


def work(search: Search, study: optuna.Study, trials: int, echo: Callable[[str], None] = print) -> None:
    """Run trials, one after the other, until ``trials`` are finished or pruned or on their way elsewhere.

    A trial that fails is written down with its sentence, and another one takes its place.

    Args:
        echo: told one line a step of the way.

    Raises:
        Busy, Interrupted, DataError, OSError: what the next trial would meet as well. The trial is not lost: whoever
            works on the search next goes on with it.
        SearchError: so much fails that something else must be wrong.
    """
    failed = 0
    while (taken := _take(search, study, trials)) is not None:
        trial, lock = taken
        with lock:
            state, value, note = _run_trial(search, trial, partial(_echo_trial, echo, trial.number))
            with _alone(search):
                if state == TrialState.FAIL:
                    trial.set_user_attr("failure", note)
                study.tell(trial, value, state)
                ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        _echo_trial(echo, trial.number, note)
        gc.collect()  # a trainer and its module refer to each other, and hold the memory that the next trial needs
        failed += state == TrialState.FAIL
        if failed >= 10 + 2 * len(ended):
            raise SearchError(f"{search.out}: {failed} trials failed and {len(ended)} did not; the last one: {note}")


def _echo_trial(echo: Callable[[str], None], number: int, line: str) -> None:
    echo(f"trial {number}: {line}")


def _take(search: Search, study: optuna.Study, trials: int) -> tuple[optuna.Trial, IO[str]] | None:
    """A trial that a dead process left, else a new one, with its lock; None when there are enough."""
    with _alone(search):
        seen = study.get_trials(deepcopy=False)
        ended = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in seen)
        running = [trial for trial in seen if trial.state == TrialState.RUNNING]
        left = [trial for trial in running if not _is_held(search, trial.number)]
        if ended + len(running) - len(left) >= trials:
            return None
        for frozen in left:
            trial = optuna.Trial(study, frozen._trial_id)
            if frozen.user_attrs.get("starts", 0) < _STARTS:
                break
            trial.set_user_attr("failure", f"its process died {_STARTS} times")
            study.tell(trial, state=TrialState.FAIL)
        else:
            trial = study.ask()
        lock = _lock_file(search, trial.number).open("w")
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        trial.set_user_attr("starts", trial.user_attrs.get("starts", 0) + 1)
        if "threads" not in trial.user_attrs:  # a trial that goes on keeps its own: a run's config is its own
            trial.set_user_attr("threads", search.base.trainer.threads)
        _suggest(search, study, trial)
    return trial, lock


def _suggest(search: Search, study: optuna.Study, trial: optuna.Trial) -> None:
    """Draw the trial's settings; a trial that goes on has them already."""
    # a seed a trial: parallel workers must not draw the same, and a resumed search draws what an unbroken one does
    seed = int(np.random.SeedSequence((search.seed, trial.number)).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=search.startup, seed=seed)
    for key, draw in search.space.items():
        if isinstance(draw, Choice):
            trial.suggest_categorical(key, [label(value) for value in draw.values])
        elif draw.whole:
            step = 1 if draw.step is None else int(draw.step)
            trial.suggest_int(key, int(draw.low), int(draw.high), step=step, log=draw.log)
        else:
            trial.suggest_float(key, draw.low, draw.high, step=draw.step, log=draw.log)


def drawn(search: Search, trial: optuna.Trial | FrozenTrial) -> dict[str, Any]:
    """The settings of a trial, with the types of the schema; numbers have six digits, so that people can read them."""
    values = {}
    for key, draw in search.space.items():
        value = trial.params[key]
        if isinstance(draw, Choice):
            value = next(choice for choice in draw.values if label(choice) == value)
        elif isinstance(draw, Range) and not draw.whole:
            value = min(max(float(f"{value:.6g}"), draw.low), draw.high)
        values[key] = value
    return values


def as_overrides(values: dict[str, Any]) -> list[str]:
    """``key=value``, as :func:`ssd_effnet.config.loading.load_experiment` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def label(value: Any) -> Any:
    """What Optuna may store as a choice."""
    return json.dumps(value) if isinstance(value, list) else value


def _run_trial(
    search: Search, trial: optuna.Trial, echo: Callable[[str], None]
) -> tuple[TrialState, float | None, str]:
    """The trial's run: how it ended, its value, and a line about it."""
    values = drawn(search, trial)
    reported = dict(trial.study.trials[trial.number].intermediate_values)
    echo(("goes on: " if reported else "") + ", ".join(f"{key} {shown(value)}" for key, value in values.items()))
    name = f"{search.base.name}-trial{trial.number}"
    directory = RunDirectory(search.out / name / f"seed{search.base.trainer.seed}")
    overrides = [
        *as_overrides(values),
        f"name={name}",
        f"trainer.threads={trial.user_attrs['threads']}",
        "data.test=",  # the test split chooses nothing, so it is not even looked at
    ]
    try:
        experiment = load_experiment(snapshot(search), overrides)
        _wait_for_loaders(directory)
        results = run(experiment, search.out, resume=True, echo=echo, callbacks=[Judge(search, trial, reported)])
        value = results["val"]["best"]
        if math.isfinite(value):
            return TrialState.COMPLETE, value, f"{search.monitor} {value:.4g} in epoch {results['epoch']}"
        state, note = TrialState.FAIL, f"failed: {search.monitor} was never a finite number"
    except optuna.TrialPruned as pruned:
        state, note = TrialState.PRUNED, str(pruned)
    except BaseException as error:
        # refused settings, a loss that is not finite and too little memory are the trial's own; all else is not
        if isinstance(error, Busy | Interrupted | DataError) or not isinstance(error, ValueError | RuntimeError):
            with _alone(search):  # the start does not count: the process lives, and says itself why it stops
                trial.set_user_attr("starts", trial.user_attrs["starts"] - 1)
            raise
        state, note = TrialState.FAIL, f"failed: {' '.join(str(error).split())[:500]}"
    if directory.path.is_dir():
        directory.fail(note)
    return state, None, note


def _wait_for_loaders(directory: RunDirectory) -> None:
    """The loader's workers of a killed run notice within seconds, and only then is its directory free."""
    for _ in range(30):
        if directory.state is not State.RUNNING:
            return
        time.sleep(1)


class Judge(Callback):
    """Tells Optuna each validation of a trial, and stops the run where Optuna sees no hope.

    The run is stopped when the next epoch begins: by then everything about the last one is written.
    """

    def __init__(self, search: Search, trial: optuna.Trial, reported: dict[int, float]) -> None:
        self.search = search
        self.trial = trial
        self.reported = reported
        self.hopeless = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if self.search.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.search.monitor])
        with _alone(self.search):
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
            values = {key: label(value) for key, value in drawn(self.search, self.trial).items()}
            best = self.search.metric.best(self.reported.values())
            trainer.logger.log_hyperparams(values, {f"search/best {self.search.monitor}": best})


def shown(value: Any) -> str:
    """A value for a table or a line."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _alone(search: Search) -> Iterator[None]:
    """One process at a time reads and writes the storage."""
    with (search.out / "search.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _lock_file(search: Search, number: int) -> Path:
    folder = search.out / ".locks"
    folder.mkdir(exist_ok=True)
    return folder / f"trial{number}"


def _is_held(search: Search, number: int) -> bool:
    """Whether another process works on the trial; lockf, unlike flock, leaves no lock with the loader's workers."""
    with _lock_file(search, number).open("w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
