"""Builds a detector's parts, which take plain arguments, of an experiment."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_kaist.classes import Classes
from data_kaist.dataset import DetectionDataset
from data_kaist.images import Reading
from data_kaist.layouts import SIDES, DataSource, Frame, Skipped, file_and_step, with_people
from data_kaist.statistics import lwir_quantiles
from data_kaist.transforms import Compose, Pad, Resize, Transform
from ssd_effnet.config.groups import make
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import ConfigError
from ssd_effnet.detection.boxes import Variances
from ssd_effnet.detection.losses import ClassLoss, DetectionLoss
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.models.adapters import Adapter
from ssd_effnet.models.anchors import AnchorGenerator
from ssd_effnet.models.backbones.contract import Selected
from ssd_effnet.models.backbones.pretrained import load_pretrained
from ssd_effnet.models.detector import Detector, Normalize
from ssd_effnet.models.extras import ExtraLevels
from ssd_effnet.models.fusion import CHANNELS, HalfwayFusion
from ssd_effnet.models.layers import declared, replace_batch_norm, set_batch_norm
from ssd_effnet.models.necks import GraphNeck, Topology
from ssd_effnet.models.weights import LoadReport
from ssd_effnet.registry import BACKBONES, STREAM_FUSIONS, TOPOLOGIES, maker
from ssd_effnet.structures import Level


def build_detector(e: ExperimentConfig, *, pretrained: bool = True) -> tuple[Detector, LoadReport | None]:
    """The experiment's detector, and the report on its pretrained weights or None.

    Args:
        pretrained: False: random weights, for counting or before loading a checkpoint.

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
    levels = _levels_of(backbone)
    wanted = ["neck", "adapter"] if e.adapter.after_neck else ["adapter", "neck"]
    for name in (*wanted, "extras"):
        if (part := _build_part(name, e, levels)) is not None:
            parts[name] = part
            levels = part.levels  # type: ignore[assignment]
    a, size = e.anchors, as_size(e.anchors.reference_size or e.input.size)
    try:
        anchors = AnchorGenerator(levels, a.sizes, a.ratios, a.scales, size)
    except ValueError as error:
        raise ConfigError(f"{e.name}: key `anchors.sizes`: {error}") from error
    head = build_head(e, levels, anchors.per_position)
    return Detector(build_normalize(e), parts, head, anchors), report


def build_skeleton(e: ExperimentConfig) -> Detector:
    """The experiment's detector on torch's meta device: shapes without memory."""
    with torch.device("meta"):
        return build_detector(e, pretrained=False)[0].eval()


def _build_part(name: str, e: ExperimentConfig, levels: list[Level]) -> nn.Module | None:
    """Build one part of the detector for the given levels. None if the experiment has no such part."""
    if name == "adapter":
        a = e.adapter
        return Adapter(levels, a.kind, a.channels, a.activation, a.l2_norm, vars(a))
    if name == "extras":
        return ExtraLevels(levels, e.extras.channels, e.extras.strides) if e.extras.strides else None
    return build_neck(e, levels)


_OF_NECK = (
    *("channels", "upsample", "downsample", "fusion", "convolution", "activation", "activation_first", "repeats"),
    *("project", "extra_levels"),
)


def build_neck(e: ExperimentConfig, levels: list[Level]) -> GraphNeck | None:
    """The experiment's neck on these levels, None without a topology.

    Raises:
        ConfigError: where levels and topology do not fit together.
    """
    n = e.neck
    if n.topology not in TOPOLOGIES:
        return None
    try:
        given = {"num_levels": len(levels) + n.extra_levels} | ({"outputs": n.outputs} if n.outputs else {})
        topology: Topology = TOPOLOGIES.make(n.topology, vars(n), **given)
        if n.outputs is not None:
            topology = replace(topology, returned=n.outputs)
        neck = GraphNeck(levels, topology, arguments=vars(n), **{key: getattr(n, key) for key in _OF_NECK})
    except ValueError as error:
        raise ConfigError(f"{e.name}: group `neck`: {error}") from error
    set_batch_norm(neck, n.norm_eps, n.norm_momentum)
    return neck


def build_head(e: ExperimentConfig, levels: list[Level], anchors_per_position: int) -> nn.Module:
    """The experiment's head; the class loss decides whether background is a class.

    Raises:
        ConfigError: levels that the head cannot share.
    """
    loss = build_class_loss(e)
    classes = len(e.data.classes)
    num_classes = {"softmax": classes + 1, "sigmoid": classes, "either": 2 * classes}[loss.activation]
    try:
        (head,) = make(
            e.head, levels=levels, anchors_per_position=anchors_per_position, num_classes=num_classes, prior=loss.prior
        )
    except ValueError as error:
        raise ConfigError(f"{e.name}: key `head.kind`: {error}") from error
    assert isinstance(head, nn.Module)
    return head


