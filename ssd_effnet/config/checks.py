"""Checks of an experiment's values and of keys that depend on each other."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from ssd_effnet.config.groups import make
from ssd_effnet.config.keys import fields_of, settings
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import ConfigError, nearest
from ssd_effnet.evaluation.metrics import monitors
from ssd_effnet.registry import SCHEDULES

# of a number, or of each one in a list; what is null has no limits. Arguments of entries bring their own.
_RULES = {
    "adapter.channels": "at least 1",
    "anchors.ratios": "above 0",
    "anchors.reference_size": "at least 32, at most 16384",
    "anchors.scales": "above 0",
    "anchors.sizes": "above 0",
    "anchors.variances": "above 0",
    "box_loss.weight": "at least 0",
    "data.lwir_quantiles": "in 0..1",
    "data.min_height": "at least 0",
    "data.workers": "at least 0",
    "extras.channels": "at least 2",
    "extras.strides": "at least 1",
    "fusion.up_to": "at least 0",
    "head.layers": "at least 1",
    "input.size": "at least 32, at most 16384",
    "input.std": "above 0",
    "neck.channels": "at least 1",
    "neck.extra_levels": "at least 0",
    "neck.norm_eps": "above 0",
    "neck.norm_momentum": "in 0..1",
    "neck.outputs": "at least 1",
    "neck.repeats": "at least 1",
    "optimizer.accumulate": "at least 1",
    "optimizer.backbone_lr_factor": "at least 0",
    "optimizer.bias_lr_factor": "at least 0",
    "optimizer.gradient_clip": "at least 0",
    "optimizer.lr": "above 0",
    "optimizer.weight_decay": "at least 0",
    "postprocess.nms_iou": "in 0..1",
    "postprocess.pre_nms_top_k": "at least 1",
    "postprocess.score_threshold": "in 0..1",
    "postprocess.top_k": "at least 1",
    "schedule.warmup_steps": "at least 0",
    "trainer.batch_size": "at least 1",
    "trainer.devices": "at least 1",
    "trainer.ema_decay": "at least 0, below 1",
    "trainer.epochs": "at least 1",
    "trainer.num_nodes": "at least 1",
    "trainer.panel_images": "at least 0",
    "trainer.process_timeout": "above 0",
    "trainer.seed": "at least 0",
    "trainer.threads": "at least 0",
    "trainer.validate_every": "at least 1",
}
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}
_NOT_EMPTY = ("anchors.ratios", "anchors.scales", "anchors.sizes", "data.classes", "data.train")
_FORMS: dict[str, tuple[int, str]] = {
    "anchors.reference_size": (2, "[height, width]"),
    "anchors.variances": (2, "two numbers (centre, size)"),
    "data.lwir_quantiles": (2, "[low, high]"),
    "data.lwir_range": (2, "[low, high]"),
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
    rules = _RULES | {key: field.metadata["rule"] for key, field in fields_of(e) if field.metadata.get("rule")}
    for key, why in chain(
        _storable(e.name, values), _lists(values, e), _numbers(values, rules), _combinations(e), _entries(e)
    ):
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


def _lists(values: dict[str, Any], e: ExperimentConfig) -> Complaints:
    for key in _NOT_EMPTY:
        if not values[key]:
            yield key, "must not be empty"
    lengths = {key: field.metadata["length"] for key, field in fields_of(e) if field.metadata.get("length")}
    for key, (length, form) in (_FORMS | {key: (n, f"{n} numbers") for key, n in lengths.items()}).items():
        if values[key] is not None and len(values[key]) != length:
            yield key, f"must be {form}, not {values[key]}"


def _numbers(values: dict[str, Any], rules: dict[str, str]) -> Complaints:
    for key, value in values.items():
        for rule in filter(None, rules.get(key, "").split(", ")):
            words, _, limit = rule.rpartition(" ")
            numbers = _each(value)
            if words == "in" and not all(0 <= number <= 1 for number in numbers):
                yield key, f"must lie {rule}, not {value}"
            elif words != "in" and not all(_HOLDS[words](number, float(limit)) for number in numbers):
                yield key, f"must be {rule}{' each' if isinstance(value, list) else ''}, not {value}"


def _combinations(e: ExperimentConfig) -> Complaints:
    watchable = monitors(tuple(e.data.classes))
    watched = {"trainer.monitor": e.trainer.monitor, "schedule.monitor": getattr(e.schedule, "monitor", None)}
    for key, monitor in watched.items():
        if monitor is not None and monitor not in watchable:
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
    for key, ends in (("data.lwir_range", e.data.lwir_range), ("data.lwir_quantiles", e.data.lwir_quantiles)):
        if ends is not None and ends[0] >= ends[1]:
            yield key, f"must be [low, high], low below high, not {ends}"
    for key in ("train_annotations", "val_annotations", "test_annotations"):
        if e.data.kind == "coco" and getattr(e.data, key):
            yield f"data.{key}", "is for data.kind: kaist; of coco each split's JSON file holds its annotations"
    if e.neck.topology == "none" and e.adapter.after_neck:
        yield "adapter.after_neck", "needs a neck; set neck.topology"
    if e.fusion.kernel_size not in (1, 3):
        yield "fusion.kernel_size", f"must be 1 or 3, not {e.fusion.kernel_size}"
    if watched["schedule.monitor"] and not e.data.val:
        yield (
            "schedule.name",
            f"{e.schedule.name} watches {watched['schedule.monitor']}, but data.val names no validation split",
        )
    if e.schedule.warmup_steps and not SCHEDULES.takes(e.schedule.name, "warmup_steps"):
        yield "schedule.warmup_steps", f"must be 0 with {e.schedule.name}, which knows nothing of steps"
    if e.trainer.validate_every > e.trainer.epochs and e.data.val:
        most = f"must be at most trainer.epochs ({e.trainer.epochs})"
        yield "trainer.validate_every", f"{most}, or nothing is validated"
    if e.backbone.norm == "frozen" and e.backbone.pretrained == "none" and not e.init_from:
        yield "backbone.norm", "frozen needs weights that bring statistics to freeze; set backbone.pretrained"
    if e.data.test and e.data.test == e.data.val and e.trainer.test_checkpoint == "best":
        yield "data.val", "is the test split, which must not choose the epoch; set trainer.test_checkpoint: last"


def _entries(e: ExperimentConfig) -> Complaints:
    """What constructors refuse that need nothing but the config."""
    for key in ("augment", "matcher", "class_loss", "box_loss"):
        try:
            make(getattr(e, key), variances=tuple(e.anchors.variances))
        except ValueError as error:
            yield key, str(error)


def _each(value: Any) -> list[Any]:
    """The values of a list; a single one as a list, and nothing for null."""
    return value if isinstance(value, list) else [] if value is None else [value]
