"""Heads: maps to class logits and box offsets.

A head is built from levels, anchors per position, K (class logits per anchor, with background or not, as the loss
needs) and the class loss's ``prior``, see :func:`prior_bias`. It returns ``cls_logits (N, A, K)`` and
``bbox_regression (N, A, 4)``, anchors ordered by level, row, column, shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import nn

from ssd_effnet.models.layers import SeparableConv, activation, set_batch_norm
from ssd_effnet.registry import HEADS
from ssd_effnet.structures import Level


@HEADS.register("ssd")
class SSDHead(nn.Module):
    """One 3x3 convolution per level each for classes and boxes. SSD, section 2.1."""

    def __init__(
        self, levels: Sequence[Level], anchors_per_position: int, num_classes: int, *, prior: float | None = None
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.classification = nn.ModuleList(
            nn.Conv2d(v.channels, anchors_per_position * num_classes, 3, padding=1) for v in levels
        )
        self.regression = nn.ModuleList(nn.Conv2d(v.channels, anchors_per_position * 4, 3, padding=1) for v in levels)
        for convolutions, bias in ((self.classification, prior_bias(prior)), (self.regression, 0.0)):
            for convolution in convolutions:
                assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
                nn.init.xavier_uniform_(convolution.weight)
                nn.init.constant_(convolution.bias, bias)

    def forward(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = [rows(conv(x), self.num_classes) for conv, x in zip(self.classification, maps, strict=True)]
        offsets = [rows(conv(x), 4) for conv, x in zip(self.regression, maps, strict=True)]
        return torch.cat(logits, dim=1), torch.cat(offsets, dim=1)


@HEADS.register("efficientdet")
class EfficientDetHead(nn.Module):
    """One class net and one box net for all levels. EfficientDet, section 4.1; RetinaNet, section 4.

    Args:
        layers: separable convolutions before the last one of each net.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        anchors_per_position: int,
        num_classes: int,
        *,
        layers: Annotated[int, "at least 1"] = 3,
        prior: float | None = None,
    ) -> None:
        super().__init__()
        width = levels[0].channels
        if any(level.channels != width for level in levels):
            raise ValueError(
                f"the class and box nets are shared by all levels, which must be of one width, not "
                f"{', '.join(f'{v.name} {v.channels}' for v in levels)}; set neck.channels, or an adapter and "
                f"extras of one width"
            )
        self.num_classes = num_classes
        self.classification = SharedNet(width, anchors_per_position * num_classes, layers, len(levels))
        self.regression = SharedNet(width, anchors_per_position * 4, layers, len(levels))
        nn.init.constant_(self.classification.bias, prior_bias(prior))

    def forward(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = [rows(self.classification(x, level), self.num_classes) for level, x in enumerate(maps)]
        offsets = [rows(self.regression(x, level), 4) for level, x in enumerate(maps)]
        return torch.cat(logits, dim=1), torch.cat(offsets, dim=1)


class SharedNet(nn.Module):
    """Separable convolutions shared by all levels. Each has the level's own batch norm, then SiLU.

    The norms are not shared: their statistics differ from level to level (the authors' code,
    ``efficientdet_arch.py``; epsilon 1e-3 and a momentum of 0.01 in torch's way of counting are theirs, too).
    """

    def __init__(self, width: int, out_channels: int, layers: int, num_levels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            SeparableConv(width, width, norm=False, activation="none") for _ in range(layers)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(width) for _ in range(num_levels)) for _ in range(layers)
        )
        set_batch_norm(self.norms, eps=1e-3, momentum=0.01)
        self.activation = activation("silu")
        self.last = SeparableConv(width, out_channels, norm=False, activation="none")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=(module.in_channels * module.kernel_size[0] ** 2) ** -0.5)  # as TF
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def bias(self) -> torch.Tensor:
        """``(out_channels,)`` of the last convolution."""
        bias = self.last.pointwise.conv.bias
        assert bias is not None
        return bias

    def forward(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """``(N, width, H, W) -> (N, out_channels, H, W)``. ``level`` is the index of the level."""
        for convolution, norms in zip(self.convolutions, self.norms, strict=True):
            assert isinstance(norms, nn.ModuleList)
            x = self.activation(norms[level](convolution(x)))
        result: torch.Tensor = self.last(x)
        return result


def prior_bias(prior: float | None) -> float:
    """The logit whose sigmoid is ``prior`` (RetinaNet, section 3.3), 0 for None.

    Without mining nearly all anchors are background, whose initial loss would otherwise dominate.
    """
    return 0.0 if prior is None else -math.log((1 - prior) / prior)


def rows(x: torch.Tensor, columns: int) -> torch.Tensor:
    """One row per anchor, ``(N, H * W * A, K)``. Input is ``(N, A * K, H, W)``, K being ``columns``."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns)
