"""Renders both pictures of a frame from a background and a plan, and measures its boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from data_kaist.synthetic.canvas import Camera, Canvas
from data_kaist.synthetic.clutter import Obstacle, furnish
from data_kaist.synthetic.conditions import Conditions
from data_kaist.synthetic.figures import Sprite, paint_cyclist, paint_person
from data_kaist.synthetic.scene import FramePlan
from data_kaist.synthetic.street import light_at, light_map, paint_buildings, paint_ground, paint_sky

# Of a figure's pixels in the frame, the share that must be seen.
NONE_HIDDEN = 0.9
PARTLY_HIDDEN = 0.5
TOTALLY_HIDDEN = 0.05
MIN_SEEN_PIXELS = 8
# LWIR may be off by this many pixels either way.
PAD = 2
NOISE_MARGIN = 48


@dataclass(frozen=True)
class Box:
    """One annotated object: ``label``, whole pixels ``x y w h`` within the frame, occlusion 0, 1 or 2."""

    label: str
    x: int
    y: int
    w: int
    h: int
    occlusion: int


@dataclass(frozen=True)
class Backdrop:
    """A street without people, somewhat larger than a frame so that the camera can pan."""

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
        self.thermal = np.round(0.9 * thermal + 0.45 * stripes).astype(np.int16)

    def scaled(self, sigma: float) -> np.ndarray:
        """int16 ``(H, W, 3)``, the visible noise with a standard deviation of about ``sigma`` grey levels."""
        return np.round(self.visible * np.float32(sigma)).astype(np.int16)


def make_backdrop(rng: np.random.Generator, size: tuple[int, int], day: bool) -> Backdrop:
    """Paint a random street for frames of ``size`` (height, width)."""
    height, width = size
    look = Conditions.sample(rng, day)
    rows, columns = height + 2 * (height // 40 + PAD), width + 2 * (width // 14 + PAD)
    camera = Camera(
        focal=1.37 * height,
        height=float(rng.uniform(1.55, 1.85)),
        centre_x=columns * float(rng.uniform(0.4, 0.6)),
        horizon=rows * float(rng.uniform(0.43, 0.48)),
    )
    canvas = Canvas((rows, columns), camera, glows=not day)
    paint_sky(canvas, look, rng)
    paint_ground(canvas, look, rng)
    paint_buildings(canvas, look, rng)
    obstacles, lamps = furnish(canvas, look, rng)
    light = light_map(canvas, look, lamps, camera)
    visible = canvas.paint[..., :3] * (light * _weathering(rng, canvas)[..., None])
    if not look.day:
        glow = canvas.glow.astype(np.float32)
        small = cv2.resize(glow, (columns // 4, rows // 4), interpolation=cv2.INTER_AREA)
        halo = cv2.GaussianBlur(small, (0, 0), height / 150.0) * 0.9 + cv2.GaussianBlur(small, (0, 0), height / 35.0)
        visible += glow + 0.6 * cv2.resize(halo, (columns, rows))
    soft = cv2.GaussianBlur(np.clip(visible, 0, 255).astype(np.uint8), (3, 3), 0.6)
    heat = canvas.paint[..., 3]
    # Surfaces are not evenly warm, and the lens darkens the corners.
    coarse = rng.normal(0, 3.0, (12, 15)).astype(np.float32)
    patches = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    u, v = np.linspace(-1, 1, columns, dtype=np.float32), np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    corner = 1.0 - 0.16 * (u**4 + v**4)
    heat = np.clip((heat + patches) * corner, 0, 255).astype(np.uint8)
    return Backdrop(look, camera, soft, heat, canvas.depth, lamps, obstacles)


def _weathering(rng: np.random.Generator, canvas: Canvas) -> np.ndarray:
    """Dirt and grain of surfaces, float32 ``(H, W)`` around 1; 1 in the sky."""
    rows, columns = canvas.depth.shape
    texture = np.zeros((rows, columns), np.float32)
    for cell, strength in ((40, 0.035), (9, 0.035), (3, 0.045)):
        coarse = rng.standard_normal((rows // cell + 2, columns // cell + 2), dtype=np.float32)
        texture += strength * cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_LINEAR)
    horizon = int(canvas.camera.horizon)
    texture[:horizon] *= np.isfinite(canvas.depth[:horizon])
    return texture + 1.0


def open_view(backdrop: Backdrop, size: tuple[int, int], rng: np.random.Generator) -> Backdrop:
    """Copy a random window, ``PAD`` pixels larger on every side than frames of ``size``, out of a backdrop."""
    rows, columns = size[0] + 2 * PAD, size[1] + 2 * PAD
    top = int(rng.integers(backdrop.depth.shape[0] - rows + 1))
    left = int(rng.integers(backdrop.depth.shape[1] - columns + 1))
    window = np.s_[top : top + rows, left : left + columns]
    return replace(
        backdrop,
        camera=backdrop.camera.moved(left, top),
        visible=backdrop.visible[window].copy(),
        heat=backdrop.heat[window].copy(),
        depth=backdrop.depth[window],
    )


def paint_figures(view: Backdrop, plan: FramePlan, rng: np.random.Generator) -> list[Box]:
    """Paint the plan's figures into the view, far ones first, and measure what is seen of each object.

    Returns:
        boxes in the frame's pixels: the full extent of each object, hidden parts included, clipped to the frame.
        Objects of which less than 5 % is seen, or that are not in the frame, are left out.
    """
    rows, columns = view.depth.shape
    frame = np.s_[PAD : rows - PAD, PAD : columns - PAD]
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
        picture[:] = np.minimum(picture * rest[..., None] + sprite.bgr[part] * lit * unhidden[..., None], 255.0)
        thermal = view.heat[there]
        body = 100.0 * alpha + view.look.body_heat * sprite.warmth[part]
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
            boxes.append(Box(label, x, y, w, h, level))
    return boxes


def occlusion_level(seen: float) -> int | None:
    """KAIST's level for the share of a figure that is seen; None when it is totally hidden."""
    if seen >= NONE_HIDDEN:
        return 0
    if seen >= PARTLY_HIDDEN:
        return 1
    return 2 if seen >= TOTALLY_HIDDEN else None


def _cast_shadow(view: Backdrop, sprite: Sprite, foot: tuple[int, int], x: float, z: float) -> None:
    """Lay the figure's outline on the ground, long in the sun, a smudge elsewhere."""
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
    view: Backdrop, noise: Noise, noise_visible: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The two sensors' pictures of a view: visible uint8 ``(H, W, 3)`` BGR and LWIR uint8 ``(H, W)``.

    ``noise_visible`` is ``noise.scaled(...)`` for this look.
    """
    height, width = size
    v, u = (int(k) for k in rng.integers(0, NOISE_MARGIN + 1, 2))
    grain = noise_visible[v : v + height, u : u + width]
    visible = view.visible[PAD : PAD + height, PAD : PAD + width]
    exposure = float(rng.uniform(0.93, 1.07))
    visible = cv2.add(cv2.convertScaleAbs(visible, alpha=exposure), grain, dtype=cv2.CV_8U)
    dx, dy = view.look.misalignment
    heat = cv2.GaussianBlur(view.heat, (0, 0), max(0.5, height / 512.0))
    heat = heat[PAD + dy : PAD + dy + height, PAD + dx : PAD + dx + width]
    level = cv2.convertScaleAbs(heat, alpha=view.look.lwir_level / 100.0)
    v, u = (int(k) for k in rng.integers(0, NOISE_MARGIN + 1, 2))
    lwir = cv2.add(level, noise.thermal[v : v + height, u : u + width], dtype=cv2.CV_8U)
    return visible, lwir
