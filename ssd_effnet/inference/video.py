"""Writes annotated copies of videos and verifies them by reading."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from ssd_effnet.inference.sources import USUAL_FPS, Video, frame_count, frames_a_second

CODEC, SUFFIX = "VP80", ".webm"
"""Browsers play it, and OpenCV's wheels can write it."""


class AnnotatedVideos:
    """Annotated copies below a folder, ``NAME.webm``.

    One is open at a time, under a name of its own until it has been read back.
    """

    def __init__(self, out: Path, echo: Callable[[str], None] = print) -> None:
        self.out, self.echo = out, echo
        self.source: Video | None = None
        self.writer: cv2.VideoWriter | None = None
        self.path = self.beside = out
        self.last, self.size, self.count = np.zeros((0, 0, 3), np.uint8), (0, 0), 0

    def add(self, source: Video, picture: np.ndarray, place: int) -> None:
        """Write a frame's picture, uint8 ``(H, W, 3)`` RGB. ``place`` counts from 0.

        Lost frames before it repeat the previous picture, or the first.
        """
        if source is not self.source:
            self.close()
            self._open(source, picture)
        for shown in [self.last] * (place - self.count) + [picture]:
            if shown.shape[1::-1] != self.size:  # some videos change their size on the way
                shown = cv2.resize(shown, self.size)
            assert self.writer is not None
            self.writer.write(cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
            self.count += 1
        self.last = picture

    def _open(self, source: Video, picture: np.ndarray) -> None:
        self.path = self.out / (source.name + SUFFIX)
        self.beside = self.path.with_name(f".part-{self.path.name}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.size = picture.shape[1], picture.shape[0]
        if not (rate := frames_a_second(source)):
            self.echo(f"{source.path}: states no plausible frame rate, so its annotated copy plays at {USUAL_FPS:g}/s")
        with _quiet():
            code, fps = cv2.VideoWriter.fourcc(*CODEC), rate or USUAL_FPS
            writer = cv2.VideoWriter(str(self.beside.resolve()), cv2.CAP_FFMPEG, code, fps, self.size)
        if not writer.isOpened():
            raise OSError(f"{self.path}: OpenCV can write no video here; --no-pictures writes the detections alone")
        self.source, self.writer, self.last, self.count = source, writer, picture, 0

    def close(self) -> None:
        """Verify the open file and rename it."""
        writer, self.writer, self.source = self.writer, None, None
        if writer is None:
            return
        writer.release()
        if (written := frame_count(Video(self.beside.name, self.beside))) < self.count:
            raise OSError(f"{self.beside}: {self.count} frames were written, {written} can be read; is the disk full?")
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
