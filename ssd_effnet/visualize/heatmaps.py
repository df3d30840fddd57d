"""Heat maps over pictures, with a labelled colour scale.

The colours are matplotlib's viridis: equal steps of the number look like equal steps, also to colour-blind readers and
in grey.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ssd_effnet.drawing import as_rgb

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SCALE = 0.42
_LINE = 17


def heat(
    values: np.ndarray, size: tuple[int, int], *, low: float | None = None, high: float | None = None
) -> np.ndarray:
    """A map as colours, without interpolation between its positions.

    Args:
        values: ``(h, w)`` numbers.
        size: (height, width) of the picture in pixels.
        low: value of the darkest colour; None: the smallest value.
        high: value of the brightest colour; None: the largest value.

    Returns:
        uint8 ``(H, W, 3)`` RGB.
    """
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    share = (values.astype(np.float64) - low) / (high - low) if high > low else np.zeros(values.shape)
    grey = np.clip(np.rint(share * 255), 0, 255).astype(np.uint8)
    coloured = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.resize(coloured, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT))


def over(picture: np.ndarray, colours: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Colours of :func:`heat` laid over a picture of the same size, which turns grey so that only heat has colour.

    Args:
        picture: uint8 ``(H, W, 3)`` or ``(H, W)``.
        colours: uint8 ``(H, W, 3)``.
        strength: share of the colours, 0..1.
    """
    grey = as_rgb(cv2.cvtColor(as_rgb(picture), cv2.COLOR_RGB2GRAY)).astype(np.float32)
    return np.rint(strength * colours + (1 - strength) * grey).astype(np.uint8)


def fitted(picture: np.ndarray, width: int) -> np.ndarray:
    """The picture at this width, its aspect ratio kept."""
    height = max(round(picture.shape[0] * width / picture.shape[1]), 1)
    how = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how))


def labelled(picture: np.ndarray, lines: Sequence[str], *, below: bool = False) -> np.ndarray:
    """The picture with lines of text above or below it, black on white; long lines are wrapped."""
    width = picture.shape[1]
    rows = [row for line in lines for row in _wrapped(line, width - 6)]
    strip = np.full((_LINE * len(rows) + 6, width, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        _write(strip, row, (3, _LINE * i + 14))
    parts = (as_rgb(picture), strip) if below else (strip, as_rgb(picture))
    return np.concatenate(parts, axis=0)


def scale_bar(width: int, low: str = "least of the map", high: str = "largest of the map") -> np.ndarray:
    """The colour scale of :func:`heat`."""
    strip = np.full((_LINE + 10, width, 3), 255, np.uint8)
    _write(strip, low, (3, 18))
    bar = heat(np.linspace(0, 1, 160)[None], (_LINE - 3, 160))
    x = min(_width(low) + 10, max(width - 160, 0))
    strip[6 : 6 + bar.shape[0], x : x + 160] = bar[:, : strip[:, x : x + 160].shape[1]]
    _write(strip, high, (x + 166, 18))
    return strip


def stacked(pictures: Sequence[np.ndarray], gap: int = 6) -> np.ndarray:
    """Pictures of any widths, one below the other, on white."""
    width = max(p.shape[1] for p in pictures)
    rows = []
    for picture in pictures:
        row = np.full((picture.shape[0] + gap, width, 3), 255, np.uint8)
        row[: picture.shape[0], : picture.shape[1]] = as_rgb(picture)
        rows.append(row)
    return np.concatenate(rows, axis=0)


def grid(rows: Sequence[Sequence[np.ndarray | None]], gap: int = 8) -> np.ndarray:
    """Pictures in rows and columns, white where there is none; a row is as high and a column as wide as it needs."""
    columns = max(len(row) for row in rows)
    cells = [[*row, *[None] * (columns - len(row))] for row in rows]
    heights = [max((p.shape[0] for p in row if p is not None), default=0) for row in cells]
    widths = [max((row[c].shape[1] for row in cells if row[c] is not None), default=0) for c in range(columns)]  # type: ignore[union-attr]
    canvas = np.full((sum(heights) + gap * len(heights), sum(widths) + gap * columns, 3), 255, np.uint8)
    y = 0
    for row, height in zip(cells, heights, strict=True):
        x = 0
        for picture, width in zip(row, widths, strict=True):
            if picture is not None:
                canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = as_rgb(picture)
            x += width + gap
        y += height + gap
    return canvas


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of whole words, at most ``width`` pixels wide unless one word is wider."""
    rows = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".lstrip()
        if rows[-1] and _width(longer) > width:
            rows.append(word)
        else:
            rows[-1] = longer
    return rows


def _width(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _SCALE, 1)[0][0])


def _write(canvas: np.ndarray, text: str, at: tuple[int, int]) -> None:
    ascii_text = text.encode("ascii", "replace").decode()  # OpenCV's font knows no other letters
    cv2.putText(canvas, ascii_text, at, _FONT, _SCALE, (0, 0, 0), 1, cv2.LINE_AA)
