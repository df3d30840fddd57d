"""Synthetic benchmark targets."""

from __future__ import annotations

import torch

from data_kaist.structures import Targets


def targets(images: int, count: int, size: tuple[int, int]) -> Targets:
    """Targets with ``count`` people per image. They lie inside it and are 8 to 35 % of its height."""
    random = torch.Generator().manual_seed(0)
    height = size[0] * (0.08 + 0.27 * torch.rand(images, count, generator=random))
    width = 0.41 * height
    x = torch.rand(images, count, generator=random) * (size[1] - width)
    y = torch.rand(images, count, generator=random) * (size[0] - height)
    boxes, none = torch.stack([x, y, x + width, y + height], -1), torch.zeros(images, count, dtype=torch.bool)
    return Targets(boxes, torch.ones(images, count, dtype=torch.int64), none)
