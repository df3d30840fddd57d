"""Every experiment's size: published figures, golden values, and what scales with what. No weights are made for it."""

from __future__ import annotations

import pytest
import torch

from ssd_effnet.build import as_size, build_criterion, build_postprocess, build_skeleton
from ssd_effnet.config.keys import settings
from ssd_effnet.config.loading import ConfigError, load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.models.cost import Cost, cost
from ssd_effnet.models.detector import Detector

PUBLISHED_CLASSES = "data.classes={" + ",".join(f"c{i}: [c{i}]" for i in range(90)) + "}"


def experiment(name: str, *overrides: str) -> ExperimentConfig:
    return load_experiment(name, overrides)


def cost_of(e: ExperimentConfig) -> Cost:
    return cost(build_skeleton(e), as_size(e.input.size))


# parameters, multiply-adds in 10^6, anchors; at each experiment's own input size
GOLDEN = {
    "00_vgg16": (23_591_704, 132_803, 41_760),
    "01_effnet_b4": (8_086_792, 4_809, 41_760),
    "02_widen_3x3": (10_084_328, 8_014, 41_760),
    "02a_widen_1x1": (8_740_840, 6_043, 41_760),
    "03_resolution": (19_715_884, 25_038, 41_760),
    "04_fpn": (23_381_328, 8_727, 41_760),
    "05_deconv": (23_950_032, 8_786, 41_760),
    "06_weighted_fusion": (24_277_536, 8_841, 41_760),
    "06c_sum": (24_277_528, 8_841, 41_760),  # the same without two scalars in each of four nodes
    "07_repeated_fpn": (26_451_488, 9_108, 41_760),
    "07a_one_width": (28_216_152, 15_632, 41_760),
    "07b_nearest": (25_802_328, 14_609, 41_760),
    "08_bifpn": (26_394_836, 14_917, 41_760),
    "09_panet": (26_486_668, 15_671, 41_760),
    "10_nas_fpn": (26_038_418, 15_036, 41_760),
    "11_fully_connected": (26_645_057, 15_062, 41_760),
    "12_simplified_panet": (26_271_628, 14_868, 41_760),
    "efficientdet_d0": (3_826_082, 2_766, 61_380),
}


VARIANTS = {
    "02a_widen_1x1",
    "05_deconv",
    "06c_sum",
    "06_weighted_fusion",
    "07_repeated_fpn",
    "07a_one_width",
    "07b_nearest",
}
VARIANTS |= {"09_panet", "10_nas_fpn", "11_fully_connected", "12_simplified_panet"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in VARIANTS else []) for name in GOLDEN]
)
def test_golden_values(name: str) -> None:
    found = cost_of(experiment(name))
    assert (found.parameters, round(found.multiply_adds / 1e6), found.anchors) == GOLDEN[name]


def test_mlpd_is_the_baseline_with_a_second_start_and_three_joins() -> None:
    """From the description: VGG16-BN, conv1 to conv4 per camera, the rest shared, 1x1 convolutions that join."""
    e = experiment("mlpd")
    detector = build_skeleton(e)
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512)  # conv1_1 ... conv4_3
    # 9 weights per pair of channels, a bias, and a factor and shift of batch norm; LWIR has one channel
    of_lwir = sum(9 * a * b + 3 * b for a, b in zip((1, *widths[:-1]), widths, strict=True))
    assert of_lwir == 7_639_488
    join = 1024 * 512 + 2 * 512  # 1x1, of two maps to one, and batch norm
    found = cost_of(e)
    assert found.parameters == 23_591_704 + of_lwir + 3 * join == 32_807_128
    # (64x80 + 32x40 + 16x20 + 3 x 8x10) x two ratios x three scales; the baseline's background and person are here
    # two labels: its head has the same size
    assert found.anchors == 6 * (5120 + 1280 + 320 + 240) == 41_760
    with torch.no_grad():
        maps = list(detector.features(torch.empty(1, 4, 512, 640, device="meta")).values())[-1]
    sizes = [(64, 80), (32, 40), (16, 20), (8, 10), (8, 10), (8, 10)]
    assert [tuple(x.shape[1:]) for x in maps] == [(512, *size) for size in sizes]
    for published in ("7.58", "7.95", "6.95", "never trained on KAIST here"):
        assert published in e.description


