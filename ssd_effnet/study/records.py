"""Loads a study's finished runs and compares experiments with parents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import track

from data_kaist.errors import Failure
from data_kaist.layouts import Frame
from data_kaist.structures import DetectionTable
from ssd_effnet.build import as_size, build_classes, build_skeleton
from ssd_effnet.config.keys import unlike
from ssd_effnet.config.loading import WHERE, elsewhere, varied
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.evaluation import significance
from ssd_effnet.evaluation.average_precision import AP_NAMES, AveragePrecision
from ssd_effnet.evaluation.metrics import figure_in, metric_of
from ssd_effnet.evaluation.miss_rate import Matcher, MissRateEvaluator
from ssd_effnet.models.cost import Cost, cost
from ssd_effnet.study.plan import read_study, runs_of, verdict_metric
from ssd_effnet.training.environment import code_name
from ssd_effnet.training.run_directory import RunDirectory, RunError, State

Verdict = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run.

    Attributes:
        experiment: what was trained.
        environment, results, metrics: content of the files of these names.
        detections: on the test split, of the main class.
        matcher: the detections against the test split.
        block: int64, the block of each test image, see :func:`.significance.blocks`.
    """

    directory: RunDirectory
    experiment: ExperimentConfig
    environment: dict[str, Any]
    results: dict[str, Any]
    metrics: list[dict[str, float]]
    detections: DetectionTable
    matcher: Matcher
    block: np.ndarray

    @property
    def seed(self) -> int:
        return self.experiment.trainer.seed

    @property
    def commit(self) -> str:
        """Commits of the run and its resumptions. ``+`` and a hash if modified."""
        parts = [self.environment, *self.environment.get("resumed", [])]
        return ", then ".join(dict.fromkeys(code_name(part["git"]) for part in parts))

    def figure(self, name: str) -> float:
        """``MR/<subset>`` under the matlab rules, ``AP``, ``AP50`` ... of the test split in percent; NaN for none."""
        return figure_in(self.results["test"], name)

    @cached_property
    def _known(self) -> dict[str, np.ndarray]:
        return {}

    @cached_property
    def _precision(self) -> AveragePrecision:
        truth = self.matcher.truth
        return AveragePrecision(truth.annotations, self.detections, truth.counted, truth.absent)

    def replicates(self, figure: str) -> np.ndarray:
        """Replicates of a :meth:`figure` in percent, ``(1 + G,)``: on all test images, then without each block."""
        if figure not in self._known:
            kind, _, subset = figure.partition("/")
            if kind == "MR":
                self._known[figure] = significance.jackknife(self.matcher, self.block, subset)
            elif kind in AP_NAMES:
                read, images = self._precision.figures, np.arange(len(self.block))
                of_all = significance.replicates(lambda weight: list(read(weight).values()), self.block, images)
                self._known.update(zip(AP_NAMES, of_all.T, strict=True))
            else:  # a metric of the user's own has its value and no interval
                self._known[figure] = np.array([self.figure(figure), math.nan, math.nan])
        return self._known[figure]


@dataclass(frozen=True, eq=False)
class Experiment:
    """All finished runs of one experiment.

    Attributes:
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

    def replicates(self, figure: str) -> np.ndarray:
        """:meth:`Run.replicates` of the seeds, ``(seeds, 1 + G)``."""
        return np.stack([run.replicates(figure) for run in self.runs])

    def estimate(self, figure: str) -> significance.Estimate:
        """Mean over the seeds in percent and its 95 % interval for other images and seeds. NaN for one seed."""
        of = significance.estimate(self.replicates(figure))
        return of if len(self.runs) > 1 else replace(of, low=math.nan, high=math.nan)

    def mean(self, figure: str) -> float:
        """Mean of a :meth:`Run.figure` over the seeds."""
        return statistics.fmean(run.figure(figure) for run in self.runs)

    def deviation(self, figure: str) -> float:
        """Sample standard deviation of a figure over the seeds. NaN for one seed, or where a seed has no number."""
        values = [run.figure(figure) for run in self.runs]
        return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


@dataclass(frozen=True)
class Confound:
    """A key in which an experiment and its parent differ. ``intended``: listed in the experiment's ``changes``."""

    key: str
    before: Any
    after: Any
    intended: bool


@dataclass(frozen=True, eq=False)
class Difference:
    """An experiment against its parent. This is its nearest ancestor with runs on the same test data.

    Attributes:
        confounds: every key that differs, the intended ones first.
        metric: the figure of the verdict.
        adjusted: its p, adjusted for the other differences of the study.
    """

    experiment: Experiment
    parent: Experiment
    confounds: list[Confound]
    metric: str
    adjusted: float = math.nan

    def compared(self, figure: str) -> significance.Comparison:
        """Both sides in one figure, in percent."""
        return significance.compare(self.experiment.replicates(figure), self.parent.replicates(figure))

    @cached_property
    def comparison(self) -> significance.Comparison:
        """Both sides in the figure of the verdict."""
        return self.compared(self.metric)

    @property
    def verdict(self) -> Verdict:
        """Whether the difference exceeds chance over images and seeds. At 95 %, adjusted for other differences."""
        if self.doubt:
            return "cannot tell"
        return "better" if (self.comparison.difference < 0) == metric_of(self.metric).lower_is_better else "worse"

    @property
    def doubt(self) -> str:
        """Why the verdict is "cannot tell"; else empty."""
        return self.comparison.doubt(self.adjusted)


