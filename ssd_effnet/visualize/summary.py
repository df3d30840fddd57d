"""Table of a detector's parts: levels, parameters, multiply-adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from ssd_effnet.build import as_size, build_skeleton
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.models.cost import multiply_adds, trainable
from ssd_effnet.structures import Level


@dataclass(frozen=True)
class PartSummary:
    """One part of a detector. Maps that it returns (head: anchors per level), parameters, multiply-adds."""

    name: str
    maps: tuple[str, ...]
    parameters: int
    multiply_adds: int


def summarize(e: ExperimentConfig) -> list[PartSummary]:
    """Summarize the parts of a detector at its input size. They are in order of use."""
    detector = build_skeleton(e)
    channels, (height, width) = detector.normalize.mean.numel(), as_size(e.input.size)
    parts = []
    with torch.device("meta"), torch.no_grad():
        maps: Any = detector.normalize(torch.empty(1, channels, height, width))
        for name, part in detector.parts.items():
            count, maps = multiply_adds(part, maps)
            levels: list[Level] = part.levels  # type: ignore[assignment]
            words = [
                f"{v.name}: {v.channels} @ {x.shape[-2]}x{x.shape[-1]}, stride {v.stride}"
                for v, x in zip(levels, maps, strict=True)
            ]
            parts.append(PartSummary(name, tuple(words), trainable(part), count))
        count, _ = multiply_adds(detector.head, maps)
        per_level = detector.outputs_of(maps, (height, width)).anchors_per_level
    words = [f"{v.name}: {n:,} anchors" for v, n in zip(levels, per_level, strict=True)]
    return [*parts, PartSummary("head", tuple(words), trainable(detector.head), count)]


def summary_table(e: ExperimentConfig) -> Table:
    """The experiment's parts as a table; multiply-adds in 10^9."""
    parts, (height, width) = summarize(e), as_size(e.input.size)
    table = Table(
        title=f"{e.name}, {e.input.modality}, one image of {height}x{width}",
        caption="multiply-adds of convolutions and matrix products; FLOPs are twice as many",
    )
    for name in ("part", "levels out", "parameters", "multiply-adds, 10^9", "share"):
        table.add_column(name, justify="left" if name in ("part", "levels out") else "right")
    parameters, total = sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts)
    for part in [*parts, PartSummary("total", (), parameters, total)]:
        figures = f"{part.parameters:,}", f"{part.multiply_adds / 1e9:.3f}", f"{part.multiply_adds / total:.1%}"
        table.add_row(part.name, "\n".join(part.maps), *figures, end_section=True)
    return table
