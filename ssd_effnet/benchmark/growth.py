"""How time and memory of the stages grow with the work."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.table import Table

from ssd_effnet.benchmark import scene
from ssd_effnet.detection.losses import DetectionLoss, MultiBoxLoss
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.scores import save_figure
from ssd_effnet.evaluation.subsets import REASONABLE
from ssd_effnet.structures import RawOutputs
from ssd_effnet.training.runtime import in_turns, threads_of


@dataclass(frozen=True)
class GrowthPoint:
    """One amount of work.

    Attributes:
        what: the stage and the quantity that grows.
        factor: multiple of the smallest amount.
        amount: images, anchors, boxes ...
        ms: fastest pass.
        mib: most memory that torch and numpy held at once beyond what they were given.
    """

    what: str
    factor: int
    amount: int
    ms: float
    mib: float


def measure_growth(factors: Sequence[int], *, runs: int = 3) -> Iterator[GrowthPoint]:
    """Points of every curve, one thread."""
    with threads_of(1):
        for what, make in CURVES.items():
            made = {factor: make(factor) for factor in factors}
            times = in_turns({str(factor): call for factor, (_, call) in made.items()}, runs)
            for factor, (amount, call) in made.items():
                yield GrowthPoint(what, factor, amount, min(times[str(factor)]), _most_memory(call) / 2**20)


def exponents(points: Sequence[GrowthPoint]) -> dict[str, tuple[float, float]]:
    """Per curve, the exponents of time and memory over the last doubling of the work (1: linear)."""
    result = {}
    for what in dict.fromkeys(p.what for p in points):
        curve = [p for p in points if p.what == what]
        if len(curve) > 1:
            a, b = curve[-2:]
            steps = math.log(b.factor / a.factor)
            result[what] = (math.log(b.ms / a.ms) / steps, math.log(max(b.mib, 1e-9) / max(a.mib, 1e-9)) / steps)
    return result


def growth_table(points: Sequence[GrowthPoint], machine: str) -> Table:
    """The points as a table."""
    table = Table(title="time and memory as the work grows", caption=machine)
    for name in ("stage, more of what", "amount", "ms", "MiB", "grows as work to the power of (time, memory)"):
        table.add_column(name, justify="left" if name.startswith("stage") else "right")
    powers = exponents(points)
    for i, p in enumerate(points):
        last = i + 1 == len(points) or points[i + 1].what != p.what
        power = ", ".join(f"{x:.2f}" for x in powers.get(p.what, ())) if last else ""
        table.add_row(p.what, f"{p.amount:,}", f"{p.ms:.2f}", f"{p.mib:.1f}", power)
    return table


def draw_growth(points: Sequence[GrowthPoint], path: Path) -> None:
    """Draw time and memory over work, log-log, relative to the smallest amount; dashed: linear."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key in zip(figure.subplots(1, 2), ("ms", "mib"), strict=True):
        for what in dict.fromkeys(p.what for p in points):
            curve = [p for p in points if p.what == what]
            first = getattr(curve[0], key)
            if first > 0:
                axes.plot([p.factor for p in curve], [getattr(p, key) / first for p in curve], marker="o", label=what)
        limits = [min(p.factor for p in points), max(p.factor for p in points)]
        axes.plot(limits, [x / limits[0] for x in limits], "k--", label="as the work")
        axes.set(xscale="log", yscale="log", xlabel="times the work", title={"ms": "time", "mib": "memory"}[key])
        for axis in (axes.xaxis, axes.yaxis):  # 1, 2, 4, 8: powers of ten have nothing between 1 and 10
            axis.set_major_locator(LogLocator(base=2))
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axis.set_minor_locator(NullLocator())
        axes.grid(True, color="0.85")
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path, dpi=120)


def _most_memory(call: Callable[[], object]) -> float:
    """Most bytes that a call held at once beyond those before: torch's, and Python's with numpy's on top."""
    tracemalloc.start()
    call()
    _, of_numpy = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # a tensor from before the call that goes in it counts as less than nothing, so one time does not tell
    return float(of_numpy + max(_most_of_torch(call) for _ in range(5)))


def _most_of_torch(call: Callable[[], object]) -> int:
    """Peak bytes counted by torch's allocator."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    held = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def _loss(images: int, people: int, size: tuple[int, int]) -> tuple[torch.Tensor, Callable[[], object]]:
    anchors, targets = scene.anchors(size), scene.targets(images, people, size)
    logits, offsets = (x.requires_grad_() for x in scene.raw(images, len(anchors)))
    criterion = DetectionLoss(MultiBoxLoss())

    def step() -> None:
        logits.grad = offsets.grad = None
        criterion(RawOutputs(logits, offsets, anchors), targets).total.backward()

    return anchors, step


def _more_images(factor: int) -> tuple[int, Callable[[], object]]:
    return 2 * factor, _loss(2 * factor, 3, scene.SIZE)[1]


def _more_anchors(factor: int) -> tuple[int, Callable[[], object]]:
    anchors, step = _loss(2, 3, (128 * factor, 640))
    return len(anchors), step


def _more_boxes(factor: int) -> tuple[int, Callable[[], object]]:
    return 4 * factor, _loss(2, 4 * factor, scene.SIZE)[1]


def _more_candidates(factor: int) -> tuple[int, Callable[[], object]]:
    anchors = scene.anchors()
    number = len(anchors) * factor // 8
    raw = RawOutputs(*scene.found(anchors, number, spread=True), anchors)
    return number, partial(PostProcess(pre_nms_top_k=len(anchors)), raw, scene.SIZE)


def _more_lines(factor: int) -> tuple[int, Callable[[], object]]:
    annotations, table = scene.test_split(400 * factor, 1000 * factor)

    def evaluate() -> list[float]:
        matcher = MissRateEvaluator(annotations).match(table)
        return [matcher.result(name).mr for name in REASONABLE]

    return 1000 * factor, evaluate


CURVES: dict[str, Callable[[int], tuple[int, Callable[[], object]]]] = {
    "loss, more images": _more_images,
    "loss, more anchors": _more_anchors,
    "loss, more boxes per image": _more_boxes,
    "postprocess, more candidates": _more_candidates,
    "evaluate, more images and lines": _more_lines,
}
