"""Number of threads, and timing of calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


@contextmanager
def threads_of(number: int) -> Iterator[None]:
    """Torch with so many threads inside, as before outside; 0 changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bfloat16_pays() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware made for it (AMX); elsewhere it has been slower."""
    return bool(torch.cpu._is_amx_tile_supported())


def timed(call: Callable[[], object], runs: int, device: str = "cpu") -> list[float]:
    """Milliseconds of each of ``runs`` calls, after one that is not counted."""
    return in_turns({"call": call}, runs, device)["call"]


def in_turns(calls: Mapping[str, Callable[[], object]], runs: int, device: str = "cpu") -> dict[str, list[float]]:
    """Milliseconds of each call in each of ``runs`` rounds, by :func:`clock`; a first round is not counted."""
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
    """Processor time where one thread does all the work, so that what else the machine runs does not count; else time.

    A neighbour still takes cache and memory bandwidth, and so slows what it is measured beside.
    """
    one_thread = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if one_thread else time.perf_counter


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
