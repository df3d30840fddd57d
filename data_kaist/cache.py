"""Decoded frames kept in memory."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_kaist.errors import ImageError
from data_kaist.layouts import SIDES, Frame, Modality

Images = tuple[np.ndarray | None, np.ndarray | None]
_CHANNELS = {"visible": 3, "lwir": 1}
_KEPT_FREE = 2**30  # bytes reserved for training itself


class FrameCache:
    """Shared memory for all decoded frames, filled as frames are read.

    Forked loader workers share it, so that each frame is decoded once; spawned workers and processes of a run have one
    each. ``bytes`` is its size; an ImageError says that it is larger than the free memory.

    Args:
        frames: with the sizes that their annotations state.
        modality: images that are kept.
        processes: of the run on this machine.
    """

    def __init__(self, frames: Sequence[Frame], modality: Modality, processes: int = 1) -> None:
        self._sizes = [frame.annotations.size for frame in frames]
        self._sides = SIDES[modality]
        channels = sum(_CHANNELS[side] for side in self._sides)
        self._starts = np.cumsum([0, *(height * width * channels for height, width in self._sizes)])
        self.bytes = int(self._starts[-1]) * processes
        free = free_memory()
        if free is not None and self.bytes + _KEPT_FREE > free:
            raise ImageError(
                f"data.cache: memory would take {self.bytes / 2**30:.1f} GiB for {len(self._sizes):,} decoded frames, "
                f"but {free / 2**30:.1f} GiB are free and training needs some of it; set data.cache to none"
            )
        self._allocate()

    def __str__(self) -> str:
        return f"will take {self.bytes / 2**20:,.0f} MiB of memory"

    def _allocate(self) -> None:
        # anonymous shared memory: forked workers see it, no size limit of /dev/shm holds, and pages come when written
        self._pixels = np.frombuffer(mmap.mmap(-1, max(int(self._starts[-1]), 1)), np.uint8)
        self._filled = np.frombuffer(mmap.mmap(-1, max(len(self._sizes), 1)), np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_pixels", "_filled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()

    def get(self, index: int) -> Images | None:
        """Images of a frame, read-only, or None if not read yet."""
        if not self._filled[index]:
            return None
        views = self._views(index)
        for view in views:
            if view is not None:
                view.flags.writeable = False
        return views

    def put(self, index: int, images: Images) -> None:
        """Keep a copy of a frame's images, sized as annotated."""
        for view, image in zip(self._views(index), images, strict=True):
            if view is not None and image is not None:
                view[:] = image
        self._filled[index] = 1  # last: another worker may be looking

    def _views(self, index: int) -> Images:
        height, width = self._sizes[index]
        planes = self._pixels[self._starts[index] : self._starts[index + 1]].reshape(-1, height * width)
        visible = planes[:3].reshape(height, width, 3) if "visible" in self._sides else None
        return visible, planes[-1].reshape(height, width) if "lwir" in self._sides else None


def free_memory() -> int | None:
    """Free memory in bytes by system and container limits; None if unknown."""
    known = []
    system = Path("/proc/meminfo")
    if system.is_file():
        lines = dict(line.split(":", 1) for line in system.read_text(encoding="ascii").splitlines())
        if "MemAvailable" in lines:
            known.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
        known.append(int(text) - int(used.read_text(encoding="ascii")))
    return min(known) if known else None
