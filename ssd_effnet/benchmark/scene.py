"""Synthetic benchmark inputs: anchors, people, raw outputs."""

from __future__ import annotations

import torch

from data_kaist.structures import Targets
from ssd_effnet.detection.boxes import encode, iou, xyxy_to_cxcywh
from ssd_effnet.models.anchors import AnchorGenerator
from ssd_effnet.structures import Level

SIZE = (512, 640)
STRIDES, SIDES = (8, 16, 32, 64, 64, 64), (40.0, 80.0, 160.0, 200.0, 280.0, 360.0)


def anchors(size: tuple[int, int] = SIZE) -> torch.Tensor:
    """``(A, 4)`` cxcywh of the baseline's six levels: 41,760 for 512x640."""
    levels = [Level(str(i), 1, stride) for i, stride in enumerate(STRIDES)]
    generator = AnchorGenerator(levels, SIDES, [0.5, 1.0], [1.0, 2 ** (1 / 3), 2 ** (2 / 3)], SIZE)
    maps = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]
    boxes: torch.Tensor = generator(maps, size, torch.zeros(1))
    return boxes


def people(images: int, count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    """Boxes ``(images, count, 4)`` xyxy, 8 to 35 % of the image's height, inside it."""
    random = torch.Generator().manual_seed(seed)
    height = size[0] * (0.08 + 0.27 * torch.rand(images, count, generator=random))
    width = 0.41 * height
    x = torch.rand(images, count, generator=random) * (size[1] - width)
    y = torch.rand(images, count, generator=random) * (size[0] - height)
    return torch.stack([x, y, x + width, y + height], -1)


def targets(images: int, count: int, size: tuple[int, int] = SIZE) -> Targets:
    """Targets with ``count`` people per image."""
    labels = torch.ones(images, count, dtype=torch.int64)
    return Targets(people(images, count, size), labels, torch.zeros(images, count, dtype=torch.bool))


def found(
    anchors_cxcywh: torch.Tensor,
    candidates: int,
    *,
    spread: bool,
    persons: int = 12,
    size: tuple[int, int] = SIZE,
    seed: int = 2,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(1, A, 2)`` of which so many reach a score of 0.01, and offsets ``(1, A, 4)``.

    Args:
        spread: over the whole frame, as of an untrained network, where few boxes suppress each other; otherwise those
            anchors score that lie nearest to ``persons`` people, and their boxes lie there too.
    """
    random = torch.Generator().manual_seed(seed)
    count = len(anchors_cxcywh)
    logits = torch.stack([torch.zeros(count), torch.full((count,), -9.0)], -1)
    offsets = 0.4 * torch.randn(count, 4, generator=random)
    if spread:
        chosen = torch.randperm(count, generator=random)[:candidates]
    else:
        boxes = people(1, persons, size, seed)[0]
        half = anchors_cxcywh[:, 2:] / 2
        corners = torch.cat([anchors_cxcywh[:, :2] - half, anchors_cxcywh[:, :2] + half], 1)
        overlap, whose = iou(boxes, corners).max(0)
        # beyond the anchors that touch somebody, the nearest
        distance = torch.cdist(anchors_cxcywh[:, :2], xyxy_to_cxcywh(boxes)[:, :2]).min(1).values
        chosen = (overlap - 1e-4 * distance).topk(candidates).indices
        wanted = encode(xyxy_to_cxcywh(boxes)[whose[chosen]], anchors_cxcywh[chosen])
        offsets[chosen] = wanted + offsets[chosen]
    logits[chosen, 1] = 1.5 * torch.randn(candidates, generator=random).clamp(min=-2)
    return logits[None], offsets[None]
