"""Number of threads, and timing of calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


@contextmanager
def threads_of(number: int) -> Iterator[None]:
    """Context with this number of torch threads; 0: unchanged."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(call: Callable[[], object], runs: int, device: str = "cpu") -> list[float]:
    """Milliseconds of ``runs`` calls, after one warm-up call."""
    return in_turns({"call": call}, runs, device)["call"]


def in_turns(calls: Mapping[str, Callable[[], object]], runs: int, device: str = "cpu") -> dict[str, list[float]]:
    """Milliseconds of each call in ``runs`` rounds, after a warm-up round."""
    now = clock(device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs + 1):
        for name, call in calls.items():
            _wait(device)
            start = now()
            call()
            _wait(device)
            times[name].append(1000 * (now() - start))
    return {name: of[1:] for name, of in times.items()}


def clock(device: str = "cpu") -> Callable[[], float]:
    """Processor time with one thread (excludes other processes), else wall time.

    Other processes still take cache and memory bandwidth.
    """
    one_thread = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if one_thread else time.perf_counter


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
