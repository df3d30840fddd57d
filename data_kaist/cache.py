"""Decoded frames kept in memory, or on a disk of this machine."""

from __future__ import annotations

import getpass
import hashlib
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from data_kaist.errors import ImageError
from data_kaist.images import AS_STORED
from data_kaist.layouts import SIDES, Frame, Modality

Images = tuple[np.ndarray | None, np.ndarray | None]
_CHANNELS = {"visible": 3, "lwir": 1}
_KEPT_FREE = 2**30  # bytes that training itself is going to want


class FrameCache:
    """One block of memory with room for every frame, filled as frames are read.

    A loader's workers that are forked share it, so that a frame is decoded once whoever reads it; where workers are
    spawned instead, each has a block of its own, and so has each process of a run.

    Args:
        frames: with the sizes that their annotations state.
        modality: images that are kept.
        processes: of the run on this machine.

    Attributes:
        bytes: what all of them take once every frame was read.

    Raises:
        ImageError: that is more than the machine has left.
    """

    def __init__(self, frames: Sequence[Frame], modality: Modality, processes: int = 1) -> None:
        self._sizes = [frame.annotations.size for frame in frames]
        self._sides = SIDES[modality]
        channels = sum(_CHANNELS[side] for side in self._sides)
        self._starts = np.cumsum([0, *(height * width * channels for height, width in self._sizes)])
        self.bytes = int(self._starts[-1]) * processes
        self._refuse_too_much()
        self._allocate()

    def __str__(self) -> str:
        return f"will take {self.bytes / 2**20:,.0f} MiB of memory"

    def _refuse_too_much(self) -> None:
        free = free_memory()
        if free is not None and self.bytes + _KEPT_FREE > free:
            raise ImageError(
                f"data.cache: memory would take {self.bytes / 2**30:.1f} GiB for {len(self._sizes):,} decoded frames, "
                f"but {free / 2**30:.1f} GiB are free and training needs some of it; set data.cache to disk or none"
            )

    def _allocate(self) -> None:
        # anonymous shared memory: forked workers see it, no size limit of /dev/shm holds, and pages come when written
        self._pixels = np.frombuffer(mmap.mmap(-1, max(int(self._starts[-1]), 1)), np.uint8)
        self._filled = np.frombuffer(mmap.mmap(-1, max(8 * len(self._sizes), 1)), np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_pixels", "_filled")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()

    def get(self, index: int) -> Images | None:
        """The images of a frame, read-only, or None where it was not read yet."""
        if not self._filled[index] or self._filled[index] != self._stamp(index):
            return None
        views = self._views(index)
        for view in views.values():
            view.flags.writeable = False
        return views.get("visible"), views.get("lwir")

    def put(self, index: int, images: Images) -> None:
        """Keep a copy of a frame's images, of the sizes that its annotations state."""
        given = {"visible": images[0], "lwir": images[1]}
        for side, view in self._views(index).items():
            image = given[side]
            assert image is not None
            view[:] = image
        self._filled[index] = self._stamp(index)  # last: another worker may be looking

    def _stamp(self, index: int) -> int:
        """What marks a frame as kept, never 0."""
        return 1

    def _views(self, index: int) -> dict[str, np.ndarray]:
        height, width = self._sizes[index]
        start, views = int(self._starts[index]), {}
        for side in self._sides:
            end = start + height * width * _CHANNELS[side]
            shape = (height, width, 3) if side == "visible" else (height, width)
            views[str(side)] = self._pixels[start:end].reshape(shape)
            start = end
        return views


class DiskCache(FrameCache):
    """The same in a file, which all processes of a machine share and the next run finds again.

    Its place follows from the image files' names and how they are read, and a frame is read anew where a file has
    another time than when it was kept. After a restart of the machine it begins anew: what had reached the disk by then
    is not known.

    Args:
        frames: as for :class:`FrameCache`.
        modality: images that are kept.
        folder: on a disk of this machine; processes on two machines must not share it. None: in the system's folder
            for temporary files.

    Attributes:
        bytes: what it takes, all at once when the first frame is kept.
        file: where it is.

    Raises:
        ImageError: the disk has no room for it.
    """

    def __init__(self, frames: Sequence[Frame], modality: Modality, folder: Path | None = None) -> None:
        paths = [{"visible": frame.visible, "lwir": frame.lwir} for frame in frames]
        self._files = [[str(of[side]) for side in SIDES[modality]] for of in paths]
        readings = {frame.reading for frame in frames} - {AS_STORED}  # without any, the name is as it always was
        sizes = [frame.annotations.size for frame in frames]
        told = repr((self._files, sizes, os.getcwd(), *map(repr, readings)))  # noqa: PTH109
        name = hashlib.sha256(told.encode()).hexdigest()[:16]
        folder = folder or Path(tempfile.gettempdir()) / f"ssd_effnet-{getpass.getuser()}"
        self.file = folder / f"{name}.frames"
        super().__init__(frames, modality)

    def __str__(self) -> str:
        where = f"{self.bytes / 2**20:,.0f} MiB in {self.file}"
        if not self._is_of_this_boot():
            return f"will take {where}"
        kept = np.count_nonzero(np.fromfile(self.file.with_suffix(".kept"), np.int64))
        return f"take {where}, which holds {kept:,} of {len(self._sizes):,} already"

    def _refuse_too_much(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        there = self.file.stat().st_blocks * 512 if self.file.is_file() else 0
        free = free_disk(self.file.parent)
        if self.bytes - there + _KEPT_FREE > free:
            raise ImageError(
                f"data.cache: disk would take {self.bytes / 2**30:.1f} GiB in {self.file.parent} for "
                f"{len(self._sizes):,} decoded frames, but {free / 2**30:.1f} GiB are free there; set "
                "data.cache_folder to a larger disk of this machine or data.cache to none"
            )

    def _allocate(self) -> None:
        """Nothing yet: whoever reads first takes the room, when it has been said how much that is."""

    def get(self, index: int) -> Images | None:
        self._open()
        return super().get(index)

    def put(self, index: int, images: Images) -> None:
        self._open()
        super().put(index, images)

    def _open(self) -> None:
        if hasattr(self, "_pixels"):
            return
        flags = self.file.with_suffix(".kept")
        with FileLock(self.file.with_suffix(".lock")):
            if not self._is_of_this_boot():
                flags.unlink(missing_ok=True)
                self.file.with_suffix(".boot").write_text(_boot(), encoding="ascii")
            try:
                # as a whole: a mapped page that finds no room later would end the process without a word
                self._filled = _reserved(flags, max(8 * len(self._sizes), 8), np.int64)
                self._pixels = _reserved(self.file, max(self.bytes, 1), np.uint8)
            except OSError as error:
                raise ImageError(f"{self.file}: data.cache: disk finds no room here: {error.strerror}") from error

    def _is_of_this_boot(self) -> bool:
        boot = self.file.with_suffix(".boot")
        return boot.is_file() and boot.read_text(encoding="ascii") == _boot() and self.file.is_file()

    def _stamp(self, index: int) -> int:
        stats = [Path(file).stat() for file in self._files[index]]
        return hash(tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)) or 1  # of numbers alone: always the same


def _boot() -> str:
    """The same until the machine is started anew."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.is_file() else ""


def _reserved(path: Path, size: int, kind: type[np.generic]) -> np.ndarray:
    """A file of that size, made where it is not there, as an array."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    return np.memmap(path, kind, "r+")


def free_disk(folder: Path) -> int:
    """Bytes that may still be written to the disk of a folder."""
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def free_memory() -> int | None:
    """Bytes that may still be taken, by the system's word and the container's; None where neither says."""
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
