"""The baseline detector's shapes, as published, on inputs that are not square."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from ssd_effnet.build import build_detector, build_postprocess
from ssd_effnet.config.loading import ExperimentConfig, load_experiment
from ssd_effnet.models.adapters import Adapter
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.extras import ExtraLevels
from ssd_effnet.models.fusion import ConcatFusion, HalfwayFusion
from ssd_effnet.models.layers import ConvNormAct, FrozenBatchNorm2d, L2Norm
from ssd_effnet.models.necks import GraphNeck
from ssd_effnet.models.necks.topologies import bifpn, fpn
from ssd_effnet.structures import Level, RawOutputs


def experiment(name: str = "00_vgg16", *overrides: str) -> ExperimentConfig:
    return load_experiment(name, overrides)


def detector_of(e: ExperimentConfig) -> Detector:
    return build_detector(e, pretrained=False)[0].eval()


@pytest.fixture(scope="module")
def baseline() -> Detector:
    torch.manual_seed(0)
    return detector_of(experiment())


@pytest.mark.parametrize("size", [(128, 160), (96, 224), (100, 130), (75, 75)])
def test_anchors_equal_predictions_at_any_size(baseline: Detector, size: tuple[int, int]) -> None:
    with torch.no_grad():
        outputs = baseline(torch.zeros(2, 3, *size, dtype=torch.uint8))
    assert len(outputs.anchors_cxcywh) == outputs.cls_logits.shape[1] == outputs.bbox_regression.shape[1]
    centres = outputs.anchors_cxcywh[:, :2]
    assert (centres > 0).all() and (centres < torch.tensor([size[1], size[0]])).all()


def test_conv4_3_is_normalised(baseline: Detector) -> None:
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        adapted = baseline.features(image)["adapter"][0]
    torch.testing.assert_close(adapted.norm(dim=1), torch.full((1, 8, 12), 20.0))
    assert isinstance(baseline.adapter.l2_norm, L2Norm)


def test_the_detector_normalises() -> None:
    e = experiment("lite0", "input.modality=early", "input.mean=[0.1,0.2,0.3,0.4]", "input.std=[0.5,0.25,0.2,0.1]")
    normalize = detector_of(e).normalize
    image = torch.full((1, 4, 2, 2), 51, dtype=torch.uint8)  # 0.2
    torch.testing.assert_close(normalize(image)[0, :, 0, 0], torch.tensor([0.2, 0.0, -0.5, -2.0]))
    off = detector_of(experiment("lite0", "input.normalize=false")).normalize
    torch.testing.assert_close(off(image[:, :3])[0, :, 0, 0], torch.tensor([0.2, 0.2, 0.2]))


def test_frozen_norm_computes_the_same() -> None:
    norm = torch.nn.BatchNorm2d(3, eps=1e-3).eval()
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    torch.nn.init.uniform_(norm.weight), torch.nn.init.uniform_(norm.bias)
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(FrozenBatchNorm2d(norm)(x), norm(x))


def test_postprocess_returns_boxes_in_original_pixels() -> None:
    e = experiment("lite0", "postprocess.score_threshold=0.5")
    anchors = torch.tensor([[40.0, 32, 16, 32], [41, 33, 16, 32], [100, 32, 16, 32], [20, 20, 8, 8]])
    logits = torch.tensor([[[0.0, 4], [0, 3], [0, 2], [0, -9]]])
    outputs = RawOutputs(logits, torch.zeros(1, 4, 4), anchors)
    found = build_postprocess(e)(outputs, (64, 128), torch.tensor([[128, 512]]))
    boxes, scores, labels = found.image(0)
    # the second overlaps the first, the fourth is under the threshold; x is stretched by 4, y by 2
    torch.testing.assert_close(boxes, torch.tensor([[128.0, 32, 192, 96], [368, 32, 432, 96]]))
    torch.testing.assert_close(scores, logits[0, [0, 2]].softmax(-1)[:, 1])
    assert labels.tolist() == [1, 1]


def test_the_convolutions_of_every_part_start_with_xavier() -> None:
    """Uniform within ``sqrt(6 / (fan-in + fan-out))`` with a bias of 0; depthwise ones as torch has them."""
    torch.manual_seed(0)
    levels = [Level(f"stage{i}", 24, 8 * 2**i) for i in range(3)]
    parts = [
        Adapter(levels, "conv3x3", 16),
        ExtraLevels(levels, 16),
        GraphNeck(levels, fpn(3), channels=16, upsample="transposed", convolution="conv3x3"),
        GraphNeck(levels, bifpn(3), channels=16, downsample="conv", convolution="separable"),
        HalfwayFusion([[nn.Identity()] * 2], [ConcatFusion(24) for _ in levels], None, levels).fuse,
    ]
    for part in parts:
        convolutions = [m for m in part.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and m.groups == 1]
        assert len(convolutions) >= 3
        for convolution in convolutions:
            inputs, outputs, height, width = convolution.weight.shape
            bound = math.sqrt(6 / ((inputs + outputs) * height * width))
            assert convolution.weight.abs().max() <= bound and convolution.weight.std() > 0.9 * bound / math.sqrt(3)
            assert convolution.bias is None or not convolution.bias.any()


class ZeroConv(ConvNormAct):
    """A block that starts as nothing, by a constructor of its own."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        nn.init.zeros_(self.conv.weight)


class OwnNeck(nn.Module):
    """A new neck with a zero-initialised layer."""

    def __init__(self, levels: Sequence[Level], *_: Any, **__: Any) -> None:
        super().__init__()
        self.levels = list(levels)
        self.gates = nn.ModuleList(nn.Conv2d(v.channels, v.channels, 1) for v in levels)
        for gate in self.gates:
            nn.init.zeros_(gate.weight)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return [x + gate(x) for gate, x in zip(self.gates, maps, strict=True)]


def test_a_new_part_keeps_its_own_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssd_effnet.build.GraphNeck", OwnNeck)
    monkeypatch.setattr("ssd_effnet.models.layers.ConvNormAct", ZeroConv)
    detector = detector_of(experiment("lite0", "neck.topology=fpn", "adapter.kind=conv1x1", "adapter.after_neck=true"))
    of_neck = [gate.weight for gate in detector.neck.gates]
    of_adapter = [block.conv.weight for block in detector.adapter.convolutions]
    assert [float(weight.detach().abs().max()) for weight in (*of_neck, *of_adapter)] == [0.0] * 6
