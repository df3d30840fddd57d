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
        min_height, max_height: counted heights in pixels of the original image, both ends included.
        occlusions: counted levels (0 none, 1 partial, 2 heavy).
        daytime: only images of that time of day; None: all, also of unknown time.
    """

    min_height: float
    max_height: float
    occlusions: tuple[int, ...]
    daytime: Daytime | None = None


_NO_LIMIT = float("inf")

# KAIST devkit, the settings of its experiments, by their keys in tables and results files.
SUBSETS: Mapping[str, Subset] = MappingProxyType(
    {
        "reasonable_all": Subset(55, _NO_LIMIT, (0, 1)),
        "reasonable_day": Subset(55, _NO_LIMIT, (0, 1), "day"),
        "reasonable_night": Subset(55, _NO_LIMIT, (0, 1), "night"),
        "near": Subset(115, _NO_LIMIT, (0,)),
        "medium": Subset(45, 115, (0,)),
        "far": Subset(1, 45, (0,)),
        "none": Subset(1, _NO_LIMIT, (0,)),
        "partial": Subset(1, _NO_LIMIT, (1,)),
        "heavy": Subset(1, _NO_LIMIT, (2,)),
        "all_h20": Subset(20, _NO_LIMIT, (0, 1, 2)),
    }
)
REASONABLE = ("reasonable_all", "reasonable_day", "reasonable_night")


@dataclass(frozen=True)
class Rules:
    """Rules from outcomes to a miss rate. Matching is the same in both.

    Attributes:
        references: false positives per image of the reference points, ascending.
        floor: least miss rate in the mean of logarithms.
        wraps_round: a reference before the curve's first point takes the final recall; otherwise recall 0.
        skips_silent_images: the boxes of images without any detection are left out of the denominator.
    """

    references: tuple[float, ...]
    floor: float
    wraps_round: bool
    skips_silent_images: bool


MATLAB = Rules(  # the KAIST devkit
    references=tuple(float(x) for x in 10.0 ** np.arange(-2, 0.01, 0.25)),
    floor=1e-10,
    wraps_round=False,
    skips_silent_images=False,
)
PYTHON = Rules(  # the script of most papers since 2021; both switches reproduce its faults
    references=(0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0000),
    floor=0.0,
    wraps_round=True,
    skips_silent_images=True,
)
RULES: Mapping[str, Rules] = MappingProxyType({"matlab": MATLAB, "python": PYTHON})
