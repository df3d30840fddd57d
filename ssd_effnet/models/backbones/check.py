"""Checks that a backbone keeps the contract (``docs/your-backbone.md``)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from data_kaist.errors import Failure
from ssd_effnet.models.backbones.contract import Backbone, can_be_cut
from ssd_effnet.models.folding import FoldError, fold

SIZES = ((64, 96), (75, 101))
"""(height, width) that are tried: a whole number of strides, and odd sides, which must be rounded up."""


class ContractError(Failure, ValueError):
    """A backbone breaks the contract."""


def check_backbone(build: Callable[..., nn.Module]) -> nn.Module:
    """Check a backbone against the contract.

    Args:
        build: makes the backbone, called as the project calls it: ``build(in_channels=3)``.

    Returns:
        The backbone, with random weights.

    Raises:
        ContractError: the first broken contract, and how to fix it.
    """
    for in_channels in (1, 3, 4):  # LWIR, visible, both
        backbone = build(in_channels=in_channels)
        if not isinstance(backbone, nn.Module):
            raise ContractError(f"{type(backbone).__name__} should be a torch module")
        _check_levels(backbone)
        for size in SIZES:
            _check_maps(backbone, torch.randn(2, in_channels, *size))
    backbone = build(in_channels=3)
    _check_gradients(copy.deepcopy(backbone))
    _check_images_are_apart(backbone)
    _check_cuts(backbone)
    _check_folds(copy.deepcopy(backbone))
    return backbone


def _check_levels(backbone: Any) -> None:
    levels, name = getattr(backbone, "levels", []), type(backbone).__name__
    if not levels:
        raise ContractError(f"{name}.levels is empty; it should list a Level for each map that it returns")
    strides = [level.stride for level in levels]
    if strides != sorted(set(strides)):
        raise ContractError(f"{name}.levels should go from shallow to deep, not by strides {strides}")
    if isinstance(backbone, Backbone) and can_be_cut(backbone):
        segments, modules = getattr(backbone, "segments", []), {path for path, _ in backbone.named_modules()}
        if len(segments) != len(levels):
            raise ContractError(f"{name}.segments should be {len(levels)} lists, one per level, not {len(segments)}")
        for part in (part for segment in segments for part in segment):
            if part not in modules:
                raise ContractError(f"{name}.segments names {part!r}, which is no module of it")


@torch.no_grad()
def _check_maps(backbone: Any, images: torch.Tensor) -> None:
    maps, name = backbone.eval()(images), type(backbone).__name__
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
        if not features.isfinite().all():
            raise ContractError(f"{name}: level {level.name} is not finite with random weights")


def _check_gradients(backbone: Any) -> None:
    maps = backbone.train()(torch.randn(2, 3, *SIZES[0]))
    torch.stack([features.square().mean() for features in maps]).sum().backward()
    idle = [path for path, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise ContractError(
            f"{type(backbone).__name__}: no level depends on {idle[0]}; distributed training stops at such parameters, "
            f"so leave the classifier's layers out"
        )


@torch.no_grad()
def _check_images_are_apart(backbone: Any) -> None:
    images = torch.randn(2, 3, *SIZES[0])
    together = backbone.eval()(images)
    for level, both, alone in zip(backbone.levels, together, backbone(images[:1]), strict=True):
        if not torch.allclose(both[:1], alone, rtol=1e-3, atol=1e-4 * float(both.abs().max())):
            raise ContractError(
                f"{type(backbone).__name__}: in evaluation, level {level.name} of an image depends on the rest of its "
                f"batch, or on chance"
            )


@torch.no_grad()
def _check_cuts(backbone: Any) -> None:
    """Check that a cut backbone returns the same maps as the whole."""
    if not can_be_cut(backbone):
        return
    images = torch.randn(1, 3, *SIZES[0])
    whole = backbone.eval()(images)
    if len(whole) > 1:
        parts = [*backbone.cut(stop=1)(images), *backbone.cut(1)(whole[0])]
        if not all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True)):
            raise ContractError(f"{type(backbone).__name__}: cut at a level, it gives other maps than whole")


@torch.no_grad()
def _check_folds(backbone: Any) -> None:
    """Check that folding by ``folds`` keeps the maps, with trained norms."""
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 1.5)
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.5, 0.5)
    try:
        fold(backbone.eval(), torch.randn(1, 3, *SIZES[0]))
    except FoldError as error:
        raise ContractError(str(error)) from error
