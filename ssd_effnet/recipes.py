"""Optimizers and learning-rate schedules that an experiment may name.

A schedule that takes ``steps``, those of the whole run, is laid out over all of it: such a run cannot be given more
epochs later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from torch import optim
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from ssd_effnet.evaluation.metrics import metric_of
from ssd_effnet.registry import OPTIMIZERS, SCHEDULES

AtLeast0 = Annotated[int, "at least 0"]
Share = Annotated[float, "in 0..1"]
Factor = Annotated[float, "above 0, below 1"]


@OPTIMIZERS.register("sgd")
def sgd(params: Any, lr: float, momentum: Share = 0.9) -> optim.Optimizer:
    """Stochastic gradient descent.

    Args:
        momentum: share of the last step.
    """
    return optim.SGD(params, lr=lr, momentum=momentum)


@OPTIMIZERS.register("rmsprop")
def rmsprop(params: Any, lr: float, momentum: Share = 0.9) -> optim.Optimizer:
    """Gradients over their running size.

    Args:
        momentum: share of the last step.
    """
    return optim.RMSprop(params, lr=lr, momentum=momentum)


@OPTIMIZERS.register("adamw")
def adamw(params: Any, lr: float) -> optim.Optimizer:
    return optim.AdamW(params, lr=lr)


def by_step(optimizer: optim.Optimizer, factor: Callable[[int], float], warmup_steps: int = 0) -> LambdaLR:
    """Every group's rate times ``factor(step)``, after a linear rise over ``warmup_steps``."""
    return LambdaLR(
        optimizer, lambda step: (step + 1) / (warmup_steps + 1) if step < warmup_steps else float(factor(step))
    )


@SCHEDULES.register("multistep")
def multistep(
    optimizer: optim.Optimizer,
    steps: int,
    milestones: Annotated[Sequence[float], "in 0..1"] = (0.5, 0.9),
    gamma: Factor = 0.1,
    warmup_steps: int = 0,
) -> LambdaLR:
    """The rate falls at each milestone.

    Args:
        milestones: shares of the run's steps.
        gamma: factor of the rate at each.
    """
    return by_step(optimizer, lambda step: gamma ** sum(step >= share * steps for share in milestones), warmup_steps)


@SCHEDULES.register("cosine")
def cosine(optimizer: optim.Optimizer, steps: int, warmup_steps: int = 0, final_lr_factor: Share = 0.01) -> LambdaLR:
    """The rate falls as half a cosine.

    Args:
        final_lr_factor: final rate as a factor of ``lr``.
    """

    def factor(step: int) -> float:
        progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
        return final_lr_factor + (1 - final_lr_factor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1)))

    return by_step(optimizer, factor, warmup_steps)


@SCHEDULES.register("constant")
def constant(optimizer: optim.Optimizer, warmup_steps: int = 0) -> LambdaLR:
    """The rate stays."""
    return by_step(optimizer, lambda step: 1.0, warmup_steps)


@SCHEDULES.register("plateau")
def plateau(
    optimizer: optim.Optimizer, gamma: Factor = 0.1, patience: AtLeast0 = 3, monitor: str = "val/MR/reasonable_all"
) -> ReduceLROnPlateau:
    """The rate falls when a metric stops improving; stepped at each validation.

    Args:
        gamma: factor of the rate.
        patience: validations without improvement.
        monitor: the metric.
    """
    return ReduceLROnPlateau(optimizer, mode=metric_of(monitor).mode, factor=gamma, patience=patience)
