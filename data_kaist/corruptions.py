"""Camera failures and bad weather, at three strengths, for stress tests.

A corruption is called with a :class:`~data_kaist.transforms.Sample`, a ``numpy`` generator (its only source of
randomness) and a strength of :data:`STRENGTHS`. One whose name ends in ``_visible`` or ``_lwir`` changes that image
alone. Boxes stay. Gentler strengths of a kind draw the same numbers as stronger ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np

from data_kaist.transforms import Sample

STRENGTHS = (1, 2, 3)


def black(image: np.ndarray, rng: np.random.Generator, strength: int) -> np.ndarray:
    """No picture in a quarter, half or all of the frames."""
    return np.zeros_like(image) if rng.random() < (0.25, 0.5, 1)[strength - 1] else image


def noise(image: np.ndarray, rng: np.random.Generator, strength: int) -> np.ndarray:
    """Gaussian noise of standard deviation 15, 40, 80 grey levels."""
    added = (15, 40, 80)[strength - 1] * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image + added), 0, 255).astype(np.uint8)


def shift(image: np.ndarray, rng: np.random.Generator, strength: int) -> np.ndarray:
    """Moved to the right by 2, 8, 20 pixels. The left edge is repeated."""
    by = min((2, 8, 20)[strength - 1], image.shape[1] - 1)
    return np.asarray(cv2.copyMakeBorder(image[:, : image.shape[1] - by], 0, 0, by, 0, cv2.BORDER_REPLICATE))


def missing(image: np.ndarray, rng: np.random.Generator, strength: int) -> np.ndarray:
    """The right sixth, third, half is black."""
    image = image.copy()
    image[:, round(image.shape[1] * (5 / 6, 2 / 3, 1 / 2)[strength - 1]) :] = 0
    return image


def frozen(sample: Sample, rng: np.random.Generator, strength: int, *, side: str) -> Sample:
    """The image of 1, 3 or 10 frames earlier in the split. With fewer frames before it, the first of its video."""
    if sample.earlier is None:
        raise ValueError("frozen needs samples of a data set, from which it takes earlier ones")
    earlier: Any = {side: getattr(sample.earlier((1, 3, 10)[strength - 1]), side)}
    return replace(sample, **earlier)


def dark(image: np.ndarray, rng: np.random.Generator, strength: int) -> np.ndarray:
    """A half, a quarter, a tenth of the brightness."""
    return np.asarray(cv2.convertScaleAbs(image, alpha=(0.5, 0.25, 0.1)[strength - 1]))


def fog(image: np.ndarray, rng: np.random.Generator, strength: int) -> np.ndarray:
    """Koschmieder's law at one distance. 60, 35, 15 % of the light, the rest light grey; in LWIR the image's mean."""
    share, veil = (0.6, 0.35, 0.15)[strength - 1], 220 if image.ndim == 3 else float(image.mean())
    return np.asarray(cv2.convertScaleAbs(image, alpha=share, beta=(1 - share) * veil))


def blur(image: np.ndarray, rng: np.random.Generator, strength: int) -> np.ndarray:
    """Gaussian blur of 1, 2, 4 pixels."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), (1, 2, 4)[strength - 1]))


def jpeg(image: np.ndarray, rng: np.random.Generator, strength: int) -> np.ndarray:
    """JPEG at quality 30, 20, 10."""
    swapped = image[..., ::-1] if image.ndim == 3 else image  # OpenCV's colours are BGR
    code = cv2.imencode(".jpg", swapped, [cv2.IMWRITE_JPEG_QUALITY, (30, 20, 10)[strength - 1]])[1]
    read = np.asarray(cv2.imdecode(code, cv2.IMREAD_UNCHANGED))
    return np.ascontiguousarray(read[..., ::-1]) if image.ndim == 3 else read


def of_images(
    sample: Sample,
    rng: np.random.Generator,
    strength: int,
    *,
    change: Callable[..., np.ndarray],
    sides: tuple[str, ...] = ("visible", "lwir"),
) -> Sample:
    """The sample with its images of ``sides`` changed."""
    images = {side: image for side in sides if (image := getattr(sample, side)) is not None}
    changed: Any = {side: change(image, rng, strength) for side, image in images.items()}
    return replace(sample, **changed)


def _of_one(side: str) -> dict[str, Callable[[Sample, np.random.Generator, int], Sample]]:
    """The failures of one camera."""
    changes = (black, noise, shift, missing)
    of_image = {f"{change.__name__}_{side}": partial(of_images, change=change, sides=(side,)) for change in changes}
    return {**of_image, f"frozen_{side}": partial(frozen, side=side)}


CORRUPTIONS: dict[str, Callable[[Sample, np.random.Generator, int], Sample]] = {
    **_of_one("visible"),
    **_of_one("lwir"),
    **{change.__name__: partial(of_images, change=change) for change in (dark, fog, blur, jpeg)},
}
