"""Images per second of training and inference on one device. Published figures are shown beside them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data_kaist.errors import RequestError
from data_kaist.synthetic import write_dataset
from ssd_effnet.benchmark import scene
from ssd_effnet.build import build_criterion, build_dataset, build_detector, build_optimizer
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.inference.predictor import Predictor
from ssd_effnet.models.detector import Detector
from ssd_effnet.training.devices import Processes, loader

EXPERIMENTS = ("lite0", "efficientdet_d0", "00_vgg16", "02_widen_3x3", "05_deconv", "08_bifpn")
SIZES = ((300, 300), (512, 640))
PUBLISHED = (
    "NVIDIA's SSD300 with ResNet-50 on an A100: 377 (TF32) and 724 (AMP) images/s in training, 798 and 1,058 in "
    "inference; EfficientDet-D0: 170 (TF32) and 255 (AMP) in training. Goal: lite0 at 300x300 past 1,500 in bf16"
)


@dataclass(frozen=True)
class Speed:
    """One figure; inference includes postprocessing, up to boxes on the host.

    Attributes:
        size: (height, width) of the input.
        what: ``training``, ``training from the loader``, ``inference from memory`` or ``inference from JPEG``.
        precision: ``fp32``, ``TF32``, ``bf16`` or ``bf16 compiled``.
        peak_mib: most memory of the device at once, MiB; None on a CPU.
        waiting: share of the time without a batch, 0..1; None where no loader was used.
    """

    experiment: str
    size: tuple[int, int]
    what: str
    precision: str
    batch: int
    images_per_second: float
    peak_mib: float | None
    waiting: float | None = None


@dataclass(frozen=True)
class Trial:
    """How much is measured.

    Attributes:
        steps: of ``batch`` images that are timed of each way; of larger batches as many steps as make the same images.
        batch: images of a training step; on a GPU the largest batch that fits is measured too.
        inference, loaded: batch sizes of inference and of training from the loader.
        frames: synthetic pairs that are written for the loader.
        compiled: measure ``torch.compile`` too.
    """

    device: torch.device
    steps: int = 30
    batch: int = 16
    inference: tuple[int, ...] = (1, 16, 64)
    loaded: tuple[int, ...] = (16, 128)
    frames: int = 8192
    workers: int = 8
    compiled: bool = True

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"


def benchmark_gpu(
    folder: Path, trial: Trial, names: Sequence[str] = EXPERIMENTS, sizes: Sequence[tuple[int, int]] = SIZES
) -> Iterator[Speed]:
    """Every figure, network by network, compiled ones last. ``folder`` takes the synthetic frames."""
    experiments = []
    for size, name in itertools.product(sizes, names):
        settings = (f"input.size=[{size[0]},{size[1]}]", f"data.root={folder}", "data.cache=memory")
        loop = (f"data.workers={trial.workers}", "data.val=", "schedule.name=constant")
        device = f"trainer.accelerator={'gpu' if trial.gpu else 'cpu'}"
        plain = ("backbone.pretrained=none", "backbone.norm=batch")
        experiments.append(e := load_experiment(name, [*settings, *loop, *plain, device]))
        if e.input.modality != "visible":
            raise RequestError(f"{name}: reads {e.input.modality} images; the benchmark has visible ones")
    write_dataset(folder, trial.frames, (512, 640), seed=0, jobs=max(trial.workers, 1))
    for e in experiments:
        for way in ("fp32", "TF32", "bf16") if trial.gpu else ("fp32", "bf16"):
            yield from _training(e, trial, way)
        for batch in trial.loaded:
            yield _from_loader(e, trial, batch)
        yield from _inference(e, trial, sorted((folder / "images").rglob("visible/*.jpg")))
    if trial.compiled:
        for e in experiments:
            yield from _training(e, trial, "bf16 compiled")


def _training(e: ExperimentConfig, trial: Trial, way: str) -> Iterator[Speed]:
    """Speed of training with ``trial.batch`` images per step. On a GPU, also with as many as fit."""
    height, width = e.input.size
    rate, peak = _train(e, trial, way, trial.batch)
    yield Speed(e.name, (height, width), "training", way, trial.batch, rate, peak)
    if peak is None:
        return
    twice = peak
    with suppress(torch.OutOfMemoryError):
        twice = _train(e, replace(trial, steps=1), way, 2 * trial.batch)[1] or peak
    if twice <= peak:  # no more fit
        return
    free = torch.cuda.mem_get_info(trial.device)[0] / 2**20
    batch = (1 + int((0.95 * free - peak) / (twice - peak))) * trial.batch  # memory grows in proportion
    while batch > trial.batch:
        with suppress(torch.OutOfMemoryError):
            rate, peak = _train(e, trial, way, batch)
            yield Speed(e.name, (height, width), "training", way, batch, rate, peak)
            return
        torch.cuda.empty_cache()
        batch = int(0.9 * batch) // trial.batch * trial.batch


def _step(e: ExperimentConfig, trial: Trial, way: str) -> Callable[[torch.Tensor, Any], None]:
    torch.manual_seed(0)
    detector = build_detector(e, pretrained=False)[0].to(trial.device).train()
    detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion, optimizer = build_criterion(e), build_optimizer(e, detector)
    forward: Any = torch.compile(detector) if way.endswith("compiled") else detector

    def step(images: torch.Tensor, targets: Any) -> None:
        optimizer.zero_grad()
        with torch.autocast(trial.device.type, torch.bfloat16, enabled=way.startswith("bf16")):
            outputs = forward(images)
        criterion(outputs, targets).total.backward()
        optimizer.step()

    return step


def _train(e: ExperimentConfig, trial: Trial, way: str, batch: int) -> tuple[float, float | None]:
    """Images per second of whole training steps, and peak memory. All steps take one batch on the device."""
    height, width = e.input.size
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, device=trial.device)
    targets = scene.targets(batch, 3, (height, width)).to(trial.device)
    step = _step(e, trial, way)
    with _tf32(way != "fp32"):
        rate, peak = _rate(lambda: step(images, targets), batch, trial)
    if trial.gpu:
        del step
        torch.cuda.empty_cache()  # what other sizes cannot use
    return rate, peak


def _from_loader(e: ExperimentConfig, trial: Trial, batch_size: int) -> Speed:
    """Speed of bf16 steps on batches of the run's loader. Its frames are decoded and in memory."""
    height, width = e.input.size
    e = replace(e, trainer=replace(e.trainer, batch_size=batch_size))
    _reset_peak(trial)
    step = _step(e, trial, "bf16")
    batches = loader(e, build_dataset(e, "train"), "train", Processes())
    waited = images = 0.0
    since = start = time.perf_counter()
    first = len(batches) + 8  # an epoch fills the cache, and each begins with nothing read ahead
    endless = itertools.chain.from_iterable(itertools.repeat(batches))
    for number, batch in enumerate(itertools.islice(endless, first + trial.steps)):
        if number == first:
            start, waited, images = since, 0.0, 0
        waited += time.perf_counter() - since
        batch = batch.to(trial.device, non_blocking=True)
        step(batch.images, batch.targets)
        _synchronize(trial)  # or waiting for the device would count as waiting for data
        images += len(batch.names)
        since = time.perf_counter()
    took = time.perf_counter() - start
    what = "training from the loader"
    return Speed(e.name, (height, width), what, "bf16", batch_size, images / took, _peak(trial), waited / took)


