"""Atomic writing; checked reading of text, JSON and numbers."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, TypeGuard

import numpy as np

from data_kaist.errors import DataError


def write_whole(path: Path | str, content: str | bytes, *, sync: bool = False) -> None:
    """Write a file atomically: readers see the old content or the new.

    Text becomes UTF-8. Missing folders are made; an interrupted or failed write leaves nothing behind, and its OSError
    names the file. ``sync`` waits for the disk, to survive a power cut.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            # names from the disk may have bytes that are no UTF-8; they are kept
            file.write(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
            if sync:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException as error:
        with suppress(OSError):  # the earlier error matters
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def text_of(path: Path, kind: type[DataError]) -> str:
    """The text of a UTF-8 file, with or without byte order mark. Raises ``kind`` if there is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind(f"{path}: is not a text file ({error.reason} at byte {error.start})") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file system can hold
        raise kind(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def json_of(text: str, where: str, kind: type[DataError]) -> Any:
    """Content of a JSON text. Raises ``kind`` for anything else."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if "\n" in text else ""
        raise kind(f"{where}{line}: is not valid JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise kind(f"{where}: is not valid JSON ({error})") from error


def finite(text: str, name: str, at: str, kind: type[DataError]) -> float:
    """Finite number in ASCII digits; refuses ``1_0`` and digits of other scripts.

    ``at`` (file and object or line) and ``name`` (what the number is) are for the error, of the given ``kind``.
    """
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise kind(f"{at} has {name} {text.strip()!r}, which is not a finite number")
    return value


def is_whole(value: Any) -> TypeGuard[int]:
    """A whole number, which JSON's true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def as_whole(value: Any) -> Any:
    """Integer of ``3``, ``3.0`` or ``"3"``, as programs write ids; else unchanged."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MOST_PIXELS:
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,15}\s*", value):
        return int(value)
    return value


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that a float can hold. False for booleans."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


MOST_PIXELS = 1e15
"""No pixel lies farther out; an area of two such lengths is finite in float32 too."""


def is_possible(x: float, y: float, w: float, h: float, dtype: type[np.floating] = np.float64) -> bool:
    """Whether a box has area in ``dtype`` and plausible coordinates."""
    if not all(abs(value) <= MOST_PIXELS for value in (x, y, w, h)):
        return False
    return bool(dtype(x + w) > dtype(x) and dtype(y + h) > dtype(y))


def has_no_area(xywh: Any) -> bool:
    """Whether these are four finite numbers of an empty box."""
    numbers = isinstance(xywh, list | tuple) and len(xywh) == 4 and all(map(is_finite, xywh))
    return numbers and min(xywh[2:]) == 0


def is_inside(name: str) -> bool:
    """Whether a file name is relative and has no ``..``."""
    path = PurePath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def walk(folder: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Files below a folder, sorted, each once; links are followed.

    Hidden folders, and those that cannot be read, are counted in ``left_out``.
    """
    seen: set[tuple[int, int]] = set()

    def unreadable(_: OSError) -> None:
        left_out["folders that cannot be read"] += 1

    for inside, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        status = Path(inside).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        left_out.update("hidden folders" for name in folders if name.startswith("."))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(inside, name) for name in sorted(names))
