"""Resampling between levels: interpolation, pooling, strided and transposed convolutions.

Every module here maps ``(N, C_source, H, W)`` and a size to ``(N, C_target, *size)``. The size is the
target's actual one: levels of 300x300, 513x641 or 480x600 do not double exactly, so maps are cropped or repeated at the
lower and right borders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ssd_effnet.models.layers import ConvNormAct, xavier
from ssd_effnet.registry import DOWNSAMPLINGS, UPSAMPLINGS
from ssd_effnet.structures import Level

Size = tuple[int, int]


def lateral(in_channels: int, out_channels: int) -> nn.Module:
    """1x1 convolution and batch norm between different widths, nothing between equal ones."""
    if in_channels == out_channels:
        return nn.Identity()
    return ConvNormAct(in_channels, out_channels, 1, activation="none")


def resampler(source: Level, target: Level, upsample: str, downsample: str, own: Mapping[str, Any] = {}) -> nn.Module:
    """Module that resamples maps of level ``source`` to ``target``. ``own``: arguments of the entries.

    A 1x1 convolution (with batch norm) adapts the width first, where it differs and the resampling has no convolution
    of its own: fewer channels are cheaper to resize, and EfficientDet pools after it, too.
    """
    if source.stride == target.stride:
        return Interpolated(source.channels, target.channels)
    up = source.stride > target.stride
    coarse, fine = (source, target) if up else (target, source)
    ratio = coarse.stride // fine.stride if coarse.stride % fine.stride == 0 else None
    registry, name = (UPSAMPLINGS, upsample) if up else (DOWNSAMPLINGS, downsample)
    try:
        made = registry.make(name, own, in_channels=source.channels, out_channels=target.channels, ratio=ratio)
    except ValueError as error:
        ends = f"{coarse.name} (stride {coarse.stride}) and {fine.name} (stride {fine.stride})"
        raise ValueError(f"{name} resampling between {ends}: {error}") from error
    assert isinstance(made, nn.Module)
    return made


def _whole(ratio: int | None) -> int:
    if ratio is None:
        raise ValueError("a convolution changes the size by whole factors only; take bilinear, nearest or max_pool")
    return ratio


@UPSAMPLINGS.register("bilinear")
class Interpolated(nn.Module):
    """Width, then bilinear (corners not aligned) or nearest interpolation."""

    mode = "bilinear"

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.adapt = lateral(in_channels, out_channels)

    def forward(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        x = self.adapt(x)
        if x.shape[-2:] == size:
            return x
        return F.interpolate(x, size, mode=self.mode, align_corners=False if self.mode == "bilinear" else None)


@UPSAMPLINGS.register("nearest")
class Nearest(Interpolated):
    """Nearest-neighbour interpolation."""

    mode = "nearest"


@DOWNSAMPLINGS.register("max_pool")
class Pooled(nn.Module):
    """Width, then max-pool of ``ratio + 1`` with stride ``ratio``. Padding is "same", as in EfficientDet.

    Without a ratio (strides that do not divide each other), the maximum over an even division of the map.
    """

    def __init__(self, in_channels: int, out_channels: int, ratio: int | None) -> None:
        super().__init__()
        self.adapt = lateral(in_channels, out_channels)
        self.ratio = ratio

    def forward(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        x = self.adapt(x)
        return F.adaptive_max_pool2d(x, size) if self.ratio is None else same_max_pool(x, self.ratio, size)


class _Convolution(nn.Module):
    """A convolution that resamples, and batch norm."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels)

    def folds(self) -> list[tuple[str, str]]:
        """See :func:`ssd_effnet.models.folding.fold`."""
        return [("conv", "norm")]

    def initialise(self) -> None:
        xavier(self.conv)

    def forward(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        if isinstance(self.conv, nn.Conv2d):
            x = _pad_same(x, self.conv.stride[0], size, value=0.0)
        return _fit(self.norm(self.conv(x)), size)


@UPSAMPLINGS.register("transposed")
def transposed(in_channels: int, out_channels: int, ratio: int | None) -> nn.Module:
    """Transposed convolution (kernel and stride: the ratio) and batch norm (step 5)."""
    ratio = _whole(ratio)
    return _Convolution(nn.ConvTranspose2d(in_channels, out_channels, ratio, ratio, bias=False))


@DOWNSAMPLINGS.register("conv")
def strided(in_channels: int, out_channels: int, ratio: int | None) -> nn.Module:
    """Convolution of ``ratio + 1`` with stride ``ratio``, and batch norm. PANet, figure 1."""
    ratio = _whole(ratio)
    return _Convolution(nn.Conv2d(in_channels, out_channels, ratio + 1, ratio, bias=False))


class PooledLevels(nn.Module):
    """Coarser levels made from the last one. EfficientDet's P6 and P7 from P5.

    The first is a 1x1 convolution with batch norm (where the width changes) and a 3x3 max-pool of stride 2, each
    further one a max-pool of the one before.

    Args:
        last: the coarsest given level.
        count: number of levels to add.
        channels: their width; None keeps the width of ``last``.
    """

    def __init__(self, last: Level, count: int, channels: int | None = None) -> None:
        super().__init__()
        width = last.channels if channels is None else channels
        self.adapt = lateral(last.channels, width)
        self.levels = [Level(f"extra{i + 1}", width, last.stride * 2 ** (i + 1)) for i in range(count)]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """One map per new level. ``x`` is the last one's, ``(N, C, H, W)``; each halves the size, rounded up."""
        maps: list[torch.Tensor] = [self.adapt(x)]
        for _ in self.levels:
            height, width = maps[-1].shape[-2:]
            maps.append(same_max_pool(maps[-1], 2, ((height + 1) // 2, (width + 1) // 2)))
        return maps[1:]


def same_max_pool(x: torch.Tensor, ratio: int, size: Size) -> torch.Tensor:
    """Maximum over ``ratio + 1`` positions every ``ratio`` ones. ``(N, C, H, W) -> (N, C, *size)``."""
    return _fit(F.max_pool2d(_pad_same(x, ratio, size, value=float("-inf")), ratio + 1, ratio), size)


def _pad_same(x: torch.Tensor, ratio: int, size: Size, value: float) -> torch.Tensor:
    """Least padding for a kernel of ``ratio + 1`` at stride ``ratio``."""
    padding: list[int] = []
    for have, want in zip(reversed(x.shape[-2:]), reversed(size), strict=True):
        # Never more than "same" needs: a window of padding alone has no maximum.
        short = max(0, (min(want, -(-have // ratio)) - 1) * ratio + ratio + 1 - have)
        padding += [short // 2, short - short // 2]
    return F.pad(x, padding, value=value) if any(padding) else x


def _fit(x: torch.Tensor, size: Size) -> torch.Tensor:
    """Crop, or repeat the last row and column; positions are kept."""
    height, width = size
    x = x[..., :height, :width]
    short = [0, width - x.shape[-1], 0, height - x.shape[-2]]
    return F.pad(x, short, mode="replicate") if any(short) else x
