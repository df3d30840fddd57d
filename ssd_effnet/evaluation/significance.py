"""Significance of differences: jackknife over video blocks, and spread over seeds.

Frames of one video show the same people, so images are not independent: on KAIST's test set, intervals over images are
1.25 to 1.9 times too narrow. The jackknife therefore leaves out *blocks*, stretches of about 30 test frames (B. Efron
and C. Stein, "The jackknife estimate of variance", 1981). A figure is an array of *replicates* ``(1 + G,)``: its value
on all images, then with each of ``G`` blocks left out; an experiment is one row per seed.

    block = blocks([frame.name for frame in frames])
    a = np.stack([jackknife(matcher, block) for matcher in seeds_of_a])    # (seeds, 1 + G), in percent
    b = np.stack([jackknife(matcher, block) for matcher in seeds_of_b])
    found = compare(a, b)
    found.difference, found.low, found.high, found.p      # A - B with its 95 % interval over other images and seeds
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_kaist.errors import Failure
from ssd_effnet.evaluation.miss_rate import Matcher

STRETCH, SHORT_STRETCH, FEWEST_BLOCKS, FEWEST_VIDEOS = 30, 10, 20, 10
FEWEST_SEEDS = 3
CONFIDENCE, POWER = 0.95, 0.8
_VIDEO = re.compile(r"^(.*set\d\d/V\d\d\d)(?:/|$)")


class TooFewVideosError(Failure, ValueError):
    """Too few videos to use them as blocks."""


def blocks(names: Sequence[str], *, videos: bool = False) -> np.ndarray:
    """Block of each image, int64 ``(n,)``: the unit of independent evidence.

    Each ``setXX/VYYY`` is cut into stretches of about 30 frames; with fewer than 20 blocks in all, into stretches of
    about 10. An image without such a name is a block of its own.

    Args:
        names: of all images.
        videos: use whole videos as blocks.

    Raises:
        TooFewVideosError: ``videos`` with fewer than 10.
    """
    of_video: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        found = _VIDEO.match(name)
        of_video.setdefault(found.group(1) if found else f"{i} {name}", []).append(i)

    for of in of_video.values():
        of.sort(key=names.__getitem__)  # in time, whatever the order of their ids

    def cut(length: float) -> list[np.ndarray]:
        return [
            part for of in of_video.values() for part in np.array_split(np.array(of), max(1, round(len(of) / length)))
        ]

    parts = cut(math.inf if videos else STRETCH)
    if videos and len(parts) < FEWEST_VIDEOS:
        raise TooFewVideosError(f"{len(parts)} videos are too few to tell differences by; {FEWEST_VIDEOS} are needed")
    if not videos and len(parts) < FEWEST_BLOCKS:
        parts = cut(SHORT_STRETCH)
    block = np.empty(len(names), np.int64)
    for number, part in enumerate(sorted(parts, key=lambda part: int(part[0]))):
        block[part] = number
    return block


def replicates(
    reading: Callable[[np.ndarray], float | Sequence[float]], block: np.ndarray, images: np.ndarray
) -> np.ndarray:
    """A figure on all images, then with each block left out: float64 ``(1 + G,)``, or ``(1 + G, k)``.

    Args:
        reading: from image weights, float64 ``(n,)``, to the figure, or to ``k`` figures.
        block: int64 ``(n,)``, see :func:`blocks`.
        images: int64 ``(m,)``, images of the figure; blocks without any are skipped.
    """
    return np.array(
        [reading(np.ones(len(block)))] + [reading((block != left_out) * 1.0) for left_out in np.unique(block[images])]
    )


def jackknife(matcher: Matcher, block: np.ndarray, subset: str = "reasonable_all", rules: str = "matlab") -> np.ndarray:
    """Replicates of a miss rate in percent.

    Where the curve is zero at a reference point, the floor decides the geometric mean: replicates with a block left out
    are then NaN.
    """
    curve = matcher.curve(subset, rules)

    def reading(weight: np.ndarray) -> tuple[float, float]:
        mr, _, _, at_references = curve.read(weight)
        return 100 * mr, float(at_references.min())

    found: np.ndarray
    found, least = replicates(reading, block, curve.images).T
    if least.min() <= 0:
        found[1:] = math.nan
    return found


@dataclass(frozen=True)
class Comparison:
    """Comparison of experiments A and B in one figure.

    Attributes:
        a, b: means over the seeds.
        difference: A less B.
        low, high: 95 % interval of the difference, for other images and other seeds; NaN if unknown.
        p: two-sided, of no difference; NaN if unknown.
        seeds: of A and B.
        blocks: of images.
        freedom: degrees of freedom of Student's t.
        of_seeds: share of the variance that comes from the seeds; the rest comes from the images.
        detectable: smallest difference found with 80 % power.
        pairs: of all pairs of seeds, in how many A lies below B.
        readable: no figure is missing, and none reads zero.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    seeds: tuple[int, int]
    blocks: int
    freedom: float
    of_seeds: float
    detectable: float
    pairs: int
    readable: bool

    @property
    def enough_seeds(self) -> bool:
        return min(self.seeds) >= FEWEST_SEEDS

    def doubt(self, p: float | None = None) -> str:
        """Why there is no verdict; empty where A and B differ.

        Args:
            p: adjusted for other comparisons (:func:`holm`); None: the comparison's own.
        """
        if not self.readable:
            return "a seed has no figure, or reads zero somewhere"
        if not self.enough_seeds:
            return f"too few seeds, {FEWEST_SEEDS} per side are needed"
        if self.p > 1 - CONFIDENCE:
            return "other images or other seeds could turn it round"
        if p is not None and p > 1 - CONFIDENCE:
            return "sure if it were the only question, but among so many differences one as large comes by chance"
        return ""


