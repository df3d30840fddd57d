"""Table of metrics: function, unit, direction, where shown.

A metric of your own is a function of :class:`~ssd_effnet.evaluation.scores.Scores` with :func:`metric` above it
(``docs/extending.md``). Numpy only; no model and no logger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ssd_effnet.evaluation.subsets import SUBSETS

if TYPE_CHECKING:
    from ssd_effnet.evaluation.scores import Scores

Place = Literal["results", "log", "line", "report"]
EVERYWHERE: tuple[Place, ...] = ("results", "log", "line", "report")


@dataclass(frozen=True)
class Metric:
    """A metric: function, unit, direction.

    Attributes:
        name: logged name without stage and part: ``MR`` of ``val/MR/reasonable_all``.
        function: from the scores of one class to a number, or one per part; NaN for none. None: logged by the training
            module.
        shown: ``results``: results.json; ``log``: metrics.csv, TensorBoard, a study's results.csv, and
            monitors (``trainer.monitor``, a schedule, a search); ``line``: the terminal's lines and tables;
            ``report``: a study's tables.
        parts: names of several numbers; a line shows the first, a table three.
        group: its key in results.json; empty: its name.
    """

    name: str
    function: Callable[[Scores], float | Mapping[str, float]] | None
    unit: str
    lower_is_better: bool
    shown: tuple[Place, ...] = EVERYWHERE
    parts: tuple[str, ...] = ()
    group: str = ""

    @property
    def mode(self) -> Literal["min", "max"]:
        """Direction: ``min`` or ``max``."""
        return "min" if self.lower_is_better else "max"

    @property
    def best(self) -> Callable[..., Any]:
        """:func:`min` or :func:`max`."""
        return min if self.lower_is_better else max

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of its numbers: ``MR/reasonable_all`` ..., or its own."""
        return tuple(f"{self.name}/{part}" for part in self.parts) or (self.name,)


METRICS: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    unit: str = "",
    lower_is_better: bool,
    shown: tuple[Place, ...] = EVERYWHERE,
    parts: tuple[str, ...] = (),
    group: str = "",
) -> Callable[[Callable[[Scores], Any]], Callable[[Scores], Any]]:
    """Decorator that registers a function as a :class:`Metric`.

    Raises:
        ValueError: a name that is taken or has a slash.
    """

    def add(function: Callable[[Scores], Any]) -> Callable[[Scores], Any]:
        before = METRICS[name].function if name in METRICS else function
        if "/" in name or any(getattr(before, k, "") != getattr(function, k) for k in ("__module__", "__qualname__")):
            raise ValueError(f"metric {name!r}: another one has this name, or it has a slash")
        METRICS[name] = Metric(name, function, unit, lower_is_better, shown, parts, group)
        return function

    return add


@metric("MR", unit="%", lower_is_better=True, parts=tuple(SUBSETS), group="matlab")
def miss_rates_matlab(scores: Scores) -> dict[str, float]:
    """Log-average miss rate of each subset by the KAIST devkit's rules."""
    return scores.percent("matlab")


@metric("MR_python", unit="%", lower_is_better=True, shown=("results",), parts=tuple(SUBSETS), group="python")
def miss_rates_python(scores: Scores) -> dict[str, float]:
    """Log-average miss rate of each subset. Most papers since 2021 computed it in this way."""
    return scores.percent("python")


@metric("recall", unit="%", lower_is_better=False, shown=("results",))
def recall(scores: Scores) -> float:
    """Recall of ``reasonable_all`` at the lowest score."""
    return 100 * scores.recall


@metric("people", lower_is_better=False, shown=("results",))
def counted_people(scores: Scores) -> int:
    """Number of counted objects in ``reasonable_all``."""
    return scores.people


for _name, _shown in (("AP", EVERYWHERE), ("AP50", EVERYWHERE), ("AP75", EVERYWHERE[:2])):
    METRICS[_name] = Metric(_name, lambda scores, name=_name: scores.ap[name], "%", False, _shown, group="ap")  # type: ignore[misc]
METRICS["loss_total"] = Metric("loss_total", None, "", lower_is_better=True, shown=("log",))


def metric_of(logged: str) -> Metric:
    """The metric of a logged name.

    >>> metric_of("val/AP50").lower_is_better, metric_of("val/MR/reasonable_all").mode
    (False, 'min')
    """
    return METRICS[logged.removeprefix("val/").partition("/")[0]]


def in_place(place: Place) -> Iterator[Metric]:
    """Metrics shown in a place."""
    return (metric for metric in METRICS.values() if place in metric.shown)


def single(place: Place) -> list[str]:
    """Names of metrics without parts shown in a place."""
    return [of.name for of in in_place(place) if not of.parts]


def monitors(classes: tuple[str, ...]) -> list[str]:
    """Metrics that can choose an epoch, learning rate or trial. With several classes, also those of each."""
    names = [f"val/{figure}" for of in in_place("log") for figure in of.figures]
    of_classes = classes if len(classes) > 1 else ()
    own = [f"val/{f}/{name}" for of in in_place("log") if of.function for f in of.figures for name in of_classes]
    return names + own


def figure_in(test: Mapping[str, Any], figure: str) -> float:
    """A figure in the ``test`` of results.json, for example ``MR/near`` or ``AP``. NaN for none."""
    of = metric_of(figure)
    value = test.get(of.group or of.name)
    if isinstance(value, Mapping):
        value = value.get(figure.partition("/")[2] or of.name)
    return math.nan if value is None else float(value)


def headline(test: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a results file in one line. MR, AP and plugins' metrics; NaN for none."""
    return {
        figure.replace("/reasonable_", " ").replace("/", " "): figure_in(test, figure)
        for of in in_place("line")
        for figure in of.figures[:3]
    }
