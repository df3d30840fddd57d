"""Published scaling tables against the formulas stated beside them."""

from __future__ import annotations

import pytest

from ssd_effnet.models.scaling import (
    EFFICIENTDETS,
    EFFICIENTNETS,
    EfficientDetScale,
    differences,
    efficientdet_formula,
    efficientdet_scale,
    efficientnet_factors,
    efficientnet_stages,
)


def test_b4_is_the_table_of_the_study() -> None:
    stages = efficientnet_stages("b4")
    assert [stage.channels for stage in stages] == [24, 32, 56, 112, 160, 272, 448]
    assert [stage.layers for stage in stages] == [2, 4, 4, 6, 6, 8, 2]


def test_coefficients_and_stages_are_those_of_the_installed_backbone() -> None:
    utils = pytest.importorskip("efficientnet_pytorch.utils")
    for name, scale in EFFICIENTNETS.items():
        assert utils.efficientnet_params(f"efficientnet-{name}") == (
            scale.width, scale.depth, scale.resolution, scale.dropout,
        )  # fmt: skip
        blocks, params = utils.get_model_params(f"efficientnet-{name}", {})
        assert [(s.channels, s.layers) for s in efficientnet_stages(name)] == [
            (utils.round_filters(b.output_filters, params), utils.round_repeats(b.num_repeat, params)) for b in blocks
        ]


def test_one_step_of_phi_doubles_the_multiply_adds() -> None:
    """alpha * beta^2 * gamma^2 ~ 2 (EfficientNet, equation 3); the paper's rounded factors give 1.92."""
    width, depth, resolution = efficientnet_factors(1)
    assert depth * width**2 * (resolution / 224) ** 2 == pytest.approx(2, abs=0.09)


def test_the_published_detectors() -> None:
    scales = [detector.scale for detector in EFFICIENTDETS.values()]
    assert [s.backbone for s in scales] == ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b6"]
    assert [s.resolution for s in scales] == [512, 640, 768, 896, 1024, 1280, 1280, 1536]
    assert [s.bifpn_channels for s in scales] == [64, 88, 112, 160, 224, 288, 384, 384]
    assert [s.bifpn_repeats for s in scales] == [3, 4, 5, 6, 7, 7, 8, 8]
    assert [s.head_layers for s in scales] == [3, 3, 3, 4, 4, 4, 5, 5]
    assert [d.parameters_m for d in EFFICIENTDETS.values()] == [3.9, 6.6, 8.1, 12.0, 20.7, 33.7, 51.9, 51.9]
    assert [d.multiply_adds_b for d in EFFICIENTDETS.values()] == [2.54, 6.10, 11.0, 24.9, 55.2, 130, 226, 325]


def test_where_efficientdet_leaves_its_formulas() -> None:
    found = [(d.name, d.phi, d.formula, d.published) for d in differences() if d.name.startswith("efficientdet")]
    assert found == [
        ("efficientdet bifpn_channels", 2, 120, 112),
        ("efficientdet bifpn_channels", 4, 216, 224),
        ("efficientdet resolution", 5, 1152, 1280),
        ("efficientdet bifpn_repeats", 5, 8, 7),
        ("efficientdet bifpn_repeats", 6, 9, 8),
        ("efficientdet backbone", 7, "b7", "b6"),
        ("efficientdet resolution", 7, 1408, 1536),
        ("efficientdet bifpn_channels", 7, 520, 384),
        ("efficientdet bifpn_repeats", 7, 10, 8),
    ]


def test_where_efficientnet_leaves_its_formulas() -> None:
    """The formulas give each Bk more depth than it has, and all but the largest more or as much width."""
    found = {(d.name, d.phi): (d.formula, d.published) for d in differences() if d.name.startswith("efficientnet")}
    assert all(("efficientnet depth", phi) in found for phi in range(1, 8))
    assert all(("efficientnet resolution", phi) in found for phi in range(1, 8))
    assert [phi for name, phi in found if name == "efficientnet width"] == [1, 2, 3, 4, 7]
    assert found["efficientnet depth", 7] == (3.6, 3.1)
    assert found["efficientnet resolution", 4] == (392, 380)


def test_parts_scaled_together_or_apart() -> None:
    assert efficientdet_scale(3) == EFFICIENTDETS["d3"].scale
    mixed = efficientdet_scale(0, backbone=4, neck=1, head=6, resolution=2)
    assert mixed == EfficientDetScale("b4", 768, 88, 4, 5)


@pytest.mark.parametrize("phi", [-1, 8, 0.5])
def test_refuses_other_phi(phi: float) -> None:
    for scale in (efficientdet_scale, efficientdet_formula):
        with pytest.raises(ValueError, match="whole number from 0 to 7"):
            scale(phi)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'b8' is unknown"):
        efficientnet_stages("b8")
