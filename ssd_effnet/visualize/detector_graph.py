"""Draws a detector's maps and their inputs as a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ssd_effnet.models.detector import Detector
from ssd_effnet.models.necks import GraphNeck
from ssd_effnet.structures import Level
from ssd_effnet.visualize.graph import PictureNode, graph_svg


class _Drawing:
    """Boxes and arrows so far, one row per stride."""

    def __init__(self, strides: Sequence[int]) -> None:
        self.row_of = {stride: row for row, stride in enumerate(strides)}
        self.nodes: dict[str, PictureNode] = {}
        self.edges: list[tuple[str, str]] = []

    def add(self, name: str, level: Level, label: str, sources: Sequence[str], kind: str = "node") -> str:
        self.nodes[name] = PictureNode(name, self.row_of[level.stride], label, kind)
        self.edges += [(source, name) for source in sources]
        return name


def detector_svg(title: str, detector: Detector) -> str:
    """All maps from the backbone to the head as an SVG document.

    A row is a stride, the finest lowest. Blue maps enter from the backbone, orange ones fuse by global pooling, green
    ones go to the head. A part that hands its maps on as they are is not drawn.
    """
    drawing = _Drawing(sorted({level.stride for part in detector.parts.values() for level in _levels(part)}))
    entering: list[str] = []
    for name, part in detector.parts.items():
        levels = _levels(part)
        if name == "backbone":
            entering = [drawing.add(f"{name}.{v.name}", v, v.name, (), "input") for v in levels]
        elif isinstance(part, GraphNeck):
            entering = _draw_neck(drawing, part, entering)
        elif name == "extras":
            for level in levels[len(entering) :]:
                entering.append(drawing.add(f"{name}.{level.name}", level, level.name, entering[-1:]))
        elif any(True for _ in part.parameters()):
            entering = [
                drawing.add(f"{name}.{level.name}", level, name, (source,))
                for level, source in zip(levels, entering, strict=True)
            ]
    for name in entering:
        drawing.nodes[name] = replace(drawing.nodes[name], kind="output")
    rows = [f"stride {stride}" for stride in drawing.row_of]
    return graph_svg(title, rows, list(drawing.nodes.values()), drawing.edges)


def _draw_neck(drawing: _Drawing, neck: GraphNeck, entering: Sequence[str]) -> list[str]:
    """Draw the neck's repetitions; returns the names of its output maps."""
    maps = list(entering)
    for level in neck.levels_in[len(maps) :]:
        maps.append(drawing.add(f"neck.{level.name}", level, level.name, maps[-1:]))
    for turn, nodes in enumerate(neck.nodes_of_turns):
        known = dict(zip(neck.topology.input_names, maps, strict=True))
        for node in nodes:
            known[node.name] = drawing.add(
                f"neck.{turn}.{node.name}",
                neck.levels_in[node.level],
                node.name if len(neck.nodes_of_turns) == 1 else f"{turn}.{node.name}",
                [known[source] for source in node.inputs],
                "attention" if node.merge == "global_pool" else "node",
            )
        maps = [known.get(name, x) for name, x in zip(neck.topology.outputs, maps, strict=True)]
    return maps[: neck.topology.num_returned]


def _levels(part: nn.Module) -> list[Level]:
    return part.levels_in if isinstance(part, GraphNeck) else part.levels  # type: ignore[return-value]
