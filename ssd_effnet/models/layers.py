"""Layers shared by several parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ssd_effnet.registry import CONVOLUTIONS

_ACTIVATIONS: dict[str, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU, "silu": nn.SiLU}


def activation(name: str) -> nn.Module:
    """Activation by name, in place if possible."""
    return nn.Identity() if name == "none" else _ACTIVATIONS[name](inplace=True)


def declared(module: nn.Module, what: str, overridden_by: str) -> Callable[..., Any] | None:
    """A module's method ``what``: ``folds``, ``initialise`` or ``cut``.

    None if there is none, or if a subclass of the class that defines it overrides the method ``overridden_by``.
    """
    for kind in type(module).__mro__:
        if what in vars(kind):
            found: Callable[..., Any] = getattr(module, what)
            return found
        if overridden_by in vars(kind):
            return None
    return None


def initialise(part: nn.Module) -> None:
    """Run ``initialise`` of each module in ``part`` that has it. Called at the end of the part's constructor."""
    for module in part.modules():
        if own := declared(module, "initialise", "__init__"):
            own()


def xavier(convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Xavier's initialisation with bias 0 (SSD, layers without pretrained weights).

    Depthwise ones keep torch's default: Xavier's fan-out counts filters that do not apply.
    """
    if convolution.groups == 1:
        nn.init.xavier_uniform_(convolution.weight)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)


class FoldingSequential(nn.Sequential):
    """Sequential whose norms can be folded into the convolution before them."""

    def folds(self) -> Iterator[tuple[str, str]]:
        """(convolution, norm): names of neighbours."""
        for (before, convolution), (after, norm) in pairwise(self._modules.items()):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
                yield before, after


class ConvNormAct(FoldingSequential):
    """Convolution, batch norm, activation. Zero padding, so that stride 1 keeps the size.

    ``bias`` defaults to true without a norm; the study's adapters have both.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        norm: bool = True,
        activation: str = "relu",
        groups: int = 1,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=not norm if bias is None else bias,
        )
        if norm:
            self.norm = nn.BatchNorm2d(out_channels)
        if activation != "none":
            self.activation = _activation(activation)

    def initialise(self) -> None:
        xavier(self.conv)


_activation = activation  # the argument of the same name hides the function inside the class


class SeparableConv(nn.Sequential):
    """Depthwise 3x3, then pointwise 1x1, batch norm, activation (EfficientDet, section 3; MobileNet)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, norm: bool = True, activation: str = "silu", bias: bool = True
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = ConvNormAct(in_channels, out_channels, 1, norm=norm, activation=activation, bias=bias)


@CONVOLUTIONS.register("conv1x1")
def conv1x1(in_channels: int, out_channels: int, activation: str, bias: bool) -> nn.Module:
    return ConvNormAct(in_channels, out_channels, 1, activation=activation, bias=bias)


@CONVOLUTIONS.register("conv3x3")
def conv3x3(in_channels: int, out_channels: int, activation: str, bias: bool) -> nn.Module:
    return ConvNormAct(in_channels, out_channels, 3, activation=activation, bias=bias)


@CONVOLUTIONS.register("separable")
def separable(in_channels: int, out_channels: int, activation: str, bias: bool) -> nn.Module:
    return SeparableConv(in_channels, out_channels, activation=activation, bias=bias)


class L2Norm(nn.Module):
    """L2 norm over channels, times a learned factor per channel. ParseNet, section 3.3.

    ``(N, C, H, W) -> (N, C, H, W)``. The factor starts at 20, as in SSD.
    """

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(x, dim=1, eps=1e-10) * self.weight[:, None, None]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with constant statistics and affine terms, for small batches.

    Same state names as :class:`torch.nn.BatchNorm2d`, so weights move between the two.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        self.then = nn.Sequential(*norm.children())  # an activation within the norm, as timm's have
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        found: torch.Tensor = self.then(torch.addcmul(shift[:, None, None], x, scale[:, None, None]).to(x.dtype))
        return found


def set_batch_norm(module: nn.Module, eps: float, momentum: float) -> None:
    """Set epsilon and momentum of all batch norms. Momentum is the share of the new batch."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps, part.momentum = eps, momentum


def replace_batch_norm(module: nn.Module, norm: str) -> nn.Module:
    """Replace every batch norm below ``module``; return the module.

    Args:
        norm: ``batch``: no change; ``frozen``: constants; ``group``: group norm of up to 32 groups.
    """
    if norm == "batch":
        return module
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child) if norm == "frozen" else _group_norm(child))
        else:
            replace_batch_norm(child, norm)
    return module


def _group_norm(norm: nn.BatchNorm2d) -> nn.Module:
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if norm.num_features % g == 0)
    new = nn.GroupNorm(groups, norm.num_features, eps=norm.eps)
    with torch.no_grad():
        new.weight.copy_(norm.weight)
        new.bias.copy_(norm.bias)
    within = list(norm.children())
    return nn.Sequential(new, *within) if within else new
