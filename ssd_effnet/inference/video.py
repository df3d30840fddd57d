"""Writes videos with an available OpenCV codec and verifies them by reading."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from data_kaist.errors import ImageError
from ssd_effnet.drawing import save
from ssd_effnet.inference.sources import Video, frame_count, read_video

CODECS = (("VP80", ".webm"), ("avc1", ".mp4"), ("mp4v", ".mp4"), ("MJPG", ".avi"))
"""Tried in this order: not every build of OpenCV can write every one, and browsers play the first two."""


class Film:
    """A video file, or a folder of numbered JPEGs where there is no codec.

    Args:
        path: of the file or folder.
        codec: four letters; None: a folder.
        fps: frames per second.
        size: (height, width) of the frames; another size is fitted into it.
    """

    def __init__(self, path: Path, codec: str | None, fps: float, size: tuple[int, int]) -> None:
        self.path = path
        self.size = size
        self.count = 0
        self.beside = path.with_name(f".part-{path.name}")
        self.writer: cv2.VideoWriter | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        if codec is not None:
            self.writer = _writer(self.beside, codec, fps, size)

    def add(self, picture: np.ndarray) -> None:
        """The next frame, uint8 ``(H, W, 3)`` RGB."""
        self.count += 1
        if self.writer is None:
            save(picture, self.path / f"{self.count:06d}.jpg")
            return
        if picture.shape[:2] != self.size:  # some videos change their size on the way
            picture = cv2.resize(picture, self.size[::-1])
        self.writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Verify the file and rename it.

        Raises:
            OSError: it cannot be read back.
        """
        if self.writer is None:
            return
        self.writer.release()
        written = _frames_in(self.beside)
        if written < self.count:
            raise OSError(
                f"{self.beside}: {self.count} frames were written, but {written} can be read; is the disk full?"
            )
        self.beside.replace(self.path)


def find_codec(size: tuple[int, int], fps: float) -> tuple[str, str] | None:
    """The first of :data:`CODECS` with which a video of that size can be written and read, with its suffix, or None."""
    with tempfile.TemporaryDirectory() as folder:
        for codec, suffix in CODECS:
            path = Path(folder, codec + suffix)
            writer = _writer(path, codec, fps, size)
            for _ in range(2):
                writer.write(np.zeros((*size, 3), np.uint8))
            writer.release()
            if path.is_file() and _frames_in(path) == 2:
                return codec, suffix
    return None


def _frames_in(path: Path) -> int:
    """Frame count stated by the file; 0 if the first frame cannot be read."""
    film = Video(path.name, path)
    try:
        next(read_video(film))
    except ImageError:
        return 0
    return frame_count(film)


def _writer(path: Path, codec: str, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    code = cv2.VideoWriter.fourcc(*codec)
    with _quiet():
        return cv2.VideoWriter(str(path.resolve()), cv2.CAP_FFMPEG, code, fps, size[::-1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress OpenCV's message about the VP8 tag, which bypasses its log."""
    try:
        kept = os.dup(2)
    except OSError:  # there is nowhere to print
        yield
        return
    sys.stderr.flush()
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
