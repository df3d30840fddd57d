"""Figures of scores, for a file. Matplotlib is imported when needed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from data_kaist.errors import Doubt
from ssd_effnet.evaluation.scores import Scores, percent
from ssd_effnet.evaluation.subsets import REASONABLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow, which is too pale for a line; safe for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
LINE_STYLES = ("-", "--", ":", "-.")


def save_figure(figure: Figure, target: Path | TextIO, **more: Any) -> None:
    """Write a figure with embedded TrueType fonts; a :class:`~data_kaist.errors.Doubt` names missing letters.

    Args:
        figure: with all its texts.
        target: whose suffix chooses the format and whose folder is made, or a stream with ``format`` among ``more``.
        more: of ``Figure.savefig``.
    """
    import matplotlib
    from matplotlib.text import Text

    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    texts: list[Text] = figure.findobj(Text)
    _warn_of_letters(frozenset("".join(text.get_text() for text in texts)))
    with (
        matplotlib.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "report"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # warned once, above
        figure.savefig(target, **more)


@cache
def _warn_of_letters(letters: frozenset[str]) -> None:
    """Warn of letters that the chosen fonts lack."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [findfont(FontProperties(family=[family])) for family in FontProperties().get_family()]
    known = {code for file in fonts for code in get_font(file).get_charmap()}
    if missing := "".join(sorted(c for c in letters if not c.isspace() and ord(c) not in known)):
        warnings.warn(
            f"no chosen font has {missing[:40]}; pictures show boxes in their place, until a matplotlibrc names "
            "another font.family",
            Doubt,
            stacklevel=3,
        )


def shortened(names: Sequence[str], most: int = 36) -> dict[str, str]:
    """Names shortened for a legend, still distinct. Their ends are cut, else their middles.

    >>> shortened(["one", "a long name of the first", "a long name of the second"], 12)
    {'one': 'one', 'a long name of the first': 'a lo…e first', 'a long name of the second': 'a lo… second'}
    """

    def cut(name: str, beginning: int) -> str:
        end = len(name) - (most - 1 - beginning)
        return name if len(name) <= most else f"{name[:beginning]}…{name[end:]}"

    for beginning in (most - 1, most // 3):
        short = {name: cut(name, beginning) for name in names}
        if len(set(short.values())) == len(short):
            return short
    known = list(short.values())
    return {name: of if known.count(of) == 1 else name for name, of in short.items()}


def miss_rate_figure(
    scores: Mapping[str, Scores],
    rules: str = "matlab",
    subsets: Sequence[str] = REASONABLE,
    size: Sequence[float] | None = None,
    *,
    best_first: bool = True,
) -> Figure:
    """Miss rate against FPPI. One panel per subset, one line per detector.

    Both axes are logarithmic. Marks are at the reference points, whose mean is in the legend.

    Args:
        scores: by detector, each scored under ``rules``.
        size: width and height, inches.
        best_first: order of the legends; otherwise it is that of ``scores``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0], size[1]) if size else (5.2 * len(subsets), 5.4), layout="constrained")
    all_axes = figure.subplots(1, len(subsets), sharey=True, squeeze=False)[0]
    least, short = 0.5, shortened(list(scores))
    for axes, subset in zip(all_axes, subsets, strict=True):
        lines = []
        for i, (detector, of_detector) in enumerate(scores.items()):
            result = of_detector.miss_rates[rules][subset]
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": LINE_STYLES[i // len(COLOURS) % 4]}
            label = f"{percent(100 * result.mr)}  {short[detector]}".replace("$", r"\$")  # two would start mathematics
            # points left of the axis start are drawn at its edge
            (handle,) = axes.plot(np.maximum(result.fppi, 1e-6), result.miss_rate, label=label, linewidth=1.6, **look)
            marks = {"linestyle": "none", "marker": "o", "markersize": 4.5, "markerfacecolor": "white"}
            read = (result.reference_fppi, result.reference_miss_rate)
            axes.plot(*read, markeredgecolor=look["color"], **marks)
            lines.append((result.mr, i, handle))
            least = min(least, *(x for x in result.reference_miss_rate if x > 0), 0.5)
        if best_first:
            lines.sort(key=lambda line: (math.isnan(line[0]), line[0], line[1]))
        axes.legend(handles=[handle for _, _, handle in lines], loc="lower left", fontsize=9, title="MR in %")
        images = next(iter(scores.values())).miss_rates[rules][subset].images if scores else 0
        axes.set_title(f"{subset.replace('_', ' ')} ({images:,} images)")
        axes.grid(True, which="major", color="0.85", linewidth=0.8)
        axes.set_axisbelow(True)
    for axes in all_axes:
        lay_out_axes(axes, least)
    all_axes[0].set_ylabel("miss rate")
    figure.suptitle(f"Miss rate under the {rules} rules", fontsize=12)
    return figure


def lay_out_axes(axes: Any, least: float) -> None:
    """Logarithmic axes of miss rate over FPPI. They begin below the ``least`` miss rate."""
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    floor = 0.6 * least
    ticks = [t for t in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1) if t >= floor]
    axes.set(xlim=(2e-3, 2), ylim=(floor, 1.1), xscale="log", yscale="log", xlabel="false positives per image")
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
