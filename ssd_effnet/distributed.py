"""Collectives of the processes of one run; no-ops with one process.

Lightning starts the processes and averages their gradients (DDP). With these functions a step of several processes
equals the step of one process with the whole batch.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.nn.functional import all_reduce  # with gradients to all processes

from data_kaist.errors import Failure

T = TypeVar("T")


def world_size() -> int:
    """Number of processes of the run."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Index of this process, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def mean_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over the processes, without a gradient; all must call it."""
    if world_size() == 1:
        return tensor
    total = tensor.detach() * 1.0
    distributed.all_reduce(total)
    return total / world_size()


def gather_from_processes(thing: T) -> list[T]:
    """Data of each process, by rank; any plain data."""
    if world_size() == 1:
        return [thing]
    things: list[Any] = [None] * world_size()
    distributed.all_gather_object(things, thing)
    return things


def rand_of_batch(rows: int, device: torch.device) -> torch.Tensor:
    """Uniform random numbers for this process's images, float32 ``(rows,)``.

    Each process draws the numbers of the whole batch and takes its rows.
    """
    return torch.rand(rows * world_size(), device=device)[rank() * rows :][:rows]


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch norm over all processes on a CPU. Torch's ``SyncBatchNorm`` does not support that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` to the same. Each process must have the same number of images."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        dims = [0, 2, 3]
        centre = all_reduce(x.mean(dims)) / world_size()
        centred = x - centre[:, None, None]
        variance = all_reduce(centred.square().mean(dims)) / world_size()
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        with torch.no_grad():
            count = x.numel() // x.shape[1] * world_size()
            self.running_mean.lerp_(centre.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        result: torch.Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return result


def sync_batch_norms(module: nn.Module, *, gpu: bool) -> None:
    """Replace batch norms below ``module`` by ones over all processes.

    Raises:
        Failure: one also activates, as timm's do: what replaces it would not.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.BatchNorm2d) and any(True for _ in part.children()):
            raise Failure(
                f"{name}: this batch norm also activates, which one over several processes would not; "
                "set backbone.norm: frozen or group, or trainer.devices: 1"
            )
    if gpu:
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            synced = SyncedBatchNorm(child.num_features, child.eps, child.momentum)
            synced.load_state_dict(child.state_dict())
            setattr(module, name, synced.to(child.weight))
        else:
            sync_batch_norms(child, gpu=gpu)
