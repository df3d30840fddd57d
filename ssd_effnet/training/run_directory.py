"""Run directory ``<out>/<experiment>/seed<k>/``: files, state and lock. Resuming: :func:`.run.run`."""

from __future__ import annotations

import csv
import functools
import json
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
from ssd_effnet.evaluation.scores import write_results
from ssd_effnet.models.weights import WeightsError, read_checkpoint
from ssd_effnet.training.environment import code_name, code_patch, describe_machine

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# detectors of the package by name
SHIPPED = {file.stem: file for file in sorted(Path(__file__).parents[1].glob("detectors/*.safetensors"))}


class RunError(Failure, RuntimeError):
    """A run cannot start or continue."""


class Busy(RunError):
    """Another process holds the run's lock."""


class Interrupted(RunError):
    """The run was stopped by a signal; it can be resumed."""

    exit_code = 130


class State(StrEnum):
    """State of a run. ``FAILED``: ``failure.txt`` has the reason; ``INTERRUPTED``: there is none."""

    ABSENT = "absent"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    FINISHED = "finished"


class _File:
    """Path of a file in a run's directory."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, directory: RunDirectory, kind: type[RunDirectory]) -> Path:
        return directory.path / self.name


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run, whose directory need not exist."""

    path: Path

    @classmethod
    def of(cls, experiment: ExperimentConfig, out: Path) -> RunDirectory:
        """``<out>/<experiment>/seed<k>``."""
        return cls(out / experiment.name / f"seed{experiment.trainer.seed}")

    def __str__(self) -> str:
        return str(self.path)

    @classmethod
    def holding(cls, path: Path) -> RunDirectory:
        """The run directory of a checkpoint or of itself. Else the checkpoint's folder."""
        if path.is_dir():
            return cls(path)
        return cls(path.parent.parent if path.parent.name == cls(path).last.parent.name else path.parent)

    config_file = _File("config.yaml")
    environment_file = _File("environment.json")
    metrics_file = _File("metrics.csv")
    results_file = _File("results.json")
    failure_file = _File("failure.txt")
    log_file = _File("train.log")  # output of a run started by a study
    detections_file = _File("detections.json")
    kaist_file = _File("detections_kaist.txt")
    last = _File("checkpoints/last.ckpt")  # of the last epoch
    best = _File("checkpoints/best.ckpt")  # chosen on the validation split

    @property
    def state(self) -> State:
        """State according to the files and the lock."""
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
        """Whether a process holds the lock; writes nothing, for read-only disks."""
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
        """Whether the run has completed an epoch."""
        return self.last.is_file() or self.results_file.is_file()

    def experiment(self) -> ExperimentConfig:
        """The resolved config; a RunError if there is no run, a ConfigError if it cannot be read."""
        if not self.config_file.is_file():
            raise RunError(f"{self}: is no run directory, it has no {self.config_file.name}")
        return _experiment_in(self.config_file)

    def at_hand(self, experiment: ExperimentConfig, overrides: Sequence[str] = ()) -> ExperimentConfig:
        """The run's experiment with the present location of its data.

        A relative ``data.root``, and relative annotations of a split, are looked for where the run was started, here,
        and in the folders around the run; ``overrides`` are keys of :data:`ssd_effnet.config.loading.WHERE`.
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
        """The experiment in the checkpoint; without one, the config.

        Keys of location (:data:`ssd_effnet.config.loading.WHERE`) are the config's. A damaged checkpoint of a finished
        run is a warning: its results do not depend on it.
        """
        config = self.experiment()
        for file in filter(Path.is_file, (self.last, self.best)):
            try:
                experiment = _experiment_in(file)
            except WeightsError as error:
                if not self.results_file.is_file():
                    raise
                warnings.warn(str(error), Doubt, stacklevel=2)
                continue
            for group, _, key in (key.partition(".") for key in WHERE):
                setattr(getattr(experiment, group), key, getattr(getattr(config, group), key))
            return experiment
        return config

    def edited(self, trained: ExperimentConfig) -> str:
        """Edits of the config since training, or empty. ``key (value, now another one)``."""
        config = self.experiment()
        name, seed = (("name", trained.name, config.name), ("trainer.seed", trained.trainer.seed, config.trainer.seed))
        own = [f"{key} ({was}, now {now})" for key, was, now in (name, seed) if was != now]
        return ", ".join([*own, *changes(trained, config)])

    def refuse_a_copy(self) -> ExperimentConfig:
        """As :meth:`trained`, if folder, checkpoint (or config) and results agree.

        Raises:
            RunError: the folder was copied or renamed.
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
                    f"{self}: holds {name} seed {seed}, so it is a copy or was renamed, or its files were edited; "
                    f"a run lies in its own folder, {name}/seed{seed}"
                )
        return trained

    def environment(self) -> dict[str, Any]:
        return read_json(self.environment_file)

    def results(self) -> dict[str, Any]:
        return read_json(self.results_file)

    def metrics(self) -> list[dict[str, float]]:
        """Rows of ``metrics.csv``, one per epoch, without empty cells."""
        if not self.metrics_file.is_file():
            return []
        try:
            with self.metrics_file.open(encoding="utf-8", newline="") as file:
                return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise RunError(f"{self.metrics_file}: cannot be read ({error})") from error

    def damage(self) -> str:
        """Why commands over several runs leave this one out. An unreadable file, or a copy; else empty."""
        try:
            for row in self.metrics():
                _refuse_lack(self.metrics_file, row, ["epoch"])
            if self.begun or self.environment_file.is_file():
                environment = self.environment()
                of_data = [f"data.{stage}.fingerprint" for stage in ("train", *environment.get("data", ()))]
                _refuse_lack(self.environment_file, environment, [*of_data, "git", "device", "threads"])
            if self.results_file.is_file():
                results = self.results()
                _refuse_lack(self.results_file, results, ["experiment", "seed", "minutes"])
                if "test" in results:
                    _refuse_lack(self.results_file, results, ["test.images"])
                    _refuse_lack(self.environment_file, self.environment(), ["data.test"])
            if self.config_file.is_file():
                self.refuse_a_copy()
        except Failure as error:
            return str(error)
        return ""

    def epochs_done(self) -> int:
        """Number of rows of ``metrics.csv``, without parsing them."""
        return max(self.metrics_file.read_bytes().count(b"\n") - 1, 0) if self.metrics_file.is_file() else 0

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock of this directory; released also when the process is killed.

        Tries for a second, because reading :attr:`state` takes the lock for a moment.
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
        """Remove half-written files of a killed process; needs the lock."""
        for part in self.path.rglob(".*.part"):
            part.unlink(missing_ok=True)

    def start_over(self) -> None:
        """Remove files of an attempt that completed no epoch; needs the lock."""
        others = *self.path.glob("events.out.tfevents.*"), self.path / "code.patch"
        for old in (self.environment_file, self.metrics_file, self.best, self.last, *others):
            old.unlink(missing_ok=True)

    def fail(self, reason: str) -> None:
        """Write the reason of a failure; the next attempt removes it."""
        write_whole(self.failure_file, reason.strip() + "\n")

    def failure(self) -> str:
        """The reason, or nothing."""
        return self.failure_file.read_text(encoding="utf-8").strip() if self.failure_file.is_file() else ""

    def refuse_other_test_data(self, frames: Sequence[Frame]) -> None:
        """Refuse ``frames`` that are not the finished run's test data. Names, boxes and flags are compared."""
        _refuse_lack(self.environment_file, tested := self.environment(), ["data.test.fingerprint"])
        if fingerprint(frames) != tested["data"]["test"]["fingerprint"]:
            raise RunError(
                f"{self}: its test data have changed since it was tested; bring them back, say data.root=... where "
                "they are, or run it again under another --out"
            )

    def tested(
        self, overrides: Sequence[str] = (), known: dict[str, Sequence[Frame]] | None = None
    ) -> tuple[ExperimentConfig, Sequence[Frame], DetectionTable]:
        """A finished run: experiment, test frames, detections.

        Args:
            overrides: location of the data, as for :meth:`at_hand`.
            known: frames by fingerprint, a cache over several runs.
        """
        experiment = self.at_hand(self.trained(), overrides)
        known = {} if known is None else known
        _refuse_lack(self.environment_file, environment := self.environment(), ["data.test.fingerprint"])
        data = environment["data"]["test"]["fingerprint"]
        if data not in known or len(experiment.data.classes) > 1:  # whose category ids are the run's own
            self.refuse_other_test_data(found := build_dataset(experiment, "test").frames)
            known[data] = found
        frames, classes = known[data], build_classes(experiment)
        table, category = read_categories(self.detections_file, len(frames), image_ids=image_ids(frames))
        if len(classes.names) > 1:
            label = {id_: i for i, id_ in enumerate(category_ids(frames, classes), start=1)}
            labels = np.array([label.get(id_, 0) for id_ in category.tolist()], np.int64)
            table = replace(table, labels=labels).rows(labels > 0)
        return experiment, frames, replace(table, classes=classes.names)

    def remember(self, environment: dict[str, Any], *, resumed: bool) -> None:
        """Write the environment; a resumed run appends its own to the first."""
        whole, before, patch = environment, "", "code.patch"
        if resumed and self.environment_file.is_file():
            first = self.environment()
            whole = first | {"resumed": [*first.get("resumed", []), environment]}
            before, patch = code_name(first["git"]), f"code.{len(whole['resumed'])}.patch"
        if environment["git"].get("dirty") and code_name(environment["git"]) != before:
            write_whole(self.path / patch, code_patch())
        write_results(self.environment_file, whole)


