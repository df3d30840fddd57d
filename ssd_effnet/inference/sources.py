"""Finds images, pairs and videos in files, folders and KAIST's layout."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np

from data_kaist.errors import DataError, ImageError
from data_kaist.files import walk
from data_kaist.images import Reading, endings_of, kind_of, read_image
from data_kaist.layouts import Side

IMAGES, VIDEOS = endings_of("image"), endings_of("video")
_RAW = endings_of("other")  # in TIFF format, with a small picture only

USUAL_FPS = 25.0  # stands for an implausible frame rate
_ON_GRID = 0.25  # of a frame: how far a time may lie from a frame's own for the film to have a fixed rate
_MOST_LOST = 10_000  # frames in a row, after which a film has ended, whatever it states


@dataclass(frozen=True)
class Still:
    """An image or pair. Its name is the path below what was given, with ``/``."""

    name: str
    visible: Path | None
    lwir: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.visible, self.lwir) if path)

    @property
    def path(self) -> Path:
        """The file that gives the name."""
        return self.files[0]

    def read(self, side: Side, reading: Reading, note: np.ndarray | None = None) -> np.ndarray:
        """uint8 ``(H, W, 3)`` RGB or LWIR ``(H, W)``. Arguments as of :func:`data_kaist.images.read_image`."""
        path = self.visible if side == "visible" else self.lwir
        if path is None:
            raise ImageError(f"{self.path}: has no {side} image beside it")
        return read_image(path, colour=side == "visible", reading=reading, note=note)


@dataclass(frozen=True)
class Video:
    """One video. Its frames are of one modality; it is named like a :class:`Still`."""

    name: str
    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)


Source: TypeAlias = Still | Video


def find_sources(
    inputs: Sequence[str | Path],
    *,
    side: Side = "visible",
    leave_out: Path | None = None,
    others: Counter[str] | None = None,
) -> list[Source]:
    """Find images, pairs and videos. In the inputs' order, by name within folders.

    A file below a folder ``visible`` that has a partner of the same name below ``lwir`` beside it is one of a pair, as
    in KAIST's layout ``setXX/VYYY/{visible,lwir}/IZZZZZ.jpg``; the pair comes once. A DataError names an input that is
    missing, empty, an address or a camera.

    Args:
        inputs: images, videos, folders (with all below them, links too).
        side: modality of pictures below neither ``visible`` nor ``lwir``.
        leave_out: a folder to skip: the output.
        others: counts skipped files by ending.
    """
    others = Counter() if others is None else others
    found: dict[tuple[Path, ...], tuple[Source, Path]] = {}
    for given in inputs:
        here: Counter[str] = Counter()
        base, files = _files_below(given, here)
        others.update(here)
        if leave_out is not None:
            files = [file for file in files if not file.resolve().is_relative_to(leave_out.resolve())]
        if not files:
            kinds = " ".join(sorted(IMAGES | VIDEOS))
            besides = f"; there are {listed(here)}" if here else ""
            raise DataError(f"{given}: no image or video there ({kinds}){besides}")
        for file in files:
            source = _source(file, file.relative_to(base).as_posix(), side)
            key = tuple(path.resolve() for path in source.files)
            if key not in found or (source.path == file and found[key][1].resolve() != key[0]):
                found.pop(key, None)  # a pair has the name and place of its visible file
                found[key] = source, file
    return _with_names_of_their_own(found.values())


def listed(others: Counter[str]) -> str:
    """``3 .heic, 1 .gif``."""
    return ", ".join(f"{count:,} {ending}" for ending, count in others.most_common())


def file_of(given: str | Path) -> Path:
    """The file or folder that an input names; DataError for an address."""
    if (match := re.match(r"[A-Za-z][\w+.-]+:/+", str(given))) and not Path(given).exists():
        raise DataError(f"{given}: {match[0]} is the address of a stream or page; download it, and give the file")
    return Path(given)


def frame_count(source: Source) -> int:
    """Number of frames: 1 of an image, the file's of a video. 0 if unknown."""
    return 1 if isinstance(source, Still) else max(int(_stated(source, cv2.CAP_PROP_FRAME_COUNT)), 0)


def frames_a_second(video: Video) -> float:
    """Frame rate of the file; 0 if implausible. Matroska without a rate has its clock's, 1000."""
    fps = _stated(video, cv2.CAP_PROP_FPS)
    return fps if 0.1 <= fps < 1000 else 0


def _stated(video: Video, key: int) -> float:
    return float(_open(video).get(key))


