"""Modalities: input channels of a pair, and halfway fusion of two streams."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ssd_effnet.models.layers import ConvNormAct, initialise
from ssd_effnet.structures import Level

# indices in the order R, G, B, LWIR of a pair
CHANNELS: dict[str, tuple[int, ...]] = {
    "visible": (0, 1, 2),
    "lwir": (3,),
    "early": (0, 1, 2, 3),
    "halfway": (0, 1, 2, 3),
}
CHANNEL_NAMES = ("red", "green", "blue", "lwir")


class HalfwayFusion(nn.Module):
    """Backbone of two streams, visible and LWIR, joined level by level.

    At each level up to which the streams stay apart, their maps are concatenated and reduced to the channels of one
    by a convolution, batch norm and ReLU (Liu et al., "Multispectral deep neural networks for pedestrian detection",
    arXiv:1611.02644, section 3.2). Deeper levels are computed once, from the joined map.

    Args:
        streams: (visible, LWIR), with three and one input channels; or a single network for both, with three input
            channels, of which the LWIR image fills each.
        trunk: the network beyond, from the deepest joined map on; None where the streams reach the last level.
        levels: the returned maps: the streams', then the trunk's.
        fused: how many of these are the streams'.
        kernel_size: of the convolutions that join, 1 or 3.
    """

    levels: list[Level]

    def __init__(
        self,
        streams: Sequence[nn.Module],
        trunk: nn.Module | None,
        levels: Sequence[Level],
        fused: int,
        kernel_size: int = 1,
    ) -> None:
        super().__init__()
        self.levels = list(levels)
        self.streams = nn.ModuleList(streams)
        self.fuse = nn.ModuleList(ConvNormAct(2 * v.channels, v.channels, kernel_size) for v in self.levels[:fused])
        initialise(self.fuse)
        self.trunk = trunk

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """float ``(N, 4, H, W)`` in the order R, G, B, LWIR, already normalised -> one map per level."""
        visible, lwir = images[:, :3], images[:, 3:]
        if len(self.streams) == 1:
            # as one batch, so that batch norm trains on the mixture whose statistics it keeps
            # (an image's two are adjacent: a share of the batch is a share of the rows)
            both = self.streams[0](torch.stack([visible, lwir.expand(-1, 3, -1, -1)], 1).flatten(0, 1))
            pairs = [x.unflatten(0, (images.shape[0], 2)).unbind(1) for x in both]
        else:
            pairs = list(zip(self.streams[0](visible), self.streams[1](lwir), strict=True))
        maps = [fuse(torch.cat(pair, dim=1)) for fuse, pair in zip(self.fuse, pairs, strict=True)]
        return maps if self.trunk is None else [*maps, *self.trunk(maps[-1])]
