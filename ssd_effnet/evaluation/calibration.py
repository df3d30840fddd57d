"""Calibration of scores: expected calibration error and temperature scaling.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, sections 2 and 4.2. A detection is right if it is a
true positive at an IoU of 0.5 (Küppers et al., "Multivariate Confidence Calibration for Object Detection", CVPRW 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_kaist.errors import DataError
from ssd_effnet.evaluation.miss_rate import Matcher, Outcome

BINS = 15
LIMITS = (0.05, 20.0)
"""Temperatures searched."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Detections by score, in bins that hold their upper ends. Float64 ``(bins,)`` each, of equal width.

    ``count`` is their number, ``score`` their mean score, ``precision`` the share that is right; NaN in empty bins.
    """

    count: np.ndarray
    score: np.ndarray
    precision: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error in 0..1: mean of \\|precision - score\\| over detections; NaN without any."""
        total = self.count.sum()
        return float(np.nansum(self.count * np.abs(self.precision - self.score)) / total) if total else np.nan


def reliability(scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> Reliability:
    """Reliability of scores in 0..1, ``(n,)``. ``right``, bool ``(n,)``: which are true."""
    place = np.clip(np.ceil(np.asarray(scores, np.float64) * bins).astype(int) - 1, 0, bins - 1)
    count, of_scores, of_right = (np.bincount(place, weights, bins) for weights in (None, scores, right))
    with np.errstate(invalid="ignore"):
        return Reliability(count.astype(np.float64), of_scores / count, of_right / count)


def judged(matcher: Matcher, subset: str, least: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores from ``least``, and whether they are true positives. Ignored detections of the subset are left out."""
    matches, scores = matcher.matches(subset), np.asarray(matcher.detections.scores, np.float64)
    kept = matches.in_subset & (matches.outcome != Outcome.DROPPED) & (scores >= least)
    return scores[kept], matches.outcome[kept] == Outcome.TRUE_POSITIVE


def tempered(scores: Any, temperature: float) -> Any:
    """Scores at a temperature, in the same order: ``sigmoid(logit(score) / temperature)``.

    For one class, or sigmoid scores, that is Guo's softmax of logits divided by the temperature. A softmax over several
    classes counts as this class against all others, since dividing all logits would change the order of detections.
    """
    if temperature == 1:
        return scores
    from scipy.special import expit, logit  # here, because it takes a while to import

    return expit(logit(scores) / temperature)


def fit_temperature(scores: np.ndarray, right: np.ndarray) -> float:
    """Temperature of least negative log-likelihood of ``right``, bool ``(n,)``, given scores ``(n,)``.

    Raises:
        DataError: no temperature is best, as where all are right or none is.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logit

    logits, sign = logit(np.clip(scores, 1e-9, 1 - 1e-9)), np.where(right, 1, -1)
    if 0 < np.sum(right) < len(right):
        found = minimize_scalar(
            lambda log: np.logaddexp(0, -sign * logits * np.exp(-log)).sum(),
            bounds=np.log(LIMITS),
            method="bounded",
            options={"xatol": 1e-8},
        )
        if 1.01 * LIMITS[0] < (temperature := float(np.exp(found.x))) < 0.99 * LIMITS[1]:
            return temperature
    raise DataError(f"no temperature fits: {int(np.sum(right)):,} of {len(right):,} detections are right")
