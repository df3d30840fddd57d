"""Draws boxes and captions; all pictures use it.

Pictures are uint8 ``(H, W, 3)`` RGB. Box colours are in :data:`KINDS`, from Okabe and Ito's palette for colour-blind
readers; ground truth is solid, detections are dashed.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from data_kaist.classes import PERSON
from data_kaist.errors import Doubt


@dataclass(frozen=True)
class MarkingKind:
    """Meaning, colour and line style of a kind of box."""

    legend: str
    colour: tuple[int, int, int]
    dashed: bool = False

    def words(self, of_class: str) -> str:
        """The legend with the name of a class."""
        return self.legend.replace(PERSON, of_class)


KINDS: dict[str, MarkingKind] = {
    "truth": MarkingKind("person", (0, 158, 115)),
    "missed": MarkingKind("person, missed", (230, 159, 0)),
    "ignored": MarkingKind("ignore region", (150, 150, 150)),
    "another": MarkingKind("another class", (204, 121, 167)),
    "hit": MarkingKind("detection, right", (86, 180, 233), dashed=True),
    "false_alarm": MarkingKind("detection, false alarm", (213, 94, 0), dashed=True),
    "dropped": MarkingKind("detection in an ignore region", (200, 200, 200), dashed=True),
    "detection": MarkingKind("detection", (86, 180, 233), dashed=True),
    "focus": MarkingKind("what the entry is about", (240, 228, 66), dashed=True),
}

_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, eq=False)
class Marking:
    """Boxes of one kind. ``boxes_xyxy (n, 4)`` in pixels of the picture, with a short text each or none."""

    kind: str
    boxes_xyxy: np.ndarray
    texts: Sequence[str] = ()


def draw(picture: np.ndarray, markings: Iterable[Marking], *, zoom: float = 1.0) -> np.ndarray:
    """A copy of the picture with boxes and texts on it. It is ``zoom`` times as large."""
    canvas = np.ascontiguousarray(as_rgb(picture))
    if zoom != 1:
        canvas = cv2.resize(canvas, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
    elif canvas is picture:
        canvas = canvas.copy()
    for marking in markings:
        kind = KINDS[marking.kind]
        texts = list(marking.texts) or [""] * len(marking.boxes_xyxy)
        for box, text in zip(np.asarray(marking.boxes_xyxy, float) * zoom, texts, strict=True):
            _rectangle(canvas, box, kind)
            if text:
                _write_text(canvas, text, (int(box[0]), int(box[1]) - 3), kind.colour)
    return canvas


def as_rgb(picture: np.ndarray) -> np.ndarray:
    """Grey ``(H, W)`` (LWIR) to ``(H, W, 3)``, values unchanged. RGB as it is."""
    return picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)


def beside(pictures: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Pictures of one height in a row."""
    bar = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (bar, as_rgb(picture))][1:], axis=1)


def with_caption(picture: np.ndarray, caption: str) -> np.ndarray:
    """The picture over a white strip that holds a caption."""
    strip = np.full((22, picture.shape[1], 3), 255, np.uint8)
    _say_what_is_not_drawn(caption.isascii())
    cv2.putText(strip, caption, (4, 14), _FONT, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate((picture, strip), axis=0)


def encoded(picture: np.ndarray, suffix: str = ".jpg", quality: int = 85) -> bytes:
    """Bytes of an RGB picture as a file of that kind. uint8 ``(H, W, 3)``; ValueError if it has no such form."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix.lower() in (".jpg", ".jpeg") else []
    try:
        done, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f"a picture of {picture.shape[1]}x{picture.shape[0]} pixels cannot be encoded as {suffix!r}")
    return bytes(data.tobytes())


def jpeg_address(picture: np.ndarray, quality: int = 78) -> str:
    """An RGB picture as a data URL for ``<img>``."""
    return f"data:image/jpeg;base64,{base64.b64encode(encoded(picture, quality=quality)).decode('ascii')}"


def save(picture: np.ndarray, path: Path) -> None:
    """Write an RGB picture; the suffix chooses the format. An OSError names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(encoded(picture, path.suffix))
    except ValueError as error:
        raise OSError(f"{path}: {error}") from error


def _rectangle(canvas: np.ndarray, box: np.ndarray, kind: MarkingKind) -> None:
    x1, y1, x2, y2 = box.round()
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])
    # a dark line below makes every colour readable on every background
    for colour, thickness in (((0, 0, 0), 4), (kind.colour, 2)):
        for a, b in pairwise(corners):
            length = float(np.hypot(*(b - a)))
            for s in np.arange(0, length, 9) if kind.dashed else (0,):
                ends = (
                    (a + (b - a) * (s / length), a + (b - a) * (min(s + 5, length) / length)) if kind.dashed else (a, b)
                )
                p, q = ((int(x), int(y)) for x, y in ends)
                cv2.line(canvas, p, q, colour, thickness)


def _write_text(canvas: np.ndarray, text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    (width, height), _ = cv2.getTextSize(text, _FONT, 0.4, 1)
    x = min(max(at[0], 0), max(canvas.shape[1] - width, 0))
    y = min(max(at[1], height + 2), canvas.shape[0] - 2)
    cv2.rectangle(canvas, (x - 1, y - height - 2), (x + width, y + 2), (0, 0, 0), -1)
    _say_what_is_not_drawn(text.isascii())
    cv2.putText(canvas, text, (x, y), _FONT, 0.4, colour, 1, cv2.LINE_AA)


@cache
def _say_what_is_not_drawn(whole: bool) -> None:
    """Warn once that OpenCV draws non-ASCII letters as ``??``."""
    if not whole:
        warnings.warn("names on pictures are written in ASCII; other letters show as ?", Doubt, stacklevel=4)
