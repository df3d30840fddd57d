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


def in_turns(calls: Mapping[str, Callable[[], object]], runs: int, device: str = "cpu") -> dict[str, list[float]]:
    """Milliseconds of each call in ``runs`` rounds, after a warm-up round.

    On a CPU with one thread it is processor time, without that of other processes, which still take cache and memory
    bandwidth.
    """
    now = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs + 1):
        for name, call in calls.items():
            start = now()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            times[name].append(1000 * (now() - start))
    return {name: of[1:] for name, of in times.items()}
