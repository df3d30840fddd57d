"""Modalities: input channels of a pair, and halfway fusion of two streams."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ssd_effnet.models.layers import ConvNormAct, initialise
from ssd_effnet.registry import STREAM_FUSIONS
from ssd_effnet.structures import Level

# indices in the order R, G, B, LWIR of a pair
CHANNELS = {"visible": (0, 1, 2), "lwir": (3,), "early": (0, 1, 2, 3), "halfway": (0, 1, 2, 3)}
CHANNEL_NAMES = ("red", "green", "blue", "lwir")


@STREAM_FUSIONS.register("concat")
class ConcatFusion(ConvNormAct):
    """Both maps concatenated and reduced by a convolution. To the channels of one map, with batch norm and ReLU.

    Liu et al., "Multispectral deep neural networks for pedestrian detection", arXiv:1611.02644, section 3.2.

    Args:
        kernel_size: 1 or 3, of the convolution.
    """

    folds = ConvNormAct.folds
    initialise = ConvNormAct.initialise

    def __init__(self, channels: int, kernel_size: int = 1) -> None:
        super().__init__(2 * channels, channels, kernel_size)

    def forward(self, visible: torch.Tensor, lwir: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Two maps ``(N, channels, H, W)`` -> one."""
        joined: torch.Tensor = super().forward(torch.cat([visible, lwir], dim=1))  # type: ignore[no-untyped-call]
        return joined


class HalfwayFusion(nn.Module):
    """Backbone of two streams, visible and LWIR, joined level by level.

    Deeper levels than the streams' are computed once, from the joined map.

    Args:
        stages: successive parts of the streams, each (visible, LWIR) or a single network for both maps, which in the
            first stage has three input channels, of which the LWIR image fills each.
        fuse: per level of the streams, two maps ``(N, C, H, W)`` to one; or to (joined, visible, LWIR) if it
            ``hands_back``, where each stage has one level and the next takes these.
        trunk: the network beyond, from the deepest joined map on; None where the streams reach the last level.
        levels: the returned maps: the streams', then the trunk's.
    """

    levels: list[Level]

    def __init__(
        self,
        stages: Sequence[Sequence[nn.Module]],
        fuse: Sequence[nn.Module],
        trunk: nn.Module | None,
        levels: Sequence[Level],
    ) -> None:
        super().__init__()
        self.levels = list(levels)
        self.streams = nn.ModuleList(stages[0])
        self.later = nn.ModuleList(nn.ModuleList(stage) for stage in stages[1:])
        self.fuse = nn.ModuleList(fuse)
        initialise(self.fuse)
        self.trunk = trunk

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """One map per level of float ``(N, 4, H, W)``. Channels are R, G, B and LWIR, already normalised."""
        maps: list[torch.Tensor] = []
        pair = [images[:, :3], images[:, 3:]]
        for stage in (self.streams, *self.later):
            for both in _pairs(stage, *pair):
                fuse = self.fuse[len(maps)]
                joined, *pair = fuse(*both) if getattr(fuse, "hands_back", False) else (fuse(*both), *both)
                maps.append(joined)
        return maps if self.trunk is None else [*maps, *self.trunk(maps[-1])]


def _pairs(stage: nn.ModuleList, visible: torch.Tensor, lwir: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Both streams' maps of each level of a stage."""
    if len(stage) == 2:
        return list(zip(stage[0](visible), stage[1](lwir), strict=True))
    # as one batch, so that batch norm trains on the mixture whose statistics it keeps
    # (an image's two are adjacent: a share of the batch is a share of the rows)
    both = stage[0](torch.stack([visible, lwir.expand_as(visible)], 1).flatten(0, 1))
    return [x.unflatten(0, (visible.shape[0], 2)).unbind(1) for x in both]
