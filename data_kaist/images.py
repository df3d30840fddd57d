"""Reads image files: depth, orientation and size are checked."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from data_kaist.errors import ImageError

MAX_PIXELS = 100_000_000
"""Images of more pixels, 300 MB decoded, are refused before they are decoded."""

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")

Orientation = Literal["never", "ignore", "follow"]

_ORIENTATION_TAG = 0x0112
_TURN_BACK = {6: 8, 8: 6}  # the others undo themselves

NOTE = np.dtype(
    [(name, np.uint8) for name in ("read", "tag", "turned", "deep_visible", "deep_lwir", "shallow")]
    + [("low", np.float64), ("high", np.float64), ("below", np.float32), ("above", np.float32)]
)
"""What was met in a frame's files: an orientation tag, values of more than 8 bits, shares that a range clips."""


@dataclass(frozen=True)
class Reading:
    """Settings for decoding image files; the defaults are KAIST's.

    Attributes:
        lwir_range: low and high: LWIR values of more than 8 bits become 0..255 between them, linearly; None: their
            high byte.
        orientation: of a file's tag. ``follow``: turned upright; ``ignore``: as stored, unless only upright it has the
            expected size; ``never``: tag not read.
    """

    lwir_range: tuple[float, float] | None = None
    orientation: Orientation = "never"


AS_STORED = Reading()


def read_image(
    path: Path,
    *,
    colour: bool,
    reading: Reading = AS_STORED,
    size: tuple[int, int] | None = None,
    note: np.ndarray | None = None,
) -> np.ndarray:
    """Decode an image file. uint8 ``(H, W, 3)`` RGB, or ``(H, W)`` without ``colour``.

    The content decides the type. The header is read first, and no more than :data:`MAX_PIXELS` are decoded: a few bytes
    may claim any size. Data after the image's end (the video of a "motion photo") are not read. An ImageError names a
    file that is missing, truncated, too large or no image, or whose values need a range.

    Args:
        path: of the file.
        colour: RGB, else one channel.
        reading: of orientation tags and of more than 8 bits.
        size: expected (height, width), if known.
        note: one row of :data:`NOTE`, filled in.
    """
    image, header = _decoded(path, colour)
    note = np.zeros(1, NOTE) if note is None else note
    note["read"], note["deep_visible"] = 1, note["deep_visible"] | (colour and header.bits > 8)  # LWIR leaves it
    if not colour:
        image = to_8_bits(image, str(path), reading, note)
    if header.tag > 1 and reading.orientation != "never":
        image = _as_wanted(image, header, reading, size, note)
    return np.asarray(image)


def lwir_values(path: Path) -> np.ndarray:
    """Stored values ``(H, W)`` of an LWIR file; errors as :func:`read_image`."""
    return _decoded(path, colour=False)[0]


def _decoded(path: Path, colour: bool) -> tuple[np.ndarray, _Header]:
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except (OSError, ValueError) as error:  # ValueError: a name that no file system can hold
        raise ImageError(f"{path}: cannot read the image ({getattr(error, 'strerror', None) or error})") from error
    if not len(data):
        raise ImageError(f"{path}: the file is empty")
    header = _header(data)
    if header is None:
        raise _undecodable(path, data)
    height, width = header.size
    if height * width > MAX_PIXELS:
        raise ImageError(f"{path}: {width}x{height} pixels are more than the {MAX_PIXELS:,} that are read")
    if colour and header.bits > 16:
        raise ImageError(f"{path}: has {header.bits} bits per value; a visible image has 8 or 16")
    flag = cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_GRAYSCALE
    if header.bits > 8 and not colour:
        flag |= cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(data, flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None or image.shape[:2] != header.size:
        raise _undecodable(path, data)
    return np.asarray(image), header


def _undecodable(path: Path, data: np.ndarray) -> ImageError:
    kind = kind_of(data[:200].tobytes())
    if kind and kind.use == "image":
        return ImageError(f"{path}: the image is truncated or damaged ({kind.name}, {len(data):,} bytes)")
    return ImageError(f"{path}: not an image that can be decoded{f': it is {kind.name}' if kind else ''}")


def to_8_bits(image: np.ndarray, name: str, reading: Reading = AS_STORED, note: np.ndarray | None = None) -> np.ndarray:
    """LWIR values of any type as uint8 ``(H, W)``. Raises ImageError for values that need a range and have none."""
    note = np.zeros(1, NOTE) if note is None else note
    note["read"] = 1
    if image.dtype == np.uint8:
        note["shallow"] = reading.lwir_range is not None
        return image
    numbers = image[np.isfinite(image)] if image.dtype.kind == "f" else image
    if not numbers.size:
        raise ImageError(f"{name}: holds no finite value")
    low, high = float(numbers.min()), float(numbers.max())
    note["deep_lwir"], note["low"], note["high"] = 1, low, high
    if reading.lwir_range is None:
        if image.dtype not in (np.uint16, np.int16) or low < 0:
            raise ImageError(
                f"{name}: holds {image.dtype} values from {low:g} to {high:g}; data.lwir_range: [low, high] says which "
                "become 0 and 255"
            )
        return (image >> 8).astype(np.uint8)
    black, white = reading.lwir_range
    note["below"], note["above"] = np.mean(~(image >= black)), np.mean(image > white)  # what is NaN becomes 0, too
    scaled = (image.astype(np.float32) - np.float32(black)) * np.float32(255 / (white - black))
    return np.asarray(np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)), np.uint8)


