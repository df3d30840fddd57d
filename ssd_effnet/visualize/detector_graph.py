"""Draws a detector's maps and their inputs as a graph: one row per stride, one column per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from ssd_effnet.evaluation.scores import save_figure
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.necks import GraphNeck
from ssd_effnet.structures import Level

_FILL = {"input": "#dbe7f5", "node": "#f3f3f3", "attention": "#fbe3c8", "output": "#d9efd8"}


@dataclass(frozen=True)
class GraphBox:
    """A map in the graph: stride, column, text, kind (key of the colours)."""

    stride: int
    column: int
    label: str
    kind: str


@dataclass
class MapGraph:
    """Boxes by name, each after those it reads, and arrows as (from, to)."""

    boxes: dict[str, GraphBox] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, level: Level, label: str, sources: Sequence[str], kind: str = "node") -> str:
        """Add a box right of its inputs in a free place; return its name."""
        column = max((self.boxes[source].column + 1 for source in sources), default=0)
        while (level.stride, column) in {(box.stride, box.column) for box in self.boxes.values()}:
            column += 1
        self.boxes[name] = GraphBox(level.stride, column, label, kind)
        self.edges += [(source, name) for source in sources]
        return name


def map_graph(detector: Detector) -> MapGraph:
    """All maps from the backbone to the head.

    Kinds: ``input`` enters from the backbone, ``attention`` fuses by global pooling, ``output`` goes to the head. Parts
    that return their inputs are left out.
    """
    drawing = MapGraph()
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
        drawing.boxes[name] = replace(drawing.boxes[name], kind="output")
    return drawing


def draw_detector(title: str, detector: Detector, path: Path) -> None:
    """Write :func:`map_graph` as a picture, the finest stride lowest; the suffix chooses the format (``.svg``)."""
    from matplotlib.figure import Figure

    graph = map_graph(detector)
    rows = {stride: row for row, stride in enumerate(sorted({box.stride for box in graph.boxes.values()}))}
    columns = 1 + max(box.column for box in graph.boxes.values())
    figure = Figure(figsize=(1.5 + 1.3 * columns, 1 + 0.8 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlim=(-0.6, columns - 0.4), ylim=(-0.6, len(rows)), xticks=[])
    axes.set_yticks(range(len(rows)), [f"stride {stride}" for stride in rows])
    axes.grid(axis="y", color="#eee")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    place = {name: (box.column, rows[box.stride]) for name, box in graph.boxes.items()}
    for source, target in graph.edges:
        steps = place[target][0] - place[source][0]
        style = {"arrowstyle": "-|>", "color": "#555", "shrinkA": 16, "shrinkB": 16}
        bend = {"connectionstyle": f"arc3,rad={-0.9 / steps if steps > 1 else 0}"}  # round what stands between
        axes.annotate("", place[target], place[source], arrowprops=style | bend, zorder=2)
    for name, box in graph.boxes.items():
        frame = {"boxstyle": "round", "facecolor": _FILL[box.kind], "edgecolor": "#555"}
        axes.text(*place[name], box.label, ha="center", va="center", fontsize=8, bbox=frame, zorder=3, parse_math=False)
    save_figure(figure, path)


def _draw_neck(drawing: MapGraph, neck: GraphNeck, entering: Sequence[str]) -> list[str]:
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
