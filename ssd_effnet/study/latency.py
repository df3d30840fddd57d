"""Latency of the experiments' detectors, measured once per machine."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssd_effnet.build import as_size, build_detector
from ssd_effnet.config.keys import settings
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.evaluation.scores import write_results
from ssd_effnet.study.records import Experiment
from ssd_effnet.training.environment import machine_line
from ssd_effnet.training.runtime import in_turns

ROUNDS = 5


class Latency(NamedTuple):
    """Median ms of one image's forward pass by experiment, if measured. With machine, threads and method."""

    ms: dict[str, float]
    where: str = ""


def latency(experiments: Sequence[Experiment], cache: Path, *, measure: bool = True) -> Latency:
    """Median milliseconds of a forward pass at batch size 1. Images have each experiment's own input size.

    All are measured in turns, so that other load affects all alike. If every detector was already measured on this
    machine, the values in ``cache`` are used, and so they are where ``measure`` is false.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    number, clock = ("fp32", "processor time") if device == "cpu" else ("TF32 in convolutions", "time")
    clock = clock if torch.get_num_threads() == 1 else "time"
    where = machine_line(
        device, 0, f"batch 1, forward in evaluation, channels_last, {number}, {clock}, {ROUNDS} passes"
    )
    known: dict[str, Any] = {"ms": {}, "where": where}
    if cache.is_file():
        known = json.loads(cache.read_text(encoding="utf-8"))
    configs = {experiment.name: settings(experiment.config) for experiment in experiments}
    same = {name for name, config in configs.items() if known.get("configs", {}).get(name) == config}
    if measure and (known["where"] != where or same != set(configs)):
        times = _measure({experiment.name: experiment.config for experiment in experiments}, device)
        known = {"ms": {name: round(statistics.median(of), 3) for name, of in times.items()}, "where": where}
        write_results(cache, known | {"configs": configs})
        same = set(configs)
    return Latency({name: ms for name, ms in known["ms"].items() if name in same}, known["where"])


def _measure(configs: dict[str, ExperimentConfig], device: str) -> dict[str, list[float]]:
    """Milliseconds of each pass, detectors alternating."""
    calls = {}
    for name, config in configs.items():
        detector = build_detector(config, pretrained=False)[0].eval().to(device)
        detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = (1, detector.normalize.mean.numel(), *as_size(config.input.size))
        image = torch.zeros(shape, dtype=torch.uint8, device=device).to(memory_format=torch.channels_last)
        calls[name] = partial(detector, image)
    with torch.inference_mode():
        return in_turns(calls, ROUNDS, device)
