"""The report's SVG figures. Lines and marks differ by style as well as colour."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ssd_effnet.evaluation.miss_rate import MissRate
from ssd_effnet.evaluation.plots import COLOURS, LINE_STYLES, lay_out_axes, save_figure, shortened
from ssd_effnet.study.records import Difference, Experiment

VALIDATION = "val/MR/reasonable_all"
_WIDTH = 4.0  # inches: one panel fits a phone, and stands beside another one on a screen
_FPPI = np.geomspace(2e-3, 2, 240)


def miss_rate_curves(experiments: Sequence[Experiment], subset: str) -> str:
    """Miss rate against false positives per image. Each point is the mean over the seeds."""
    figure, axes = _panel(len(experiments), 3.2)
    handles = []
    least, short = 0.5, shortened([e.name for e in experiments])
    for i, experiment in enumerate(experiments):
        results = [run.matcher.result(subset) for run in experiment.runs]
        if not all(math.isfinite(result.mr) for result in results):  # no people, and no curve
            continue
        mean = np.mean([miss_rate_at(result, _FPPI) for result in results], axis=0)
        least = min([least, *mean[mean > 0]])
        mr = 100 * float(np.mean([result.mr for result in results]))
        (line,) = axes.plot(_FPPI, mean, label=_label(mr, short[experiment.name]), **_look(i, "linestyle"))
        handles.append((math.isnan(mr), mr, i, line))
    lay_out_axes(axes, least)
    axes.set_ylabel("miss rate")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    _legend(figure, [handle[-1] for handle in sorted(handles, key=lambda h: h[:3])], "MR in %")
    return _svg(figure)


def miss_rate_at(result: MissRate, fppi: np.ndarray) -> np.ndarray:
    """The curve's miss rate at ``fppi``; 1 before its first point."""
    steps = np.concatenate(([1.0], result.miss_rate))
    return steps[np.searchsorted(result.fppi, fppi, side="right")]


