"""The detector: from images to raw outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from ssd_effnet.structures import Level, RawOutputs


class Normalize(nn.Module):
    """Pixels 0..255 to ``(x / 255 - mean) / std`` per channel. Mean and std are buffers."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images, float32 ``(N, C, H, W)``. Input is of the same shape, uint8 or float of 0..255."""
        mean, std = self.mean[:, None, None], self.std[:, None, None]
        return torch.addcmul(-mean / std, images.float(), 1 / (255 * std))


class Detector(nn.Module):
    """Normalisation, parts in order, head.

    Args:
        normalize: pixels to the backbone's input.
        parts: ``backbone`` first, then any of ``adapter``, ``neck`` and ``extras`` in order. Each has the ``levels``
            that it returns and was built for those of the part before it. Attributes of the detector by name.
        head: maps to class logits and box offsets.
        anchors: map sizes to anchors.
    """

    def __init__(
        self, normalize: Normalize, parts: Mapping[str, nn.Module], head: nn.Module, anchors: nn.Module
    ) -> None:
        super().__init__()
        self.normalize = normalize
        for name, part in parts.items():
            self.add_module(name, part)
        self._order = tuple(parts)
        self.head = head
        self.anchors = anchors

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The existing parts, in order; each has ``levels``."""
        return {name: self.get_submodule(name) for name in self._order}

    @property
    def levels(self) -> list[Level]:
        """Levels of the head's input maps."""
        levels: list[Level] = list(self.parts.values())[-1].levels  # type: ignore[assignment]
        return levels

    def features(self, images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """Output maps of each part, by name."""
        maps = self.normalize(images)
        handed: dict[str, list[torch.Tensor]] = {}
        for name, part in self.parts.items():
            maps = handed[name] = part(maps)
        return handed

    def forward(self, images: torch.Tensor) -> RawOutputs:
        """Raw outputs of all anchors. Images are ``(N, C, H, W)`` uint8 (or float of 0..255), not normalised."""
        return self.outputs_of(list(self.features(images).values())[-1], (images.shape[-2], images.shape[-1]))

    def outputs_of(self, maps: Sequence[torch.Tensor], input_size: tuple[int, int]) -> RawOutputs:
        """Raw outputs of the last part's maps, for images of (height, width)."""
        cls_logits, bbox_regression = self.head(maps)
        map_sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
        anchors = self.anchors(map_sizes, input_size, cls_logits)
        per_position = len(anchors) // sum(h * w for h, w in map_sizes)  # the same on every level
        per_level = tuple(h * w * per_position for h, w in map_sizes)
        return RawOutputs(cls_logits, bbox_regression, anchors, per_level, per_position)
