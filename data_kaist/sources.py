"""Pictures, pairs and videos wherever people keep them: files, folders, patterns, KAIST's layout, two folders."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np

from data_kaist.errors import DataError, ImageError
from data_kaist.images import read_image
from data_kaist.loading import Side

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
VIDEOS = frozenset({".avi", ".mp4", ".mov", ".mkv", ".m4v", ".mpg", ".mpeg", ".webm", ".wmv", ".ts"})
_USUAL_FPS = 25.0


@dataclass(frozen=True)
class Still:
    """One picture, or one pair.

    Attributes:
        name: its path below what was given, with ``/``.
        visible: the visible file, None where there is none.
        lwir: the LWIR file, None where there is none.
    """

    name: str
    visible: Path | None
    lwir: Path | None

    @property
    def path(self) -> Path:
        """The file that gives the name."""
        path = self.visible or self.lwir
        assert path is not None
        return path

    def read(self, side: Side) -> np.ndarray:
        """uint8 ``(H, W, 3)`` RGB or LWIR ``(H, W)``.

        Raises:
            ImageError: there is none on that side, or it cannot be read.
        """
        path = self.visible if side == "visible" else self.lwir
        if path is None:
            raise ImageError(f"{self.path}: has no {side} image beside it")
        return read_image(path, colour=side == "visible")


@dataclass(frozen=True)
class Video:
    """One film; its frames are of one modality.

    Attributes:
        name: its path below what was given, with ``/``.
        path: the file.
    """

    name: str
    path: Path


Source: TypeAlias = Still | Video


def find_sources(
    inputs: Sequence[str | Path], *, side: Side = "visible", leave_out: Path | None = None
) -> list[Source]:
    """What is to be looked at, in the order of the inputs and by name within a folder.

    A file below a folder ``visible`` that has a partner of the same name below ``lwir`` beside it is one of a pair, as
    in KAIST's layout ``setXX/VYYY/{visible,lwir}/IZZZZZ.jpg``; the pair comes once.

    Args:
        inputs: images, videos, folders (with all below them), or patterns such as ``frames/**/*.jpg``.
        side: what a picture is that lies below neither ``visible`` nor ``lwir``.
        leave_out: a folder whose files do not count: the one that is written to.

    Raises:
        DataError: an input is not there, or holds nothing to look at.
    """
    found: dict[tuple[Path, ...], tuple[Source, Path]] = {}
    for given in inputs:
        base, files = _files(given)
        if leave_out is not None:
            files = [file for file in files if not file.resolve().is_relative_to(leave_out.resolve())]
        if not files:
            kinds = " ".join(sorted(IMAGES | VIDEOS))
            raise DataError(f"{given}: no image or video there ({kinds})")
        for file in files:
            source = _source(file, file.relative_to(base).as_posix(), side)
            paths = [source.path] if isinstance(source, Video) else [source.visible, source.lwir]
            key = tuple(path.resolve() for path in paths if path is not None)
            if key not in found or source.path == file:  # a pair bears the name of its visible file
                found[key] = source, file
    return _with_names_of_their_own(found.values())


def pair_folders(visible: Path, lwir: Path) -> list[Source]:
    """Pairs of two folders, made by equal relative names; a picture without partner is there with one side only.

    Raises:
        DataError: a folder is not there or without images, or no name is in both.
    """
    names: list[dict[str, Path]] = []
    for folder in (visible, lwir):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
        names.append({p.relative_to(folder).as_posix(): p for p in _walk(folder) if p.suffix.lower() in IMAGES})
        if not names[-1]:
            raise DataError(f"{folder}: no image there")
    if not names[0].keys() & names[1].keys():
        raise DataError(f"{visible} and {lwir}: no image of one has the name of one of the other")
    return [Still(name, names[0].get(name), names[1].get(name)) for name in sorted(names[0].keys() | names[1].keys())]


def frame_count(source: Source) -> int:
    """Frames: 1 of a still, what the file says of a video; 0 where it says nothing or cannot be opened."""
    if isinstance(source, Still):
        return 1
    film = _open(source)
    count = int(film.get(cv2.CAP_PROP_FRAME_COUNT))
    film.release()
    return max(count, 0)


def frames_a_second(video: Video) -> float:
    """As the file says; 25 where it says nothing credible."""
    film = _open(video)
    fps = float(film.get(cv2.CAP_PROP_FPS))
    film.release()
    return fps if 0.1 <= fps <= 240 else _USUAL_FPS


def read_video(video: Video, *, side: Side = "visible") -> Iterator[np.ndarray]:
    """The frames, one at a time: uint8 ``(H, W, 3)`` RGB, or ``(H, W)`` grey for ``lwir``.

    Raises:
        ImageError: it cannot be opened, or holds no frame that can be decoded.
    """
    film = _open(video)
    try:
        seen = 0
        while True:
            there, frame = film.read()
            if not there:
                break
            seen += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB if side == "visible" else cv2.COLOR_BGR2GRAY)
    finally:
        film.release()
    if not seen:
        raise ImageError(f"{video.path}: not a video that can be decoded")


def _open(video: Video) -> cv2.VideoCapture:
    # an absolute path: FFmpeg would take `a:b.avi` for the address of a protocol
    return cv2.VideoCapture(str(video.path.resolve()), cv2.CAP_FFMPEG)


def _files(given: str | Path) -> tuple[Path, list[Path]]:
    """The folder below which names begin, and the files that an input stands for."""
    path, text = Path(given), str(given)
    if path.is_dir():
        return path, list(_walk(path))
    if path.exists():
        return path.parent, [path]
    if not glob.has_magic(text):
        raise DataError(f"{given}: there is no such file or folder")
    fixed = path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))]
    files: list[Path] = []
    for match in map(Path, sorted(glob.glob(text, recursive=True))):  # noqa: PTH207 - takes absolute patterns too
        files += _walk(match) if match.is_dir() else [match] if _is_known(match) else []
    return Path(*fixed), list(dict.fromkeys(files))


def _walk(folder: Path) -> Iterator[Path]:
    """Images and videos below a folder, by name, hidden ones left out."""
    for inside, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in sorted(names) if _is_known(path := Path(inside, name)))


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in IMAGES | VIDEOS and not path.name.startswith(".")


def _source(file: Path, name: str, side: Side) -> Source:
    if file.suffix.lower() in VIDEOS:
        return Video(name, file)
    parts = file.absolute().parts[:-1]
    for own, other in (("visible", "lwir"), ("lwir", "visible")):
        if own in parts:
            place = len(parts) - 1 - parts[::-1].index(own)
            partner: Path | None = Path(*parts[:place], other, *parts[place + 1 :], file.name)
            partner = partner if partner is not None and partner.is_file() else None
            return Still(name, file, partner) if own == "visible" else Still(name, partner, file)
    return Still(name, file, None) if side == "visible" else Still(name, None, file)


def _with_names_of_their_own(found: Iterable[tuple[Source, Path]]) -> list[Source]:
    """The sources; names that several inputs have in common become paths below the folder that all files share."""
    pairs = list(found)
    if max(Counter(source.name for source, _ in pairs).values()) == 1:
        return [source for source, _ in pairs]
    common = Path(os.path.commonpath([file.absolute().parent for _, file in pairs]))
    return [replace(source, name=file.absolute().relative_to(common).as_posix()) for source, file in pairs]