# side of the input, parameters in 10^6, multiply-adds in 10^9
PUBLISHED = {
    "d0": (512, 3.9, 2.54),
    "d1": (640, 6.6, 6.10),
    "d2": (768, 8.1, 11.0),
    "d3": (896, 12.0, 24.9),
    "d4": (1024, 20.7, 55.2),
    "d5": (1280, 33.7, 130.0),
    "d6": (1280, 51.9, 226.0),
    "d7": (1536, 51.9, 325.0),
}


@pytest.mark.parametrize(
    "name",
    # the settings of the others are compared one by one below
    ["d0" if name == "d0" else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED],
)
def test_efficientdet_has_its_published_size(name: str) -> None:
    """EfficientDet, table 2 and the authors' code: square input, 90 classes.

    Both counts take convolutions alone. The published multiply-adds lie about 1 % higher, except D5's 130 of the code,
    for which the paper has 135 and this count 134.1.
    """
    side, parameters, multiply_adds = PUBLISHED[name]
    found = cost_of(experiment(f"efficientdet_{name}", f"input.size=[{side},{side}]", PUBLISHED_CLASSES))
    assert found.parameters == pytest.approx(parameters * 1e6, rel=0.02)
    assert found.multiply_adds == pytest.approx(multiply_adds * 1e9, rel=0.05)
    assert found.anchors == 9 * sum((side // stride) ** 2 for stride in (8, 16, 32, 64, 128))


# hparams_config.py of google/automl (012f92d), per row: backbone_name, image_size, fpn_num_filters, fpn_cell_repeats,
# box_class_repeats, fpn_weight_method, anchor_scale; then the backbone's drop-connect of efficientdet_arch.py
AUTHORS = {
    "d0": ("b0", 512, 64, 3, 3, "fast", 4.0, 0),
    "d1": ("b1", 640, 88, 4, 3, "fast", 4.0, None),
    "d2": ("b2", 768, 112, 5, 3, "fast", 4.0, None),
    "d3": ("b3", 896, 160, 6, 4, "fast", 4.0, None),
    "d4": ("b4", 1024, 224, 7, 4, "fast", 4.0, None),
    "d5": ("b5", 1280, 288, 7, 4, "fast", 4.0, None),
    "d6": ("b6", 1280, 384, 8, 5, "sum", 4.0, None),
    "d7": ("b6", 1536, 384, 8, 5, "sum", 5.0, None),
}


@pytest.mark.parametrize("row", list(AUTHORS))
def test_an_efficientdet_has_the_settings_of_its_authors(row: str) -> None:
    e = experiment(f"efficientdet_{row}")
    s = settings(e)
    name, (height, _), neck = e.backbone.name.removeprefix("efficientnet-"), e.input.size, e.neck
    sizes = [size / stride for size, stride in zip(e.anchors.sizes, (8, 16, 32, 64, 128), strict=True)]
    of_the_neck = (neck.channels, neck.repeats, e.head.layers, neck.fusion)
    assert (name, height, *of_the_neck, sizes[0], s["backbone.drop_connect"]) == AUTHORS[row]
    assert len(set(sizes)) == 1
    # of all rows: levels P3 to P7, scales and ratios, focal and Huber loss, SGD, 0.08 per batch of 64, cosine to 0
    assert (neck.topology, neck.extra_levels, neck.convolution, neck.activation) == ("bifpn", 2, "separable", "silu")
    assert neck.activation_first and (neck.upsample, neck.downsample) == ("nearest", "max_pool")
    assert len(e.anchors.scales) == 3 and e.anchors.ratios == [0.5, 1.0, 2.0]
    assert (s["class_loss.name"], s["class_loss.alpha"], s["class_loss.gamma"]) == ("focal", 0.25, 1.5)
    assert (s["box_loss.name"], s["box_loss.delta"], 4 * s["box_loss.weight"]) == ("huber", 0.1, 50)
    criterion = build_criterion(e)  # what they reach
    assert (criterion.box_weight, criterion.class_loss.alpha, criterion.class_loss.gamma) == (12.5, 0.25, 1.5)
    assert criterion.box_loss.variances == build_postprocess(e).variances == (1, 1)
    o = e.optimizer
    assert (o.name, s["optimizer.momentum"], o.gradient_clip) == ("sgd", 0.9, 10)
    assert (o.weight_decay, o.decay_norms) == (4e-5, False)
    assert (e.schedule.name, e.schedule.final_lr_factor, e.trainer.ema_decay) == ("cosine", 0, 0.9998)
    assert o.lr / e.trainer.batch_size == pytest.approx(0.08 / 64)
    assert (e.input.mean, e.input.std) == ([0.485, 0.456, 0.406, 0.449], [0.229, 0.224, 0.225, 0.226])


def test_step_3_sees_the_deeper_levels_at_the_sizes_of_the_shallower() -> None:
    e = experiment("03_resolution")
    detector = build_skeleton(e)
    maps = detector.features(torch.zeros(1, 3, 1024, 1280, dtype=torch.uint8, device="meta"))
    assert [tuple(x.shape[1:]) for x in maps["backbone"]] == [(112, 64, 80), (160, 32, 40), (272, 16, 20)]
    sizes = [(64, 80), (32, 40), (16, 20), (8, 10), (8, 10), (8, 10)]
    large, small = (build_skeleton(experiment(name)).anchors for name in ("03_resolution", "02_widen_3x3"))
    twice = 2 * small(sizes, (512, 640), torch.zeros(1))
    torch.testing.assert_close(large(sizes, (1024, 1280), torch.zeros(1)), twice)


def widths(detector: Detector) -> dict[str, list[int]]:
    return {name: [level.channels for level in part.levels] for name, part in detector.parts.items()}  # type: ignore


def test_the_studys_pyramid_keeps_its_widths_and_is_widened_afterwards() -> None:
    detector = build_skeleton(experiment("05_deconv"))
    assert list(detector.parts) == ["backbone", "neck", "adapter", "extras"]
    stages = [56, 112, 160, 272, 448]
    assert widths(detector) == {"backbone": stages, "neck": stages[:3], "adapter": [512] * 3, "extras": [512] * 6}
    up = [m for m in detector.get_submodule("neck").modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels) for m in up] == [(448, 272), (272, 160), (160, 112), (112, 56)]
    assert {(m.kernel_size, m.stride) for m in up} == {((2, 2), (2, 2))}
    before = build_skeleton(experiment("05_deconv", "adapter.after_neck=false"))
    assert list(before.parts) == ["backbone", "adapter", "neck", "extras"]
    assert widths(before)["neck"] == [512] * 3


@pytest.mark.parametrize(
    ("name", "override", "says"),
    [
        ("10_nas_fpn", "neck.repeats=1", "group `neck`: nas_fpn: with 1 turns its first outputs do not depend on in4"),
        ("02_widen_3x3", "neck.topology=nas_fpn", "group `neck`: nas_fpn: .* 5 levels, got 3"),
        ("04_fpn", "neck.outputs=6", "group `neck`: .* 6 of 5 levels"),
        ("04_fpn", "neck.topology=none", "key `adapter.after_neck`: needs a neck"),
        ("04_fpn", "neck.topology=bifnp", "did you mean `bifpn`"),
        ("04_fpn", "neck.repeats=0", "key `neck.repeats`: must be at least 1"),
        ("efficientdet_d0", "anchors.variances=[1]", "key `anchors.variances`"),
        ("efficientdet_d0", "class_loss.prior=0", "key `class_loss.prior`"),
        ("efficientdet_d0", "extras.strides=[2]", "key `anchors.sizes`: .* 6 levels .* not 5 sizes"),
    ],
)
def test_what_cannot_be_built_is_named(name: str, override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_skeleton(experiment(name, override))
