"""The report's text and numbers of each experiment."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from ssd_effnet.evaluation.metrics import single
from ssd_effnet.evaluation.significance import Comparison, Estimate, seeds_to_tell
from ssd_effnet.evaluation.subsets import REASONABLE
from ssd_effnet.study.records import Confound, Difference, Experiment, Run, Study

NOTHING = "–"  # stands where there is no number


class ReportEntry:
    """An experiment with its difference to its parent, or None."""

    def __init__(self, study: Study, experiment: Experiment) -> None:
        self.experiment = experiment
        self.difference: Difference | None = next((d for d in study.differences if d.experiment is experiment), None)

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def parent(self) -> str:
        return self.difference.parent.name if self.difference else ""

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Figures of :func:`shown` in percent, with intervals. These are for other images and other seeds."""
        return {figure: self.experiment.estimate(figure) for figure in shown()}

    @cached_property
    def compared(self) -> dict[str, Comparison]:
        """The differences to the parent, by figure; empty without one."""
        return {figure: self.difference.compared(figure) for figure in shown()} if self.difference else {}

    @property
    def evidence(self) -> list[tuple[str, str]]:
        """Evidence of the verdict as (name, value); empty without a parent."""
        d = self.difference
        if d is None:
            return []
        c, (here, there) = d.comparison, (e.replicates(d.metric) for e in (d.experiment, d.parent))
        rows = [(f"difference of {figure_name(d.metric)}", between(c, "+"))]
        if c.enough_seeds:
            rows.append(("p, adjusted for the other differences", f"{number(c.p, 3)}, {number(d.adjusted, 3)}"))
        rows += [
            ("seeds, blocks of images", f"{c.seeds[0]} and {c.seeds[1]}, {c.blocks}"),
            ("pairs of seeds in which it is lower", f"{c.pairs} of {c.seeds[0] * c.seeds[1]}"),
        ]
        if min(c.seeds) > 1 and c.readable:
            rows.append(("variance from seeds, from images", f"{c.of_seeds:.0%}, {1 - c.of_seeds:.0%}"))
            rows.append(("smallest difference found with 80 % power, as the only question", number(c.detectable)))
            if d.doubt:
                rows.append(("no difference beyond", number(max(-c.low, c.high))))
        if c.readable and sum(c.seeds) > 2:
            what = "seeds per side that would tell 2 points, as the only question"
            rows.append((what, seeds_in_words(seeds_to_tell(here, there))))
        return rows

    def confounds(self, intended: bool) -> list[Confound]:
        return [c for c in self.difference.confounds if c.intended is intended] if self.difference else []

    @property
    def alone(self) -> str:
        """Why there is no comparison; else empty."""
        if self.difference:
            return ""
        if not self.experiment.ancestors:
            return "The study knows of no experiment that this one is a difference from."
        names = ", ".join(self.experiment.ancestors)
        return f"Compared with nothing: no ancestor ({names}) has finished runs on the same test data and labels."

    @property
    def distance(self) -> str:
        """A note if the compared parent is not the direct one."""
        between = self.experiment.ancestors[: self.experiment.ancestors.index(self.parent)] if self.parent else []
        if not between:
            return ""
        return (
            f"{self.parent} is the nearest ancestor with finished runs on the same test data; what "
            f"{', '.join(between)} changed lies between and is listed with the rest."
        )

    @property
    def costs(self) -> list[tuple[str, str, str, str]]:
        """Costs as (name, of the parent, of the experiment, ratio)."""
        rows: list[tuple[str, Callable[[Experiment], float], str, float]] = [
            ("parameters, M", lambda e: e.cost.parameters, ".2f", 1e6),
            ("multiply-adds, 10⁹", lambda e: e.cost.multiply_adds, ".2f", 1e9),
            ("anchors", lambda e: e.cost.anchors, ",.0f", 1),
            ("epochs", lambda e: e.config.trainer.epochs, ",.0f", 1),
        ]
        table = []
        for what, of, form, unit in rows:
            here, there = of(self.experiment), of(self.difference.parent) if self.difference else math.nan
            times = "same" if here == there else f"×{number(here / there)}"
            shown_there = f"{there / unit:{form}}" if self.difference else NOTHING
            table.append((what, shown_there, f"{here / unit:{form}}", times if self.difference else NOTHING))
        return table


def shown() -> list[str]:
    """The figures of the report: MR all, day and night, AP, AP50 and own metrics."""
    return [*(f"MR/{subset}" for subset in REASONABLE), *single("report")]


def number(value: float | None, digits: int = 2, sign: str = "") -> str:
    """A formatted number, or a dash for none."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:{sign}.{digits}f}"


def between(of: Estimate | Comparison, sign: str = "") -> str:
    """A figure with its interval, as ``12.34 (11.02 to 13.50)``. If none for other seeds is known, the figure alone."""
    value = number(of.value if isinstance(of, Estimate) else of.difference, sign=sign)
    alone = isinstance(of, Comparison) and not of.enough_seeds
    if alone or math.isnan(of.low):
        return value
    return f"{value} ({number(of.low, sign=sign)} to {number(of.high, sign=sign)})"


def figure_name(figure: str) -> str:
    """``MR all`` of ``MR/reasonable_all``."""
    return figure.replace("/reasonable_", " ")


def seeds_in_words(needed: tuple[float, float, float] | None) -> str:
    """Of :func:`.seeds_to_tell`: ``7 (4 to 20 at the limits of the seeds' spread)``."""
    if needed is None:
        return "no number of them: the images alone forbid it"
    at, low, high = ("more than 999" if math.isinf(n) else str(n) for n in needed)
    return f"{at} ({low} to {high} at the limits of the seeds' spread)"


def setting(value: Any) -> str:
    """A config value in short form."""
    if isinstance(value, list):
        return f"[{', '.join(map(setting, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def change(confound: Confound) -> str:
    return f"{confound.key}: {setting(confound.before)} → {setting(confound.after)}"


def verdict_in_words(entry: ReportEntry) -> str:
    """The verdict with its reason, in words; a dash without a parent."""
    if not entry.difference:
        return NOTHING
    doubt = f" ({entry.difference.doubt})" if entry.difference.doubt else ""
    return entry.difference.verdict + doubt


def input_size(experiment: Experiment) -> str:
    return "x".join(map(str, experiment.config.input.size))


def chosen_epoch(run: Run) -> str:
    """How a run's tested epoch was chosen."""
    epoch, epochs = run.results.get("epoch"), run.results.get("epochs")
    if str(run.results.get("checkpoint", "best")).startswith("last"):
        return f"epoch {epoch} of {epochs} is tested: the last one, nothing was chosen"
    val = run.results.get("val", {})
    first = ", not better than at the first validation" if val and val["best"] == val.get("first") else ""
    return f"best at epoch {epoch} of {epochs}" + (f" ({val['monitor']} {number(val['best'])}{first})" if val else "")


def different(values: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(values)) or NOTHING


def hours(study: Study) -> float:
    return sum(float(run.results["minutes"]) for run in study.runs) / 60


def data_of(study: Study) -> list[str]:
    """Split, images and fingerprint of training, validation and test data."""
    said: dict[str, None] = {}
    for run in study.runs:
        data = run.experiment.data
        stages = [
            f"{stage} {getattr(data, stage)}: {of['frames']:,} images, fingerprint {of['fingerprint'][:7]}"
            for stage, of in run.environment["data"].items()
        ]
        scored = f"; scored on {run.results['test']['annotations']}" if "annotations" in run.results["test"] else ""
        said[f"{data.kind} data in {data.root}; {'; '.join(stages)}{scored}"] = None
    return list(said)
