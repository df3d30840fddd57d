"""Reading image files, and refusing those that decoders silently repair."""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data_kaist.errors import DataError, ImageError

MAX_PIXELS_VARIABLE = "SSD_EFFNET_MAX_PIXELS"
"""Environment variable: images of more pixels are refused before they are decoded."""

MAX_PIXELS = 100_000_000
"""Without the variable: 100 megapixels, 300 MB decoded."""

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")

_JPEG_START = b"\xff\xd8"
_JPEG_END = 0xD9
# those that say something: FF 00 is a pixel's byte FF, and 01, D0 ... D8 mark a place and have no length
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_PNG_START = b"\x89PNG\r\n\x1a\n"


def read_image(path: Path, *, colour: bool) -> np.ndarray:
    """Decode an image file.

    A truncated JPEG decodes without complaint, with grey where data is missing: so its end marker is looked for. What
    stands behind the end, as the film behind a telephone's "motion photo", is not read.
    Orientation tags are not followed, because boxes are drawn to the pixels as they are stored. A few bytes may claim
    any size: the header is read first, and no more pixels are decoded than :func:`max_pixels` allows.

    Args:
        path: any name the file system allows, also outside ASCII.
        colour: RGB, else one channel.

    Returns:
        uint8 ``(H, W, 3)`` RGB, or ``(H, W)``.

    Raises:
        ImageError: missing, empty, truncated, too large or not an image.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except (OSError, ValueError) as error:  # ValueError: a name that no file system can hold
        raise ImageError(f"{path}: cannot read the image ({getattr(error, 'strerror', None) or error})") from error
    if not len(data):
        raise ImageError(f"{path}: the file is empty")
    if not _is_whole(data):
        raise ImageError(f"{path}: the image is truncated (no end marker after {len(data):,} bytes)")
    size = _stated_size(data)
    if size is None:
        raise ImageError(f"{path}: not an image that can be decoded")
    height, width = size
    if height * width > (most := max_pixels()):
        raise ImageError(
            f"{path}: {width}x{height} pixels are more than the {most:,} that are read; the environment's "
            f"{MAX_PIXELS_VARIABLE} sets another limit"
        )
    flag = cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_GRAYSCALE
    try:
        image = cv2.imdecode(data, flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None or image.shape[:2] != size:
        raise ImageError(f"{path}: not an image that can be decoded")
    return np.asarray(image)


def max_pixels() -> int:
    """The most pixels that an image may have: the environment's ``SSD_EFFNET_MAX_PIXELS``, or :data:`MAX_PIXELS`.

    Raises:
        DataError: the variable holds no whole number above 0.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if not text:
        return MAX_PIXELS
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise DataError(f"{MAX_PIXELS_VARIABLE} is {text!r}, which should be a whole number of pixels")
    return int(text)


def _is_whole(data: np.ndarray) -> bool:
    """Whether a JPEG has its end marker, and a PNG all of its chunks; other kinds are left to their decoders."""
    head = data[:8].tobytes()
    if head.startswith(_JPEG_START):
        return _reaches_its_end(data.data)
    if head != _PNG_START:
        return True
    at = len(_PNG_START)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8].tobytes())
        at += 12 + length  # OpenCV takes memory for as much as a chunk says that it holds, up to 4 GiB
        if kind == b"IEND":
            return bool(at <= len(data))
    return False


def _reaches_its_end(jpeg: memoryview) -> bool:
    """Whether the end marker comes, segment by segment: one that holds a small picture has the end of that inside."""
    at = len(_JPEG_START)
    while found := _JPEG_MARKER.search(jpeg, at):
        at = found.end()
        if found[1][0] == _JPEG_END:
            return True
        at += int.from_bytes(jpeg[at : at + 2], "big")  # it counts its own two bytes
    return False


def _stated_size(data: np.ndarray) -> tuple[int, int] | None:
    """(height, width) by the header of an image file; None where there is none that can be understood."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit warns first and cannot be above ours
    try:
        with Image.open(io.BytesIO(data.tobytes()), formats=_FORMATS) as image:
            width, height = image.size
    except Exception:  # a broken header can send its readers anywhere
        return None
    return height, width


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels; the file is decoded, so call it once for many images of one size."""
    height, width = read_image(path, colour=False).shape
    return height, width
