"""Renders both pictures of a frame, and measures its boxes. A frame is made from a background and a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from data_kaist.synthetic.canvas import Camera, Canvas
from data_kaist.synthetic.clutter import Obstacle, furnish
from data_kaist.synthetic.conditions import Conditions
from data_kaist.synthetic.figures import Sprite, paint_cyclist, paint_person
from data_kaist.synthetic.scene import FramePlan
from data_kaist.synthetic.street import distances, light_at, light_map, paint_buildings, paint_ground, paint_sky

# Of a figure's pixels in the frame, the share that must be seen.
NONE_HIDDEN = 0.9
PARTLY_HIDDEN = 0.5
TOTALLY_HIDDEN = 0.05
MIN_SEEN_PIXELS = 8
NOISE_MARGIN = 48


@dataclass(frozen=True)
class Box:
    """One annotated object. Its ``label``, whole pixels ``x y w h`` in the visible image, and occlusion 0, 1 or 2."""

    label: str
    x: int
    y: int
    w: int
    h: int
    occlusion: int
    lwir: tuple[int, int, int, int]  # ``x y w h`` within the LWIR image; all 0 when it is not in it


@dataclass(frozen=True)
class Backdrop:
    """A street without people. It is larger than a frame, so that the camera can pan."""

    look: Conditions  # hour, light and temperatures
    camera: Camera  # of the whole backdrop
    visible: np.ndarray  # uint8 ``(H, W, 3)`` BGR, lit
    heat: np.ndarray  # uint8 ``(H, W)``, 100 is the air
    depth: np.ndarray  # float32 ``(H, W)`` metres
    lamps: np.ndarray  # ``(n, 3)`` X, Z, strength
    obstacles: list[Obstacle]  # footprints


class Noise:
    """Sensor noise, drawn once and read at random places to save time."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        height, width = size[0] + NOISE_MARGIN, size[1] + NOISE_MARGIN
        grain = rng.standard_normal((height, width, 1), dtype=np.float32)
        colour = cv2.GaussianBlur(rng.standard_normal((height, width, 3), dtype=np.float32), (0, 0), 1.0)
        self.visible = 0.75 * grain + 1.9 * colour
        thermal = rng.standard_normal((height, width), dtype=np.float32)
        stripes = rng.standard_normal((1, width), dtype=np.float32)
        self.thermal = 0.9 * thermal + 0.45 * stripes

    def scaled(self, look: Conditions) -> tuple[np.ndarray, np.ndarray]:
        """The noise of both cameras, int16 ``(H, W, 3)`` and ``(H, W)``."""
        pairs = ((self.visible, look.noise), (self.thermal, look.lwir_noise))
        visible, thermal = (np.round(noise * np.float32(sigma)).astype(np.int16) for noise, sigma in pairs)
        return visible, thermal


