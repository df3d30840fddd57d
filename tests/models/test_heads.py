"""Heads on one width, and every head with every loss."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data_kaist.structures import Targets
from ssd_effnet.build import build_criterion, build_detector, build_postprocess
from ssd_effnet.config.loading import ConfigError, load_experiment
from ssd_effnet.models.heads import EfficientDetHead, SSDHead, prior_bias
from ssd_effnet.structures import Level

LEVELS = [Level("p3", 6, 8), Level("p4", 6, 16)]
MAPS = [(4, 5), (2, 3)]


def maps(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 6, *size, generator=generator) for size in MAPS]


def test_the_nets_equal_a_written_out_computation() -> None:
    torch.manual_seed(0)
    head = EfficientDetHead(LEVELS, 3, 2, layers=2, prior=0.01).eval()
    for norm in head.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.momentum == 0.01
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight), nn.init.normal_(norm.bias)
    logits, offsets = head(maps())
    assert (logits.shape, offsets.shape) == ((2, 3 * 26, 2), (2, 3 * 26, 4))

    state = head.state_dict()

    def separable(x: torch.Tensor, name: str) -> torch.Tensor:
        x = F.conv2d(x, state[f"{name}.depthwise.weight"], padding=1, groups=6)
        return F.conv2d(x, state[f"{name}.pointwise.conv.weight"], state[f"{name}.pointwise.conv.bias"])

    for net, found, columns in (("classification", logits, 2), ("regression", offsets, 4)):
        rows = []
        for level, x in enumerate(maps()):
            for layer in range(2):
                n = f"{net}.norms.{layer}.{level}"
                y = separable(x, f"{net}.convolutions.{layer}")
                weight, bias, mean, var = (
                    state[f"{n}.{of}"][:, None, None] for of in ("weight", "bias", "running_mean", "running_var")
                )
                y = (y - mean) / torch.sqrt(var + 1e-3) * weight + bias
                x = y * torch.sigmoid(y)
            y = separable(x, f"{net}.last")
            height, width = MAPS[level]
            for i, j, anchor in itertools.product(range(height), range(width), range(3)):
                rows.append(y[:, anchor * columns : (anchor + 1) * columns, i, j])
        torch.testing.assert_close(found, torch.stack(rows, dim=1), rtol=1e-4, atol=1e-5)


def test_levels_of_different_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one width, not p3 6, p4 8"):
        EfficientDetHead([LEVELS[0], Level("p4", 8, 16)], 9, 1)
    with pytest.raises(ConfigError, match=r"key `head.kind`: .* stage3 56.* set neck.channels"):
        build_detector(load_experiment("01_effnet_b4", ["head.kind=efficientdet"]), pretrained=False)


@pytest.mark.parametrize("kind", [SSDHead, EfficientDetHead])
def test_the_prior_is_what_an_untrained_head_says(kind: type[nn.Module]) -> None:
    assert prior_bias(0.01) == pytest.approx(-math.log(99))
    head = kind(LEVELS, 3, 2, prior=0.01).eval()
    logits, _ = head([torch.zeros_like(x) for x in maps()])
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.01))
    logits, offsets = kind(LEVELS, 3, 2).eval()([torch.zeros_like(x) for x in maps()])
    assert not logits.any() and not offsets.any()


SMALL = (
    *("backbone.name=efficientnet-b0", "backbone.pretrained=none", "input.size=[64,96]"),
    *("adapter.channels=32", "extras.channels=32", "postprocess.score_threshold=0", "anchors.variances=[1,1]"),
)


@pytest.mark.parametrize(
    ("parent", "head", "loss"),
    [
        *(("02_widen_3x3", "ssd", "focal"), ("02_widen_3x3", "efficientdet", "multibox")),
        *(("efficientdet_d0", "ssd", "multibox"), ("efficientdet_d0", "efficientdet", "focal")),
    ],
)
def test_every_head_with_every_loss_with_a_neck_and_without(parent: str, head: str, loss: str) -> None:
    kind = (f"head.kind={head}", f"class_loss.name={loss}", "data.classes={a: [a], b: [b]}")
    e = load_experiment(parent, [*SMALL, *kind])
    torch.manual_seed(0)
    detector = build_detector(e, pretrained=False)[0].train()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    boxes = torch.tensor([[[40.0, 10, 60, 60]], [[10, 10, 25, 50]]])
    outputs = detector(images)
    assert outputs.cls_logits.shape[-1] == (3 if loss == "multibox" else 2)
    targets = Targets(boxes, torch.tensor([[1], [2]]), torch.zeros(2, 1, dtype=torch.bool))
    losses = build_criterion(e)(outputs, targets)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    found = build_postprocess(e)(outputs, (64, 96))
    assert set(found.labels.unique().tolist()) >= {1, 2} and found.scores.max() <= 1
