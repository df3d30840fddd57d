"""What Lightning needs to train a detector: the steps, and the callbacks that record what happened."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from data_kaist.annotations import training_ignore
from data_kaist.dataset import DetectionDataset, doubts_of, read_pair
from data_kaist.errors import ImageError
from data_kaist.files import write_whole
from data_kaist.layouts import spread
from data_kaist.structures import Annotations, Batch, DetectionTable
from ssd_effnet.detection.losses import Losses
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.distributed import gather_from_processes, mean_over_processes
from ssd_effnet.drawing import Marking, beside, draw, encoded
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.scores import Scores, miss_rate_figure, score
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.necks import GraphNeck
from ssd_effnet.structures import Detections, NonFiniteError

LOG_EVERY = 10  # steps
LOSSES = ("loss_total", "loss_cls", "loss_loc")


_REMEDY = (
    "; the last good checkpoint stays. A lower optimizer.lr, optimizer.gradient_clip or schedule.warmup_steps usually "
    "helps."
)


class ImageFindings(NamedTuple):
    """What an evaluated batch gave.

    Attributes:
        table: its detections.
        losses: their means over the batch, by name.
        images: how many it has.
    """

    table: DetectionTable
    losses: dict[str, float]
    images: int


class TrainingModule(LightningModule):
    """Training, validation and test of one detector, in one process or in several with a share of each batch.

    Args:
        detector: images to raw outputs.
        criterion: raw outputs and targets to losses.
        postprocess: raw outputs to detections.
        optimizers: called with the detector and the number of optimiser steps of the whole run; returns what
            Lightning's ``configure_optimizers`` may return.
        annotations: what is to be found, for the stages ``val`` and ``test``, an entry a frame of the data set.
        channel_names: of the input, for the logger.
        experiment: the resolved config as plain data; stored in every checkpoint, from which a detector is rebuilt.
    """

    def __init__(
        self,
        detector: Detector,
        criterion: nn.Module,
        postprocess: PostProcess,
        optimizers: Callable[[nn.Module, int], Any],
        annotations: dict[str, Sequence[Annotations]],
        channel_names: Sequence[str],
        experiment: dict[str, Any],
    ) -> None:
        super().__init__()
        self.detector = detector
        self.criterion = criterion
        self.postprocess = postprocess
        self.optimizers_of = optimizers
        self.annotations = annotations
        self.channel_names = channel_names
        self.experiment = experiment
        self.found: dict[int, ImageFindings] = {}  # by the place of a batch's first image
        self.results: dict[str, tuple[DetectionTable, Scores]] = {}

    def configure_optimizers(self) -> Any:
        return self.optimizers_of(self.detector, int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["experiment"] = self.experiment

    def on_train_epoch_start(self) -> None:
        """Forget the metrics of the epoch before: one without a validation has no figures of a validation."""
        self.trainer.callback_metrics.clear()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        # drop-connect draws from torch's generator: begun anew each step, a resumed run draws what an unbroken one does
        place = (self.experiment["trainer"]["seed"], self.current_epoch, batch_idx)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        if batch_idx % LOG_EVERY == 0:
            self._log_input(batch)
        losses: Losses = self.criterion(self.detector(batch.images), batch.targets)
        of_all = mean_over_processes(torch.stack([losses.total, losses.cls, losses.loc]).detach())
        if not torch.isfinite(of_all[0]):  # every process knows, so every process comes here
            mine = [] if torch.isfinite(losses.total) else batch.names
            self._stop(of_all[0], [name for names in gather_from_processes(mine) for name in names])
        for name, value in zip(LOSSES, of_all, strict=True):
            self.log(f"train/{name}", value, prog_bar=name == "loss_total", batch_size=len(batch.names))
            self.log(f"train_epoch/{name}", value, on_step=False, on_epoch=True, batch_size=len(batch.names))
        optimizer = self.optimizers()
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            self.log(f"lr/{group['name']}", group["lr"])
        return losses.total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        outputs = self.detector(batch.images)
        losses: Losses = self.criterion(outputs, batch.targets)
        if not torch.isfinite(losses.total):
            self._stop(losses.total, batch.names)
        self._collect(outputs, batch, losses)

    def on_validation_epoch_end(self) -> None:
        self._score("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(self.detector(batch.images), batch)

    def on_test_epoch_end(self) -> None:
        self._score("test")

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Lightning's moment to step a schedule; plateau's is earlier, see :meth:`on_train_epoch_end`."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def on_train_epoch_end(self) -> None:
        """Step plateau, and let no weights into a checkpoint that are not finite: it is written right after this.

        Lightning itself steps plateau after the checkpoint, so that a resumed run would have missed a step.
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

    def _stop(self, loss: torch.Tensor, names: Sequence[str]) -> NoReturn:
        raise NonFiniteError(
            f"the loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}) on the frames "
            f"{', '.join(names)}{_REMEDY}"
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def _collect(self, outputs: Any, batch: Batch, losses: Losses | None = None) -> None:
        outputs.refuse_non_finite(batch.names)
        size = (batch.images.shape[-2], batch.images.shape[-1])
        table = as_table(self.postprocess(outputs, size, batch.original_sizes), batch.indices)
        values = torch.stack([losses.total, losses.cls, losses.loc]).tolist() if losses else []
        self.found[int(batch.indices[0])] = ImageFindings(
            table, dict(zip(LOSSES, values, strict=False)), len(batch.names)
        )

    def _score(self, stage: str) -> None:
        # a batch that two processes evaluated, because there was none left for one of them, counts once
        by_place = {place: found for share in gather_from_processes(self.found) for place, found in share.items()}
        batches = [by_place[place] for place in sorted(by_place)]
        self.found = {}
        table = in_image_order([found.table for found in batches])
        scores = score(MissRateEvaluator(self.annotations[stage]), table)
        self.results[stage] = table, scores
        if stage == "test":  # written once, beside the settings, where the run ends
            return
        figures = dict(scores.named())
        images = sum(found.images for found in batches)
        figures |= {name: sum(found.losses[name] * found.images for found in batches) / images for name in LOSSES}
        for name, value in figures.items():
            if not math.isnan(value):  # nobody of that kind is in the split
                self.log(f"{stage}/{name}", value, prog_bar=name in ("MR/reasonable_all", "AP50"))

    @torch.no_grad()
    def _log_input(self, batch: Batch) -> None:
        """Mean and std of each channel as it enters the backbone: a normalisation that is not running shows here.

        Of several processes the first one's share is what is logged.
        """
        entering = self.detector.normalize(batch.images)
        for i, name in enumerate(self.channel_names):
            self.log(f"input/{name}/mean", entering[:, i].mean(), batch_size=len(batch.names))
            self.log(f"input/{name}/std", entering[:, i].std(), batch_size=len(batch.names))


def as_table(detections: Detections, indices: torch.Tensor) -> DetectionTable:
    """A batch's detections as rows, ``indices (N,)`` being the images' places in the data set."""
    image, row = (detections.labels > 0).nonzero(as_tuple=True)
    return DetectionTable(
        image_index=indices[image.cpu()].numpy(),
        boxes_xyxy=detections.boxes_xyxy[image, row].cpu().double().numpy(),
        scores=detections.scores[image, row].cpu().double().numpy(),
    )


def in_image_order(tables: Sequence[DetectionTable]) -> DetectionTable:
    """Tables of several batches as one, by image, best first."""
    if not tables:
        return DetectionTable.empty()
    image = np.concatenate([t.image_index for t in tables])
    boxes = np.concatenate([t.boxes_xyxy for t in tables])
    scores = np.concatenate([t.scores for t in tables])
    order = np.lexsort((-scores, image))
    return DetectionTable(image[order], boxes[order], scores[order])


# the next two are named as Lightning's, by whose names checkpoints hold their states


class ModelCheckpoint(callbacks.ModelCheckpoint):
    """Lightning's, but that of equal epochs the later one is kept: the first has learned the least.

    A run that was moved goes on with the best score that it had: its files lie in the present folder.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = {key: here(state_dict[key]) for key in state_dict if key.endswith("_path")}
        models = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": models, "dirpath": self.dirpath})

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        better = super().check_monitor_top_k(trainer, current)
        return better or (current is not None and bool(current == self.best_model_score))


class EMAWeightAveraging(callbacks.WeightAveraging):
    """Exponential moving average of weights and statistics, also of a short run.

    Update t keeps ``min(decay, (1 + t) / (10 + t))`` of the average (as TensorFlow's ``ExponentialMovingAverage`` with
    ``num_updates``), so that the first steps are soon forgotten. t travels in the checkpoint.

    Args:
        decay: of a long run, in 0..1.
    """

    def __init__(self, decay: float) -> None:
        def follow(average: torch.Tensor, now: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return average + (now - average) * torch.clamp(9 / (10 + t), min=1 - decay)

        super().__init__(avg_fn=follow)


class MetricsCsv(Callback):
    """``metrics.csv``: one row an epoch. The rows travel in the checkpoint, so a resumed run rewrites the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = {"epoch": float(trainer.current_epoch), "step": float(trainer.global_step)}
        for name, value in sorted(trainer.callback_metrics.items()):
            row[name] = float(value)
        self.rows = [r for r in self.rows if r["epoch"] < row["epoch"]] + [row]
        if trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, text.getvalue())


