"""Synthetic benchmark inputs: people in images of random pixels."""

from __future__ import annotations

import torch

from data_kaist.structures import Targets


def people(images: int, count: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Boxes ``(images, count, 4)`` xyxy, 8 to 35 % of the image's height, inside it."""
    random = torch.Generator().manual_seed(seed)
    height = size[0] * (0.08 + 0.27 * torch.rand(images, count, generator=random))
    width = 0.41 * height
    x = torch.rand(images, count, generator=random) * (size[1] - width)
    y = torch.rand(images, count, generator=random) * (size[0] - height)
    return torch.stack([x, y, x + width, y + height], -1)


def targets(images: int, count: int, size: tuple[int, int]) -> Targets:
    """Targets with ``count`` people per image."""
    labels = torch.ones(images, count, dtype=torch.int64)
    return Targets(people(images, count, size), labels, torch.zeros(images, count, dtype=torch.bool))
