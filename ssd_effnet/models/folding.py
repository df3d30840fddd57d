"""Folds batch norms into the convolutions before them, for inference."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from data_kaist.errors import Failure
from ssd_effnet.models.layers import FrozenBatchNorm2d, declared

M = TypeVar("M", bound=nn.Module)

_ROUNDING = 1e-3  # of a tensor's largest value; float32 leaves a hundredth of it


class FoldError(Failure):
    """Folding changed a module's outputs."""


def fold(module: M, images: torch.Tensor | None = None) -> M:
    """Copy for evaluation with batch norms folded into convolutions.

    Only what a class declares is folded: its method ``folds`` yields names (convolution, norm, activations that may
    then work in place), where only the norm reads the convolution's output. A subclass with its own ``forward`` must
    declare ``folds`` again. The copy must not be trained.

    Args:
        module: any; not modified.
        images: a small input, with which copy and module are compared: a FoldError says that outputs differ by more
            than rounding. None: no comparison.
    """
    plain = copy.deepcopy(module).eval() if any(part.training for part in module.modules()) else module
    folded = copy.deepcopy(plain)
    parts = {name for name, _, _ in foldable(plain)}
    with torch.no_grad():
        for name, before, after in list(foldable(folded)):
            part = folded.get_submodule(name)
            _into(part.get_submodule(before), part.get_submodule(after))
            part.set_submodule(after, nn.Identity())
        for part in folded.modules():
            for _, _, *activations in _declarations(part):
                for activation in activations:
                    part.get_submodule(activation).inplace = True  # type: ignore[assignment]
        if images is not None:
            _compare(plain, folded, parts, images)
    return folded


def foldable(module: nn.Module) -> Iterator[tuple[str, str, str]]:
    """(part, convolution, norm) to fold. The last two are names below the part.

    Excludes convolutions that are used twice or compute their weights.
    """
    places = Counter(id(child) for parent in module.modules() for child in parent._modules.values())
    for name, part in module.named_modules():
        for before, after, *_ in _declarations(part):
            convolution, norm = part.get_submodule(before), part.get_submodule(after)
            plain = type(convolution).forward in (nn.Conv2d.forward, nn.ConvTranspose2d.forward)
            own = parametrize.is_parametrized(convolution) or convolution._forward_pre_hooks
            grouped = isinstance(convolution, nn.ConvTranspose2d) and convolution.groups > 1
            known = type(norm) in (nn.BatchNorm2d, FrozenBatchNorm2d) and norm.running_mean is not None
            if plain and known and not own and not grouped and places[id(convolution)] == 1:
                yield name, before, after


def _declarations(part: nn.Module) -> list[tuple[str, ...]]:
    folds = declared(part, "folds", "forward")
    return list(folds()) if folds else []


def _into(convolution: nn.Module, norm: nn.Module) -> None:
    assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
    assert isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=isinstance(convolution, nn.ConvTranspose2d),
    )


def _compare(plain: nn.Module, folded: nn.Module, parts: set[str], images: torch.Tensor) -> None:
    """Compare outputs of the folded parts, then of the whole. Parts are in the order of their calls."""
    if not parts:
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        wanted, found = (_outputs(module, parts, images) for module in (plain, folded))
    for name, tensors in wanted.items():
        for own, before in zip(found[name], tensors, strict=True):
            if not before.numel() or not before.isfinite().all():
                continue  # not comparable; non-finite outputs are refused elsewhere
            apart, largest = float((own - before).abs().max()), float(before.abs().max())
            if not apart <= _ROUNDING * largest:
                part = min(parts - wanted.keys(), default=name)  # one that is not called itself is the likelier
                raise FoldError(
                    f"{part} ({type(plain.get_submodule(part)).__name__}) gives other outputs when folded (by "
                    f"{apart:.2g} of {largest:.2g}); its class should declare in `folds` only norms that alone read "
                    "their convolution's output"
                )


def _outputs(module: nn.Module, parts: set[str], images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Tensors that the named parts and the whole ("") return. They are in the order of the calls."""
    found: dict[str, list[torch.Tensor]] = {}

    def keep(name: str, _part: nn.Module, _given: tuple[Any, ...], handed: Any) -> None:
        found[name] = _tensors(handed)

    hooks = [module.get_submodule(name).register_forward_hook(partial(keep, name)) for name in {*parts, ""}]
    try:
        module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _tensors(value: Any) -> list[torch.Tensor]:
    """Copies of all tensors in nested lists, dictionaries and dataclasses."""
    if isinstance(value, torch.Tensor):
        return [value.clone()]
    if isinstance(value, dict):
        value = value.values()
    elif hasattr(value, "__dataclass_fields__"):
        value = vars(value).values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for each in value for tensor in _tensors(each)]
