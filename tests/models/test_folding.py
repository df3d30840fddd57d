"""Folded detectors find what they found before, and only what a module declares is folded."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from ssd_effnet.build import build_detector, build_skeleton
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.inference.predictor import Predictor
from ssd_effnet.models.backbones import Backbone
from ssd_effnet.models.backbones.check import ContractError, check_backbone
from ssd_effnet.models.backbones.efficientnet import MBConvBlock
from ssd_effnet.models.folding import FoldError, fold, foldable
from ssd_effnet.models.layers import ConvNormAct, FoldingSequential, FrozenBatchNorm2d
from ssd_effnet.structures import Level

SMALL = ("backbone.pretrained=none", "backbone.norm=batch")


def lively(module: nn.Module) -> nn.Module:
    """Norms that do something, as after training."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor in (norm.weight, norm.running_var):
                tensor.data.copy_(0.7 + 0.6 * torch.rand(tensor.shape, generator=generator))
            for tensor in (norm.bias, norm.running_mean):
                tensor.data.copy_(-0.1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    return module


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d) for m in module.modules())


@pytest.mark.parametrize("name", ["00_vgg16", "02_widen_3x3", "07_repeated_fpn", "08_bifpn", "efficientdet_d0"])
def test_all_norms_behind_a_convolution_are_folded(name: str) -> None:
    """All but those of EfficientDet's head, where a norm per level follows one convolution: 2 nets of 3 to 5 layers."""
    detector = build_skeleton(load_experiment(name, SMALL))
    shared = sum(norms(net) for net in detector.head.children())
    assert norms(detector) - len(list(foldable(detector))) == shared
    assert (shared > 0) == name.startswith("efficientdet")


@pytest.mark.parametrize(("name", "left"), [("00_vgg16", 0), ("05_deconv", 0), ("efficientdet_d0", 30)])
def test_outputs_stay(name: str, left: int) -> None:
    torch.manual_seed(0)
    experiment = load_experiment(name, SMALL)
    detector = lively(build_detector(experiment, pretrained=False)[0]).eval()
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    folded = fold(detector, images)
    assert norms(detector) > norms(folded)
    assert norms(folded) == left
    with torch.inference_mode():
        before, after = detector(images), folded(images)
    for own, plain in ((after.cls_logits, before.cls_logits), (after.bbox_regression, before.bbox_regression)):
        assert (own - plain).abs().max() <= 1e-5 * plain.abs().max().clamp(min=1)


def test_the_given_module_is_left_alone() -> None:
    module = FoldingSequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert norms(fold(module, torch.randn(1, 2, 4, 4))) == 0
    assert module.training and not module._forward_hooks and not module._forward_pre_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


class Block(nn.Module):
    """A convolution and a norm under the names that the project's own blocks use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)


class NormFirst(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x).relu())


class Residual(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.conv(x))


class OtherMBConv(MBConvBlock):
    def __init__(self) -> None:
        super().__init__(4, 4, 3, 1, 2, None, nn.SiLU, 0.0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self._expand_conv(inputs)
        return self._bn2(self._project_conv(self._bn1(self._bn0(x) + self._depthwise_conv(x)))) + inputs


def shared_convolution() -> nn.Module:
    first, second = ConvNormAct(4, 4, 3), ConvNormAct(4, 4, 3)
    second.conv = first.conv
    return nn.Sequential(first, second)


def plain_sequential() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


UNDECLARED = [NormFirst, Residual, OtherMBConv, shared_convolution, plain_sequential]


@pytest.mark.parametrize("build", UNDECLARED, ids=lambda f: f.__name__)
def test_what_declares_nothing_is_left_alone(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = lively(build()).eval()
    x = torch.randn(2, 4, 6, 8)
    folded = fold(module, x)
    assert norms(folded) == norms(module)
    with torch.no_grad():
        assert torch.equal(folded(x), module(x))


class Wrong(Residual):
    """Declares what its flow of data does not do."""

    def folds(self) -> Iterator[tuple[str, str]]:
        yield "conv", "norm"


class Reaching(nn.Module):
    """Takes a declared block apart."""

    def __init__(self) -> None:
        super().__init__()
        self.block = ConvNormAct(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block.conv(self.block.norm(x))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (Wrong, r"^0 \(Wrong\) gives other outputs when folded"),
        (Reaching, r"^0\.block \(ConvNormAct\) gives other outputs when folded"),
    ],
)
def test_another_network_is_refused_and_the_module_named(build: Callable[[], nn.Module], says: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(lively(build()), ConvNormAct(4, 4, 3)).eval()
    with pytest.raises(FoldError, match=says) as caught:
        fold(module, torch.randn(2, 4, 6, 8))
    assert "folds" in str(caught.value) and "\n" not in str(caught.value)
    assert not any(part._forward_pre_hooks for part in module.modules())


def backbone_of(block: Callable[[], nn.Module]) -> Callable[..., Backbone]:
    class One(Backbone):
        def __init__(self, in_channels: int = 3) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(in_channels, 4, 3, 2, 1), block()
            self.levels, self.segments = [Level("one", 4, 2)], [["stem", "block"]]

    return One


def test_a_wrong_declaration_breaks_a_backbones_promise() -> None:
    """With fresh norms, which do nothing, it would not show."""
    torch.manual_seed(0)
    check_backbone(backbone_of(lambda: ConvNormAct(4, 4, 3)))
    with pytest.raises(ContractError, match=r"block \(Wrong\) gives other outputs when folded"):
        check_backbone(backbone_of(Wrong))


def test_a_wrong_declaration_is_refused_on_loading() -> None:
    torch.manual_seed(0)
    experiment = load_experiment("lite0", (*SMALL, "input.size=[64,96]"))
    detector = build_detector(experiment, pretrained=False)[0]
    detector.backbone._blocks.append(lively(OtherMBConv()))
    detector.backbone.segments[0].insert(0, "shape")
    detector.backbone.shape = nn.Sequential(nn.Conv2d(3, 4, 1), lively(Wrong()), nn.Conv2d(4, 3, 1))
    with pytest.raises(FoldError, match=r"^backbone\.shape\.1 \(Wrong\) "):
        Predictor(experiment, detector, torch.device("cpu"))
