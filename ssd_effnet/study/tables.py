"""Writes a study's ``results.md``, ``results.csv`` and ``results.tex``."""

from __future__ import annotations

import csv
import html
import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ssd_effnet.evaluation.metrics import in_place, single
from ssd_effnet.evaluation.scores import Scores, score
from ssd_effnet.evaluation.subsets import REASONABLE, SUBSETS
from ssd_effnet.study import report_entries
from ssd_effnet.study.latency import Latency
from ssd_effnet.study.records import Study, tested_on
from ssd_effnet.study.report_entries import NOTHING, ReportEntry, between, change, different, figure_name, hours, number
from ssd_effnet.visualize.gallery.finished_run import FinishedRun


def results_csv(entries: Sequence[ReportEntry]) -> str:
    """One row per run. Miss rates (matlab rules) and AP in percent, empty for none."""
    rows = []
    for entry in entries:
        for run in entry.experiment.runs:
            logged = [name for of in in_place("log") if of.function for name in of.figures]
            figures = {name.replace("/", "_"): run.figure(name) for name in logged}
            cost, e = entry.experiment.cost, run.experiment
            rows.append(
                {"experiment": entry.name, "seed": run.seed, "parent": entry.parent}
                | {name: "" if math.isnan(value) else round(value, 4) for name, value in figures.items()}
                | {"epoch": run.results.get("epoch"), "epochs": run.results.get("epochs")}
                | {"parameters": cost.parameters, "multiply_adds": cost.multiply_adds, "anchors": cost.anchors}
                | {"height": e.input.size[0], "width": e.input.size[1], "learning_rate": e.optimizer.lr}
                | {"minutes": run.results["minutes"], "device": run.environment["device"], "commit": run.commit}
                | {f"{s}_fingerprint": d["fingerprint"][:7] for s, d in run.environment["data"].items()}
            )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(column for row in rows for column in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def results_md(study: Study, entries: Sequence[ReportEntry], others: Mapping[str, Scores] | None = None) -> str:
    """The table for a README, with its origin. ``others`` are above the study's own."""
    metric, rows = figure_name(study.metric), []
    for entry in entries:
        e, d = entry.experiment, entry.difference
        mr_all = entry.estimates[f"MR/{REASONABLE[0]}"]
        rates = [_with_deviation(e.mean(f"MR/{s}"), e.deviation(f"MR/{s}")) for s in REASONABLE]
        rates[0] += f" ({number(mr_all.low)} to {number(mr_all.high)})" if math.isfinite(mr_all.low) else ""
        changes = [change(c) for c in entry.confounds(True)] + [f"also {change(c)}" for c in entry.confounds(False)]
        row = {"experiment": entry.name, "parent": entry.parent or NOTHING}
        row |= {"what changed": "; ".join(changes) or NOTHING}
        row |= dict(zip(("MR all", "MR day", "MR night"), rates, strict=True))
        row |= {f"difference of {metric}": between(d.comparison, "+") if d else NOTHING}
        row |= {"verdict": report_entries.verdict_in_words(entry)}
        row |= {"p adjusted": number(d.adjusted, 3) if d else NOTHING}
        row |= {name: _with_deviation(e.mean(name), e.deviation(name)) for name in single("report")}
        row |= {"parameters, M": f"{e.cost.parameters / 1e6:.2f}"}
        row |= {"multiply-adds, 10⁹": f"{e.cost.multiply_adds / 1e9:.2f}", "anchors": f"{e.cost.anchors:,}"}
        row |= {"input size": report_entries.input_size(e), "epochs": str(e.config.trainer.epochs)}
        row |= {"learning rate": report_entries.setting(e.config.optimizer.lr), "seeds": str(len(e.runs))}
        rows.append(row)
    head = list(rows[0]) if rows else ["no run is finished"]
    above = []
    for name, of in (others or {}).items():
        rates = [number(of.percent("matlab")[subset]) for subset in REASONABLE]
        known = {"experiment": name} | dict(zip(("MR all", "MR day", "MR night"), rates, strict=True))
        above.append(dict.fromkeys(head, NOTHING) | known)
    words = ("experiment", "parent", "what changed", "verdict")
    lines = [head, [":--" if name in words else "--:" for name in head]]
    lines += [[_md(cell) for cell in row.values()] for row in (*above, *rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    below = [
        "MR: log-average miss rate in percent, matlab rules, lower is better; mean ± standard deviation over seeds, "
        f"in brackets the 95 % interval for other images and other seeds. Verdicts are of {metric}, "
        f"p is adjusted for all {max(study.planned, len(study.differences))} differences of the plan (Holm)."
    ]
    if study.runs:
        test = {}
        for run in study.runs:
            of = run.results["test"]
            read_from = f" in {of['annotations']}" if "annotations" in of else ""
            test[tested_on(run)] = f"{run.experiment.data.test}{read_from}, {of['images']:,}"
        data = "; ".join(f"{split} images, fingerprint {fingerprint[:7]}" for fingerprint, split in test.items())
        below.append(
            f"Device: {different([run.environment['device'] for run in study.runs])}; {hours(study):.1f} hours in all; "
            f"commit {different([run.commit for run in study.runs])}; tested on {data}."
        )
    below += [*study.warnings, *(f"Left out: {sentence}" for sentence in study.left_out)]
    return table + "\n\n" + "\n".join(_md(line) + "  " for line in below).rstrip() + "\n"


def scores_of_others(study: Study, files: Sequence[Path], overrides: Sequence[str] = ()) -> dict[str, Scores]:
    """Scores of other detectors' detection files, by file name. All are scored on the test data of most runs."""
    if not files or not study.runs:
        return {}
    usual = statistics.mode(map(tested_on, study.runs))
    own = next(run.directory.path for run in study.runs if tested_on(run) == usual)
    found = FinishedRun.load_all([own, *files], overrides)
    return {found[f].name: score(found[f].truth, found[f].detections, ("matlab",), with_ap=False) for f in files}


def results_tex(
    study: Study, entries: Sequence[ReportEntry], took: Latency, others: Mapping[str, Scores] | None = None
) -> str:
    """A LaTeX ``tabular`` for a paper, without packages. ``others`` stand above the study's own.

    Miss rates in percent (matlab rules), mean and standard deviation over the seeds; costs at the input size.
    """
    subsets = [name for name in SUBSETS if name != "all_h20"]  # nine, as papers have them
    head = ["detector", *(name.removeprefix("reasonable_") for name in subsets)]
    head += ["parameters, M", "multiply-adds, G", "ms", "images/s", "seeds"]
    above = [
        [name, *(number(of.percent("matlab")[subset]) for subset in subsets), *[NOTHING] * 5]
        for name, of in (others or {}).items()
    ]
    own = []
    for entry in entries:
        e, ms = entry.experiment, took.ms.get(entry.name, math.nan)
        rates = [_with_deviation(e.mean(f"MR/{s}"), e.deviation(f"MR/{s}")) for s in subsets]
        costs = [f"{e.cost.parameters / 1e6:.2f}", f"{e.cost.multiply_adds / 1e9:.2f}", number(ms, 1)]
        own.append([entry.name, *rates, *costs, number(1000 / ms, 1), str(len(e.runs))])
    data = {f"{run.experiment.data.test}, {run.results['test'].get('annotations', '')}" for run in study.runs}
    notes = ["log-average miss rate in percent (matlab rules), mean and standard deviation over the seeds"]
    notes += [f"tested on {of}" for of in sorted(data)] + ([f"ms: {took.where}"] if took.where else [])
    rules = [[head], *([above] if above else []), own]
    body = "\n\\hline\n".join("\n".join(" & ".join(map(_tex, row)) + r" \\" for row in part) for part in rules)
    comments = "".join(f"% {' '.join(note.split())}\n" for note in notes)
    return f"{comments}\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}\n\\hline\n{body}\n\\hline\n\\end{{tabular}}\n"


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", NOTHING: "--"}
_TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"}
_TEX |= {c: f"\\{c}" for c in "&%$#_{}"}


def _tex(text: str) -> str:
    """Text escaped for LaTeX."""
    return "".join(_TEX.get(c, c) for c in " ".join(text.split()))


def _with_deviation(mean: float, deviation: float) -> str:
    return number(mean) + (f" ± {number(deviation)}" if math.isfinite(mean) and math.isfinite(deviation) else "")


def _md(text: str) -> str:
    """Text escaped for a cell of a GitHub table."""
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(text.split()))
    return html.escape(re.sub(r"(?<=\w)\\_(?=\w)", "_", text), quote=False)
