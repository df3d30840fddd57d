"""Gallery of one run's errors by kind, with each kind's cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssd_effnet.evaluation.error_analysis import FPPI, WORDS, Errors, Group, Kind, groups, is_miss
from ssd_effnet.evaluation.subsets import REASONABLE
from ssd_effnet.visualize.gallery.album import MOST_ENTRIES, Item, View, alarm, below, fewest, legend, paste, person
from ssd_effnet.visualize.gallery.finished_run import FinishedRun
from ssd_effnet.visualize.gallery.page import Bar, Chart, GalleryPage, write_page


def write_errors(
    run: FinishedRun,
    out: Path,
    *,
    subset: str = REASONABLE[0],
    fppi: float = FPPI,
    min_score: float | None = None,
    count: int = MOST_ENTRIES,
) -> GalleryPage:
    """Write ``out/index.html`` and ``out/pictures``, with at most ``count`` errors; charts count all.

    Subset and operating point are those of :class:`ssd_effnet.evaluation.error_analysis.Errors`.
    """
    view = View(run, Errors(run.truth, run.detections, subset, fppi=fppi, min_score=min_score))
    items = error_items(view)
    shown = fewest(items, count)
    page = GalleryPage(
        title=f"Errors of {run.name}",
        lead=lead(view, len(items), len(shown)),
        entries=paste([view], shown, out),
        kinds={kind.value: WORDS[kind] for kind in Kind},
        charts=charts(view),
        **legend(run),
    )
    write_page(out / "index.html", page)
    return page


def error_items(view: View) -> list[Item]:
    """All errors at the operating point. Missed people by height, false alarms by score."""
    errors, height = view.errors, view.errors.truth.height
    items = []
    for kind in Kind:
        rows = errors.at_point(kind)
        if is_miss(kind):
            for g in rows[np.argsort(-height[rows], kind="stable")].tolist():
                items.append(_missed(kind, view, g))
        else:
            scores = errors.detections.scores[rows]
            items += [alarm(kind, view, row) for row in rows[np.argsort(-scores, kind="stable")].tolist()]
    return items


def _missed(kind: Kind, view: View, g: int) -> Item:
    errors = view.errors
    if kind is Kind.MISSED_UNSURE:
        score = errors.detections.scores[errors.matches.box_matched_by[g]]
        return person(kind, view, g, f"right box at score {score:.2f} only, ")
    near = errors.kinds[Kind.MISPLACED] & errors.shown & (errors.nearest == g)
    if near.any():
        row = int(np.flatnonzero(near)[np.argmax(errors.overlap[near])])
        said = f"IoU {below(errors.overlap[row])} at score {errors.detections.scores[row]:.2f}, "
        return person(kind, view, g, said, [errors.detections.boxes_xyxy[row]])
    return person(kind, view, g, "")


def lead(view: View, all_errors: int, shown: int) -> list[str]:
    run, errors = view.run, view.errors
    lines = [
        f"{len(run.frames):,} frames, {run.sees and f'{run.sees}, '}annotations: {run.annotations}.",
        f"Subset {errors.subset.replace('_', ' ')}: "
        f"{int(errors.counted.sum()):,} people on {errors.images:,} frames; log-average miss rate "
        f"{as_percent(errors.miss_rate())} (matlab rules).",
        f"Operating point: {at_point(errors)}.",
        *floor_note(errors),
    ]
    if shown < all_errors:
        lines.append(f"{shown:,} of {all_errors:,} errors are shown, rare kinds whole; the charts count all.")
    return lines


def at_point(errors: Errors) -> str:
    """Describes the operating point and its misses."""
    alarms = sum(len(errors.at_point(kind)) for kind in Kind if not is_miss(kind))
    scores = "no detection at all" if np.isnan(errors.min_score) else f"scores from {errors.min_score:.3f} on"
    return (
        f"{scores}, where there are {errors.fppi:.3f} false alarms per image ({alarms:,} in all) and "
        f"{int(errors.missed.sum()):,} of {int(errors.counted.sum()):,} people are missed"
    )


def floor_note(errors: Errors) -> list[str]:
    """A warning if the miss rate is near its lower bound. Empty otherwise; small test sets are near it."""
    read = errors.truth.match(errors.detections).result(errors.subset).reference_miss_rate
    nobody = int((read <= 0).sum())
    if not nobody:
        return []
    return [
        f"Caution: nobody is missed at {nobody} of the {len(read)} points that the miss rate is read at. Each counts "
        "as 1e-10 in a mean of logarithms, which pulls the whole miss rate towards 0; rather compare the people "
        "missed at the operating point."
    ]


def charts(view: View) -> list[Chart]:
    """Charts of the kinds and costs, and of misses by group."""
    errors, base = view.errors, view.errors.miss_rate()
    at_point = {kind: len(errors.at_point(kind)) for kind in Kind}
    rows: list[Sequence[str | Bar]] = []
    for of_misses in (True, False):
        kinds = [kind for kind in Kind if is_miss(kind) is of_misses]
        total = max(sum(at_point[kind] for kind in kinds), 1)
        for kind in kinds:
            share = at_point[kind] / total
            after = errors.miss_rate_without(kind)
            rows.append((WORDS[kind], f"{at_point[kind]:,}", Bar(f"{100 * share:.0f} %", share), *price(base, after)))
    rows.append(("badly placed boxes put right", "", "", *price(base, errors.miss_rate_if_put_right())))
    kinds_chart = Chart(
        "What goes wrong, and what it costs",
        ("kind", "number", "share", "MR if it were gone", "gain"),
        rows,
        "Number and share are those at the operating point, of the missed people and of the false alarms apart. If "
        "gone: false alarms of the kind are taken out at all scores; people of the kind are found at every score. Put "
        "right: each badly placed box, at all scores, lies exactly where it belongs. The evaluator matches anew each "
        "time; gains do not add up. Where nobody is left to miss at a point that the miss rate is read at, it falls to "
        "almost 0.",
    )
    return [kinds_chart, people_chart(groups(errors), base)]


def people_chart(by_group: dict[str, list[Group]], base: float) -> Chart:
    rows: list[Sequence[str | Bar]] = []
    for sort, parts in by_group.items():
        for g in parts:
            missed = Bar(f"{100 * g.missed / g.people:.0f} %", g.missed / g.people)
            rows.append((f"{sort}: {g.words}", f"{g.people:,}", missed, *price(base, g.miss_rate_if_found)))
    note = "Missed at the operating point; gain: if those were found at every score."
    return Chart("Who is missed", ("people", "number", "missed", "MR if they were found", "gain"), rows, note)


def price(before: float, after: float) -> tuple[str, str | Bar]:
    """The miss rate without one kind of error. With the gain in percentage points."""
    if np.isnan(before) or np.isnan(after):
        return "–", "–"
    gain = before - after
    return as_percent(after), Bar(f"{100 * gain:.1f}", min(abs(gain), 1), minus=gain < -5e-5)


def as_percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f} %"
