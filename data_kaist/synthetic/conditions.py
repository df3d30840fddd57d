"""Hour, light, temperatures and street shape of a stretch of video."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

# By what ``--wide`` multiplies conditions of day and night.
WIDE_FACTORS = {
    "ambient": (0.3, 1.3),
    "headlight": (0.1, 1.8),
    "noise": (0.1, 1.5),
    "lwir_level": (0.5, 2.6),
    "body_heat": (0.5, 1.3),
    "sky_heat": (0.3, 3.0),
    "leaf_heat": (0.8, 1.4),
}


def _wide(plain: float, low: float, high: float, share: float = 1.0) -> float:
    """A field of value ``plain``. With ``--wide``, this share of backgrounds draws it uniformly between the limits."""
    made: float = field(default=plain, metadata={"wide": (low, high, share)})
    return made


@dataclass(frozen=True)
class Conditions:
    """Choices that hold for one background."""

    day: bool  # False at night
    ambient: float  # light that reaches everything, 1 is broad daylight
    tint: tuple[float, float, float]  # B, G, R of that light
    lit_city: bool  # at night, shop fronts and signs light the street
    headlight: float  # strength of the camera car's own beam
    sun_side: int  # -1 left or 1 right is where the sun stands; 0 is an overcast sky without shadows
    sky: tuple[float, float, float]  # B, G, R at the horizon
    noise: float  # standard deviation of the visible camera's noise, grey levels
    lwir_level: float  # grey level of a surface as warm as the air
    body_heat: float  # how much warmer than the air bare skin looks, heat units (the air is 100)
    ground_heat: float  # heat of the large surfaces
    wall_heat: float
    sky_heat: float
    leaf_heat: float
    road_half: float  # half the carriageway, metres
    walls: tuple[float, float]  # distance of the building lines left and right of the middle, metres
    end: float  # how far the street runs before something closes it, metres
    misalignment: tuple[int, int]  # (dx, dy) by which the LWIR picture is off, pixels
    zoom: float = _wide(1.0, 0.8, 1.9)  # focal length and so the people's heights, relative to the plain twin's
    eye: float = _wide(0.0, 0.5, 3.0, 0.35)  # metres by which the camera is raised, at zoom 1; it then looks down
    tilt: float = _wide(0.0, -0.06, 0.08)  # by which the horizon is lower, share of the rows
    crowd: float = _wide(1.9, 0.8, 6.0)  # people per frame beyond the first, on average
    company: float = _wide(0.4, 0.2, 0.8)  # share of people who walk beside somebody
    clothing: float = _wide(0.0, 0.0, 0.7)  # share of clothes of any colour; and how far their warmth differs
    lamp_power: float = _wide(1.0, 0.0, 2.5)  # of street lamps, relative
    haze: float = _wide(0.0, 0.003, 0.04, 0.4)  # light lost in fog per metre, share; LWIR loses a third of it
    rain: float = _wide(0.0, 40.0, 400.0, 0.25)  # streaks in a frame
    weathering: float = _wide(1.0, 0.6, 3.0)  # contrast of dirt and grain, relative
    junk: float = _wide(0.0, 0.0, 8.0)  # things of no kind on either pavement, in any colour and heat
    blur: float = _wide(0.0, 0.0, 1.3)  # of the visible image, standard deviation in pixels at 512 rows
    motion: float = _wide(0.0, 0.0, 3.0, 0.3)  # reach of the blur along the rows to either side, pixels at 512 rows
    quality: float = _wide(90.0, 40.0, 95.0)  # of the JPEG files
    lwir_floor: float = _wide(0.0, 40.0, 90.0, 0.5)  # heat that LWIR shows black
    lwir_blur: float = _wide(1.0, 0.4, 2.2)  # standard deviation in pixels at 512 rows
    lwir_noise: float = _wide(1.0, 0.3, 3.5)  # standard deviation in grey levels, about
    heat_spread: float = _wide(1.0, 0.5, 2.5)  # differences of the surroundings' heat, relative
    heat_texture: float = _wide(0.0, 0.0, 60.0)  # heat units per unit of weathering

    @property
    def pad(self) -> int:
        """Pixels around a view that the LWIR image may reach into."""
        return max(2, *map(abs, self.misalignment))

    @property
    def air(self) -> np.ndarray:
        """Float32 ``(3,)``, B, G, R of fog."""
        return np.array(self.tint, np.float32) * np.float32(230.0 * self.ambient)

    def widened(self, rng: np.random.Generator) -> Conditions:
        """The same street with everything that ``--wide`` varies drawn anew."""
        drawn: dict[str, Any] = {}
        for each in fields(self):
            low, high, share = each.metadata.get("wide", (0.0, 0.0, 0.0))
            if rng.random() < share:
                drawn[each.name] = float(rng.uniform(low, high))
        drawn |= {name: getattr(self, name) * rng.uniform(*limits) for name, limits in WIDE_FACTORS.items()}
        # A camera's automatic gain keeps bodies within the grey levels.
        span = 100.0 - drawn.get("lwir_floor", 0.0)
        drawn["lwir_level"] = min(drawn["lwir_level"], 250.0 * span / (span + drawn["body_heat"]))
        warm = float(rng.uniform(-0.1, 0.15) if self.day else rng.uniform(-0.3, 0.5))
        drawn["tint"] = tuple(value * (1.0 + warm * sign) for value, sign in zip(self.tint, (-1, 0, 1), strict=True))
        drawn["misalignment"] = (int(rng.integers(-6, 7)), int(rng.integers(-3, 4)))
        return replace(self, **drawn)

    @classmethod
    def sample(cls, rng: np.random.Generator, day: bool) -> Conditions:
        """A random look for day or night."""
        road_half = float(rng.uniform(3.2, 6.5))
        walls = (road_half + float(rng.uniform(2.2, 5.0)), road_half + float(rng.uniform(2.2, 5.0)))
        if rng.random() < 0.25:
            # A square or a wide avenue: one side opens.
            open_side = float(rng.uniform(14.0, 26.0))
            walls = (open_side, walls[1]) if rng.random() < 0.5 else (walls[0], open_side)
        end = float(rng.uniform(32.0, 60.0) if rng.random() < 0.35 else rng.uniform(60.0, 140.0))
        shift = (int(rng.integers(-2, 3)), int(rng.integers(-1, 2)))
        street: dict[str, Any] = {"road_half": road_half, "walls": walls, "end": end, "misalignment": shift}
        if day:
            hot = rng.random() < 0.3
            overcast = rng.random() < 0.45
            blue = float(rng.uniform(0.0, 1.0))
            warm = float(rng.uniform(-0.06, 0.06))
            return cls(
                day=True,
                ambient=float(rng.uniform(0.85, 1.15)),
                tint=(1.0 - warm, 1.0, 1.0 + warm),
                lit_city=False,
                headlight=0.0,
                sun_side=0 if overcast else int(rng.choice([-1, 1])),
                sky=(250.0, 240.0 - 12 * blue, 236.0 - 45 * blue),
                noise=float(rng.uniform(2.0, 4.5)),
                lwir_level=float(rng.uniform(40.0, 62.0)),
                body_heat=float(rng.uniform(4.0, 34.0) if hot else rng.uniform(50.0, 125.0)),
                ground_heat=float(rng.uniform(100.0, 122.0) if hot else rng.uniform(68.0, 104.0)),
                wall_heat=float(rng.uniform(100.0, 135.0) if hot else rng.uniform(86.0, 126.0)),
                sky_heat=float(rng.uniform(2.0, 45.0) if overcast else rng.uniform(0.0, 8.0)),
                leaf_heat=float(rng.uniform(80.0, 100.0)),
                **street,
            )
        lit_city = rng.random() < 0.5
        sodium = float(rng.uniform(0.0, 1.0))
        return cls(
            day=False,
            ambient=float(rng.uniform(0.16, 0.42) if lit_city else rng.uniform(0.03, 0.1)),
            tint=(1.0 - 0.35 * sodium, 1.0, 1.0 + 0.15 * sodium),
            lit_city=lit_city,
            headlight=float(rng.uniform(0.15, 0.45) if lit_city else rng.uniform(0.45, 1.1)),
            sun_side=0,
            sky=(16.0, 14.0, 10.0),
            noise=float(rng.uniform(6.0, 10.0) if lit_city else rng.uniform(8.0, 14.0)),
            lwir_level=float(rng.uniform(38.0, 60.0) if lit_city else rng.uniform(21.0, 36.0)),
            body_heat=float(rng.uniform(60.0, 125.0)),
            ground_heat=float(rng.uniform(74.0, 106.0)),
            wall_heat=float(rng.uniform(84.0, 114.0)),
            sky_heat=float(rng.uniform(0.0, 25.0)),
            leaf_heat=float(rng.uniform(75.0, 98.0)),
            **street,
        )
