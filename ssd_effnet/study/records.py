"""Loads a study's finished runs and compares experiments with parents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from data_kaist.errors import Failure
from data_kaist.layouts import Frame
from data_kaist.structures import DetectionTable
from ssd_effnet.build import as_size, build_classes, build_skeleton
from ssd_effnet.config.keys import settings
from ssd_effnet.config.loading import WHERE, elsewhere, varied
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.evaluation.metrics import figure_in
from ssd_effnet.evaluation.miss_rate import Matcher, MissRateEvaluator
from ssd_effnet.evaluation.significance import Comparison, Interval, compare, interval, seed_margin
from ssd_effnet.evaluation.subsets import REASONABLE, SUBSETS
from ssd_effnet.models.cost import Cost, cost
from ssd_effnet.study.plan import read_study, runs_of
from ssd_effnet.training.machine import code_name
from ssd_effnet.training.run_directory import RunDirectory, RunError, State

Verdict = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run.

    Attributes:
        directory: its files.
        experiment: what was trained.
        environment, results: the files of these names.
        metrics: rows of ``metrics.csv``.
        detections: on the test split, of the main class.
        matcher: the detections against the test split.
    """

    directory: RunDirectory
    experiment: ExperimentConfig
    environment: dict[str, Any]
    results: dict[str, Any]
    metrics: list[dict[str, float]]
    detections: DetectionTable
    matcher: Matcher

    @property
    def seed(self) -> int:
        return self.experiment.trainer.seed

    @property
    def commit(self) -> str:
        """Commits of the run and its resumptions; ``+`` and a hash if modified."""
        parts = [self.environment, *self.environment.get("resumed", [])]
        return ", then ".join(dict.fromkeys(code_name(part["git"]) for part in parts))

    def figure(self, name: str) -> float:
        """``MR/<subset>`` under the matlab rules, ``AP``, ``AP50`` ... of the test split in percent; NaN for none."""
        return figure_in(self.results["test"], name)


