"""Errors that are one sentence for the user. It names the file, frame or key."""

from __future__ import annotations

import warnings
from typing import ClassVar

_LONGEST = 2000


class Failure(Exception):
    """One sentence for the user that names the file, frame or key.

    A command prints it and ends with its exit code. Shown as text it is one line: line breaks, control characters and
    halves of characters are written as escapes, and a sentence that quotes pages is cut in its middle.
    """

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return one_line(super().__str__())


class Doubt(UserWarning):
    """One sentence on odd input that is read nevertheless; printed on stderr."""


def warn_doubt(sentence: str) -> None:
    """Warn of odd input."""
    warnings.warn(sentence, Doubt, stacklevel=3)


class RequestError(Failure, ValueError):
    """An invalid device, zoom, score or batch size."""


def one_line(text: str) -> str:
    """Printable text of at most 2,000 characters. Letters of all scripts are kept."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 + 5 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class DataError(Failure, ValueError):
    """A data file that cannot be used as it is."""


class AnnotationError(DataError):
    """A ground-truth file is broken or has impossible values."""


class DetectionFileError(DataError):
    """A file of detections, broken or unfit for the ground truth."""


class ImageError(DataError):
    """An image that is missing, truncated or of an unexpected shape."""


class SplitError(DataError):
    """An unknown or empty split."""


class EmptySplitError(SplitError):
    """A split without frames on disk."""
