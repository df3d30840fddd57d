"""Draws a detector's maps and their inputs as a graph: one row per stride, one column per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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
    graph = MapGraph()
    maps: list[str] = []
    for part_name, part in detector.parts.items():
        neck = part if isinstance(part, GraphNeck) else None
        levels: list[Level] = neck.levels_in if neck else part.levels  # type: ignore[assignment]
        if part_name == "backbone":
            maps = [graph.add(f"backbone.{level.name}", level, level.name, (), "input") for level in levels]
        elif neck or part_name == "extras":
            for level in levels[len(maps) :]:
                maps.append(graph.add(f"{part_name}.{level.name}", level, level.name, maps[-1:]))
        elif any(True for _ in part.parameters()):
            maps = [
                graph.add(f"{part_name}.{level.name}", level, part_name, (source,))
                for level, source in zip(levels, maps, strict=True)
            ]
        for turn, nodes in enumerate(neck.nodes_of_turns if neck else ()):
            assert neck is not None
            known = dict(zip(neck.topology.input_names, maps, strict=True))
            for node in nodes:
                label = node.name if len(neck.nodes_of_turns) == 1 else f"{turn}.{node.name}"
                kind = "attention" if node.merge == "global_pool" else "node"
                sources = [known[source] for source in node.inputs]
                known[node.name] = graph.add(f"neck.{turn}.{node.name}", levels[node.level], label, sources, kind)
            maps = [known.get(name, x) for name, x in zip(neck.topology.outputs, maps, strict=True)]
        maps = maps[: neck.topology.num_returned] if neck else maps
    for name in maps:
        graph.boxes[name] = replace(graph.boxes[name], kind="output")
    return graph


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
    axes.spines[:].set_visible(False)
    place = {name: (box.column, rows[box.stride]) for name, box in graph.boxes.items()}
    for source, target in graph.edges:
        steps = place[target][0] - place[source][0]
        bend = f"arc3,rad={-0.9 / steps if steps > 1 else 0}"  # round what stands between
        style = {"arrowstyle": "-|>", "color": "#555", "shrinkA": 16, "shrinkB": 16, "connectionstyle": bend}
        axes.annotate("", place[target], place[source], arrowprops=style)
    for name, box in graph.boxes.items():
        frame = {"boxstyle": "round", "facecolor": _FILL[box.kind], "edgecolor": "#555"}
        axes.text(*place[name], box.label, ha="center", va="center", fontsize=8, bbox=frame, zorder=3, parse_math=False)
    save_figure(figure, path)
