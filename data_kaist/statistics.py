"""Statistics of a data set: colours, objects by daytime and occlusion, heights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np

from data_kaist.annotations import training_ignore
from data_kaist.classes import PEOPLE, Classes
from data_kaist.dataset import read_pair
from data_kaist.errors import ImageError
from data_kaist.images import lwir_values
from data_kaist.layouts import Frame, Modality, spread

OCCLUSIONS = ("none", "partial", "heavy")


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation per channel over all pixels, in 0..1."""

    channels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def channel_statistics(frames: Sequence[Frame], modality: Modality) -> ChannelStatistics:
    """Mean and standard deviation per channel, for ``input.mean`` and ``input.std``."""

    def sums(frame: Frame) -> np.ndarray:
        """``(channels, 3)``: number of pixels, sum, sum of squares."""
        rows = []
        for image in (image for image in read_pair(frame, modality) if image is not None):
            mean, std = (of[:, 0] / 255 for of in cv2.meanStdDev(image))
            pixels = image.shape[0] * image.shape[1]
            rows.append(pixels * np.stack([np.ones_like(mean), mean, std**2 + mean**2], axis=1))
        return np.concatenate(rows)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        total = np.sum(list(pool.map(sums, frames)), axis=0)
    mean = total[:, 1] / total[:, 0]
    std = np.sqrt(np.maximum(total[:, 2] / total[:, 0] - mean**2, 0))
    names = {1: ("LWIR",), 3: ("R", "G", "B"), 4: ("R", "G", "B", "LWIR")}[len(mean)]
    return ChannelStatistics(names, tuple(map(float, mean)), tuple(map(float, std)))


def lwir_quantiles(frames: Sequence[Frame], shares: Sequence[float], count: int = 500) -> list[float]:
    """Quantiles of the LWIR values in up to ``count`` frames, evenly spread. Raises ImageError if all have 8 bits."""

    def some(frame: Frame) -> np.ndarray:
        assert frame.lwir is not None
        try:
            values = lwir_values(frame.lwir)
        except ImageError:  # of which training tells
            return np.empty(0)
        deep = values.reshape(-1)[:: values.size // 10_000 | 1].astype(np.float64)  # odd: of all columns
        return deep[np.isfinite(deep)] if values.dtype != np.uint8 else deep[:0]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        values = np.concatenate(list(pool.map(some, (frames[place] for place in spread(frames, count)))))
    if not len(values):
        raise ImageError(f"{frames[0].lwir}: no LWIR image looked at has more than 8 bits; leave out lwir_quantiles")
    found = [float(f"{value:.6g}") for value in np.quantile(values, shares)]
    if found[0] >= found[-1]:
        raise ImageError(f"data.lwir_quantiles: both are {found[0]:g} in the training split; give data.lwir_range")
    return found


class ObjectCounts(NamedTuple):
    """Counts of one group of objects: ``all``, ``day``, ``night``, ``unknown`` or ``occl. none | partial | heavy``.

    They are frames (for an occlusion, those with such an object), frames with any object of the group, objects, those
    of a class, and ignore regions (:func:`~data_kaist.annotations.training_ignore`), some of them of a class.
    """

    group: str
    counts: tuple[int, ...]


def count_objects(frames: Sequence[Frame], min_height: float = 12, classes: Classes = PEOPLE) -> list[ObjectCounts]:
    """Count the objects of all frames. They are also counted by daytime and by occlusion, where any is known."""
    every = [frame.annotations for frame in frames]
    daytime = np.array([a.daytime or "unknown" for a in every], object)
    image = np.repeat(np.arange(len(every)), np.array([len(a) for a in every], int))
    occlusion, ignored, of_class = (
        np.concatenate([np.zeros(0), *columns])
        for columns in (
            [a.occlusion for a in every],
            [training_ignore(a, min_height, classes) for a in every],
            [classes.indices(a.labels) > 0 for a in every],
        )
    )

    def row(group: str, of: np.ndarray, n_frames: int | None = None) -> ObjectCounts:
        present = len(np.unique(image[of]))
        counts = present if n_frames is None else n_frames, present, of.sum(), of_class[of].sum(), ignored[of].sum()
        return ObjectCounts(group, tuple(map(int, counts)))

    rows = [row("all", np.full(len(image), True), len(every))]
    if any(a.daytime for a in every):
        times = [time for time in ("day", "night", "unknown") if time in daytime]
        rows += [row(time, daytime[image] == time, int((daytime == time).sum())) for time in times]
    known = enumerate(OCCLUSIONS) if occlusion.any() else ()
    return rows + [row(f"occl. {name}", occlusion == level) for level, name in known]


def height_quantiles(
    frames: Sequence[Frame], classes: Classes = PEOPLE, shares: Sequence[int] = (5, 25, 50, 75, 95)
) -> dict[int, float]:
    """Quantiles of the heights of objects of a class in pixels; empty without any."""
    every = [frame.annotations for frame in frames]
    heights = [float(h) for a in every for h in a.height[classes.indices(a.labels) > 0]]
    return dict(zip(shares, map(float, np.percentile(heights, shares)), strict=True)) if heights else {}