class FusionWeights(Callback):
    """``fusion/<node>/<input>`` each epoch: what each node of a weighted neck multiplies its inputs by.

    Of the weights that are validated and tested: the averaged ones where there are such. So one sees which level a node
    listens to. Silent where nothing is learned.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        neck = pl_module.detector.part("neck") if isinstance(pl_module, TrainingModule) else None
        if not isinstance(neck, GraphNeck):
            return
        averages = [c for c in getattr(trainer, "callbacks", []) if isinstance(c, callbacks.WeightAveraging)]
        for average in averages:
            average.on_validation_epoch_start(trainer, pl_module)  # exchanges the weights, and the end does it again
        weights = {
            f"fusion/{node}/{name}": weight
            for node, inputs in neck.fusion_weights().items()
            for name, weight in inputs.items()
        }
        for average in averages:
            average.on_validation_epoch_end(trainer, pl_module)
        if weights:
            pl_module.log_dict(weights)


class Doubts(Callback):
    """Says once what is doubtful in the image files that were read: values of more than 8 bits, orientation tags.

    Args:
        datasets: by stage.
        echo: told one line about each.
    """

    def __init__(self, datasets: Mapping[str, DetectionDataset], echo: Callable[[str], None]) -> None:
        self.datasets = datasets
        self.echo = echo
        self.said: dict[tuple[str, str], str] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at a few frames before hours are spent."""
        dataset = self.datasets["train"]
        for place in spread(dataset.frames, 8):
            with suppress(ImageError):  # whoever comes to read it stops there
                read_pair(dataset.frames[place], dataset.modality)
        self._say(["train"], ("depth", "visible depth", "range"))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say([stage for stage in self.datasets if stage != "test"])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say(["test"])

    def _say(self, stages: Sequence[str], kinds: Sequence[str] | None = None) -> None:
        for stage in stages:
            for kind, sentence in doubts_of(self.datasets[stage].frames).items():
                before = self.said.get((stage, kind))
                # shares over a few frames are said again over all of them
                new = before is None or (kind == "range" and before != sentence)
                if new and (kinds is None or kind in kinds):
                    self.echo(f"{stage}: {sentence}")
                    self.said[stage, kind] = sentence


