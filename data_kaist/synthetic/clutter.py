"""Street furniture: cars, trees, poles, bins, and distractors that resemble people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_kaist.synthetic.canvas import Bgr, Canvas, any_colour, palette, shaded
from data_kaist.synthetic.conditions import Conditions
from data_kaist.synthetic.street import SIGN_COLOURS

CAR_COLOURS = palette("e1e1e1 cdcdc8 1e2023 3a3a3c 767878 962828 1e3c82 c8be96")

BIN_COLOURS = palette("325a3c 5a5a5a 28466e a09b96")


@dataclass(frozen=True)
class Obstacle:
    """A footprint on the ground without people, metres."""

    x0: float
    x1: float
    z0: float
    z1: float

    def holds(self, x: float, z: float, margin: float = 0.35) -> bool:
        """Whether ``(x, z)`` lies within ``margin`` metres of the footprint."""
        return self.x0 - margin < x < self.x1 + margin and self.z0 - margin < z < self.z1 + margin


def furnish(canvas: Canvas, look: Conditions, rng: np.random.Generator) -> tuple[list[Obstacle], np.ndarray]:
    """Paint a street's furniture from far to near.

    Returns:
        the footprints, and the lamps ``(n, 3)``: X, Z, strength.
    """
    jobs: list[tuple[float, Callable[[], Obstacle]]] = []
    lamps: list[tuple[float, float, float]] = []
    half = look.road_half

    def add(z: float, paint: Callable[..., Obstacle], *args: float) -> None:
        jobs.append((z, lambda: paint(canvas, look, rng, *args)))

    parked = (rng.random() < 0.5, rng.random() < 0.5)
    trees = rng.random() < 0.45
    for side, cars, wall in zip((-1.0, 1.0), parked, look.walls, strict=True):
        z = rng.uniform(4.5, 12.0)
        while cars and z < 60.0:
            if rng.random() < 0.5:
                add(z, _car, side * (half - 1.15), z, 0.0)
            z += rng.uniform(5.4, 8.0)
        z = rng.uniform(6.0, 12.0)
        while trees and z < 55.0:
            add(z, _tree, side * (half + 0.8 + rng.uniform(0, 0.5)), z)
            z += rng.uniform(6.5, 12.0)
        z = rng.uniform(7.0, 22.0)
        while z < 70.0:
            x = side * (half + 0.5)
            strength = look.lamp_power * (rng.uniform(0.5, 1.1) if rng.random() < 0.85 else 0.0)
            add(z, _lamp, x, z, strength)
            lamps.append((x - side * 1.2, z, strength * (0.6 if look.lit_city else 0.75)))
            z += rng.uniform(14.0, 24.0)
        for _ in range(int(rng.integers(2, 7))):
            z = float(np.exp(rng.uniform(np.log(5.0), np.log(45.0))))
            add(z, SMALL[int(rng.integers(len(SMALL)))], side * rng.uniform(half + 0.4, half + 2.4), z)
        for _ in range(round(look.junk)):
            z = float(np.exp(rng.uniform(np.log(6.0), np.log(45.0))))
            add(z, _junk, side * rng.uniform(half, wall - 0.4), z)
        if rng.random() < 0.35:
            z = rng.uniform(7.0, 25.0)
            for k in range(int(rng.integers(2, 5))):
                add(z + 2.0 * k, _bush, side * (half + 1.6), z + 2.0 * k)
    for _ in range(int(rng.integers(0, 4))):
        z = rng.uniform(9.0, 60.0)
        lane = float(rng.choice([-1.0, 1.0]))
        add(z, _car, lane * half * 0.4, z, 1.0 if lane < 0 else 2.0)
    if rng.random() < 0.2:
        z = rng.uniform(8, 20)
        for k in range(4):
            add(z + 1.8 * k, _cone, half * 0.75, z + 1.8 * k)
    jobs.sort(key=lambda job: -job[0])
    return [job() for _, job in jobs], np.array(lamps).reshape(-1, 3)


def _shadow(
    canvas: Canvas, look: Conditions, x: tuple[float, float], z: tuple[float, float], dark: float = 0.5
) -> None:
    """Darken a patch of ground."""
    corners = np.array([(x[0], 0, z[0]), (x[1], 0, z[0]), (x[1], 0, z[1]), (x[0], 0, z[1])], float)
    corners[:, 2] = np.maximum(corners[:, 2], 1.0)
    grey = 62.0 * dark
    canvas.polygon(canvas.camera.project(corners), (grey, grey, grey), look.ground_heat * 0.97)


def _car(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, z: float, mode: float) -> Obstacle:
    """A car seen from behind, parked or driving ahead. With ``mode`` 1 it comes towards the camera."""
    wide, long = rng.uniform(0.84, 0.95), rng.uniform(4.0, 4.8)
    belt, roof = rng.uniform(0.85, 1.0), rng.uniform(1.38, 1.75)
    paint = shaded(CAR_COLOURS[int(rng.integers(len(CAR_COLOURS)))], rng.uniform(0.85, 1.1))
    running = mode > 0 or rng.random() < 0.3
    body = 100.0 + (look.ground_heat - 100) * 0.5 + rng.uniform(-22, 2) + (8 if running else 0)
    glass: Bgr = (58, 52, 46)
    inner = x + wide if x < 0 else x - wide
    x0, x1 = x - wide, x + wide
    z1 = z + long
    middle = z + 0.5 * long
    _shadow(canvas, look, (x0 - 0.15, x1 + 0.15), (z - 0.2, z1), 0.4)
    if abs(x) > 0.6:
        side = shaded(paint, 0.78)
        flank = [(inner, 0.28, z), (inner, 0.28, z1), (inner, belt * 0.92, z1), (inner, belt, z)]
        canvas.face(flank, side, body, middle)
        cabin_in = inner * 0.96
        a, b = z + 0.12 * long, z + 0.72 * long
        canvas.face(
            [(cabin_in, belt, z + 0.02), (cabin_in, belt * 0.95, b + 0.9), (cabin_in, roof, b), (cabin_in, roof, a)],
            side,
            body - 8,
            middle,
        )
        for near, far in ((a + 0.1, z + 0.40 * long), (z + 0.43 * long, b + 0.25)):
            pane = [(inner, belt + 0.04, near), (inner, belt + 0.03, far)]
            pane += [(cabin_in, roof - 0.1, min(far, b)), (cabin_in, roof - 0.1, near + 0.15)]
            canvas.face(pane, glass, body - 14)
        wheel = body + (rng.uniform(25, 70) if running else rng.uniform(0, 14))
        for hub in (z + 0.19 * long, z + 0.8 * long):
            canvas.disc((inner, 0.32, hub), (0.33, 0.32), (28, 27, 26), wheel, plane="zy")
            canvas.disc((inner, 0.32, hub), (0.19, 0.19), (120, 120, 120), wheel, plane="zy", solid=False)
    tyre = body + (rng.uniform(20, 60) if running else 5)
    for u in (x0 + 0.02, x1 - 0.22):
        canvas.upright((u, u + 0.2), (0, 0.4), z + 0.1, (25, 25, 25), tyre)
    nose = body + (rng.uniform(15, 55) if running and mode == 1 else 0)
    canvas.upright((x0, x1), (0.24, belt), z, paint, nose)
    cabin = [(x0 + 0.06, belt, z), (x1 - 0.06, belt, z), (x1 - 0.2, roof, z + 0.3), (x0 + 0.2, roof, z + 0.3)]
    canvas.face(cabin, paint, body - 6, z)
    pane = [(x0 + 0.16, belt + 0.05, z), (x1 - 0.16, belt + 0.05, z)]
    pane += [(x1 - 0.28, roof - 0.1, z + 0.2), (x0 + 0.28, roof - 0.1, z + 0.2)]
    canvas.face(pane, shaded(glass, 1.3), body - 18)
    canvas.upright((x0, x1), (0.24, 0.4), z, shaded(paint, 0.6), nose, solid=False)
    canvas.upright((x - 0.26, x + 0.26), (0.48, 0.6), z, (215, 220, 220), body, solid=False)
    if running:
        canvas.upright((x0 + 0.3, x1 - 0.3), (0.12, 0.26), z, (20, 20, 20), body + rng.uniform(20, 70))
    lamp_glow: Bgr | None = None
    if mode == 1:
        lamp: Bgr = (230, 235, 235)
        lamp_glow = (255, 255, 255) if not look.day else None
    else:
        lamp = (30, 30, 190)
        lamp_glow = (30, 30, 250) if not look.day and running else None
    for u in (x0 + 0.2, x1 - 0.2):
        canvas.disc((u, belt - 0.2, z), (0.15, 0.11), lamp, nose + 20, solid=False, glow=lamp_glow)
    return Obstacle(x0, x1, z, z1)


def _tree(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, z: float) -> Obstacle:
    """A street tree: trunk and a crown of leaf clumps, whose lower rim hides heads now and then."""
    thick = rng.uniform(0.1, 0.2)
    low, tall = rng.uniform(1.7, 2.8), rng.uniform(4.5, 9.0)
    canvas.upright((x - thick, x + thick), (0, low + 1.0), z, (48, 62, 78), look.leaf_heat * 1.04)
    autumn = rng.random() < 0.2
    base: Bgr = (40, 95, 130) if autumn else (38, 78, 58)
    radius = (tall - low) * rng.uniform(0.32, 0.5)
    for k in range(int(np.clip(1200 / z, 36, 110))):
        angle, out = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        u = x + radius * out * np.cos(angle)
        v = (low + tall) / 2 + 0.5 * (tall - low) * out * np.sin(angle)
        size = radius * rng.uniform(0.06, 0.22)
        shade = 0.55 + 0.5 * (v - low) / (tall - low) + rng.uniform(-0.25, 0.25) + 0.002 * k
        canvas.disc((u, v, z), (size, size * 0.8), shaded(base, shade), look.leaf_heat * rng.uniform(0.93, 1.05))
    return Obstacle(x - thick, x + thick, z - thick, z + thick)


def _bush(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, z: float) -> Obstacle:
    """A hedge's length, about hip high."""
    tall = rng.uniform(0.6, 1.1)
    for _ in range(22):
        u, v = x + rng.uniform(-0.9, 0.9), rng.uniform(0.12, tall)
        shade = rng.uniform(0.5, 0.8) + 0.5 * v / tall
        canvas.disc((u, v, z), (0.2, 0.16), shaded((38, 80, 55), shade), look.leaf_heat * rng.uniform(0.93, 1.06))
    return Obstacle(x - 0.9, x + 0.9, z - 0.3, z + 0.3)