@dataclass(frozen=True, eq=False)
class Study:
    """Contents of a study's directory, ``out``.

    Attributes:
        experiments: those with at least one finished run, in the study's order.
        left_out, warnings: why runs are left out, or are not comparable, one sentence each.
        frames: of the test split, by the fingerprint of the data.
        metric: the figure of the verdicts.
        planned: how many differences the plan has, finished or not.
    """

    out: Path
    experiments: list[Experiment]
    unfinished: list[RunDirectory]
    left_out: list[str]
    frames: dict[str, Sequence[Frame]]
    metric: str
    planned: int = 0
    warnings: list[str] = field(default_factory=list)

    def experiment(self, name: str) -> Experiment | None:
        return next((experiment for experiment in self.experiments if experiment.name == name), None)

    @property
    def runs(self) -> list[Run]:
        return [run for experiment in self.experiments for run in experiment.runs]

    @cached_property
    def differences(self) -> list[Difference]:
        """Differences of all experiments with an ancestor in the study. They are in order, with p adjusted (Holm)."""
        found: list[Difference] = []
        for experiment in self.experiments:
            relatives = (self.experiment(name) for name in experiment.ancestors)
            truth = experiment.runs[0].matcher.truth  # one for all runs of the same test data and counted labels
            tested_alike = (r for r in relatives if r is not None and r.runs[0].matcher.truth is truth)
            if (parent := next(tested_alike, None)) is not None:
                found.append(difference(experiment, parent, self.metric))
        p = [d.comparison.p if d.comparison.enough_seeds else math.nan for d in found]
        adjusted = significance.holm([*np.nan_to_num(p, nan=1.0), *[1.0] * (self.planned - len(found))])
        known = np.where(np.isnan(p), math.nan, adjusted[: len(p)])
        return [replace(d, adjusted=float(of)) for d, of in zip(found, known, strict=True)]


def load_study(out: Path, overrides: Sequence[str] = ()) -> Study:
    """Read every finished run and match its detections. ``overrides`` say where the data are.

    Raises:
        RunError: there are no runs, or none of the finished ones can be read.
    """
    elsewhere(ExperimentConfig("any"), overrides)  # a wrong one is wrong for every run
    planned = read_study(out)
    entries: dict[str, Any] = planned["experiments"]
    frames: dict[str, Sequence[Frame]] = {}
    evaluators: dict[object, MissRateEvaluator] = {}
    by_name: dict[str, list[Run]] = {}
    unfinished = []
    directories, left_out = runs_of(out)
    console = Console(stderr=True)
    for directory in track(directories, "runs", console=console, disable=not console.is_terminal, transient=True):
        try:
            if directory.state is State.FINISHED and "test" in directory.results():
                run = _read_run(directory, frames, evaluators, overrides)
                by_name.setdefault(run.experiment.name, []).append(run)
            else:
                unfinished.append(directory)
        except Failure as error:  # one that cannot be read must not hide the others
            sentence = str(error)
            left_out.append(sentence if str(directory) in sentence else f"{directory}: {sentence}")
    if left_out and not by_name:
        others = f"; {len(left_out) - 1} more runs cannot be read either" if len(left_out) > 1 else ""
        raise RunError(left_out[0] + others)
    experiments = []
    for name, runs in by_name.items():
        usual = statistics.mode(map(tested_on, runs))
        left_out += [f"{r.directory}: was tested on other data than other seeds" for r in runs if tested_on(r) != usual]
        alike = [run for run in runs if tested_on(run) == usual]
        of_plan = entries.get(name, {})
        seeds = of_plan.get("seeds") or [run.seed for run in alike]
        left_out += [f"{r.directory}: the seed was added when there were results" for r in alike if r.seed not in seeds]
        if alike := [run for run in alike if run.seed in seeds]:
            ancestors = alike[0].experiment.ancestors or of_plan.get("ancestors", [])
            experiments.append(Experiment(name, alike, ancestors))
    metric = planned.get("metric") or verdict_metric(evaluators.values())
    pairs = sum(any(parent in entries for parent in entry["ancestors"]) for entry in entries.values())
    return Study(out, experiments, unfinished, left_out, frames, metric, pairs, _warnings(experiments))


def _read_run(
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
    matcher, block = evaluators[data].match(table), significance.blocks([frame.name for frame in found])
    return Run(directory, experiment, environment, directory.results(), directory.metrics(), table, matcher, block)


def tested_on(run: Run) -> str:
    """Fingerprint of the run's test data."""
    return str(run.environment["data"]["test"]["fingerprint"])


def difference(experiment: Experiment, parent: Experiment, metric: str) -> Difference:
    """Compare two experiments that were tested on the same data."""
    # from an ancestor that is not the parent itself, more changes than the file's own are meant
    confounds = [
        Confound(key, before, after, key in experiment.config.changes)
        for key, (before, after) in unlike(parent.config, experiment.config).items()
        if key not in (*WHERE, "trainer.seed")
    ]
    return Difference(experiment, parent, sorted(confounds, key=lambda c: not c.intended), metric)


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
    begun_from = [("init_from", run.experiment.init_from, run) for run in runs]
    begun_from += [("pretrained", run.experiment.backbone.pretrained, run) for run in runs]
    for here in dict.fromkeys((key, given) for key, given, _ in begun_from):
        if len({run.environment.get(here[0], {}).get("sha256") for *of, run in begun_from if tuple(of) == here}) > 1:
            warnings.append(f"not all runs that began from {here[1]} found the same weights there (SHA-256)")
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
