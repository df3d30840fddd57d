"""What a detector costs before anyone runs it: parameters, multiply-adds, anchors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ssd_effnet.models.detector import Detector


@dataclass(frozen=True)
class Cost:
    """Of one image of one size.

    Attributes:
        parameters: numbers that are learned; statistics of batch norms are not among them.
        multiply_adds: of convolutions and matrix products, one for a product and its addition, as papers count;
            norms, activations, pooling, interpolation and the fusion of maps are left out, as there.
        anchors: A.
    """

    parameters: int
    multiply_adds: int
    anchors: int


def cost(detector: Detector, size: tuple[int, int]) -> Cost:
    """Count, by one forward pass; nearly free for a detector on torch's meta device (``build.build_skeleton``).

    Args:
        detector: on any device; left in the mode it is in.
        size: (height, width) of the input.
    """
    mean = detector.normalize.mean
    image = torch.zeros(1, len(mean), *size, dtype=torch.uint8, device=mean.device)
    counter = FlopCounterMode(display=False)
    training = detector.training
    detector.eval()
    with counter, torch.no_grad():
        outputs = detector(image)
    detector.train(training)
    return Cost(
        parameters=sum(p.numel() for p in detector.parameters()),
        multiply_adds=counter.get_total_flops() // 2,  # the counter takes a product and an addition for two
        anchors=len(outputs.anchors_cxcywh),
    )
