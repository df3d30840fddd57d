"""Modalities: which channels of a pair enter the backbone, and how two streams become one."""

from __future__ import annotations

# places in the R, G, B, LWIR order of a pair
CHANNELS: dict[str, tuple[int, ...]] = {
    "visible": (0, 1, 2),
    "lwir": (3,),
    "early": (0, 1, 2, 3),
    "halfway": (0, 1, 2, 3),
}
CHANNEL_NAMES = ("red", "green", "blue", "lwir")
