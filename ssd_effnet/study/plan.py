"""The jobs of a study, and checks of its directory.

The state of each job is read from its run directory (:class:`.run_directory.State`), so that the same command resumes
after an interruption, and a second one in parallel takes jobs that the first has not begun.
"""

from __future__ import annotations

import fnmatch
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from data_kaist.errors import DataError
from ssd_effnet.build import build_dataset
from ssd_effnet.config.loading import find_experiment, load_experiment, name_of, read_layer
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import ConfigError
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.scores import write_results
from ssd_effnet.evaluation.significance import FEWEST_SEEDS
from ssd_effnet.evaluation.subsets import REASONABLE, SUBSETS
from ssd_effnet.training.resume_checks import refuse_another_config, refuse_other_data
from ssd_effnet.training.run_directory import RunDirectory, RunError, describe_data, read_json

_OF_A_FILE = ("base", "name", "description", "changes")
FEWEST_PEOPLE = 100  # with fewer, a miss rate jumps from one person to the next


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a study."""

    experiment: ExperimentConfig
    directory: RunDirectory
    source: Path

    @property
    def name(self) -> str:
        return f"{self.experiment.name} seed {self.experiment.trainer.seed}"

    @property
    def epochs_done(self) -> int:
        return self.directory.epochs_done()


def study_file(out: Path) -> Path:
    """The file of a study's experiments and their ancestors."""
    return out / "study.json"


def plan(files: Sequence[Path], seeds: Sequence[int], overrides: Sequence[str], out: Path) -> list[Job]:
    """All jobs: every experiment with every seed, ordered by seed.

    A study that is stopped early then has one seed of every experiment. An override ``PATTERN:key=value`` is for the
    experiments whose name fits the shell pattern.

    Raises:
        ConfigError: a file, an override, or two experiments of the same name; or a pattern that fits none.
    """
    files = [find_experiment(path) for path in files]
    names = [name_of(path, read_layer(path)) for path in files]
    for pattern, setting in map(_split, overrides):
        if setting.partition("=")[0].strip() == "trainer.seed":
            raise ConfigError(f"override {setting!r}: the seeds of a study are those of --seeds")
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"override for {pattern!r}: none of the experiments {', '.join(names)} fits")
    experiments = []
    for seed in dict.fromkeys(seeds):
        for name, path in zip(names, files, strict=True):
            own = [setting for pattern, setting in map(_split, overrides) if fnmatch.fnmatch(name, pattern)]
            experiments.append((load_experiment(path, [*own, f"trainer.seed={seed}"]), path))
    names = [experiment.name for experiment, _ in experiments[: len(files)]]  # an override may name them
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two experiments are called {twice}, and their runs would share a directory")
    if several := next((e.name for e, _ in experiments if e.trainer.num_nodes > 1), None):
        raise ConfigError(f"{several}: key `trainer.num_nodes`: a run of a study stays on one machine; set it to 1")
    return [Job(e, RunDirectory.of(e, out), path) for e, path in experiments]


def overlay(file: Path) -> list[str]:
    """An experiment file's own keys as ``key=value``. They are laid over every experiment of a study."""
    own = {k: v for k, v in read_layer(find_experiment(file)).items() if k not in _OF_A_FILE}
    return [f"{'.'.join(path)}={_written(value)}" for path, value in _leaves_of(own)]


