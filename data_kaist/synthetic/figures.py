"""People and cyclists as jointed figures, painted into small sprites.

A figure lives in a plane through its middle: metres, x along the picture, y up from the ground. A movement of ``d``
metres in the walking direction shows as ``d * sin(view)``, an offset of ``l`` metres to the side as ``l * cos(view)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from data_kaist.synthetic.canvas import SUBPIXEL_BITS, Bgr, any_colour, palette, shaded, subpixels

SKIN = palette("cda587 c39678 aa7d5f dcb496")
HAIR = palette("161414 261e1c 4b3728 7a7878")
TOPS = palette("1c1c1e 282d3c 2c2a2d 606264 d2d0cd 962328 284678 96826e 3c5a3c be82a0 be963c 44464b")
BOTTOMS = palette("1e1e20 2d3e5a 262d3c 525050 a08c78 c8c3be")
_SWEEP = np.linspace(-np.pi / 2, np.pi / 2, 5)


@dataclass(frozen=True)
class Sprite:
    """A painted figure."""

    bgr: np.ndarray  # float32 ``(h, w, 3)``, colour in white light times ``alpha``
    warmth: np.ndarray  # float32 ``(h, w)``, 0 the air, 1 bare skin, times ``alpha``
    alpha: np.ndarray  # float32 ``(h, w)`` in 0..1
    body: np.ndarray  # bool ``(h, w)``, what an annotator's box goes round: the figure without its umbrella
    anchor: tuple[int, int]  # (column, row) of the ground point under the figure's middle, pixels in the sprite


@dataclass(frozen=True)
class Person:
    """Appearance and gait of a person; see :meth:`sample`."""

    stature: float  # metres
    build: float  # width relative to the average
    view: float  # walking direction, radians; 0 away from the camera, pi towards it, pi / 2 to the right
    phase: float  # of the gait, radians
    stride: float  # swing of the thigh, radians; near 0 stands
    top: Bgr  # B, G, R
    bottom: Bgr
    hair: Bgr
    skin: Bgr
    shoes: Bgr
    hem: float  # height over the ground at which the upper garment ends, in statures
    skirt: bool  # bare legs under the hem
    insulation: float  # 0..1, how much of the body's heat the coat keeps in
    extra: str  # ``""``, ``"backpack"``, ``"bag"``, ``"umbrella"``, ``"hat"`` or ``"hood"``
    stripe: Bgr | None  # B, G, R of a band over the chest, or None

    @classmethod
    def sample(cls, rng: np.random.Generator, clothing: float = 0.0) -> Person:
        """A random person; ``clothing`` as in :class:`~data_kaist.synthetic.conditions.Conditions`."""
        child = rng.random() < 0.07
        skirt = rng.random() < 0.14
        hem = float(rng.choice([0.47, 0.45, 0.42, 0.33, 0.27], p=[0.35, 0.3, 0.17, 0.1, 0.08]))
        if skirt:
            hem = float(rng.uniform(0.28, 0.36))
        extras = ("", "backpack", "bag", "hat", "hood", "umbrella")
        extra = str(rng.choice(extras, p=[0.5, 0.14, 0.18, 0.08, 0.06, 0.04]))
        walks = rng.random() < 0.8

        def pick(colours: tuple[Bgr, ...]) -> Bgr:
            colour = colours[int(rng.integers(len(colours)))]
            if clothing and colours in (TOPS, BOTTOMS) and rng.random() < clothing:
                colour = any_colour(rng)
            blue, green, red = np.clip(shaded(colour, rng.uniform(0.75, 1.3)) + rng.normal(0, 8, 3), 8, 250).tolist()
            return (blue, green, red)

        return cls(
            stature=float(rng.uniform(1.05, 1.4) if child else np.clip(rng.normal(1.68, 0.085), 1.48, 1.92)),
            build=float(np.clip(rng.normal(1.0, 0.11), 0.8, 1.3)),
            view=float(rng.choice([0.0, np.pi, np.pi / 2, -np.pi / 2], p=[0.3, 0.3, 0.2, 0.2]) + rng.normal(0, 0.35)),
            phase=float(rng.uniform(0, 2 * np.pi)),
            stride=float(rng.uniform(0.3, 0.52) if walks else rng.uniform(0.02, 0.1)),
            top=pick(TOPS),
            bottom=pick(BOTTOMS),
            hair=pick(HAIR),
            skin=pick(SKIN),
            shoes=pick(BOTTOMS),
            hem=hem,
            skirt=skirt,
            insulation=float(rng.uniform(0.1 * (1 - clothing), 0.65 + 0.3 * clothing)),
            extra=extra,
            stripe=pick(TOPS) if rng.random() < 0.2 else None,
        )


class _Brush:
    """Paints in a figure's metres onto an oversampled patch."""

    def __init__(self, pixels_per_metre: float, half_width: float, top: float) -> None:
        # Small figures get more samples per pixel, so that thin limbs do not flicker away.
        self.over = 2 if pixels_per_metre > 45 else 3 if pixels_per_metre > 22 else 4
        self.scale = pixels_per_metre * self.over
        below = 0.06
        self.columns = 2 * max(4, int(np.ceil(half_width * pixels_per_metre)))
        self.above = max(6, int(np.ceil(top * pixels_per_metre)))
        rows = self.above + max(2, int(np.ceil(below * pixels_per_metre)))
        self.patch = np.zeros((rows * self.over, self.columns * self.over, 4), np.uint8)
        self._body: np.ndarray | None = None

    def body_is_done(self) -> None:
        """Later strokes are of carried things, which no box includes."""
        self._body = self._painted()

    def _painted(self) -> np.ndarray:
        """Float32 share of each pixel that is painted by now."""
        rows, columns = self.patch.shape[0] // self.over, self.columns
        mask = (self.patch[..., 3] > 0).astype(np.float32)
        return cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_AREA)

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        middle = self.columns * self.over / 2, self.above * self.over
        return subpixels(points * (self.scale, -self.scale) + middle)

    def polygon(self, points: list[tuple[float, float]] | np.ndarray, bgr: Bgr, warmth: float) -> None:
        """Fill a polygon; ``warmth`` 0..1."""
        colour = (*bgr, 40.0 + 200.0 * min(max(warmth, 0.0), 1.0))
        cv2.fillPoly(self.patch, [self._pixels(np.asarray(points, float))], colour, cv2.LINE_8, SUBPIXEL_BITS)

    def limb(
        self, a: tuple[float, float], b: tuple[float, float], ra: float, rb: float, bgr: Bgr, warmth: float
    ) -> None:
        """A tapered limb from ``a`` (radius ``ra``) to ``b`` (radius ``rb``)."""
        along = np.array(b) - np.array(a)
        length = float(np.hypot(*along))
        angle = float(np.arctan2(along[1], along[0])) if length > 1e-6 else -np.pi / 2
        half = np.array([np.cos(angle + _SWEEP), np.sin(angle + _SWEEP)]).T
        end, start = np.array(b) + rb * half, np.array(a) - ra * half
        self.polygon(np.concatenate([end, start]), bgr, warmth)

    def oval(
        self, centre: tuple[float, float], rx: float, ry: float, bgr: Bgr, warmth: float, upper: bool = False
    ) -> None:
        """An ellipse, or its upper part only."""
        angle = np.linspace(-0.15, np.pi + 0.15, 12) if upper else np.arange(16) * (np.pi / 8)
        self.polygon(np.array([centre[0] + rx * np.cos(angle), centre[1] + ry * np.sin(angle)]).T, bgr, warmth)

    def ring(self, centre: tuple[float, float], rx: float, ry: float, bgr: Bgr, warmth: float) -> None:
        """An ellipse's outline, for wheels."""
        angle = np.arange(24) * (np.pi / 12)
        points = np.stack([centre[0] + rx * np.cos(angle), centre[1] + ry * np.sin(angle)], axis=1)
        thick = max(1, round(0.045 * self.scale))
        colour = (*bgr, 40.0 + 200.0 * warmth)
        cv2.polylines(self.patch, [self._pixels(points)], True, colour, thick, cv2.LINE_8, SUBPIXEL_BITS)

    def finish(self, rng: np.random.Generator) -> Sprite:
        """Shade the cloth, then scale down to pixels."""
        rows, columns = self.patch.shape[0] // self.over, self.columns
        small = cv2.resize(self.patch, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
        alpha = self._painted()
        body = alpha if self._body is None else self._body
        coarse = rng.normal(1.0, 0.13, (9, 6)).astype(np.float32)
        folds = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
        left, right = rng.uniform(0.85, 1.15, 2)
        side = np.linspace(left, right, columns, dtype=np.float32)
        bgr = small[..., :3] * (folds * side)[..., None]
        warmth = (small[..., 3] - 40.0 * alpha) * (1.0 / 200.0) * (0.5 + 0.5 * folds)
        return Sprite(bgr, warmth, alpha, body >= 0.5, (columns // 2, self.above))


def paint_person(person: Person, pixels_per_metre: float, rng: np.random.Generator) -> Sprite:
    """Sprite of a pedestrian."""
    p, h = person, person.stature
    umbrella = p.extra == "umbrella"
    brush = _Brush(pixels_per_metre, max(0.62, 0.4 * h), 2.3 if umbrella else h * 1.09 + 0.05)
    sin, cos = float(np.sin(p.view)), float(np.cos(p.view))
    away = cos > 0
    swing = float(np.sin(p.phase))
    child = h < 1.43
    head_y, head_r = (0.895, 0.078) if child else (0.93, 0.063)
    shoulder_y, hip_y = (0.77, 0.48) if child else (0.815, 0.52)
    thigh, shin = 0.245 * hip_y / 0.52, 0.245 * hip_y / 0.52

    def place(forward: float, sideways: float, y: float) -> tuple[float, float]:
        return ((forward * sin + sideways * cos) * h, y * h)

    legs = []
    for lat, sign in ((-0.05, 1.0), (0.05, -1.0)):
        hip_angle = p.stride * swing * sign + 0.03
        lift = max(0.0, float(np.cos(p.phase)) * sign)
        knee_angle = hip_angle - (0.12 + 1.0 * lift) * p.stride * 1.7
        knee = (thigh * np.sin(hip_angle), hip_y - thigh * np.cos(hip_angle))
        ankle = (knee[0] + shin * np.sin(knee_angle), knee[1] - shin * np.cos(knee_angle))
        legs.append((lat * (1.1 if p.stride < 0.15 else 0.8), knee, ankle))
    # The lower foot stands on the ground: a walking body bobs.
    drop = min(leg[2][1] for leg in legs) - 0.022
    arms = []
    for lat, sign in ((-0.125, -1.0), (0.125, 1.0)):
        angle = 0.85 * p.stride * swing * sign
        bend = angle + 0.25 + 0.5 * p.stride
        elbow = (0.165 * np.sin(angle), shoulder_y - 0.02 - 0.165 * np.cos(angle))
        hand = (elbow[0] + 0.15 * np.sin(bend), elbow[1] - 0.15 * np.cos(bend))
        arms.append((lat * p.build, elbow, hand))
    # What is farther from the camera comes first.
    near_first = sorted((0, 1), key=lambda k: -(legs[k][0] * sin))
    cloth = 1.0 - p.insulation
    leg_warmth = 0.88 if p.skirt else 0.38 + 0.42 * cloth
    leg_colour = p.skin if p.skirt else p.bottom
    top_warmth = 0.2 + 0.55 * cloth

    def leg(k: int, dim: float) -> None:
        lat, knee, ankle = legs[k]
        a, b = place(0, lat, hip_y - drop), place(knee[0], lat, knee[1] - drop)
        c = place(ankle[0], lat, ankle[1] - drop)
        slim = 0.7 if p.skirt else 1.0
        colour = shaded(leg_colour, dim)
        brush.limb(a, b, 0.056 * h * p.build, 0.04 * h * slim, colour, leg_warmth)
        brush.limb(b, c, 0.038 * h * slim, 0.026 * h * slim, colour, leg_warmth * 0.93)
        toe = place(ankle[0] + 0.075, lat, max(ankle[1] - drop - 0.018, 0.008))
        brush.limb(c, (toe[0], toe[1]), 0.024 * h, 0.016 * h, shaded(p.shoes, dim), 0.3)

    def arm(k: int, dim: float) -> None:
        lat, elbow, hand = arms[k]
        a, b = place(0, lat, shoulder_y - 0.015 - drop), place(elbow[0], lat * 1.18, elbow[1] - drop)
        c = place(hand[0], lat * 1.15, hand[1] - drop)
        colour = shaded(p.top, dim)
        brush.limb(a, b, 0.036 * h * p.build, 0.03 * h, colour, top_warmth)
        brush.limb(b, c, 0.03 * h, 0.022 * h, colour, top_warmth * 0.95)
        brush.oval(c, 0.025 * h, 0.028 * h, shaded(p.skin, dim), 0.9)
        if p.extra == "bag" and k == near_first[0]:
            brush.limb((c[0], c[1]), (c[0], c[1] - 0.1 * h), 0.04 * h, 0.06 * h, shaded(p.shoes, 1.3), 0.1)

    far = near_first[1]
    arm(far, 0.8)
    leg(far, 0.82)
    leg(near_first[0], 1.0)
    pack = place(-0.1, 0, 0.71 - drop)
    if p.extra == "backpack" and not away:
        brush.oval(pack, 0.08 * h, 0.11 * h, shaded(p.bottom, 1.2), 0.12)

    def width(front: float, depth: float) -> float:
        return float(np.hypot(front * cos, depth * sin)) * h * p.build

    chest, waist, seat = width(0.122, 0.075), width(0.092, 0.068), width(0.1, 0.078)
    hem = min(p.hem, hip_y - 0.02)
    flare = seat * (1.25 if hem < 0.4 else 1.02)
    levels = [
        (chest * 0.5, shoulder_y + 0.03), (chest, shoulder_y - 0.015), (chest * 0.98, 0.72), (waist, 0.61),
        (seat, 0.52), (flare, hem),
    ]  # fmt: skip
    outline = [(w, (y - drop) * h) for w, y in levels]
    brush.polygon(outline + [(-w, y) for w, y in reversed(outline)], p.top, top_warmth)
    if p.stripe is not None:
        band = [(chest * 0.97, (0.76 - drop) * h), (waist * 1.02, (0.66 - drop) * h)]
        brush.polygon(band + [(-w, y) for w, y in reversed(band)], p.stripe, top_warmth)
    if p.extra == "backpack" and away:
        brush.oval(pack, 0.095 * h * p.build, 0.125 * h, shaded(p.bottom, 1.2), 0.12)
    lean = place(0.02, 0, 0)[0]
    neck = (lean * 0.5, (shoulder_y + 0.02 - drop) * h)
    head = (lean, (head_y - drop) * h)
    brush.limb(neck, head, 0.034 * h, 0.032 * h, p.skin, 0.95)
    if p.extra == "hood":
        brush.oval(head, head_r * 1.15 * h, head_r * 1.25 * h, p.top, 0.45)
    brush.oval(head, head_r * 0.86 * h, head_r * 1.12 * h, p.hair if away else p.skin, 0.72 if away else 1.0)
    if not away and p.extra != "hood":
        brush.oval((head[0], head[1] + 0.02 * h), head_r * 0.92 * h, head_r * 0.98 * h, p.hair, 0.7, upper=True)
    if abs(sin) > 0.5 and p.extra != "hood":
        back = -np.sign(sin) * head_r * 0.4 * h
        brush.oval((head[0] + back, head[1] + 0.012 * h), head_r * 0.66 * h, head_r * h, p.hair, 0.7)
    if p.extra == "hat":
        brush.oval((head[0], head[1] + 0.025 * h), head_r * 1.0 * h, head_r * 1.0 * h, p.bottom, 0.4, upper=True)
        peak = (head[0] + 0.07 * sin * h, head[1] + 0.015 * h)
        brush.limb((head[0], head[1] + 0.02 * h), peak, 0.02, 0.014, p.bottom, 0.4)
    arm(near_first[0], 0.95)
    if umbrella:
        brush.body_is_done()
        grip = place(0.08, 0.1, 0.68 - drop)
        brush.limb(grip, (grip[0], 2.05), 0.012, 0.012, (60, 60, 60), 0.1)
        brush.oval((grip[0], 1.88), 0.52, 0.32, p.stripe or p.bottom, 0.05, upper=True)
    return brush.finish(rng)


def paint_cyclist(person: Person, pixels_per_metre: float, rng: np.random.Generator) -> Sprite:
    """Sprite of a cyclist."""
    p = person
    brush = _Brush(pixels_per_metre, 1.05, 1.95)
    sin, cos = float(np.sin(p.view)), float(np.cos(p.view))
    frame: Bgr = shaded(p.top, 0.9) if p.stripe else (60, 60, 65)
    rubber: Bgr = (32, 32, 32)

    def place(forward: float, sideways: float, y: float) -> tuple[float, float]:
        return (forward * sin + sideways * cos, y)

    radius = 0.34
    for hub in (-0.52, 0.52):
        centre = place(hub, 0, radius)
        if abs(sin) < 0.2:
            brush.limb((centre[0], 0.05), (centre[0], 2 * radius), 0.04, 0.04, rubber, 0.2)
        else:
            brush.ring(centre, radius * abs(sin), radius, rubber, 0.2)
    crank, saddle, bar = (-0.06, 0.28), (-0.2, 0.9), (0.42, 1.0)
    rear, front, lug = (-0.52, radius), (0.52, radius), (0.38, 0.8)
    for a, b in ((rear, crank), (crank, saddle), (crank, lug), (front, bar), (saddle, lug)):
        brush.limb(place(a[0], 0, a[1]), place(b[0], 0, b[1]), 0.022, 0.022, frame, 0.1)
    brush.limb(place(bar[0], -0.28, 1.02), place(bar[0], 0.28, 1.02), 0.02, 0.02, frame, 0.1)
    warm_top = 0.25 + 0.55 * (1 - p.insulation)
    warm_leg = 0.45 + 0.35 * (1 - p.insulation)
    hip, shoulder = (-0.2, 0.98), (0.1, 1.42)
    order = (-1, 1) if sin > 0 else (1, -1)

    def leg(side: int, dim: float) -> None:
        turn = p.phase + (np.pi if side > 0 else 0.0)
        pedal = (crank[0] + 0.17 * np.cos(turn), crank[1] + 0.17 * np.sin(turn))
        reach = np.array(pedal) - np.array(hip)
        gap = min(float(np.hypot(*reach)), 0.86)
        bow = float(np.sqrt(max(0.44**2 - (gap / 2) ** 2, 0.0)))
        middle = np.array(hip) + reach / 2
        knee = middle + bow * np.array([-reach[1], reach[0]]) / max(float(np.hypot(*reach)), 1e-6)
        a, b = place(hip[0], 0.09 * side, hip[1]), place(float(knee[0]), 0.11 * side, float(knee[1]))
        c = place(float(pedal[0]), 0.1 * side, float(pedal[1]))
        brush.limb(a, b, 0.1 * p.build, 0.065, shaded(p.bottom, dim), warm_leg)
        brush.limb(b, c, 0.062, 0.045, shaded(p.bottom, dim), warm_leg)
        brush.limb(c, place(float(pedal[0]) + 0.14, 0.1 * side, float(pedal[1])), 0.04, 0.03, p.shoes, 0.3)

    def arm(side: int, dim: float) -> None:
        a, c = place(shoulder[0], 0.19 * side, shoulder[1] - 0.04), place(bar[0], 0.26 * side, 1.05)
        b = place(0.2, 0.26 * side, 1.2)
        brush.limb(a, b, 0.06, 0.05, shaded(p.top, dim), warm_top)
        brush.limb(b, c, 0.05, 0.038, shaded(p.top, dim), warm_top)
        brush.oval(c, 0.045, 0.045, p.skin, 0.9)

    leg(order[0], 0.8)
    arm(order[0], 0.8)
    spread = float(np.hypot(0.2 * cos, 0.12 * sin)) * p.build
    seat, neck = place(hip[0], 0, hip[1]), place(shoulder[0], 0, shoulder[1])
    brush.limb(seat, neck, spread * 0.85, spread, p.top, warm_top)
    leg(order[1], 1.0)
    arm(order[1], 1.0)
    head = place(shoulder[0] + 0.12, 0, shoulder[1] + 0.27)
    brush.limb(neck, head, 0.06, 0.055, p.skin, 0.9)
    brush.oval(head, 0.095, 0.125, p.hair if cos > 0 else p.skin, 0.72 if cos > 0 else 1.0)
    cap = p.stripe or p.hair
    brush.oval((head[0], head[1] + 0.03), 0.11, 0.11, cap, 0.4, upper=True)
    return brush.finish(rng)
