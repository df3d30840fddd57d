"""Scores and compares detections: miss rates and AP as JSON and tables. Starts fast: no torch or lightning."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from data_kaist.classes import Classes
from data_kaist.errors import DataError
from data_kaist.files import write_whole
from data_kaist.structures import Annotations, DetectionTable
from ssd_effnet.evaluation.average_precision import AP_NAMES, AveragePrecision
from ssd_effnet.evaluation.metrics import in_place
from ssd_effnet.evaluation.miss_rate import Matcher, MissRate, MissRateEvaluator
from ssd_effnet.evaluation.significance import CONFIDENCE, Comparison, compare, jackknife
from ssd_effnet.evaluation.subsets import REASONABLE, SUBSETS

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, eq=False)
class Scores:
    """All figures of one detector.

    Attributes:
        miss_rates: ``miss_rates[rule set][subset]``, for the rule sets asked for.
        recall: of ``reasonable_all`` under the matlab rules, in 0..1; NaN where no box is counted.
        people: number counted in it.
        ap: ``AP``, ``AP50``, ``AP75`` in percent; NaN if not asked for or where there is no person.
        matcher: matches of every subset, for pictures and resampling.
    """

    miss_rates: dict[str, dict[str, MissRate]]
    recall: float
    people: int
    ap: dict[str, float]
    matcher: Matcher

    def percent(self, rules: str) -> dict[str, float]:
        """Miss rates in percent by subset. Empty for a rule set not computed."""
        return {subset: 100 * result.mr for subset, result in self.miss_rates.get(rules, {}).items()}

    def as_dict(self) -> dict[str, Any]:
        """Form of the results file. Figures of each metric in its unit, by its group or name; None for no number."""
        results: dict[str, Any] = {}
        for metric in in_place("results"):
            value = metric.function(self) if metric.function else math.nan
            if isinstance(value, Mapping):
                results |= {metric.group or metric.name: {k: _or_none(v) for k, v in value.items()}} if value else {}
            elif metric.group:
                results.setdefault(metric.group, {})[metric.name] = _or_none(value)
            else:
                results[metric.name] = _or_none(value)
        return results

    def named(self) -> Iterator[tuple[str, float]]:
        """``(name, value)`` for a logger: ``MR/reasonable_all`` and its like under the matlab rules, ``AP`` ..."""
        for metric in in_place("log"):
            value = metric.function(self) if metric.function else {}
            if isinstance(value, Mapping):
                yield from ((f"{metric.name}/{part}", of_part) for part, of_part in value.items())
            else:
                yield metric.name, value


def score(
    truth: MissRateEvaluator,
    detections: DetectionTable,
    rules: Sequence[str] = ("matlab", "python"),
    *,
    with_ap: bool = True,
) -> Scores:
    """Score one table of detections. AP takes thirty times as long as miss rates."""
    matcher = truth.match(detections)
    ap = dict.fromkeys(AP_NAMES, math.nan)
    if with_ap:
        ap = AveragePrecision(truth.annotations, detections, truth.counted, truth.absent).figures()
    reasonable = matcher.result("reasonable_all")
    return Scores(
        miss_rates={name: {subset: matcher.result(subset, name) for subset in SUBSETS} for name in rules},
        recall=reasonable.recall,
        people=reasonable.counted,
        ap=ap,
        matcher=matcher,
    )


def score_classes(
    annotations: Sequence[Annotations], detections: DetectionTable, classes: Classes
) -> dict[str, Scores]:
    """Scores of each class, by its own detections and labels."""
    found = {}
    for name in classes.names:
        truth = MissRateEvaluator.for_class(annotations, classes, name)
        found[name] = score(truth, detections.of_class(classes.index(name)))
    return found


def named_figures(scores: Mapping[str, Scores], classes: Classes) -> Iterator[tuple[str, float]]:
    """``(name, percent)`` for a logger: ``MR/reasonable_all``, ``AP`` ... of the main class.

    With several classes also of each: ``MR/reasonable_all/cyclist``.
    """
    yield from scores[classes.main].named()
    for name, of_class in scores.items() if len(scores) > 1 else ():
        yield from ((f"{figure}/{name}", value) for figure, value in of_class.named())


def classes_as_dict(scores: Mapping[str, Scores], classes: Classes) -> dict[str, Any]:
    """:meth:`Scores.as_dict` of the main class, with ``classes`` if several.

    ``scored_labels`` is given where training uses more labels for a class than scoring.
    """
    results = scores[classes.main].as_dict()
    if scored := {name: list(classes.counted(name)) for name in classes.names if classes.ignored_in_scoring(name)}:
        results["scored_labels"] = scored
    if len(scores) > 1:
        results["classes"] = {name: of_class.as_dict() for name, of_class in scores.items()}
    return results


def compare_detectors(
    a: Sequence[Matcher], b: Sequence[Matcher], block: np.ndarray, rules: Sequence[str] = ("matlab", "python")
) -> dict[str, dict[str, Comparison]]:
    """Comparisons ``[rule set][subset]`` in percent. Each side has one recipe's seeds, in blocks of images."""
    return {
        name: {
            subset: compare(*(np.stack([jackknife(m, block, subset, name) for m in side]) for side in (a, b)))
            for subset in REASONABLE
        }
        for name in rules
    }


