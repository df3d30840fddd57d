"""Benchmark results as rows: a stage against its reference."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import cv2
import torch
from rich.table import Table

from data_kaist.errors import Failure

REFERENCE, OWN = "reference", "own"


class DisagreementError(Failure, RuntimeError):
    """A stage and its reference give different results, so their ratio means nothing."""


@dataclass(frozen=True)
class Row:
    """One thing measured.

    Attributes:
        stage: ``data``, ``loss`` ...
        case: the measured case.
        reference_ms: median of the reference, milliseconds; None without one.
        own_ms: median of the project's code.
        own_fastest_ms: less affected by other processes.
        ratio: reference : own, the median of the ratios round by round; None without a reference.
        ratio_fastest: of the fastest rounds.
        goal: that the ratio should reach.
        agreement: what was found equal before anything was timed.
    """

    stage: str
    case: str
    own_ms: float
    own_fastest_ms: float
    reference_ms: float | None = None
    ratio: float | None = None
    ratio_fastest: float | None = None
    goal: float | None = None
    agreement: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is met by the median ratio; None without a goal."""
        return None if self.goal is None or self.ratio is None else self.ratio >= self.goal


def compared(
    stage: str,
    case: str,
    times: Mapping[str, Sequence[float]],
    *,
    own: str = OWN,
    reference: str | None = REFERENCE,
    per: int = 1,
    **more: Any,
) -> Row:
    """A row from rounds measured alternately.

    Args:
        times: of :func:`ssd_effnet.training.runtime.in_turns`.
        own, reference: which of them are compared; no reference: only times are stated.
        per: images (or other things) that a call handles: milliseconds are stated for one.
        more: further fields of the row.
    """
    mine = times[own]
    row: dict[str, Any] = {"own_ms": statistics.median(mine) / per, "own_fastest_ms": min(mine) / per}
    if reference is not None:
        plain = times[reference]
        row["reference_ms"] = statistics.median(plain) / per
        row["ratio"] = statistics.median(b / a for a, b in zip(mine, plain, strict=True))
        row["ratio_fastest"] = min(plain) / min(mine)
    return Row(stage, case, **row, **more)


def agree(what: str, own: torch.Tensor, reference: torch.Tensor, tolerance: float) -> str:
    """Describe the difference of two results.

    Raises:
        DisagreementError: further than ``tolerance``, or of different shapes.
    """
    if own.shape != reference.shape:
        raise DisagreementError(f"{what}: shapes {tuple(own.shape)} and {tuple(reference.shape)} differ")
    apart = float((own.double() - reference.double()).abs().max()) if own.numel() else 0.0
    if not apart <= tolerance:
        raise DisagreementError(f"{what}: differs from the reference by {apart:.3g}, more than {tolerance:.3g}")
    return f"{what} within {tolerance:.0e}" if tolerance else f"{what} equal"


def versions() -> dict[str, str]:
    """Versions of the measured packages."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__}
    return found | {name: version(name) for name in ("numpy", "pillow")}


def rows_table(rows: Sequence[Row], machine: str) -> Table:
    """The rows as a table."""
    table = Table(title="each stage against the plain way of doing it", caption=machine)
    for name in ("stage", "case"):
        table.add_column(name)
    for name in ("reference ms", "own ms", "fastest ms", "ratio", "of fastest", "goal", ""):
        table.add_column(name, justify="right")
    for r in rows:
        table.add_row(
            *(r.stage, r.case, _ms(r.reference_ms), _ms(r.own_ms), _ms(r.own_fastest_ms)),
            *(_factor(r.ratio), _factor(r.ratio_fastest), _factor(r.goal)),
            {None: "", True: "yes", False: "no"}[r.reached],
        )
    return table


def rows_as_dict(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Plain data, with ``reached``."""
    return [{**asdict(row), "reached": row.reached} for row in rows]


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def _factor(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"
