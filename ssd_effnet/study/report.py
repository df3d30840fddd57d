"""Writes a study's report, ``report/index.html``, beside the tables."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex

from data_kaist.files import write_whole
from ssd_effnet.build import build_skeleton
from ssd_effnet.drawing import KINDS
from ssd_effnet.evaluation.error_analysis import FPPI
from ssd_effnet.evaluation.metrics import single
from ssd_effnet.evaluation.scores import Scores
from ssd_effnet.evaluation.subsets import REASONABLE, SUBSETS
from ssd_effnet.models.necks import GraphNeck
from ssd_effnet.study import figures, report_entries
from ssd_effnet.study.ablation import WITHOUT
from ssd_effnet.study.disagreement import disagreement
from ssd_effnet.study.latency import Latency, latency
from ssd_effnet.study.plan import read_study, study_file
from ssd_effnet.study.records import Difference, Experiment, Study, load_study, tested_on
from ssd_effnet.study.report_entries import NOTHING, ReportEntry, different, hours
from ssd_effnet.study.tables import results_csv, results_md, results_tex, scores_of_others
from ssd_effnet.training.run_directory import RunError, State
from ssd_effnet.visualize.templates import templates

SYMBOLS = {"better": "▲", "worse": "▼", "cannot tell": "?"}
_SHOWN_KINDS = ("truth", "missed", "hit", "false_alarm", "ignored")


def write(
    out: Path,
    folder: Path | None = None,
    *,
    measure_latency: bool = True,
    overrides: Sequence[str] = (),
    published: Sequence[Path] = (),
) -> Path:
    """Write the report of a study's finished runs, and return its page.

    Args:
        folder: of the report; None: ``<out>/report``.
        measure_latency: time the detectors that were not timed before on this machine.
        overrides: where the runs' data are, as :meth:`.RunDirectory.at_hand` takes them.
        published: detections of others on the same test data, for rows of their own in the tables.
    """
    study = load_study(out, overrides)
    others = scores_of_others(study, published, overrides)
    folder = folder or out / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error
    entries = [ReportEntry(study, experiment) for experiment in study.experiments]
    took = latency(study.experiments, folder / "latency.json", measure=measure_latency)
    write_whole(folder / "results.csv", results_csv(entries))
    write_whole(folder / "results.md", results_md(study, entries, others))
    write_whole(folder / "results.tex", results_tex(study, entries, took, others))
    write_whole(folder / "index.html", page(study, entries, took, others))
    return folder / "index.html"


def page(
    study: Study, entries: Sequence[ReportEntry], took: Latency, others: Mapping[str, Scores] | None = None
) -> str:
    """The whole page as one HTML text. ``others`` stand above the own rows of the table of subsets."""
    environment = templates(__file__)
    environment.filters |= {
        "number": report_entries.number,
        "between": report_entries.between,
        "figure_name": report_entries.figure_name,
        "setting": report_entries.setting,
        "svg": svg,
    }
    table = [(name, [of.percent("matlab")[subset] for subset in SUBSETS]) for name, of in (others or {}).items()]
    table += [(e.name, [e.mean(f"MR/{subset}") for subset in SUBSETS]) for e in study.experiments]
    reasonable = {
        subset: words
        for subset, words in zip(REASONABLE, ("all", "day", "night"), strict=True)
        if subset == REASONABLE[0] or any(math.isfinite(e.mean(f"MR/{subset}")) for e in study.experiments)
    }
    return environment.get_template("report.html").render(
        study=study,
        on=read_study(study.out).get("on", []),
        title=study.out.resolve().name,
        date=time.strftime("%Y-%m-%d %H:%M %z"),
        data=report_entries.data_of(study),
        devices=different([f"{r.environment['device']} ({r.environment['threads']} threads)" for r in study.runs]),
        commits=different([run.commit for run in study.runs]),
        hours=hours(study),
        remembered=study_file(study.out).is_file(),
        reasons={State.FAILED: "", State.RUNNING: "another process is at work on it", State.INTERRUPTED: "was stopped"},
        entries=entries,
        symbols=SYMBOLS,
        reasonable=reasonable,
        metrics=single("report"),
        forest=figures.forest(study.differences),
        chosen=report_entries.chosen_epoch,
        taken_away=taken_away(study),
        curves=curve_drawings(study, reasonable),
        learning=figures.learning_curves(study.experiments),
        pareto=pareto_drawings(entries, took),
        took=took,
        subsets=list(SUBSETS),
        heat=table,
        shade=shades([value for _, row in table for value in row]),
        fusion={e.name: nodes for e in study.experiments if (nodes := fusion_weights(e))},
        disagreement=lambda d: disagreement(d, study.frames[tested_on(d.experiment.runs[0])]),
        largest=lambda nodes: max(abs(weight) for inputs in nodes.values() for weight in inputs.values()),
        fppi=FPPI,
        kinds=[KINDS[kind] for kind in _SHOWN_KINDS],
        NOTHING=NOTHING,
    )


def svg(text: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode('ascii')}"


def taken_away(study: Study) -> list[tuple[str, Difference | None, Difference]]:
    """The steps that ``study ablate`` took away. Name, difference to the one before, difference without it."""
    direct = {d.experiment.name: d for d in study.differences if d.parent.name == d.experiment.ancestors[0]}
    without = [(name.partition(WITHOUT)[2], d) for name, d in direct.items() if WITHOUT in name]
    return [(step, direct.get(step), d) for step, d in without]


def curve_drawings(study: Study, reasonable: Mapping[str, str]) -> dict[str, str]:
    """SVG texts by the subset's word; without the empty ones."""
    drawn = ((words, figures.miss_rate_curves(study.experiments, subset)) for subset, words in reasonable.items())
    return {words: drawing for words, drawing in drawn if drawing}


def pareto_drawings(entries: Sequence[ReportEntry], took: Latency) -> dict[str, str]:
    """SVG texts by kind of cost, without empty ones."""
    places = {entry.name: i for i, entry in enumerate(entries)}

    def drawing(label: str, cost: Callable[[ReportEntry], float]) -> str:
        rates = {entry.name: entry.estimates[f"MR/{REASONABLE[0]}"] for entry in entries}
        points = {
            entry.name: figures.ParetoPoint(cost(entry), mr.value, mr.low, mr.high)
            for entry, mr in zip(entries, rates.values(), strict=True)
        }
        return figures.pareto(points, label, places)

    drawings = {
        "latency": drawing("latency, ms per image", lambda e: took.ms.get(e.name, math.nan)),
        "parameters": drawing("parameters, M", lambda e: e.experiment.cost.parameters / 1e6),
    }
    return {what: drawn for what, drawn in drawings.items() if drawn}


def shades(values: Sequence[float]) -> Callable[[float], str]:
    """Background colours of values, white for the smallest. Black text can be read on all."""
    known = [value for value in values if math.isfinite(value)]
    scale, colours = Normalize(min(known, default=0), max(known, default=0)), ("white", "#e69f00")
    colour = LinearSegmentedColormap.from_list("missed", colours)
    return lambda value: to_hex(colour(scale(value))) if math.isfinite(value) else "#fff"


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
    neck = build_skeleton(experiment.config).parts.get("neck")
    names = neck.node_names if isinstance(neck, GraphNeck) else []  # in the order in which they are computed
    return {node: {name: float(np.mean(v)) for name, v in found[node].items()} for node in names if node in found}
