"""The training, validation and test steps of a detector."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from data_kaist.classes import PEOPLE, Classes
from data_kaist.structures import Annotations, Batch, DetectionTable
from ssd_effnet.detection.losses import Losses
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.distributed import gather_from_processes, mean_over_processes
from ssd_effnet.evaluation.metrics import in_place
from ssd_effnet.evaluation.scores import Scores, named_figures, score_classes
from ssd_effnet.models.detector import Detector
from ssd_effnet.structures import Detections, NonFiniteError, RawOutputs

LOG_EVERY = 10  # steps, for logging and for reading whether losses are finite


_REMEDY = "; the last good checkpoint stays. Try a lower optimizer.lr, optimizer.gradient_clip or a longer warm-up"


class UnreadLoss(NamedTuple):
    """A step's loss that the host has not read yet: mean over all processes, and of this one's ``names``."""

    step: int
    of_all: torch.Tensor
    mine: torch.Tensor
    names: Sequence[str]


class ImageFindings(NamedTuple):
    """Detections of an evaluated batch. With mean losses by name, and number of images."""

    table: DetectionTable
    losses: dict[str, float]
    images: int


class TrainingModule(LightningModule):
    """Training, validation and test steps. Each process has a share of a batch.

    Args:
        optimizers: called with the detector and the number of optimiser steps of the whole run; returns what
            Lightning's ``configure_optimizers`` may return.
        annotations: ground truth for the stages ``val`` and ``test``, one entry per frame of the data set.
        experiment: the resolved config as plain data; stored in every checkpoint, from which a detector is rebuilt.
    """

    def __init__(
        self,
        detector: Detector,
        criterion: nn.Module,
        postprocess: PostProcess,
        optimizers: Callable[[nn.Module, int], Any],
        annotations: dict[str, Sequence[Annotations]],
        experiment: dict[str, Any],
        classes: Classes = PEOPLE,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.criterion = criterion
        self.postprocess = postprocess
        self.optimizers_of = optimizers
        self.annotations = annotations
        self.experiment = experiment
        self.classes = classes
        self.unread: list[UnreadLoss] = []
        self.found: dict[int, ImageFindings] = {}  # by the index of a batch's first image
        self.results: dict[str, tuple[DetectionTable, dict[str, Scores]]] = {}  # scores by class

    def configure_optimizers(self) -> Any:
        return self.optimizers_of(self.detector, int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["experiment"] = self.experiment

    def on_train_epoch_start(self) -> None:
        """Clear the last epoch's metrics: without validation there are none."""
        self.trainer.callback_metrics.clear()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        # drop-connect draws from torch's generator; seeded per step, a resumed run draws the same numbers
        place = (self.experiment["trainer"]["seed"], self.current_epoch, batch_idx)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        losses = self._losses(self.detector(batch.images), batch)
        mine = losses.named()
        of_all = mean_over_processes(torch.stack(list(mine.values())))
        self.unread.append(UnreadLoss(self.global_step, of_all[0], losses.total.detach(), batch.names))
        for name, value in zip(mine, of_all, strict=True):
            self.log(f"train_epoch/{name}", value, on_step=False, on_epoch=True, batch_size=len(batch.names))
        # each reading waits for the GPU; Lightning's logger reads at the same steps
        if (self.global_step + 1) % LOG_EVERY == 0 or self.trainer.is_last_batch:
            self._refuse_non_finite_losses()
            self._log_step(batch, dict(zip(mine, of_all, strict=True)))
        return losses.total

    def _losses(self, outputs: RawOutputs, batch: Batch) -> Losses:
        losses: Losses = self.criterion(outputs, batch.targets)
        return losses.with_own(self.detector, batch)

    def _refuse_non_finite_losses(self) -> None:
        """Raise if a loss since the last reading is not finite. All processes raise alike."""
        unread, self.unread = self.unread, []
        finite = torch.stack([loss.of_all for loss in unread]).isfinite().tolist()
        if not all(finite):
            loss = unread[finite.index(False)]
            mine = [] if loss.mine.isfinite() else loss.names
            self._stop(loss.of_all, loss.step, [n for names in gather_from_processes(mine) for n in names])

    def _log_step(self, batch: Batch, losses: dict[str, torch.Tensor]) -> None:
        for name, value in losses.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss_total", batch_size=len(batch.names))
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            self.log(f"lr/{group['name']}", group["lr"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        outputs = self.detector(batch.images)
        losses = self._losses(outputs, batch)
        if not torch.isfinite(losses.total):
            self._stop(losses.total, self.global_step, batch.names)
        self._collect(outputs, batch, losses)

    def on_validation_epoch_end(self) -> None:
        self._score("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(self.detector(batch.images), batch)

    def on_test_epoch_end(self) -> None:
        self._score("test")

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a schedule; plateau is stepped earlier, by :meth:`on_train_epoch_end`."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def on_train_epoch_end(self) -> None:
        """Step plateau and refuse non-finite weights, before the checkpoint is written.

        Lightning steps plateau after the checkpoint: a resumed run would miss a step.
        """
        for name, parameter in self.detector.named_parameters():
            if not torch.isfinite(parameter).all():
                raise NonFiniteError(
                    f"the weights {name} are not finite after step {self.global_step} (epoch {self.current_epoch})"
                    f"{_REMEDY}"
                )
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau) and (self.current_epoch + 1) % config.frequency == 0:
                config.scheduler.step(self.trainer.callback_metrics[str(config.monitor)])

    def _stop(self, loss: torch.Tensor, step: int, names: Sequence[str]) -> NoReturn:
        raise NonFiniteError(
            f"the loss is {loss.item()} at step {step} (epoch {self.current_epoch}) on the frames "
            f"{', '.join(names)}{_REMEDY}"
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def _collect(self, outputs: Any, batch: Batch, losses: Losses | None = None) -> None:
        outputs.refuse_non_finite(batch.names)
        size = (batch.images.shape[-2], batch.images.shape[-1])
        found: Detections = self.postprocess(outputs, size, batch.original_sizes, batch.content_sizes)
        table = found.table(batch.indices.tolist(), self.classes.names)
        named = losses.named() if losses else {}
        values = torch.stack(list(named.values())).tolist() if named else []
        self.found[int(batch.indices[0])] = ImageFindings(
            table, dict(zip(named, values, strict=True)), len(batch.names)
        )

    def _score(self, stage: str) -> None:
        # a batch that two processes evaluated (the last ones) counts once
        by_place = {place: found for share in gather_from_processes(self.found) for place, found in share.items()}
        batches = [by_place[place] for place in sorted(by_place)]
        self.found = {}
        table = DetectionTable.joined([found.table for found in batches])
        scores = score_classes(self.annotations[stage], table, self.classes)
        self.results[stage] = table, scores
        if stage == "test":  # written once, beside the settings, where the run ends
            return
        figures = dict(named_figures(scores, self.classes))
        images = sum(found.images for found in batches)
        for name in batches[0].losses:
            figures[name] = sum(found.losses[name] * found.images for found in batches) / images
        for group in ("trainer", "schedule"):
            monitor = self.experiment[group].get("monitor") or ""
            if math.isnan(figures.get(monitor.removeprefix("val/"), 0)):
                raise NonFiniteError(f"{group}.monitor: {monitor} is not a number in epoch {self.current_epoch}")
        on_bar = [of.figures[0] for of in in_place("line")]
        for name, value in figures.items():
            if not math.isnan(value):  # no object of that kind in the split
                self.log(f"{stage}/{name}", value, prog_bar=name in on_bar)