def checkpoint_file(path: Path) -> Path:
    """Checkpoint of a path: the file, a run's tested or best one, or a detector of :data:`SHIPPED`.

    Raises:
        WeightsError: there is none.
    """
    if path.is_file():
        return path
    directory = RunDirectory(path)
    files = [directory.best, directory.last]
    if directory.results_file.is_file() and (tested := directory.results().get("checkpoint")):
        files = [directory.last.with_name(str(tested))]
    shipped = None if directory.config_file.is_file() else SHIPPED.get(str(path))  # a run of that name is meant
    for file in filter(None, (*files, shipped)):
        if file.is_file():
            return file
    if not path.is_dir():
        raise WeightsError(f"{path}: there is no such checkpoint, run directory or detector ({', '.join(SHIPPED)})")
    wanted = " and ".join(map(str, files))
    raise WeightsError(f"{path}: is no run directory with a checkpoint of its own; looked for {wanted}")


def is_detector(path: Path) -> bool:
    """Whether a path looks like what :func:`checkpoint_file` takes. Pictures do not."""
    run = RunDirectory(path)
    shipped = str(path) in SHIPPED and not path.exists()
    return shipped or path.suffix in (".ckpt", ".safetensors") or run.config_file.is_file() or run.last.parent.is_dir()


def _experiment_in(file: Path) -> ExperimentConfig:
    stat = file.stat()
    return deepcopy(_read(file, (stat.st_mtime_ns, stat.st_ino, stat.st_size)))


