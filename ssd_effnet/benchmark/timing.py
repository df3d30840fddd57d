"""Measuring: in turns, so that whatever else the machine does hits all that is compared alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from rich.table import Table

from ssd_effnet.failure import Failure
from ssd_effnet.machine import cores, processor
from ssd_effnet.runtime import release_freed_memory

REFERENCE, OWN = "reference", "own"


class DisagreementError(Failure, RuntimeError):
    """A stage does not compute what its reference computes: no ratio of such two is worth anything."""


@dataclass(frozen=True)
class Row:
    """One thing measured.

    Attributes:
        stage: ``data``, ``loss`` ...
        case: what was done.
        reference_ms: median of the plain way, milliseconds; None where there is none.
        own_ms: median of the project's way.
        own_fastest_ms: on a busy machine nearer to what it can do.
        ratio: reference : own, the median of the ratios round by round; None without a reference.
        ratio_fastest: of the fastest rounds.
        goal: that the ratio should reach.
        limit: the machine's own, in words; ``of_limit`` is the share of it that was reached, by fastest rounds.
        limit_goal: that ``of_limit`` should reach.
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
    limit: str = ""
    of_limit: float | None = None
    limit_goal: float | None = None
    agreement: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether every goal is met, ratios by their median; None without a goal."""
        met = []
        if self.goal is not None and self.ratio is not None:
            met.append(self.ratio >= self.goal)
        if self.limit_goal is not None and self.of_limit is not None:
            met.append(self.of_limit >= self.limit_goal)
        return all(met) if met else None


def timed(call: Callable[[], object], runs: int, device: str = "cpu") -> list[float]:
    """Milliseconds of each of ``runs`` calls, after one that is not counted."""
    return in_turns({OWN: call}, runs, device)[OWN]


def in_turns(
    calls: Mapping[str, Callable[[], object]], runs: int, device: str = "cpu", *, release: bool = False
) -> dict[str, list[float]]:
    """Milliseconds of each call in each of ``runs`` rounds; a first round is not counted.

    By :func:`clock`.

    Args:
        release: give freed memory back to the system before each call. Else whoever frees next does it: for
            milliseconds beside a way that leaves megabytes. Not for ways that live on memory that is kept.
    """
    now = clock(device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs + 1):
        for name, call in calls.items():
            _wait(device)
            if release:
                release_freed_memory()
            start = now()
            call()
            _wait(device)
            times[name].append(1000 * (now() - start))
    return {name: of[1:] for name, of in times.items()}


def compared(
    stage: str,
    case: str,
    times: Mapping[str, Sequence[float]],
    *,
    own: str = OWN,
    reference: str | None = REFERENCE,
    limit_ms: float | None = None,
    per: int = 1,
    **more: Any,
) -> Row:
    """A row out of rounds measured in turns.

    Args:
        times: of :func:`in_turns`.
        own, reference: which of them are compared; no reference: only times are stated.
        limit_ms: how long the machine needs at least for the same work.
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
    if limit_ms is not None:
        row["of_limit"] = limit_ms / min(mine)
    return Row(stage, case, **row, **more)


def agree(what: str, own: torch.Tensor, reference: torch.Tensor, tolerance: float) -> str:
    """State how far two results are apart.

    Raises:
        DisagreementError: further than ``tolerance``, or of different shapes.
    """
    if own.shape != reference.shape:
        raise DisagreementError(f"{what}: shapes {tuple(own.shape)} and {tuple(reference.shape)} differ")
    apart = float((own.double() - reference.double()).abs().max()) if own.numel() else 0.0
    if not apart <= tolerance:
        raise DisagreementError(f"{what}: differs from the reference by {apart:.3g}, more than {tolerance:.3g}")
    return f"{what} within {tolerance:.0e}" if tolerance else f"{what} equal"


def clock(device: str = "cpu") -> Callable[[], float]:
    """Processor time where one thread does all the work, so that what else the machine runs does not count; else time.

    A neighbour still takes cache and memory bandwidth, and so slows what it is measured beside.
    """
    one_thread = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if one_thread else time.perf_counter


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def describe_machine(device: str, threads: int, how: str) -> str:
    """One line: what figures were measured on, and ``how``."""
    if device != "cpu":
        where = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        where = f"{processor()}, {cores()} cores, {threads or torch.get_num_threads()} threads"
    return f"{where}; Python {platform.python_version()}, torch {torch.__version__}; {how}"


def versions() -> dict[str, str]:
    """Of the packages that do the work."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    return found | {name: version(name) for name in ("numpy", "pillow")} | {"opencv": _opencv()}


def _opencv() -> str:
    import cv2

    return str(cv2.__version__)


def rows_table(rows: Sequence[Row], machine: str) -> Table:
    """For people."""
    table = Table(title="each stage against the plain way of doing it, and against the machine", caption=machine)
    for name in ("stage", "case"):
        table.add_column(name)
    for name in ("reference ms", "own ms", "fastest ms", "ratio", "of fastest", "goal", "of the limit", "goal", ""):
        table.add_column(name, justify="right")
    for r in rows:
        share = "" if r.of_limit is None else f"{r.of_limit:.2f} of {r.limit}"
        table.add_row(
            *(r.stage, r.case, _ms(r.reference_ms), _ms(r.own_ms), _ms(r.own_fastest_ms)),
            *(_factor(r.ratio), _factor(r.ratio_fastest), _factor(r.goal)),
            *(share, "" if r.limit_goal is None else f"{r.limit_goal:.2f}"),
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