def _lamp(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, z: float, strength: float) -> Obstacle:
    """A street lamp, lit at night when its strength is over 0."""
    side = 1 if x > 0 else -1
    grey: Bgr = (105, 108, 108)
    canvas.upright((x - 0.08, x + 0.08), (0, 6.5), z, grey, 98)
    canvas.upright((x, x - side * 1.5), (6.4, 6.55), z, grey, 98)
    lit = not look.day and strength > 0
    glow = (190.0, 245.0, 255.0) if lit else None
    canvas.disc((x - side * 1.4, 6.4, z), (0.34, 0.14), (200, 205, 205), 190 if lit else 100, glow=glow)
    return Obstacle(x - 0.1, x + 0.1, z - 0.1, z + 0.1)


def _pole(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, z: float) -> Obstacle:
    """A traffic sign on a pole."""
    canvas.upright((x - 0.05, x + 0.05), (0, 2.9), z, (150, 152, 152), 96)
    colour = SIGN_COLOURS[int(rng.integers(len(SIGN_COLOURS)))]
    if rng.random() < 0.5:
        canvas.disc((x, 2.6, z), (0.34, 0.34), colour, 94)
        canvas.disc((x, 2.6, z), (0.22, 0.22), (235, 235, 235), 94, solid=False)
    else:
        canvas.upright((x - 0.4, x + 0.4), (2.2, 3.0), z, colour, 94)
    return Obstacle(x - 0.05, x + 0.05, z, z)


