"""Gallery of people found by only one of two runs. Each has the lowest score within the FPPI."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_kaist.structures import Annotations
from ssd_effnet.evaluation.error_analysis import FPPI, Errors, Kind, is_miss, nearest_box, people_groups
from ssd_effnet.evaluation.miss_rate import MIN_OVERLAP, MissRateEvaluator
from ssd_effnet.evaluation.subsets import REASONABLE
from ssd_effnet.visualize.gallery.album import MOST_ENTRIES, Item, View, alarm, fewest, legend, paste, person
from ssd_effnet.visualize.gallery.errors import as_percent, at_point, floor_note
from ssd_effnet.visualize.gallery.finished_run import FinishedRun
from ssd_effnet.visualize.gallery.page import Bar, Chart, GalleryPage, write_page

ONLY_A, ONLY_B, ALARM_A, ALARM_B = "only_a", "only_b", "alarm_a", "alarm_b"
KINDS = {
    ONLY_A: "A finds, B misses",
    ONLY_B: "B finds, A misses",
    ALARM_A: "false alarm of A alone",
    ALARM_B: "false alarm of B alone",
}


def write_comparison(
    a: FinishedRun,
    b: FinishedRun,
    out: Path,
    *,
    subset: str = REASONABLE[0],
    fppi: float = FPPI,
    count: int = MOST_ENTRIES,
) -> GalleryPage:
    """Write ``out/index.html``. Arguments as of :func:`ssd_effnet.visualize.gallery.errors.write_errors`."""
    both = ((a, "A"), (b, "B"))
    views = [View(run, Errors(run.truth, run.detections, subset, fppi=fppi), name) for run, name in both]
    items = disagreement_items(*views)
    shown = fewest(items, count)
    lines = [
        f"{view.name}: {view.run.name}{view.run.sees and f', {view.run.sees}'}; "
        f"miss rate {as_percent(view.errors.miss_rate())}; {at_point(view.errors)}."
        for view in views
    ]
    lines += [f"{view.name}: {line}" for view in views for line in floor_note(view.errors)]
    numbers = Counter(item.entry.kind for item in items)
    lines.append("; ".join(f"{words}: {numbers[kind]:,}" for kind, words in KINDS.items()) + ".")
    lines.append("Whether one is better on other images too, ssd-effnet evaluate --compare tells.")
    if len(shown) < len(items):
        lines.append(f"{len(shown):,} of {len(items):,} differences are shown; the chart counts all.")
    entries = paste(views, shown, out)
    page = GalleryPage(f"{a.name} and {b.name}", lines, entries, KINDS, [chart(*views)], **legend(a))
    write_page(out / "index.html", page)
    return page


def disagreement_items(a: View, b: View) -> list[Item]:
    """People found by one run only, tallest first. Then its own false alarms by score."""
    height, items = a.errors.truth.height, []
    for kind, here, there in ((ONLY_A, a, b), (ONLY_B, b, a)):
        rows = np.flatnonzero(here.errors.counted & here.errors.found & ~there.errors.found)
        for g in rows[np.argsort(-height[rows], kind="stable")].tolist():
            score = here.errors.detections.scores[here.errors.matches.box_matched_by[g]]
            row = int(there.errors.matches.box_matched_by[g])
            other = f"{there.errors.detections.scores[row]:.2f} only" if row >= 0 else "no score"
            items.append(person(kind, here, g, f"{here.name} at score {score:.2f}, {there.name} at {other}, "))
    for kind, here, there in ((ALARM_A, a, b), (ALARM_B, b, a)):
        rows = np.flatnonzero(alone(here.errors, there.errors))
        scores = here.errors.detections.scores[rows]
        items += [alarm(kind, here, row) for row in rows[np.argsort(-scores, kind="stable")].tolist()]
    return items


def alone(here: Errors, there: Errors) -> np.ndarray:
    """False alarms of ``here`` alone at the operating point, bool ``(d,)``. Those of ``there`` have IoUs below 0.5."""
    mine, others = _alarms(here), _alarms(there)
    table = there.detections
    images = [
        Annotations.from_rows(table.boxes_xyxy[others & (table.image_index == place)], size=(1, 1))
        for place in range(here.truth.n_images)
    ]
    rows = np.flatnonzero(mine)
    _, overlap = nearest_box(MissRateEvaluator(images), here.detections.rows(rows))
    mine[rows[overlap >= MIN_OVERLAP]] = False
    return mine


def _alarms(errors: Errors) -> np.ndarray:
    wrong = [errors.kinds[kind] for kind in Kind if not is_miss(kind)]
    alarms: np.ndarray = np.logical_or.reduce(wrong) & errors.shown
    return alarms


def chart(a: View, b: View) -> Chart:
    """People found by both, one and neither, by group."""
    found_a, found_b = a.errors.found, b.errors.found
    parts = (found_a & found_b, found_a & ~found_b, ~found_a & found_b, ~found_a & ~found_b)
    rows: list[Sequence[str | Bar]] = []
    everybody = {"": [("all", np.ones(len(found_a), bool))]} | people_groups(a.errors.truth)
    for sort, of_sort in everybody.items():
        for words, who in of_sort:
            counted = who & a.errors.counted
            total = int(counted.sum())
            if total:
                cells = [Bar(f"{n:,}", n / total) for n in (int((counted & part).sum()) for part in parts)]
                rows.append((f"{sort}: {words}" if sort else words, f"{total:,}", *cells))
    head = ("people", "number", "both find", "A alone", "B alone", "neither")
    note = f"False positives per image: {a.errors.fppi:.3f} of A, {b.errors.fppi:.3f} of B. Bars are shares of the row."
    return Chart("Who is found by whom", head, rows, note)
