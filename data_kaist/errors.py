"""What goes wrong with data files; every message is one sentence that names the file and the line, box or key."""

from __future__ import annotations

from ssd_effnet.failure import Failure


class DataError(Failure, ValueError):
    """A data file that cannot be used as it is."""


class AnnotationError(DataError):
    """A ground-truth file that is broken, or says something that cannot be true."""


class DetectionFileError(DataError):
    """A file of detections that is broken, or does not fit the ground truth."""


class ImageError(DataError):
    """An image that is missing, truncated or of an unexpected shape."""


class SplitError(DataError):
    """A split that nobody knows, or that is empty."""


class EmptySplitError(SplitError):
    """A split that none of the frames on the disk belongs to."""