def build_stream(e: ExperimentConfig, in_channels: int, pretrained: bool) -> tuple[nn.Module, LoadReport | None]:
    """The experiment's backbone with weights, norms and selected levels."""
    b = e.backbone
    backbone = build_backbone(e, in_channels)
    if b.norm != "batch" and not any(isinstance(part, nn.BatchNorm2d) for part in backbone.modules()):
        raise ConfigError(f"{e.name}: key `backbone.norm`: {b.name} has no batch norms; set it to batch, not {b.norm}")
    report = load_pretrained(backbone, b.name, b.pretrained) if pretrained else None
    replace_batch_norm(backbone, b.norm)
    if b.levels is not None and not BACKBONES.takes(b.name, "levels"):
        try:
            backbone = Selected(backbone, b.levels, in_channels)
        except ValueError as error:
            raise ConfigError(f"{e.name}: key `backbone.levels`: {error}") from error
    return backbone, report


def build_fusion(e: ExperimentConfig, pretrained: bool) -> tuple[HalfwayFusion, LoadReport | None]:
    """Halfway fusion: two streams up to level ``fusion.up_to``, then one trunk."""
    whole, report = build_stream(e, 3, pretrained)
    levels, f = _levels_of(whole), e.fusion
    fused = len(levels) if f.up_to is None else f.up_to + 1
    shared_from = 0 if f.shared else fused if f.shared_from is None else f.shared_from
    names = [f"{i} ({level.name})" for i, level in enumerate(levels)]
    if not 1 <= fused <= len(levels):
        raise ConfigError(f"{e.name}: key `fusion.up_to`: {f.up_to} is not one of the levels {', '.join(names)}")
    if f.shared_from is not None and f.shared_from >= fused:
        of = ", ".join(names[:fused])
        raise ConfigError(f"{e.name}: key `fusion.shared_from`: {shared_from} is not one of the streams' levels {of}")
    hands_back = getattr(maker(STREAM_FUSIONS[f.name]), "hands_back", False)
    places = sorted({0, shared_from, fused, *(range(fused) if hands_back else ())})
    if places[1] < len(levels) and isinstance(whole, Selected):
        raise ConfigError(f"{e.name}: key `backbone.levels`: {e.backbone.name} is cut at all its levels; set null")
    if places[1] < len(levels) and not declared(whole, "cut", "forward"):
        key = "name" if hands_back else "up_to" if fused < len(levels) else "shared_from"
        remedy = f"{f.name} hands maps back there" if hands_back else "take null, which keeps two whole streams"
        raise ConfigError(
            f"{e.name}: key `fusion.{key}`: {e.backbone.name} cannot be cut at its levels (no `cut` beside the "
            f"forward of {type(whole).__name__}); {remedy}"
        )

    def cut(stream: Any, start: int, stop: int) -> nn.Module:
        part: nn.Module = stream if stop - start == len(levels) else stream.cut(start, stop)
        return part

    lwir = whole
    if shared_from > 0:
        lwir, of_lwir = build_stream(e, 1, pretrained)
        if report is not None and of_lwir is not None:
            report = replace(report, adapted=of_lwir.adapted)
    stages = [
        [cut(stream, *part) for stream in ((whole, lwir) if part[0] < shared_from else (whole,))]
        for part in pairwise(places)
    ]
    fuse = [make(f, channels=level.channels, stride=level.stride)[0] for level in levels[:fused]]
    if not hands_back and any(getattr(module, "hands_back", False) for module in fuse):
        raise ConfigError(f"{e.name}: key `fusion.name`: hands_back of {f.name} must be an attribute of its class")
    trunk = None if fused == len(levels) else cut(whole, fused, len(levels))
    return HalfwayFusion(stages, fuse, trunk, levels), report


def build_backbone(e: ExperimentConfig, in_channels: int) -> nn.Module:
    """The experiment's backbone with random weights and all its levels.

    Raises:
        ConfigError: an argument does not fit, or it is no backbone.
    """
    try:
        (backbone,) = make(e.backbone, name=e.backbone.name, in_channels=in_channels, levels=e.backbone.levels)
    except ValueError as error:
        raise ConfigError(f"{e.name}: group `backbone`: {error}") from error
    if not isinstance(backbone, nn.Module) or not _levels_of(backbone):
        raise ConfigError(
            f"{e.name}: key `backbone.name`: {e.backbone.name} must be a torch module with `levels`, a list with a "
            "Level for each map that it returns"
        )
    return backbone


def _levels_of(backbone: nn.Module) -> list[Level]:
    levels = getattr(backbone, "levels", None)
    return [level for level in levels if isinstance(level, Level)] if isinstance(levels, list | tuple) else []


def build_normalize(e: ExperimentConfig) -> Normalize:
    """Normalisation of the modality's channels. Mean 0 and std 1 if switched off."""
    channels = CHANNELS[e.input.modality]
    if not e.input.normalize:
        return Normalize([0.0] * len(channels), [1.0] * len(channels))
    assert e.input.mean is not None and e.input.std is not None  # load_experiment fills them
    return Normalize([e.input.mean[c] for c in channels], [e.input.std[c] for c in channels])