def doubts(notes: Iterable[tuple[Sequence[object], np.ndarray]], reading: Reading) -> dict[str, str]:
    """Sentences on images that were read, by kind. From their files, visible before LWIR, and :data:`NOTE` rows."""
    seen = [(files, row) for files, row in notes if row["read"].item()]
    said: dict[str, str] = {}

    def those(field: str) -> list[tuple[Sequence[object], np.ndarray]]:
        return [(files, row) for files, row in seen if row[field].item()]

    if deep := those("deep_visible"):
        said["visible depth"] = (
            f"{len(deep):,} of {len(seen):,} visible images have 16 bits, the first {deep[0][0][0]}, and only the high "
            "byte is used"
        )
    deep = those("deep_lwir")
    if deep and reading.lwir_range is None:
        low, high = (int(f(row[k].item() for _, row in deep)) for f, k in ((min, "low"), (max, "high")))
        said["depth"] = (
            f"{len(deep):,} of {len(seen):,} LWIR images have 16 bits, the first {deep[0][0][-1]}, and only the high "
            f"byte is used: their values {low} to {high} become {low >> 8} to {high >> 8} of 0..255; data.lwir_range: "
            "[low, high] makes 0..255 of a range of values"
        )
    elif deep:
        black, white = reading.lwir_range or (0, 0)
        below, above = (100 * float(np.mean([row[k].item() for _, row in deep])) for k in ("below", "above"))
        said["range"] = (
            f"data.lwir_range {black:g} to {white:g} becomes 0 to 255 in {len(deep):,} LWIR images: {below:.2f} % of "
            f"their pixels lie below it and {above:.2f} % above, and are clipped"
        )
    if shallow := those("shallow"):
        said["depth"] = (
            f"{len(shallow):,} of {len(seen):,} LWIR images have 8 bits, the first {shallow[0][0][-1]}, and stay as "
            "they are: data.lwir_range is for values of more bits"
        )
    if tagged := those("tag"):
        turned, where = len(those("turned")), " or ".join(map(str, tagged[0][0]))
        said["orientation"] = (
            f"{len(tagged):,} of {len(seen):,} images have an orientation tag, the first {where}: "
            f"{turned:,} are turned upright, {len(tagged) - turned:,} stay as they are stored "
            f"(data.orientation: {reading.orientation}, where the stated size leaves it open)"
        )
    return said


class _Header(NamedTuple):
    """Header of an image file: size (height, width), bits per value and orientation tag."""

    size: tuple[int, int]
    bits: int
    tag: int
    upright: bool