def _bin(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, z: float) -> Obstacle:
    """A litter bin or a cabinet."""
    wide, tall = rng.uniform(0.22, 0.55), rng.uniform(0.8, 1.5)
    colour = shaded(BIN_COLOURS[int(rng.integers(len(BIN_COLOURS)))], rng.uniform(0.7, 1.2))
    heat = 100 + rng.uniform(-8, 10) + (rng.uniform(20, 60) if rng.random() < 0.25 else 0)
    _shadow(canvas, look, (x - wide, x + wide), (z - 0.1, z + 0.3))
    canvas.upright((x - wide, x + wide), (0, tall), z, colour, heat)
    slot = (tall * 0.78, tall * 0.88)
    canvas.upright((x - wide * 0.9, x + wide * 0.9), slot, z, shaded(colour, 0.5), heat, solid=False)
    return Obstacle(x - wide, x + wide, z, z + 0.4)


def _hydrant(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, z: float) -> Obstacle:
    """A hydrant or bollard: person-shaped and small."""
    red: Bgr = (40, 45, 185) if rng.random() < 0.5 else (70, 190, 210)
    canvas.upright((x - 0.12, x + 0.12), (0, 0.7), z, red, 97)
    canvas.disc((x, 0.75, z), (0.13, 0.12), shaded(red, 0.9), 97)
    canvas.upright((x - 0.2, x + 0.2), (0.42, 0.55), z, shaded(red, 0.8), 97)
    return Obstacle(x - 0.2, x + 0.2, z - 0.1, z + 0.1)


