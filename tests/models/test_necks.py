"""Necks: every topology against a computation written out by hand, odd sizes, gradients, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ssd_effnet.build import build_neck
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.models.necks import GraphNeck, Topology
from ssd_effnet.models.necks.resampling import PooledLevels
from ssd_effnet.models.necks.topologies import bifpn, fpn, fully_connected, nas_fpn, panet, study_fpn
from ssd_effnet.registry import TOPOLOGIES
from ssd_effnet.structures import Level

# Even, odd and single steps among them.
SIZES = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
WIDTH = 4


def levels(count: int = 5, channels: int | list[int] = WIDTH, stride: int = 8) -> list[Level]:
    widths = [channels] * count if isinstance(channels, int) else channels
    return [Level(f"stage{i}", c, stride * 2**i) for i, c in enumerate(widths)]


def maps(of: list[Level], sizes: list[tuple[int, int]] = SIZES, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, lv.channels, *size, generator=generator) for lv, size in zip(of, sizes, strict=False)]


def randomise(neck: nn.Module, seed: int = 1) -> Any:
    """Every parameter and running statistic random, so that nothing cancels by its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in neck.state_dict().items():
            if tensor.is_floating_point():
                low = 0.5 if name.endswith(("var", "scalars", "norm.weight")) else -0.5
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (1.5 - low) / 1.5 + low)
    return neck.eval()


# What a step does, in plain functions of tensors.


def bn(norm: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="nearest")


def down(x: Tensor, like: Tensor) -> Tensor:
    """3x3 maximum every two positions: an odd side has one border on both ends, an even one at its end alone."""
    height, width = x.shape[-2:]
    x = F.pad(x, (width % 2, 1, height % 2, 1), value=-1e9)
    x = F.max_pool2d(x, 3, 2)
    assert x.shape[-2:] == like.shape[-2:]
    return x


def conv3(neck: Any, node: str, x: Tensor, turn: int = 0) -> Tensor:
    """3x3 convolution, batch norm, ReLU of that node."""
    block = neck.turns[turn][node].after
    return F.relu(bn(block.norm, F.conv2d(x, block.conv.weight, padding=1)))


def plain(topology: Topology, **options: Any) -> Any:
    options = {"upsample": "nearest", "convolution": "conv3x3", "activation": "relu", **options}
    return randomise(GraphNeck(levels(topology.num_levels), topology, **options))


