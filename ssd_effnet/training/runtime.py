"""Settings of a CPU for measurements (threads, freed memory), and timing of calls."""

from __future__ import annotations

import ctypes
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # names of mallopt(3)


def keep_freed_memory(on: bool = True) -> bool:
    """Let the allocator keep what is freed; returns whether that can be said here (glibc).

    By itself it gives maps of 32 MiB and more back to the system each time, and the next one is zeroed page by page
    again. Peak memory grows by what lies scattered: some tens of percent.
    """
    if platform.system() != "Linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
        if on
        else {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}  # where glibc's own rule ends up
    )
    return all(mallopt(name, value) for name, value in settings.items())


def release_freed_memory() -> None:
    """Give back now what was freed (glibc), or whoever frees next does it, at his expense."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


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


def clock(device: str = "cpu") -> Callable[[], float]:
    """Processor time where one thread does all the work, so that what else the machine runs does not count; else time.

    A neighbour still takes cache and memory bandwidth, and so slows what it is measured beside.
    """
    one_thread = device == "cpu" and torch.get_num_threads() == 1
    return time.process_time if one_thread else time.perf_counter


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
