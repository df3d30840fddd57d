"""Miss rates under corruptions of the images, by kind and strength: table and figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from matplotlib.figure import Figure
from rich.table import Table

from data_kaist.corruptions import STRENGTHS
from ssd_effnet.evaluation.plots import COLOURS
from ssd_effnet.evaluation.scores import Scores, with_deviation
from ssd_effnet.training.run import CLEAN

Stressed: TypeAlias = Mapping[tuple[str, int], Scores]
"""One run's scores by kind and strength; ``("clean", 0)`` among them."""


def _rates(seeds: Sequence[Stressed], kind: str, subset: str) -> list[list[float]]:
    """Miss rates in percent of each seed, clean and by strength. Strengths that were not tested are left out."""
    places = [CLEAN, *((kind, strength) for strength in STRENGTHS if (kind, strength) in seeds[0])]
    return [[seed[place].percent("matlab")[subset] for seed in seeds] for place in places]


def _kinds(tested: Mapping[str, Sequence[Stressed]]) -> list[str]:
    return list(dict.fromkeys(kind for seeds in tested.values() for kind, strength in seeds[0] if strength))


def stress_table(tested: Mapping[str, Sequence[Stressed]], subset: str) -> Table:
    """One row per corruption and experiment: clean, then by strength. A dash if its image is not read.

    Args:
        tested: by experiment, one per seed; mean and standard deviation of several.
        subset: of :data:`ssd_effnet.evaluation.subsets.SUBSETS`, for the miss rates.
    """

    title = f"Miss rate in percent (lower is better), {subset.replace('_', ' ')}, by strength of the corruption"
    table = Table(title=title, title_justify="left")
    for heading in ("corruption", "detections"):
        table.add_column(heading, overflow="fold")
    for heading in ("clean", *map(str, STRENGTHS)):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in _kinds(tested):
        for i, (name, seeds) in enumerate(tested.items()):
            cells = [with_deviation(values) for values in _rates(seeds, kind, subset)]
            cells += ["-"] * (1 + len(STRENGTHS) - len(cells))
            table.add_row("" if i else kind.replace("_", " "), name, *cells, end_section=i == len(tested) - 1)
    return table


def stress_figure(tested: Mapping[str, Sequence[Stressed]], subset: str) -> Figure:
    """One panel per corruption, one line per experiment over the strength. Means of seeds; 0 is clean.

    Arguments as of :func:`stress_table`.
    """
    kinds, columns = _kinds(tested), 5
    rows = math.ceil(len(kinds) / columns)
    figure = Figure(figsize=(2.3 * columns, 2.2 * rows + 0.5 + 0.2 * len(tested)), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for kind, axes in zip(kinds, panels, strict=False):
        for i, (name, seeds) in enumerate(tested.items()):
            means = [sum(values) / len(values) for values in _rates(seeds, kind, subset)]
            look = {"color": COLOURS[i % len(COLOURS)], "marker": "os^Dv"[i % 5], "markersize": 4}
            axes.plot(range(len(means)), means, label=name.replace("$", r"\$"), **look)
        axes.set(title=kind.replace("_", " "), xticks=range(1 + len(STRENGTHS)))
        axes.set_xticklabels(["clean", *STRENGTHS])
        axes.grid(True, color="0.88", linewidth=0.8)
    for axes in panels:
        axes.set_visible(False)
    figure.supxlabel("strength")
    figure.supylabel(f"miss rate ({subset.replace('_', ' ')}), %")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", frameon=False)
    return figure
