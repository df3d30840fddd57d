"""The report of a study: ``report/index.html`` to read, ``results.md`` to paste, ``results.csv`` to compute with."""

from __future__ import annotations

import base64
import csv
import html
import io
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ssd_effnet.build import build_skeleton
from ssd_effnet.error_analysis import FPPI
from ssd_effnet.files import write_whole
from ssd_effnet.metrics.significance import Interval
from ssd_effnet.metrics.subsets import REASONABLE, SUBSETS
from ssd_effnet.models.necks import GraphNeck
from ssd_effnet.pages import templates
from ssd_effnet.run_directory import State
from ssd_effnet.study import figures
from ssd_effnet.study.disagreement import Disagreement, disagreement
from ssd_effnet.study.latency import Latency, latency
from ssd_effnet.study.plan import study_file
from ssd_effnet.study.records import Confound, Difference, Experiment, Run, Study, load_study, subset_table, tested_on
from ssd_effnet.visualize import KINDS

NOTHING = "–"  # stands where there is no number
SYMBOLS = {"better": "▲", "worse": "▼", "cannot tell": "?"}
_SHOWN_KINDS = ("truth", "missed", "hit", "false_alarm", "ignored")
_PALE, _DARK = np.array([255, 255, 255]), np.array([230, 159, 0])  # of the heat map; black can be read on both


def write(out: Path, *, measure_latency: bool = True) -> Path:
    """Write the report of a study's finished runs into ``<out>/report/``.

    Args:
        out: the study's directory.
        measure_latency: time the detectors that were not timed before on this machine.

    Returns:
        The page.

    Raises:
        RunError: there are no runs.
        ConfigError, DataError: a run or the data cannot be read.
    """
    study = load_study(out)
    entries = [Entry(study, experiment) for experiment in study.experiments]
    folder = out / "report"
    took = latency(study.experiments, folder / "latency.json", measure=measure_latency)
    write_whole(folder / "results.csv", results_csv(entries))
    write_whole(folder / "results.md", results_md(study, entries))
    write_whole(folder / "index.html", page(study, entries, took))
    return folder / "index.html"


class Entry:
    """An experiment with what is said of it.

    Attributes:
        experiment: its runs.
        difference: to its parent; None where there is none.
    """

    def __init__(self, study: Study, experiment: Experiment) -> None:
        self.experiment = experiment
        self.difference: Difference | None = next((d for d in study.differences if d.experiment is experiment), None)

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def parent(self) -> str:
        return self.difference.parent.name if self.difference else ""

    @cached_property
    def miss_rates(self) -> dict[str, Interval]:
        """By reasonable subset, in 0..1, with the interval over images."""
        return {subset: self.experiment.miss_rate(subset) for subset in REASONABLE}

    def confounds(self, intended: bool) -> list[Confound]:
        return [c for c in self.difference.confounds if c.intended is intended] if self.difference else []

    @property
    def alone(self) -> str:
        """Why it is compared with nothing; empty where it is."""
        if self.difference:
            return ""
        if not self.experiment.ancestors:
            return "The study knows of no experiment that this one is a difference from."
        names = ", ".join(self.experiment.ancestors)
        return f"Compared with nothing: of its ancestors ({names}) none has finished runs on the same test data."

    @property
    def distance(self) -> str:
        """What to keep in mind where the parent is not the direct one."""
        between = self.experiment.ancestors[: self.experiment.ancestors.index(self.parent)] if self.parent else []
        if not between:
            return ""
        return (
            f"{self.parent} is the nearest ancestor with finished runs on the same test data; what "
            f"{', '.join(between)} changed lies between and is listed with the rest."
        )

    @property
    def costs(self) -> list[tuple[str, str, str, str]]:
        """What the experiment costs, as (what, in the parent, here, how many times as much)."""
        rows: list[tuple[str, Callable[[Experiment], float], Callable[[float], str]]] = [
            ("parameters, M", lambda e: e.cost.parameters, lambda v: f"{v / 1e6:.2f}"),
            ("multiply-adds, 10⁹", lambda e: e.cost.multiply_adds, lambda v: f"{v / 1e9:.2f}"),
            ("anchors", lambda e: e.cost.anchors, lambda v: f"{v:,.0f}"),
            ("epochs", lambda e: e.config.trainer.epochs, lambda v: f"{v:g}"),
            ("learning rate", lambda e: e.config.optimizer.lr, lambda v: f"{v:g}"),
        ]
        table = []
        for what, of, show in rows:
            here, there = of(self.experiment), of(self.difference.parent) if self.difference else math.nan
            times = NOTHING if math.isnan(there) or not there else "same" if here == there else f"×{here / there:.2f}"
            table.append((what, NOTHING if math.isnan(there) else show(there), show(here), times))
        here_size, there_size = (
            size_of(self.experiment),
            size_of(self.difference.parent) if self.difference else NOTHING,
        )
        times = NOTHING if not self.difference else "same" if here_size == there_size else "other"
        table.insert(3, ("input size", there_size, here_size, times))
        return table


