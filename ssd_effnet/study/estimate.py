"""Estimates a run's size and time from counts and timed steps."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import torch

from data_kaist.dataset import collate
from ssd_effnet.build import as_size, build_criterion, build_dataset, build_detector, build_optimizer, build_skeleton
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.models.cost import Cost, cost
from ssd_effnet.training.devices import accelerator
from ssd_effnet.training.environment import cores
from ssd_effnet.training.memory import enough_for_batches
from ssd_effnet.training.preflight import refuse_single_values
from ssd_effnet.training.runtime import threads_of

STEPS = 3


class RunEstimate(NamedTuple):
    """Cost at the experiment's own input size, and minutes per run. Minutes are for a run on this machine alone."""

    cost: Cost
    minutes: float


def estimate_run(e: ExperimentConfig, jobs: int = 1) -> RunEstimate:
    """Time a few training steps on the experiment's data. Weights are random; threads are divided by ``jobs``."""
    with threads_of(e.trainer.threads or max(cores() // jobs, 1)):
        return _timed(e)


def _timed(e: ExperimentConfig) -> RunEstimate:
    device, t = accelerator(e), e.trainer
    datasets = {stage: build_dataset(e, stage) for stage in ("train", "val", "test") if getattr(e.data, stage)}
    train, batch_size = datasets["train"], min(t.batch_size, len(datasets["train"]))
    detector = build_detector(e, pretrained=False)[0]
    refuse_single_values(detector, e, batch_size)
    detector = detector.to(device).train()
    criterion, optimizer = build_criterion(e), build_optimizer(e, detector)
    # as Lightning sets it: bfloat16 on a CPU for either mixed precision
    half = torch.float16 if t.precision == "16-mixed" and device == "cuda" else torch.bfloat16
    reads, steps = [], []
    for step in range(STEPS + 1):
        start = time.perf_counter()
        batch = collate([train[(step * batch_size + i) % len(train)] for i in range(batch_size)])
        read = time.perf_counter()
        batch = batch.to(device)
        optimizer.zero_grad()
        with enough_for_batches(e):
            with torch.autocast(device, half, enabled=t.precision != "32-true"):
                losses = criterion(detector(batch.images), batch.targets)
            losses.total.backward()
            optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
        reads.append(read - start)
        steps.append(time.perf_counter() - read)
    read_seconds, step_seconds, workers = statistics.median(reads[1:]), statistics.median(steps[1:]), e.data.workers
    per_step = step_seconds + read_seconds if workers == 0 else max(step_seconds, read_seconds / workers)
    # an evaluated image takes about a third of a trained one
    evaluated = len(datasets.get("val", ())) * (t.epochs // t.validate_every) + len(datasets.get("test", ()))
    seconds = per_step * (len(train) // batch_size * t.epochs + evaluated / batch_size / 3)
    return RunEstimate(cost(build_skeleton(e), as_size(e.input.size)), seconds / 60)
