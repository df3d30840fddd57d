"""Size, speed and memory of the experiments' detectors."""

from __future__ import annotations

import platform
import resource
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from ssd_effnet.benchmark import scene
from ssd_effnet.build import as_size, build_criterion, build_detector, build_skeleton
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.models.cost import Cost, cost
from ssd_effnet.training.preflight import refuse_single_values
from ssd_effnet.training.runtime import timed

MIB = 2**20


@dataclass(frozen=True)
class ModelFigures:
    """One experiment's detector for one image.

    Attributes:
        name: of the experiment.
        size: (height, width) of the input.
        cost: counted, not measured.
        median_ms: of the passes, milliseconds.
        fastest_ms: of the passes; on a busy machine it is nearer to what the detector can do.
        precision: of the passes, ``trainer.precision``.
        peak_mib: most memory that weights, maps and workspace took at once, MiB; on a CPU what the process grew by.
    """

    name: str
    size: tuple[int, int]
    cost: Cost
    median_ms: float
    fastest_ms: float
    peak_mib: float
    precision: str = "32-true"


def measure_model(
    file: Path,
    overrides: Sequence[str] = (),
    *,
    size: tuple[int, int] | None = None,
    runs: int = 5,
    threads: int = 0,
    device: str = "cpu",
    training: bool = False,
) -> ModelFigures:
    """One image through an experiment's detector, channels_last, in ``trainer.precision``; one pass to warm up.

    Args:
        file: the experiment.
        overrides: ``key=value``.
        size: (height, width) of the input; None: the experiment's own.
        runs: passes that are timed.
        threads: of torch; 0: its own choice.
        device: ``cpu`` or ``cuda``.
        training: a pass is forward, loss of three people and backward, not forward in evaluation.

    Raises:
        ConfigError: the experiment cannot be read or built.
        RunError: a norm would see a single value in training.
    """
    if threads:
        torch.set_num_threads(threads)
    experiment = load_experiment(file, overrides)
    size = size or as_size(experiment.input.size)
    counted = cost(build_skeleton(experiment), size)
    channels = build_skeleton(experiment).normalize.mean.numel()
    before = _peak(device)
    detector = build_detector(experiment, pretrained=False)[0]
    if training:
        experiment.input.size = list(size)
        refuse_single_values(detector, experiment, images=1)
    detector = detector.train(training).to(device)
    detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.randint(0, 256, (1, channels, *size), dtype=torch.uint8, device=device)
    image = image.to(memory_format=torch.channels_last)
    precision = experiment.trainer.precision
    lower = torch.float16 if precision.startswith("16") else torch.bfloat16
    criterion, targets = build_criterion(experiment), scene.targets(1, 3, size).to(device)

    def once() -> None:
        outputs = detector(image)
        if training:
            detector.zero_grad()
            criterion(outputs, targets).total.backward()

    with torch.autocast(device, lower, enabled=precision != "32-true"), torch.inference_mode(not training):
        times = timed(once, runs, device)
    return ModelFigures(
        experiment.name, size, counted, statistics.median(times), min(times), (_peak(device) - before) / MIB, precision
    )


def _peak(device: str) -> int:
    """Most bytes in use so far."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():  # Linux; getrusage there starts from what the parent process had
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def models_table(figures: Sequence[ModelFigures], machine: str, reference: str = "00_vgg16") -> Table:
    """A table; with ratios of the fastest times to ``reference`` where it is among the rows.

    The fastest, because other processes only add time.
    """
    base = next((f for f in figures if f.name == reference), None)
    table = Table(title="one image through each experiment's detector", caption=machine)
    for f in figures:
        cells = {
            "size": f"{f.size[0]}x{f.size[1]}",
            "parameters, M": f"{f.cost.parameters / 1e6:.2f}",
            "multiply-adds, 10^9": f"{f.cost.multiply_adds / 1e9:.2f}",
            "anchors": f"{f.cost.anchors:,}",
            "precision": f.precision,
            "median ms": f"{f.median_ms:.1f}",
            "fastest ms": f"{f.fastest_ms:.1f}",
            "images/s": f"{1000 / f.median_ms:.1f}",
            "peak MiB": f"{f.peak_mib:.0f}",
            f"fastest : {reference}": f"{f.fastest_ms / base.fastest_ms:.2f}" if base else "-",
        }
        if not table.columns:
            table.add_column("experiment")
            for name in cells:
                table.add_column(name, justify="right")
        table.add_row(f.name, *cells.values())
    return table