def _written(value: Any) -> str:
    """A value as in a command. :func:`.read_yaml` gives texts, lists of texts and mappings of them."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)  # YAML too, and quoted: a label may be person?
    return f"[{','.join(map(_written, value))}]" if isinstance(value, list) else "null" if value is None else str(value)


def _leaves_of(content: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and (*path, key) != ("data", "classes"):  # which is set as a whole
            yield from _leaves_of(value, (*path, key))
        else:
            yield (*path, key), value


def hidden_by(laid: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    """Sentences about experiments whose changes are hidden by an overlay."""
    keys, notes = {setting.partition("=")[0] for setting in laid}, {}
    for job in jobs:
        if job.experiment.ancestors and (own := sorted(keys.intersection(job.experiment.changes))):
            notes[job.experiment.name] = f"{job.experiment.name} changes {', '.join(own)}, which --on sets for all: "
    return [note + "the study does not ask that" for note in notes.values()]


def _split(override: str) -> tuple[str, str]:
    """``PATTERN:key=value`` into its parts; the pattern is ``*`` where there is none."""
    head, equals, value = override.partition("=")
    pattern, colon, key = head.rpartition(":")
    return (pattern if colon else "*"), f"{key}{equals}{value}"


def check(jobs: Sequence[Job]) -> list[str]:
    """Refuse runs of other config or data, before anything is started. Returns sentences on runs left out."""
    problems = []
    known: dict[str, dict[str, Any]] = {}
    begun, left_out = survey(jobs[0].directory.path.parents[1])
    for job in jobs:
        own = job.directory
        if own.damage():  # it is left out, and blocks no other run
            continue
        other_seeds = [d for d in begun if d.begun and d != own and d.path.parent == own.path.parent]
        for directory in [own, *other_seeds] if own.begun else other_seeds:
            try:
                refuse_another_config(directory, job.experiment)
                key = repr((job.experiment.data, job.experiment.input.modality))
                if key not in known:
                    stages = [s for s in ("train", "val", "test") if getattr(job.experiment.data, s)]
                    known[key] = describe_data({stage: build_dataset(job.experiment, stage) for stage in stages})
                refuse_other_data(directory, known[key])
            except RunError as error:
                problems.append(str(error))
    if problems:
        raise RunError("; ".join(dict.fromkeys(problems)))
    return [f"left out: {sentence}" for sentence in left_out]


def remember(jobs: Sequence[Job], out: Path, command: str, on: Sequence[str] = ()) -> None:
    """Add experiments and their :func:`overlay` to the study's own file.

    Before the first training it fixes what verdicts are of: the metric, and each experiment's seeds. Seeds that come
    later are added to the plan only where no verdict could be had without them.
    """
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".study.lock"):
        study = read_study(out)
        if "metric" not in study:
            tested = {repr(job.experiment.data): job.experiment for job in jobs if job.experiment.data.test}
            with suppress(DataError):  # that it cannot be read, each run will say
                study |= {"metric": verdict_metric(map(_evaluator, tested.values()))} if tested else {}
        named: dict[str, list[Job]] = {}
        for job in jobs:
            named.setdefault(job.experiment.name, []).append(job)
        for name, of_name in named.items():
            known = study["experiments"].get(name, {})
            seeds = known.get("seeds", [])
            if len(seeds) < FEWEST_SEEDS or not any((out / name).glob("*/results.json")):
                seeds = sorted({*seeds, *(job.experiment.trainer.seed for job in of_name)})
            ancestors = of_name[0].experiment.ancestors or known.get("ancestors", [])
            study["experiments"][name] = {"file": str(of_name[0].source), "ancestors": ancestors, "seeds": seeds}
        study["on"] = list(dict.fromkeys([*study.get("on", []), *on]))
        study["commands"] = list(dict.fromkeys([*study["commands"], command]))
        write_results(study_file(out), study)


def _evaluator(e: ExperimentConfig) -> MissRateEvaluator:
    dataset = build_dataset(e, "test")
    return MissRateEvaluator.for_class(dataset.annotations, dataset.classes, dataset.classes.main)


def verdict_metric(evaluators: Iterable[MissRateEvaluator]) -> str:
    """The figure of verdicts. MR all where each test split counts 100 people, else AP."""
    counted = [int((~evaluator.ignored(SUBSETS[REASONABLE[0]])).sum()) for evaluator in evaluators]
    return f"MR/{REASONABLE[0]}" if min(counted, default=0) >= FEWEST_PEOPLE else "AP"


def read_study(out: Path) -> dict[str, Any]:
    """The study's own file; an empty study where there is none."""
    if not study_file(out).is_file():
        return {"experiments": {}, "commands": []}
    return read_json(study_file(out))


def survey(out: Path) -> tuple[list[RunDirectory], list[str]]:
    """Runs in a study's directory, and one sentence per run left out."""
    found = {RunDirectory(file.parent): "" for file in sorted(out.glob("*/*/config.yaml"))}
    found = {directory: directory.damage() for directory in found}
    return [run for run, damage in found.items() if not damage], [damage for damage in found.values() if damage]


def runs_of(out: Path) -> tuple[list[RunDirectory], list[str]]:
    """As :func:`survey`, with the runs in the study's order. Those of an experiment are in the order of seeds."""
    order = list(read_study(out)["experiments"])
    found, left_out = survey(out)
    if not found:
        none = f"{out}: holds no runs; ssd-effnet study run EXPERIMENT... --out {shlex.quote(str(out))} makes some"
        raise RunError("; ".join(left_out) or none)

    def place(directory: RunDirectory) -> tuple[int, str, int]:
        *_, name, seed = directory.path.parts
        return order.index(name) if name in order else len(order), name, int(seed.removeprefix("seed"))

    return sorted(found, key=place), left_out
