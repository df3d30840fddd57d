"""Backbones: normalised images in, one feature map per level out (:class:`.contract.Backbone`).

A new one is a module with ``levels`` and ``forward``, registered in ``BACKBONES``; downloadable ImageNet weights
are a line in :mod:`.pretrained`.
"""

from functools import partial

from ssd_effnet.models.backbones.contract import Backbone
from ssd_effnet.models.backbones.efficientnet import NAMES, EfficientNet
from ssd_effnet.models.backbones.timm_models import TimmBackbone
from ssd_effnet.models.backbones.vgg import VGG16
from ssd_effnet.registry import BACKBONES

__all__ = ["BACKBONES", "VGG16", "Backbone", "EfficientNet"]

BACKBONES.register("vgg16")(partial(VGG16, False))
BACKBONES.register("vgg16-bn")(partial(VGG16, True))
for _name in NAMES:
    BACKBONES.register(_name)(partial(EfficientNet, _name))
BACKBONES.register("timm/*")(TimmBackbone)
