"""EfficientNet from efficientnet-pytorch as a backbone: its blocks, paddings and swish."""

from __future__ import annotations

from typing import Any

import torch
from efficientnet_pytorch import EfficientNet
from torch import nn

from ssd_effnet.models.backbones import EfficientNet as Own


class PackageBackbone(nn.Module):
    """The package's network up to the last level of one of the project's own, with that one's weights and strides.

    Args:
        own: backbone whose ``levels`` and weights it takes.
        name: of the network in the package.
    """

    def __init__(self, own: Own, name: str) -> None:
        super().__init__()
        package: Any = EfficientNet.from_name(name, image_size=None)
        self.levels = own.levels
        self.stem = nn.ModuleList([package._conv_stem, package._bn0])
        self.swish = package._swish
        self.blocks = nn.ModuleList(list(package._blocks)[: len(own._blocks)])
        weights = own.state_dict()
        package.load_state_dict({name: weights.get(name, given) for name, given in package.state_dict().items()})
        blocks: list[Any] = list(own._blocks)
        self.rates = [block.drop_rate for block in blocks]
        self.ends = [int(segment[-1].removeprefix("_blocks.")) for segment in own.segments]
        theirs: list[Any] = list(self.blocks)
        for block, other in zip(theirs, blocks, strict=True):
            block._depthwise_conv.stride = other._depthwise_conv.stride

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """As :class:`ssd_effnet.models.backbones.EfficientNet`."""
        convolution, norm = self.stem
        x = self.swish(norm(convolution(images)))
        maps = []
        for i, (block, rate) in enumerate(zip(self.blocks, self.rates, strict=True)):
            x = block(x, drop_connect_rate=rate)
            if i in self.ends:
                maps.append(x)
        return maps
