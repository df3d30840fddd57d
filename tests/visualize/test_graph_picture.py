"""The picture of a graph holds each node and edge once, in readable places."""

from __future__ import annotations

from typing import Any

import pytest
from defusedxml import ElementTree

from ssd_effnet.models.necks import TOPOLOGIES, bifpn
from ssd_effnet.visualize.graph import PictureNode, graph_svg

SVG = "{http://www.w3.org/2000/svg}"


def draw(name: str) -> Any:
    topology = TOPOLOGIES[name](5)
    nodes = [PictureNode(n, i, kind="input") for i, n in enumerate(topology.input_names)]
    nodes += [PictureNode(node.name, node.level) for node in topology.nodes]
    return topology, ElementTree.fromstring(graph_svg(name, [f"level {i}" for i in range(5)], nodes, topology.edges))


@pytest.mark.parametrize("name", list(TOPOLOGIES))
def test_every_node_and_edge_once(name: str) -> None:
    topology, root = draw(name)
    boxes = [group for group in root.iter(f"{SVG}g") if group.get("class") == "node"]
    arrows = [path for path in root.iter(f"{SVG}path") if path.get("class") == "edge"]
    assert [box.find(f"{SVG}text").text for box in boxes] == [
        *topology.input_names,
        *(node.name for node in topology.nodes),
    ]
    assert [(arrow.get("data-from"), arrow.get("data-to")) for arrow in arrows] == topology.edges
    corners = [(box.find(f"{SVG}rect").get("x"), box.find(f"{SVG}rect").get("y")) for box in boxes]
    assert len(set(corners)) == len(boxes)
    width = int(root.get("width"))
    assert all(int(x) + 78 <= width for x, _ in corners)


def test_names_are_escaped() -> None:
    svg = graph_svg("a < b & c", ["<row>"], [PictureNode('"x"', 0, label="<x>"), PictureNode("y", 0)], [('"x"', "y")])
    root = ElementTree.fromstring(svg)
    assert [text.text for text in root.iter(f"{SVG}text")] == ["a < b & c", "<row>", "<x>", "y"]


def test_arrows_point_right() -> None:
    topology = bifpn(5)
    _, root = draw("bifpn")
    x = {
        box.find(f"{SVG}text").text: int(box.find(f"{SVG}rect").get("x"))
        for box in root.iter(f"{SVG}g")
        if box.get("class") == "node"
    }
    assert all(x[source] < x[target] for source, target in topology.edges)


@pytest.mark.parametrize(
    ("nodes", "edges", "message"),
    [
        ([PictureNode("a", 0)], [("a", "b")], "joins a node that is not there"),
        ([PictureNode("a", 0), PictureNode("b", 0)], [("b", "a")], "points backwards"),
        ([PictureNode("a", 0), PictureNode("a", 0)], [], "used twice"),
        ([PictureNode("a", 3)], [], "row 3 of 1"),
        ([PictureNode("a", 0, kind="odd")], [], "kind 'odd' is unknown"),
    ],
)
def test_refusals(nodes: list[PictureNode], edges: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        graph_svg("t", ["r"], nodes, edges)