def assert_same(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_study_fpn_bilinear_is_addition_and_nothing_else() -> None:
    """Step 4 of the study."""
    neck = GraphNeck(levels(), study_fpn(5, 3))
    c2, c3, c4, c5, c6 = maps(levels())
    p5 = c5 + F.interpolate(c6, c5.shape[-2:], mode="bilinear", align_corners=False)
    p4 = c4 + F.interpolate(p5, c4.shape[-2:], mode="bilinear", align_corners=False)
    p3 = c3 + F.interpolate(p4, c3.shape[-2:], mode="bilinear", align_corners=False)
    p2 = c2 + F.interpolate(p3, c2.shape[-2:], mode="bilinear", align_corners=False)
    assert_same(neck([c2, c3, c4, c5, c6]), [p2, p3, p4])
    assert not list(neck.parameters())
    assert neck.levels == levels()[:3]
    of_two = load_experiment("lite0", ["neck.topology=study_fpn", "neck.outputs=2", f"neck.channels={WIDTH}"])
    built = build_neck(of_two, levels(2))
    assert built is not None and [level.stride for level in built.levels] == [8, 16]


def test_study_fpn_transposed_walks_the_widths_down() -> None:
    """Step 5: 448 -> 272 -> 160 -> 112 -> 56, here an eighth of each; the last step 1x2 -> 2x3 is cropped."""
    given_levels = levels(channels=[7, 14, 20, 34, 56])
    neck: Any = randomise(GraphNeck(given_levels, study_fpn(), upsample="transposed"))
    c2, c3, c4, c5, c6 = maps(given_levels)

    def step(node: str, x: Tensor) -> Tensor:
        edge = neck.turns[0][node].edges[1]
        assert edge.conv.kernel_size == edge.conv.stride == (2, 2)
        return bn(edge.norm, F.conv_transpose2d(x, edge.conv.weight, stride=2))

    p5 = c5 + step("td3", c6)[..., :2, :3]
    p4 = c4 + step("td2", p5)[..., :4, :5]
    p3 = c3 + step("td1", p4)
    p2 = c2 + step("td0", p3)
    assert_same(neck([c2, c3, c4, c5, c6]), [p2, p3, p4])
    assert [level.channels for level in neck.levels] == [7, 14, 20]


def test_panet() -> None:
    neck = plain(panet(3))
    c0, c1, c2 = maps(levels(3))
    t2 = conv3(neck, "td2", c2)
    t1 = conv3(neck, "td1", c1 + up(t2, c1))
    t0 = conv3(neck, "td0", c0 + up(t1, c0))
    n0 = conv3(neck, "out0", t0)
    n1 = conv3(neck, "out1", t1 + down(n0, t1))
    n2 = conv3(neck, "out2", t2 + down(n1, t2))
    assert_same(neck([c0, c1, c2]), [n0, n1, n2])


def test_fully_connected() -> None:
    """The finest level, pooled for the coarsest, skips one: five positions every four."""
    neck = plain(fully_connected(3))
    c0, c1, c2 = maps(levels(3))
    far = F.max_pool2d(F.pad(c0, (0, 1, 0, 1), value=-1e9), 5, 4)
    n0 = conv3(neck, "out0", c0 + up(c1, c0) + up(c2, c0))
    n1 = conv3(neck, "out1", down(c0, c1) + c1 + up(c2, c1))
    n2 = conv3(neck, "out2", far + down(c1, c2) + c2)
    assert_same(neck([c0, c1, c2]), [n0, n1, n2])


def test_nas_fpn() -> None:
    """Seven cells; a cell activates, convolves, normalises. Sizes double, so that pools by 4 and 8 stay simple."""
    neck = plain(nas_fpn(5), activation_first=True)
    p3, p4, p5, p6, p7 = maps(levels(), [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)])

    def cell(node: str, x: Tensor) -> Tensor:
        block = neck.turns[0][node].after[1]
        return bn(block.norm, F.conv2d(F.relu(x), block.conv.weight, padding=1))

    def attend(deep: Tensor, shallow: Tensor) -> Tensor:
        return deep + torch.sigmoid(F.adaptive_max_pool2d(deep, 1)) * shallow

    def pool(x: Tensor, ratio: int) -> Tensor:
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-1e9), ratio + 1, ratio)

    a = cell("gp1", attend(up(p6, p4), p4))
    b = cell("sum1", p4 + a)
    o3 = cell("out0", p3 + up(b, p3))
    o4 = cell("out1", b + pool(o3, 2))
    o5 = cell("out2", attend(pool(o4, 2), pool(o3, 4)) + p5)
    o7 = cell("out4", attend(pool(o5, 4), pool(b, 8)) + p7)
    o6 = cell("out3", attend(up(o7, p6), pool(o5, 2)))
    assert len(nas_fpn(5).nodes) == 7
    assert_same(neck([p3, p4, p5, p6, p7]), [o3, o4, o5, o6, o7])


def test_bifpn_as_the_paper_writes_it() -> None:
    """EfficientDet, section 3.3, five levels, fast normalised fusion, separable convolutions, two turns."""
    neck = plain(bifpn(5), fusion="fast", convolution="separable", activation="silu", repeats=2)

    def conv(turn: int, node: str, x: Tensor) -> Tensor:
        block = neck.turns[turn][node].after
        x = F.conv2d(x, block.depthwise.weight, padding=1, groups=WIDTH)
        return F.silu(bn(block.pointwise.norm, F.conv2d(x, block.pointwise.conv.weight)))

    def fuse(turn: int, node: str, *terms: Tensor) -> Tensor:
        w = F.relu(neck.turns[turn][node].fusion.scalars)
        assert len(w) == len(terms)
        return conv(turn, node, sum((w[i] * x for i, x in enumerate(terms)), torch.zeros(())) / (w.sum() + 1e-4))

    given_maps = maps(levels())
    p3, p4, p5, p6, p7 = given_maps
    for k in range(2):
        t6 = fuse(k, "td3", p6, up(p7, p6))
        t5 = fuse(k, "td2", p5, up(t6, p5))
        t4 = fuse(k, "td1", p4, up(t5, p4))
        o3 = fuse(k, "td0", p3, up(t4, p3))
        o4 = fuse(k, "out1", p4, t4, down(o3, p4))
        o5 = fuse(k, "out2", p5, t5, down(o4, p5))
        o6 = fuse(k, "out3", p6, t6, down(o5, p6))
        o7 = fuse(k, "out4", p7, down(o6, p7))
        p3, p4, p5, p6, p7 = o3, o4, o5, o6, o7
    assert_same(neck(given_maps), [p3, p4, p5, p6, p7])


