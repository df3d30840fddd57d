"""How sure a miss rate is, and whether one detector's is better than another's: a bootstrap over test images
(B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 15).

    evaluator = MissRateEvaluator(annotations)
    wide, narrow = [evaluator.match(d) for d in seeds_of_wide], [evaluator.match(d) for d in seeds_of_narrow]
    interval(wide).low, interval(wide).high            # 95 % of the resampled miss rates
    compare(wide, narrow).difference.value             # -0.0123: wide misses 1.23 points less
    compare(wide, narrow).p                            # 0.004

An experiment is a sequence of matchers, one a seed, all made by one evaluator; its miss rate is their mean. A resample
draws as many images as the subset has, with replacement, and every seed of every experiment is scored on the same draw.
The intervals therefore speak of other images, not of other seeds: for those see :func:`seed_margin`. Images count as
independent; frames of one video, in which the same person walks on, are less than that, so the truth is less sure.

Miss rates are in 0..1. The same seed draws the same images whatever is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssd_effnet.evaluation.miss_rate import Curve, Matcher, log_average
from ssd_effnet.evaluation.subsets import MATLAB, RULES, Rules, Subset

RESAMPLES = 2000
# two-sided 95 % points of Student's t with 1, 2, 3 ... degrees of freedom; with more than ten, that of ten
_STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Interval:
    """A number on the images as they are, and the 95 % percentile interval of it under resampling.

    Attributes:
        value: observed; NaN where no box is counted.
        low, high: the k-th least and the k-th greatest of n resampled numbers, k = (n + 1) / 40 rounded down, but at
            least 1; NaN if there is none.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two experiments, A and B, on one subset under one rule set.

    Attributes:
        a, b: miss rate of either.
        difference: A - B, resampled in pairs; below 0 A is better.
        p: two-sided, 2 (c + 1) / (n + 1) but at most 1, where c is the smaller of how many of n resampled differences
            are >= 0 and how many are <= 0. It is at most 0.05 exactly where the interval of the difference leaves out
            0 (from 39 resamples on). NaN if there is no resample.
        resamples: n. A resample in which a side has no counted box, and so no miss rate, is left out of all of it.
    """

    a: Interval
    b: Interval
    difference: Interval
    p: float
    resamples: int


def compare(
    a: Sequence[Matcher],
    b: Sequence[Matcher],
    subset: Subset | str = "reasonable_all",
    rules: Rules | str = MATLAB,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap of the difference in miss rate between two experiments.

    Args:
        a, b: an experiment's seeds each; their numbers may differ.

    Raises:
        ValueError: a side without a matcher, or matchers of different evaluators.
    """
    rates = resampled([a, b], subset, rules, resamples=resamples, seed=seed)
    rates = rates[:, ~np.isnan(rates).any(axis=0)]
    differences = rates[0] - rates[1]
    tail = min(np.count_nonzero(differences >= 0), np.count_nonzero(differences <= 0))
    n = len(differences)
    mr_a, mr_b = spread(a, subset, rules)[0], spread(b, subset, rules)[0]
    return Comparison(
        a=_percentile(mr_a, rates[0]),
        b=_percentile(mr_b, rates[1]),
        difference=_percentile(mr_a - mr_b, differences),
        p=min(1.0, 2 * (int(tail) + 1) / (n + 1)) if n else np.nan,
        resamples=n,
    )