@functools.lru_cache(maxsize=256)
def _read(file: Path, stamp: tuple[int, ...]) -> ExperimentConfig:
    """Experiment of a run's config or checkpoint, cached until the file's ``stamp`` changes."""
    if file.suffix == ".yaml":
        return load_experiment(file)
    return experiment_of(read_checkpoint(file, mapped=True)["experiment"], str(file))


def changes(begun: ExperimentConfig, now: ExperimentConfig) -> list[str]:
    """Differences that matter, ``key (value, now another one)``."""
    found = unlike(begun, now)
    return [f"{key} ({found[key][0]}, now {found[key][1]})" for key in varied([begun, now])]


def describe_data(datasets: Mapping[str, DetectionDataset]) -> dict[str, Any]:
    """Frames and fingerprint of each stage's data."""
    return {stage: {"frames": len(d), "fingerprint": fingerprint(d.frames)} for stage, d in datasets.items()}


def describe_environment(
    datasets: Mapping[str, DetectionDataset], detector: nn.Module, gpu: bool = False
) -> dict[str, Any]:
    """Versions, machine, code and data of a run, computed on a ``gpu`` or not."""
    return {
        **describe_machine(gpu),
        "parameters": sum(p.numel() for p in detector.parameters()),
        "data": describe_data(datasets),
        "skipped_frames": {s: d.skipped for s, d in datasets.items() if d.skipped},
    }


def _refuse_lack(path: Path, content: Any, keys: Iterable[str]) -> None:
    """Refuse a file without these dotted keys."""
    for key in keys:
        value = content
        for part in key.split("."):
            value = value.get(part, _refuse_lack) if isinstance(value, dict) else _refuse_lack
        if value is _refuse_lack:
            raise RunError(f"{path}: lacks `{key}`")


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file of a run; a RunError if it is missing or no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: must hold a JSON object, not a {type(content).__name__}")
    return content
