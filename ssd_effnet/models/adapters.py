"""Adapters: one convolution per level that sets its width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ssd_effnet.models.layers import L2Norm, initialise
from ssd_effnet.registry import CONVOLUTIONS
from ssd_effnet.structures import Level


class Adapter(nn.Module):
    """Convolution with bias and batch norm on each level (step 2).

    Args:
        kind: one of ``CONVOLUTIONS``; ``none`` passes the maps unchanged (step 1).
        channels: width of every output level.
        activation: after the batch norm; the study uses none.
        l2_norm: L2-normalise the first (shallowest) level and rescale it, as SSD does with conv4_3.
        arguments: of the convolution, by name.
    """

    levels: list[Level]

    def __init__(
        self,
        levels: Sequence[Level],
        kind: str = "none",
        channels: int = 512,
        activation: str = "none",
        l2_norm: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.levels = [Level(v.name, v.channels if kind == "none" else channels, v.stride) for v in levels]
        self.convolutions = nn.ModuleList(nn.Identity() for _ in levels)
        given = {"out_channels": channels, "activation": activation, "bias": True}
        for i, v in enumerate(levels if kind != "none" else ()):
            self.convolutions[i] = CONVOLUTIONS.make(kind, arguments or {}, in_channels=v.channels, **given)
        self.l2_norm = L2Norm(self.levels[0].channels) if l2_norm else None
        initialise(self)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Adapt one ``(N, C, h, w)`` map per level. Height and width are unchanged."""
        maps = [convolution(x) for convolution, x in zip(self.convolutions, maps, strict=True)]
        if self.l2_norm is not None:
            maps[0] = self.l2_norm(maps[0])
        return maps
