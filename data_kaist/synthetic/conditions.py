"""Hour, light, temperatures and street shape of a stretch of video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


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
