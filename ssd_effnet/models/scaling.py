"""Compound scaling of EfficientNet and EfficientDet: published tables and formulas.

Where the two differ, the table is used.

Sources: EfficientNet (Tan and Le 2019), section 3.3, table 1 and, for the coefficients, the authors' code
(``efficientnet_builder.py``); EfficientDet (Tan et al. 2020), section 4.2, tables 1 and 2, and the authors' code
(``hparams_config.py``, ``efficientdet_arch.py`` of google/automl) for fusion, anchors and drop-connect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# EfficientNet, section 3.3, step 1: found by a grid search on B0, with alpha * beta^2 * gamma^2 ~ 2.
ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15


@dataclass(frozen=True)
class EfficientNetScale:
    """How a backbone differs from B0.

    Attributes:
        name: ``b0`` ... ``b7``.
        width: factor on the channels.
        depth: factor on the layers of a stage.
        resolution: side of the square input of ImageNet training, pixels.
        dropout: before the classifier.
        parameters_m: published parameters, millions, classifier included.
        multiply_adds_b: published multiply-adds at ``resolution``, billions.
    """

    name: str
    width: float
    depth: float
    resolution: int
    dropout: float
    parameters_m: float
    multiply_adds_b: float


EFFICIENTNETS: dict[str, EfficientNetScale] = {
    row.name: row
    for row in (
        EfficientNetScale("b0", 1.0, 1.0, 224, 0.2, 5.3, 0.39),
        EfficientNetScale("b1", 1.0, 1.1, 240, 0.2, 7.8, 0.70),
        EfficientNetScale("b2", 1.1, 1.2, 260, 0.3, 9.2, 1.0),
        EfficientNetScale("b3", 1.2, 1.4, 300, 0.3, 12.0, 1.8),
        EfficientNetScale("b4", 1.4, 1.8, 380, 0.4, 19.0, 4.2),
        EfficientNetScale("b5", 1.6, 2.2, 456, 0.4, 30.0, 9.9),
        EfficientNetScale("b6", 1.8, 2.6, 528, 0.5, 43.0, 19.0),
        EfficientNetScale("b7", 2.0, 3.1, 600, 0.5, 66.0, 37.0),
    )
}


@dataclass(frozen=True)
class StageScale:
    """One row of EfficientNet's table 1: output channels and number of layers."""

    channels: int
    layers: int


# The seven stages of B0 between the stem (32 channels) and the last 1x1 convolution (1280).
B0_STAGES = tuple(
    StageScale(channels, layers)
    for channels, layers in ((16, 1), (24, 2), (40, 2), (80, 3), (112, 3), (192, 4), (320, 1))
)


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor``, or the next one where that would take away more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def round_layers(layers: int, depth: float) -> int:
    """Layers of a stage at this depth factor; rounded up."""
    return math.ceil(layers * depth)


def efficientnet_stages(name: str) -> tuple[StageScale, ...]:
    """Channels and layers of the seven stages of ``b0`` ... ``b7``.

    Raises:
        ValueError: for another name.
    """
    if name not in EFFICIENTNETS:
        raise ValueError(f"EfficientNet {name!r} is unknown; known: {', '.join(EFFICIENTNETS)}")
    scale = EFFICIENTNETS[name]
    return tuple(
        StageScale(round_channels(stage.channels * scale.width), round_layers(stage.layers, scale.depth))
        for stage in B0_STAGES
    )


def efficientnet_factors(phi: float) -> tuple[float, float, float]:
    """(width, depth, resolution in pixels) by the formula beta^phi, alpha^phi, 224 * gamma^phi."""
    return BETA**phi, ALPHA**phi, 224 * GAMMA**phi


@dataclass(frozen=True)
class EfficientDetScale:
    """The settings of a detector that phi scales, as in the authors' code.

    Attributes:
        backbone: ``b0`` ... ``b7``.
        resolution: side of the square input, pixels; a multiple of 128, the stride of P7.
        bifpn_channels: W_bifpn, the width of the neck and of the class and box nets.
        bifpn_repeats: D_bifpn, turns of the neck.
        head_layers: D_box = D_class, convolutions of the class and box nets before their last one.
        fusion: of a node's inputs; the largest necks take the plain sum, "for stability".
        anchor_scale: side of a level's smallest square anchor, in strides.
    """

    backbone: str
    resolution: int
    bifpn_channels: int
    bifpn_repeats: int
    head_layers: int
    fusion: str = "fast"
    anchor_scale: float = 4.0


@dataclass(frozen=True)
class PublishedDetector:
    """A model's published size on COCO's 90 classes."""

    scale: EfficientDetScale
    parameters_m: float
    multiply_adds_b: float


EFFICIENTDETS: dict[str, PublishedDetector] = {
    "d0": PublishedDetector(EfficientDetScale("b0", 512, 64, 3, 3), 3.9, 2.54),
    "d1": PublishedDetector(EfficientDetScale("b1", 640, 88, 4, 3), 6.6, 6.10),
    "d2": PublishedDetector(EfficientDetScale("b2", 768, 112, 5, 3), 8.1, 11.0),
    "d3": PublishedDetector(EfficientDetScale("b3", 896, 160, 6, 4), 12.0, 24.9),
    "d4": PublishedDetector(EfficientDetScale("b4", 1024, 224, 7, 4), 20.7, 55.2),
    # 130 by the authors' code; the paper's table says 135.
    "d5": PublishedDetector(EfficientDetScale("b5", 1280, 288, 7, 4), 33.7, 130.0),
    "d6": PublishedDetector(EfficientDetScale("b6", 1280, 384, 8, 5, "sum"), 51.9, 226.0),
    "d7": PublishedDetector(EfficientDetScale("b6", 1536, 384, 8, 5, "sum", 5.0), 51.9, 325.0),
}


