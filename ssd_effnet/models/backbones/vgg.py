"""VGG16 as SSD uses it: the study's baseline.

Simonyan and Zisserman, arXiv:1409.1556, table 1 column D, for conv1 to conv5; Liu et al., "SSD", arXiv:1512.02325,
section 3, for conv6 and conv7; pool4 and pool5 as in MLPD's code. SSD halves at pool4, a quarter of conv5's work.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ssd_effnet.models.backbones.contract import Backbone
from ssd_effnet.models.layers import FoldingSequential
from ssd_effnet.structures import Level

# Convolutions of conv1 ... conv5, all 3x3: (output channels, how many).
_GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def torchvision_names(batch_norm: bool) -> dict[str, str]:
    """Torchvision's layer names to the module's, of layers with weights.

    >>> list(torchvision_names(True).items())[:3]
    [('features.0', 'conv1.conv1_1'), ('features.1', 'conv1.bn1_1'), ('features.3', 'conv1.conv1_2')]
    """
    names, number = {}, 0
    for group, (_, repeats) in enumerate(_GROUPS, start=1):
        for i in range(1, repeats + 1):
            for kind in ("conv", "bn") if batch_norm else ("conv",):
                names[f"features.{number}"] = f"conv{group}.{kind}{group}_{i}"
                number += 1
            number += 1  # the ReLU
        number += 1  # the pooling
    return names


class VGG16(Backbone):
    """VGG16 with convolutions for the fully connected layers (conv6) and conv7.

    Maps for 512x640: conv4_3 512 @ 64x80 (after the ReLU; the L2 norm is in the adapter), conv6 512 @ 32x40, conv7
    512 @ 16x20. All poolings round up.

    conv6 is a 3x3 and a 1x1 convolution of 512 channels, as in the KAIST baseline; SSD's own has 1024 channels and
    dilation 6. No published ImageNet weights exist for conv6 and conv7.
    """

    def __init__(self, batch_norm: bool, in_channels: int = 3) -> None:
        super().__init__()
        channels = in_channels
        groups = []
        for number, (width, repeats) in enumerate(_GROUPS, start=1):
            rows = [(channels if i == 0 else width, width, 3, 1) for i in range(repeats)]
            groups.append(_vgg_group(number, rows, batch_norm, bias=True))
            channels = width
        self.conv1, self.conv2, self.conv3, self.conv4, self.conv5 = groups
        # A bias before batch norm does nothing; conv1 to conv5 keep theirs because the published weights have it.
        self.conv6 = _vgg_group(6, [(512, 512, 3, 1), (512, 512, 1, 1)], batch_norm, bias=not batch_norm)
        self.conv7 = _vgg_group(7, [(512, 256, 1, 1), (256, 512, 3, 2)], batch_norm, bias=not batch_norm)
        self.halve = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.pool4 = nn.MaxPool2d(3, stride=1, padding=1)
        self.levels = [Level("conv4_3", 512, 8), Level("conv6", 512, 16), Level("conv7", 512, 32)]
        self.segments = [
            ["conv1", "halve", "conv2", "halve", "conv3", "halve", "conv4"],  # (N, 512, H/8, W/8), after the ReLU
            ["pool4", "conv5", "halve", "conv6"],  # (N, 512, H/16, W/16)
            ["conv7"],  # (N, 512, H/32, W/32)
        ]
        self._initialise()

    def _initialise(self) -> None:
        """He's initialisation (arXiv:1502.01852); needed without batch norm."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _vgg_group(
    number: int, rows: list[tuple[int, int, int, int]], batch_norm: bool, *, bias: bool
) -> FoldingSequential:
    """Convolutions ``conv<number>_1``, ``_2`` ... from rows (input channels, output channels, kernel, stride)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (inputs, outputs, kernel, stride) in enumerate(rows, start=1):
        layers[f"conv{number}_{i}"] = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
        if batch_norm:
            layers[f"bn{number}_{i}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{number}_{i}"] = nn.ReLU(inplace=True)
    return FoldingSequential(layers)
