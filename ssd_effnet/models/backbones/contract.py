"""The contract of a backbone."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import nn

from ssd_effnet.structures import Level


class Backbone(nn.Module):
    """A network that turns normalised images into one feature map per level.

    It is a chain of modules, cut at the levels; :meth:`forward` is written once, here.

    Attributes:
        levels: the maps that :meth:`forward` returns, shallow to deep. The next parts take channels and strides
            only from here.
        segments: for each level the names of the submodules that lead to it from the level before (to the first one
            from the images), in that order.

    Every parameter lies on the way to some level, so that none is without a gradient: distributed training
    stops at parameters that have none.
    """

    levels: list[Level]
    segments: list[list[str]]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """float ``(N, in_channels, H, W)``, already normalised -> one ``(N, channels, ceil(H / stride), ceil(W /
        stride))`` per level.

        Any size is taken: the maps are rounded up, never cropped.
        """
        x, maps = images, []
        for names in self.segments:
            for name in names:
                x = self.get_submodule(name)(x)
            maps.append(x)
        return maps

    def cut(self, start: int = 0, stop: int | None = None) -> Self:
        """A copy of the part between two levels, for halfway fusion.

        Args:
            start: place of the first level that it returns; beyond 0, the copy takes the map of the level before
                instead of images.
            stop: place after its last level; None: to the end.

        Returns:
            The part, with copies of the weights under the names they had; what belongs to other levels is gone.
        """
        part = copy.deepcopy(self)
        part.levels, part.segments = self.levels[start:stop], self.segments[start:stop]
        kept = {name for names in part.segments for name in names}
        for name in {name for names in self.segments for name in names} - kept:
            part.set_submodule(name, nn.Identity())  # rather than deleted: the others' numbers are their names
        return part