# ------------------------------------------------------------------------------------------------- words and numbers


def number(value: float | None, digits: int = 2, sign: str = "") -> str:
    """For people; a dash where there is no number."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:{sign}.{digits}f}"


def percent(interval: Interval, sign: str = "") -> str:
    """``12.34 (11.02 to 13.50)``."""
    if math.isnan(interval.value):
        return NOTHING
    low, high = (number(100 * end, sign=sign) for end in (interval.low, interval.high))
    return f"{number(100 * interval.value, sign=sign)} ({low} to {high})"


def setting(value: Any) -> str:
    """A config's value, short."""
    if isinstance(value, list):
        return f"[{', '.join(map(setting, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def change(confound: Confound) -> str:
    return f"{confound.key}: {setting(confound.before)} → {setting(confound.after)}"


def verdict(entry: Entry) -> str:
    """The verdict with its doubt, in words; a dash without a parent."""
    if not entry.difference:
        return NOTHING
    doubt = f" ({entry.difference.doubt})" if entry.difference.doubt else ""
    return entry.difference.verdict + doubt


def size_of(experiment: Experiment) -> str:
    return "x".join(map(str, experiment.config.input.size))


def chosen(run: Run) -> str:
    """How a run's tested epoch was found, and what the last one gives."""
    results = run.results
    epoch, epochs = results.get("epoch"), results.get("epochs")
    if str(results.get("checkpoint", "best")).startswith("last"):
        said = f"epoch {epoch} of {epochs} is tested: the last one, nothing was chosen"
        if best_epoch := best_validation(run):
            said += f"; validation was best at epoch {best_epoch[0]} ({best_epoch[1]})"
        return said
    best = f" ({results['val']['monitor']} {number(results['val']['best'])})" if "val" in results else ""
    said = f"best at epoch {epoch} of {epochs}{best}"
    if "test_last" in results:
        last = number(results["test_last"]["matlab"][REASONABLE[0]])
        return f"{said}; the last one, {results['test_last']['epoch']}, gives MR {last} in place of {tested(run)}"
    return f"{said}, which is the last one" if epoch == epochs else said


def best_validation(run: Run) -> tuple[int, str] | None:
    """The epoch, from 1, that ``best.ckpt`` would have been of, with metric and value; None without validation."""
    monitor = run.experiment.trainer.monitor
    rows = [row for row in run.metrics if math.isfinite(row.get(monitor, math.nan))]
    if not rows:
        return None
    row = (max if monitor.startswith("val/AP") else min)(rows, key=lambda row: row[monitor])
    return int(row["epoch"]) + 1, f"{monitor} {number(row[monitor])}"


def tested(run: Run) -> str:
    return number(run.figure(f"MR/{REASONABLE[0]}"))


def last_miss_rate(run: Run) -> float:
    """Of the last epoch in percent; NaN where it was not tested."""
    of_last = run.results.get("test_last")
    if of_last is None:
        return run.figure(f"MR/{REASONABLE[0]}") if run.results.get("epoch") == run.results.get("epochs") else math.nan
    value = of_last["matlab"][REASONABLE[0]]
    return math.nan if value is None else float(value)


def different(values: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(values)) or NOTHING


def hours(study: Study) -> float:
    return sum(float(run.results["minutes"]) for run in study.runs) / 60


def data_of(study: Study) -> list[str]:
    """Split, images and fingerprint of what the runs were trained, chosen and tested on."""
    said: dict[str, None] = {}
    for run in study.runs:
        data = run.experiment.data
        stages = [
            f"{stage} {getattr(data, stage)}: {of['frames']:,} images, fingerprint {of['fingerprint'][:7]}"
            for stage, of in run.environment["data"].items()
        ]
        said[f"{data.kind} data in {data.root}; " + "; ".join(stages)] = None
    return list(said)


# ------------------------------------------------------------------------------------------------- results.csv and .md


def results_csv(entries: Sequence[Entry]) -> str:
    """One row a run; miss rates under the matlab rules and AP in percent, empty where there is no number."""
    rows = []
    for entry in entries:
        for run in entry.experiment.runs:
            figures = {f"MR_{subset}": run.figure(f"MR/{subset}") for subset in SUBSETS}
            figures |= {name: run.figure(name) for name in ("AP", "AP50", "AP75")}
            figures["MR_reasonable_all_last_epoch"] = last_miss_rate(run)
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


