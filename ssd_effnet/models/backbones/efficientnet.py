"""EfficientNet B0-B7 and Lite0-2 as backbones, without the classifier.

Tan and Le, "EfficientNet", arXiv:1905.11946, table 1; MBConv blocks from MobileNetV2, arXiv:1801.04381, with
squeeze-and-excitation, arXiv:1709.01507. Block tables and names of parameters are those of efficientnet-pytorch and
efficientnet-lite-pytorch. The blocks are built here because the packages fix the padding for one input size and use
an activation that does not export.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import utils as lite_package
from efficientnet_pytorch import utils as package
from torch import nn

from ssd_effnet.distributed import rand_of_batch
from ssd_effnet.models.backbones.contract import Backbone
from ssd_effnet.structures import Level

Strides = Literal["halving", "published"]

NAMES = tuple(f"efficientnet-b{i}" for i in range(8)) + tuple(f"efficientnet-lite{i}" for i in range(3))

DEFAULT_LEVELS = (2, 3, 4)  # the study's; SSD's strides 8, 16, 32

# Stages (from 0) that keep the size in the published network and halve it in the study's.
_HALVING_STAGES = (4, 6)


class Stage(NamedTuple):
    """One row of table 1. Blocks of one size, the first with a stride."""

    repeats: int
    kernel: int
    stride: int
    expand_ratio: int
    in_channels: int
    out_channels: int
    se_ratio: float | None


def stages(name: str, strides: Strides = "published") -> list[Stage]:
    """The seven stages of a network, scaled; ``strides`` as of :class:`EfficientNet`."""
    if name not in NAMES:
        raise ValueError(f"no EfficientNet is called {name!r}; there are {', '.join(NAMES)}")
    lite = "lite" in name
    library: Any = lite_package if lite else package
    rows, scale = library.get_model_params(name, {})
    result = []
    for i, row in enumerate(rows):
        # Lite networks scale neither the stem (32 channels) nor how often the first and last stage repeat.
        fixed = lite and i in (0, len(rows) - 1)
        result.append(
            Stage(
                repeats=row.num_repeat if fixed else library.round_repeats(row.num_repeat, scale),
                kernel=row.kernel_size,
                stride=2 if strides == "halving" and i in _HALVING_STAGES else row.stride[0],
                expand_ratio=row.expand_ratio,
                in_channels=32 if lite and i == 0 else library.round_filters(row.input_filters, scale),
                out_channels=library.round_filters(row.output_filters, scale),
                se_ratio=row.se_ratio,
            )
        )
    return result


class EfficientNet(Backbone):
    """An EfficientNet up to the deepest requested level.

    Levels are counted 0 ... 6 as in the study's table, and named ``stage1`` ... ``stage7`` as in the paper. With B4,
    ``halving`` and 512x640: 24 @ 256x320, 32 @ 128x160, 56 @ 64x80, 112 @ 32x40, 160 @ 16x20, 272 @ 8x10, 448 @ 4x5.
    """

    def __init__(
        self,
        name: str,
        levels: Sequence[int] | None = None,
        strides: Strides = "halving",
        in_channels: int = 3,
        drop_connect: Annotated[float | None, "at least 0, below 1"] = None,
    ) -> None:
        """
        Args:
            name: ``efficientnet-b0`` ... ``-b7``, ``efficientnet-lite0`` ... ``-lite2``.
            levels: stages whose last map is returned, ascending, 0 ... 6; None for 2, 3, 4. Later stages are not built.
            strides: after the stages; ``halving``: 2, 4, ... 128 (the study); ``published``: 2, 4, 8, 16, 16, 32, 32.
            in_channels: channels of the images.
            drop_connect: probability of skipping the last block of the whole network in training, falling to 0 at
                the first (stochastic depth, arXiv:1603.09382); None for the published 0.2.
        """
        super().__init__()
        table = stages(name, strides)
        wanted = list(DEFAULT_LEVELS if levels is None else levels)
        if not wanted or wanted != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= len(table):
            raise ValueError(f"levels must be ascending numbers from 0 to {len(table) - 1}, not {wanted}")
        rate = 0.2 if drop_connect is None else drop_connect
        activation = nn.ReLU6 if "lite" in name else nn.SiLU

        self._conv_stem = SameConv2d(in_channels, table[0].in_channels, 3, stride=2)
        self._bn0 = _batch_norm(table[0].in_channels)
        self._activation = activation()
        self._blocks = nn.ModuleList()
        # The rate grows over the whole published network, also where its end is not built.
        depth = sum(stage.repeats for stage in table)
        stride = 2
        self.levels, self.segments = [], []
        segment = ["_conv_stem", "_bn0", "_activation"]
        for number, stage in enumerate(table[: wanted[-1] + 1]):
            stride *= stage.stride
            for i in range(stage.repeats):
                block = MBConvBlock(
                    stage.in_channels if i == 0 else stage.out_channels,
                    stage.out_channels,
                    stage.kernel,
                    stage.stride if i == 0 else 1,
                    stage.expand_ratio,
                    stage.se_ratio,
                    activation,
                    rate * len(self._blocks) / depth,
                )
                segment.append(f"_blocks.{len(self._blocks)}")
                self._blocks.append(block)
            if number in wanted:
                self.levels.append(Level(f"stage{number + 1}", stage.out_channels, stride))
                self.segments.append(segment)
                segment = []
        self._initialise()

    def folds(self) -> list[tuple[str, ...]]:
        """See :func:`ssd_effnet.models.folding.fold`."""
        return [("_conv_stem", "_bn0", "_activation")] if isinstance(self._conv_stem, SameConv2d) else []

    def _initialise(self) -> None:
        """Normal weights with variance 2 / fan-out; depthwise: fan-out is the filter's area."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class MBConvBlock(nn.Module):
    """MBConv: expand 1x1, depthwise, squeeze-and-excitation, project 1x1, skip."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        expand_ratio: int,
        se_ratio: float | None,
        activation: type[nn.Module],
        drop_rate: float,
    ) -> None:
        """
        Args:
            se_ratio: channels of the squeezed vector as part of ``in_channels`` (not of the widened ones); None: none.
            drop_rate: probability that the block is skipped for an image in training, where a skip exists.
        """
        super().__init__()
        width = in_channels * expand_ratio
        self.widens = expand_ratio != 1
        if self.widens:
            self._expand_conv = SameConv2d(in_channels, width, 1)
            self._bn0 = _batch_norm(width)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width)
        self._bn1 = _batch_norm(width)
        self.squeezes = se_ratio is not None
        if se_ratio is not None:
            squeezed = max(1, int(in_channels * se_ratio))
            self._se_reduce = nn.Conv2d(width, squeezed, 1)
            self._se_expand = nn.Conv2d(squeezed, width, 1)
        self._project_conv = SameConv2d(width, out_channels, 1)
        self._bn2 = _batch_norm(out_channels)
        self._activation = activation()
        self.skips = stride == 1 and in_channels == out_channels
        self.drop_rate = drop_rate

    def folds(self) -> list[tuple[str, ...]]:
        """See :func:`ssd_effnet.models.folding.fold`."""
        widening = [("_expand_conv", "_bn0")] if self.widens else []
        return [*widening, ("_depthwise_conv", "_bn1", "_activation"), ("_project_conv", "_bn2")]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """``(N, in_channels, H, W)`` -> ``(N, out_channels, ceil(H / stride), ceil(W / stride))``."""
        x = inputs
        if self.widens:
            x = self._activation(self._bn0(self._expand_conv(x)))
        x = self._activation(self._bn1(self._depthwise_conv(x)))
        if self.squeezes:
            weights = F.adaptive_avg_pool2d(x, 1)  # (N, width, 1, 1)
            weights = self._se_expand(self._activation(self._se_reduce(weights)))
            # in place where x needs no gradient: the widened map is the largest of the block
            x = torch.sigmoid(weights) * x if torch.is_grad_enabled() else x.mul_(torch.sigmoid_(weights))
        x = self._bn2(self._project_conv(x))
        if self.skips:
            if self.training and self.drop_rate > 0:
                x = _drop_images(x, self.drop_rate)
            x += inputs
        return x


class SameConv2d(nn.Conv2d):
    """A convolution whose output is ``ceil(size / stride)``: TensorFlow's "SAME" padding.

    With stride 2 and an even size the padding is one more on the right and bottom, which ``nn.Conv2d`` does not
    support; otherwise the convolution pads, which saves a copy of the map. No bias, until a norm is folded in.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``(N, in_channels, H, W)`` -> ``(N, out_channels, ceil(H / stride), ceil(W / stride))``."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(input, weight, bias, padding=kernel // 2, groups=self.groups)
        height, width = (_same_padding(size, kernel, stride) for size in input.shape[-2:])
        if height % 2 == 0 and width % 2 == 0:
            return F.conv2d(input, weight, bias, stride=stride, padding=(height // 2, width // 2), groups=self.groups)
        x = F.pad(input, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, weight, bias, stride=stride, groups=self.groups)


def _same_padding(size: int, kernel: int, stride: int) -> int:
    """Both sides' padding together, so that the output measures ``ceil(size / stride)``."""
    outputs = (size + stride - 1) // stride
    return max((outputs - 1) * stride + kernel - size, 0)


def _drop_images(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Stochastic depth: zero the maps of some images and scale the others."""
    # float32 whatever the precision of x: bfloat16 has too few steps below 1 to draw a rate from.
    keep = rand_of_batch(len(x), x.device)[:, None, None, None] >= rate
    return x * keep / (1 - rate)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the packages' momentum and epsilon. TensorFlow's momentum of 0.99 is 0.01 here."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
