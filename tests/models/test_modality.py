"""Halfway fusion: two streams that join level by level, whatever the backbone and wherever they join."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from ssd_effnet.build import build_detector
from ssd_effnet.config.loading import ConfigError, ExperimentConfig, load_experiment, own_normalisation
from ssd_effnet.models.backbones import BACKBONES, Backbone
from ssd_effnet.models.backbones.pretrained import load_pretrained
from ssd_effnet.models.detector import Normalize
from ssd_effnet.models.fusion import CHANNELS, HalfwayFusion
from ssd_effnet.registry import STREAM_FUSIONS
from ssd_effnet.structures import Level


def experiment(*overrides: str, name: str = "lite0") -> ExperimentConfig:
    return load_experiment(name, overrides, tiny=True)


def halfway(*overrides: str, name: str = "lite0") -> HalfwayFusion:
    torch.manual_seed(0)
    detector, _ = build_detector(experiment("input.modality=halfway", *overrides, name=name), pretrained=False)
    assert isinstance(detector.backbone, HalfwayFusion)
    return detector.backbone


class Exchange(nn.Module):
    """Hands each stream the other's map."""

    hands_back = True

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.join = nn.Conv2d(2 * channels, channels, 1)
        self.stride, self.seen = stride, [torch.empty(0)] * 2

    def forward(self, visible: torch.Tensor, lwir: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.seen = [visible.detach(), lwir.detach()]
        return self.join(torch.cat([visible, lwir], 1)), lwir, visible


@pytest.mark.parametrize(
    ("name", "shared", "up_to"),
    [
        *(("concat", "false", "null"), ("exchange", "false", "1"), ("concat", "true", "0"), ("exchange", "true", "2")),
        *(("concat", "1", "null"), ("concat", "1", "1"), ("exchange", "1", "1")),
    ],
)
def test_every_parameter_learns_from_the_deepest_map_or_its_own(
    name: str, shared: str, up_to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STREAM_FUSIONS, "exchange", Exchange)
    key = "shared_from" if shared == "1" else "shared"
    fusion = halfway(f"fusion.{key}={shared}", f"fusion.up_to={up_to}", f"fusion.name={name}").train()
    maps = fusion(torch.randn(2, 4, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(2, 40, 8, 12), (2, 112, 4, 6), (2, 320, 2, 3)]
    sum(x.square().mean() for x in maps).backward()  # type: ignore[union-attr]
    assert [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_shared_from_a_level_on_streams_have_one_set_of_weights_and_statistics() -> None:
    """Level 0 has two sets, 1 and 2 one: that of the visible stream, whose norms see both as one batch."""
    apart, partly, shared = (halfway(*own).train() for own in ((), ("fusion.shared_from=1",), ("fusion.shared=true",)))
    numbers = [{k: v for k, v in one.named_parameters() if "fuse" not in k} for one in (apart, partly, shared)]
    two, some, one = (sum(p.numel() for p in n.values()) for n in numbers)
    first = sum(p.numel() for p in partly.streams[1].parameters())
    assert some == one + first < two and first == sum(p.numel() for p in apart.streams[1].cut(0, 1).parameters())
    assert halfway("fusion.shared_from=0").state_dict().keys() == shared.state_dict().keys()
    assert len(partly.streams) == 2 and [len(stage) for stage in partly.later] == [1]
    norm, entering = next(m for m in partly.later[0][0].modules() if isinstance(m, nn.BatchNorm2d)), []
    norm.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    maps = partly(torch.randn(2, 4, 64, 96))
    assert [x.shape[0] for x in entering] == [4] and [x.shape[1] for x in maps] == [40, 112, 320]
    for own in (("fusion.shared_from=3",), ("fusion.shared_from=1", "fusion.up_to=0")):
        with pytest.raises(ConfigError, match=r"key `fusion\.shared_from`: [31] is not one of .* levels 0 \("):
            halfway(*own)
    with pytest.raises(ConfigError, match=r"key `fusion\.up_to`: 3 is not one of .* 0 \(stage3\), 1 \(stage5\)"):
        halfway("fusion.up_to=3")
    with pytest.raises(ConfigError, match=r"key `fusion\.shared_from`: must be null"):
        halfway("fusion.shared_from=1", "fusion.shared=true")


class OfItself(Exchange):
    """Decides when it is made, when the streams are cut already."""

    hands_back = False

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, stride)
        self.hands_back = True


def test_what_hands_back_is_known_of_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STREAM_FUSIONS, "of_itself", OfItself)
    with pytest.raises(ConfigError, match=r"key `fusion\.name`: hands_back of of_itself"):
        halfway("fusion.name=of_itself")


@torch.no_grad()
def test_what_a_fusion_hands_back_goes_on_in_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STREAM_FUSIONS, "exchange", Exchange)
    fusion = halfway("fusion.name=exchange").eval()
    fusion(images := torch.randn(1, 4, 64, 96))
    assert [join.stride for join in fusion.fuse] == [8, 16, 32]
    streams = [[fusion.streams[i], fusion.later[0][i], fusion.later[1][i]] for i in range(2)]
    visible, lwir = streams[0][0](images[:, :3])[0], streams[1][0](images[:, 3:])[0]
    for level in range(3):
        torch.testing.assert_close(fusion.fuse[level].seen, [visible, lwir])
        if level < 2:
            visible, lwir = streams[0][level + 1](lwir)[0], streams[1][level + 1](visible)[0]
    monkeypatch.setitem(BACKBONES, "mine", Whole)
    own = ("backbone.name=mine", "backbone.levels=null", "input.mean=[0,0,0,0]", "input.std=[1,1,1,1]")
    for stated, key in (("fusion.name=exchange", "name"), ("fusion.shared_from=1", "shared_from")):
        with pytest.raises(ConfigError, match=rf"key `fusion\.{key}`: mine cannot be cut"):
            halfway(*own, stated)