def efficientdet_formula(phi: int) -> EfficientDetScale:
    """What EfficientDet's equations 1 to 3 say for ``phi``; W_bifpn to the nearest multiple of 8.

    Raises:
        ValueError: for a phi outside 0 to 7: there are no further backbones.
    """
    _check(phi)
    return EfficientDetScale(
        backbone=f"b{phi}",
        resolution=512 + 128 * phi,
        bifpn_channels=round_channels(64 * 1.35**phi),
        bifpn_repeats=3 + phi,
        head_layers=3 + phi // 3,
    )


def efficientdet_scale(
    phi: int,
    *,
    backbone: int | None = None,
    neck: int | None = None,
    head: int | None = None,
    resolution: int | None = None,
) -> EfficientDetScale:
    """Published scale of a detector: all parts by one ``phi``, or some apart by their own.

    The class and box nets are as wide as the neck, whatever their own phi, which sets their number of layers.

    Raises:
        ValueError: for a phi outside 0 to 7.
    """

    def row(own: int | None) -> EfficientDetScale:
        return EFFICIENTDETS[f"d{_check(phi if own is None else own)}"].scale

    return EfficientDetScale(
        backbone=row(backbone).backbone,
        resolution=row(resolution).resolution,
        bifpn_channels=row(neck).bifpn_channels,
        bifpn_repeats=row(neck).bifpn_repeats,
        head_layers=row(head).head_layers,
        fusion=row(neck).fusion,
        anchor_scale=row(None).anchor_scale,
    )


def scaled_settings(
    phi: int | None = None,
    *,
    backbone: int | None = None,
    neck: int | None = None,
    head: int | None = None,
    resolution: int | None = None,
    frame: tuple[int, int] = (512, 640),
) -> dict[str, str | int | list[int] | list[float]]:
    """An experiment's settings at the published scale, ``{dotted key: value}``.

    Args:
        phi: of all parts; None: only of those that follow.
        backbone, neck, head, resolution: the part's own phi; None: that of all.
        frame: (height, width) whose shape the input keeps: the published resolution is its height.

    Raises:
        ValueError: for a phi outside 0 to 7.
    """
    scale = efficientdet_scale(phi or 0, backbone=backbone, neck=neck, head=head, resolution=resolution)
    found: dict[str, str | int | list[int] | list[float]] = {}
    if backbone is not None or phi is not None:
        drop_connect = "0" if scale.backbone == "b0" else "null"  # b0 is never skipped in the authors' detector
        found |= {"backbone.name": f"efficientnet-{scale.backbone}", "backbone.drop_connect": drop_connect}
    if neck is not None or phi is not None:
        found |= {"neck.channels": scale.bifpn_channels, "neck.repeats": scale.bifpn_repeats}
        found["neck.fusion"] = scale.fusion
    if head is not None or phi is not None:
        found["head.layers"] = scale.head_layers
    if resolution is not None or phi is not None:
        found["input.size"] = [scale.resolution, round(scale.resolution * frame[1] / frame[0])]
    if phi is not None:
        found["anchors.sizes"] = [scale.anchor_scale * stride for stride in (8, 16, 32, 64, 128)]
    return found


def _check(phi: int) -> int:
    if phi not in range(8):
        raise ValueError(f"phi is a whole number from 0 to 7, as far as EfficientDet was published, got {phi}")
    return phi


@dataclass(frozen=True)
class ScalingDifference:
    """A place where a formula, rounded as the table is, does not give the published value."""

    name: str
    phi: int
    formula: float | str
    published: float | str


def differences() -> list[ScalingDifference]:
    """Every place where formula and published table differ, EfficientNet first.

    For EfficientNet, Bk is taken as phi = k: the paper does not say which phi each model has, and no single one gives
    all three of a model's coefficients. Width and depth are compared to one decimal, as published.
    """
    found: list[ScalingDifference] = []

    def compare(name: str, phi: int, formula: float | str, published: float | str) -> None:
        if formula != published:
            found.append(ScalingDifference(name, phi, formula, published))

    for phi, net in enumerate(EFFICIENTNETS.values()):
        width, depth, resolution = efficientnet_factors(phi)
        compare("efficientnet width", phi, round(width, 1), net.width)
        compare("efficientnet depth", phi, round(depth, 1), net.depth)
        compare("efficientnet resolution", phi, round(resolution), net.resolution)
    for phi, detector in enumerate(EFFICIENTDETS.values()):
        formula, published = efficientdet_formula(phi), detector.scale
        compare("efficientdet backbone", phi, formula.backbone, published.backbone)
        compare("efficientdet resolution", phi, formula.resolution, published.resolution)
        compare("efficientdet bifpn_channels", phi, formula.bifpn_channels, published.bifpn_channels)
        compare("efficientdet bifpn_repeats", phi, formula.bifpn_repeats, published.bifpn_repeats)
        compare("efficientdet head_layers", phi, formula.head_layers, published.head_layers)
    return found
