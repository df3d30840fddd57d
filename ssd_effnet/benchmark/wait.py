"""How long training waits for data, with a model that only sleeps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssd_effnet.build import build_dataset
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.training.devices import Processes, loader

_FIRST = 3  # batches that are not counted: the workers start


@dataclass(frozen=True)
class Wait:
    """Waiting measured at one step length.

    Attributes:
        step_ms: how long the model slept.
        share: share of the time spent waiting for data, 0..1.
        images_per_second: throughput.
    """

    step_ms: float
    share: float
    images_per_second: float


def measure_waits(experiment: ExperimentConfig, steps_ms: Sequence[float], batches: int = 30) -> Iterator[Wait]:
    """One figure for each length of a step; the training split is repeated until it is long enough.

    Raises:
        DataError: as the run itself would.
    """
    for step_ms in steps_ms:
        dataset = build_dataset(experiment, "train")
        wanted = (batches + _FIRST) * experiment.trainer.batch_size
        dataset.frames = (dataset.frames * -(-wanted // len(dataset)))[:wanted]
        waited, since = 0.0, time.perf_counter()
        for number, _ in enumerate(loader(experiment, dataset, "train", Processes())):
            if number >= _FIRST:
                waited += time.perf_counter() - since
            time.sleep(step_ms / 1000)
            since = time.perf_counter()
        took = waited + batches * step_ms / 1000
        yield Wait(step_ms, waited / took, batches * experiment.trainer.batch_size / took)
