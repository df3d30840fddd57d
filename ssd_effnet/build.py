"""Builds an experiment's parts. Only this module reads the whole config; modules take plain arguments."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from data_kaist.classes import Classes
from data_kaist.dataset import DetectionDataset
from data_kaist.images import Reading
from data_kaist.layouts import SIDES, DataSource, Frame, Skipped, file_and_step, with_people
from data_kaist.statistics import lwir_quantiles
from data_kaist.transforms import (
    Compose,
    Expand,
    HorizontalFlip,
    PhotometricJitter,
    RandomResizedCrop,
    Resize,
    SSDCrop,
    Transform,
)
from ssd_effnet.config.loading import refuse_unknown_backbone
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import ConfigError
from ssd_effnet.detection.boxes import Variances
from ssd_effnet.detection.losses import BOX_LOSSES, CLASS_LOSSES, DetectionLoss
from ssd_effnet.detection.matching import MATCHERS
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.evaluation.metrics import metric_of
from ssd_effnet.models.adapters import Adapter
from ssd_effnet.models.anchors import AnchorGenerator
from ssd_effnet.models.backbones import BACKBONES, Backbone
from ssd_effnet.models.backbones.pretrained import load_pretrained
from ssd_effnet.models.detector import Detector, Normalize
from ssd_effnet.models.extras import ExtraLevels
from ssd_effnet.models.fusion import CHANNELS, HalfwayFusion
from ssd_effnet.models.heads import EfficientDetHead, SSDHead
from ssd_effnet.models.layers import replace_batch_norm, set_batch_norm
from ssd_effnet.models.necks import TOPOLOGIES, GraphNeck
from ssd_effnet.models.weights import LoadReport
from ssd_effnet.structures import Level

KERNELS = {"none": 0, "conv1x1": 1, "conv3x3": 3}


def build_detector(e: ExperimentConfig, *, pretrained: bool = True) -> tuple[Detector, LoadReport | None]:
    """The experiment's detector and the report on its pretrained weights, None where there are none.

    Args:
        e: the experiment.
        pretrained: False leaves the weights random: for counting, and where a checkpoint follows.

    Raises:
        ConfigError: naming the key, where the parts do not fit together.
        WeightsError: pretrained weights are not available.
    """
    backbone, report = (
        build_fusion(e, pretrained)
        if e.input.modality == "halfway"
        else build_stream(e, len(CHANNELS[e.input.modality]), pretrained)
    )
    parts: dict[str, nn.Module] = {"backbone": backbone}
    levels = backbone.levels
    wanted = ["neck", "adapter"] if e.adapter.after_neck else ["adapter", "neck"]
    for name in (*wanted, "extras"):
        if (part := _build_part(name, e, levels)) is not None:
            parts[name] = part
            levels = part.levels  # type: ignore[assignment]
    try:
        anchors = AnchorGenerator(
            levels,
            e.anchors.sizes,
            e.anchors.ratios,
            e.anchors.scales,
            as_size(e.anchors.reference_size or e.input.size),
        )
    except ValueError as error:
        raise ConfigError(f"{e.name}: key `anchors.sizes`: {error}") from error
    head = build_head(e, levels, anchors.per_position)
    return Detector(build_normalize(e), parts, head, anchors), report


def build_skeleton(e: ExperimentConfig) -> Detector:
    """The experiment's detector on torch's meta device: shapes without memory."""
    with torch.device("meta"):
        return build_detector(e, pretrained=False)[0].eval()


def _build_part(name: str, e: ExperimentConfig, levels: list[Level]) -> nn.Module | None:
    """One part of the detector for the given levels; None if the experiment has none."""
    if name == "adapter":
        a = e.adapter
        return Adapter(levels, KERNELS[a.kind], a.channels, a.activation, a.l2_norm)
    if name == "extras":
        return ExtraLevels(levels, e.extras.channels, e.extras.strides) if e.extras.strides else None
    return build_neck(e, levels)


def build_neck(e: ExperimentConfig, levels: list[Level]) -> GraphNeck | None:
    """The experiment's neck on these levels, None without a topology.

    Raises:
        ConfigError: where levels and topology do not fit together.
    """
    n = e.neck
    if n.topology == "none":
        return None
    try:
        topology = TOPOLOGIES[n.topology](len(levels) + n.extra_levels)
        if n.outputs is not None:
            topology = replace(topology, returned=n.outputs)
        neck = GraphNeck(
            levels,
            topology,
            channels=n.channels,
            upsample=n.upsample,
            downsample=n.downsample,
            fusion=n.fusion,
            convolution=n.convolution,
            activation=n.activation,
            activation_first=n.activation_first,
            repeats=n.repeats,
            project=n.project,
            extra_levels=n.extra_levels,
        )
    except ValueError as error:
        raise ConfigError(f"{e.name}: group `neck`: {error}") from error
    set_batch_norm(neck, n.norm_eps, n.norm_momentum)
    return neck


def build_head(e: ExperimentConfig, levels: list[Level], anchors_per_position: int) -> nn.Module:
    """The experiment's head; its loss decides whether background is among the classes.

    Raises:
        ConfigError: for levels that the head cannot share.
    """
    softmax = CLASS_LOSSES[e.loss.kind].activation == "softmax"
    num_classes = len(e.data.classes) + (1 if softmax else 0)
    prior = None if softmax else e.loss.prior
    if e.head.kind == "ssd":
        return SSDHead(levels, anchors_per_position, num_classes, prior=prior)
    try:
        return EfficientDetHead(levels, anchors_per_position, num_classes, layers=e.head.layers, prior=prior)
    except ValueError as error:
        raise ConfigError(f"{e.name}: key `head.kind`: {error}") from error


def build_stream(e: ExperimentConfig, in_channels: int, pretrained: bool) -> tuple[Backbone, LoadReport | None]:
    """The experiment's backbone for images of so many channels, with its weights and its norms."""
    backbone = build_backbone(e, in_channels)
    report = load_pretrained(backbone, e.backbone.name, e.backbone.pretrained) if pretrained else None
    replace_batch_norm(backbone, e.backbone.norm)
    return backbone, report


