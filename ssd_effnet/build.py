"""From an experiment to its parts. Below this floor nobody knows the config: modules take plain arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from data_kaist.dataset import DetectionDataset, Frame, load_frames
from data_kaist.transforms import (
    Compose,
    HorizontalFlip,
    PhotometricJitter,
    RandomResizedCrop,
    Resize,
    SSDCrop,
    Transform,
)
from ssd_effnet.criterion import MultiBoxLoss
from ssd_effnet.layers import replace_batch_norm
from ssd_effnet.models.adapters import Adapter
from ssd_effnet.models.anchors import AnchorGenerator
from ssd_effnet.models.backbones import BACKBONES, Backbone
from ssd_effnet.models.backbones.pretrained import load_pretrained
from ssd_effnet.models.detector import Detector, Normalize
from ssd_effnet.models.extras import ExtraLevels
from ssd_effnet.models.heads import SSDHead
from ssd_effnet.models.modality import CHANNELS, HalfwayFusion
from ssd_effnet.postprocess import PostProcess
from ssd_effnet.weights import LoadReport
from torch import nn

from ssd_effnet.config import ConfigError, ExperimentConfig, nearest

KERNELS = {"none": 0, "conv1x1": 1, "conv3x3": 3}


def build_detector(e: ExperimentConfig, *, pretrained: bool = True) -> tuple[Detector, LoadReport | None]:
    """The experiment's detector and the report on its pretrained weights, None where there are none.

    Args:
        e: the experiment.
        pretrained: False leaves the weights random: for counting, and where a checkpoint follows.

    Raises:
        ConfigError: naming the key, where the parts do not fit together.
        WeightsError: where pretrained weights cannot be had.
    """
    backbone, report = (
        build_fusion(e, pretrained)
        if e.input.modality == "halfway"
        else build_stream(e, len(CHANNELS[e.input.modality]), pretrained)
    )
    adapter = Adapter(
        backbone.levels, KERNELS[e.adapter.kind], e.adapter.channels, e.adapter.activation, e.adapter.l2_norm
    )
    extras = ExtraLevels(adapter.levels, e.extras.channels, e.extras.strides)
    try:
        anchors = AnchorGenerator(
            extras.levels, e.anchors.sizes, e.anchors.ratios, e.anchors.scales, as_size(e.anchors.reference_size)
        )
    except ValueError as error:
        raise ConfigError(f"{e.name}: key `anchors.sizes`: {error}") from error
    head = SSDHead(extras.levels, anchors.per_position, len(e.head.classes) + 1)
    _start_like_the_study(adapter, extras)
    return Detector(build_normalize(e), backbone, adapter, None, extras, head, anchors), report


def build_stream(e: ExperimentConfig, in_channels: int, pretrained: bool) -> tuple[Backbone, LoadReport | None]:
    """The experiment's backbone for images of so many channels, with its weights and its norms."""
    backbone = build_backbone(e, in_channels)
    report = load_pretrained(backbone, e.backbone.name, e.backbone.pretrained, in_channels) if pretrained else None
    replace_batch_norm(backbone, e.backbone.norm)
    return backbone, report


def build_fusion(e: ExperimentConfig, pretrained: bool) -> tuple[HalfwayFusion, LoadReport | None]:
    """Two streams up to the level ``fusion.up_to``, one trunk beyond; all with the same pretrained weights."""
    whole, report = build_stream(e, 3, pretrained)
    fused = len(whole.levels) if e.fusion.up_to is None else e.fusion.up_to + 1
    if not 1 <= fused <= len(whole.levels):
        names = ", ".join(f"{i} ({level.name})" for i, level in enumerate(whole.levels))
        raise ConfigError(f"{e.name}: key `fusion.up_to`: {e.fusion.up_to} is not one of the levels {names}")
    streams = [whole.cut(stop=fused)]
    if not e.fusion.shared:
        lwir, of_lwir = build_stream(e, 1, pretrained)
        streams.append(lwir.cut(stop=fused))
        if report is not None and of_lwir is not None:
            report = replace(report, adapted=of_lwir.adapted)
    trunk = whole.cut(fused) if fused < len(whole.levels) else None
    fusion = HalfwayFusion(streams, trunk, whole.levels, fused, e.fusion.kernel_size)
    _start_like_the_study(fusion.fuse)
    return fusion, report


def build_backbone(e: ExperimentConfig, in_channels: int) -> Backbone:
    """The experiment's backbone with random weights."""
    b = e.backbone
    if b.name not in BACKBONES:
        raise ConfigError(
            f"{e.name}: key `backbone.name`: {b.name!r} is not one of {', '.join(BACKBONES)}"
            f"{nearest(b.name, list(BACKBONES))}"
        )
    if b.name.startswith("vgg"):
        return BACKBONES[b.name](in_channels=in_channels)
    try:
        return BACKBONES[b.name](
            levels=b.levels, strides=b.strides, in_channels=in_channels, drop_connect_rate=b.drop_connect
        )
    except ValueError as error:
        raise ConfigError(f"{e.name}: group `backbone`: {error}") from error


def build_normalize(e: ExperimentConfig) -> Normalize:
    """Mean and std of the channels that the modality has; 0 and 1 where the experiment switches normalisation off."""
    channels = CHANNELS[e.input.modality]
    if not e.input.normalize:
        return Normalize([0.0] * len(channels), [1.0] * len(channels))
    return Normalize([e.input.mean[c] for c in channels], [e.input.std[c] for c in channels])


