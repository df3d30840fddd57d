"""Speed of a training step in several CPU processes, against one."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from ssd_effnet.benchmark import scene
from ssd_effnet.build import as_size, build_criterion, build_detector, build_optimizer
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.distributed import gather_from_processes, sync_batch_norms


@dataclass(frozen=True)
class Shared:
    """Seconds of a step of the whole batch.

    Attributes:
        processes: their number, one thread each.
        wall: wall time.
        processor: processor time of all processes together.
    """

    processes: int
    wall: float
    processor: float


def measure_processes(experiment: ExperimentConfig, counts: Sequence[int], steps: int = 5) -> Iterator[Shared]:
    """One figure per number of processes: medians over steps after one warm-up step."""
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "figures.pt"
            spawn(_work, (count, folder, experiment, steps, path), nprocs=count)
            wall, processor = torch.load(path, weights_only=True)
        yield Shared(count, wall, processor)


def _work(rank: int, count: int, folder: str, e: ExperimentConfig, steps: int, path: Path) -> None:
    """One process: steps of its share of the batch, timed between barriers."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    torch.manual_seed(0)
    detector, criterion = build_detector(e, pretrained=False)[0].train(), build_criterion(e)
    forward: nn.Module = detector
    if count > 1:
        sync_batch_norms(detector, gpu=False)
        forward = DistributedDataParallel(detector, forward_sync_buffers=False, gradient_as_bucket_view=True)
    optimizer, share, size = build_optimizer(e, detector), e.trainer.batch_size // count, as_size(e.input.size)
    images, targets = torch.randint(0, 256, (share, 3, *size), dtype=torch.uint8), scene.targets(share, 3, size)
    times = []
    for _ in range(steps + 1):
        distributed.barrier()
        wall, processor = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        criterion(forward(images), targets).total.backward()
        optimizer.step()
        distributed.barrier()
        processors = gather_from_processes(time.process_time() - processor)
        times.append((time.perf_counter() - wall, sum(processors)))
    if rank == 0:
        torch.save(tuple(statistics.median(column) for column in zip(*times[1:], strict=True)), path)
    distributed.barrier()
    distributed.destroy_process_group()
