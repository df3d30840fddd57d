"""Convolutional backbones of timm by name: ``backbone.name: timm/resnet50`` (R. Wightman, pytorch-image-models)."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional as F

from data_kaist.errors import Failure
from ssd_effnet.models.backbones.contract import freeze_idle
from ssd_effnet.models.weights import WeightsError, has_hash
from ssd_effnet.structures import Level

FAMILY = "timm/"


class TimmError(Failure, ValueError):
    """No timm, or no such model or maps."""


def timm_module() -> ModuleType:
    """The package timm."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another torch
        raise TimmError(f"{FAMILY}... needs timm: pip install 'ssd-effnet[timm]' ({error})") from error
    module: ModuleType = timm
    return module


class TimmBackbone(nn.Module):
    """Feature maps of a timm model with chosen strides.

    Images are padded with zeros at the right and below where the model rounds map sizes down, as ConvNeXt does.

    Args:
        name: ``timm/`` and the model's name.
        in_channels: of the images.
        map_strides: of the maps, input pixels per step.
    """

    def __init__(self, name: str, in_channels: int = 3, map_strides: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        timm, model = timm_module(), name.removeprefix(FAMILY)
        try:
            with torch.device("meta"):
                info = timm.create_model(model, features_only=True).feature_info
        except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
            raise TimmError(f"timm has no maps of {model} ({str(error).strip()})") from error
        every = list(zip(info.out_indices, info.get_dicts(), strict=True))
        wanted = [(i, of) for i, of in every if of["reduction"] in map_strides]
        if [of["reduction"] for _, of in wanted] != sorted(map_strides):
            raise TimmError(
                f"map_strides: {model} has {', '.join(str(of['reduction']) for _, of in every)}, not {map_strides}"
            )
        places = [i for i, _ in wanted]
        self.body = timm.create_model(model, features_only=True, in_chans=in_channels, out_indices=places)
        self.levels = [Level(of["module"], of["num_chs"], of["reduction"]) for _, of in wanted]
        self.multiple = 1
        with torch.device("meta"), torch.no_grad():
            probe = timm.create_model(model, features_only=True, in_chans=in_channels, out_indices=places).eval()
            if not self._fits(probe, in_channels, 97):
                self.multiple = self.levels[-1].stride
                if not self._fits(probe, in_channels, 3 * self.multiple):
                    raise TimmError(f"{model}'s maps are not (N, channels, H / stride, W / stride)")
        side = 3 * self.levels[-1].stride
        freeze_idle(self.body, probe, torch.zeros(1, in_channels, side, side, device="meta"), range(len(self.levels)))

    def _fits(self, probe: nn.Module, in_channels: int, side: int) -> bool:
        """Whether maps of images of this side are of the levels' channels and strides."""
        try:
            maps = probe(torch.zeros(1, in_channels, side, side))
        except (RuntimeError, AssertionError, ValueError):  # sides that are no multiple
            return False
        shapes = [(level.channels, -(-side // level.stride)) for level in self.levels]
        return [tuple(x.shape[1::2]) for x in maps] == shapes

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Maps ``(N, channels, ceil(H / stride), ceil(W / stride))`` per level.
        Images are float ``(N, in_channels, H, W)``, normalised.
        """
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        maps = zip(self.levels, self.body(padded), strict=True)
        return [x[..., : -(-height // level.stride), : -(-width // level.stride)] for level, x in maps]


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of R, G, B, in 0..1. Of the model's own configuration."""
    config = timm_module().get_pretrained_cfg(name.removeprefix(FAMILY))
    if config is None:
        raise TimmError(f"timm has no model {name.removeprefix(FAMILY)}")
    return tuple(config.mean), tuple(config.std)


def fetch(name: str) -> Path:
    """The model's ImageNet weights from Hugging Face's hub, in its cache. The file's SHA-256 is that of the hub."""
    config = timm_module().get_pretrained_cfg(name.removeprefix(FAMILY))
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(config.hf_hub_id, "model.safetensors"))
    except Exception as error:  # the hub's client raises its own, its HTTP library's and OSError
        raise WeightsError(
            f"could not fetch the weights of {name} from {config.hf_hub_id} ({str(error).strip().splitlines()[0]}); "
            "set `backbone.pretrained` to the path of a file you have or to none"
        ) from error
    blob = path.resolve()  # the cache names it by its SHA-256
    if len(blob.name) == 64 and not has_hash(blob, blob.name):
        raise WeightsError(f"{path} is damaged: its SHA-256 is not {blob.name}; delete it to have it fetched again")
    return path


def file_names(own: list[str], of_file: list[str]) -> dict[str, str]:
    """Names in the whole model's file -> the backbone's. ``features_only`` joins parts by underscores."""

    def plain(name: str) -> str:
        return re.sub(r"^body\.((body|model)\.)?", "", name).replace("_", ".")

    ours = {plain(name): name for name in own}
    return {name: ours[plain(name)] for name in of_file if plain(name) in ours}
