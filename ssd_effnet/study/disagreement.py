"""Pictures of people found by only one of an experiment and its parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_kaist.dataset import read_pair
from data_kaist.errors import DataError
from data_kaist.layouts import Frame
from ssd_effnet.drawing import as_rgb, jpeg_address
from ssd_effnet.evaluation.error_analysis import Errors
from ssd_effnet.study.records import Difference, Experiment, Run
from ssd_effnet.visualize.gallery.album import markings, whole

PICTURES = 6
_WIDTH, _WIDTH_IN_PAIR = 480, 380  # pixels of an image, and of one of two


class Side(Errors):
    """The errors of one run at its operating point of 0.1 false positives per image."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.matcher.truth, run.detections)
        self.run = run

    @property
    def name(self) -> str:
        return f"{self.run.experiment.name} seed {self.run.seed}"


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG with its caption; without ``src`` the caption says why it is missing."""

    src: str
    alt: str
    caption: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Disagreement:
    """People found by only one of two runs.

    Attributes:
        experiment, parent: the runs at their operating points.
        counted: people of the reasonable subset.
        only_experiment, only_parent: of them, found by one alone.
        pairs: frame name, and the same frame as either run sees it.
    """

    experiment: Side
    parent: Side
    counted: int
    only_experiment: int
    only_parent: int
    pairs: list[tuple[str, Thumbnail, Thumbnail]]


def disagreement(difference: Difference, frames: Sequence[Frame]) -> Disagreement:
    """Compare the first seeds of an experiment and its parent; draw the frames that differ most."""
    here, there = Side(_first_seed(difference.experiment)), Side(_first_seed(difference.parent))
    counted, found, of_parent = here.counted, here.found, there.found
    only_here, only_there = counted & found & ~of_parent, counted & ~found & of_parent
    places = most_disputed(here.matches.box_image, here.truth.boxes_xyxy, only_here, only_there)
    pairs = [
        (frames[place].name, thumbnail(here, there, frames[place], place), thumbnail(there, here, frames[place], place))
        for place in places
    ]
    return Disagreement(here, there, int(counted.sum()), int(only_here.sum()), int(only_there.sum()), pairs)


def most_disputed(
    image: np.ndarray, boxes_xyxy: np.ndarray, only_here: np.ndarray, only_there: np.ndarray, count: int = PICTURES
) -> list[int]:
    """Images with most, then tallest, people found by only one; gains and losses alternate.

    Args:
        image, boxes_xyxy, only_here, only_there: of each ground-truth box ``(g,)``.
    """
    queues = []
    for only in (only_here, only_there):
        disputed, people = np.unique(image[only], return_counts=True)
        height = boxes_xyxy[:, 3] - boxes_xyxy[:, 1]
        tallest = np.array([height[only & (image == place)].max() for place in disputed])
        queues.append(disputed[np.lexsort((-tallest, -people))].tolist() if len(disputed) else [])
    chosen: dict[int, None] = {}
    for k in range(max(map(len, queues))):
        chosen.update((queue[k], None) for queue in queues if k < len(queue))
    return list(chosen)[:count]


def thumbnail(side: Side, other: Side, frame: Frame, place: int) -> Thumbnail:
    """One frame with one run's detections; boxes of people whom it alone finds or misses say so."""
    here = np.arange(side.truth.box_start[place], side.truth.box_start[place + 1])
    counted, found = side.counted[here], side.found[here]
    words = {int(g): "found" if yes else "missed" for g, yes in zip(here, found, strict=True) if yes != other.found[g]}
    marked = markings(side, place, words)
    alarms = sum(len(marking.boxes_xyxy) for marking in marked if marking.kind == "false_alarm")
    said = f"finds {int((counted & found).sum())} of {int(counted.sum())}, false alarms: {alarms}"
    alt = f"{frame.name} as {side.name} sees it: {said}"
    try:
        pair = [as_rgb(image) for image in read_pair(frame, side.run.experiment.input.modality) if image is not None]
    except DataError as error:
        return Thumbnail("", alt, f"{side.name}: cannot be drawn: {error}")
    width = _WIDTH if len(pair) == 1 else _WIDTH_IN_PAIR
    drawn = whole(pair, marked, width / pair[0].shape[1])
    return Thumbnail(jpeg_address(drawn), alt, f"{side.name}: {said}", drawn.shape[1], drawn.shape[0])


def _first_seed(experiment: Experiment) -> Run:
    return min(experiment.runs, key=lambda run: run.seed)
