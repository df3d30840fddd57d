"""Table of a detector's parts: levels, parameters, multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from ssd_effnet.build import as_size, build_skeleton
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.models.cost import multiply_adds
from ssd_effnet.models.fusion import CHANNELS
from ssd_effnet.structures import Level


@dataclass(frozen=True)
class Map:
    """One feature map at the experiment's input size."""

    level: Level
    size: tuple[int, int]

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.level.name}: {self.level.channels} @ {height}x{width}, stride {self.level.stride}"


@dataclass(frozen=True)
class PartSummary:
    """One part of a detector.

    Attributes:
        name: ``backbone``, ``adapter`` ...
        maps_in: its inputs; empty for the backbone, which takes the images.
        maps_out: its outputs; empty for the head, which predicts.
        parameters: trainable ones; frozen norms have none.
        multiply_adds: of one image, see :class:`ssd_effnet.models.cost.Cost`.
    """

    name: str
    maps_in: tuple[Map, ...]
    maps_out: tuple[Map, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class DetectorSummary:
    """A detector at one input size.

    Attributes:
        experiment: its name.
        input_shape: (channels, height, width).
        parts: in the order an image meets them, the head last.
        anchors: of each level that the head sees.
    """

    experiment: str
    input_shape: tuple[int, int, int]
    parts: tuple[PartSummary, ...]
    anchors: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def multiply_adds(self) -> int:
        return sum(part.multiply_adds for part in self.parts)


def summarize(e: ExperimentConfig) -> DetectorSummary:
    """Summarise the experiment's detector at its input size, on the meta device.

    Raises:
        ConfigError: the experiment's parts do not fit together.
    """
    height, width = as_size(e.input.size)
    channels = len(CHANNELS[e.input.modality])
    detector = build_skeleton(e)
    with torch.device("meta"), torch.no_grad():
        maps: Any = detector.normalize(torch.empty(1, channels, height, width))
        given: tuple[Map, ...] = ()
        parts = []
        for name, part in detector.parts.items():
            count, maps = multiply_adds(part, maps)
            levels: list[Level] = part.levels  # type: ignore[assignment]
            handed = tuple(Map(v, (x.shape[-2], x.shape[-1])) for v, x in zip(levels, maps, strict=True))
            parts.append(PartSummary(name, given, handed, _parameters(part), count))
            given = handed
        count, (_, offsets) = multiply_adds(detector.head, maps)
        parts.append(PartSummary("head", given, (), _parameters(detector.head), count))
    positions = [rows * columns for rows, columns in (m.size for m in given)]
    per_position = offsets.shape[1] // sum(positions)  # the same on every level
    return DetectorSummary(e.name, (channels, height, width), tuple(parts), tuple(n * per_position for n in positions))


def summary_table(summary: DetectorSummary) -> Table:
    """The summary as a table; multiply-adds in 10^9."""
    channels, height, width = summary.input_shape
    table = Table(
        title=f"{summary.experiment}, one image of {channels} x {height} x {width}",
        caption="multiply-adds of convolutions and matrix products; FLOPs are twice as many",
    )
    table.add_column("part")
    table.add_column("levels in")
    table.add_column("levels out")
    for name in ("parameters", "multiply-adds, 10^9", "share"):
        table.add_column(name, justify="right")
    for part in summary.parts:
        handed = [str(m) for m in part.maps_out]
        if not handed:
            handed = [f"{m.level.name}: {n:,} anchors" for m, n in zip(part.maps_in, summary.anchors, strict=True)]
        table.add_row(
            part.name,
            "\n".join(str(m) for m in part.maps_in) or "image",
            "\n".join(handed),
            f"{part.parameters:,}",
            f"{part.multiply_adds / 1e9:.3f}",
            f"{part.multiply_adds / summary.multiply_adds:.1%}",
            end_section=True,
        )
    table.add_row(
        "total",
        "",
        f"{sum(summary.anchors):,} anchors",
        f"{summary.parameters:,}",
        f"{summary.multiply_adds / 1e9:.3f}",
        "100.0%",
    )
    return table


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