def results_md(study: Study, entries: Sequence[Entry]) -> str:
    """The table for a README, and below it where its numbers come from."""
    times = ("all", "day", "night")
    head = ["experiment", "parent", "what changed", *(f"MR {t}" for t in times), "difference of MR all", "verdict"]
    head += ["AP", "AP50", "parameters, M", "multiply-adds, 10⁹", "anchors", "input size", "epochs", "learning rate"]
    head += ["seeds"]
    lines = [head, [":--" if i in (0, 1, 2, 7) else "--:" for i in range(len(head))]]
    for entry in entries:
        e = entry.experiment
        mr_all = entry.miss_rates[REASONABLE[0]]
        shown = [_with_deviation(e.mean(f"MR/{s}"), e.deviation(f"MR/{s}")) for s in REASONABLE]
        shown[0] += f" ({number(100 * mr_all.low)} to {number(100 * mr_all.high)})" if mr_all.low == mr_all.low else ""
        others = [change(c) for c in entry.confounds(False)]
        changes = "; ".join([change(c) for c in entry.confounds(True)] + [f"also {other}" for other in others])
        difference = (
            percent(entry.difference.comparisons[REASONABLE[0]].difference, "+") if entry.difference else NOTHING
        )
        cells = [entry.name, entry.parent or NOTHING, changes or NOTHING, *shown, difference, verdict(entry)]
        cells += [_with_deviation(e.mean(name), e.deviation(name)) for name in ("AP", "AP50")]
        cells += [f"{e.cost.parameters / 1e6:.2f}", f"{e.cost.multiply_adds / 1e9:.2f}", f"{e.cost.anchors:,}"]
        cells += [size_of(e), str(e.config.trainer.epochs), setting(e.config.optimizer.lr)]
        lines.append([_md(cell) for cell in [*cells, str(len(e.runs))]])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    below = [
        "MR: log-average miss rate in percent, matlab rules, lower is better; mean ± standard deviation over seeds, "
        "in brackets the 95 % interval over test images."
    ]
    if study.runs:
        test = {tested_on(run): f"{run.experiment.data.test}, {run.results['test']['images']:,}" for run in study.runs}
        data = "; ".join(f"{split} images, fingerprint {fingerprint[:7]}" for fingerprint, split in test.items())
        below.append(
            f"Device: {different([run.environment['device'] for run in study.runs])}; {hours(study):.1f} hours in all; "
            f"commit {different([run.commit for run in study.runs])}; tested on {data}."
        )
    below += [*study.warnings, *(f"Left out: {sentence}" for sentence in study.left_out)]
    return table + "\n\n" + "\n".join(_md(line) + "  " for line in below).rstrip() + "\n"


def _with_deviation(mean: float, deviation: float) -> str:
    return number(mean) + (f" ± {number(deviation)}" if math.isfinite(mean) and math.isfinite(deviation) else "")


def _md(text: str) -> str:
    """Words that stand for themselves in a cell of a GitHub table."""
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", " ".join(text.split()))
    return html.escape(re.sub(r"(?<=\w)\\_(?=\w)", "_", text), quote=False)


# ------------------------------------------------------------------------------------------------- the page


@dataclass(frozen=True)
class Picture:
    """A drawing with its words."""

    src: str
    alt: str
    caption: str


def page(study: Study, entries: Sequence[Entry], took: Latency) -> str:
    """The whole page, everything in it."""
    environment = templates(__file__)
    environment.filters |= {"number": number, "percent": percent, "setting": setting}
    table = subset_table(study.experiments)
    return environment.get_template("report.html").render(
        study=study,
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
        chosen=chosen,
        last_miss_rate=last_miss_rate,
        curves=curves(study),
        learning=learning(study),
        pareto=pareto(entries, took),
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
    """Whether anybody of the subset is in the test data of any experiment."""
    return any(math.isfinite(e.mean(f"MR/{subset}")) for e in study.experiments)


def curves(study: Study) -> list[Picture]:
    names = ", ".join(e.name for e in study.experiments)
    return [
        Picture(svg(drawing), f"Miss rate against false positives per image, {words}: {names}", words)
        for subset, words in zip(REASONABLE, ("all", "day", "night"), strict=True)
        if somebody(study, subset) and (drawing := figures.miss_rate_curves(study.experiments, subset))
    ]


def learning(study: Study) -> Picture | None:
    drawing = figures.learning_curves(study.experiments)
    return Picture(svg(drawing), "Validation miss rate after each epoch, a line an experiment", "") if drawing else None


def pareto(entries: Sequence[Entry], took: Latency) -> list[Picture]:
    places = {entry.name: i for i, entry in enumerate(entries)}

    def points(cost: Callable[[Entry], float]) -> dict[str, figures.Point]:
        found = {}
        for entry in entries:
            mr = entry.miss_rates[REASONABLE[0]]
            found[entry.name] = figures.Point(cost(entry), 100 * mr.value, 100 * mr.low, 100 * mr.high)
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
    """A background colour for each value between the least, white, and the greatest."""
    known = [value for value in values if math.isfinite(value)]
    least, span = min(known, default=0), max(known, default=0) - min(known, default=0)

    def shade(value: float) -> str:
        if not math.isfinite(value):
            return "#fff"
        colour = _PALE + (_DARK - _PALE) * ((value - least) / span if span else 0)
        return "#" + "".join(f"{round(c):02x}" for c in colour)

    return shade


def fusion_weights(experiment: Experiment) -> dict[str, dict[str, float]]:
    """``[node][input]`` after the tested epoch, mean over the seeds; empty where nothing is weighed."""
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
