"""Pictures of people that only an experiment or its parent found."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from data_kaist.dataset import read_pair
from data_kaist.errors import DataError
from data_kaist.layouts import Frame
from ssd_effnet.drawing import as_rgb, jpeg_address
from ssd_effnet.evaluation.error_analysis import Errors
from ssd_effnet.study.records import Difference, Run
from ssd_effnet.visualize.gallery.album import markings, whole

PICTURES = 6
_WIDTH, _WIDTH_IN_PAIR = 480, 380  # pixels of an image, and of one of two


class Side(Errors):
    """Errors of one run at 0.1 false positives per image."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.matcher.truth, run.detections)
        self.run = run

    @property
    def name(self) -> str:
        return f"{self.run.experiment.name} seed {self.run.seed}"


class Thumbnail(NamedTuple):
    """A JPEG with its caption. Without ``src`` the caption says why it is missing."""

    src: str
    alt: str
    caption: str
    width: int = 0
    height: int = 0


class Disagreement(NamedTuple):
    """People of the reasonable subset found by only one of two runs. Pairs of pictures with the frame's name."""

    experiment: Side
    parent: Side
    counted: int
    only_experiment: int
    only_parent: int
    pairs: list[tuple[str, Thumbnail, Thumbnail]]


def disagreement(difference: Difference, frames: Sequence[Frame]) -> Disagreement:
    """Compare the first seeds of an experiment and its parent. Draw the frames that differ most."""
    here, there = (Side(min(of.runs, key=lambda run: run.seed)) for of in (difference.experiment, difference.parent))
    counted, found, of_parent = here.counted, here.found, there.found
    only_here, only_there = counted & found & ~of_parent, counted & ~found & of_parent
    places = most_disputed(here.truth.box_image, only_here, only_there)
    pairs = [
        (frames[place].name, thumbnail(here, there, frames[place], place), thumbnail(there, here, frames[place], place))
        for place in places
    ]
    return Disagreement(here, there, int(counted.sum()), int(only_here.sum()), int(only_there.sum()), pairs)


def most_disputed(image: np.ndarray, only_here: np.ndarray, only_there: np.ndarray, count: int = PICTURES) -> list[int]:
    """Images with most people found by only one; gains and losses alternate.

    Args:
        image, only_here, only_there: of each ground-truth box ``(g,)``.
    """
    queues = []
    for only in (only_here, only_there):
        disputed, people = np.unique(image[only], return_counts=True)
        queues.append(disputed[np.argsort(-people, kind="stable")].tolist())
    chosen = [place for pair in zip_longest(*queues) for place in pair if place is not None]
    return list(dict.fromkeys(chosen))[:count]


def thumbnail(side: Side, other: Side, frame: Frame, place: int) -> Thumbnail:
    """One frame with one run's detections. Boxes of people whom it alone finds or misses say so."""
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
