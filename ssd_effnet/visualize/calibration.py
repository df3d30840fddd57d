"""Reliability diagrams of runs, and the temperature fitted on their validation split."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from data_kaist.errors import DataError, Doubt
from ssd_effnet.build import build_classes
from ssd_effnet.evaluation.calibration import BINS, Reliability, fit_temperature, judged, reliability, tempered
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.plots import COLOURS, save_figure
from ssd_effnet.evaluation.scores import short_names
from ssd_effnet.evaluation.subsets import REASONABLE
from ssd_effnet.models.weights import read_checkpoint
from ssd_effnet.training.checkpoints import WholeCheckpoints
from ssd_effnet.training.run import CLEAN, test_again
from ssd_effnet.training.run_directory import RunDirectory, RunError, checkpoint_file


def write_calibration(
    runs: Sequence[Path], out: Path, *, least: float = 0.3, keep: bool = False, overrides: Sequence[str] = ()
) -> Table:
    """Reliability of runs on test splits, before and after the temperature. It is fitted on their validation splits.

    Draws a row of diagrams per run and class, by subset; returns the same as a table. The validation split is tested
    into ``RUN/tests/``.

    Args:
        runs: run directories.
        out: the picture.
        least: score from which detections count, in the fit as well: most have scores near 0, and would decide alone.
        keep: write the temperature into the tested checkpoint, for :class:`~ssd_effnet.inference.predictor.Predictor`
            and exports. Without it the run stays as it is, and where none fits a Doubt says so.
        overrides: where the data are.
    """

    table = Table(title=f"Calibration of scores from {least:g}, in percent", title_justify="left")
    for name in ("detections", "temperature", "subset", "number", "right", "mean score", "ECE", "ECE at temperature"):
        table.add_column(name, justify="left" if name in ("detections", "subset") else "right")
    panels: list[tuple[str, Reliability, Reliability]] = []
    names = short_names([RunDirectory.holding(path).path for path in runs])
    for path, name in zip(runs, names, strict=True):
        experiment, frames, found = RunDirectory.holding(path).tested(overrides)
        temperature = _temperature(path, least, keep, overrides)
        annotations, classes = [frame.annotations for frame in frames], build_classes(experiment)
        for label, of_class in enumerate(classes.names, start=1):
            row = f"{name} ({experiment.input.modality}{', ' + of_class if len(classes.names) > 1 else ''})"
            matcher = MissRateEvaluator.for_class(annotations, classes, of_class).match(found.of_class(label))
            for subset in REASONABLE:
                scores, right = judged(matcher, subset, least)
                before, after = (reliability(tempered(scores, t), right) for t in (1.0, temperature))
                title = subset.replace("_", " ")
                panels.append((f"{row}\n{title}: {len(right):,} detections", before, after))
                shares = (right, scores) if len(right) else (np.array([np.nan]),) * 2
                figures = [f"{100 * np.mean(x):.2f}" for x in (*shares, before.ece, after.ece)]
                table.add_row(row, f"{temperature:.3f}", title, f"{len(right):,}", *figures)
    save_figure(reliability_figure(panels), out, dpi=120)
    return table


def _temperature(path: Path, least: float, keep: bool, overrides: Sequence[str]) -> float:
    """The temperature of one run; 1 where none fits."""
    directory = RunDirectory.holding(path)
    d = (experiment := directory.trained()).data
    if not d.val:
        raise RunError(f"{directory}: was trained without a validation split, on which a temperature is fitted")
    split = [f"data.test={d.val}", "data.val="]  # one split cannot be both
    if (annotations := d.val_annotations or d.train_annotations) != d.test_annotations:
        split.append(f"data.test_annotations={annotations}")
    folder, tests = test_again(path, [*overrides, *split])
    if RunDirectory(folder).results()["data"]["fingerprint"] != directory.environment()["data"]["val"]["fingerprint"]:
        raise RunError(f"{directory}: the data of {d.val} have changed since it was trained")
    validated = [judged(of_class.matcher, REASONABLE[0], least) for of_class in tests[CLEAN].values()]
    try:
        temperature = fit_temperature(*(np.concatenate(column) for column in zip(*validated, strict=True)))
    except DataError as error:
        if keep:
            raise DataError(f"{directory}: {error} on {d.val}") from error
        warnings.warn(f"{directory}: {error} on {d.val}", Doubt, stacklevel=2)
        return 1.0
    if keep:
        content = read_checkpoint(file := checkpoint_file(path))
        content["temperature"] = temperature * experiment.postprocess.temperature  # of what the scores were tested at
        WholeCheckpoints().save_checkpoint(content, file)
    return temperature


def reliability_figure(panels: Sequence[tuple[str, Reliability, Reliability]]) -> Figure:
    """Precision over mean score in each bin, three diagrams per row. Bars are the shares of detections by score.

    A panel is its title and the reliability as trained and at the temperature.
    """
    rows = -(-len(panels) // len(REASONABLE))
    figure = Figure(figsize=(3.6 * len(REASONABLE), 4.8 * rows), layout="constrained")
    for axes, (title, *both) in zip(figure.subplots(rows, len(REASONABLE), squeeze=False).flat, panels, strict=True):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        for name, of, colour in zip(("as trained", "at temperature"), both, (COLOURS[1], COLOURS[0]), strict=True):
            seen = of.count > 0
            look: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 4}
            axes.plot(of.score[seen], of.precision[seen], label=f"{name}, ECE {100 * of.ece:.1f} %", **look)
            share = of.count / max(of.count.sum(), 1)
            axes.bar((np.arange(BINS) + 0.5) / BINS, share, 1 / BINS, color=colour, alpha=0.2)
        axes.set(title=title.replace("$", r"\$"), xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="precision")
        axes.title.set_fontsize(9)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False, fontsize=8)
        axes.set_aspect("equal")
    return figure
