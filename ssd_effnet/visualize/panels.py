"""Draws panels in rows and columns: pictures with heat maps and boxes, by matplotlib.

Heat maps use viridis, which is perceptually uniform, also in grey and for colour-blind readers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from data_kaist.classes import PERSON
from ssd_effnet.drawing import KINDS, as_rgb
from ssd_effnet.evaluation.plots import save_figure

_LETTERS = 50  # of a line of text over a column


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a grid.

    Attributes:
        lines: of text above it; long ones are wrapped.
        picture: uint8 ``(H, W, 3)`` or ``(H, W)``; grey below heat, so that only heat has colour.
        heat: ``(h, w)`` numbers laid over the picture without interpolation; None for none.
        boxes: ``(4,)`` xyxy in pixels of the picture, each with its RGB colour.
        view: xyxy, the part of the picture that is shown, which may reach beyond it; None: all.
    """

    lines: Sequence[str]
    picture: np.ndarray
    heat: np.ndarray | None = None
    boxes: Sequence[tuple[np.ndarray, tuple[int, int, int]]] = ()
    view: np.ndarray | None = None


def save_panels(
    path: Path,
    rows: Sequence[Sequence[Panel | None]],
    words: Sequence[str] = (),
    kinds: Iterable[str] = (),
    width: float = 3.2,
    of_class: str = PERSON,
) -> None:
    """Write the panels below lines of text. The path's suffix chooses the format.

    Args:
        rows: of panels; None leaves a place free.
        words: lines of text above all panels.
        kinds: of box, for the legend; keys of :data:`ssd_effnet.drawing.KINDS`.
        width: of a column, inches.
        of_class: what the legend calls a true box.
    """
    columns = max(2, *map(len, rows)) if len(rows) > 1 else len(rows[0])
    shapes = [next(p.picture.shape for p in row if p is not None) for row in rows]
    heights = [width * shape[0] / shape[1] + 0.45 for shape in shapes]
    head = [part for line in words for part in textwrap.wrap(line, int(columns * width * 15))]
    size = (columns * width, sum(heights) + 0.16 * len(head) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set_axis_off()
        axes.set(xticks=(), yticks=())  # ticks that are not seen take half of the time
    for axes_of_row, row in zip(grid, rows, strict=True):
        for axes, panel in zip(axes_of_row, row, strict=False):
            if panel is not None:
                _fill(axes, panel)
    if head:
        figure.suptitle("\n".join(head), fontsize=8, x=0.01, ha="left", parse_math=False)
    add_legend(figure, kinds, of_class)
    save_figure(figure, path, dpi=100)


def add_legend(figure: Figure, kinds: Iterable[str], of_class: str = PERSON) -> None:
    """Add a legend of box kinds below."""
    if handles := [outline(np.array([0, 0, 1, 1]), kind, label=KINDS[kind].words(of_class)) for kind in kinds]:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=7)


def outline(box_xyxy: np.ndarray, kind: str, **more: Any) -> Rectangle:
    """A box in the colour and line of its kind."""
    x1, y1, x2, y2 = box_xyxy
    colour, line = [c / 255 for c in KINDS[kind].colour], "--" if KINDS[kind].dashed else "-"
    return Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=line, **more)


def _fill(axes: Axes, panel: Panel) -> None:
    lines = [part for line in panel.lines for part in textwrap.wrap(line, _LETTERS)]
    axes.set_title("\n".join(lines), fontsize=7, loc="left", parse_math=False)
    height, width = panel.picture.shape[:2]
    extent = (0, width, height, 0)
    picture = as_rgb(panel.picture)
    if panel.heat is not None:
        picture = as_rgb(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
    axes.imshow(picture, extent=extent, interpolation="nearest")
    if panel.heat is not None:
        axes.imshow(panel.heat, "viridis", extent=extent, alpha=0.6, interpolation="nearest")
    for (x1, y1, x2, y2), colour in panel.boxes:
        edge = [c / 255 for c in colour]
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.2, edgecolor=edge))
    if panel.view is not None:
        x1, y1, x2, y2 = panel.view
        axes.set(xlim=(x1, x2), ylim=(y2, y1))
