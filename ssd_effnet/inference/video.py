"""Writes annotated copies of videos and verifies them by reading."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from data_kaist.errors import ImageError
from ssd_effnet.drawing import save
from ssd_effnet.inference.sources import Video, frame_count, frames_a_second, read_video

CODEC, SUFFIX = "VP80", ".webm"
"""Browsers play it, and OpenCV's wheels can write it."""


class AnnotatedVideos:
    """Annotated copies below a folder: ``NAME.webm``, or a folder of JPEGs where OpenCV cannot write that.

    One is open at a time, under a name of its own until it has been read back.

    Args:
        out: the folder.
        echo: called where frames are written instead of a video.
    """

    def __init__(self, out: Path, echo: Callable[[str], None]) -> None:
        self.out, self.echo = out, echo
        self.source: Video | None = None
        self.writer: cv2.VideoWriter | None = None
        self.path = self.beside = out
        self.last, self.size, self.count = np.zeros((0, 0, 3), np.uint8), (0, 0), 0
        self.taken: set[Path] = set()

    def add(self, source: Video, picture: np.ndarray, place: int) -> None:
        """The picture of a video's frame, uint8 ``(H, W, 3)`` RGB, and its place from 0.

        Lost frames before it repeat the previous picture, or the first.
        """
        if source is not self.source:
            self.close()
            self._open(source, picture)
        for shown in [self.last] * (place - self.count) + [picture]:
            self._write(shown)
        self.last = picture

    def _open(self, source: Video, picture: np.ndarray) -> None:
        self.source, self.last, self.count = source, picture, 0
        path = self.out / Path(source.name).with_suffix(SUFFIX)
        self.path = path.with_name(Path(source.name).name + SUFFIX) if path in self.taken else path  # a.avi and a.mov
        self.taken.add(self.path)
        self.beside = self.path.with_name(f".part-{self.path.name}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.size, fps = (picture.shape[1], picture.shape[0]), frames_a_second(source)
        with _quiet():
            code = cv2.VideoWriter.fourcc(*CODEC)
            writer = cv2.VideoWriter(str(self.beside.resolve()), cv2.CAP_FFMPEG, code, fps, self.size)
        self.writer = writer if writer.isOpened() else None
        if self.writer is None:
            self.echo(f"{source.path}: OpenCV can write no video here; its frames are written as images instead")

    def _write(self, picture: np.ndarray) -> None:
        self.count += 1
        if self.writer is None:
            save(picture, self.path.with_suffix("") / f"{self.count:06d}.jpg")
            return
        if picture.shape[1::-1] != self.size:  # some videos change their size on the way
            picture = cv2.resize(picture, self.size)
        self.writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Verify the open file and rename it.

        Raises:
            OSError: it cannot be read back.
        """
        writer, self.writer, self.source = self.writer, None, None
        if writer is None:
            return
        writer.release()
        film, written = Video(self.beside.name, self.beside), 0
        try:
            next(read_video(film))
            written = frame_count(film)
        except ImageError:
            pass
        if written < self.count:
            raise OSError(
                f"{self.beside}: {self.count} frames were written, but {written} can be read; is the disk full?"
            )
        self.beside.replace(self.path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress OpenCV's message about the VP8 tag, which bypasses its log."""
    try:
        kept = os.dup(2)
    except OSError:  # no stderr
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
