"""What a run leaves on disk, ``<out>/<experiment>/seed<k>/``: its files, its state, and whether it may go on."""

from __future__ import annotations

import csv
import functools
import json
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from torch import nn

from data_kaist.dataset import DetectionDataset, fingerprint
from data_kaist.detections import read_categories
from data_kaist.errors import Doubt, Failure
from data_kaist.files import write_whole
from data_kaist.layouts import Frame, category_ids, image_ids
from data_kaist.structures import DetectionTable
from ssd_effnet.build import build_classes, build_dataset
from ssd_effnet.config.keys import unlike
from ssd_effnet.config.loading import WHERE, elsewhere, experiment_of, load_experiment, varied
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.evaluation.metrics import in_place
from ssd_effnet.evaluation.scores import write_results
from ssd_effnet.models.weights import WeightsError
from ssd_effnet.registry import SCHEDULES
from ssd_effnet.training.checkpoints import read_checkpoint
from ssd_effnet.training.machine import code_name, code_patch, describe_machine

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MOST_OF_A_PATCH = 1_000_000  # bytes


class RunError(Failure, RuntimeError):
    """A sentence about why a run cannot start or go on."""


class Busy(RunError):
    """Another process is at work on the run."""


class Interrupted(RunError):
    """Somebody stopped the run; it can go on."""

    exit_code = 130


class State(StrEnum):
    """How far a run has come. ``FAILED``: it said why in ``failure.txt``; ``INTERRUPTED``: it did not get to."""

    ABSENT = "absent"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    FINISHED = "finished"


