"""The street itself: sky, ground with its markings, buildings, and the light that falls on them."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from data_kaist.synthetic.canvas import Bgr, Canvas, palette, shaded
from data_kaist.synthetic.conditions import Conditions

NEAREST = 1.6
WALL_COLOURS = palette("968778 826e5f a5a096 7d5f50 beb4aa 6e6969 694b3c 8c968c")
SIGN_COLOURS = palette("c82828 dca028 2878c8 3c963c ebe6e6 a03c96 231e1e e6c832")


def paint_sky(canvas: Canvas, look: Conditions, rng: np.random.Generator) -> None:
    """Sky with clouds and a distant skyline, above the horizon."""
    width = canvas.depth.shape[1]
    rows = int(canvas.camera.horizon) + 2
    clouds = cv2.resize(rng.normal(size=(5, 9)).astype(np.float32), (width, rows), interpolation=cv2.INTER_CUBIC)
    up = np.linspace(1.0, 0.0, rows, dtype=np.float32)[:, None]
    for channel, (value, fall) in enumerate(zip(look.sky, (0.05, 0.12, 0.2), strict=True)):
        canvas.paint[:rows, :, channel] = np.clip(value * (1 - fall * up) + 5 * clouds * look.day, 0, 255)
    canvas.paint[:rows, :, 3] = np.clip(look.sky_heat * (1.4 - 0.8 * up) + 3 * clouds, 0, 255)
    if not look.day:
        # The night sky is seen by its own faint light, not by the street lamps.
        canvas.glow[:rows] = canvas.paint[:rows, :, :3]
    distance = look.end + 60.0
    x = -90.0
    while x < 90.0:
        wide, tall = rng.uniform(8, 22), rng.uniform(4, 30)
        grey = rng.uniform(0.75, 1.05)
        colour = (175 * grey, 165 * grey, 155 * grey) if look.day else (30 * grey, 30 * grey, 28 * grey)
        canvas.upright((x, x + wide), (0, tall), distance, colour, look.wall_heat * 0.8)
        if not look.day:
            for _ in range(int(rng.integers(0, 7))):
                u, v = x + rng.uniform(0, wide), rng.uniform(1, tall)
                canvas.upright((u, u + 0.9), (v, v + 1.0), distance, colour, look.wall_heat, glow=(120, 200, 230))
        x += wide + rng.uniform(0, 6)


def ground_texture(rng: np.random.Generator) -> np.ndarray:
    """Grain, stains and cracks, laid flat on the ground. Float32 ``(256, 256)`` around 0."""
    grain = rng.normal(size=(256, 256)).astype(np.float32)
    stains = cv2.resize(rng.normal(size=(16, 16)).astype(np.float32), (256, 256), interpolation=cv2.INTER_CUBIC)
    texture = 4.5 * cv2.GaussianBlur(grain, (0, 0), 0.8) * 2 + 5.0 * stains
    crack = np.cumsum(rng.normal(0, 3, (3, 40)), axis=1) + rng.uniform(30, 220, (3, 1))
    for row in crack:
        points = np.stack([row, np.linspace(0, 255, 40)], axis=1).astype(np.int32)
        cv2.polylines(texture, [points], False, -26.0, 1)
    return texture


def paint_ground(canvas: Canvas, look: Conditions, rng: np.random.Generator) -> None:
    """Carriageway, pavements with kerbs, lane marks, a crossing and manholes. All are textured."""
    grey = rng.uniform(58, 100)
    asphalt: Bgr = (grey * 1.02, grey, grey * 0.97)
    horizon = int(canvas.camera.horizon)
    canvas.paint[horizon + 1 :, :, :3] = np.array(asphalt, np.uint8)
    canvas.paint[horizon + 1 :, :, 3] = int(look.ground_heat)
    far = look.end + 60.0
    half = look.road_half
    tile = [(140, 145, 150), (105, 115, 150), (125, 140, 145)][int(rng.integers(3))]

    def flat(x0: float, x1: float, z0: float, z1: float, colour: Bgr, heat: float) -> None:
        z0 = max(z0, NEAREST)
        if z1 > z0:
            canvas.face([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)], colour, heat)

    for side in (-1, 1):
        flat(side * half, side * 60, NEAREST, far, tile, look.ground_heat * rng.uniform(0.95, 1.08))
        flat(side * half, side * (half + 0.22), NEAREST, far, shaded(tile, 1.2), look.ground_heat * 0.97)
        for z in np.arange(3.0, 26.0, 1.2):
            flat(side * half, side * 40, float(z), float(z) + 0.04, shaded(tile, 0.86), look.ground_heat * 0.98)
        if rng.random() < 0.8:
            yellow = rng.random() < 0.5
            colour = (60, 170, 205) if yellow else (205, 208, 208)
            edge = side * (half - 0.45)
            flat(edge, edge + 0.13, NEAREST, far, colour, look.ground_heat * 0.97)
    if rng.random() < 0.8:
        for z in np.arange(2.0, 70.0, 6.0) + rng.uniform(0, 5):
            flat(-0.08, 0.08, float(z), float(z) + 3.0, (200, 205, 205), look.ground_heat * 0.97)
    if rng.random() < 0.5:
        start = rng.uniform(6, 18)
        for x in np.arange(-half + 0.4, half - 0.5, 0.95):
            flat(float(x), float(x) + 0.48, start, start + 3.2, (205, 208, 208), look.ground_heat * 0.93)
        flat(-half + 0.3, half - 0.3, start - 2.2, start - 1.8, (205, 208, 208), look.ground_heat * 0.95)
    for _ in range(int(rng.integers(0, 4))):
        x, z = rng.uniform(-half, half), rng.uniform(4, 18)
        flat(x, x + 0.7, z, z + 0.7, shaded(asphalt, 0.7), look.ground_heat * rng.uniform(0.95, 1.15))
    _lay_texture(canvas, rng)


def _lay_texture(canvas: Canvas, rng: np.random.Generator) -> None:
    """Project a flat texture on everything below the horizon. It fades where it would alias."""
    camera, first = canvas.camera, int(canvas.camera.horizon) + 2
    height, width = canvas.depth.shape
    rows = np.arange(first, height, dtype=np.float32)[:, None]
    z = camera.focal * camera.height / (rows - camera.horizon)
    x = (np.arange(width, dtype=np.float32)[None, :] - camera.centre_x) * z / camera.focal
    texels = 28.0
    laid = cv2.remap(
        ground_texture(rng),
        (x * texels).astype(np.float32),
        np.broadcast_to(z * texels * 0.5, x.shape).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )
    laid *= np.exp(-z / 14.0)
    for channel, share in enumerate((1.0, 1.0, 1.0, 0.3)):
        layer = canvas.paint[first:, :, channel]
        layer[:] = np.clip(layer + share * laid, 0, 255)


def paint_buildings(canvas: Canvas, look: Conditions, rng: np.random.Generator) -> None:
    """Both building lines, and a front that closes the street. Painted from far to near."""
    x = -45.0
    while x < 45.0:
        wide = rng.uniform(9, 20)
        _front(canvas, look, rng, (x, x + wide), rng.uniform(7, 26), look.end + 2.0)
        x += wide + (0 if rng.random() < 0.6 else rng.uniform(2, 8))
    _treeline(canvas, look, rng)
    for side, wall in zip((-1, 1), look.walls, strict=True):
        # Now and then a side has hardly any houses: a park, a yard, a wide crossing.
        built = 0.9 if rng.random() < 0.75 else 0.25
        edges = [2.2 + rng.uniform(0, 3)]
        while edges[-1] < look.end:
            edges.append(edges[-1] + rng.uniform(6, 17))
        for near, far in reversed(list(pairwise(edges))):
            if rng.random() < built:
                _row_house(canvas, look, rng, side * wall, near, far)


def _treeline(canvas: Canvas, look: Conditions, rng: np.random.Generator) -> None:
    """Shrubs and trees far off, seen where no house stands."""
    z = look.end + 1.0
    for _ in range(70):
        size = rng.uniform(0.8, 2.6)
        x, y = rng.uniform(-45, 45), rng.uniform(0.75, 1.1) * size
        colour = shaded((48, 80, 62), rng.uniform(0.55, 1.1))
        canvas.disc((x, y, z), (size, size * 0.8), colour, look.leaf_heat * rng.uniform(0.95, 1.05))


def _window_pane(look: Conditions, rng: np.random.Generator, lit_share: float) -> tuple[Bgr, float, Bgr | None]:
    """Colour, heat and glow of one window pane."""
    glass = rng.uniform(0.5, 1.2)
    heat = look.wall_heat * rng.uniform(0.9, 1.05)
    if rng.random() < 0.08:
        heat += rng.uniform(10, 60)
    if not look.day and rng.random() < lit_share:
        power = rng.uniform(0.2, 0.9)
        return (150, 170, 180), heat + rng.uniform(0, 12), (150 * power, 215 * power, 245 * power)
    if look.day and rng.random() < 0.15:
        return (225, 215, 205), heat, None
    return (62 * glass, 56 * glass, 50 * glass), heat, None


def _sign(look: Conditions, rng: np.random.Generator) -> tuple[Bgr, float, Bgr | None]:
    """Colour, heat and glow of one shop sign."""
    colour = SIGN_COLOURS[int(rng.integers(len(SIGN_COLOURS)))]
    lit = look.lit_city and rng.random() < 0.75
    return colour, look.wall_heat + (rng.uniform(5, 45) if lit else 0), shaded(colour, 1.15) if lit else None


def _front(
    canvas: Canvas, look: Conditions, rng: np.random.Generator, x: tuple[float, float], tall: float, z: float
) -> None:
    """A building that faces the camera."""
    wall = shaded(WALL_COLOURS[int(rng.integers(len(WALL_COLOURS)))], rng.uniform(0.75, 1.25))
    warm = look.wall_heat * rng.uniform(0.93, 1.1) + (25 if look.sun_side and rng.random() < 0.3 else 0)
    canvas.upright(x, (0, tall), z, wall, warm)
    lit = 0.35 if look.lit_city else 0.08
    for y in np.arange(4.2, tall - 1.6, 3.1):
        for u in np.arange(x[0] + 0.8, x[1] - 1.6, 2.4):
            colour, heat, glow = _window_pane(look, rng, lit)
            canvas.upright((u, u + 1.5), (y, y + 1.6), z, colour, heat, solid=False, glow=glow)
    for u in np.arange(x[0] + 0.4, x[1] - 3.0, 3.8):
        colour, heat, glow = _window_pane(look, rng, 0.55 if look.lit_city else 0.12)
        canvas.upright((u, u + 3.2), (0.3, 2.6), z, colour, heat, solid=False, glow=glow)
        if rng.random() < 0.7:
            colour, heat, glow = _sign(look, rng)
            canvas.upright((u, u + 3.2), (2.8, 3.6), z, colour, heat, solid=False, glow=glow)


def _row_house(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, near: float, far: float) -> None:
    """A building along the street. It stands at X = ``x``, from Z = ``near`` to ``far``."""
    side = 1 if x > 0 else -1
    tall = rng.uniform(5, 26)
    wall = shaded(WALL_COLOURS[int(rng.integers(len(WALL_COLOURS)))], rng.uniform(0.75, 1.25))
    sunlit = look.sun_side == -side
    if look.sun_side:
        wall = shaded(wall, 1.25 if sunlit else 0.72)
    warm = look.wall_heat * rng.uniform(0.93, 1.08) + (rng.uniform(8, 40) if sunlit else 0)
    canvas.upright((x, x + side * 14), (0, tall), near, shaded(wall, 0.82), warm * 0.97)
    lit = 0.4 if look.lit_city else 0.08
    bays = max(2, round((far - near) / 3.0))
    edges = np.linspace(near, far, bays + 1)
    floors = np.arange(4.0, tall - 1.4, 3.0) if near < 55 else np.zeros(0)

    def panel(z0: float, z1: float, y0: float, y1: float, look_of: tuple[Bgr, float, Bgr | None]) -> None:
        corners = [(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)]
        canvas.face(corners, look_of[0], look_of[1], None, look_of[2])

    for z0, z1 in pairwise(edges.tolist()):
        # A wall's depth is its farther edge: nobody in front of the building line is ever taken for hidden by it.
        canvas.face([(x, 0, z0), (x, 0, z1), (x, tall, z1), (x, tall, z0)], wall, warm, z1 + 0.5)
        inset = 0.18 * (z1 - z0)
        for y in floors:
            panel(z0 + inset, z1 - inset, y, y + 1.5, _window_pane(look, rng, lit))
        if rng.random() < 0.85:
            panel(z0 + 0.2, z1 - 0.2, 0.2, 2.5, _window_pane(look, rng, 0.55 if look.lit_city else 0.08))
        if rng.random() < 0.6:
            panel(z0 + 0.1, z1 - 0.1, 2.7, 3.6, _sign(look, rng))
    if rng.random() < 0.35:
        # A sign that hangs out over the pavement, above every head.
        colour, heat, glow = _sign(look, rng)
        canvas.upright((x, x - side * 0.8), (3.2, rng.uniform(4.5, 7.5)), near + 0.3, colour, heat, glow=glow)


def light_at(
    look: Conditions, lamps: np.ndarray, x: np.ndarray | float, y: np.ndarray | float, z: np.ndarray | float
) -> np.ndarray:
    """Light at points (x, y, z) in metres, 1 is broad daylight. Float array of the shape that they broadcast to.

    ``lamps`` is ``(n, 3)``: X, Z and strength of the street lamps.
    """
    x, y, z = np.broadcast_arrays(np.asarray(x, float), y, z)
    light = np.full(x.shape, look.ambient)
    if look.day:
        if look.sun_side:
            # The houses on the sun's side throw a shade over part of the street.
            edge = look.sun_side * look.walls[0 if look.sun_side < 0 else 1]
            light = light * np.where((x - edge) * -look.sun_side < 3.2 - 0.8 * y, 0.52, 1.0)
        return light
    for lamp_x, lamp_z, strength in lamps:
        falloff = np.exp(-((x - lamp_x) ** 2 + (z - lamp_z) ** 2) / 24.0)
        light = light + strength * falloff * np.clip(1.25 - y / 6.0, 0.05, 1.0)
    beam = np.exp(-((x / (1.8 + 0.22 * z)) ** 2)) * np.minimum(1.0, (9.0 / z) ** 1.3)
    return light + look.headlight * beam * np.clip(1.35 - y / 1.5, 0.06, 1.0)


def distances(canvas: Canvas, step: int = 1) -> np.ndarray:
    """Pixel distances in metres, float32 ``(H / step, W / step)``. Ground and sky are at most 200 away."""
    camera, depth = canvas.camera, canvas.depth[::step, ::step]
    below = np.maximum(np.arange(0, canvas.depth.shape[0], step, dtype=np.float32)[:, None] - camera.horizon, 1.0)
    return np.where(np.isfinite(depth), depth, np.minimum(camera.focal * camera.height / below, 200.0))


def light_map(canvas: Canvas, look: Conditions, lamps: np.ndarray) -> np.ndarray:
    """Light on every painted surface, per channel. Float32 ``(H, W, 3)``."""
    height, width = canvas.depth.shape
    coarse, camera = 4, canvas.camera
    rows = np.arange(0, height, coarse, dtype=np.float32)[:, None]
    columns = np.arange(0, width, coarse, dtype=np.float32)[None, :]
    depth, z = canvas.depth[::coarse, ::coarse], distances(canvas, coarse)
    x = (columns - camera.centre_x) * z / camera.focal
    y = np.maximum(camera.height - (rows - camera.horizon) * z / camera.focal, 0.0)
    light = light_at(look, lamps, x, y, z)
    sky = ~np.isfinite(depth) & (rows <= camera.horizon)
    light[sky] = 1.0 if look.day else 0.0
    far = (columns / width - 0.5) ** 2 + (rows / height - 0.5) ** 2
    light = light * (1.0 - 0.35 * far)
    smooth = cv2.resize(cv2.GaussianBlur(light.astype(np.float32), (0, 0), 0.8), (width, height))
    return smooth[..., None] * np.array(look.tint, np.float32)
