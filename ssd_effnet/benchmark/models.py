"""Size, speed and memory of the experiments' detectors."""

from __future__ import annotations

import multiprocessing
import platform
import resource
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.table import Table
from torch import nn

from ssd_effnet.benchmark import scene
from ssd_effnet.build import as_size, build_criterion, build_detector, build_skeleton
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.models.cost import Cost, cost
from ssd_effnet.models.detector import Detector
from ssd_effnet.registry import load_plugins, plugins
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


def benchmark_models(
    files: Sequence[Path],
    *,
    size: tuple[int, int] | None = None,
    runs: int = 5,
    threads: int = 0,
    device: str = "cpu",
    overrides: Sequence[str] = (),
    training: bool = False,
) -> Iterator[ModelFigures]:
    """Measure each experiment in its own process, so that memory figures do not mix.

    Batch 1, channels_last, in ``trainer.precision``; one pass to warm up.

    Args:
        files: experiments.
        size: (height, width) of the input; None: each experiment's own.
        runs: passes that are timed.
        threads: of torch; 0: its own choice.
        device: ``cpu`` or ``cuda``.
        overrides: ``key=value``, for all experiments.
        training: a pass is forward, loss of three people and backward, not forward in evaluation.

    Raises:
        ConfigError: for an experiment that cannot be read or built.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, load_plugins, (list(plugins),), max_tasks_per_child=1) as pool:
        for file in files:
            yield pool.submit(_measure_model, file, size, runs, threads, device, tuple(overrides), training).result()


def _measure_model(
    file: Path,
    size: tuple[int, int] | None,
    runs: int,
    threads: int,
    device: str,
    overrides: tuple[str, ...],
    training: bool,
) -> ModelFigures:
    if threads:
        torch.set_num_threads(threads)
    experiment = load_experiment(file, overrides)
    size = size or as_size(experiment.input.size)
    counted = cost(build_skeleton(experiment), size)
    channels = build_skeleton(experiment).normalize.mean.numel()
    before = _peak(device)
    detector = build_detector(experiment, pretrained=False)[0].train(training).to(device)
    detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.randint(0, 256, (1, channels, *size), dtype=torch.uint8, device=device)
    image = image.to(memory_format=torch.channels_last)
    precision = experiment.trainer.precision
    lower = torch.float16 if precision.startswith("16") else torch.bfloat16
    with torch.autocast(device, lower, enabled=precision != "32-true"), torch.inference_mode(not training):
        once = training_step(detector, build_criterion(experiment), image) if training else partial(detector, image)
        times = timed(once, runs, device)
    return ModelFigures(
        experiment.name, size, counted, statistics.median(times), min(times), (_peak(device) - before) / MIB, precision
    )


def training_step(detector: Detector, criterion: nn.Module, image: torch.Tensor) -> Callable[[], object]:
    """Forward, loss of three people, and backward, ready to be called."""
    targets = scene.targets(1, 3, (image.shape[-2], image.shape[-1])).to(image.device)

    def step() -> None:
        detector.zero_grad()
        criterion(detector(image), targets).total.backward()

    return step


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


def how(training: bool) -> str:
    """Describes a timed pass."""
    return f"batch 1, {'forward + loss + backward' if training else 'forward in evaluation'}, channels_last"


def models_table(figures: Sequence[ModelFigures], machine: str, reference: str = "00_vgg16") -> Table:
    """A table; with ratios of the fastest times to ``reference`` where it is among the rows.

    The fastest, because other processes only add time.
    """
    base = next((f for f in figures if f.name == reference), None)
    table = Table(title="one image through each experiment's detector", caption=machine)
    table.add_column("experiment")
    columns = (
        "size",
        "parameters, M",
        "multiply-adds, 10^9",
        "anchors",
        "precision",
        "median ms",
        "fastest ms",
        "images/s",
        "peak MiB",
    )
    for name in (*columns, f"fastest : {reference}"):
        table.add_column(name, justify="right")
    for f in figures:
        table.add_row(
            f.name,
            f"{f.size[0]}x{f.size[1]}",
            f"{f.cost.parameters / 1e6:.2f}",
            f"{f.cost.multiply_adds / 1e9:.2f}",
            f"{f.cost.anchors:,}",
            f.precision,
            f"{f.median_ms:.0f}" if f.median_ms >= 100 else f"{f.median_ms:.1f}",
            f"{f.fastest_ms:.0f}" if f.fastest_ms >= 100 else f"{f.fastest_ms:.1f}",
            f"{1000 / f.median_ms:.1f}",
            f"{f.peak_mib:.0f}",
            f"{f.fastest_ms / base.fastest_ms:.2f}" if base else "-",
        )
    return table
