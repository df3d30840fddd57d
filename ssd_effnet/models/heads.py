"""Heads: from maps to class logits and box offsets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ssd_effnet.structures import Level


class SSDHead(nn.Module):
    """One 3x3 convolution a level for classes and one for boxes (SSD, section 2.1).

    Args:
        levels: the maps that come in.
        anchors_per_position: the same for every level.
        num_classes: K, background at index 0 included.
    """

    def __init__(self, levels: Sequence[Level], anchors_per_position: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classification = nn.ModuleList(
            nn.Conv2d(v.channels, anchors_per_position * num_classes, 3, padding=1) for v in levels
        )
        self.regression = nn.ModuleList(nn.Conv2d(v.channels, anchors_per_position * 4, 3, padding=1) for v in levels)
        for convolution in (*self.classification, *self.regression):
            assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)

    def forward(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """``cls_logits (N, A, K)`` and ``bbox_regression (N, A, 4)``, anchors ordered by level, row, column, shape."""
        logits = [rows(conv(x), self.num_classes) for conv, x in zip(self.classification, maps, strict=True)]
        offsets = [rows(conv(x), 4) for conv, x in zip(self.regression, maps, strict=True)]
        return torch.cat(logits, dim=1), torch.cat(offsets, dim=1)


def rows(x: torch.Tensor, columns: int) -> torch.Tensor:
    """``(N, A * K, H, W)`` to ``(N, H * W * A, K)``, K being ``columns``."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns)