class Pictures(Callback):
    """TensorBoard: the same validation frames each epoch with truth and detections, and the MR-FPPI curve.

    Args:
        dataset: validation frames.
        count: how many of them, spread over the split.
        min_score: detections below are not drawn.
    """

    def __init__(self, dataset: DetectionDataset, count: int = 8, min_score: float = 0.3) -> None:
        self.dataset = dataset
        self.min_score = min_score
        self.chosen = sorted({round(i) for i in np.linspace(0, len(dataset) - 1, count)}) if count else []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        board = getattr(trainer.logger, "experiment", None) if trainer.is_global_zero else None
        if board is None or not isinstance(pl_module, TrainingModule):
            return
        table, scores = pl_module.results["val"]
        for place in self.chosen:
            frame = self.dataset.frames[place]
            found = table.of_image(place)
            shown = found.scores >= self.min_score
            truth = frame.annotations
            person = ~training_ignore(truth, self.dataset.min_height)
            markings = [
                Marking("ignored", truth.boxes_xyxy[~person]),
                Marking("truth", truth.boxes_xyxy[person]),
                Marking("detection", found.boxes_xyxy[shown], [f"{s:.2f}" for s in found.scores[shown]]),
            ]
            pair = [image for image in read_pair(frame, self.dataset.modality) if image is not None]
            picture = beside([draw(image, markings) for image in pair])
            # as JPEG: add_image writes PNG, ten times the bytes, and TensorBoard reads them all before it shows a curve
            image = Summary.Image(
                height=picture.shape[0], width=picture.shape[1], colorspace=3, encoded_image_string=encoded(picture)
            )
            summary = Summary(value=[Summary.Value(tag=f"val/{frame.name}", image=image)])
            board.file_writer.add_summary(summary, trainer.global_step)
        board.add_figure("val/miss_rate_over_fppi", miss_rate_figure({"val": scores}), trainer.global_step)