def build_class_loss(e: ExperimentConfig) -> ClassLoss:
    (loss,) = make(e.class_loss, variances=_variances(e))
    assert isinstance(loss, ClassLoss)
    return loss


def build_criterion(e: ExperimentConfig) -> DetectionLoss:
    variances = _variances(e)
    (box_loss,), (matcher,) = make(e.box_loss, variances=variances), make(e.matcher, variances=variances)
    return DetectionLoss(build_class_loss(e), box_loss, matcher, box_weight=e.box_loss.weight)


def build_postprocess(e: ExperimentConfig) -> PostProcess:
    return PostProcess(**vars(e.postprocess), activation=build_class_loss(e).activation, variances=_variances(e))


def build_transforms(e: ExperimentConfig, stage: str) -> Compose:
    """Transforms of a stage; augmentation only for ``train``."""
    size, changes = as_size(e.input.size), make(e.augment) if stage == "train" else []
    late = [change for change in changes if getattr(change, "after_resize", False)]
    chain: list[Transform] = [c for c in changes if c not in late]
    chain += [Resize(size, e.input.fit), *late]
    return Compose((*chain, Pad(size, build_padding(e))) if e.input.fit == "letterbox" else tuple(chain))


def build_padding(e: ExperimentConfig) -> tuple[int, int, int, int]:
    """R, G, B, LWIR of padding. The mean, 0 after normalisation (to half a grey level) as convolutions pad maps."""
    red, green, blue, lwir = (round(255 * m) for m in e.input.mean or ()) if e.input.normalize else (0, 0, 0, 0)
    return red, green, blue, lwir


def build_classes(e: ExperimentConfig) -> Classes:
    """The detector's classes, and the data's labels of each."""
    return Classes({name: tuple(labels) for name, labels in e.data.classes.items()})


def build_reading(e: ExperimentConfig) -> Reading:
    """Settings for decoding the experiment's image files."""
    limits = e.data.lwir_range
    return Reading((limits[0], limits[1]) if limits else None, e.data.orientation)


def build_source(e: ExperimentConfig, stage: str) -> DataSource:
    """Location and format of the data of a stage."""
    d, root = e.data, Path(e.data.root)
    folder = root / d.annotations_dir if d.annotations_dir else None
    source = DataSource(d.kind, root, d.annotations, folder, d.images, build_reading(e), build_classes(e), d.box_of)
    of_val = d.val_annotations or d.train_annotations
    own = {"train": d.train_annotations, "val": of_val, "test": d.test_annotations}[stage]
    return source.annotated(own) if own else source


def build_annotations(e: ExperimentConfig, stage: str) -> str:
    """Annotations of a stage's split. File or folder, and which box of a pair."""
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
    """Data set of the stage ``train``, ``val`` or ``test``."""
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


def parameter_groups(e: ExperimentConfig, detector: nn.Module) -> list[dict[str, Any]]:
    """Trainable parameters grouped by learning rate, each group with a ``name``.

    Biases (of convolutions and norms) take ``bias_lr_factor`` times the rate. Unlike in Caffe's SSD, biases and batch
    norm's factors decay like other weights unless ``decay_norms`` is off.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in detector.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "backbone" if name.startswith("backbone.") and not name.startswith("backbone.fuse.") else "head"
        is_bias = name.endswith(".bias")
        undecayed = parameter.ndim <= 1 and not e.optimizer.decay_norms
        key = part + ("_bias" if is_bias else "_norm" if undecayed else "")
        lr = e.optimizer.lr * (e.optimizer.backbone_lr_factor if part == "backbone" else 1)
        new = {
            "name": key,
            "params": [],
            "lr": lr * (e.optimizer.bias_lr_factor if is_bias else 1),
            "weight_decay": 0.0 if undecayed else e.optimizer.weight_decay,
        }
        groups.setdefault(key, new)["params"].append(parameter)
    return list(groups.values())


def build_optimizer(e: ExperimentConfig, detector: nn.Module) -> torch.optim.Optimizer:
    (optimizer,) = make(e.optimizer, params=parameter_groups(e, detector), lr=e.optimizer.lr)
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def build_schedule(
    e: ExperimentConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Learning-rate schedule over all ``steps`` of a run.

    A ``ReduceLROnPlateau`` is stepped per validation instead, by ``schedule.monitor``.
    """
    (schedule,) = make(e.schedule, optimizer=optimizer, steps=steps, warmup_steps=e.schedule.warmup_steps)
    assert isinstance(schedule, torch.optim.lr_scheduler.LRScheduler)
    return schedule


def as_size(pair: list[int]) -> tuple[int, int]:
    """(height, width) of a checked config list."""
    height, width = pair
    return height, width


def _variances(e: ExperimentConfig) -> Variances:
    centre, size = e.anchors.variances
    return centre, size
