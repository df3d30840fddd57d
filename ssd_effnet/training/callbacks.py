"""Callbacks of a run: best epoch, moving average (EMA), metrics.csv, fusion weights, pictures, progress lines."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import Profiler
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn

from data_kaist.annotations import training_ignore
from data_kaist.dataset import DetectionDataset, doubts_of, read_pair
from data_kaist.errors import ImageError
from data_kaist.files import write_whole
from data_kaist.layouts import spread
from ssd_effnet.drawing import Marking, beside, draw, encoded
from ssd_effnet.evaluation.metrics import in_place
from ssd_effnet.evaluation.plots import miss_rate_figure
from ssd_effnet.evaluation.subsets import REASONABLE
from ssd_effnet.models.necks import GraphNeck
from ssd_effnet.training.module import TrainingModule


class ModelCheckpoint(callbacks.ModelCheckpoint):
    """Lightning's, except that the later of two equal epochs is kept.

    A run that was moved keeps its best score and finds its files in the new folder.
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
    """Exponential moving average (EMA) of weights and statistics, with a ramp-up.

    Update t = 1, 2, ... keeps ``min(decay, (1 + t) / (10 + t))`` of the average, as TensorFlow does with
    ``num_updates``, so that the first steps soon lose their weight. t is stored in the checkpoint. Updates do not wait
    for the device.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        self._average_model.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self._average_model is not None
        if trainer.global_step > self._latest_update_step:  # not within accumulated gradients
            self.follow(self._average_model.module, pl_module, self._latest_update_step)
            self._average_model.n_averaged += 1
            self._latest_update_step = trainer.global_step

    @torch.no_grad()
    def follow(self, average: nn.Module, module: nn.Module, t: int) -> None:
        """Update number ``t``, from 0, of ``average`` by ``module``."""
        share = max(9 / (10 + t), 1 - self.decay) if t else 1.0
        averages, values = ([*m.parameters(), *m.buffers()] for m in (average, module))
        numbers = [i for i, old in enumerate(averages) if old.is_floating_point()]
        for i in set(range(len(averages))) - set(numbers):  # counts
            averages[i].copy_(values[i])
        torch._foreach_lerp_([averages[i] for i in numbers], [values[i] for i in numbers], share)


class MetricsCsv(Callback):
    """``metrics.csv``: one row per epoch. Stored in the checkpoint, so a resumed run rewrites the same file."""

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
    """Logs the fusion weights of each node per epoch, ``fusion/<node>/<input>``.

    From the validated weights: the averaged ones, if any. Logs nothing where no weights are learned.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        neck = pl_module.detector.parts.get("neck") if isinstance(pl_module, TrainingModule) else None
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
    """Reports doubtful image files once: more than 8 bits, orientation tags."""

    def __init__(self, datasets: Mapping[str, DetectionDataset], echo: Callable[[str], None]) -> None:
        self.datasets = datasets
        self.echo = echo
        self.said: dict[tuple[str, str], str] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check a few frames before training."""
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
                # shares over a few frames are reported again over all
                new = before is None or (kind == "range" and before != sentence)
                if new and (kinds is None or kind in kinds):
                    self.echo(f"{stage}: {sentence}")
                    self.said[stage, kind] = sentence


class ScalarLayout(Callback):
    """TensorBoard's Custom Scalars. One chart each of miss rates, AP, losses and rates."""

    LAYOUT: ClassVar = {
        "validation": {
            "MR: all, day, night": ["Multiline", [f"^val/MR/{subset}$" for subset in REASONABLE]],
            "AP": ["Multiline", ["^val/AP$", "^val/AP50$"]],
        },
        "training": {
            "loss": ["Multiline", ["^train_epoch/loss_total$", "^val/loss_total$"]],
            "rates": ["Multiline", ["^lr/"]],
        },
    }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_custom_scalars(self.LAYOUT)


class Pictures(Callback):
    """TensorBoard images per epoch. ``count`` validation frames with boxes, and the MR-FPPI curve."""

    def __init__(self, dataset: DetectionDataset, count: int = 8, min_score: float = 0.3) -> None:
        self.dataset = dataset
        self.min_score = min_score
        self.chosen = sorted({round(i) for i in np.linspace(0, len(dataset) - 1, count)})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        board = getattr(trainer.logger, "experiment", None) if trainer.is_global_zero else None
        if board is None or not isinstance(pl_module, TrainingModule):
            return
        table, scores = pl_module.results["val"]
        for place in self.chosen:
            frame = self.dataset.frames[place]
            found = table.rows((table.image_index == place) & (table.scores >= self.min_score))
            truth = frame.annotations
            wanted = ~training_ignore(truth, self.dataset.min_height, self.dataset.classes)
            named = self.dataset.classes.words(truth.labels[wanted])
            markings = [
                Marking("ignored", truth.boxes_xyxy[~wanted]),
                Marking("truth", truth.boxes_xyxy[wanted], named),
                Marking("detection", found.boxes_xyxy, found.texts()),
            ]
            pair = [image for image in read_pair(frame, self.dataset.modality) if image is not None]
            picture = beside([draw(image, markings) for image in pair])
            # as JPEG: add_image writes PNG, ten times the bytes, which TensorBoard reads before it shows a curve
            image = Summary.Image(
                height=picture.shape[0], width=picture.shape[1], colorspace=3, encoded_image_string=encoded(picture)
            )
            summary = Summary(value=[Summary.Value(tag=f"val/{frame.name}", image=image)])
            board.file_writer.add_summary(summary, trainer.global_step)
        board.add_figure(
            "val/miss_rate_over_fppi",
            miss_rate_figure(scores if len(scores) > 1 else {"val": scores[pl_module.classes.main]}),
            trainer.global_step,
        )


class EpochLines(Callback):
    """Prints one line per epoch."""

    def __init__(self, echo: Callable[[str], None] = print) -> None:
        self.echo = echo
        self.since = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shown = {"loss": "train_epoch/loss_total", "val loss": "val/loss_total"}
        shown |= {f"val {of.name}": f"val/{of.figures[0]}" for of in in_place("line")}
        known = trainer.callback_metrics
        parts = [f"{of} {float(known[key]):.{3 if 'loss' in key else 2}f}" for of, key in shown.items() if key in known]
        parts.append(f"{time.monotonic() - self.since:.0f} s")
        self.echo(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {'  '.join(parts)}")


class DataShare(Profiler):
    """Share of training time spent waiting for data. In this process since it began."""

    WAITING, WORKING = "[_TrainingEpochLoop].train_dataloader_next", "run_training_batch"

    def __init__(self) -> None:
        super().__init__()
        self.seconds = dict.fromkeys((self.WAITING, self.WORKING), 0.0)

    def start(self, action_name: str) -> None:
        if action_name in self.seconds:
            self.seconds[action_name] -= time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name in self.seconds:
            self.seconds[action_name] += time.perf_counter()

    @property
    def share(self) -> float:
        """In 0..1."""
        return self.seconds[self.WAITING] / max(sum(self.seconds.values()), 1e-9)
