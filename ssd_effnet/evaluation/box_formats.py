"""Detects common mistakes in detection files by trying a repair of each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from data_kaist.structures import DetectionTable
from ssd_effnet.evaluation.miss_rate import MIN_OVERLAP, MissRateEvaluator

LIFT = 0.2
"""A repair is named where so large a share of the persons more is found."""

_MOST_IMAGES = 300  # with persons, spread over the set
_CHANCE = 1e-4  # of a repair finding as many persons on other images

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_FORMS: Mapping[str, Callable[..., Columns]] = {
    "": lambda a, b, c, d: (a, b, a + c, b + d),
    "corners x1, y1, x2, y2": lambda a, b, c, d: (a, b, c, d),
    "centre x, centre y, width, height": lambda a, b, c, d: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    "y, x, height, width": lambda a, b, c, d: (b, a, b + d, a + c),
    "corners y1, x1, y2, x2": lambda a, b, c, d: (b, a, d, c),
    "x, y, height, width": lambda a, b, c, d: (a, b, a + d, b + c),
    "corners x1, x2, y1, y2": lambda a, b, c, d: (a, c, b, d),
}
"""What the four numbers of a box may be, read as x, y, width, height: to xyxy."""

_UNITS: Mapping[str, Callable[..., tuple[np.ndarray | float, np.ndarray | float]]] = {
    "": lambda width, height: (1, 1),
    "shares of the image (0..1)": lambda width, height: (width, height),
    "per cent of the image": lambda width, height: (width / 100, height / 100),
    "thousandths of the image": lambda width, height: (width / 1000, height / 1000),
    "pixels of an image of half the size": lambda width, height: (2, 2),
    "pixels of an image of twice the size": lambda width, height: (0.5, 0.5),
    "pixels of an image of a quarter of the size": lambda width, height: (4, 4),
} | {
    f"pixels of an image of {side}x{side}": lambda width, height, side=side: (width / side, height / side)
    for side in (300, 320, 416, 512, 640, 1024, 1280)
}
"""What they may be in, read as pixels: the factors of x and y, given the sizes of the images."""


def doubt(
    truth: MissRateEvaluator, table: DetectionTable, others: Callable[[], Iterable[tuple[str, DetectionTable]]] = tuple
) -> str:
    """A sentence if detections look wrongly written; else empty.

    Tries units, corners, image numbering and categories. A repair counts if it finds a share of :data:`LIFT` more
    persons, and more than by chance on other images. Also looks for images that the detector did not process.

    ``others`` are further repairs: description and repaired table.
    """
    images, silent = truth.n_images, ""
    person = truth.of_class.copy()
    if not len(table):
        silent = f"only 0 of the {images:,} images have a detection; are they of this split, and of all of it?"
    elif fewer := _ends_early(truth, person, table) or _skips(images, table):
        return fewer
    peopled = np.unique(truth.box_image[person])
    sample = np.isin(np.arange(images), peopled[:: -(-len(peopled) // _MOST_IMAGES) or 1])
    person &= sample[truth.box_image]
    n = int(person.sum())
    now = _number_found(truth, person, sample, table)
    if n == 0 or now / n > 1 - LIFT:
        return silent
    best, words = now, ""
    for how, repaired in itertools.chain(_repairs(truth, table) if len(table) else (), others()):
        found = _number_found(truth, person, sample, repaired)
        if found - now >= LIFT * n and found > best and not _by_chance(truth, person, sample, repaired, found):
            best, words = found, how
    if not words:
        return silent
    return f"{now / n:.0%} of the persons are found as the file is read, and {best / n:.0%} if {words}"


def _number_found(truth: MissRateEvaluator, person: np.ndarray, sample: np.ndarray, table: DetectionTable) -> int:
    """Number of persons found at an IoU of 0.5."""
    rows = sample[table.image_index]
    _, box, iou, _ = truth.touching(table.image_index[rows], table.boxes_xyxy[rows])
    return len(np.unique(box[(iou >= MIN_OVERLAP) & person[box]]))


def _by_chance(
    truth: MissRateEvaluator, person: np.ndarray, sample: np.ndarray, table: DetectionTable, found: int
) -> bool:
    """Whether detections moved to other images find as many (binomial tail).

    The share is at least 0.01 per detection on an image, up to 5, because there are few images.
    """
    from scipy.special import bdtrc  # here, because it takes a while to import

    n, places = int(person.sum()), np.flatnonzero(sample)
    steps = np.unique(np.linspace(1, max(len(places) - 1, 1), 8).astype(int))
    at_random = 0
    for step in steps:
        to = np.arange(truth.n_images)
        to[places] = np.roll(places, step)
        at_random += _number_found(truth, person, sample, replace(table, image_index=to[table.image_index]))
    density = sample[table.image_index].sum() / len(places)
    p = min(max(at_random / (len(steps) * n) if len(places) > 1 else 0, 0.01 * min(max(density, 1), 5)), 1 - 1e-9)
    return float(bdtrc(found - 1, n, p)) > _CHANCE * (1 + 1e-9)


def _repairs(truth: MissRateEvaluator, table: DetectionTable) -> Iterator[tuple[str, DetectionTable]]:
    """Repairs, likeliest first: description and repaired table."""
    images = truth.n_images
    height, width = np.array([truth.annotations[i].size for i in table.image_index], np.float64).T
    x1, y1, x2, y2 = table.boxes_xyxy.T
    for form, to_xyxy in _FORMS.items():
        for unit, factors in _UNITS.items():
            sx, sy = factors(width, height)
            boxes = np.stack(to_xyxy(x1, y1, x2 - x1, y2 - y1), 1) * np.stack(np.broadcast_arrays(sx, sy, sx, sy), -1)
            sides = boxes[:, 2:] - boxes[:, :2]
            inside = (
                (boxes > -0.1 * sides.repeat(2, 1)).all(1) & (boxes[:, 2] < 1.1 * width) & (boxes[:, 3] < 1.1 * height)
            )
            if (form or unit) and ((sides > 1).all(1) & inside).mean() >= 0.5:
                kept = (sides > 0).all(1)
                words = " in ".join(filter(None, (form, unit))) if form else unit
                yield f"its boxes are read as {words}", replace(table, boxes_xyxy=boxes).rows(kept)
    for words, boxes in (
        ("they are mirrored from left to right", np.stack([width - x2, y1, width - x1, y2], 1)),
        ("y is counted from the lower edge", np.stack([x1, height - y2, x2, height - y1], 1)),
        # if the ground truth was read wrongly, correct boxes are moved likewise
        (
            "the annotations' boxes are centre x, centre y, width, height",
            np.stack([(x1 + x2) / 2, (y1 + y2) / 2, (3 * x2 - x1) / 2, (3 * y2 - y1) / 2], 1),
        ),
        ("the annotations' boxes are corners x1, y1, x2, y2", np.stack([x1, y1, x1 + x2, y1 + y2], 1)),
    ):
        yield words, replace(table, boxes_xyxy=boxes)
    for step, words in (
        (1, "every image number is one higher: are they counted from 0 in place of 1, shifted by one image?"),
        (-1, "every image number is one lower: are they counted from 1 in place of 0, shifted by one image?"),
    ):
        index = table.image_index + step
        yield words, replace(table, image_index=index).rows((index >= 0) & (index < images))
    yield "its images are counted from the other end", replace(table, image_index=images - 1 - table.image_index)


def _ends_early(truth: MissRateEvaluator, person: np.ndarray, table: DetectionTable) -> str:
    """A sentence if the last images with persons have no detections. Otherwise it is empty.

    Tests the chance that all images with detections come before them.
    """
    has = np.bincount(table.image_index, minlength=truth.n_images) > 0
    peopled = np.bincount(truth.box_image[person], minlength=truth.n_images) > 0
    last = int(np.flatnonzero(has)[-1])
    missing, seen = truth.n_images - 1 - last, has[: last + 1]
    before, after, heard = int(peopled[: last + 1].sum()), int(peopled[last + 1 :].sum()), int((peopled & has).sum())
    longest = int(np.diff(np.flatnonzero(np.concatenate([[True], seen]))).max()) - 1
    rare = math.comb(before, heard) / math.comb(before + after, heard) <= 0.01
    if after < 2 or missing <= 2 * longest or not rare:
        return ""
    share = missing / truth.n_images
    return (
        f"it ends at image {last + 1:,} of {truth.n_images:,}: the last {missing:,} ({share:.0%}) have no detection, "
        f"while of those before {seen.mean():.0%} have one; was it written to its end?"
    )


def _skips(images: int, table: DetectionTable) -> str:
    """A sentence if only every n-th image has detections; else empty."""
    places = np.unique(table.image_index)
    step = int(np.gcd.reduce(np.diff(places))) if len(places) >= 10 else 1
    if step < 2 or 2 * len(places) < images / step:
        return ""
    return (
        f"all its detections lie on images that are {step} apart, {len(places):,} of {images:,}; "
        "are they of this split, and of all of it?"
    )
