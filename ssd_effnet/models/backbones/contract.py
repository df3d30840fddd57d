"""What a backbone promises."""

from __future__ import annotations

import torch
from torch import nn

from ssd_effnet.structures import Level


class Backbone(nn.Module):
    """A network that turns normalised images into one feature map a level.

    Attributes:
        levels: the maps :meth:`forward` hands out, in that order, shallow to deep. The next parts learn the
            channels and strides from here and nowhere else.

    Every parameter lies on the way to some level, so that none is without a gradient: distributed training
    stops at parameters that have none.
    """

    levels: list[Level]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """float ``(N, in_channels, H, W)``, already normalised -> one ``(N, channels, ceil(H / stride), ceil(W /
        stride))`` a level.

        Any size is taken: the maps are rounded up, never cropped.
        """
        raise NotImplementedError