def _header(data: np.ndarray) -> _Header | None:
    """Header of an image file; None if it cannot be parsed."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit warns first and cannot be above ours
    try:
        with Image.open(io.BytesIO(data.tobytes()), formats=_FORMATS) as image:
            width, height = image.size
            bits, tag, tiff = 8, 1, getattr(image, "tag_v2", None)
            if tiff is not None:  # OpenCV turns a TIFF upright, and Pillow states the size of that
                bits, tag = max(tiff.get(258, (1,))), tiff.get(_ORIENTATION_TAG, 1)
            elif image.format == "PNG":
                bits = int(data[24])
            elif image.mode.startswith("I"):
                bits = 16
            if tiff is None and "exif" in image.info:
                tag = image.getexif().get(_ORIENTATION_TAG, 1)
            tag = tag if tag in range(2, 9) else 1
            if image.format == "PNG":
                image.verify()  # OpenCV allocates as much memory as a chunk states, up to 4 GiB
    except Exception:  # a broken header may raise any error
        return None
    return _Header((height, width), bits, tag, tiff is not None)


def _as_wanted(
    image: np.ndarray, header: _Header, reading: Reading, size: tuple[int, int] | None, note: np.ndarray
) -> np.ndarray:
    """The image as stored or upright, by size, else by :attr:`Reading.orientation`."""
    other = _turned(image, _TURN_BACK.get(header.tag, header.tag) if header.upright else header.tag)
    stored, upright = (other, image) if header.upright else (image, other)
    fits = [size in (None, form.shape[:2]) for form in (stored, upright)]
    turn = reading.orientation == "follow" if fits[0] == fits[1] else fits[1]
    note["tag"], note["turned"] = header.tag, turn
    return np.ascontiguousarray(upright if turn else stored)


def _turned(image: np.ndarray, tag: int) -> np.ndarray:
    """Apply an EXIF orientation tag, 2 to 8."""
    if tag >= 5:
        image = image.swapaxes(0, 1)
    if tag in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if tag in (2, 3, 6, 7) else image


class FileKind(NamedTuple):
    """A kind of file: its use, first bytes (a pattern) and endings."""

    name: str
    use: Literal["image", "video", "other"]
    start: bytes
    endings: tuple[str, ...] = ()


_RAW = (".dng", ".nef", ".nrw", ".cr2", ".arw", ".sr2", ".orf", ".rw2", ".pef", ".srw", ".3fr", ".iiq")

FILE_KINDS = (
    FileKind("JPEG", "image", rb"\xff\xd8\xff", (".jpg", ".jpeg")),
    FileKind("PNG", "image", rb"\x89PNG\r\n\x1a\n", (".png",)),
    FileKind("WebP", "image", rb"RIFF....WEBP", (".webp",)),
    FileKind("BMP", "image", rb"BM.{4}\0{4}", (".bmp",)),
    FileKind("TIFF", "image", rb"II\*\0|MM\0\*", (".tif", ".tiff")),
    FileKind("PNM", "image", rb"P[1-6]\s+[#\d]"),
    FileKind("JPEG 2000", "image", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    FileKind("GIF", "other", rb"GIF8"),
    FileKind("HEIC", "other", rb"\0...ftyp(hei|hev|mif1|msf1)"),
    FileKind("AVIF", "other", rb"\0...ftypavi[fs]"),
    FileKind("a raw photograph", "other", rb"\0...ftypcrx", _RAW),  # the others begin as a TIFF with a small picture
    FileKind("sound", "other", rb"\0...ftypM4[AB]"),
    FileKind("PDF", "other", rb"%PDF"),
    FileKind("ZIP", "other", rb"PK\x03\x04"),
    FileKind("text", "other", rb"[\t\n\r\x20-\x7e]+\Z"),
    FileKind("AVI", "video", rb"RIFF....AVI ", (".avi",)),
    FileKind("MP4", "video", rb"[\0-\x08]...(ftyp|moov|mdat|wide|free|skip)", (".mp4", ".mov", ".m4v")),
    FileKind("Matroska", "video", rb"\x1a\x45\xdf\xa3", (".mkv", ".webm")),
    FileKind("MPEG", "video", rb"\0\0\x01[\xba\xb3]", (".mpg", ".mpeg")),
    FileKind("Flash", "video", rb"FLV\x01"),
    FileKind("Windows Media", "video", rb"\x30\x26\xb2\x75", (".wmv",)),
    FileKind("MPEG-TS", "video", rb"(....)?\x47.{187}(....)?\x47", (".ts",)),
)


def endings_of(use: str) -> frozenset[str]:
    """File endings of a use. Files with other endings are recognised by content."""
    return frozenset(ending for kind in FILE_KINDS if kind.use == use for ending in kind.endings)


def kind_of(head: bytes) -> FileKind | None:
    """Kind of a file by its first 200 bytes; None if unknown."""
    return next((kind for kind in FILE_KINDS if re.match(kind.start, head[:200], re.DOTALL)), None)
