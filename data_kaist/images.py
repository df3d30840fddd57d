"""Reading image files, and refusing those that decoders silently repair."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from data_kaist.errors import ImageError

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_PADDING = b"\x00\xff \r\n\x1a"
"""Bytes that cameras and file systems leave behind the end of an image."""


def read_image(path: Path, *, colour: bool) -> np.ndarray:
    """Decode an image file.

    A truncated JPEG decodes without complaint, with grey where data is missing: so its end marker is checked.
    Orientation tags are not followed, because boxes are drawn to the pixels as they are stored.

    Args:
        path: any name the file system allows, also outside ASCII.
        colour: RGB, else one channel.

    Returns:
        uint8 ``(H, W, 3)`` RGB, or ``(H, W)``.

    Raises:
        ImageError: missing, empty, truncated or not an image.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ImageError(f"{path}: cannot read the image ({error.strerror or error})") from error
    if not len(data):
        raise ImageError(f"{path}: the file is empty")
    head, tail = data[:8].tobytes(), data[-4096:].tobytes().rstrip(_PADDING)
    if head.startswith(_JPEG_START):
        # A stripped FF of the marker itself cannot happen: its last byte is D9.
        whole = tail.endswith(_JPEG_END)
    else:
        whole = not head.startswith(_PNG_START) or tail.endswith(_PNG_END)
    if not whole:
        raise ImageError(f"{path}: the image is truncated (no end marker after {len(data):,} bytes)")
    flag = cv2.IMREAD_COLOR_RGB if colour else cv2.IMREAD_GRAYSCALE
    try:
        image = cv2.imdecode(data, flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None:
        raise ImageError(f"{path}: not an image that can be decoded")
    return np.asarray(image)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels; the file is decoded, so call it once for many images of one size."""
    height, width = read_image(path, colour=False).shape
    return height, width