def states_its_length(video: Video) -> bool:
    """Whether the format stores its number of frames, not only a duration."""
    with video.path.open("rb") as file:
        kind = kind_of(file.read(200))
    return kind is not None and kind.name in ("AVI", "MP4")


def read_video(video: Video, *, side: Side = "visible") -> Iterator[np.ndarray | None]:
    """The frames, one at a time. uint8 ``(H, W, 3)`` RGB, or ``(H, W)`` grey for ``lwir``.

    None for a damaged frame, so that the others keep their index; with a fixed rate also for lost frames. Damaged
    frames at the end are missing. An ImageError says that none can be decoded.
    """
    film = _open(video)
    stated, fps = int(film.get(cv2.CAP_PROP_FRAME_COUNT)), frames_a_second(video) or USUAL_FPS
    place, failed, start, fixed_rate = 0, 0, 0.0, True
    try:
        while failed < (min(max(stated - place, 1), _MOST_LOST) if stated > 0 else 100):
            there, frame = film.read()
            if not there:
                failed += 1
                continue
            when = film.get(cv2.CAP_PROP_POS_MSEC)
            start = when if not place and not failed else start
            by_time = (when - start) * fps / 1000
            lost = round(by_time) - place
            on_grid = fixed_rate and abs(by_time - round(by_time)) < _ON_GRID
            lost = lost if on_grid and failed < lost <= stated - place else failed
            if lost:  # not always with a failed read
                yield from [None] * lost
                place, failed = place + lost, 0
            else:
                fixed_rate = fixed_rate and abs(by_time - place) < _ON_GRID
            place += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB if side == "visible" else cv2.COLOR_BGR2GRAY)
    finally:
        film.release()
    if not place:
        raise ImageError(f"{video.path}: not a video that can be decoded")


def _open(video: Video) -> cv2.VideoCapture:
    # an absolute path: FFmpeg would take `a:b.avi` for the address of a protocol
    return cv2.VideoCapture(str(video.path.resolve()), cv2.CAP_FFMPEG)


def _files_below(given: str | Path, others: Counter[str]) -> tuple[Path, list[Path]]:
    """Folder below which names begin, and the files of an input."""
    path, text = Path(given), str(given)
    if path.is_dir():
        return path, list(_known(walk(path, others), others))
    if path.is_char_device() or (text.isdecimal() and not path.exists()):
        raise DataError(f"{given}: would be a camera, and only files are read; record a film and give that")
    if path.exists():
        return path.parent, [path]
    raise DataError(f"{file_of(given)}: there is no such file or folder")


def _known(files: Iterable[Path], others: Counter[str]) -> Iterator[Path]:
    """Files that are images or videos, by ending or by content. The others are counted."""
    for path in files:
        ending = path.suffix.lower()
        if path.name.startswith("."):
            others.update(["hidden files"] if ending in IMAGES | VIDEOS else [])
        elif ending in IMAGES | VIDEOS or (ending not in _RAW and _content(path) in ("image", "video")):
            yield path
        else:
            others[ending or "without ending"] += 1


def _content(path: Path) -> str | None:
    """``image``, ``video`` or ``other`` by the first bytes; None if unknown."""
    if path.is_file():  # a pipe would block
        with suppress(OSError), path.open("rb") as file:
            kind = kind_of(file.read(200))
            return kind and kind.use
    return None


def _is_film(path: Path) -> bool:
    """By its content, or by its ending where that says nothing."""
    content = _content(path)
    return content == "video" or (content != "image" and path.suffix.lower() in VIDEOS)


def _source(file: Path, name: str, side: Side) -> Source:
    if _is_film(file):
        return Video(name, file)
    parts = file.absolute().parts[:-1]
    own, partner = side, None
    if (place := max((i for i, part in enumerate(parts) if part in ("visible", "lwir")), default=-1)) >= 0:
        own, other = ("visible", "lwir") if parts[place] == "visible" else ("lwir", "visible")
        path = Path(*parts[:place], other, *parts[place + 1 :], file.name)
        partner = path if path.is_file() else None
    return Still(name, file, partner) if own == "visible" else Still(name, partner, file)


def _with_names_of_their_own(found: Iterable[tuple[Source, Path]]) -> list[Source]:
    """The sources, each with a name of its own. If two share one, all become paths below the files' common folder."""
    pairs = list(found)
    if max(Counter(source.name for source, _ in pairs).values()) == 1:
        return [source for source, _ in pairs]
    common = Path(os.path.commonpath([file.absolute().parent for _, file in pairs]))
    return [replace(source, name=file.absolute().relative_to(common).as_posix()) for source, file in pairs]