def learning_curves(experiments: Sequence[Experiment]) -> str:
    """Validation miss rate per epoch: mean and range over the seeds. Empty for none."""
    figure, axes = _panel(len(experiments), 3.4, 4.8)
    handles, short = [], shortened([e.name for e in experiments])
    for i, experiment in enumerate(experiments):
        by_epoch: dict[int, list[float]] = {}
        for run in experiment.runs:
            for row in run.metrics:
                if not math.isnan(row.get(VALIDATION, math.nan)):
                    by_epoch.setdefault(int(row["epoch"]) + 1, []).append(row[VALIDATION])
        if not by_epoch:
            continue
        epochs = sorted(by_epoch)
        mean = [float(np.mean(by_epoch[epoch])) for epoch in epochs]
        label = _label(min(mean), short[experiment.name])
        handles.append(axes.plot(epochs, mean, label=label, markevery=0.1, **_look(i, "linestyle", "marker"))[0])
        if len(experiment.runs) > 1:
            least, greatest = (np.array([of(by_epoch[epoch]) for epoch in epochs]) for of in (min, max))
            axes.fill_between(epochs, least, greatest, alpha=0.12, linewidth=0, **_look(i))
    if not handles:
        return ""
    axes.set(xlabel="epoch", ylabel="validation miss rate, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, handles, "least mean validation MR in %")
    return _svg(figure)


def forest(differences: Sequence[Difference]) -> str:
    """Each experiment's difference to its parent. In the figure of the verdicts, with its 95 % interval.

    Filled marks have a verdict; without enough seeds there is no interval. Empty where nothing is compared.
    """
    known = [d for d in differences if math.isfinite(d.comparison.difference)]
    if not known:
        return ""
    figure = Figure(figsize=(1.6 * _WIDTH, 0.7 + 0.3 * len(known)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="0.4", linewidth=1)
    for row, d in enumerate(known):
        c, colour = d.comparison, {"better": COLOURS[0], "worse": COLOURS[1]}.get(d.verdict, "0.35")
        if c.enough_seeds and math.isfinite(c.low):
            axes.plot([c.low, c.high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
        look = {"better": "<", "worse": ">"}.get(d.verdict, "o")
        face = "white" if d.doubt else colour
        axes.plot(c.difference, row, marker=look, color=colour, markerfacecolor=face, markersize=7, linestyle="none")
    short = shortened([d.experiment.name for d in known] + [d.parent.name for d in known], 24)
    labels = [f"{short[d.experiment.name]} − {short[d.parent.name]}".replace("$", r"\$") for d in known]
    axes.set_yticks(range(len(known)), labels)
    axes.set(
        ylim=(len(known) - 0.5, -0.5), xlabel=f"difference of {known[0].metric.replace('/reasonable_', ' ')}, points"
    )
    axes.locator_params(axis="x", nbins=6)
    axes.grid(True, axis="x", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return _svg(figure)


@dataclass(frozen=True)
class ParetoPoint:
    """One experiment of the Pareto figure. Cost, and miss rate with 95 % interval in percent."""

    x: float
    mr: float
    low: float
    high: float


def pareto(points: Mapping[str, ParetoPoint], x_label: str, places: Mapping[str, int]) -> str:
    """Miss rate over cost with the Pareto front; empty without points. ``places`` of experiments choose their looks."""
    drawn = {name: point for name, point in points.items() if math.isfinite(point.x) and math.isfinite(point.mr)}
    if not drawn:
        return ""
    figure, axes = _panel(len(drawn), 3.2)
    edge = front(list(drawn.values()))
    axes.step([p.x for p in edge], [p.mr for p in edge], where="post", color="0.6", linewidth=1, zorder=1)
    handles, short = [], shortened(list(drawn))
    for name, point in drawn.items():
        i = places[name]
        if math.isfinite(point.low) and math.isfinite(point.high):
            axes.plot([point.x] * 2, [point.low, point.high], alpha=0.35, linewidth=1, zorder=2, **_look(i))
        look: dict[str, Any] = {"linestyle": "none", "markersize": 7, **_look(i, "marker")}
        if point not in edge:
            look["markerfacecolor"] = "white"
        handles.append(axes.plot(point.x, point.mr, label=_label(point.mr, short[name]), zorder=3, **look)[0])
    xs = [point.x for point in drawn.values()]
    if max(xs) > 5 * min(xs) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.margins(x=0.08)
    axes.set(xlabel=x_label, ylabel="miss rate (reasonable, all), %")
    _legend(figure, handles, "MR in %")
    return _svg(figure)


def front(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """Points that no other beats in both cost and miss rate. The cheapest is first."""
    best: list[ParetoPoint] = []
    for point in sorted(points, key=lambda p: (p.x, p.mr)):
        if not best or point.mr < best[-1].mr:
            best.append(point)
    return best


def _panel(lines: int, height: float, width: float = _WIDTH) -> tuple[Figure, Any]:
    """A figure with axes and room for a legend of ``lines`` lines."""
    figure = Figure(figsize=(width, height + 0.35 + 0.19 * lines), layout="constrained")
    axes = figure.subplots()
    axes.grid(True, which="major", color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(figure: Figure, handles: Sequence[Any], title: str) -> None:
    legend = figure.legend(
        handles=handles, loc="outside lower left", title=title, frameon=False, fontsize=9, title_fontsize=9
    )
    legend.set_alignment("left")


def _label(value: float, name: str) -> str:
    number = "  –  " if math.isnan(value) else f"{value:5.2f}"
    return f"{number}  {name}".replace("$", r"\$")  # two of them would be read as mathematics


def _look(i: int, *parts: str) -> dict[str, str]:
    """Colour, and ``linestyle`` or ``marker``, of the study's experiment number ``i``."""
    of = {"color": COLOURS, "linestyle": LINE_STYLES, "marker": "os^DvPX*<>"}
    return {part: of[part][i % len(of[part])] for part in ("color", *parts)}


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    save_figure(figure, text, format="svg", metadata={"Date": None, "Creator": None})  # the same data, the same file
    return text.getvalue()
