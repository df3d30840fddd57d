"""Scores and compares detections: miss rates under both rule sets and AP, as a results file, a table and a picture.

Starts fast on purpose: neither torch nor lightning is imported, matplotlib, rich and pycocotools only when needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_kaist.coco import read_coco
from data_kaist.detections import read_detections
from data_kaist.errors import DataError
from ssd_effnet.files import write_whole
from ssd_effnet.metrics.average_precision import average_precision
from ssd_effnet.metrics.miss_rate import Matcher, MissRate, MissRateEvaluator
from ssd_effnet.metrics.significance import Comparison, Interval, compare
from ssd_effnet.metrics.subsets import MATLAB, REASONABLE, RULES, SUBSETS
from ssd_effnet.structures import Annotations, DetectionTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from data_kaist.annotations import AnnotationFormat

# Okabe and Ito's palette without yellow, which is too pale for a line: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_LINE_STYLES = ("-", "--", ":", "-.")
_AP_NAMES = ("AP", "AP50", "AP75")


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What detections are scored against, and what reading them needs.

    Attributes:
        annotations: one per image.
        names: frame names in the same order.
        image_ids: ids of the images if the ground truth is a COCO file, else None (ids are places).
        person_categories: category ids that are ``person`` if the ground truth is a COCO file, else None (all).
    """

    annotations: list[Annotations]
    names: list[str]
    image_ids: list[int] | None = None
    person_categories: frozenset[int] | None = None

    def read_detections(self, path: Path | str) -> DetectionTable:
        """Detections of these images from a file or folder of any form (:mod:`data_kaist.detections`)."""
        return read_detections(
            path,
            len(self.annotations),
            names=self.names,
            image_ids=self.image_ids,
            person_categories=self.person_categories,
        )

    def doubt(self, table: DetectionTable) -> str:
        """A sentence where most images have no detection at all, as when they are of another split; else nothing."""
        having, images = len(np.unique(table.image_index)), len(self.annotations)
        if 4 * having >= images:  # of the published files, the quietest speaks of 63 % of KAIST's
            return ""
        return f"only {having:,} of the {images:,} images have a detection; are they of this split, and of all of it?"


def load_ground_truth(path: Path | str, split: str = "test-all-20") -> GroundTruth:
    """Ground truth from a COCO file, or from the annotations below a data set's root.

    Args:
        path: a ``.json`` file, whose images are all taken, or a folder.
        split: frames to take from a folder (:mod:`data_kaist.frames`).

    Raises:
        data_kaist.errors.DataError: one sentence that names the file.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, split)
    coco = read_coco(path)
    return GroundTruth(coco.annotations, coco.names, coco.image_ids, coco.person_categories)


def _load_folder(folder: Path, split: str) -> GroundTruth:
    """Annotations below a data set's root, or below the annotation folder itself; images need not be there."""
    from data_kaist.loading import ANNOTATION_FOLDERS, load_kaist

    forms: dict[str, AnnotationFormat] = {"xml": "xml", "bbgt": "bbgt", "paired": "paired"}
    found = [form for form, names in ANNOTATION_FOLDERS.items() if any((folder / name).is_dir() for name in names)]
    annotations_dir = None
    if not found:
        suffixes = {"xml": ".xml", "bbgt": ".txt"}
        found = [form for form, suffix in suffixes.items() if any(folder.glob(f"set??/V???/I?????{suffix}"))]
        annotations_dir = folder if found else None
    form = forms[found[0]] if found else "xml"
    frames = load_kaist(folder, split, annotation_format=form, annotations_dir=annotations_dir, modality=None)
    return GroundTruth([frame.annotations for frame in frames], [frame.name for frame in frames])


@dataclass(frozen=True, eq=False)
class Scores:
    """Everything that is stated of one detector.

    Attributes:
        miss_rates: ``miss_rates[rule set][subset]``, for the rule sets asked for.
        recall: of ``reasonable_all`` under the matlab rules, in 0..1; NaN where no box is counted.
        ap: ``AP``, ``AP50``, ``AP75`` in percent; NaN if not asked for or where there is no person.
        matcher: gives the matches of every subset, for pictures and resampling.
    """

    miss_rates: dict[str, dict[str, MissRate]]
    recall: float
    ap: dict[str, float]
    matcher: Matcher

    def as_dict(self) -> dict[str, Any]:
        """The results file's form: everything in percent, None where there is no number.

        Returns:
            ``{"matlab": {subset: MR}, "python": {subset: MR}, "recall": ..., "ap": {"AP", "AP50", "AP75"}}``.
        """
        results: dict[str, Any] = {
            rules: {name: _percent(result.mr) for name, result in by_subset.items()}
            for rules, by_subset in self.miss_rates.items()
        }
        results["recall"] = _percent(self.recall)
        results["ap"] = {name: None if math.isnan(value) else value for name, value in self.ap.items()}
        return results

    def named(self) -> Iterator[tuple[str, float]]:
        """``(name, percent)`` for a logger: ``MR/reasonable_all`` and its like under the matlab rules, ``AP`` ..."""
        for subset, result in self.miss_rates["matlab"].items():
            yield f"MR/{subset}", 100 * result.mr
        yield from self.ap.items()


