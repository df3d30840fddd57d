"""Writes a study's report, ``report/index.html``, beside the tables."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_kaist.files import write_whole
from ssd_effnet.build import build_skeleton
from ssd_effnet.drawing import KINDS
from ssd_effnet.evaluation.error_analysis import FPPI
from ssd_effnet.evaluation.metrics import single
from ssd_effnet.evaluation.subsets import REASONABLE, SUBSETS
from ssd_effnet.models.necks import GraphNeck
from ssd_effnet.study import figures
from ssd_effnet.study.ablation import WITHOUT
from ssd_effnet.study.disagreement import Disagreement, disagreement
from ssd_effnet.study.entries import (
    NOTHING,
    ReportEntry,
    between,
    chosen_epoch,
    data_of,
    different,
    figure_name,
    hours,
    last_miss_rate,
    number,
    setting,
)
from ssd_effnet.study.latency import Latency, latency
from ssd_effnet.study.plan import read_study, study_file
from ssd_effnet.study.records import Difference, Experiment, Study, load_study, subset_table, tested_on
from ssd_effnet.study.tables import results_csv, results_md, results_tex, scores_of_others
from ssd_effnet.training.run_directory import RunError, State
from ssd_effnet.visualize.templates import templates

SYMBOLS = {"better": "▲", "worse": "▼", "cannot tell": "?"}
_SHOWN_KINDS = ("truth", "missed", "hit", "false_alarm", "ignored")
_PALE, _DARK = np.array([255, 255, 255]), np.array([230, 159, 0])  # of the heat map; black can be read on both


def write(
    out: Path,
    folder: Path | None = None,
    *,
    measure_latency: bool = True,
    overrides: Sequence[str] = (),
    published: Sequence[Path] = (),
) -> Path:
    """Write the report of a study's finished runs.

    Args:
        out: the study's directory.
        folder: of the report; None: ``<out>/report``.
        measure_latency: time the detectors that were not timed before on this machine.
        overrides: where the runs' data are, as :meth:`.RunDirectory.at_hand` takes them.
        published: detections of others on the same test data, for rows of their own in ``results.tex``.

    Returns:
        The page.

    Raises:
        RunError: there are no runs, or the report cannot be written there.
        ConfigError, DataError: a run or the data cannot be read.
    """
    study = load_study(out, overrides)
    others = scores_of_others(study, published)
    folder = folder or out / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error
    entries = [ReportEntry(study, experiment) for experiment in study.experiments]
    took = latency(study.experiments, folder / "latency.json", measure=measure_latency)
    write_whole(folder / "results.csv", results_csv(entries))
    write_whole(folder / "results.md", results_md(study, entries))
    write_whole(folder / "results.tex", results_tex(study, entries, took, others))
    write_whole(folder / "index.html", page(study, entries, took))
    return folder / "index.html"


@dataclass(frozen=True)
class Picture:
    """A figure with its caption."""

    src: str
    alt: str
    caption: str


def page(study: Study, entries: Sequence[ReportEntry], took: Latency) -> str:
    """The whole page as one HTML text."""
    environment = templates(__file__)
    environment.filters |= {"number": number, "between": between, "figure_name": figure_name, "setting": setting}
    table = subset_table(study.experiments)
    return environment.get_template("report.html").render(
        study=study,
        on=read_study(study.out).get("on", []),
        title=study.out.resolve().name,
        date=time.strftime("%Y-%m-%d %H:%M %z"),
        data=data_of(study),
        devices=different([f"{r.environment['device']} ({r.environment['threads']} threads)" for r in study.runs]),
        commits=different([run.commit for run in study.runs]),
        hours=hours(study),
        remembered=study_file(study.out).is_file(),
        reasons={State.FAILED: "", State.RUNNING: "another process is at work on it", State.INTERRUPTED: "was stopped"},
        entries=entries,
        symbols=SYMBOLS,
        reasonable={
            subset: words
            for subset, words in zip(REASONABLE, ("all", "day", "night"), strict=True)
            if subset == REASONABLE[0] or somebody(study, subset)
        },
        metrics=single("report"),
        forest=forest_picture(study),
        chosen=chosen_epoch,
        taken_away=taken_away(study),
        last_miss_rate=last_miss_rate,
        curves=curve_pictures(study),
        learning=learning(study),
        pareto=pareto_pictures(entries, took),
        took=took,
        subsets=list(SUBSETS),
        heat=table,
        shade=shades([value for row in table.values() for value in row]),
        fusion={e.name: nodes for e in study.experiments if (nodes := fusion_weights(e))},
        disagreements=disagreements(study),
        largest=lambda nodes: max(abs(weight) for inputs in nodes.values() for weight in inputs.values()),
        fppi=FPPI,
        kinds=[KINDS[kind] for kind in _SHOWN_KINDS],
        NOTHING=NOTHING,
    )


def svg(text: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode('ascii')}"


def somebody(study: Study, subset: str) -> bool:
    """Whether any test data have people of the subset."""
    return any(math.isfinite(e.mean(f"MR/{subset}")) for e in study.experiments)


def forest_picture(study: Study) -> Picture | None:
    drawing = figures.forest(study.differences)
    return (
        Picture(svg(drawing), "Difference of each experiment to its parent with its 95 % interval", "")
        if drawing
        else None
    )


def taken_away(study: Study) -> list[tuple[str, Difference | None, Difference]]:
    """The steps that ``study ablate`` took away: name, difference to the one before, difference without it."""
    added = {d.experiment.name: d for d in study.differences}
    without = [(d.experiment.name.partition(WITHOUT)[2], d) for d in study.differences if WITHOUT in d.experiment.name]
    return [(step, added.get(step), d) for step, d in without]


def curve_pictures(study: Study) -> list[Picture]:
    names = ", ".join(e.name for e in study.experiments)
    return [
        Picture(svg(drawing), f"Miss rate against false positives per image, {words}: {names}", words)
        for subset, words in zip(REASONABLE, ("all", "day", "night"), strict=True)
        if somebody(study, subset) and (drawing := figures.miss_rate_curves(study.experiments, subset))
    ]


def learning(study: Study) -> Picture | None:
    drawing = figures.learning_curves(study.experiments)
    return Picture(svg(drawing), "Validation miss rate after each epoch, a line an experiment", "") if drawing else None


def pareto_pictures(entries: Sequence[ReportEntry], took: Latency) -> list[Picture]:
    places = {entry.name: i for i, entry in enumerate(entries)}

    def points(cost: Callable[[ReportEntry], float]) -> dict[str, figures.ParetoPoint]:
        found = {}
        for entry in entries:
            mr = entry.estimates[f"MR/{REASONABLE[0]}"]
            found[entry.name] = figures.ParetoPoint(cost(entry), mr.value, mr.low, mr.high)
        return found

    drawings = {
        "latency": figures.pareto(points(lambda e: took.ms.get(e.name, math.nan)), "latency, ms per image", places),
        "parameters": figures.pareto(points(lambda e: e.experiment.cost.parameters / 1e6), "parameters, M", places),
    }
    return [
        Picture(svg(drawing), f"Miss rate against {what}, a mark an experiment", f"Miss rate against {what}")
        for what, drawing in drawings.items()
        if drawing
    ]


def shades(values: Sequence[float]) -> Callable[[float], str]:
    """Background colours of values, from white at the smallest."""
    known = [value for value in values if math.isfinite(value)]
    least, span = min(known, default=0), max(known, default=0) - min(known, default=0)

    def shade(value: float) -> str:
        if not math.isfinite(value):
            return "#fff"
        colour = _PALE + (_DARK - _PALE) * ((value - least) / span if span else 0)
        return "#" + "".join(f"{round(c):02x}" for c in colour)

    return shade


def fusion_weights(experiment: Experiment) -> dict[str, dict[str, float]]:
    """Fusion weights ``[node][input]`` of the tested epoch, mean over seeds; empty without."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in experiment.runs:
        rows = {int(row["epoch"]) + 1: row for row in run.metrics}
        row = rows.get(run.results.get("epoch", 0), run.metrics[-1] if run.metrics else {})
        for key, value in row.items():
            if key.startswith("fusion/") and math.isfinite(value):
                node, _, name = key.removeprefix("fusion/").rpartition("/")
                found.setdefault(node, {}).setdefault(name, []).append(value)
    neck = build_skeleton(experiment.config).part("neck")
    names = neck.node_names if isinstance(neck, GraphNeck) else []  # in the order in which they are computed
    return {node: {name: float(np.mean(v)) for name, v in found[node].items()} for node in names if node in found}


def disagreements(study: Study) -> list[tuple[Difference, Disagreement]]:
    return [(d, disagreement(d, study.frames[tested_on(d.experiment.runs[0])])) for d in study.differences]