def _inference(e: ExperimentConfig, trial: Trial, files: Sequence[Path]) -> Iterator[Speed]:
    height, width = e.input.size
    detector: Detector = build_detector(e, pretrained=False)[0].eval()
    predictor = Predictor(e, detector, trial.device)
    for batch in trial.inference:
        some = [files[i % len(files)] for i in range(batch)]
        prepared = [predictor.prepare(file) for file in some]
        calls: dict[str, Callable[[], object]] = {
            "inference from memory": lambda prepared=prepared: predictor.detect(prepared),  # type: ignore[misc]
            "inference from JPEG": lambda some=some, batch=batch: predictor.predict(some, batch_size=batch),  # type: ignore[misc]
        }
        for what, call in calls.items():
            with _tf32(True):
                rate, peak = _rate(call, batch, trial)
            yield Speed(e.name, (height, width), what, "TF32" if trial.gpu else "fp32", batch, rate, peak)


def _rate(call: Callable[[], object], images: int, trial: Trial) -> tuple[float, float | None]:
    """Images per second, and peak memory in MiB. The first calls, three at most, are not counted."""
    _reset_peak(trial)
    for _ in range(min(3, trial.steps)):
        call()
    _synchronize(trial)
    steps = min(trial.steps, max(3, trial.steps * trial.batch // images))
    start = time.perf_counter()
    for _ in range(steps):
        call()
    _synchronize(trial)
    return steps * images / (time.perf_counter() - start), _peak(trial)


def _synchronize(trial: Trial) -> None:
    if trial.gpu:
        torch.cuda.synchronize(trial.device)


def _reset_peak(trial: Trial) -> None:
    if trial.gpu:
        torch.cuda.reset_peak_memory_stats(trial.device)


def _peak(trial: Trial) -> float | None:
    return torch.cuda.max_memory_allocated(trial.device) / 2**20 if trial.gpu else None


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def write_speeds(path: Path, speeds: Sequence[Speed], machine: str) -> None:
    """Figures of one device as JSON. Its ``README.md`` beside it is made anew from all that lie there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "speeds": [asdict(speed) for speed in speeds]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    readme, title = path.with_name("README.md"), "# Devices\n\nMade by `ssd-effnet benchmark gpu --json`."
    if readme.exists() and not readme.read_text(encoding="utf-8").startswith(title):
        return
    page = [f"{title} Published: {PUBLISHED}.\n"]
    for file in sorted(path.parent.glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        if "speeds" not in found:
            continue
        page.append(f"## {found['machine']}, {found['date']}\n")
        page.append("| experiment | size | what | precision | batch | images/s | peak MiB | waiting for data |")
        page.append("|---|---|---|---|---|---|---|---|")
        for s in found["speeds"]:
            peak = "-" if s["peak_mib"] is None else f"{s['peak_mib']:.0f}"
            waiting = "-" if s["waiting"] is None else f"{s['waiting']:.1%}"
            size, rate = "x".join(map(str, s["size"])), f"{s['images_per_second']:.4g}"
            cells = (s["experiment"], size, s["what"], s["precision"], s["batch"], rate, peak, waiting)
            page.append(f"| {' | '.join(map(str, cells))} |")
        page.append("")
    readme.write_text("\n".join(page), encoding="utf-8")