def test_both_streams_and_the_trunk_get_the_pretrained_weights() -> None:
    e = load_experiment("lite0", ["input.modality=halfway", "fusion.up_to=1"])
    detector, report = build_detector(e)
    plain, _ = build_detector(load_experiment("lite0"))
    assert report is not None and "3 -> 1 channels" in str(report)
    known, fusion = plain.backbone.state_dict(), detector.backbone
    for part in (*fusion.streams, fusion.trunk):
        for name, tensor in part.state_dict().items():
            expected = known[name]
            if tensor.shape != expected.shape:  # LWIR's first convolution
                assert name == "_conv_stem.weight"
                expected = expected.sum(dim=1, keepdim=True)
            torch.testing.assert_close(tensor, expected)
    assert set(known) == set(fusion.streams[0].state_dict()) | set(fusion.trunk.state_dict())


@pytest.mark.parametrize("name", [name for name in BACKBONES if "*" not in name])
@torch.no_grad()
def test_every_stem_answers_a_grey_image_alike(name: str, tmp_path: Path) -> None:
    """With weights of R, G, B: alike once normalised; by the weights' own normalisation from pixels on, within 5 %."""
    torch.manual_seed(0)
    small = {"levels": (0,)} if name.startswith("efficientnet") else {}
    build, weights = partial(BACKBONES[name], **small), tmp_path / "weights.pth"
    torch.save(build().state_dict(), weights)
    own = own_normalisation(name) or own_normalisation("efficientnet-b0")
    grey = torch.rand(1, 1, 32, 40)
    answers, of_pixels = [], []
    for modality in ("visible", "lwir", "early"):
        channels = list(CHANNELS[modality])
        backbone = build(in_channels=len(channels))
        load_pretrained(backbone, name, str(weights))
        stem = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d))
        answers.append(stem(grey.expand(-1, len(channels), -1, -1)))
        normalize = Normalize([own["mean"][c] for c in channels], [own["std"][c] for c in channels])
        of_pixels.append(stem(normalize(255 * grey.expand(-1, len(channels), -1, -1))).square().mean().sqrt())
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], rtol=1e-4, atol=1e-5)
    assert max(of_pixels) < 1.05 * min(of_pixels)


@torch.no_grad()
def test_shared_or_not_both_streams_answer_a_grey_image_alike() -> None:
    """What is joined at each level is twice the same, from one stream's weights or from two."""
    grey, joined = torch.rand(1, 1, 64, 96).expand(-1, 4, -1, -1), []
    for shared in ("true", "false"):
        e = experiment("input.modality=halfway", f"fusion.shared={shared}", "backbone.pretrained=imagenet")
        fusion = build_detector(e)[0].backbone.eval()
        for join in fusion.fuse:
            join.register_forward_pre_hook(lambda _, inputs: joined.append(torch.cat(inputs, 1)))
        fusion(grey)
    assert len(joined) == 6
    for pair, other in zip(joined[:3], joined[3:], strict=True):
        visible, lwir = pair.chunk(2, dim=1)
        for answer in (lwir, *other.chunk(2, dim=1)):
            torch.testing.assert_close(answer, visible, rtol=1e-3, atol=1e-4 * float(visible.abs().max()))


class Whole(nn.Module):
    """Returns its maps and cannot be cut."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.levels = [Level(f"l{i}", 8, 8 * 2**i) for i in range(3)]
        self.first = nn.Conv2d(in_channels, 8, 8, 8)
        self.rest = nn.ModuleList(nn.Conv2d(8, 8, 2, 2) for _ in range(2))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.first(images)]
        for layer in self.rest:
            maps.append(layer(maps[-1]))
        return maps


class OwnForward(Backbone):
    """The same as a subclass of Backbone."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.whole = Whole(in_channels)
        self.levels = self.whole.levels

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = self.whole(images)
        return maps


@pytest.mark.parametrize("build", [Whole, OwnForward])
def test_a_backbone_that_cannot_be_cut_is_fused_at_its_end_or_refused(
    build: Callable[..., Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES, "mine", build)
    own = ("backbone.name=mine", "backbone.levels=null", "input.mean=[0,0,0,0]", "input.std=[1,1,1,1]")
    fusion = halfway(*own)
    assert [tuple(x.shape) for x in fusion(torch.randn(2, 4, 64, 96))] == [(2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3)]
    assert len(fusion.streams) == 2 and fusion.trunk is None
    for up_to in (0, 1):
        with pytest.raises(ConfigError, match=rf"key `fusion\.up_to`: mine cannot be cut .*{build.__name__}") as caught:
            halfway(*own, f"fusion.up_to={up_to}")
        assert "\n" not in str(caught.value)
