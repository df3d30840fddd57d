"""Topologies as tables, and the fusion formulas."""

from __future__ import annotations

import pytest
import torch

from ssd_effnet.models.necks import Node, Topology
from ssd_effnet.models.necks.graph import FastFusion
from ssd_effnet.models.necks.topologies import bifpn, fully_connected
from ssd_effnet.registry import FUSIONS


def test_fusion_formulas() -> None:
    w = torch.tensor([2.0, -1.0, 1.0])
    terms = [torch.full((1, 1, 1, 1), value) for value in (1.0, 10.0, 100.0)]
    wanted = {
        "sum": 111.0,
        "unbounded": 2 - 10 + 100,
        "softmax": float((w.softmax(0) * torch.tensor([1.0, 10.0, 100.0])).sum()),
        "fast": (2 * 1 + 0 * 10 + 1 * 100) / (3 + 1e-4),
    }
    for kind, value in wanted.items():
        fusion = FUSIONS.make(kind, {}, num_inputs=3)
        if fusion.scalars is not None:
            assert fusion.scalars.tolist() == [1, 1, 1]
            fusion.scalars.data.copy_(w)
        assert fusion(terms).item() == pytest.approx(value, rel=1e-6)


def test_fast_fusion_without_a_positive_weight_is_zero_and_finite() -> None:
    fusion = FastFusion(2)
    fusion.scalars.data.fill_(-1)
    assert fusion([torch.ones(1, 1, 2, 2)] * 2).abs().max() == 0


def test_bifpn_is_the_published_table() -> None:
    """As EfficientDet's code lists it for P3 to P7; inputs of a level come first."""
    assert [(node.name, node.inputs) for node in bifpn(5).nodes] == [
        ("td3", ("in3", "in4")),
        ("td2", ("in2", "td3")),
        ("td1", ("in1", "td2")),
        ("td0", ("in0", "td1")),
        ("out1", ("in1", "td1", "td0")),
        ("out2", ("in2", "td2", "out1")),
        ("out3", ("in3", "td3", "out2")),
        ("out4", ("in4", "out3")),
    ]
    assert bifpn(5).outputs == ("td0", "out1", "out2", "out3", "out4")


@pytest.mark.parametrize(
    ("nodes", "outputs", "message"),
    [
        ((Node("a", 0, ("in0", "b")), Node("b", 1, ("in1",))), ("a", "b"), "input 'b' is neither"),
        ((Node("a", 0, ("in0",)), Node("a", 1, ("in1",))), ("a", "a"), "the name is taken"),
        ((Node("a", 2, ("in0",)),), ("a",), "level 2 is not one of 0 to 1"),
        ((Node("a", 0, ()),), ("a",), "sum needs more inputs"),
        ((Node("a", 0, ("in0",), "global_pool"),), ("a",), "global_pool needs more inputs"),
        ((Node("a", 0, ("in0",)), Node("b", 1, ("in1",))), ("b", "a"), "one node of each level, finest first"),
        ((Node("a", 0, ("in0",)),), ("a", "in1"), "one node of each level"),
    ],
)
def test_refused_tables(nodes: tuple[Node, ...], outputs: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Topology("broken", 2, nodes, outputs)


def test_one_level_is_refused() -> None:
    with pytest.raises(ValueError, match="two levels or more"):
        fully_connected(1)