def make_backdrop(rng: np.random.Generator, size: tuple[int, int], day: bool, wide: bool = False) -> Backdrop:
    """Paint a random street for frames of ``size`` (height, width)."""
    height, width = size
    look = Conditions.sample(rng, day)
    if wide:
        look = look.widened(rng)
    rows, columns = height + 2 * (height // 40 + look.pad), width + 2 * (width // 14 + look.pad)
    camera = Camera(
        focal=1.37 * height * look.zoom,
        height=float(rng.uniform(1.55, 1.85)) + look.eye / look.zoom,
        centre_x=columns * float(rng.uniform(0.4, 0.6)),
        # A raised camera keeps what stands 11 m away in its place.
        horizon=rows * (float(rng.uniform(0.43, 0.48)) + look.tilt) - 1.37 * height * look.eye / 11.0,
    )
    canvas = Canvas((rows, columns), camera, glows=not day)
    paint_sky(canvas, look, rng)
    paint_ground(canvas, look, rng)
    paint_buildings(canvas, look, rng)
    obstacles, lamps = furnish(canvas, look, rng)
    dirt = look.weathering * _weathering(rng, canvas)
    visible = canvas.paint[..., :3] * (light_map(canvas, look, lamps) * (dirt + 1.0)[..., None])
    if not look.day:
        glow = canvas.glow.astype(np.float32)
        small = cv2.resize(glow, (columns // 4, rows // 4), interpolation=cv2.INTER_AREA)
        halo = cv2.GaussianBlur(small, (0, 0), height / 150.0) * 0.9 + cv2.GaussianBlur(small, (0, 0), height / 35.0)
        visible += glow + 0.6 * cv2.resize(halo, (columns, rows))
    clear = np.exp(-look.haze * distances(canvas))
    visible = visible * clear[..., None] + look.air * (1.0 - clear)[..., None]
    soft = cv2.GaussianBlur(np.clip(visible, 0, 255).astype(np.uint8), (3, 3), 0.6)
    heat = 100.0 + (canvas.paint[..., 3].astype(np.float32) - 100.0) * (look.heat_spread * np.cbrt(clear))
    # Surfaces are not evenly warm, and the lens darkens the corners.
    coarse = rng.normal(0, 3.0, (12, 15)).astype(np.float32)
    patches = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    u, v = np.linspace(-1, 1, columns, dtype=np.float32), np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    corner = 1.0 - 0.16 * (u**4 + v**4)
    heat = np.clip((heat + patches + look.heat_texture * dirt) * corner, 0, 255).astype(np.uint8)
    return Backdrop(look, camera, soft, heat, canvas.depth, lamps, obstacles)


def _weathering(rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
    """Dirt and grain of surfaces, float32 ``(H, W)``. Values are around 0, and 0 in the sky."""
    rows, columns = canvas.depth.shape
    texture = np.zeros((rows, columns), np.float32)
    for cell, strength in ((40, 0.035), (9, 0.035), (3, 0.045)):
        coarse = rng.standard_normal((rows // cell + 2, columns // cell + 2), dtype=np.float32)
        texture += strength * cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_LINEAR)
    horizon = int(canvas.camera.horizon)
    texture[:horizon] *= np.isfinite(canvas.depth[:horizon])
    return texture


def open_view(backdrop: Backdrop, size: tuple[int, int], rng: np.random.Generator) -> Backdrop:
    """Copy a random window out of a backdrop. Larger than frames of ``size`` by the look's ``pad`` on every side."""
    rows, columns = size[0] + 2 * backdrop.look.pad, size[1] + 2 * backdrop.look.pad
    top = int(rng.integers(backdrop.depth.shape[0] - rows + 1))
    left = int(rng.integers(backdrop.depth.shape[1] - columns + 1))
    window = np.s_[top : top + rows, left : left + columns]
    camera = backdrop.camera
    return replace(
        backdrop,
        camera=replace(camera, centre_x=camera.centre_x - left, horizon=camera.horizon - top),
        visible=backdrop.visible[window].copy(),
        heat=backdrop.heat[window].copy(),
        depth=backdrop.depth[window],
    )


def _windows(view: Backdrop) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where in a view the visible and the LWIR image lie."""
    pad, (dx, dy) = view.look.pad, view.look.misalignment
    height, width = (side - 2 * pad for side in view.depth.shape)
    return (
        np.s_[pad : pad + height, pad : pad + width],
        np.s_[pad + dy : pad + dy + height, pad + dx : pad + dx + width],
    )


def paint_figures(view: Backdrop, plan: FramePlan, rng: np.random.Generator) -> list[Box]:
    """Paint the plan's figures into the view. Far ones first; measures what is seen of each object.

    Returns:
        boxes in the frame's pixels: the full extent of each object, hidden parts included, clipped to the frame.
        Objects of which less than 5 % is seen, or that are not in the frame, are left out.
    """
    rows, columns = view.depth.shape
    frame, lwir_frame = _windows(view)
    owner = np.full(view.depth.shape, -1, np.int16)
    whole = [np.zeros(view.depth.shape, np.uint8) for _ in plan.labels]
    for figure in sorted(plan.figures, key=lambda f: -f.z):
        scale = view.camera.focal / figure.z
        paint = paint_cyclist if figure.cyclist else paint_person
        sprite = paint(figure.person, scale, rng)
        foot = view.camera.project(np.array([[figure.x, 0.0, figure.z]]))[0]
        left, top = round(float(foot[0])) - sprite.anchor[0], round(float(foot[1])) - sprite.anchor[1]
        _cast_shadow(view, sprite, (round(float(foot[0])), round(float(foot[1]))), figure.x, figure.z)
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + sprite.alpha.shape[1], columns), min(top + sprite.alpha.shape[0], rows)
        if x0 >= x1 or y0 >= y1:
            continue
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        there = np.s_[y0:y1, x0:x1]
        alpha = sprite.alpha[part]
        solid, body_there = alpha >= 0.5, sprite.body[part]
        unhidden = view.depth[there] > figure.z
        seen = alpha * unhidden
        heights = np.maximum(view.camera.height - (np.arange(y0, y1) - view.camera.horizon) / scale, 0.0)
        light = light_at(view.look, view.lamps, figure.x, heights, figure.z).astype(np.float32)
        lit = light[:, None, None] * np.array(view.look.tint, np.float32)
        rest = 1.0 - seen
        picture = view.visible[there]
        clear = float(np.exp(-view.look.haze * figure.z))
        light_of_body = sprite.bgr[part] * lit * clear + view.look.air * (1.0 - clear) * alpha[..., None]
        picture[:] = np.minimum(picture * rest[..., None] + light_of_body * unhidden[..., None], 255.0)
        thermal = view.heat[there]
        body = 100.0 * alpha + view.look.body_heat * clear ** (1 / 3) * sprite.warmth[part]
        thermal[:] = np.clip(thermal * rest + body * unhidden, 0.0, 255.0)
        owner[there][solid & unhidden] = -1
        owner[there][body_there & unhidden] = figure.owner
        whole[figure.owner][there] |= body_there
    boxes = []
    for index, label in enumerate(plan.labels):
        # Of a group the union counts: members who hide each other do not hide the group.
        full = cv2.countNonZero(whole[index][frame])
        shown = cv2.countNonZero((owner[frame] == index).astype(np.uint8))
        level = occlusion_level(shown / full) if full else None
        if level is not None and shown >= MIN_SEEN_PIXELS:
            x, y, w, h = cv2.boundingRect(whole[index][frame])
            left, top, wide, tall = cv2.boundingRect(whole[index][lwir_frame])
            boxes.append(Box(label, x, y, w, h, level, (left, top, wide, tall)))
    return boxes


def occlusion_level(seen: float) -> int | None:
    """KAIST's level for the share of a figure that is seen. None when it is totally hidden."""
    if seen >= NONE_HIDDEN:
        return 0
    if seen >= PARTLY_HIDDEN:
        return 1
    return 2 if seen >= TOTALLY_HIDDEN else None


def _cast_shadow(view: Backdrop, sprite: Sprite, foot: tuple[int, int], x: float, z: float) -> None:
    """Cast a figure's shadow on the ground. In the sun it is a long outline, elsewhere a smudge."""
    sun = view.look.sun_side and float(light_at(view.look, view.lamps, x, 0.0, z)) > 0.75 * view.look.ambient
    lean, squash, dark = (-view.look.sun_side * 0.8, 0.16, 0.45) if sun else (0.05, -0.05, 0.3)
    height, width = sprite.alpha.shape
    reach = int(abs(lean) * height) + width
    x0, x1 = max(foot[0] - reach, 0), min(foot[0] + reach, view.depth.shape[1])
    tall = int(abs(squash) * height) + 2
    y0, y1 = max(foot[1] - tall, 0), min(foot[1] + tall, view.depth.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    ax, ay = sprite.anchor
    # Image rows above the foot are the figure's height: lean moves them aside, squash lays them down.
    move = np.array(
        [[1.0, -lean, foot[0] - x0 - ax + lean * ay], [0.0, squash, foot[1] - y0 - squash * ay]], np.float32
    )
    shade = cv2.warpAffine(sprite.alpha, move, (x1 - x0, y1 - y0))
    there = np.s_[y0:y1, x0:x1]
    shade = shade * (view.depth[there] > z) * dark
    picture = view.visible[there]
    picture[:] = picture * (1.0 - shade[..., None])


def expose(
    view: Backdrop, noise: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The two sensors' pictures of a view. Visible uint8 ``(H, W, 3)`` BGR and LWIR uint8 ``(H, W)``.

    ``noise`` is what :meth:`Noise.scaled` gives for this look.
    """
    look, (frame, lwir_frame) = view.look, _windows(view)
    visible = view.visible[frame]
    height, width = visible.shape[:2]
    unit = height / 512.0
    smear = (1 + 2 * round(look.motion * unit), 1)
    if look.rain:
        visible = cv2.add(visible, _rain(look, (height, width), rng))
    visible = cv2.GaussianBlur(cv2.blur(visible, smear), (0, 0), max(look.blur * unit, 0.01))
    v, u = (int(k) for k in rng.integers(0, NOISE_MARGIN + 1, 2))
    grain = noise[0][v : v + height, u : u + width]
    exposure = float(rng.uniform(0.93, 1.07))
    visible = cv2.add(cv2.convertScaleAbs(visible, alpha=exposure), grain, dtype=cv2.CV_8U)
    heat = cv2.blur(cv2.GaussianBlur(view.heat, (0, 0), max(0.5, look.lwir_blur * unit))[lwir_frame], smear)
    floor = round(look.lwir_floor)
    level = cv2.convertScaleAbs(heat - np.minimum(heat, floor), alpha=look.lwir_level / (100.0 - floor))
    v, u = (int(k) for k in rng.integers(0, NOISE_MARGIN + 1, 2))
    lwir = cv2.add(level, noise[1][v : v + height, u : u + width], dtype=cv2.CV_8U)
    return visible, lwir


def _rain(look: Conditions, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Streaks of raindrops, uint8 ``(H, W, 3)``. They are added to an image of ``size`` (height, width)."""
    layer = np.zeros((*size, 3), np.uint8)
    fall = size[0] * rng.uniform(0.01, 0.06) * np.array([rng.normal(0, 0.3), 1.0])
    start = rng.uniform(0, 1, (round(look.rain), 2)) * size[::-1]
    streaks = np.round(np.stack([start, start + fall], axis=1)).astype(np.int32)
    cv2.polylines(layer, list(streaks), False, (12.0 + 0.2 * look.air).tolist(), 1, cv2.LINE_AA)
    return layer
