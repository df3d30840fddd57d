"""The contract of a backbone: any module with ``levels`` that returns one map per level.

:class:`Backbone` is a chain of modules that halfway fusion can cut.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import nn

from ssd_effnet.models.layers import declared
from ssd_effnet.structures import Level


class Backbone(nn.Module):
    """A chain of modules from normalised images to one map per level.

    Attributes:
        levels: the maps that :meth:`forward` returns, shallow to deep.
        segments: for each level the names of the submodules that lead to it from the level before (to the first one
            from the images), in that order.
    """

    levels: list[Level]
    segments: list[list[str]]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Maps ``(N, channels, ceil(H / stride), ceil(W / stride))`` per level. Input is ``(N, in_channels, H, W)``."""
        x, maps = images, []
        for names in self.segments:
            for name in names:
                x = self.get_submodule(name)(x)
            maps.append(x)
        return maps

    def cut(self, start: int = 0, stop: int | None = None) -> Self:
        """Copy of the part between two levels, for halfway fusion. Other levels' modules are left out.

        Args:
            start: place of the first level that it returns; beyond 0, the copy takes the map of the level before
                instead of images.
            stop: place after its last level; None: to the end.
        """
        part = copy.deepcopy(self)
        part.levels, part.segments = self.levels[start:stop], self.segments[start:stop]
        kept = {name for names in part.segments for name in names}
        for name in {name for names in self.segments for name in names} - kept:
            part.set_submodule(name, nn.Identity())  # replaced, not deleted: the others are named by their numbers
        return part


def freeze_idle(module: nn.Module, twin: nn.Module, images: torch.Tensor, places: Sequence[int]) -> None:
    """Freeze parameters that no map of ``places`` depends on. ``twin`` is the module's like on the meta device."""
    trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        maps = twin(images)
        sums = [maps[place].sum() for place in places]
    gradients = torch.autograd.grad(sums, trained, allow_unused=True)
    idle = {id(parameter) for parameter, found in zip(trained, gradients, strict=True) if found is None}
    for own, copied in zip(module.parameters(), twin.parameters(), strict=True):
        own.requires_grad_(own.requires_grad and id(copied) not in idle)


class Selected(nn.Module):
    """A selection of a backbone's levels.

    Parameters that no selected level depends on are frozen: distributed training fails without their gradients.

    Args:
        places: in its ``levels``, ascending from 0.
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
        cut = declared(backbone, "cut", "forward")
        self.whole = cut(stop=places[-1] + 1) if cut else backbone
        twin = copy.deepcopy(self.whole).to("meta").eval()
        freeze_idle(self.whole, twin, torch.zeros(1, in_channels, 64, 64, device="meta"), places)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Maps of the selected levels."""
        maps = self.whole(images)
        return [maps[place] for place in self.places]
