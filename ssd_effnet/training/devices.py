"""Processes of one run: start, shares of the data, common end.

Lightning recognises processes of torchrun and SLURM; otherwise it starts those of this machine itself, by the command
of the first one.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Literal

import cv2
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from data_kaist.dataset import DetectionDataset, EpochSampler, collate
from data_kaist.errors import DataError
from data_kaist.transforms import Sample
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import ConfigError
from ssd_effnet.training.interruption import leave_to_parent

EVALUATION_BATCH = 16  # images at most: batches that do not depend on the number of processes are rounded alike


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; rank 0 writes and prints."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    @classmethod
    def of(cls, experiment: ExperimentConfig) -> Processes:
        """From the config and the environment, before anything is written or started.

        Raises:
            ConfigError: missing devices, another number of started processes, or a batch that cannot be divided
                equally.
        """
        t = experiment.trainer
        accelerator(experiment)
        count = t.devices * t.num_nodes
        if t.batch_size % count:
            raise ConfigError(
                f"trainer.batch_size is that of all {count} processes together and must be a multiple of {count}, not "
                f"{t.batch_size}"
            )
        if t.threads and count > 1:  # Lightning would divide the cores among the processes
            os.environ["OMP_NUM_THREADS"] = str(t.threads)
        try:
            trainer = Trainer(**devices(experiment), logger=False, enable_checkpointing=False)
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            raise ConfigError(f"trainer.devices: {' '.join(str(error).split())}") from error
        starters = (TorchElasticEnvironment, SLURMEnvironment)
        started: int = next((of().world_size() for of in starters if of.detect()), count)
        if started != count:
            raise ConfigError(
                f"trainer.devices x trainer.num_nodes is {count}, but {started} processes were started; the "
                "numbers must be equal"
            )
        return cls(trainer.global_rank, trainer.world_size)


def accelerator(experiment: ExperimentConfig) -> Literal["cpu", "cuda"]:
    """Accelerator of a run. ``auto``: CUDA if available, else the CPU (never MPS). ConfigError if it is not there."""
    asked = experiment.trainer.accelerator
    if asked == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator is gpu, but torch finds no CUDA device here; set it to auto or cpu")
    return "cuda" if asked == "gpu" or (asked == "auto" and torch.cuda.is_available()) else "cpu"


def devices(experiment: ExperimentConfig) -> dict[str, Any]:
    """Arguments of Lightning's ``Trainer`` that concern devices."""
    t = experiment.trainer
    # no broadcast of buffers: batch norms are synchronised. In evaluation it would wait for finished processes
    patience = timedelta(seconds=t.process_timeout)
    ddp = DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True, timeout=patience)
    how = "auto" if t.devices * t.num_nodes == 1 else ddp
    return {"accelerator": accelerator(experiment), "devices": t.devices, "num_nodes": t.num_nodes, "strategy": how}


def environments() -> list[SLURMEnvironment]:
    """SLURM's environment without requeue. With requeue Lightning would write and load checkpoints of its own."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def loader(
    experiment: ExperimentConfig, dataset: DetectionDataset, stage: str, processes: Processes
) -> DataLoader[Sample]:
    """Loader of this process. A share of each training batch, every n-th evaluation batch.

    Raises:
        ConfigError: fewer frames than processes.
    """
    workers = experiment.data.workers
    train = stage == "train"
    batch_size = min(experiment.trainer.batch_size, len(dataset))
    batch_size = batch_size // processes.count if train else min(batch_size, EVALUATION_BATCH)
    if not batch_size:
        raise ConfigError(f"data.train: {len(dataset)} frames cannot be shared by {processes.count} processes")
    seed, rank, count = experiment.trainer.seed, processes.rank, processes.count
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(len(dataset), batch_size, train=train, seed=seed, rank=rank, world_size=count),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=accelerator(experiment) == "cuda",
        drop_last=train,
        persistent_workers=workers > 0,
        worker_init_fn=_begin_worker,
    )


class LostBatch(DataError):
    """A prefetched batch could not be passed to the main process."""


DEAD_WORKER = ("DataLoader worker (pid", "Pin memory thread exited", "Too many open files. Communication")
"""How torch begins to say that a loader's worker is gone or cannot be reached."""


def _begin_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    leave_to_parent(worker)
    Queue._on_queue_feeder_error = _hand_over_why  # type: ignore[attr-defined]  # of this process alone


def _hand_over_why(queue: Any, error: Exception, lost: tuple[int, Any]) -> None:
    """Return the error in place of a batch. Otherwise the loader would wait for ever."""
    memory, room = Path("/dev/shm"), ""
    if memory.is_dir() and "shared memory" in str(error):
        room = f"; {memory} holds {shutil.disk_usage(memory).total >> 20} MiB, and a container takes --shm-size=2g"
    said = f"a batch that was read ahead could not be handed over ({' '.join(str(error).split())}){room}"
    why = LostBatch(f"{said}; data.workers=0 needs none, a smaller trainer.batch_size or fewer data.workers less")
    queue.put((lost[0], ExceptionWrapper((LostBatch, why, error.__traceback__))))


@contextmanager
def ending_together(trainer: Trainer, lost: Exception) -> Iterator[None]:
    """Context in which the end of one process ends all of them.

    On a network error rank 0 raises ``lost``, or exits with its text where Lightning notices first.
    """

    def in_our_words(record: logging.LogRecord) -> bool:
        record.msg, record.args = f"error: {lost} ({record.getMessage()})", ()
        return True

    watch = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")
    watch.addFilter(in_our_words)
    try:
        yield
    except BaseException as error:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # they may hang, waiting for this one
        if not _lost_another(error):
            raise
        if not trainer.is_global_zero:
            sys.exit(1)  # rank 0 prints it
        raise lost from error
    finally:
        watch.removeFilter(in_our_words)


def _lost_another(error: BaseException) -> bool:
    """Whether an error is of the network between processes (NCCL, gloo)."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))
