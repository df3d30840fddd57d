"""Pictures of a finished run: what was found, what was missed, what was a false alarm."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_kaist.dataset import Frame, Modality, read_pair
from data_kaist.detections import read_coco_results
from data_kaist.errors import DataError
from data_kaist.loading import image_ids
from ssd_effnet.build import build_dataset
from ssd_effnet.config import load_experiment
from ssd_effnet.metrics.miss_rate import Matches, MissRateEvaluator, Outcome
from ssd_effnet.structures import DetectionTable
from ssd_effnet.visualize import Marking, as_rgb, beside, draw, save, with_caption

SUBSET = "reasonable_all"
_SMALLEST_SIDE = 480  # smaller pictures are enlarged, so that texts can be read


def write_pictures(run: Path, out: Path, *, count: int = 16, min_score: float = 0.3) -> list[Path]:
    """Draw the test frames on which most went wrong, those with the most misses and false alarms first.

    Misses, hits and false alarms are the evaluator's own for the reasonable subset, at one working point.

    Args:
        run: a run directory.
        out: folder for the pictures, ``001_<frame>.png`` ...
        count: how many.
        min_score: detections below do not count and are not drawn.

    Returns:
        The pictures' paths.

    Raises:
        DataError, ConfigError: one sentence, where the run is not finished or its data are not there.
    """
    experiment = load_experiment(run / "config.yaml")
    if not (run / "detections.json").is_file():
        raise DataError(f"{run}: holds no detections.json; the run is not finished (scripts/train.py --resume)")
    frames = build_dataset(experiment, "test").frames
    table = read_coco_results(run / "detections.json", len(frames), image_ids=image_ids(frames))
    rows = table.scores >= min_score
    table = DetectionTable(table.image_index[rows], table.boxes_xyxy[rows], table.scores[rows])
    matches = MissRateEvaluator([frame.annotations for frame in frames]).match(table).matches(SUBSET)

    missed = matches.box_image[~matches.box_matched & ~matches.box_ignored]
    wrong = table.image_index[matches.outcome == Outcome.FALSE_POSITIVE]
    errors = np.bincount(np.concatenate((missed, wrong)), minlength=len(frames))
    written = []
    for rank, place in enumerate(np.argsort(-errors, kind="stable")[:count].tolist(), start=1):
        frame = frames[place]
        path = out / f"{rank:03d}_{frame.name.replace('/', '_')}.png"
        save(picture(frame, experiment.input.modality, place, table, matches, min_score), path)
        written.append(path)
    return written


def picture(
    frame: Frame, modality: Modality, place: int, table: DetectionTable, matches: Matches, min_score: float
) -> np.ndarray:
    """One frame with truth and detections, visible and LWIR side by side where the modality has both."""
    boxes = frame.annotations.boxes_xyxy
    here = matches.box_image == place
    row, found, ignored = (v[here] for v in (matches.box_row, matches.box_matched, matches.box_ignored))
    on_it = table.image_index == place
    outcome, detected, scores = matches.outcome[on_it], table.boxes_xyxy[on_it], table.scores[on_it]
    texts = np.array([f"{score:.2f}" for score in scores], dtype=object)

    def detections(kind: str, which: Outcome) -> Marking:
        return Marking(kind, detected[outcome == which], list(texts[outcome == which]))

    markings = [
        Marking("ignored", boxes[row[ignored]]),
        detections("dropped", Outcome.DROPPED),
        Marking("truth", boxes[row[found & ~ignored]]),
        detections("hit", Outcome.TRUE_POSITIVE),
        Marking("missed", boxes[row[~found & ~ignored]], ["missed"] * int((~found & ~ignored).sum())),
        detections("false_alarm", Outcome.FALSE_POSITIVE),
    ]
    pair = [as_rgb(image) for image in read_pair(frame, modality) if image is not None]
    zoom = max(1.0, _SMALLEST_SIDE / min(pair[0].shape[:2]))
    drawn = beside([draw(image, markings, zoom=zoom) for image in pair])
    caption = f"{frame.name}   scores from {min_score:g}"
    return with_caption(drawn, caption, [m.kind for m in markings if len(m.boxes_xyxy)])