def test_extra_levels_are_projected_once_and_pooled() -> None:
    extra: Any = randomise(PooledLevels(Level("p5", 6, 32), 2, 4))
    x = torch.randn(2, 6, 7, 10)
    p6 = F.max_pool2d(F.pad(bn(extra.adapt.norm, F.conv2d(x, extra.adapt.conv.weight)), (0, 1, 1, 1), value=-1e9), 3, 2)
    p7 = F.max_pool2d(F.pad(p6, (1, 1, 0, 1), value=-1e9), 3, 2)
    assert_same(extra(x), [p6, p7])
    assert p7.shape[-2:] == (2, 3)


@pytest.mark.parametrize("project", ["edge", "level"])
def test_projection_on_each_edge_or_once(project: Any) -> None:
    """Of BiFPN's three levels the middle one leaves by two edges."""
    given_levels = levels(3, channels=[3, 5, 6])
    neck: Any = randomise(GraphNeck(given_levels, bifpn(3), channels=4, upsample="nearest", project=project))
    c0, c1, c2 = maps(given_levels)

    def lateral(node: str, which: int, x: Tensor) -> Tensor:
        level = {3: 0, 5: 1, 6: 2}[x.shape[1]]
        block = neck.projections[level] if project == "level" else neck.turns[0][node].edges[which].adapt
        return bn(block.norm, F.conv2d(x, block.conv.weight))

    t1 = lateral("td1", 0, c1) + up(lateral("td1", 1, c2), c1)
    o0 = lateral("td0", 0, c0) + up(t1, c0)
    o1 = lateral("out1", 0, c1) + t1 + down(o0, c1)
    o2 = lateral("out2", 0, c2) + down(o1, c2)
    assert_same(neck([c0, c1, c2]), [o0, o1, o2])
    convolutions = sum(isinstance(m, nn.Conv2d) for m in neck.modules())
    assert convolutions == (3 if project == "level" else 5)


def test_equal_strides_are_not_resampled() -> None:
    """Published EfficientNet strides: two stages of stride 16 differ in width only."""
    given_levels = [Level("a", 3, 16), Level("b", 5, 16)]
    neck: Any = randomise(GraphNeck(given_levels, fpn(2), upsample="transposed"))
    a, b = maps(given_levels, [(4, 5), (4, 5)])
    block = neck.turns[0]["td0"].edges[1].adapt
    assert_same(neck([a, b]), [a + bn(block.norm, F.conv2d(b, block.conv.weight)), b])