def _cone(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, z: float) -> Obstacle:
    """A traffic cone."""
    canvas.face([(x - 0.2, 0, z), (x + 0.2, 0, z), (x + 0.03, 0.75, z), (x - 0.03, 0.75, z)], (35, 75, 225), 97, z)
    canvas.upright((x - 0.11, x + 0.11), (0.34, 0.48), z, (225, 225, 225), 97, solid=False)
    return Obstacle(x - 0.2, x + 0.2, z - 0.1, z + 0.1)


def _dummy(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, z: float) -> Obstacle:
    """A distractor: two clothes-coloured boards and a round plate on a pole, as cold as the air."""
    top = SIGN_COLOURS[int(rng.integers(len(SIGN_COLOURS)))]
    canvas.upright((x - 0.06, x + 0.06), (0, 0.8), z, (40, 40, 42), 97)
    canvas.upright((x - 0.2, x + 0.2), (0.35, 0.9), z, shaded((80, 60, 50), rng.uniform(0.5, 1.6)), 97)
    canvas.upright((x - 0.24, x + 0.24), (0.85, 1.42), z, shaded(top, 0.8), 98)
    canvas.disc((x, 1.58, z), (0.13, 0.15), (130, 160, 195), 98)
    return Obstacle(x - 0.25, x + 0.25, z - 0.1, z + 0.1)


def _poster(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, z: float) -> Obstacle:
    """A distractor: a poster case with a person on it; at night lit and evenly warm."""
    tone = SIGN_COLOURS[int(rng.integers(len(SIGN_COLOURS)))]
    glow = shaded(tone, 0.9) if look.lit_city else None
    heat = 118.0 if look.lit_city else 97.0
    canvas.upright((x - 0.55, x + 0.55), (0.2, 2.1), z, shaded(tone, 1.1), heat, glow=glow)
    dark: Bgr = (40, 45, 60)
    canvas.upright((x - 0.2, x + 0.2), (0.95, 1.5), z, dark, heat, solid=False, glow=dark)
    canvas.upright((x - 0.16, x - 0.02), (0.35, 1.0), z, dark, heat, solid=False, glow=dark)
    canvas.upright((x + 0.02, x + 0.16), (0.35, 1.0), z, dark, heat, solid=False, glow=dark)
    canvas.disc((x, 1.66, z), (0.11, 0.14), (120, 150, 190), heat, solid=False, glow=dark)
    return Obstacle(x - 0.55, x + 0.55, z - 0.1, z + 0.1)


def _warm_box(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, z: float) -> Obstacle:
    """A distractor in LWIR: a vent or transformer, as tall and warm as a body."""
    tall = rng.uniform(1.0, 1.8)
    wide = rng.uniform(0.18, 0.3)
    heat = 100 + look.body_heat * rng.uniform(0.4, 0.9)
    canvas.upright((x - wide, x + wide), (0, tall), z, shaded((120, 122, 122), rng.uniform(0.5, 1.2)), heat)
    return Obstacle(x - wide, x + wide, z - 0.1, z + 0.2)


def _junk(canvas: Canvas, look: Conditions, rng: np.random.Generator, x: float, z: float) -> Obstacle:
    """A distractor of no kind: up to four blocks and discs above each other, in any colours and heats."""
    wide, y = rng.uniform(0.05, 0.7), 0.0
    for _ in range(int(rng.integers(1, 5))):
        half, tall = wide * rng.uniform(0.3, 1.0), rng.uniform(0.1, 1.2)
        heat = 100 + look.body_heat * rng.uniform(-0.3, 1.0)
        if rng.random() < 0.7:
            canvas.upright((x - half, x + half), (y, y + tall), z, any_colour(rng), heat)
        else:
            canvas.disc((x, y + tall / 2, z), (half, tall / 2), any_colour(rng), heat)
        y += tall
    return Obstacle(x - wide, x + wide, z - 0.1, z + 0.1)


SMALL: tuple[Callable[..., Obstacle], ...] = (_pole, _bin, _bin, _hydrant, _hydrant, _dummy, _poster, _warm_box)
