"""Folded detectors find what they found before."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ssd_effnet.build import build_detector
from ssd_effnet.config import load_experiment
from ssd_effnet.folding import fold
from ssd_effnet.layers import FrozenBatchNorm2d, replace_batch_norm

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SMALL = ("backbone.pretrained=none", "backbone.norm=batch")


def lively(module: nn.Module) -> nn.Module:
    """Norms that do something, as after training."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor, low in (
                (norm.weight, 0.7),
                (norm.bias, -0.1),
                (norm.running_mean, -0.1),
                (norm.running_var, 0.7),
            ):
                assert tensor is not None
                values = low + torch.rand(tensor.shape, generator=generator) * (0.6 if low > 0 else 0.2)
                tensor.data.copy_(values)
    return module


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d) for m in module.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [("00_vgg16", 0), ("01_effnet_b4", 0), ("05_deconv", 0), ("09_panet", 0), ("lite0", 0), ("efficientdet_d0", 30)],
)
def test_outputs_stay(name: str, left: int) -> None:
    torch.manual_seed(0)
    experiment = load_experiment(EXPERIMENTS / f"{name}.yaml", SMALL)
    detector = lively(build_detector(experiment, pretrained=False)[0]).eval()
    folded = fold(detector)
    assert norms(detector) > norms(folded)
    assert norms(folded) == left
    images = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8)
    with torch.inference_mode():
        before, after = detector(images), folded(images)
    for own, plain in ((after.cls_logits, before.cls_logits), (after.bbox_regression, before.bbox_regression)):
        assert (own - plain).abs().max() <= 1e-5 * plain.abs().max().clamp(min=1)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_pair_by_itself(transposed: bool, frozen: bool) -> None:
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    module = nn.Sequential(kind(4, 6, 2, stride=2, bias=False), nn.BatchNorm2d(6), nn.BatchNorm2d(6))
    replace_batch_norm(module, "frozen" if frozen else "batch")
    lively(module).eval()
    folded = fold(module)
    assert norms(folded) == 1  # the second follows a norm, not a convolution
    x = torch.randn(2, 4, 8, 10)
    torch.testing.assert_close(folded(x), module(x), rtol=1e-5, atol=1e-5)


def test_the_given_module_is_left_alone() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fold(module)
    assert module.training and all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
