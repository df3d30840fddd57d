"""Latency of the experiments' detectors, measured once and cached."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ssd_effnet.build import as_size, build_detector
from ssd_effnet.config.keys import settings
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.evaluation.scores import write_results
from ssd_effnet.study.records import Experiment
from ssd_effnet.training.machine import machine_line
from ssd_effnet.training.runtime import timed

ROUNDS, MOST_ROUNDS, SECONDS = 5, 25, 20  # at least, at most, and how long more than the least are made
_HOW = "batch 1, forward in evaluation, channels_last, fp32"
_PARTS = ("input", "backbone", "fusion", "adapter", "neck", "extras", "anchors", "head")
_WITHOUT_WEIGHT = ("backbone.pretrained", "backbone.drop_connect", "input.mean", "input.std")


@dataclass(frozen=True)
class Latency:
    """Forward passes of one image.

    Attributes:
        ms: median by experiment; empty where nothing was measured.
        where: machine, threads and how.
        rounds: passes of which that is the median.
    """

    ms: dict[str, float]
    where: str = ""
    rounds: int = 0


def latency(experiments: Sequence[Experiment], cache: Path, *, measure: bool = True) -> Latency:
    """Median milliseconds of a forward pass at the experiment's own size, batch 1.

    All are measured in alternating rounds, so that other load affects all alike. If every detector was already
    measured in the same way, the cached values are used.

    Args:
        cache: file of earlier measurements.
        measure: if false, only cached values are returned.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = machine_line(device, 0, _HOW)
    detectors = {_cache_key(experiment.config): experiment.config for experiment in experiments}
    known: dict[str, Any] = {"where": where, "rounds": 0, "ms": {}}
    if cache.is_file():
        known = json.loads(cache.read_text(encoding="utf-8"))
    if measure and (known["where"] != where or not detectors.keys() <= known["ms"].keys()):
        times = _measure(detectors, device)
        medians = {key: round(statistics.median(of), 3) for key, of in times.items()}
        known = {"where": where, "rounds": min(map(len, times.values()), default=0), "ms": medians}
        write_results(cache, known)
    ms = {e.name: known["ms"][_cache_key(e.config)] for e in experiments if _cache_key(e.config) in known["ms"]}
    return Latency(ms, known["where"], known["rounds"])


def _measure(detectors: dict[str, ExperimentConfig], device: str) -> dict[str, list[float]]:
    """Milliseconds of each pass, detectors alternating."""
    calls = {}
    for key, config in detectors.items():
        detector = build_detector(config, pretrained=False)[0].eval().to(device)
        detector = detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = (1, detector.normalize.mean.numel(), *as_size(config.input.size))
        image = torch.zeros(shape, dtype=torch.uint8, device=device).to(memory_format=torch.channels_last)
        calls[key] = partial(detector, image)
    times: dict[str, list[float]] = {key: [] for key in calls}
    begun = time.monotonic()
    with torch.inference_mode():
        for k in range(MOST_ROUNDS):
            if k >= ROUNDS and time.monotonic() - begun > SECONDS:
                break
            for key, call in calls.items():
                times[key] += timed(call, 1, device)
    return times


def _cache_key(config: ExperimentConfig) -> str:
    """Cache key: equal for detectors with the same computation."""
    values = settings(config)
    kept = {k: v for k, v in values.items() if k.split(".")[0] in _PARTS and k not in _WITHOUT_WEIGHT}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