@dataclass(frozen=True, eq=False)
class Experiment:
    """All finished runs of one experiment.

    Attributes:
        name: of the experiment.
        runs: by seed, at least one.
        ancestors: names of the experiments it is a difference from, the nearest first.
    """

    name: str
    runs: list[Run]
    ancestors: list[str]

    @property
    def config(self) -> ExperimentConfig:
        return self.runs[0].experiment

    @cached_property
    def cost(self) -> Cost:
        """Cost at the experiment's input size."""
        return cost(build_skeleton(self.config), as_size(self.config.input.size))

    @property
    def matchers(self) -> list[Matcher]:
        return [run.matcher for run in self.runs]

    def miss_rate(self, subset: str) -> Interval:
        """Mean over the seeds, 0..1, with the bootstrap interval over images."""
        return interval(self.matchers, subset)

    def mean(self, figure: str) -> float:
        """Mean of a :meth:`Run.figure` over the seeds."""
        return statistics.fmean(run.figure(figure) for run in self.runs)

    def deviation(self, figure: str) -> float:
        """Sample standard deviation of a figure over the seeds; NaN for one seed, or where a seed has no number."""
        values = [run.figure(figure) for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


@dataclass(frozen=True)
class Confound:
    """A key in which an experiment and its parent differ.

    Attributes:
        key: dotted.
        before, after: its value in the parent and in the experiment.
        intended: the experiment's file lists it among its ``changes``.
    """

    key: str
    before: Any
    after: Any
    intended: bool


@dataclass(frozen=True, eq=False)
class Difference:
    """An experiment against its parent: the nearest of its ancestors that has runs on the same test data.

    Attributes:
        experiment, parent: A and B of the comparisons.
        comparisons: by reasonable subset, under the matlab rules.
        confounds: every key that differs, the intended ones first.
    """

    experiment: Experiment
    parent: Experiment
    comparisons: dict[str, Comparison]
    confounds: list[Confound]

    @property
    def verdict(self) -> Verdict:
        """Verdict: whether the difference exceeds chance over images and seeds (95 %).

        The two margins are independent, so their squares add.
        """
        if self.doubt:
            return "cannot tell"
        return "better" if self._difference.value < 0 else "worse"

    @property
    def doubt(self) -> str:
        """Why the verdict is "cannot tell"; else empty."""
        value, low, high = self._difference.value, self._difference.low, self._difference.high
        if math.isnan(value):
            return "there is nobody to miss"
        if low <= 0 <= high:
            return "other images could turn it round"
        a, b = ([run.figure(f"MR/{REASONABLE[0]}") / 100 for run in e.runs] for e in (self.experiment, self.parent))
        if len(a) == len(b) == 1:
            return "one seed each: another could turn it round"
        of_seeds, of_images = seed_margin(a, b), high - value if value < 0 else value - low
        if abs(value) <= of_seeds:
            return "the seeds differ among themselves as much"
        if abs(value) <= math.hypot(of_seeds, of_images):
            return "other images and other seeds together could turn it round"
        return ""

    @property
    def _difference(self) -> Interval:
        return self.comparisons[REASONABLE[0]].difference


@dataclass(frozen=True, eq=False)
class Study:
    """Contents of a study's directory.

    Attributes:
        out: the directory.
        experiments: those with at least one finished run, in the study's order.
        unfinished: runs that are not finished.
        left_out: why finished runs are left out, one sentence each.
        frames: of the test split, by the fingerprint of the data.
        warnings: why runs are not comparable, one sentence each.
    """

    out: Path
    experiments: list[Experiment]
    unfinished: list[RunDirectory]
    left_out: list[str]
    frames: dict[str, Sequence[Frame]]
    warnings: list[str] = field(default_factory=list)

    def experiment(self, name: str) -> Experiment | None:
        return next((experiment for experiment in self.experiments if experiment.name == name), None)

    @property
    def runs(self) -> list[Run]:
        return [run for experiment in self.experiments for run in experiment.runs]

    @cached_property
    def differences(self) -> list[Difference]:
        """The differences of all experiments with an ancestor in the study, in order."""
        found = []
        for experiment in self.experiments:
            relatives = (self.experiment(name) for name in experiment.ancestors)
            tested_alike = (
                r for r in relatives if r is not None and tested_on(r.runs[0]) == tested_on(experiment.runs[0])
            )
            if (parent := next(tested_alike, None)) is not None:
                found.append(difference(experiment, parent))
        return found


def load_study(out: Path, overrides: Sequence[str] = ()) -> Study:
    """Read every finished run with a test split, and match its detections.

    Args:
        out: the study's directory.
        overrides: where the data are.

    Raises:
        RunError: there are no runs, or none of the finished ones can be read.
    """
    elsewhere(ExperimentConfig("any"), overrides)  # a wrong one is wrong for every run
    ancestors = {name: entry["ancestors"] for name, entry in read_study(out)["experiments"].items()}
    frames: dict[str, Sequence[Frame]] = {}
    evaluators: dict[object, MissRateEvaluator] = {}
    by_name: dict[str, list[Run]] = {}
    unfinished = []
    directories, left_out = runs_of(out)
    for directory in directories:
        try:
            if directory.state is State.FINISHED and "test" in directory.results():
                run = _read(directory, frames, evaluators, overrides)
                by_name.setdefault(run.experiment.name, []).append(run)
            else:
                unfinished.append(directory)
        except Failure as error:  # one that cannot be read must not hide the others
            sentence = str(error)
            left_out.append(sentence if str(directory) in sentence else f"{directory}: {sentence}")
    if left_out and not by_name:
        raise RunError("; ".join(left_out))
    experiments = []
    for name, runs in by_name.items():
        usual = statistics.mode(map(tested_on, runs))
        left_out += [f"{r.directory}: was tested on other data than other seeds" for r in runs if tested_on(r) != usual]
        alike = [run for run in runs if tested_on(run) == usual]
        experiments.append(Experiment(name, alike, alike[0].experiment.ancestors or ancestors.get(name, [])))
    return Study(out, experiments, unfinished, left_out, frames, _warnings(experiments))


def _read(
    directory: RunDirectory,
    frames: dict[str, Sequence[Frame]],
    evaluators: dict[object, MissRateEvaluator],
    overrides: Sequence[str],
) -> Run:
    """Read a finished run; test frames and matchers are cached by fingerprint."""
    experiment, found, table = directory.tested(overrides, frames)
    environment = directory.environment()
    classes = build_classes(experiment)
    table = table.of_class(classes.index(classes.main))
    counted, absent = classes.counted(classes.main), classes.absent(classes.main)
    data = environment["data"]["test"]["fingerprint"], counted, absent
    if data not in evaluators:
        evaluators[data] = MissRateEvaluator([frame.annotations for frame in found], counted, absent)
    matcher = evaluators[data].match(table)
    return Run(directory, experiment, environment, directory.results(), directory.metrics(), table, matcher)


def tested_on(run: Run) -> str:
    """Fingerprint of the run's test data."""
    return str(run.environment["data"]["test"]["fingerprint"])


def difference(experiment: Experiment, parent: Experiment) -> Difference:
    """Compare two experiments that were tested on the same data."""
    comparisons = {subset: compare(experiment.matchers, parent.matchers, subset) for subset in REASONABLE}
    before, after = settings(parent.config), settings(experiment.config)
    # from an ancestor that is not the parent itself, more changes than the file's own are meant
    confounds = [
        Confound(key, before[key], after[key], key in experiment.config.changes)
        for key in sorted(after)
        if before[key] != after[key] and key not in (*WHERE, "trainer.seed")
    ]
    return Difference(experiment, parent, comparisons, sorted(confounds, key=lambda c: not c.intended))


def subset_table(experiments: Sequence[Experiment]) -> dict[str, list[float]]:
    """Mean miss rates by experiment and subset in percent; NaN without people in the subset."""
    return {e.name: [e.mean(f"MR/{subset}") for subset in SUBSETS] for e in experiments}


def _warnings(experiments: Sequence[Experiment]) -> list[str]:
    """Sentences about runs that differ in config, code, data or device."""
    runs = [run for experiment in experiments for run in experiment.runs]
    warnings = [
        f"the seeds of {experiment.name} do not have the same config: {', '.join(keys)}"
        for experiment in experiments
        if (keys := varied([run.experiment for run in experiment.runs]))
    ]
    unknown = {reason: None for run in runs if (reason := run.environment["git"].get("reason"))}
    warnings += [f"the commit of some runs is unknown: {reason}" for reason in unknown]
    warnings += [
        f"{run.directory.config_file} was edited after the training, and the report does not believe it: {edited}"
        for run in runs
        if (edited := run.directory.edited(run.experiment))
    ]
    for given in dict.fromkeys(run.experiment.init_from for run in runs if run.experiment.init_from):
        begun_from = [
            run.environment.get("init_from", {}).get("sha256") for run in runs if run.experiment.init_from == given
        ]
        if len(set(begun_from)) > 1:
            warnings.append(f"not all runs that began from {given} found the same weights there (SHA-256)")
    for what, of in (
        ("code", lambda run: run.commit),
        ("training data", lambda run: run.environment["data"]["train"]["fingerprint"][:7]),
        ("test data", lambda run: tested_on(run)[:7]),
        ("device", lambda run: run.environment["device"]),
    ):
        kinds: dict[str, list[str]] = {}
        for run in runs:
            kinds.setdefault(of(run), []).append(f"{run.experiment.name} seed {run.seed}")
        if len(kinds) > 1:
            usual = max(kinds, key=lambda kind: len(kinds[kind]))
            others = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if kind != usual)
            warnings.append(f"not all runs have the same {what} (most: {usual}). {others}")
    return warnings