def interval(
    matchers: Sequence[Matcher],
    subset: Subset | str = "reasonable_all",
    rules: Rules | str = MATLAB,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Miss rate of one experiment and its 95 % interval; resamples without a counted box are left out.

    Raises:
        ValueError: no matcher, or matchers of different evaluators.
    """
    (rates,) = resampled([matchers], subset, rules, resamples=resamples, seed=seed)
    return _percentile(spread(matchers, subset, rules)[0], rates[~np.isnan(rates)])


def spread(
    matchers: Sequence[Matcher], subset: Subset | str = "reasonable_all", rules: Rules | str = MATLAB
) -> tuple[float, float]:
    """Mean and sample standard deviation of the miss rate over seeds; the deviation of a single seed is NaN."""
    rates = [matcher.result(subset, rules).mr for matcher in matchers]
    return float(np.mean(rates)), float(np.std(rates, ddof=1)) if len(rates) > 1 else np.nan


def seed_margin(rates_a: Sequence[float], rates_b: Sequence[float]) -> float:
    """How far two experiments' means may lie apart by the chance of their seeds, 95 %: Student's t, equal variances.

    With three seeds a side that is 2.78 standard errors; twice, as with many seeds, would call one in nine differences
    sure where there is none.

    Args:
        rates_a, rates_b: a miss rate for each seed.

    Returns:
        In the unit of the rates; infinite where both have one seed, which says nothing of others.
    """
    freedom = len(rates_a) + len(rates_b) - 2
    if freedom < 1:
        return float("inf")
    squares = sum(float(np.var(rates)) * len(rates) for rates in (rates_a, rates_b))
    error = np.sqrt(squares / freedom * (1 / len(rates_a) + 1 / len(rates_b)))
    return float(_STUDENT_95[min(freedom, len(_STUDENT_95)) - 1] * error)


def resampled(
    experiments: Sequence[Sequence[Matcher]],
    subset: Subset | str = "reasonable_all",
    rules: Rules | str = MATLAB,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """Miss rate of each experiment in each resample.

    In a resample it is what :class:`.miss_rate.MissRateEvaluator` finds on a data set in which each
    image stands as often as it was drawn.

    Returns:
        float64 ``(experiments, resamples)`` in 0..1; NaN where a seed has no counted box.

    Raises:
        ValueError: an experiment without a matcher, or matchers of different evaluators.
    """
    rules = RULES[rules] if isinstance(rules, str) else rules
    if not all(experiments):
        raise ValueError("an experiment without detections of any seed cannot be resampled")
    truth = experiments[0][0].truth
    if any(matcher.truth is not truth for matchers in experiments for matcher in matchers):
        raise ValueError("only detections that one MissRateEvaluator matched can be resampled together")
    runs = [[_Run(matcher.curve(subset, rules), rules) for matcher in matchers] for matchers in experiments]
    images = runs[0][0].curve.images
    rates = np.full((len(experiments), resamples), np.nan)
    random = np.random.default_rng(seed)
    for i in range(resamples if len(images) else 0):
        times_drawn = np.bincount(images[random.integers(len(images), size=len(images))], minlength=truth.n_images)
        rates[:, i] = [np.mean([run.miss_rate(times_drawn) for run in seeds]) for seeds in runs]
    return rates


class _Run:
    """One curve, to be read under many draws.

    Nothing beyond the last reference matters, so only the head of the curve is drawn from, and more of it as soon as a
    draw does not reach that reference: a detector that says everything costs no more than a careful one.
    """

    def __init__(self, curve: Curve, rules: Rules) -> None:
        self.curve = curve
        self.rules = rules
        images = len(curve.images)
        if rules.wraps_round and images * rules.references[0] < 1:  # the curve's end may be asked for
            self._head = len(curve.image)
        else:
            false_positives = np.cumsum(~curve.true_positive)
            self._head = int(np.searchsorted(false_positives, images * rules.references[-1], side="right")) + 1

    def miss_rate(self, times_drawn: np.ndarray) -> float:
        """Miss rate where each image stands as often as ``times_drawn (n_images,)`` says."""
        curve, rules = self.curve, self.rules
        counted = int(curve.counted @ times_drawn)
        while True:
            right = np.repeat(curve.true_positive[: self._head], times_drawn[curve.image[: self._head]])
            mr, fppi, _, _ = log_average(right, ~right, len(curve.images), counted, rules)
            if self._head >= len(curve.image) or (len(fppi) and fppi[-1] > rules.references[-1]):
                return mr
            self._head += self._head // 4 + 1


def _percentile(value: float, numbers: np.ndarray) -> Interval:
    if not len(numbers):
        return Interval(value, np.nan, np.nan)
    ordered = np.sort(numbers)
    k = max((len(ordered) + 1) // 40, 1)
    return Interval(value, float(ordered[k - 1]), float(ordered[-k]))
