"""Scores and compares detections: miss rates and AP as JSON, table and figure.

Starts fast: no torch or lightning; matplotlib, rich and pycocotools are imported when needed.
"""

from __future__ import annotations

import json
import math
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from data_kaist.annotations import doubt_of_boxes, other_labels
from data_kaist.classes import PERSON, Classes, is_among
from data_kaist.coco import read_coco
from data_kaist.detections import form_of, read_categories, read_detections
from data_kaist.errors import DataError, Doubt
from data_kaist.files import write_whole
from data_kaist.structures import Annotations, DetectionTable
from ssd_effnet.evaluation import box_formats
from ssd_effnet.evaluation.average_precision import AP_NAMES, AveragePrecision
from ssd_effnet.evaluation.metrics import in_place
from ssd_effnet.evaluation.miss_rate import Matcher, MissRate, MissRateEvaluator
from ssd_effnet.evaluation.significance import CONFIDENCE, Comparison, compare, jackknife
from ssd_effnet.evaluation.subsets import REASONABLE, SUBSETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


# Okabe and Ito's palette without yellow, which is too pale for a line; safe for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
LINE_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Ground truth, with the names and ids that detections refer to.

    Attributes:
        annotations: one per image.
        names: frame names in the same order.
        image_ids: of a COCO file's images; None: ids are indices.
        person_categories: category ids that are ``person`` in a COCO file; None: all.
        source: the COCO file, or the folder of annotations and the split.
        listed: indices of the images in the order of the COCO file.
        category: name of the class in ``images.json``.
    """

    annotations: list[Annotations]
    names: list[str]
    image_ids: list[int] | None = None
    person_categories: frozenset[int] | None = None
    source: str = ""
    listed: Sequence[int] = ()
    category: str = PERSON

    def __str__(self) -> str:
        persons = sum(int(is_among(of_image.labels, [PERSON]).sum()) for of_image in self.annotations)
        others = other_labels(self.annotations)
        line = f"annotations: {self.source}; {len(self.annotations):,} images, {persons:,} boxes of persons"
        return line + (f"; not persons: {others}" if others else "")

    def read_detections(self, path: Path | str) -> DetectionTable:
        """Detections of these images from a file or folder (:mod:`data_kaist.detections`).

        With ``images.json`` beside the file, as ``ssd-effnet detect`` writes it, images are matched by name.
        """
        return self._read(path)[0]

    def _read(self, path: Path | str) -> tuple[DetectionTable, set[int]]:
        """Detections, and the indices of the processed images."""
        if (listing := _listing(path)) is not None:
            return self._by_names(Path(path), listing)
        n, ids = len(self.annotations), self.image_ids
        table = read_detections(path, n, names=self.names, image_ids=ids, person_categories=self.person_categories)
        return table, set(range(n))

    def read_all(self, paths: Sequence[Path]) -> tuple[GroundTruth, list[DetectionTable]]:
        """Several files of detections, and the images that all of them cover.

        Images missing in a file's ``images.json`` are left out; a :class:`~data_kaist.errors.Doubt` counts them.
        """
        tables, looked_at = zip(*map(self._read, paths), strict=True)
        seen = set(range(len(self.names))).intersection(*looked_at)
        if len(seen) == len(self.names):
            return self, list(tables)
        kept = sorted(seen)
        new = np.full(len(self.names), -1)
        new[kept] = range(len(kept))
        renumbered = [replace(table, image_index=new[table.image_index]) for table in tables]
        truth = replace(
            self,
            annotations=[self.annotations[place] for place in kept],
            names=[self.names[place] for place in kept],
            image_ids=self.image_ids and [self.image_ids[place] for place in kept],
            source=f"{self.source}, the {len(kept):,} images that were looked at",
            listed=[int(new[place]) for place in self.listed if new[place] >= 0],
        )
        return truth, [table.rows(table.image_index >= 0) for table in renumbered]

    def _by_names(self, path: Path, listing: Path) -> tuple[DetectionTable, set[int]]:
        seen = read_coco(listing, classes=Classes({self.category: (self.category,)}))
        ids, is_text = seen.image_ids, path.suffix == ".txt"
        images = max(ids) + 1 if is_text else len(ids)
        categories = {id_ for id_, label in seen.categories.items() if label == self.category}
        table = read_detections(path, images, image_ids=ids, person_categories=categories)
        place = places_by_name(seen.names, self.names, str(listing))
        found = [(image.size, self.annotations[i].size) for image, i in zip(seen.images, place, strict=True) if i >= 0]
        if resized := sum(own != size for own, size in found):
            of_other = f"{resized:,} images have another size than in {self.source}"
            warnings.warn(f"{listing}: {of_other}: turned by an orientation tag, or resized?", Doubt, stacklevel=2)
        unknown, unseen = place.count(-1), len(self.names) - len(set(place) - {-1})
        if unknown == len(place):
            raise DataError(f"{listing}: none of its {unknown:,} images, as {seen.names[0]}, is in {self.source}")
        if unknown or unseen:
            left_out = f"{unknown:,} of {len(place):,} images are not in {self.source} and are left out, and "
            warnings.warn(
                f"{path}: by the names in {listing.name}, {left_out if unknown else ''}{unseen:,} of the "
                f"{len(self.names):,} images of {self.source} were not looked at; scores are of those that were",
                Doubt,
                stacklevel=2,
            )
        to = dict(zip(ids if is_text else range(len(ids)), place, strict=True))
        index = np.array([to.get(i, -1) for i in table.image_index.tolist()], np.int64)
        return replace(table, image_index=index).rows(index >= 0), set(place)

    def doubt(self, path: Path | str, table: DetectionTable, evaluator: MissRateEvaluator) -> str:
        """A sentence if the detections of a file look wrongly written (:mod:`ssd_effnet.evaluation.box_formats`)."""

        def others() -> Iterator[tuple[str, DetectionTable]]:
            if _listing(path) is not None:
                return
            by_name = sorted(range(len(self.names)), key=self.names.__getitem__)
            for how, order in (("their names", by_name), ("the annotation file's list", self.listed)):
                if len(order):
                    index = np.asarray(order)[table.image_index]
                    yield f"its images are numbered in the order of {how}", replace(table, image_index=index)
            if form_of(path) == "coco" and self.person_categories is not None:
                with warnings.catch_warnings():  # doubts were reported at the first reading
                    warnings.simplefilter("ignore", Doubt)
                    everything, category = read_categories(path, len(self.annotations), image_ids=self.image_ids)
                for c in sorted(set(category.tolist()) - self.person_categories):
                    yield f"its category {c} is the person", everything.rows(category == c)

        return box_formats.doubt(evaluator, table, others)

    def say_doubts(self, tables: Mapping[Path, DetectionTable], evaluator: MissRateEvaluator) -> None:
        """Warn of each file whose detections look wrongly written."""
        for path, table in tables.items():
            if doubt := self.doubt(path, table, evaluator):
                warnings.warn(f"{path}: {doubt}", Doubt, stacklevel=3)


def _listing(path: Path | str) -> Path | None:
    """Image names by number, from ``images.json`` of ``ssd-effnet detect``."""
    listing = Path(path).with_name("images.json")
    return listing if Path(path).name in ("detections.json", "detections_kaist.txt") and listing.is_file() else None


def places_by_name(names: Sequence[str], among: Sequence[str], where: str) -> list[int]:
    """Index of each name among others, -1 for none. Leading folders may differ.

    >>> places_by_name(["b", "street/a", "c"], ["mine/a", "mine/b"], "images.json")
    [1, 0, -1]

    Args:
        names, among: without the files' endings; folders ``visible`` and ``lwir`` do not count.
        where: file of ``names``, for messages.

    Raises:
        DataError: a name fits several, or several fit one.
    """

    def parts(name: str) -> tuple[str, ...]:
        return tuple(part for part in name.split("/") if part not in ("visible", "lwir", "."))

    ends: dict[tuple[str, ...], list[int]] = {}
    whole = [parts(name) for name in among]
    for place, of_name in enumerate(whole):
        for start in range(len(of_name)):
            ends.setdefault(of_name[start:], []).append(place)
    places: list[int] = []
    taken: dict[int, str] = {}
    for name in names:
        tails = [parts(name)[start:] for start in range(len(parts(name)))]
        tail = next((tail for tail in tails if tail in ends), ())
        fitting = ends.get(tail, [])
        fitting = [place for place in fitting if whole[place] == tail] or fitting
        if len(fitting) > 1:
            raise DataError(f"{where}: {name} may be {among[fitting[0]]} or {among[fitting[1]]}, whose folders differ")
        places += fitting or [-1]
        if fitting and (other := taken.setdefault(fitting[0], name)) != name:
            raise DataError(f"{where}: {other} and {name} are both {among[fitting[0]]}")
    return places


def load_ground_truth(path: Path | str, split: str | None = None) -> GroundTruth:
    """Ground truth from a COCO file or a data set's annotations.

    Args:
        path: a ``.json`` file (all its images), or a data set's root or annotation folder.
        split: frames to take from a folder (:mod:`data_kaist.splits`); None: test-all-20. Refused for a file.
    """
    path = Path(path)
    if path.is_dir():
        truth = _load_folder(path, split or "test-all-20")
    elif split is not None:
        raise DataError(f"{path}: is no data set's root, of which a split, here {split}, takes frames")
    else:
        of = read_coco(path)
        truth = GroundTruth(of.annotations, of.names, of.image_ids, of.person_categories, str(path), of.listed)
    if doubt := doubt_of_boxes(truth.annotations):
        warnings.warn(f"{truth.source}: {doubt}", Doubt, stacklevel=2)
    return truth


def _load_folder(folder: Path, split: str) -> GroundTruth:
    """Annotations below a data set's root or annotation folder. Images may be missing."""
    from data_kaist.layouts import DataSource, annotation_form, annotation_sets

    found = annotation_sets(folder)
    if len(found) > 1:
        sets = ", ".join(str(path) for _, path in found)
        raise DataError(f"{folder}: holds {len(found)} sets of annotations, {sets}; give one of these folders instead")
    inside = annotation_form(folder)
    form, annotations_dir = found[0] if found else (inside or "xml", folder if inside else None)
    data = DataSource("kaist", folder, form, annotations_dir)
    frames = data.frames(split, modality=None)
    source = f"{annotations_dir}, {'visible, ' if form == 'paired' else ''}{split}"
    return GroundTruth([frame.annotations for frame in frames], [frame.name for frame in frames], source=source)


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

    table = Table(title="Miss rate (lower is better), recall and AP in percent", title_justify="left")
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
            columns += [[100 * of.recall for of in several]]
            columns += [[dict(of.named())[name] for of in several] for name in names]
            cells = [with_deviation(column).replace(" ±", "\n±") for column in columns]
            people = {f"{of.people:,}" for of in several}
            cells.insert(len(subsets) + 1, people.pop() if len(people) == 1 else "-")
            table.add_row(name, rules, *cells)
    return table