def score(
    truth: MissRateEvaluator,
    detections: DetectionTable,
    rules: Sequence[str] = ("matlab", "python"),
    *,
    with_ap: bool = True,
) -> Scores:
    """Score one table of detections.

    Args:
        truth: made of the annotations, one per image, once for all tables.
        detections: on those images.
        rules: names in :data:`ssd_effnet.metrics.subsets.RULES`.
        with_ap: AP takes thirty times as long as the miss rates.

    Raises:
        ValueError: an unknown rule set, or detections that fit no image.
    """
    if unknown := set(rules) - set(RULES):
        raise ValueError(f"unknown rules {', '.join(sorted(unknown))}; there are {', '.join(RULES)}")
    matcher = truth.match(detections)
    ap = average_precision(truth.annotations, detections) if with_ap else dict.fromkeys(_AP_NAMES, float("nan"))
    return Scores(
        miss_rates={name: {subset: matcher.result(subset, name) for subset in SUBSETS} for name in rules},
        recall=matcher.result("reasonable_all", MATLAB).recall,
        ap=ap,
        matcher=matcher,
    )


def compare_detectors(
    a: Sequence[Matcher], b: Sequence[Matcher], rules: Sequence[str] = ("matlab", "python")
) -> dict[str, dict[str, Comparison]]:
    """``[rule set][subset]`` of the reasonable subsets; for A, B, errors see :mod:`ssd_effnet.metrics.significance`."""
    return {name: {subset: compare(a, b, subset, name) for subset in REASONABLE} for name in rules}


def verdict(comparison: Comparison) -> str:
    """In words; as sure as the 95 % interval of the difference."""
    if comparison.difference.high < 0:
        return "A is better"
    if comparison.difference.low > 0:
        return "B is better"
    return "cannot tell"


def comparisons_as_dict(a: str, b: str, comparisons: Mapping[str, Mapping[str, Comparison]]) -> dict[str, Any]:
    """The results file's form: miss rates and their difference in percent, None where there is no number.

    Args:
        a, b: names of the detectors.
        comparisons: of :func:`compare_detectors`.
    """

    def percent(of: Interval) -> dict[str, float | None]:
        return {name: _percent(value) for name, value in asdict(of).items()}

    results: dict[str, Any] = {"a": a, "b": b}
    for rules, by_subset in comparisons.items():
        results[rules] = {
            subset: {
                "a": percent(of.a),
                "b": percent(of.b),
                "difference": percent(of.difference),
                "p": None if math.isnan(of.p) else of.p,
                "resamples": of.resamples,
                "verdict": verdict(of),
            }
            for subset, of in by_subset.items()
        }
    return results


def write_results(path: Path | str, results: Mapping[str, Any]) -> None:
    """Write results as JSON; the file is replaced whole or not at all."""
    write_whole(path, json.dumps(results, indent=2, allow_nan=False) + "\n")


def short_names(paths: Sequence[Path | str]) -> list[str]:
    """A name for each file: its stem, or as much more of its path as it takes to tell it from the others.

    Raises:
        DataError: the same file twice.
    """
    files = [Path(path).resolve() for path in paths]
    if len(set(files)) < len(files):
        twice = next(file for i, file in enumerate(files) if file in files[:i])
        raise DataError(f"{twice}: was given twice")
    forms = [_names_from_short_to_long(file) for file in files]
    chosen = [0] * len(files)
    while True:
        names = [form[min(i, len(form) - 1)] for form, i in zip(forms, chosen, strict=True)]
        if len(set(names)) == len(names):
            return names
        chosen = [i + (names.count(name) > 1) for i, name in zip(chosen, names, strict=True)]


def _names_from_short_to_long(path: Path) -> list[str]:
    """``c``, ``c.txt``, ``b/c.txt``, ``a/b/c.txt`` ... for ``/a/b/c.txt``; a folder's name has no suffix to cut, and a
    run's says only its seed.
    """
    parts = path.parts
    if (path / "config.yaml").is_file():
        return ["/".join(parts[-k:]) for k in range(2, len(parts) + 1)]
    return [path.name if path.is_dir() else path.stem, *("/".join(parts[-k:]) for k in range(1, len(parts) + 1))]


