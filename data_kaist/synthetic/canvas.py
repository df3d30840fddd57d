"""Pinhole camera over a ground plane, and layers of painted polygons.

World coordinates are metres: X to the right, Y up from the ground, Z away from the camera. Depths exist so that
occlusion between figures and street furniture is measured on pixels instead of guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

Bgr = tuple[float, float, float]

SUBPIXEL_BITS = 4
_CIRCLE = np.cos(np.arange(16) * (np.pi / 8)), np.sin(np.arange(16) * (np.pi / 8))


def subpixels(uv: np.ndarray) -> np.ndarray:
    """Pixels as OpenCV takes them with ``SUBPIXEL_BITS``: int32, rounded."""
    points: np.ndarray = np.rint(uv * (1 << SUBPIXEL_BITS)).astype(np.int32, order="C")
    return points


def palette(colours: str) -> tuple[Bgr, ...]:
    """Colours written as ``rrggbb`` with blanks between."""
    return tuple((b, g, r) for r, g, b in map(bytes.fromhex, colours.split()))


def shaded(bgr: Bgr, factor: float) -> Bgr:
    """The colour times ``factor``, kept in 0..255."""
    return (min(bgr[0] * factor, 255.0), min(bgr[1] * factor, 255.0), min(bgr[2] * factor, 255.0))


def any_colour(rng: np.random.Generator) -> Bgr:
    """A colour without preference, not quite black or white."""
    blue, green, red = rng.uniform(8, 250, 3)
    return (blue, green, red)


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera."""

    focal: float  # focal length in pixels
    height: float  # of the camera over the ground, metres
    centre_x: float  # column of the vanishing point, pixels
    horizon: float  # row of the horizon, pixels

    def project(self, xyz: np.ndarray) -> np.ndarray:
        """Pixels ``(n, 2)`` (column, row) of points in metres. Points are ``(n, 3)`` with Z > 0; pixels are float64."""
        scale = self.focal / xyz[:, 2]
        return np.array([self.centre_x + xyz[:, 0] * scale, self.horizon + (self.height - xyz[:, 1]) * scale]).T


class Canvas:
    """The layers of a scene, painted back to front.

    Attributes:
        camera: what :meth:`face` projects with.
        glows: whether ``glow`` is painted at all; invisible by day.
        paint: uint8 ``(H, W, 4)``; B, G, R of the surface in white light, and its heat (100 is the air).
        glow: uint8 ``(H, W, 3)``; light that a surface sends out itself, B, G, R.
        depth: float32 ``(H, W)``; metres, infinite on ground and sky.
    """

    def __init__(self, size: tuple[int, int], camera: Camera, *, glows: bool) -> None:
        self.camera = camera
        self.glows = glows
        self.paint = np.zeros((*size, 4), np.uint8)
        self.glow = np.zeros((*size, 3), np.uint8)
        self.depth = np.full(size, np.inf, np.float32)

    def polygon(
        self, uv: np.ndarray, bgr: Bgr, heat: float, depth: float | None = None, glow: Bgr | None = None
    ) -> None:
        """Fill a polygon given in pixels, float ``(n, 2)``.

        Args:
            uv: corners (column, row); any simple polygon.
            bgr: colour in white light.
            heat: 0..255, 100 is the air.
            depth: metres; None leaves the depth as it is (marks on a surface, ground, sky).
            glow: emitted light; None means that the surface covers what glowed behind it.
        """
        low, high = uv.min(axis=0), uv.max(axis=0)
        if high[0] < 0 or high[1] < 0 or low[0] >= self.depth.shape[1] or low[1] >= self.depth.shape[0]:
            return
        points = subpixels(uv)
        cv2.fillPoly(self.paint, [points], (*bgr, heat), cv2.LINE_AA, SUBPIXEL_BITS)
        if self.glows and (glow is not None or depth is not None):
            cv2.fillPoly(self.glow, [points], glow or (0.0, 0.0, 0.0), cv2.LINE_8, SUBPIXEL_BITS)
        if depth is not None:
            cv2.fillPoly(self.depth, [points], depth, cv2.LINE_8, SUBPIXEL_BITS)

    def face(
        self,
        corners: Sequence[tuple[float, float, float]],
        bgr: Bgr,
        heat: float,
        depth: float | None = None,
        glow: Bgr | None = None,
    ) -> None:
        """Fill a flat polygon of corners (X, Y, Z) in metres. The rest as in :meth:`polygon`."""
        self.polygon(self.camera.project(np.array(corners, float)), bgr, heat, depth, glow)

    def upright(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: float,
        bgr: Bgr,
        heat: float,
        *,
        solid: bool = True,
        glow: Bgr | None = None,
    ) -> None:
        """Fill a rectangle that faces the camera at ``z``. ``solid`` ones hide what stands behind."""
        corners = [(x[0], y[0], z), (x[1], y[0], z), (x[1], y[1], z), (x[0], y[1], z)]
        self.face(corners, bgr, heat, z if solid else None, glow)

    def disc(
        self,
        centre: tuple[float, float, float],
        radius: tuple[float, float],
        bgr: Bgr,
        heat: float,
        *,
        solid: bool = True,
        glow: Bgr | None = None,
        plane: str = "xy",
    ) -> None:
        """Fill an ellipse in the ``xy`` or the ``zy`` plane. ``radius`` is in metres, along X or Z and along Y."""
        corners = np.array([centre] * 16, float)
        corners[:, 0 if plane == "xy" else 2] += radius[0] * _CIRCLE[0]
        corners[:, 1] += radius[1] * _CIRCLE[1]
        self.polygon(self.camera.project(corners), bgr, heat, centre[2] if solid else None, glow)