def verdict(comparison: Comparison) -> str:
    """Verdict in words; with one file per side only about these weights."""
    first = "A" if comparison.difference < 0 else "B"
    if comparison.seeds == (1, 1) and comparison.readable:
        sure = comparison.p <= 1 - CONFIDENCE
        return f"these weights of {first} find more" if sure else "cannot tell these weights apart"
    return f"cannot tell: {doubt}" if (doubt := comparison.doubt()) else f"{first} is better"


def write_results(path: Path | str, results: Mapping[str, Any]) -> None:
    """Write results as JSON, atomically."""
    write_whole(path, json.dumps(results, indent=2, allow_nan=False) + "\n")


def refuse_a_run(out: Path) -> None:
    """Refuse a folder of results that is a run's or a test's own."""
    if any((out / name).is_file() for name in ("config.yaml", "results.json")):
        raise DataError(f"{out}: is a run's folder, whose detections.json would be replaced; choose another --out")


def short_names(paths: Sequence[Path | str]) -> list[str]:
    """Distinct short names of files: the stem, or more of the path. A run's is more than its seed.

    Raises:
        DataError: the same file twice.
    """
    files = [Path(path).resolve() for path in paths]
    if len(set(files)) < len(files):
        twice = next(file for i, file in enumerate(files) if file in files[:i])
        raise DataError(f"{twice}: was given twice")
    chosen = [1 + (file / "config.yaml").is_file() if file.is_dir() else 0 for file in files]
    while True:
        names = ["/".join(file.parts[-k:]) if k else file.stem for file, k in zip(files, chosen, strict=True)]
        if len(set(names)) == len(names):
            return names
        chosen = [k + (names.count(name) > 1) for k, name in zip(chosen, names, strict=True)]


def results_table(
    scores: Mapping[str, Scores],
    subsets: Sequence[str] = REASONABLE,
    seeds: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Table:
    """Miss rates, recall, people and AP per detector. One row per rule set; a dash for no number.

    ``seeds`` are detectors by the name of a further row, with their mean and standard deviation.
    """
    from rich.table import Table

    table = Table(title="Miss rate (lower is better), recall; AP of people of all sizes; percent", title_justify="left")
    table.add_column("detections", overflow="fold", min_width=10)
    table.add_column("rules", no_wrap=True)
    names = [metric.name for metric in in_place("line") if metric.function and not metric.parts]
    of_subsets = [f"MR {subset.removeprefix('reasonable_')}" for subset in subsets]
    for heading in (*of_subsets, "recall", "of people", *names):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = {name: [of] for name, of in scores.items()}
    rows |= {f"{name}, mean of {len(of)} seeds": [scores[one] for one in of] for name, of in seeds.items()}
    for rules in next(iter(scores.values())).miss_rates if scores else ():
        for name, several in rows.items():
            columns = [[100 * of.miss_rates[rules][subset].mr for of in several] for subset in subsets]
            of_rules = [of.miss_rates[rules][REASONABLE[0]] for of in several]
            columns += [[100 * of.recall for of in of_rules]]
            columns += [[dict(of.named())[name] for of in several] for name in names]
            cells = [with_deviation(column).replace(" ±", "\n±") for column in columns]
            people = {f"{of.counted:,}" for of in of_rules}
            cells.insert(len(subsets) + 1, people.pop() if len(people) == 1 else "-")
            table.add_row(name, rules, *cells)
    return table


def with_deviation(values: Sequence[float]) -> str:
    """Mean and standard deviation of percents; a dash for NaN.

    >>> with_deviation([20.0, 22.0])
    '21.00 ± 1.41'
    """
    mean = percent(math.fsum(values) / len(values))
    return mean if len(values) < 2 or mean == "-" else f"{mean} ± {statistics.stdev(values):.2f}"


def comparison_table(a: str, b: str, comparisons: Mapping[str, Mapping[str, Comparison]]) -> Table:
    """One row per rule set and subset: miss rates, difference, verdict. A dash for no number."""
    from rich.table import Table

    table = Table(
        title=f"Miss rate in percent (lower is better), each p by itself\nA: {a}\nB: {b}", title_justify="left"
    )
    for heading in ("rules", "subset"):
        table.add_column(heading, no_wrap=True)
    for heading in ("MR A", "MR B", "A - B", "95 % interval", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for rules, by_subset in comparisons.items():
        for subset, of in by_subset.items():
            limits = "-" if math.isnan(of.low) else f"{percent(of.low, '+z')} to {percent(of.high, '+z')}"
            p = "-" if math.isnan(of.p) else f"{of.p:.3f}"
            numbers = (percent(of.a), percent(of.b), percent(of.difference, "+z"), limits, p)
            table.add_row(rules, subset.replace("_", " "), *numbers, verdict(of))
    return table


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def percent(value: float, sign: str = "") -> str:
    """Two digits; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:{sign}.2f}"