def test_fusion_weights_for_the_log() -> None:
    neck: Any = GraphNeck(levels(3), bifpn(3), fusion="fast")
    table = neck.fusion_weights()
    assert list(table) == ["td1", "td0", "out1", "out2"]
    assert list(table["out1"]) == ["in1", "td1", "td0"]
    assert sum(table["out1"].values()) == pytest.approx(1, abs=1e-4)
    neck.turns[0]["td1"].fusion.scalars.data.copy_(torch.tensor([3.0, 1.0]))
    assert neck.fusion_weights()["td1"] == pytest.approx({"in1": 0.75, "in2": 0.25}, abs=1e-4)
    assert GraphNeck(levels(3), bifpn(3)).fusion_weights() == {}
    twice = GraphNeck(levels(2), bifpn(2), fusion="softmax", repeats=2)
    assert list(twice.fusion_weights()) == ["0.td0", "0.out1", "1.td0", "1.out1"]
    # A node with one input weighs nothing.
    assert "td2" not in GraphNeck(levels(3), fpn(3), fusion="unbounded").fusion_weights()


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("upsample", ["bilinear", "transposed"])
@pytest.mark.parametrize("name", list(TOPOLOGIES))
def test_a_gradient_reaches_every_parameter(name: str, upsample: Any, repeats: int) -> None:
    """Evaluation mode: in training, batch norm takes every shift before it away again, and its gradient with it."""
    given_levels = levels(channels=[3, 5, 6, 7, 8])
    neck: Any = randomise(
        GraphNeck(
            given_levels, TOPOLOGIES[name](5), channels=WIDTH, upsample=upsample, downsample="conv", fusion="fast",
            convolution="separable", activation="silu", repeats=repeats,
        )
    )  # fmt: skip
    sum(x.square().mean() for x in neck(maps(given_levels))).backward()
    silent = [n for n, p in neck.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@settings(max_examples=40)
@given(
    name=st.sampled_from(list(TOPOLOGIES)),
    size=st.tuples(st.integers(1, 75), st.integers(1, 75)),
    ceil=st.lists(st.booleans(), min_size=4, max_size=4),
    upsample=st.sampled_from(["bilinear", "nearest", "transposed"]),
    downsample=st.sampled_from(["max_pool", "conv"]),
    repeats=st.integers(1, 2),
)
def test_sizes_are_kept(
    name: str, size: tuple[int, int], ceil: list[bool], upsample: Any, downsample: Any, repeats: int
) -> None:
    """Levels that halve to the next larger or smaller whole size, in any order."""
    sizes = [size]
    for up_to in ceil:
        sizes.append(tuple(max(1, (side + up_to) // 2) for side in sizes[-1]))  # type: ignore[arg-type]
    given_levels = levels(channels=[2, 3, 4, 5, 6])
    neck = GraphNeck(given_levels, TOPOLOGIES[name](5), upsample=upsample, downsample=downsample, repeats=repeats)
    with torch.no_grad():
        out = neck.eval()(maps(given_levels, sizes))
    wanted = [(2, level.channels, *s) for level, s in zip(neck.levels, sizes, strict=False)]
    assert [tuple(x.shape) for x in out] == wanted
    assert all(x.isfinite().all() for x in out)


def test_strides_that_do_not_divide_each_other_pool_evenly() -> None:
    given_levels = [Level("a", 3, 64), Level("b", 3, 100)]
    fine, coarse = maps(given_levels, [(5, 5), (3, 3)])
    out = GraphNeck(given_levels, panet(2))([fine, coarse])
    t0 = fine + F.interpolate(coarse, (5, 5), mode="bilinear", align_corners=False)
    assert_same(out, [t0, coarse + F.adaptive_max_pool2d(t0, 3)])


def test_the_given_maps_are_not_changed() -> None:
    """An activation in place would reach through a node with one input."""
    neck = GraphNeck(levels(3), fpn(3), convolution="conv3x3", activation="relu", activation_first=True)
    given_maps = maps(levels(3))
    before = [x.clone() for x in given_maps]
    neck(given_maps)
    assert all(torch.equal(a, b) for a, b in zip(before, given_maps, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upsample": "bicubic"}, "upsampling 'bicubic' is unknown; known: bilinear, nearest, transposed"),
        ({"extra_levels": 1}, "bifpn: the topology joins 3 levels, got 3 and 1 extra: stage0, stage1, stage2"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphNeck(levels(3), bifpn(3), **options)


@pytest.mark.parametrize("strides", [(64, 100), (16, 40)])
def test_refuses_transposed_convolutions_between_other_ratios(strides: tuple[int, int]) -> None:
    given_levels = [Level("conv9", 3, strides[0]), Level("conv10", 3, strides[1])]
    message = rf"transposed .* conv10 \(stride {strides[1]}\) and conv9 \(stride {strides[0]}\).*whole factors"
    with pytest.raises(ValueError, match=message):
        GraphNeck(given_levels, fpn(2), upsample="transposed")


def test_refuses_levels_out_of_order() -> None:
    with pytest.raises(ValueError, match="finest first"):
        GraphNeck(levels(3)[::-1], bifpn(3))
