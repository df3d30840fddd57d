"""SSD's extra levels: further maps made from the deepest one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ssd_effnet.models.layers import ConvNormAct, initialise
from ssd_effnet.structures import Level


class ExtraLevels(nn.Module):
    """Extra levels of SSD (figure 2). Each 1x1 to half the channels, then 3x3, with batch norm and ReLU.

    Args:
        levels: of the input maps, which are all passed on.
        channels: of each extra level.
        strides: of each extra level's 3x3 convolution; the study: 2, 1, 1.
    """

    levels: list[Level]

    def __init__(self, levels: Sequence[Level], channels: int = 512, strides: Sequence[int] = (2, 1, 1)) -> None:
        super().__init__()
        self.levels = list(levels)
        blocks = []
        for i, stride in enumerate(strides, start=1):
            deepest = self.levels[-1]
            first, second = (deepest.channels, channels // 2, 1), (channels // 2, channels, 3, stride)
            blocks.append(nn.Sequential(ConvNormAct(*first), ConvNormAct(*second)))
            self.levels.append(Level(f"extra{i}", channels, deepest.stride * stride))
        self.blocks = nn.ModuleList(blocks)
        initialise(self)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """The input maps and one more per extra level."""
        maps = list(maps)
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps
