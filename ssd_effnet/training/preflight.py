"""Checks before the first step; each refuses with one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data_kaist.annotations import training_ignore
from data_kaist.classes import PERSON
from data_kaist.dataset import DetectionDataset
from data_kaist.layouts import Frame, file_and_step, shared
from ssd_effnet.build import as_size, build_source
from ssd_effnet.config.checks import watched_metrics
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.evaluation.metrics import metric_of
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.subsets import SUBSETS
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.fusion import CHANNELS
from ssd_effnet.models.layers import FrozenBatchNorm2d
from ssd_effnet.models.weights import LoadReport
from ssd_effnet.training.run_directory import RunError


def refuse_single_values(detector: Detector, experiment: ExperimentConfig, images: int) -> None:
    """Refuse norms over a single value: there torch fails or returns the bias."""

    def look(name: str, norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        batch, channels, *size = inputs[0].shape
        groups, why = channels, "a batch has one image; set trainer.batch_size to 2 or more (with as many to train on)"
        if isinstance(norm, nn.GroupNorm):
            groups, why = norm.num_groups, "a group is one channel; set backbone.norm to batch"
        if inputs[0].numel() == batch * groups:
            raise RunError(
                f"{name} would normalise a single value: its map is {'x'.join(map(str, size))} pixels, and {why}, "
                "input.size higher, or extras.strides shorter"
            )

    kinds = (nn.GroupNorm,) if images > 1 else (nn.GroupNorm, nn.BatchNorm2d)
    norms = {name: part for name, part in detector.named_modules() if isinstance(part, kinds)}
    if not norms:
        return
    hooks = [norm.register_forward_pre_hook(partial(look, name)) for name, norm in norms.items()]
    channels = len(CHANNELS[experiment.input.modality])
    detector.eval()
    with torch.no_grad():
        detector(torch.zeros((1, channels, *as_size(experiment.input.size)), dtype=torch.uint8))
    detector.train()
    for hook in hooks:
        hook.remove()


def refuse_empty_statistics(detector: Detector, report: LoadReport) -> None:
    """Refuse frozen norms without loaded statistics."""
    norms = [name for name, part in detector.named_modules() if isinstance(part, FrozenBatchNorm2d)]
    lacking = (*report.missing, *(name for name, *_ in report.misshapen))
    empty = [norm for norm in norms if f"{norm}.running_var".endswith(tuple(n for n in lacking if "running_var" in n))]
    if empty:
        raise RunError(
            f"key `backbone.norm`: frozen, but {len(empty)} of {len(norms)} norms find no statistics in "
            f"{report.source} ({empty[0]} first); set it to batch or group"
        )


def refuse_to_train_on_nobody(experiment: ExperimentConfig, dataset: DetectionDataset) -> None:
    """Refuse a class whose training objects are all ignore regions."""
    least, classes = experiment.data.min_height, dataset.classes
    index = np.concatenate([classes.indices(of_frame.labels) for of_frame in dataset.annotations])
    ignored = np.concatenate([training_ignore(of_frame, least, classes) for of_frame in dataset.annotations])
    for name, labels in classes.labels.items():
        of_class = index == classes.index(name)
        said = "persons" if name == PERSON else f"labelled {' or '.join(labels)}"
        if (ignored | ~of_class).all():
            raise RunError(
                f"the training split {experiment.data.train!r} contains no {name} to be found: of its {len(index):,} "
                f"objects {of_class.sum():,} are {said} (data.classes), and each of them is flagged, "
                f"lower than data.min_height ({least:g} pixels) or over the border"
            )


def refuse_shared_images(experiment: ExperimentConfig, datasets: dict[str, DetectionDataset]) -> None:
    """Refuse images that are in two splits. Of KAIST, validation is cut out of training."""
    e, t = experiment.data, experiment.trainer
    splits = {"train": e.train, "val": e.val, "test": e.test}
    frames: dict[str, Sequence[Frame]] = {stage: dataset.frames for stage, dataset in datasets.items()}
    chooses = t.test_checkpoint == "best" or hasattr(experiment.schedule, "monitor")
    said = []
    coco = e.kind == "coco"
    pairs = [("test", "train"), *([("val", "train")] if coco else []), *([("test", "val")] if chooses else [])]
    for stage, other in pairs:
        if stage not in frames or other not in frames:
            continue
        others = frames[other]
        files = {(Path(e.root) / file_and_step(splits[of])[0]).resolve() for of in (stage, other)}
        if stage == "val" and len(files) > 1:  # a val cut out of training shares its file, too
            others = build_source(experiment, "train").frames(e.train, modality=None, skipped=[])
        names = {frame.name for frame in others}
        if both := shared(frames[stage], others) if coco else [frame for frame in frames[stage] if frame.name in names]:
            of, its = f"data.{stage} ({splits[stage]})", f"data.{other} ({splits[other]})"
            said.append(f"{of} shares {len(both):,} of {len(frames[stage]):,} images with {its}, {both[0].name} first")
    if said:
        raise RunError(f"{'; '.join(said)}; take them out of one of the two, or set data.allow_overlap: true")


def refuse_to_watch_nobody(experiment: ExperimentConfig, datasets: dict[str, DetectionDataset]) -> None:
    """Refuse a monitor that the validation split leaves undefined."""
    if "val" not in datasets:
        return
    classes = datasets["val"].classes
    for key, monitor in watched_metrics(experiment).items():
        figure, _, last = monitor.removeprefix("val/").rpartition("/")
        name = last if last in classes.names and figure else classes.main
        evaluator = MissRateEvaluator.for_class(datasets["val"].annotations, classes, name)
        subset = monitor.removeprefix("val/MR/").removesuffix(f"/{name}")
        if subset in SUBSETS:
            lacks, who = bool(evaluator.ignored(SUBSETS[subset]).all()), f"counted by the subset {subset}"
        else:
            lacks, who = bool(metric_of(monitor).function) and not evaluator.of_class.any(), "without the ignore flag"
        if lacks:
            raise RunError(
                f"the validation split {experiment.data.val!r} contains no {name} {who}, so "
                f"{monitor} is undefined; set {key} to another metric (val/loss_total is always defined) or choose "
                "another data.val"
            )


def refuse_to_end_warming_up(experiment: ExperimentConfig, batches: int) -> None:
    """Refuse a warm-up longer than the run; ``batches`` per epoch."""
    epochs, warmup = experiment.trainer.epochs, experiment.schedule.warmup_steps
    steps = epochs * math.ceil(batches / experiment.optimizer.accumulate)
    if warmup >= steps:
        raise RunError(
            f"schedule.warmup_steps is {warmup}, but the run has {steps} steps (trainer.epochs {epochs}, {batches} "
            "batches each), so that it would end before optimizer.lr is reached; set it lower, or 0 for none"
        )
