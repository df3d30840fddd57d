"""The contract of a backbone: any module with ``levels`` that returns one map per level.

:class:`Backbone` is one way to write it, as a chain of modules, which halfway fusion can cut.
"""

from __future__ import annotations

import copy
from typing import Any, Self

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


def can_be_cut(backbone: nn.Module) -> bool:
    """Whether it has a ``cut`` that belongs to its ``forward``."""
    for kind in type(backbone).__mro__:
        if "cut" in vars(kind):
            return True
        if "forward" in vars(kind):
            return False
    return False


class Selected(nn.Module):
    """Some levels of a backbone that always returns all of them.

    Parameters that no selected level depends on are frozen: distributed training stops at such without a gradient.

    Args:
        backbone: any.
        places: in its ``levels``, ascending from 0.
        in_channels: channels of its images.

    Raises:
        ValueError: it has no such levels.
    """

    levels: list[Level]

    def __init__(self, backbone: nn.Module, places: list[int], in_channels: int) -> None:
        super().__init__()
        levels: Any = backbone.levels
        if not places or places != sorted(set(places)) or places[0] < 0 or places[-1] >= len(levels):
            names = ", ".join(f"{i} ({level.name})" for i, level in enumerate(levels))
            raise ValueError(f"levels must be ascending places of {names}, not {places}")
        self.levels = [levels[place] for place in places]
        self.places = places
        self.whole = backbone.cut(stop=places[-1] + 1) if can_be_cut(backbone) else backbone  # type: ignore[operator]
        twin = copy.deepcopy(self.whole).to("meta").eval()
        maps = twin(torch.zeros(1, in_channels, 64, 64, device="meta"))
        trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad([maps[place].sum() for place in places], trained, allow_unused=True)
        idle = {id(parameter) for parameter, found in zip(trained, gradients, strict=True) if found is None}
        for own, copied in zip(self.whole.parameters(), twin.parameters(), strict=True):
            own.requires_grad_(own.requires_grad and id(copied) not in idle)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """As the backbone's, of the selected levels."""
        maps = self.whole(images)
        return [maps[place] for place in self.places]