def compare(a: np.ndarray, b: np.ndarray) -> Comparison:
    """Compare two experiments by replicates of one figure on the same blocks.

    The variance of the difference is the seeds' plus the images': the jackknife variance of the difference of means,
    less the part of single seeds (already in the spread over seeds). Student's t has the degrees of freedom of F. E.
    Satterthwaite, "An approximate distribution of estimates of variance components", 1946. One row per side covers
    other images only: these weights, not the recipe.

    Args:
        a, b: float64 ``(seeds, 1 + G)``, see :func:`replicates`.
    """
    from scipy.special import stdtr, stdtrit

    a, b = np.atleast_2d(a), np.atleast_2d(b)
    mean_a, mean_b = float(a[:, 0].mean()), float(b[:, 0].mean())
    d = mean_a - mean_b
    readable = bool(np.isfinite(a).all() and np.isfinite(b).all()) and a.shape[1] > 2
    variance, of_seeds, freedom = _variance(a, b) if readable else (math.nan,) * 3
    p = low = high = detectable = math.nan
    if variance == 0:
        low, high, p, detectable = d, d, 1.0, 0.0
    elif not math.isnan(variance):
        error, quantile = math.sqrt(variance), float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
        low, high = d - quantile * error, d + quantile * error
        p = float(2 * stdtr(freedom, -abs(d) / error))
        detectable = (quantile + float(stdtrit(freedom, POWER))) * error
    pairs = int((a[:, :1] < b[:, 0]).sum())
    sizes, blocks = (len(a), len(b)), a.shape[1] - 1
    return Comparison(mean_a, mean_b, d, low, high, p, sizes, blocks, freedom, of_seeds, detectable, pairs, readable)


