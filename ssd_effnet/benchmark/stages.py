"""Milliseconds of the stages of training and inference.

A stage yields groups of calls by name, which are timed in turns; :data:`STAGES` names the stages. Whole steps and
inferences are :mod:`.gpu`'s, on a CPU too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, repeat
from pathlib import Path
from typing import NamedTuple

import cv2
import torch

from data_kaist.dataset import DetectionDataset
from data_kaist.layouts import DataSource
from data_kaist.synthetic import write_dataset
from ssd_effnet.benchmark import scene
from ssd_effnet.build import as_size, build_criterion, build_detector, build_transforms
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.folding import fold
from ssd_effnet.structures import RawOutputs
from ssd_effnet.training.runtime import in_turns

Calls = dict[str, Callable[[], object]]


class Row(NamedTuple):
    """One call's median time in milliseconds. Its speed is a multiple of that of its group's first call."""

    stage: str
    case: str
    ms: float
    times_faster: float


def measure(stage: str, folder: Path, size: tuple[int, int] | None = None, runs: int = 5) -> Iterator[Row]:
    """Rows of a stage. ``folder`` takes its files, ``size`` is (height, width), None: the experiment's own."""
    for calls in STAGES[stage](folder, size):
        times = in_turns(calls, runs)
        first = next(iter(times.values()))
        for case, own in times.items():
            faster = statistics.median(a / b for a, b in zip(first, own, strict=True))
            yield Row(stage, case, statistics.median(own), faster)


def _data(folder: Path, size: tuple[int, int] | None) -> Iterator[Calls]:
    """Training and test pairs, from files and from decoded frames in memory."""
    e, _ = _untrained("lite0", "input.modality=early", *([f"input.size=[{size[0]},{size[1]}]"] if size else []))
    height, width = as_size(e.input.size)
    write_dataset(folder, 6, (height, width), seed=0)
    frames = DataSource("kaist", folder).frames("train-all-01", modality="early")
    cv2.setNumThreads(0)
    for stage, what in (("train", "read, augment, resize"), ("test", "read, resize")):
        pairs = {c: DetectionDataset(frames, "early", build_transforms(e, stage), cache=c) for c in ("none", "memory")}
        case = f"{stage} pair {height}x{width}: {what}; data.cache: "
        # draws of epoch after epoch, the same of both
        yield {f"{case}{c}": partial(next, map(of.__getitem__, zip(count(), repeat(0)))) for c, of in pairs.items()}


def _loss(folder: Path, size: tuple[int, int] | None) -> Iterator[Calls]:
    """MultiBox, forward and backward."""
    e, detector = _untrained("lite0")
    size, criterion = size or as_size(e.input.size), build_criterion(e)
    out = detector(_images(8, size))
    logits, offsets = (part.detach().requires_grad_() for part in (out.cls_logits, out.bbox_regression))
    anchors = out.anchors_cxcywh

    def call(people: int) -> None:
        criterion(RawOutputs(logits, offsets, anchors), scene.targets(8, people, size)).total.backward()

    for people in (3, 50):
        yield {f"{len(anchors):,} anchors, batch 8, {people} people, forward + backward": partial(call, people)}


def _forward(folder: Path, size: tuple[int, int] | None) -> Iterator[Calls]:
    """Networks in NCHW, and as inference has them: batch norms folded, channels_last."""
    for name in ("00_vgg16", "01_effnet_b4", "lite0"):
        e, detector = _untrained(name)
        height, width = size or as_size(e.input.size)
        image = _images(1, (height, width))
        folded = fold(detector.eval(), _images(1, (64, 96))).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        last = image.contiguous(memory_format=torch.channels_last)
        calls = {"NCHW": partial(detector, image), "folded, channels_last": partial(folded, last)}
        yield {f"{name} {height}x{width}, {case}": torch.inference_mode()(call) for case, call in calls.items()}


def _untrained(name: str, *overrides: str) -> tuple[ExperimentConfig, Detector]:
    """An experiment with random weights, batch norms and MultiBox."""
    torch.manual_seed(0)
    plain = ("backbone.pretrained=none", "backbone.norm=batch", "class_loss.name=multibox")
    e = load_experiment(name, [*plain, *overrides])
    return e, build_detector(e, pretrained=False)[0]


def _images(count: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)


STAGES = {"data": _data, "loss": _loss, "forward": _forward}