class _File:
    """A file of a run's directory, whether it is there or not."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, directory: RunDirectory, kind: type[RunDirectory]) -> Path:
        return directory.path / self.name


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run.

    Attributes:
        path: the directory, whether it is there or not.
    """

    path: Path

    @classmethod
    def of(cls, experiment: ExperimentConfig, out: Path) -> RunDirectory:
        """``<out>/<experiment>/seed<k>``."""
        return cls(out / experiment.name / f"seed{experiment.trainer.seed}")

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def holding(cls, path: Path) -> RunDirectory:
        """A run directory itself, or that of a checkpoint; of one that lies in none, the folder that it lies in."""
        if path.is_dir():
            return cls(path)
        return cls(path.parent.parent if path.parent.name == cls(path).last.parent.name else path.parent)

    config_file = _File("config.yaml")
    environment_file = _File("environment.json")
    metrics_file = _File("metrics.csv")
    results_file = _File("results.json")
    failure_file = _File("failure.txt")
    log_file = _File("train.log")  # what a run said that was not started from a terminal of its own
    detections_file = _File("detections.json")
    kaist_file = _File("detections_kaist.txt")
    last = _File("checkpoints/last.ckpt")  # of the last epoch
    best = _File("checkpoints/best.ckpt")  # that the validation split chose

    @property
    def state(self) -> State:
        """What the files say, and whether a process holds the lock."""
        if self.results_file.is_file():
            return State.FINISHED
        if not self.path.is_dir():
            return State.ABSENT
        if self._held:
            return State.RUNNING
        if self.failure_file.is_file():
            return State.FAILED
        return State.INTERRUPTED if self.config_file.is_file() else State.ABSENT

    @property
    def _held(self) -> bool:
        """Whether a process holds the lock; nothing is written, since a study's disk may be read-only."""
        file = self.path / ".lock"
        if not file.is_file():
            return False
        if fcntl is None:
            try:
                with FileLock(file, timeout=0):
                    return False
            except Timeout:
                return True
        with file.open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
            return False

    @property
    def begun(self) -> bool:
        """Whether there is something to lose: one that was stopped before its first epoch was over has nothing."""
        return self.config_file.is_file() and (self.last.is_file() or self.results_file.is_file())

    def experiment(self) -> ExperimentConfig:
        """The resolved config.

        Raises:
            RunError: there is no run.
            ConfigError: its config is not readable.
        """
        if not self.config_file.is_file():
            raise RunError(f"{self}: is no run directory, it has no {self.config_file.name}")
        stat = self.config_file.stat()
        return deepcopy(_config(self.config_file, (stat.st_mtime_ns, stat.st_ino, stat.st_size)))

    def at_hand(self, experiment: ExperimentConfig, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """The run's experiment with its data where they are now; their fingerprint proves that they are the same.

        A relative ``data.root``, and relative annotations of a split, are looked for where the run was started, here,
        and in the folders around the run.

        Args:
            experiment: of the run.
            overrides: ``data.root=...`` and other keys of :data:`ssd_effnet.config.loading.WHERE`.

        Raises:
            ConfigError: an override of another key, or one that makes no sense.
        """
        moved = elsewhere(experiment, overrides)
        begun = self.environment().get("folder", "") if self.environment_file.is_file() else ""
        folders = [Path(begun), Path(), *self.path.resolve().parents]
        if not any(override.partition("=")[0].strip() == "data.root" for override in overrides):
            there = [folder / moved.data.root for folder in folders if (folder / moved.data.root).is_dir()]
            if there and there[0].resolve() != Path(moved.data.root).resolve():
                moved.data.root = str(there[0])
        for key in ("train_annotations", "val_annotations", "test_annotations"):
            given = getattr(moved.data, key)
            there = [folder / given for folder in folders if given and (folder / given).exists()]
            if there and not Path(moved.data.root, given).exists():
                setattr(moved.data, key, str(there[0].resolve()))
        return moved

    def trained(self) -> ExperimentConfig:
        """What is trained here: the experiment in the checkpoint, which nobody edits; without one the config.

        Keys that say where it runs (:data:`ssd_effnet.config.loading.WHERE`) are the config's. A finished run's results
        are whole without a checkpoint, so one that is damaged is a warning there.

        Raises:
            RunError, ConfigError, WeightsError: there is no run, or its config or checkpoint is not readable.
        """
        config = self.experiment()
        for file in filter(Path.is_file, (self.last, self.best)):
            try:
                content = read_checkpoint(file, mapped=True)
            except WeightsError as error:
                if not self.results_file.is_file():
                    raise
                warnings.warn(str(error), Doubt, stacklevel=2)
                continue
            experiment = experiment_of(content["experiment"], str(file))
            for group, _, key in (key.partition(".") for key in WHERE):
                setattr(getattr(experiment, group), key, getattr(getattr(config, group), key))
            return experiment
        return config

    def edited(self, trained: ExperimentConfig) -> str:
        """What the config says otherwise than was trained, ``key (value, now another one)``, or nothing."""
        config = self.experiment()
        name, seed = (("name", trained.name, config.name), ("trainer.seed", trained.trainer.seed, config.trainer.seed))
        own = [f"{key} ({was}, now {now})" for key, was, now in (name, seed) if was != now]
        return ", ".join([*own, *_changes(trained, config)])

    def refuse_a_copy(self) -> ExperimentConfig:
        """A run is what its folder, its checkpoint (or config) and its results say alike: one experiment, one seed.

        Returns:
            What is trained here, as :meth:`trained`.

        Raises:
            RunError: they disagree, as where the folder was copied or renamed; or as :meth:`trained`.
        """
        trained = self.trained()
        results = self.results() if self.results_file.is_file() else {}
        held = {
            (trained.name, trained.trainer.seed),
            (results.get("experiment", trained.name), results.get("seed", trained.trainer.seed)),
        }
        for name, seed in held:
            if self.path.parts[-2:] != (name, f"seed{seed}"):
                raise RunError(
                    f"{self}: holds {name} seed {seed}, so it is a copy or was renamed, or somebody edited its files; "
                    f"a run lies in its own folder, {name}/seed{seed}"
                )
        return trained

    def environment(self) -> dict[str, Any]:
        return read_json(self.environment_file)

    def results(self) -> dict[str, Any]:
        return read_json(self.results_file)

    def metrics(self) -> list[dict[str, float]]:
        """One row an epoch; a cell that is empty is left out. Nothing before the first epoch's end."""
        if not self.metrics_file.is_file():
            return []
        try:
            with self.metrics_file.open(encoding="utf-8", newline="") as file:
                return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise RunError(f"{self.metrics_file}: cannot be read ({error})") from error

    def damage(self) -> str:
        """Why commands over several runs leave this one out: a file cannot be read, or lacks something; or nothing."""
        try:
            if self.config_file.is_file() or self.results_file.is_file():
                self._refuse_damage()
        except Failure as error:
            return str(error)
        return ""

    def _refuse_damage(self) -> None:
        self.experiment()
        for row in self.metrics():
            _refuse_lack(self.metrics_file, row, ["epoch"])
        if self.begun or self.environment_file.is_file():
            environment = self.environment()
            stages = list(environment["data"]) if isinstance(environment.get("data"), dict) else []
            each = [f"data.{stage}.{what}" for stage in stages for what in ("frames", "fingerprint")]
            _refuse_lack(self.environment_file, environment, ["data.train", "git", "device", "threads", *each])
        if self.state is State.FINISHED:
            results, keys = self.results(), ["experiment", "seed", "minutes"]
            if "test" in results:
                grouped = [of for of in in_place("log") if of.group]  # others came with a plugin, later or not at all
                keys += [
                    "test.images",
                    *(f"test.{of.group}.{part}" for of in grouped for part in of.parts or (of.name,)),
                ]
                _refuse_lack(self.environment_file, self.environment(), ["data.test"])
            _refuse_lack(self.results_file, results, keys)

    def epochs_done(self) -> int:
        """Rows of ``metrics.csv``, counted without reading their numbers: a display asks every second."""
        return max(self.metrics_file.read_bytes().count(b"\n") - 1, 0) if self.metrics_file.is_file() else 0

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of this directory as long as the block runs; a killed process lets go by itself.

        It tries for a second: who only looks at :attr:`state` holds the lock for a moment.

        Raises:
            Busy: another process is at work here.
            RunError: the directory cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{self}: cannot be made ({error.strerror or error}); choose another --out") from error
        try:
            held = FileLock(self.path / ".lock").acquire(timeout=1)
        except Timeout:
            raise Busy(f"{self}: another process is at work on this run") from None
        with held:
            yield

    def sweep(self) -> None:
        """Remove what a killed process left half written; for whoever holds the lock."""
        for part in self.path.rglob(".*.part"):
            part.unlink(missing_ok=True)

    def start_over(self) -> None:
        """Remove what an attempt wrote that ended before its first epoch was over; for whoever holds the lock."""
        events = self.path.glob("events.out.tfevents.*")
        for old in (self.environment_file, self.metrics_file, self.best, self.last, *events):
            old.unlink(missing_ok=True)

    def fail(self, reason: str) -> None:
        """Write down why the run ended before its end; the next attempt removes it."""
        write_whole(self.failure_file, reason.strip() + "\n")

    def failure(self) -> str:
        """The reason, or nothing."""
        return self.failure_file.read_text(encoding="utf-8").strip() if self.failure_file.is_file() else ""

    def refuse_to_mix(self, experiment: ExperimentConfig, *, resume: bool) -> None:
        """A directory holds one run of one config.

        Raises:
            RunError: it holds one, and this is not its continuation.
        """
        if not self.begun:
            return
        if not resume:
            raise RunError(f"{self}: holds a run already; add --resume to go on with it, or choose another --out")
        epochs, more = self.refuse_a_copy().trainer.epochs, experiment.trainer.epochs
        self.refuse_another_config(experiment, epochs=max(epochs, more))
        schedule = experiment.schedule.name
        if more > epochs and SCHEDULES.takes(schedule, "steps"):
            raise RunError(
                f"{self}: cannot go on from {epochs} to {more} epochs: the schedule {schedule} is laid out over all "
                f"epochs of a run, and over {more} those that are done would have had other rates (constant and "
                f"plateau go on); begin another run from its weights, {shlex.quote(f'init_from={self}')} under another "
                "name or --out"
            )
        if more > epochs and not self.last.is_file():
            raise RunError(f"{self}: cannot go on to {more} epochs: {self.last} is not there")

    def refuse_another_config(self, experiment: ExperimentConfig, *, epochs: int | None = None) -> None:
        """What has begun here, and this run or another seed of it, are one experiment; where they run is free.

        Args:
            experiment: of this run.
            epochs: that the begun one is to have in the end; None: those that it was begun with.

        Raises:
            RunError: they differ in more than the seed.
        """
        begun, experiment = self.trained(), self.with_its_range(experiment)
        edited = f" ({self.config_file.name} was edited since)" if self.edited(begun) else ""
        begun.trainer.epochs = epochs or begun.trainer.epochs
        if changes := _changes(begun, experiment):
            raise RunError(
                f"{self}: was started with another config{edited}; these differ: {', '.join(changes)}; "
                "choose another --out"
            )

    def with_its_range(self, experiment: ExperimentConfig) -> ExperimentConfig:
        """The experiment with the LWIR range that this run took from the training split by the same quantiles."""
        data = experiment.data
        if data.lwir_quantiles is None or data.lwir_range:
            return experiment
        begun = self.trained().data
        if data.lwir_quantiles != begun.lwir_quantiles:
            return experiment
        return replace(experiment, data=replace(data, lwir_range=begun.lwir_range))

    def refuse_other_data(self, data: Mapping[str, Any]) -> None:
        """Data of a run that has begun must be those that it was begun with.

        Args:
            data: as :func:`describe_data` gives them.

        Raises:
            RunError: frames, boxes or flags are others now.
        """
        if not self.environment_file.is_file():
            return
        _refuse_lack(self.environment_file, begun := self.environment(), ["data"])
        begun_with = begun["data"]
        if changed := [stage for stage in begun_with if data.get(stage) != begun_with[stage]]:
            raise RunError(
                f"{self}: its data have changed since it was started ({', '.join(changed)}); bring them back, or "
                "choose another --out"
            )

    def refuse_other_test_data(self, frames: Sequence[Frame]) -> None:
        """What a finished run found can be looked at only on the data that it was tested on.

        Args:
            frames: of its test split, as they are now.

        Raises:
            RunError: frames, boxes or flags are others now.
        """
        _refuse_lack(self.environment_file, tested := self.environment(), ["data.test.fingerprint"])
        if fingerprint(frames) != tested["data"]["test"]["fingerprint"]:
            raise RunError(
                f"{self}: its test data have changed since it was tested; bring them back, say data.root=... where "
                "they are, or run it again under another --out"
            )

    def tested(
        self, overrides: Sequence[str] = (), known: dict[str, Sequence[Frame]] | None = None
    ) -> tuple[ExperimentConfig, Sequence[Frame], DetectionTable]:
        """A finished run: what was trained, the frames of its test split, and what it found on them.

        Args:
            overrides: where the data are, as for :meth:`at_hand`.
            known: frames by fingerprint, of runs that were read before; those of this one are added.

        Raises:
            RunError, DataError, ConfigError: one sentence, where a file is missing or the data are others now.
        """
        experiment = self.at_hand(self.trained(), overrides)
        known = {} if known is None else known
        _refuse_lack(self.environment_file, environment := self.environment(), ["data.test.fingerprint"])
        data = environment["data"]["test"]["fingerprint"]
        if data not in known:
            known[data] = build_dataset(experiment, "test").frames
            self.refuse_other_test_data(known[data])
        frames, classes = known[data], build_classes(experiment)
        table, category = read_categories(self.detections_file, len(frames), image_ids=image_ids(frames))
        if len(classes.names) > 1:
            label = {id_: i for i, id_ in enumerate(category_ids(frames, classes), start=1)}
            labels = np.array([label.get(id_, 0) for id_ in category.tolist()], np.int64)
            table = replace(table, labels=labels).rows(labels > 0)
        return experiment, frames, replace(table, classes=classes.names)

    def remember(self, environment: dict[str, Any], *, resumed: bool) -> None:
        """Write the environment; a resumed run keeps the one it was started in and lists the later ones below it."""
        if resumed and self.environment_file.is_file():
            first = self.environment()
            if code_name(environment["git"]) != code_name(first["git"]):
                self._write_patch(environment, f"code.{len(first.get('resumed', [])) + 1}.patch")
            environment = first | {"resumed": [*first.get("resumed", []), environment]}
        else:
            self._write_patch(environment, "code.patch")
        write_results(self.environment_file, environment)

    def _write_patch(self, environment: Mapping[str, Any], name: str) -> None:
        """How the code differs from its commit, where it does; a patch of more than a megabyte is cut."""
        if environment["git"].get("dirty"):
            patch = code_patch()
            if len(patch) > _MOST_OF_A_PATCH:
                patch = patch[:_MOST_OF_A_PATCH] + f"\ncut here: {len(patch):,} bytes in all\n".encode()
            write_whole(self.path / name, patch)


def checkpoint_file(path: Path) -> Path:
    """The file itself, or the one that a run's directory stands for: that of its results, or its best so far.

    Raises:
        WeightsError: there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"{path}: there is no such checkpoint or run directory")
    directory = RunDirectory(path)
    files = [directory.best, directory.last]
    if directory.results_file.is_file() and (tested := directory.results().get("checkpoint")):
        files = [directory.last.with_name(str(tested))]
    for file in files:
        if file.is_file():
            return file
    wanted = " and ".join(map(str, files))
    raise WeightsError(f"{path}: is no run directory with a checkpoint of its own; looked for {wanted}")


@functools.lru_cache(maxsize=256)
def _config(file: Path, stamp: tuple[int, ...]) -> ExperimentConfig:
    """A run's config; ``stamp`` is another one where somebody has written the file anew."""
    return load_experiment(file)


def _changes(begun: ExperimentConfig, now: ExperimentConfig) -> list[str]:
    """``key (value, now another one)`` for what makes them two experiments."""
    found = unlike(begun, now)
    return [f"{key} ({found[key][0]}, now {found[key][1]})" for key in varied([begun, now])]


def describe_data(datasets: Mapping[str, DetectionDataset]) -> dict[str, Any]:
    """Frames and fingerprint of each stage's data."""
    return {stage: {"frames": len(d), "fingerprint": fingerprint(d.frames)} for stage, d in datasets.items()}


def describe_environment(datasets: Mapping[str, DetectionDataset], detector: nn.Module) -> dict[str, Any]:
    """Versions, machine, code and data: what a reader needs to trust a result or to repeat it."""
    return {
        **describe_machine(),
        "parameters": sum(p.numel() for p in detector.parameters()),
        "data": describe_data(datasets),
        "skipped_frames": {s: d.skipped for s, d in datasets.items() if d.skipped},
    }


def _refuse_lack(path: Path, content: Any, keys: Iterable[str]) -> None:
    """Dotted keys that one of our own files must have.

    Raises:
        RunError: it lacks one.
    """
    for key in keys:
        value = content
        for part in key.split("."):
            value = value.get(part, _refuse_lack) if isinstance(value, dict) else _refuse_lack
        if value is _refuse_lack:
            raise RunError(f"{path}: lacks `{key}`")


def read_json(path: Path) -> dict[str, Any]:
    """What one of our own files holds.

    Raises:
        RunError: it is not there, or somebody has changed it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    return content
