"""Batch norm folded into the convolution before it: at inference it is only a factor and a shift."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ssd_effnet.layers import FrozenBatchNorm2d

M = TypeVar("M", bound=nn.Module)

# what a module calls a convolution and the norm that alone reads its output
_NAMES = (
    ("conv", "norm"),
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
)


def fold(module: M) -> M:
    """A copy for evaluation without the batch norms that follow a convolution.

    Outputs are those of ``module.eval()`` but for rounding. Norms that follow no convolution directly, and those of a
    convolution that several norms share (EfficientDet's head), stay. The copy must not be trained, and its weights are
    not those of a checkpoint.
    """
    folded = copy.deepcopy(module).eval()
    with torch.no_grad():
        for part in list(folded.modules()):
            for before, after in _pairs(part):
                _into(part.get_submodule(before), part.get_submodule(after))
                part.set_submodule(after, nn.Identity())
            # EfficientNet's activation reads the outputs of convolutions only, which nobody else reads
            activation = dict(part.named_children()).get("_activation")
            if isinstance(activation, nn.SiLU | nn.ReLU6):
                activation.inplace = True
    return folded


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a convolution and its norm, directly below ``module``."""
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential):
        names = list(children)
        candidates = list(itertools.pairwise(names))
    else:
        candidates = [pair for pair in _NAMES if pair[0] in children and pair[1] in children]
    for before, after in candidates:
        if isinstance(children[before], nn.Conv2d | nn.ConvTranspose2d) and isinstance(
            children[after], nn.BatchNorm2d | FrozenBatchNorm2d
        ):
            yield before, after


def _into(convolution: nn.Module, norm: nn.Module) -> None:
    assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
    assert isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    transposed = isinstance(convolution, nn.ConvTranspose2d)
    if transposed and convolution.groups > 1:
        raise ValueError("a grouped transposed convolution cannot take a norm in")
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=transposed,
    )
