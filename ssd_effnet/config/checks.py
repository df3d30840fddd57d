"""Checks of an experiment's values and of keys that depend on each other."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from ssd_effnet.config.keys import settings
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import ConfigError, nearest
from ssd_effnet.evaluation.metrics import monitors

# of a number, or of each one in a list; what is null has no limits
_AT_LEAST: dict[str, float] = {
    "adapter.channels": 1,
    "anchors.reference_size": 32,
    "data.min_height": 0,
    "data.workers": 0,
    "extras.channels": 2,
    "extras.strides": 1,
    "fusion.up_to": 0,
    "head.layers": 1,
    "input.size": 32,
    "loss.gamma": 0,
    "loss.localization_weight": 0,
    "loss.min_negatives": 0,
    "loss.negative_ratio": 0,
    "neck.channels": 1,
    "neck.extra_levels": 0,
    "neck.outputs": 1,
    "neck.repeats": 1,
    "optimizer.accumulate": 1,
    "optimizer.backbone_lr_factor": 0,
    "optimizer.bias_lr_factor": 0,
    "optimizer.gradient_clip": 0,
    "optimizer.weight_decay": 0,
    "postprocess.pre_nms_top_k": 1,
    "postprocess.top_k": 1,
    "schedule.patience": 0,
    "schedule.warmup_steps": 0,
    "trainer.batch_size": 1,
    "trainer.devices": 1,
    "trainer.ema_decay": 0,
    "trainer.epochs": 1,
    "trainer.num_nodes": 1,
    "trainer.panel_images": 0,
    "trainer.seed": 0,
    "trainer.threads": 0,
    "trainer.validate_every": 1,
}
_ABOVE_0 = (
    *("anchors.ratios", "anchors.scales", "anchors.sizes", "anchors.variances"),
    *("augment.crop_ratio", "augment.crop_scale", "input.std"),
    *("loss.iou_threshold", "loss.localization_delta", "loss.negative_iou", "loss.prior"),
    *("neck.norm_eps", "optimizer.lr", "schedule.gamma", "trainer.process_timeout"),
)
_AT_MOST: dict[str, float] = {"anchors.reference_size": 16384, "input.size": 16384}
_BELOW_1 = ("loss.prior", "schedule.gamma", "trainer.ema_decay")
_LIMITS: tuple[tuple[str, Callable[[float, float], bool], dict[str, float]], ...] = (
    ("at least", operator.ge, _AT_LEAST),
    ("above", operator.gt, dict.fromkeys(_ABOVE_0, 0)),
    ("at most", operator.le, _AT_MOST),
    ("below", operator.lt, dict.fromkeys(_BELOW_1, 1)),
)
_SHARES = (
    *("augment.crop_probability", "augment.flip", "augment.jitter", "loss.alpha", "loss.iou_threshold"),
    *(
        "data.lwir_quantiles",
        "neck.norm_momentum",
        "optimizer.momentum",
        "postprocess.nms_iou",
        "postprocess.score_threshold",
    ),
    "schedule.final_lr_factor",
)
_NOT_EMPTY = ("anchors.ratios", "anchors.scales", "anchors.sizes", "data.classes", "data.train")
_FORMS: dict[str, tuple[int, str]] = {
    "anchors.reference_size": (2, "[height, width]"),
    "anchors.variances": (2, "two numbers (centre, size)"),
    "augment.crop_ratio": (2, "[smallest, largest]"),
    "data.lwir_quantiles": (2, "[low, high]"),
    "data.lwir_range": (2, "[low, high]"),
    "augment.crop_scale": (2, "[smallest, largest]"),
    "input.mean": (4, "four numbers (R, G, B, LWIR)"),
    "input.size": (2, "[height, width]"),
    "input.std": (4, "four numbers (R, G, B, LWIR)"),
}
_TOO_LARGE = 2**31  # of any whole number
_LONGEST_LIST = 100

Complaints = Iterator[tuple[str, str]]
"""A key, and what would be right."""


def check_experiment(e: ExperimentConfig, source: str) -> None:
    """Check values beyond their types.

    Raises:
        ConfigError: one sentence naming the source, the key and valid values.
    """
    values = settings(e)
    for key, why in chain(_storable(e.name, values), _lists(values), _numbers(values), _combinations(e)):
        raise ConfigError(f"{source}: key `{key}`: {why}")


def _storable(name: str, values: dict[str, Any]) -> Complaints:
    """Refuse characters that cannot be stored or used as a folder name."""
    for key, value in values.items():
        for number in _each(value):
            if isinstance(number, float) and not math.isfinite(number):
                yield key, f"must be finite, not {value}"
            if isinstance(number, int) and abs(number) >= _TOO_LARGE:
                yield key, f"must be below {_TOO_LARGE:,}, not {value}"
        if isinstance(value, list) and len(value) > _LONGEST_LIST:
            yield key, f"must hold at most {_LONGEST_LIST} values, not {len(value):,}"
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode(errors="replace")) > 200:
        yield "name", f"must be the name of a folder below --out, not {name!r}"


def _lists(values: dict[str, Any]) -> Complaints:
    for key in _NOT_EMPTY:
        if not values[key]:
            yield key, "must not be empty"
    for key, (length, form) in _FORMS.items():
        if values[key] is not None and len(values[key]) != length:
            yield key, f"must be {form}, not {values[key]}"


def _numbers(values: dict[str, Any]) -> Complaints:
    for words, holds, limits in _LIMITS:
        for key, limit in limits.items():
            if not all(holds(number, limit) for number in _each(values[key])):
                each = " each" if isinstance(values[key], list) else ""
                yield key, f"must be {words} {limit}{each}, not {values[key]}"
    for key in _SHARES:
        if not all(0 <= number <= 1 for number in _each(values[key])):
            yield key, f"must lie in 0..1, not {values[key]}"


def _combinations(e: ExperimentConfig) -> Complaints:
    watchable = monitors(tuple(e.data.classes))
    for key, monitor in (("trainer.monitor", e.trainer.monitor), ("schedule.monitor", e.schedule.monitor)):
        if monitor not in watchable:
            own = [name for name in watchable if "/MR/" not in name]
            yield key, f"{monitor!r} is not one of val/MR/SUBSET, {', '.join(own)}{nearest(monitor, watchable)}"
    owner: dict[str, str] = {}
    for name, labels in e.data.classes.items():
        if not name.strip() or "/" in name or not labels:
            yield (
                "data.classes",
                f"needs names without / and labels of each, as {{person: [person]}}, not {e.data.classes}",
            )
        for label in labels:
            if owner.setdefault(label.strip().casefold(), name) != name:
                yield (
                    "data.classes",
                    f"the label {label!r} belongs to both {owner[label.strip().casefold()]} and {name}",
                )
    for key, limits in (("augment.crop_scale", e.augment.crop_scale), ("augment.crop_ratio", e.augment.crop_ratio)):
        if limits[0] > limits[1]:
            yield key, f"must be [smallest, largest], not {limits}"
    for key, ends in (("data.lwir_range", e.data.lwir_range), ("data.lwir_quantiles", e.data.lwir_quantiles)):
        if ends is not None and ends[0] >= ends[1]:
            yield key, f"must be [low, high], low below high, not {ends}"
    for key in ("train_annotations", "val_annotations", "test_annotations"):
        if e.data.kind == "coco" and getattr(e.data, key):
            yield f"data.{key}", "is for data.kind: kaist; of coco each split's JSON file holds its annotations"
    if e.loss.negative_iou is not None and e.loss.negative_iou > e.loss.iou_threshold:
        yield "loss.negative_iou", f"must be at most loss.iou_threshold, not {e.loss.negative_iou}"
    if e.neck.topology == "none" and e.adapter.after_neck:
        yield "adapter.after_neck", "needs a neck; set neck.topology"
    if e.fusion.kernel_size not in (1, 3):
        yield "fusion.kernel_size", f"must be 1 or 3, not {e.fusion.kernel_size}"
    if e.schedule.name == "plateau" and not e.data.val:
        yield "schedule.name", f"plateau watches {e.schedule.monitor}, but data.val names no validation split"
    if e.schedule.name == "plateau" and e.schedule.warmup_steps:
        yield "schedule.warmup_steps", "must be 0 with plateau, which knows nothing of steps"
    if not all(0 <= share <= 1 for share in e.schedule.milestones):
        yield "schedule.milestones", f"must be shares of the run in 0..1, not {e.schedule.milestones}"
    if e.trainer.validate_every > e.trainer.epochs and e.data.val:
        most = f"must be at most trainer.epochs ({e.trainer.epochs})"
        yield "trainer.validate_every", f"{most}, or nothing is validated"
    if e.backbone.norm == "frozen" and e.backbone.pretrained == "none" and not e.init_from:
        yield "backbone.norm", "frozen needs weights that bring statistics to freeze; set backbone.pretrained"
    if e.data.test and e.data.test == e.data.val and e.trainer.test_checkpoint == "best":
        yield "data.val", "is the test split, which must not choose the epoch; set trainer.test_checkpoint: last"


def _each(value: Any) -> list[Any]:
    """The values of a list; a single one as a list, and nothing for null."""
    return value if isinstance(value, list) else [] if value is None else [value]