def build_fusion(e: ExperimentConfig, pretrained: bool) -> tuple[HalfwayFusion, LoadReport | None]:
    """Two streams up to the level ``fusion.up_to``, one trunk beyond; all with the same pretrained weights."""
    whole, report = build_stream(e, 3, pretrained)
    fused = len(whole.levels) if e.fusion.up_to is None else e.fusion.up_to + 1
    if not 1 <= fused <= len(whole.levels):
        names = ", ".join(f"{i} ({level.name})" for i, level in enumerate(whole.levels))
        raise ConfigError(f"{e.name}: key `fusion.up_to`: {e.fusion.up_to} is not one of the levels {names}")
    apart = fused == len(whole.levels)  # to the end: nothing to cut
    kind = type(whole)
    if not apart and kind.forward is not Backbone.forward and getattr(kind, "cut", Backbone.cut) is Backbone.cut:
        raise ConfigError(
            f"{e.name}: key `fusion.up_to`: {e.backbone.name} cannot be cut at its levels, as {kind.__name__} has a "
            f"forward of its own and not `segments`; take null, which keeps two whole streams"
        )
    streams = [whole if apart else whole.cut(stop=fused)]
    if not e.fusion.shared:
        lwir, of_lwir = build_stream(e, 1, pretrained)
        streams.append(lwir if apart else lwir.cut(stop=fused))
        if report is not None and of_lwir is not None:
            report = replace(report, adapted=of_lwir.adapted)
    trunk = None if apart else whole.cut(fused)
    return HalfwayFusion(streams, trunk, whole.levels, fused, e.fusion.kernel_size), report


def build_backbone(e: ExperimentConfig, in_channels: int) -> Backbone:
    """The experiment's backbone with random weights."""
    b = e.backbone
    refuse_unknown_backbone(b.name, e.name)
    if not b.name.startswith("efficientnet"):
        if b.levels is not None:
            raise ConfigError(
                f"{e.name}: key `backbone.levels`: {b.name} has levels of its own; leave them out, or say null"
            )
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
    assert e.input.mean is not None and e.input.std is not None  # load_experiment fills them
    return Normalize([e.input.mean[c] for c in channels], [e.input.std[c] for c in channels])


def build_criterion(e: ExperimentConfig) -> DetectionLoss:
    loss = e.loss
    own = (
        {"alpha": loss.alpha, "gamma": loss.gamma}
        if loss.kind == "focal"
        else {"negative_ratio": loss.negative_ratio, "min_negatives": loss.min_negatives}
    )
    of_box = {} if loss.localization == "l1" else {"delta": loss.localization_delta}
    return DetectionLoss(
        CLASS_LOSSES[loss.kind](**own),
        BOX_LOSSES[loss.localization](variances=_variances(e), **of_box),
        MATCHERS["max_iou"](loss.iou_threshold, loss.negative_iou),
        box_weight=loss.localization_weight,
    )


def build_postprocess(e: ExperimentConfig) -> PostProcess:
    p = e.postprocess
    return PostProcess(
        p.score_threshold,
        p.pre_nms_top_k,
        p.nms_iou,
        p.top_k,
        activation=CLASS_LOSSES[e.loss.kind].activation,
        variances=_variances(e),
    )


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
        chain += [Expand(), SSDCrop()]
    # flipping last is cheapest, but flipping the small image after the crop is cheaper still than flipping the frame
    return Compose((*chain, resize, HorizontalFlip(a.flip)))


def build_classes(e: ExperimentConfig) -> Classes:
    """What the detector tells apart, and the data's labels of each class."""
    return Classes({name: tuple(labels) for name, labels in e.data.classes.items()})


def build_reading(e: ExperimentConfig) -> Reading:
    """How the experiment's image files become pixels."""
    limits = e.data.lwir_range
    return Reading((limits[0], limits[1]) if limits else None, e.data.orientation)


def build_source(e: ExperimentConfig, stage: str) -> DataSource:
    """Where the data of a stage (``train``, ``val`` or ``test``) lie, and in which form."""
    d, root = e.data, Path(e.data.root)
    folder = root / d.annotations_dir if d.annotations_dir else None
    source = DataSource(d.kind, root, d.annotations, folder, d.images, build_reading(e), build_classes(e), d.box_of)
    of_val = d.val_annotations or d.train_annotations
    own = {"train": d.train_annotations, "val": of_val, "test": d.test_annotations}[stage]
    return source.annotated(own) if own else source


def build_annotations(e: ExperimentConfig, stage: str) -> str:
    """What the objects of a stage's split are read from: a file or folder, and of pairs which box."""
    split = {"train": e.data.train, "val": e.data.val, "test": e.data.test}[stage]
    return build_source(e, stage).annotations_of(split, e.input.modality)


def with_lwir_range(e: ExperimentConfig) -> ExperimentConfig:
    """The experiment with ``data.lwir_range`` computed from quantiles of the training split.

    Raises:
        DataError: the split cannot be read, or its LWIR images have no more than 8 bits.
    """
    quantiles = e.data.lwir_quantiles
    if quantiles is None or e.data.lwir_range is not None or "lwir" not in SIDES[e.input.modality]:
        return e
    frames = _frames(e, "train", [] if e.data.on_bad_frame == "skip" else None)
    return replace(e, data=replace(e.data, lwir_range=lwir_quantiles(frames, quantiles)))


def _frames(e: ExperimentConfig, stage: str, skipped: Skipped | None) -> list[Frame]:
    cut = e.data.val if stage == "train" else ""  # the validation split is cut out of training
    if e.data.allow_overlap and e.data.kind == "coco" and file_and_step(cut)[1] == 1:
        cut = ""
    split = {"train": e.data.train, "val": e.data.val, "test": e.data.test}[stage]
    return build_source(e, stage).frames(split, exclude=cut or None, modality=e.input.modality, skipped=skipped)


def build_dataset(e: ExperimentConfig, stage: str) -> DetectionDataset:
    """Frames, transforms and modality of the stage ``train``, ``val`` or ``test``.

    Raises:
        DataError: one sentence on what is wrong with root, split or frames.
    """
    e = with_lwir_range(e)
    skipped: Skipped | None = [] if e.data.on_bad_frame == "skip" else None
    frames = every = _frames(e, stage, skipped)
    if stage == "train" and e.data.train_frames == "with_people":
        frames = with_people(every, e.data.min_height, build_classes(e))
    dataset = DetectionDataset(
        frames,
        e.input.modality,
        build_transforms(e, stage),
        seed=e.trainer.seed,
        on_bad_frame=e.data.on_bad_frame,
        min_height=e.data.min_height,
        cache="none" if stage == "test" else e.data.cache,  # the test split is read once
        processes=e.trainer.devices,
        classes=build_classes(e),
    )
    dataset.skipped = [*(skipped or []), *dataset.skipped]
    dataset.without_people = len(every) - len(frames)
    return dataset


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
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode=metric_of(s.monitor).mode, factor=s.gamma, patience=s.patience
        )

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


def _variances(e: ExperimentConfig) -> Variances:
    centre, size = e.anchors.variances
    return centre, size