def results_table(scores: Mapping[str, Scores]) -> Table:
    """One row a detector: reasonable miss rates under each rule set, recall and AP. A dash stands for no number."""
    from rich.table import Table

    rules = list(next(iter(scores.values())).miss_rates) if scores else []
    table = Table(title="Miss rate (lower is better), recall and AP in percent", title_justify="left")
    table.add_column("detections", overflow="fold")
    for name in rules:
        for time in ("all", "day", "night"):
            table.add_column(f"MR {time}\n{name}", justify="right", no_wrap=True)
    for heading in ("recall", "AP", "AP50"):
        table.add_column(heading, justify="right", no_wrap=True)
    for detector, of_detector in scores.items():
        cells = [_cell(of_detector.miss_rates[name][subset]) for name in rules for subset in REASONABLE]
        ap = [_show(of_detector.ap[name]) for name in ("AP", "AP50")]
        table.add_row(detector, *cells, _show(100 * of_detector.recall), *ap)
    return table


def comparison_table(a: str, b: str, comparisons: Mapping[str, Mapping[str, Comparison]]) -> Table:
    """One row a rule set and subset: either miss rate, their difference and what follows from it. Arguments as for
    :func:`comparisons_as_dict`; a dash stands for no number.
    """
    from rich.table import Table

    table = Table(title=f"Miss rate in percent (lower is better)\nA: {a}\nB: {b}", title_justify="left")
    for heading in ("rules", "subset"):
        table.add_column(heading, no_wrap=True)
    for heading in ("MR A", "MR B", "A - B", "95 % interval", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for rules, by_subset in comparisons.items():
        for subset, of in by_subset.items():
            mr_a, mr_b = _show(100 * of.a.value), _show(100 * of.b.value)
            value, low, high = (_show(100 * x, "+z") for x in asdict(of.difference).values())
            limits = "-" if math.isnan(of.difference.value) else f"{low} to {high}"
            p = "-" if math.isnan(of.p) else f"{of.p:.3f}"
            table.add_row(rules, subset.replace("_", " "), mr_a, mr_b, value, limits, p, verdict(of))
    return table


def plot_miss_rates(path: Path | str, scores: Mapping[str, Scores], rules: str = "matlab") -> None:
    """Write :func:`miss_rate_figure` to a file; the suffix chooses the format, for example ``.png`` or ``.pdf``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    miss_rate_figure(scores, rules).savefig(path, dpi=120)


def miss_rate_figure(
    scores: Mapping[str, Scores], rules: str = "matlab", subsets: Sequence[str] = REASONABLE
) -> Figure:
    """Miss rate against false positives per image, a panel a subset and a line a detector.

    Both axes are logarithmic. Marks are what is read at the reference points, whose mean is the number in the legend.

    Args:
        scores: by detector, each scored under ``rules``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(subsets), 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(subsets), sharey=True, squeeze=False)[0]
    least = 0.5
    for axes, subset in zip(all_axes, subsets, strict=True):
        lines = []
        for i, (detector, of_detector) in enumerate(scores.items()):
            result = of_detector.miss_rates[rules][subset]
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": _LINE_STYLES[i // len(COLOURS) % 4]}
            label = f"{_cell(result)}  {detector}"
            handle = _draw_curve(axes, result, label, look)
            lines.append((result.mr if result.detections else np.nan, i, handle))
            least = min(least, *(x for x in result.reference_miss_rate if x > 0), 0.5)
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
    """Logarithmic axes of miss rate over false positives per image, down to a little below the ``least`` miss rate."""
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    floor = 0.6 * least
    ticks = [t for t in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1) if t >= floor]
    axes.set(xscale="log", yscale="log", xlim=(2e-3, 2), ylim=(floor, 1.1), xlabel="false positives per image")
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def _draw_curve(axes: Any, result: MissRate, label: str, look: dict[str, str]) -> Any:
    """One line and its marks; what lies left of the axis' start is drawn from its edge."""
    handle = axes.plot(np.maximum(result.fppi, 1e-6), result.miss_rate, label=label, linewidth=1.6, **look)[0]
    axes.plot(
        result.reference_fppi,
        result.reference_miss_rate,
        linestyle="none",
        marker="o",
        markersize=4.5,
        markerfacecolor="white",
        markeredgecolor=look["color"],
    )
    return handle


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * value


def _show(percent: float, sign: str = "") -> str:
    return "-" if math.isnan(percent) else f"{percent:{sign}.2f}"


def _cell(result: MissRate) -> str:
    """A miss rate in percent; a dash where no box is counted, or where nothing was detected at all."""
    return _show(100 * result.mr) if result.detections else "-"
