"""Checks that a backbone keeps the contract (``docs/your-backbone.md``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from data_kaist.errors import Failure
from ssd_effnet.models.folding import FoldError, fold
from ssd_effnet.models.layers import declared

SIZES = ((64, 96), (75, 101))
"""(height, width) that are tried: a whole number of strides, and odd sides, which must be rounded up."""


class ContractError(Failure, ValueError):
    """A backbone breaks the contract."""


def check_backbone(build: Callable[..., nn.Module]) -> nn.Module:
    """The backbone of ``build(in_channels=3)``, checked. A ContractError says what is broken and how to fix it."""
    for in_channels in (1, 4, 3):  # LWIR, both, visible
        backbone: Any = build(in_channels=in_channels)
        name = type(backbone).__name__
        if not isinstance(backbone, nn.Module):
            raise ContractError(f"{name} should be a torch module")
        levels: Any = getattr(backbone, "levels", [])
        if not levels:
            raise ContractError(f"{name}.levels is empty; it should list a Level for each map that it returns")
        strides = [level.stride for level in levels]
        if strides != sorted(strides):
            raise ContractError(f"{name}.levels should go from shallow to deep, not by strides {strides}")
        for size in SIZES:
            _check_maps(backbone.eval(), torch.randn(2, in_channels, *size))
    _check_gradients(backbone.train())
    backbone.eval()
    _check_images_are_apart(backbone)
    _check_folds(backbone)
    return build(in_channels=3)


@torch.no_grad()
def _check_maps(backbone: Any, images: torch.Tensor) -> None:
    maps, name = backbone(images), type(backbone).__name__
    height, width = images.shape[-2:]
    if len(maps) != len(backbone.levels):
        raise ContractError(f"{name} returns {len(maps)} maps for {len(backbone.levels)} levels")
    for level, features in zip(backbone.levels, maps, strict=True):
        wanted = (len(images), level.channels, -(-height // level.stride), -(-width // level.stride))
        if tuple(features.shape) != wanted:
            raise ContractError(
                f"{name}: level {level.name} gives {tuple(features.shape)} for an image of {height}x{width}, but its "
                f"channels and stride say {wanted}; sides are rounded up (pad by half the kernel)"
            )


def _check_gradients(backbone: Any) -> None:
    maps = backbone(torch.randn(2, 3, *SIZES[0]))
    torch.stack([features.square().mean() for features in maps]).sum().backward()
    idle = [path for path, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise ContractError(
            f"{type(backbone).__name__}: no level depends on {idle[0]}; distributed training stops at such parameters, "
            f"so leave the classifier's layers out"
        )


@torch.no_grad()
def _check_images_are_apart(backbone: Any) -> None:
    """Check that an image's maps do not depend on its batch. Nor may they depend on where the backbone is cut."""
    images, name = torch.randn(2, 3, *SIZES[0]), type(backbone).__name__
    together, alone = backbone(images), backbone(images[:1])
    for level, both, one in zip(backbone.levels, together, alone, strict=True):
        if not torch.allclose(both[:1], one, rtol=1e-3, atol=1e-4 * float(both.abs().max())):
            raise ContractError(
                f"{name}: in evaluation, level {level.name} of an image depends on the rest of its batch, or on chance"
            )
    cut = declared(backbone, "cut", "forward")
    if cut and len(alone) > 1:
        parts = [*cut(stop=1)(images[:1]), *cut(1)(alone[0])]
        if not all(torch.equal(a, b) for a, b in zip(alone, parts, strict=True)):
            raise ContractError(f"{name}: cut at a level, it gives other maps than whole")


@torch.no_grad()
def _check_folds(backbone: nn.Module) -> None:
    """Check that folding by ``folds`` keeps the maps, with trained norms."""
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 1.5)
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.5, 0.5)
    try:
        fold(backbone, torch.randn(1, 3, *SIZES[0]))
    except FoldError as error:
        raise ContractError(str(error)) from error
