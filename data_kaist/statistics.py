"""What a data set holds: colours, objects by daytime and occlusion, heights."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data_kaist.annotations import training_ignore
from data_kaist.classes import PERSON
from data_kaist.dataset import read_pair
from data_kaist.errors import ImageError
from data_kaist.images import lwir_values
from data_kaist.layouts import Frame, Modality, spread
from data_kaist.structures import Annotations

HEIGHT_EDGES = (0, 12, 45, 55, 80, 115, 160)
"""Lower ends in pixels of the height bins; the last is open. 12: ignored in training; 45, 55, 115: KAIST's subsets."""

OCCLUSIONS = ("none", "partial", "heavy")


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation per channel over all pixels, in 0..1."""

    channels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    frames: int


def channel_statistics(frames: Sequence[Frame], modality: Modality) -> ChannelStatistics:
    """Read every frame once; the numbers are those with which a detector normalises.

    Raises:
        ImageError: an image cannot be read.
        ValueError: there are no frames.
    """
    if not frames:
        raise ValueError("no frames to take statistics of")

    def sums(frame: Frame) -> np.ndarray:
        """``(channels, 3)``: number of pixels, sum, sum of squares."""
        rows = []
        for image in read_pair(frame, modality):
            planes = () if image is None else (image,) if image.ndim == 2 else np.moveaxis(image, 2, 0)
            for plane in planes:
                # From a histogram of the 256 levels: exact in whole numbers, and one pass over the pixels.
                count = np.bincount(plane.reshape(-1), minlength=256)
                levels = np.arange(256) / 255
                rows.append([count.sum(), count @ levels, count @ levels**2])
        return np.array(rows, np.float64)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        total = np.sum(list(pool.map(sums, frames)), axis=0)
    mean = total[:, 1] / total[:, 0]
    std = np.sqrt(np.maximum(total[:, 2] / total[:, 0] - mean**2, 0))
    names = {1: ("LWIR",), 3: ("R", "G", "B"), 4: ("R", "G", "B", "LWIR")}[len(mean)]
    return ChannelStatistics(names, tuple(map(float, mean)), tuple(map(float, std)), len(frames))


def lwir_quantiles(frames: Sequence[Frame], shares: Sequence[float], count: int = 500) -> list[float]:
    """Quantiles of the LWIR values in up to ``count`` frames, evenly spread.

    Raises:
        ImageError: an image cannot be read, none has more than 8 bits, or all values are equal.
    """

    def some(frame: Frame) -> np.ndarray:
        assert frame.lwir is not None
        values = lwir_values(frame.lwir)
        deep = values.reshape(-1)[:: max(values.size // 10_000, 1)].astype(np.float64)
        return deep[np.isfinite(deep)] if values.dtype != np.uint8 else deep[:0]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        values = np.concatenate(list(pool.map(some, (frames[place] for place in spread(frames, count)))))
    if not len(values):
        raise ImageError(
            f"{frames[0].lwir}: has 8 bits, as all LWIR images that were looked at; leave out lwir_quantiles"
        )
    found = [float(f"{value:.6g}") for value in np.quantile(values, shares)]
    if found[0] >= found[-1]:
        raise ImageError(f"data.lwir_quantiles: both are {found[0]:g} in the training split; give data.lwir_range")
    return found


@dataclass(frozen=True)
class ObjectStatistics:
    """The objects of some frames.

    Attributes:
        group: ``all``, ``day``, ``night``, ``unknown`` or ``occl. none | partial | heavy``.
        frames: number of frames; for an occlusion, those with such an object.
        with_objects: frames with any object of the group.
        objects: all of them.
        person: those labelled person.
        ignored: ignore regions of training (:func:`~data_kaist.annotations.training_ignore`), some of them persons.
        heights: number of persons by :data:`HEIGHT_EDGES`.
    """

    group: str
    frames: int
    with_objects: int
    objects: int
    person: int
    ignored: int
    heights: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        return self.frames, self.with_objects, self.objects, self.person, self.ignored


def object_statistics(frames: Sequence[Frame], min_height: float = 12) -> list[ObjectStatistics]:
    """Rows for all frames, for each daytime (if any is known), and for each occlusion."""

    def row(group: str, of: Sequence[Annotations], occlusion: int | None = None) -> ObjectStatistics:
        found = Counter(frames=len(of))
        heights: list[float] = []
        for a in of:
            chosen = np.full(len(a), True) if occlusion is None else a.occlusion == occlusion
            person = chosen & np.asarray(a.labels == PERSON, bool)
            found["with_objects"] += bool(chosen.any())
            found["objects"] += int(chosen.sum())
            found["person"] += int(person.sum())
            found["ignored"] += int((chosen & training_ignore(a, min_height)).sum())
            heights += a.height[person].tolist()
        if occlusion is not None:
            found["frames"] = found["with_objects"]
        counts, _ = np.histogram(heights, [*HEIGHT_EDGES, np.inf])
        keys = ("frames", "with_objects", "objects", "person", "ignored")
        return ObjectStatistics(group, **{key: found[key] for key in keys}, heights=tuple(map(int, counts)))

    every = [frame.annotations for frame in frames]
    rows = [row("all", every)]
    if any(a.daytime for a in every):
        by_time = {time: [a for a in every if (a.daytime or "unknown") == time] for time in ("day", "night", "unknown")}
        rows += [row(time, of) for time, of in by_time.items() if of]
    return rows + [row(f"occl. {name}", every, level) for level, name in enumerate(OCCLUSIONS)]


def height_bins() -> list[str]:
    """Names of the height bins: ``0-12`` ... ``160+``, the upper end not included."""
    return [f"{a}-{b}" for a, b in pairwise(HEIGHT_EDGES)] + [f"{HEIGHT_EDGES[-1]}+"]


def height_quantiles(frames: Sequence[Frame], shares: Sequence[int] = (5, 25, 50, 75, 95)) -> dict[int, float]:
    """Heights in pixels below which so many per cent of the persons lie; empty without persons."""
    heights = [float(h) for frame in frames for h in frame.annotations.height[frame.annotations.labels == PERSON]]
    return dict(zip(shares, map(float, np.percentile(heights, shares)), strict=True)) if heights else {}
