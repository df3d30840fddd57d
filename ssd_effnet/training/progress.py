"""Time spent waiting for data, and one line per epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from ssd_effnet.distributed import gather_from_processes
from ssd_effnet.evaluation.metrics import in_place

FIRST_STEPS = 4
ENOUGH = 0.05  # share of the time above which more workers or a cache pay


class Waiting(Callback):
    """Measures step and loader time; of several processes the slowest loader's.

    Logs ``time/data_share`` and ``time/step_seconds`` per epoch, not into ``metrics.csv``, which is reproducible.

    Attributes:
        of_epoch: share of the last epoch's time, in 0..1.
        waited, worked: seconds since the start of the run, over interruptions; ``steps``: its batches.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.of_epoch = 0.0
        self.waited = self.worked = 0.0
        self.steps = 0
        self._now: list[float] = [0.0, 0.0]  # seconds waited and worked in this epoch
        self._since = 0.0
        self._first = 0

    @property
    def of_run(self) -> float:
        """Share of the training time, in 0..1."""
        return self.waited / max(self.waited + self.worked, 1e-9)

    @property
    def step_seconds(self) -> float:
        """Mean seconds per batch, waiting included."""
        return (self.waited + self.worked) / max(self.steps, 1)

    def __str__(self) -> str:
        advice = "; more data.workers or data.cache would help" if self.of_run > ENOUGH else ""
        return f"{self.of_run:.1%} of the training time went by waiting for data{advice}"

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited, "worked": self.worked, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.waited, self.worked, self.steps = (state_dict[name] for name in ("waited", "worked", "steps"))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._now, self._first = [0.0, 0.0], self.steps
        self._since = self.clock()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._lap(0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._lap(1)
        self.steps += 1

    def _lap(self, kind: int) -> None:
        now = self.clock()
        self._now[kind] += now - self._since
        self._since = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # the others wait for the slowest inside their step, so its waiting counts
        waited, worked = max(gather_from_processes((self._now[0], self._now[1])))
        self.waited += waited
        self.worked += worked
        self.of_epoch = waited / max(waited + worked, 1e-9)
        if isinstance(trainer.logger, TensorBoardLogger) and self.steps > self._first:
            figures = {
                "time/data_share": self.of_epoch,
                "time/step_seconds": (waited + worked) / (self.steps - self._first),
            }
            trainer.logger.log_metrics(figures, trainer.global_step)


class EpochLines(Callback):
    """Prints one line per epoch, and the time of a step after the first ones."""

    def __init__(self, waiting: Waiting, echo: Callable[[str], None] = print) -> None:
        self.waiting = waiting
        self.echo = echo
        self.since = 0.0
        self.is_new = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_new and batch_idx + 1 == FIRST_STEPS:
            self.is_new = False
            step = (time.monotonic() - self.since) / FIRST_STEPS
            self.echo(f"about {step:.2g} s per step, {trainer.num_training_batches} steps per epoch")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = {
            "loss": ("train_epoch/loss_total", "{:.3f}"),
            "val loss": ("val/loss_total", "{:.3f}"),
        }
        shown |= {f"val {of.name}": (f"val/{of.figures[0]}", "{:.2f}") for of in in_place("line")}
        metrics = trainer.callback_metrics
        parts = [
            f"{label} {form.format(float(metrics[key]))}" for label, (key, form) in shown.items() if key in metrics
        ]
        parts.append(f"{time.monotonic() - self.since:.0f} s, {self.waiting.of_epoch:.0%} waiting for data")
        self.echo(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {'  '.join(parts)}")