def _variance(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Variance of the difference of means. Also the seeds' share of it, and Satterthwaite's degrees of freedom."""
    rest = image_variance(a, b)
    if len(a) == len(b) == 1:
        return rest, 0.0, a.shape[1] - 2
    if min(len(a), len(b)) == 1:
        return math.nan, math.nan, math.nan
    va, vb = (float(np.var(x[:, 0], ddof=1)) / len(x) for x in (a, b))
    total = va + vb + rest
    parts = ((va, len(a) - 1), (vb, len(b) - 1), (rest, a.shape[1] - 2))
    return total, (va + vb) / total if total else 0.0, _freedom(parts)


def _freedom(parts: Sequence[tuple[float, float]]) -> float:
    """Satterthwaite's degrees of freedom of a sum of variances. Each part is (variance, its degrees of freedom)."""
    below = sum(variance**2 / freedom for variance, freedom in parts)
    return sum(variance for variance, _ in parts) ** 2 / below if below else math.inf


def image_variance(a: np.ndarray, b: np.ndarray | None = None) -> float:
    """Variance from other images, of a mean over seeds or a difference."""
    sides = [a] if b is None else [a, b]
    means = [x.mean(axis=0) for x in sides]
    of_images = _jackknife_variance(means[0] - (means[1] if b is not None else 0))
    own = sum(
        _jackknife_variance(seed - mean) / (len(x) * (len(x) - 1))
        for x, mean in zip(sides, means, strict=True)
        for seed in (x if len(x) > 1 else ())
    )
    return max(of_images - own, 0.0)


def _jackknife_variance(x: np.ndarray) -> float:
    return float((len(x) - 2) * np.var(x[1:]))


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with 95 % interval. Other images; from two seeds on, other seeds."""

    value: float
    low: float
    high: float


def estimate(a: np.ndarray) -> Estimate:
    """Mean of one experiment's seeds, with its interval. ``a`` is float64 ``(seeds, 1 + G)``."""
    from scipy.special import stdtrit

    a = np.atleast_2d(a)
    value = float(a[:, 0].mean())
    if not np.isfinite(a).all() or a.shape[1] < 3:
        return Estimate(value, math.nan, math.nan)
    rest = image_variance(a)
    of_seeds = float(np.var(a[:, 0], ddof=1)) / len(a) if len(a) > 1 else 0.0
    parts = [(rest, a.shape[1] - 2.0)] + ([(of_seeds, len(a) - 1.0)] if len(a) > 1 else [])
    freedom = _freedom(parts)
    margin = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(rest + of_seeds)
    return Estimate(value, value - margin, value + margin)


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for each other (S. Holm, "A simple sequentially rejective multiple test procedure", 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [1.0] * len(p), 0.0
    for place, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = largest
    return adjusted


def seeds_to_tell(
    a: np.ndarray, b: np.ndarray, difference: float = 2.0, most: int = 999
) -> tuple[float, float, float] | None:
    """Seeds per side that detect a difference. The power is 80 %; ``inf`` beyond ``most``.

    Args:
        a, b: float64 ``(seeds, 1 + G)``, at least two rows in one of them.
        difference: to detect, in the unit of the figure.

    Returns:
        At the pooled spread of the seeds, and at the lower and upper 95 % limit of that; None where the images alone
        forbid it.
    """
    from scipy.special import chdtri, stdtrit

    rest, of_images = image_variance(a, b), a.shape[1] - 2
    freedom = len(a) + len(b) - 2

    def margin(variance: float, parts: Sequence[tuple[float, float]]) -> float:
        degrees = _freedom(parts)
        return float(stdtrit(degrees, (1 + CONFIDENCE) / 2) + stdtrit(degrees, POWER)) * math.sqrt(variance)

    if margin(rest, [(rest, of_images)]) > difference:
        return None
    pooled = sum(float(np.var(x[:, 0])) * len(x) for x in (a, b)) / freedom

    def needed(variance: float) -> float:
        for n in range(FEWEST_SEEDS, most + 1):
            of_side = variance / n
            if margin(2 * of_side + rest, [(of_side, n - 1), (of_side, n - 1), (rest, of_images)]) <= difference:
                return n
        return math.inf

    tail = (1 - CONFIDENCE) / 2
    limits = (pooled * freedom / float(chdtri(freedom, q)) for q in (tail, 1 - tail))
    return (needed(pooled), *map(needed, limits))  # type: ignore[return-value]