def with_deviation(values: Sequence[float]) -> str:
    """Mean and standard deviation of percents; a dash for NaN.

    >>> with_deviation([20.0, 22.0])
    '21.00 ± 1.41'
    """
    mean = _show(math.fsum(values) / len(values))
    return mean if len(values) < 2 or mean == "-" else f"{mean} ± {statistics.stdev(values):.2f}"


def comparison_table(a: str, b: str, comparisons: Mapping[str, Mapping[str, Comparison]]) -> Table:
    """One row per rule set and subset: miss rates, difference, verdict. A dash for no number."""
    from rich.table import Table

    table = Table(title=f"Miss rate in percent (lower is better)\nA: {a}\nB: {b}", title_justify="left")
    for heading in ("rules", "subset"):
        table.add_column(heading, no_wrap=True)
    for heading in ("MR A", "MR B", "A - B", "95 % interval", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for rules, by_subset in comparisons.items():
        for subset, of in by_subset.items():
            limits = "-" if math.isnan(of.low) else f"{_show(of.low, '+z')} to {_show(of.high, '+z')}"
            p = "-" if math.isnan(of.p) else f"{of.p:.3f}"
            numbers = (_show(of.a), _show(of.b), _show(of.difference, "+z"), limits, p)
            table.add_row(rules, subset.replace("_", " "), *numbers, verdict(of))
    return table


def save_figure(figure: Figure, target: Path | TextIO, **more: Any) -> None:
    """Write a figure with embedded TrueType fonts; a :class:`~data_kaist.errors.Doubt` names missing letters.

    Args:
        figure: with all its texts.
        target: whose suffix chooses the format and whose folder is made, or a stream with ``format`` among ``more``.
        more: of ``Figure.savefig``.
    """
    import matplotlib
    from matplotlib.text import Text

    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    texts: list[Text] = figure.findobj(Text)
    _warn_of_letters(frozenset("".join(text.get_text() for text in texts)))
    with (
        matplotlib.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "report"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # warned once, above
        figure.savefig(target, **more)


@cache
def _warn_of_letters(letters: frozenset[str]) -> None:
    """Warn of letters that the chosen fonts lack."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [findfont(FontProperties(family=[family])) for family in FontProperties().get_family()]
    known = {code for file in fonts for code in get_font(file).get_charmap()}
    if missing := "".join(sorted(c for c in letters if not c.isspace() and ord(c) not in known)):
        warnings.warn(
            f"no chosen font has {missing[:40]}; pictures show boxes in their place, until a matplotlibrc names "
            "another font.family",
            Doubt,
            stacklevel=3,
        )


def shortened(names: Sequence[str], most: int = 36) -> dict[str, str]:
    """Names shortened for a legend, still distinct. Their ends are cut, else their middles.

    >>> shortened(["one", "a long name of the first", "a long name of the second"], 12)
    {'one': 'one', 'a long name of the first': 'a lo…e first', 'a long name of the second': 'a lo… second'}
    """

    def cut(name: str, beginning: int) -> str:
        end = len(name) - (most - 1 - beginning)
        return name if len(name) <= most else f"{name[:beginning]}…{name[end:]}"

    for beginning in (most - 1, most // 3):
        short = {name: cut(name, beginning) for name in names}
        if len(set(short.values())) == len(short):
            return short
    known = list(short.values())
    return {name: of if known.count(of) == 1 else name for name, of in short.items()}


def miss_rate_figure(
    scores: Mapping[str, Scores],
    rules: str = "matlab",
    subsets: Sequence[str] = REASONABLE,
    size: Sequence[float] | None = None,
    *,
    best_first: bool = True,
) -> Figure:
    """Miss rate against FPPI. One panel per subset, one line per detector.

    Both axes are logarithmic. Marks are at the reference points, whose mean is in the legend.

    Args:
        scores: by detector, each scored under ``rules``.
        size: width and height, inches.
        best_first: order of the legends; otherwise it is that of ``scores``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0], size[1]) if size else (5.2 * len(subsets), 5.4), layout="constrained")
    all_axes = figure.subplots(1, len(subsets), sharey=True, squeeze=False)[0]
    least, short = 0.5, shortened(list(scores))
    for axes, subset in zip(all_axes, subsets, strict=True):
        lines = []
        for i, (detector, of_detector) in enumerate(scores.items()):
            result = of_detector.miss_rates[rules][subset]
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": LINE_STYLES[i // len(COLOURS) % 4]}
            label = f"{_show(100 * result.mr)}  {short[detector]}".replace("$", r"\$")  # two would start mathematics
            # points left of the axis start are drawn at its edge
            (handle,) = axes.plot(np.maximum(result.fppi, 1e-6), result.miss_rate, label=label, linewidth=1.6, **look)
            marks = {"linestyle": "none", "marker": "o", "markersize": 4.5, "markerfacecolor": "white"}
            read = (result.reference_fppi, result.reference_miss_rate)
            axes.plot(*read, markeredgecolor=look["color"], **marks)
            lines.append((result.mr, i, handle))
            least = min(least, *(x for x in result.reference_miss_rate if x > 0), 0.5)
        if best_first:
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
    """Logarithmic axes of miss rate over FPPI. They begin below the ``least`` miss rate."""
    from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

    floor = 0.6 * least
    ticks = [t for t in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1) if t >= floor]
    axes.set(xlim=(2e-3, 2), ylim=(floor, 1.1), xscale="log", yscale="log", xlabel="false positives per image")
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _show(percent: float, sign: str = "") -> str:
    return "-" if math.isnan(percent) else f"{percent:{sign}.2f}"
