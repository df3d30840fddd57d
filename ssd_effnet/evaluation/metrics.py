"""Miss rate and average precision; numpy only, no model and no logger is known here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """What a figure is measured in, and which way it gets better.

    Attributes:
        name: as it is logged, without stage and subset: ``MR`` of ``val/MR/reasonable_all``.
        unit: ``%``, or empty.
        lower_is_better: its direction.
    """

    name: str
    unit: str
    lower_is_better: bool

    @property
    def mode(self) -> Literal["min", "max"]:
        """The direction, as optimisers call it."""
        return "min" if self.lower_is_better else "max"

    @property
    def best(self) -> Callable[..., Any]:
        """:func:`min` or :func:`max`."""
        return min if self.lower_is_better else max


METRICS = {
    metric.name: metric
    for metric in (
        Metric("MR", "%", lower_is_better=True),
        Metric("AP", "%", lower_is_better=False),
        Metric("AP50", "%", lower_is_better=False),
        Metric("loss_total", "", lower_is_better=True),
    )
}
"""The metrics that may choose: an epoch, a learning rate, a trial."""


def metric_of(logged: str) -> Metric:
    """The metric of a logged name.

    >>> metric_of("val/AP50").lower_is_better, metric_of("val/MR/reasonable_all").mode
    (False, 'min')
    """
    return METRICS[logged.removeprefix("val/").partition("/")[0]]
