"""Anchor boxes (default boxes) of all levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from ssd_effnet.structures import Level


class AnchorGenerator(nn.Module):
    """Boxes of a few shapes at every position of every level.

    A shape is a ``size`` (side of the square of equal area), a ``ratio`` (width / height) and a ``scale`` on both.
    Sizes are stated in pixels of ``reference_size`` and follow the input: at twice the height every anchor is twice
    as high, so an anchor covers the same part of the scene at any input size. There is one size per level.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        sizes: Sequence[float],
        ratios: Sequence[float],
        scales: Sequence[float],
        reference_size: tuple[int, int],
    ) -> None:
        super().__init__()
        if len(sizes) != len(levels):
            raise ValueError(
                f"anchors need one size for each of the {len(levels)} levels "
                f"({', '.join(level.name for level in levels)}), not {len(sizes)} sizes"
            )
        self.reference_size = reference_size
        # plain numbers: tensors would be on the current device, meta where only the cost is counted
        self.shapes_wh = [[(s * k * math.sqrt(r), s * k / math.sqrt(r)) for r in ratios for k in scales] for s in sizes]
        self.per_position = len(ratios) * len(scales)
        self._made: dict[object, torch.Tensor] = {}

    def forward(
        self, map_sizes: Sequence[tuple[int, int]], input_size: tuple[int, int], like: torch.Tensor
    ) -> torch.Tensor:
        """Anchors of all levels, ``(A, 4)`` cxcywh float32. Units are input pixels.

        Order is by level, row, column, shape. Centres are at ``(i + 0.5, j + 0.5)`` of the map (SSD, section 2.2).
        Sizes are (height, width), of each level's map and of the input; ``like`` is a tensor on the device to use.
        """
        key = (tuple(map_sizes), tuple(input_size), like.device)
        if key not in self._made:
            self._made = {key: self._make(map_sizes, input_size).to(like.device)}
        return self._made[key]

    def _make(self, map_sizes: Sequence[tuple[int, int]], input_size: tuple[int, int]) -> torch.Tensor:
        (input_h, input_w), (reference_h, reference_w) = input_size, self.reference_size
        stretch = torch.tensor((input_w / reference_w, input_h / reference_h))
        levels = []
        for (rows, columns), shapes in zip(map_sizes, self.shapes_wh, strict=True):
            cy = (torch.arange(rows) + 0.5) * (input_h / rows)
            cx = (torch.arange(columns) + 0.5) * (input_w / columns)
            centres = torch.stack(torch.meshgrid(cx, cy, indexing="xy"), dim=-1)  # (rows, columns, 2) as (cx, cy)
            here = torch.cat(
                (
                    centres[:, :, None].expand(-1, -1, len(shapes), -1),
                    (torch.tensor(shapes) * stretch).expand(rows, columns, -1, -1),
                ),
                dim=-1,
            )
            levels.append(here.reshape(-1, 4))
        return torch.cat(levels)
