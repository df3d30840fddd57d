"""Subsets (day, night, height, occlusion) and rule sets of the miss rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from data_kaist.structures import Daytime


@dataclass(frozen=True)
class Subset:
    """Part of the ground truth by height, occlusion, time of day.

    Attributes:
        name: key in tables and results files.
        min_height, max_height: counted heights in pixels of the original image, both ends included.
        occlusions: counted levels (0 none, 1 partial, 2 heavy).
        daytime: only images of that time of day; None: all, also of unknown time.
    """

    name: str
    min_height: float
    max_height: float
    occlusions: tuple[int, ...]
    daytime: Daytime | None = None


_NO_LIMIT = float("inf")

# KAIST devkit, the settings of its experiments.
SUBSETS: Mapping[str, Subset] = MappingProxyType(
    {
        subset.name: subset
        for subset in (
            Subset("reasonable_all", 55, _NO_LIMIT, (0, 1)),
            Subset("reasonable_day", 55, _NO_LIMIT, (0, 1), "day"),
            Subset("reasonable_night", 55, _NO_LIMIT, (0, 1), "night"),
            Subset("near", 115, _NO_LIMIT, (0,)),
            Subset("medium", 45, 115, (0,)),
            Subset("far", 1, 45, (0,)),
            Subset("none", 1, _NO_LIMIT, (0,)),
            Subset("partial", 1, _NO_LIMIT, (1,)),
            Subset("heavy", 1, _NO_LIMIT, (2,)),
            Subset("all_h20", 20, _NO_LIMIT, (0, 1, 2)),
        )
    }
)
REASONABLE = ("reasonable_all", "reasonable_day", "reasonable_night")


@dataclass(frozen=True)
class Rules:
    """Rules from outcomes to a miss rate. Matching is the same in both.

    Attributes:
        name: key in tables and results files.
        references: false positives per image of the reference points, ascending.
        floor: least miss rate in the mean of logarithms.
        wraps_round: a reference before the curve's first point takes the final recall; otherwise recall 0.
        skips_silent_images: the boxes of images without any detection are left out of the denominator.
    """

    name: str
    references: tuple[float, ...]
    floor: float
    wraps_round: bool
    skips_silent_images: bool


MATLAB = Rules(
    "matlab",  # the KAIST devkit
    references=tuple(float(x) for x in 10.0 ** np.arange(-2, 0.01, 0.25)),
    floor=1e-10,
    wraps_round=False,
    skips_silent_images=False,
)
PYTHON = Rules(
    "python",  # the script of most papers since 2021; both switches reproduce its faults
    references=(0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0000),
    floor=0.0,
    wraps_round=True,
    skips_silent_images=True,
)
RULES: Mapping[str, Rules] = MappingProxyType({rules.name: rules for rules in (MATLAB, PYTHON)})
