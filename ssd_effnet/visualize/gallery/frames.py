"""Draws whole test frames with hits, misses and false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssd_effnet.drawing import save, with_caption
from ssd_effnet.evaluation.error_analysis import Errors, Kind, is_miss
from ssd_effnet.visualize.gallery.drawing import FinishedRun, labels, markings, whole

_SMALLEST_SIDE = 480  # smaller pictures are enlarged, so that texts can be read


def write_pictures(
    run: Path,
    out: Path,
    *,
    count: int = 16,
    min_score: float = 0.3,
    overrides: Sequence[str] = (),
    of_class: str | None = None,
) -> list[Path]:
    """Draw the test frames with the most misses and false alarms.

    Misses, hits and false alarms are the evaluator's own for the reasonable subset, at one operating point.

    Args:
        run: a run directory.
        out: folder for the pictures, ``001_<frame>.png`` ...
        count: how many.
        min_score: detections below do not count and are not drawn.
        overrides: where the data are.
        of_class: whose errors; None: the main class.

    Returns:
        The pictures' paths.

    Raises:
        DataError, ConfigError: one sentence, where the run is not finished or its data are not there.
    """
    tested = FinishedRun.load(run, overrides, of_class)
    errors = Errors(tested.truth, tested.detections, min_score=min_score)
    words = labels(tested)
    image = {True: errors.matches.box_image, False: tested.detections.image_index}
    wrong = np.concatenate([image[is_miss(kind)][errors.at_point(kind)] for kind in Kind])
    written = []
    worst = np.argsort(-np.bincount(wrong, minlength=len(tested.frames)), kind="stable")
    for rank, place in enumerate(worst[:count].tolist(), start=1):
        name = tested.frames[place].name
        images, marked = tested.images(place), markings(errors, place, words)
        drawn = whole(images, marked, max(1.0, _SMALLEST_SIDE / min(images[0].shape[:2])))
        caption = f"{name}   scores from {min_score:g}"
        path = out / f"{rank:03d}_{name.replace('/', '_')}.png"
        save(with_caption(drawn, caption, [m.kind for m in marked if len(m.boxes_xyxy)]), path)
        written.append(path)
    return written