def build_criterion(e: ExperimentConfig) -> nn.Module:
    return MultiBoxLoss(
        e.loss.iou_threshold,
        e.loss.negative_ratio,
        e.loss.min_negatives,
        "smooth_l1" if e.loss.localization == "smooth_l1" else "l1",
        e.loss.localization_weight,
    )


def build_postprocess(e: ExperimentConfig) -> PostProcess:
    p = e.postprocess
    return PostProcess(p.score_threshold, p.pre_nms_top_k, p.nms_iou, p.top_k)


def build_transforms(e: ExperimentConfig, stage: str) -> Compose:
    """The chain of transforms: augmentation only for the stage ``train``."""
    resize = Resize(as_size(e.input.size))
    if stage != "train":
        return Compose((resize,))
    a = e.augment
    chain: list[Transform] = []
    if a.jitter > 0:
        chain.append(PhotometricJitter(a.jitter))
    if a.crop == "resized":
        scale, ratio = (a.crop_scale[0], a.crop_scale[1]), (a.crop_ratio[0], a.crop_ratio[1])
        chain.append(RandomResizedCrop(scale, ratio, p=a.crop_probability))
    elif a.crop == "ssd":
        chain.append(SSDCrop())
    # flipping last is cheapest, but flipping the small image after the crop is cheaper still than flipping the frame
    return Compose((*chain, resize, HorizontalFlip(a.flip)))


def build_dataset(e: ExperimentConfig, stage: str) -> DetectionDataset:
    """Frames, transforms and modality of the stage ``train``, ``val`` or ``test``.

    Raises:
        DataError: one sentence on what is wrong with root, split or frames.
    """
    dataset = DetectionDataset(
        build_frames(e, stage),
        e.input.modality,
        build_transforms(e, stage),
        seed=e.trainer.seed,
        on_bad_frame=e.data.on_bad_frame,
        min_height=e.data.min_height,
    )
    if e.data.on_bad_frame == "skip":
        dataset.scan()
    return dataset


def build_frames(e: ExperimentConfig, stage: str) -> list[Frame]:
    """The frames of a split; the validation split is cut out of training."""
    return load_frames(
        e.data.kind,
        Path(e.data.root),
        {"train": e.data.train, "val": e.data.val, "test": e.data.test}[stage],
        annotation_format=e.data.annotations,
        exclude=e.data.val if stage == "train" and e.data.val else None,
        modality=e.input.modality,
    )


def parameter_groups(e: ExperimentConfig, detector: nn.Module) -> list[dict[str, object]]:
    """Trainable parameters by rate: backbone or the rest, weights or biases; each group has a ``name`` for the logger.

    Biases (of convolutions and norms) take ``bias_lr_factor`` times the rate and, as in Caffe's SSD, batch norm's
    factors are weights like any other unless ``decay_norms`` is off.
    """
    groups: dict[str, dict[str, object]] = {}
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "backbone" if name.startswith("backbone.") and not name.startswith("backbone.fuse.") else "head"
        is_bias = name.endswith(".bias")
        undecayed = parameter.ndim <= 1 and not e.optimizer.decay_norms
        key = part + ("_bias" if is_bias else "_norm" if undecayed else "")
        lr = e.optimizer.lr * (e.optimizer.backbone_lr_factor if part == "backbone" else 1)
        group = groups.setdefault(
            key,
            {
                "name": key,
                "params": [],
                "lr": lr * (e.optimizer.bias_lr_factor if is_bias else 1),
                "weight_decay": 0.0 if undecayed else e.optimizer.weight_decay,
            },
        )
        parameters = group["params"]
        assert isinstance(parameters, list)
        parameters.append(parameter)
    return list(groups.values())


def build_optimizer(e: ExperimentConfig, detector: nn.Module) -> torch.optim.Optimizer:
    o, groups = e.optimizer, parameter_groups(e, detector)
    if o.name == "sgd":
        return torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum)
    if o.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=o.lr, momentum=o.momentum)
    return torch.optim.AdamW(groups, lr=o.lr)


def build_schedule(
    e: ExperimentConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over all ``steps`` of a run: one factor on every group's rate, stepped each optimiser step.

    ``plateau`` is not a function of the step: it is stepped each validation, by the metric that it watches.
    """
    s = e.schedule
    if s.name == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=s.gamma, patience=s.patience)

    def factor(step: int) -> float:
        if step < s.warmup_steps:
            return (step + 1) / (s.warmup_steps + 1)
        if s.name == "multistep":
            return float(s.gamma ** sum(step >= share * steps for share in s.milestones))
        if s.name == "cosine":
            progress = (step - s.warmup_steps) / max(steps - s.warmup_steps, 1)
            cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1)))
            return s.final_lr_factor + (1 - s.final_lr_factor) * cosine
        return 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def as_size(pair: list[int]) -> tuple[int, int]:
    """(height, width) of a checked config list."""
    height, width = pair
    return height, width


def _start_like_the_study(*parts: nn.Module) -> None:
    """Xavier for the convolutions that no pretrained weights reach, as SSD starts its extra levels."""
    for module in _convolutions(*parts):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _convolutions(*parts: nn.Module) -> Iterator[nn.Conv2d]:
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                yield module
