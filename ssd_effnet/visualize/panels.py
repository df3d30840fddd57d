"""Draws panels in rows and columns: pictures with heat maps, boxes and lines of text, by matplotlib.

The colours of heat are viridis: equal steps of the number look like equal steps, also to colour-blind readers and in
grey.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ssd_effnet.drawing import as_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 100
_LINE = 16  # pixels of a line of text
_LETTER = 6.2  # pixels of a letter, on average
_GAP = 8


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a grid.

    Attributes:
        lines: of text above it; long ones are wrapped.
        picture: uint8 ``(H, W, 3)`` or ``(H, W)``; grey below heat, so that only heat has colour.
        heat: ``(h, w)`` numbers laid over the picture without interpolation; None for none.
        low: value of the darkest colour; None: the smallest value.
        strength: of the heat, 0..1.
        boxes: ``(4,)`` xyxy in pixels of the picture, each with its RGB colour.
        view: xyxy, the part of the picture that is shown, which may reach beyond it; None: all.
        columns: of the grid that it takes.
    """

    lines: Sequence[str]
    picture: np.ndarray
    heat: np.ndarray | None = None
    low: float | None = None
    strength: float = 0.6
    boxes: Sequence[tuple[np.ndarray, tuple[int, int, int]]] = ()
    view: np.ndarray | None = None
    columns: int = 1

    def height(self, width: int) -> int:
        """Pixels of the picture at this width; a view is square."""
        rows, columns = self.picture.shape[:2]
        return width if self.view is not None else max(round(width * rows / columns), 1)


def panels(rows: Sequence[Sequence[Panel | None]], words: Sequence[str] = (), *, width: int = 300) -> np.ndarray:
    """The panels below lines of text, white where there is none.

    Args:
        width: of a column in pixels.

    Returns:
        uint8 ``(H, W, 3)`` RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = max(640, *(sum(p.columns if p else 1 for p in row) * (width + _GAP) for row in rows))
    head = _wrapped(words, across)
    sizes = []
    for row in rows:
        shown = [(p, p.columns * (width + _GAP) - _GAP) for p in row if p is not None]
        text = max((len(_wrapped(p.lines, w)) for p, w in shown), default=0) * _LINE + 4
        sizes.append((text, max((p.height(w) for p, w in shown), default=0)))
    total = len(head) * _LINE + _GAP + sum(text + picture + _GAP for text, picture in sizes)
    figure = Figure((across / _DPI, total / _DPI), dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def write(text: str, x: float, y: float) -> None:
        ascii_text = text.encode("ascii", "replace").decode()  # not every letter is in the font
        figure.text(x / across, 1 - y / total, ascii_text, va="top", fontsize=8, parse_math=False)

    for i, line in enumerate(head):
        write(line, 3, 3 + i * _LINE)
    y = len(head) * _LINE + _GAP
    for row, (text, tallest) in zip(rows, sizes, strict=True):
        x = 0
        for panel in row:
            wide = (panel.columns if panel else 1) * (width + _GAP) - _GAP
            if panel is not None:
                for i, line in enumerate(_wrapped(panel.lines, wide)):
                    write(line, x + 3, y + 2 + i * _LINE)
                high = panel.height(wide)
                bottom = total - y - text - high
                _fill(figure.add_axes((x / across, bottom / total, wide / across, high / total)), panel)
            x += wide + _GAP
        y += text + tallest + _GAP
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _fill(axes: Axes, panel: Panel) -> None:
    from matplotlib.patches import Rectangle

    axes.set_axis_off()
    height, width = panel.picture.shape[:2]
    extent = (0, width, height, 0)
    picture = as_rgb(panel.picture)
    if panel.heat is not None:
        picture = as_rgb(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
    axes.imshow(picture, extent=extent, aspect="auto", interpolation="nearest")
    if panel.heat is not None:
        colours = axes.imshow(panel.heat, "viridis", extent=extent, aspect="auto", interpolation="nearest")
        colours.set(alpha=panel.strength, clim=(panel.heat.min() if panel.low is None else panel.low, panel.heat.max()))
    for (x1, y1, x2, y2), (red, green, blue) in panel.boxes:
        box = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.2)
        box.set_edgecolor((red / 255, green / 255, blue / 255))
        axes.add_patch(box)
    if panel.view is not None:
        x1, y1, x2, y2 = panel.view
        axes.set(xlim=(x1, x2), ylim=(y2, y1))
        axes.set_aspect("equal", anchor="NW")


def _wrapped(lines: Sequence[str], width: float) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, max(int(width / _LETTER), 10))]
