"""Figure for a paper: one row per detector, one column per frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from data_kaist.errors import DataError
from data_kaist.splits import spelling
from ssd_effnet.evaluation.error_analysis import FPPI, Errors
from ssd_effnet.evaluation.plots import save_figure
from ssd_effnet.evaluation.subsets import REASONABLE, SUBSETS
from ssd_effnet.visualize.gallery.album import markings
from ssd_effnet.visualize.gallery.finished_run import FinishedRun
from ssd_effnet.visualize.panels import add_legend, outline

SHOWN = ("truth", "missed", "hit", "false_alarm", "ignored", "another")
_DPI = 300


def write_figure(
    runs: Sequence[FinishedRun],
    frames: Sequence[str],
    out: Path,
    *,
    names: Sequence[str] = (),
    width: float = 7.0,
    subset: str = REASONABLE[0],
    fppi: float = FPPI,
    min_score: float | None = None,
) -> list[Path]:
    """Draw frames in columns, detectors in rows, at operating points. Writes ``out.pdf`` and ``out.png``.

    ``names`` are for the rows (empty: the detectors' own); ``width`` is the figure's in inches, 7 for a page of two
    columns; the rest as in :class:`ssd_effnet.evaluation.error_analysis.Errors`.
    """
    if names and len(names) != len(runs):
        raise DataError(f"{len(names)} names are given for {len(runs)} detectors")
    place = {frame.name: i for i, frame in enumerate(runs[0].frames)}
    places = []
    for frame in frames:
        name = frame if frame in place else spelling(frame) or frame
        if name not in place:
            raise DataError(f"{frame}: is none of the {len(place):,} test frames, as {next(iter(place))}")
        places.append(place[name])
        if (time := SUBSETS[subset].daytime) and not runs[0].truth.image_is[time][place[name]]:
            raise DataError(f"{name}: is not of the {time}, as all frames of the subset {subset} are")
    columns = [runs[0].images(i, whole_pair=True) for i in places]
    heights = [images[0].shape[0] / sum(image.shape[1] for image in images) for images in columns]
    height = len(runs) * max(heights) * width / len(columns) + 0.03 * len(runs) + 0.45
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(width, height), layout=layout)
    grid = figure.subplots(len(runs), len(places), squeeze=False)
    drawn: set[str] = set()
    for row, (run, title) in enumerate(zip(runs, names or [run.name for run in runs], strict=True)):
        errors = Errors(run.truth, run.detections, subset, fppi=fppi, min_score=min_score)
        for axes, at, images in zip(grid[row], places, columns, strict=True):
            drawn |= _draw(axes, errors, at, images)
        grid[row][0].set_ylabel(title.replace("$", r"\$"), fontsize=7)
    for axes, at in zip(grid[0], places, strict=True):
        axes.set_title(runs[0].frames[at].name, fontsize=7, pad=2)
    add_legend(figure, [kind for kind in SHOWN if kind in drawn], runs[0].of_class)
    written = [out.with_name(out.name + ending) for ending in (".pdf", ".png")]
    for path in written:
        save_figure(figure, path, dpi=_DPI)
    return written


def _draw(axes: Any, errors: Errors, place: int, images: Sequence[np.ndarray]) -> set[str]:
    """Draw images beside each other with their boxes. Returns the kinds that are drawn."""
    axes.imshow(np.concatenate(images, axis=1), interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    drawn = set()
    for marking in markings(errors, place):
        boxes = np.clip(marking.boxes_xyxy, 0, [images[0].shape[1], images[0].shape[0]] * 2)
        for x1, y1, x2, y2 in boxes if marking.kind in SHOWN else ():
            drawn.add(marking.kind)
            for left in (i * images[0].shape[1] for i in range(len(images))):
                moved = np.array([x1 + left, y1, x2 + left, y2])
                axes.add_patch(outline(moved, marking.kind, linewidth=0.8))
    return drawn
