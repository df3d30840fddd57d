"""Counts a detector's parameters, multiply-adds and anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ssd_effnet.models.detector import Detector


@dataclass(frozen=True)
class Cost:
    """Cost of one image of one size.

    Attributes:
        parameters: trainable ones, without batch norm statistics.
        multiply_adds: of convolutions and matrix products, one for a product and its addition, as papers count;
            norms, activations, pooling, interpolation and the fusion of maps are left out, as there.
        anchors: A.
    """

    parameters: int
    multiply_adds: int
    anchors: int


def cost(detector: Detector, size: tuple[int, int]) -> Cost:
    """Count by one forward pass at (height, width). The detector is in evaluation, also on the meta device."""
    mean = detector.normalize.mean
    image = torch.zeros(1, len(mean), *size, dtype=torch.uint8, device=mean.device)
    count, outputs = multiply_adds(detector, image)
    return Cost(trainable(detector), count, len(outputs.anchors_cxcywh))


def trainable(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def multiply_adds(module: nn.Module, x: Any) -> tuple[int, Any]:
    """Multiply-adds of a call (see :class:`Cost`), and its result."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        result = module(x)
    return counter.get_total_flops() // 2, result  # the counter counts a product and an addition as two
