"""Backbones: normalised images in, one feature map per level out (:class:`.contract.Backbone`).

``BACKBONES`` lists all. Arguments when one is built:

* ``vgg16``, ``vgg16-bn``: ``in_channels``;
* ``efficientnet-*``: ``levels``, ``strides``, ``in_channels``, ``drop_connect_rate``.

A new backbone is a subclass of ``Backbone`` in a file of this folder and a line here; ImageNet weights for it are a
line in :mod:`.pretrained`.
"""

from collections.abc import Callable
from functools import partial

from ssd_effnet.models.backbones.contract import Backbone
from ssd_effnet.models.backbones.efficientnet import NAMES, EfficientNet
from ssd_effnet.models.backbones.vgg import VGG16

__all__ = ["BACKBONES", "VGG16", "Backbone", "EfficientNet"]

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "vgg16": partial(VGG16, batch_norm=False),
    "vgg16-bn": partial(VGG16, batch_norm=True),
    **{name: partial(EfficientNet, name) for name in NAMES},
}
