"""Backbones against the packages they must agree with, the papers' tables and the contract."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet as LitePackage
from efficientnet_pytorch import EfficientNet as Package
from torch import nn

from ssd_effnet.models.backbones import VGG16, EfficientNet
from ssd_effnet.models.backbones.efficientnet import NAMES, stages

EVERY_LEVEL = range(7)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def count(modules: Iterator[nn.Parameter]) -> int:
    return sum(p.numel() for p in modules)


def randomise_statistics(module: nn.Module) -> None:
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            m.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.1)


def test_study_table_b4_halving() -> None:
    with torch.device("meta"):
        backbone = EfficientNet("efficientnet-b4", EVERY_LEVEL, "halving").eval()
        maps = backbone(torch.empty(1, 3, 512, 640))
    channels = (24, 32, 56, 112, 160, 272, 448)
    assert [tuple(m.shape[1:]) for m in maps] == [(c, 512 >> i, 640 >> i) for i, c in enumerate(channels, 1)]
    assert [level.stride for level in backbone.levels] == [2, 4, 8, 16, 32, 64, 128]
    assert [level.name for level in backbone.levels] == [f"stage{i}" for i in range(1, 8)]
    assert [stage.repeats for stage in stages("efficientnet-b4")] == [2, 4, 4, 6, 6, 8, 2]


@pytest.mark.parametrize(("batch_norm", "published"), [(False, 14_714_688), (True, 14_723_136)])
def test_vgg_has_the_published_count(batch_norm: bool, published: int) -> None:
    with torch.device("meta"):
        backbone = VGG16(batch_norm)
    ours = sum(count(getattr(backbone, f"conv{i}").parameters()) for i in range(1, 6))
    assert ours == published
    # With the classifier's three linear layers (25088 x 4096, 4096 x 4096, 4096 x 1000) the paper's 138 M.
    classifier = (25088 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
    assert ours + classifier == (138_365_992 if batch_norm else 138_357_544)


def test_vgg_conv4_3_is_after_the_relu_and_stays_untouched() -> None:
    backbone = VGG16(batch_norm=False).eval()
    x = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        conv4_3 = backbone(x)[0]
        y = backbone.halve(backbone.conv3(backbone.halve(backbone.conv2(backbone.halve(backbone.conv1(x))))))
        torch.testing.assert_close(conv4_3, backbone.conv4(y))
    assert conv4_3.min() == 0
    assert 0.1 < conv4_3.std() < 10  # the initialisation keeps the signal alive without batch norm


def reference_maps(model: nn.Module, name: str, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of the package's last block of each stage."""
    last, maps, hooks = -1, [], []
    for stage in stages(name):
        last += stage.repeats
        hooks.append(model._blocks[last].register_forward_hook(lambda _m, _i, output: maps.append(output)))  # type: ignore[index, union-attr]
    model.extract_features(x)  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    return maps


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("efficientnet-b0", (128, 160)),
        ("efficientnet-b0", (129, 161)),
        ("efficientnet-b4", (65, 98)),
        ("efficientnet-lite0", (150, 150)),
        ("efficientnet-lite2", (65, 98)),
    ],
)
@torch.no_grad()
def test_agrees_with_the_package(name: str, size: tuple[int, int]) -> None:
    lite = "lite" in name
    reference = (LitePackage if lite else Package).from_name(name, image_size=size).eval()
    randomise_statistics(reference)
    backbone = EfficientNet(name, EVERY_LEVEL, "published").eval()
    unused = backbone.load_state_dict(reference.state_dict(), strict=False)
    assert not unused.missing_keys
    assert {key.split(".")[0] for key in unused.unexpected_keys} == {"_conv_head", "_bn1", "_fc"}

    x = torch.randn(1, 3, *size)
    ours, theirs = backbone(x), reference_maps(reference, name, x)
    assert len(ours) == len(theirs) == 7
    if not lite:
        endpoints = reference.extract_endpoints(x)
        theirs += [endpoints[f"reduction_{i}"] for i in range(1, 6)]
        ours += [ours[i] for i in (0, 1, 2, 4, 6)]
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


# EfficientNet paper, table 2. It says 9.2 for B2, where its own block table and the released weights have 9.11.
PUBLISHED_MILLIONS = dict(zip(NAMES, ("5.3", "7.8", "9.1", "12", "19", "30", "43", "66"), strict=False))


@pytest.mark.parametrize("name", NAMES)
def test_trunk_is_the_published_network_without_its_head(name: str) -> None:
    with torch.device("meta"):
        full = (LitePackage if "lite" in name else Package).from_name(name)
        backbone = EfficientNet(name, EVERY_LEVEL)
    if name in PUBLISHED_MILLIONS:
        published = PUBLISHED_MILLIONS[name]
        assert f"{count(full.parameters()) / 1e6:.{'1' if '.' in published else '0'}f}" == published
    head = sum(count(getattr(full, part).parameters()) for part in ("_conv_head", "_bn1", "_fc"))
    assert count(backbone.parameters()) == count(full.parameters()) - head


def test_drop_connect_follows_the_seed_and_grows_over_the_full_depth() -> None:
    backbone = EfficientNet("efficientnet-b0", (1, 2), drop_connect=0.8).train()
    x = torch.randn(4, 3, 64, 64)

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return backbone(x)[-1]

    torch.testing.assert_close(run(1), run(1), rtol=0, atol=0)
    assert not torch.equal(run(1), run(2))
    assert [b.drop_rate for b in backbone._blocks] == pytest.approx([0.8 * i / 16 for i in range(5)])
    backbone.eval()
    assert torch.equal(run(1), run(2))


def test_drop_connect_keeps_the_mean() -> None:
    from ssd_effnet.models.backbones.efficientnet import _drop_images

    dropped = _drop_images(torch.ones(20_000, 1, 1, 1, dtype=torch.bfloat16), 0.2)
    assert dropped.dtype == torch.bfloat16
    assert (dropped == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert dropped.float().mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "efficientnet-b9"}, "efficientnet-b7"),
        ({"name": "efficientnet-b0", "levels": (3, 2)}, "ascending"),
        ({"name": "efficientnet-b0", "levels": ()}, "ascending"),
        ({"name": "efficientnet-b0", "levels": (5, 7)}, "0 to 6"),
    ],
)
def test_refuses_what_it_cannot_build(arguments: dict, says: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=says):
        EfficientNet(**arguments)
