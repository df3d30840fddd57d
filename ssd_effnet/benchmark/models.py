"""Size and speed of the experiments' detectors."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.table import Table

from ssd_effnet.build import build_detector, build_skeleton
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.models.cost import Cost, cost
from ssd_effnet.training.runtime import in_turns


@dataclass(frozen=True)
class ModelFigures:
    """One experiment's detector for one image of ``size`` (height, width): milliseconds of each pass, and cost."""

    name: str
    size: tuple[int, int]
    cost: Cost
    ms: Sequence[float]
    precision: str = "32-true"


def measure_model(
    file: Path, overrides: Sequence[str] = (), size: tuple[int, int] = (512, 640), runs: int = 5, device: str = "cpu"
) -> ModelFigures:
    """Forward passes of one image in evaluation, channels_last, in ``trainer.precision``; the first is not timed."""
    experiment = load_experiment(file, overrides)
    detector = build_detector(experiment, pretrained=False)[0].eval().to(device)
    detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    channels = detector.normalize.mean.numel()
    image = torch.randint(0, 256, (1, channels, *size), dtype=torch.uint8, device=device)
    image = image.to(memory_format=torch.channels_last)
    precision = experiment.trainer.precision
    lower = torch.float16 if precision.startswith("16") else torch.bfloat16
    with torch.autocast(device, lower, enabled=precision != "32-true"), torch.inference_mode():
        times = in_turns({"forward": partial(detector, image)}, runs, device)["forward"]
    return ModelFigures(experiment.name, size, cost(build_skeleton(experiment), size), times, precision)


def models_table(figures: Sequence[ModelFigures], machine: str, reference: str = "00_vgg16") -> Table:
    """A table; with ratios of the fastest times to ``reference`` where it is among the rows.

    The fastest, because other processes only add time.
    """
    base = next((f for f in figures if f.name == reference), None)
    table = Table(title="one image through each experiment's detector", caption=machine)
    for f in figures:
        median, fastest = statistics.median(f.ms), min(f.ms)
        cells = {
            "size": f"{f.size[0]}x{f.size[1]}",
            "parameters, M": f"{f.cost.parameters / 1e6:.2f}",
            "multiply-adds, 10^9": f"{f.cost.multiply_adds / 1e9:.2f}",
            "anchors": f"{f.cost.anchors:,}",
            "precision": f.precision,
            "median ms": f"{median:.1f}",
            "fastest ms": f"{fastest:.1f}",
            "images/s": f"{1000 / median:.1f}",
            f"fastest : {reference}": f"{fastest / min(base.ms):.2f}" if base else "-",
        }
        if not table.columns:
            table.add_column("experiment")
            for name in cells:
                table.add_column(name, justify="right")
        table.add_row(f.name, *cells.values())
    return table
