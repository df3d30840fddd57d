"""Checks an experiment's values, and keys that depend on each other."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from itertools import chain
from typing import Any

from data_kaist.classes import PERSON, label_key
from ssd_effnet.config.groups import make
from ssd_effnet.config.keys import fields_of, settings
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import ConfigError, nearest
from ssd_effnet.evaluation.metrics import monitors
from ssd_effnet.registry import SCHEDULES

_HOLDS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}

Complaints = Iterator[tuple[str, str]]
"""A key, and what would be right."""


def check_experiment(e: ExperimentConfig, source: str) -> None:
    """Check values beyond their types. A ConfigError names the source, the key and valid values."""
    values = settings(e)
    for key, why in chain(_storable(e.name, values), _limits(values, e), _combinations(e), _entries(e)):
        raise ConfigError(f"{source}: key `{key}`: {why}")


def _storable(name: str, values: dict[str, Any]) -> Complaints:
    """Refuse numbers that are not finite, and names that are no folder's."""
    for key, value in values.items():
        for number in _each(value):
            if isinstance(number, float) and not math.isfinite(number):
                yield key, f"must be finite, not {value}"
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode(errors="replace")) > 200:
        yield "name", f"must be the name of a folder below --out, not {name!r}"


def _limits(values: dict[str, Any], e: ExperimentConfig) -> Complaints:
    """Limits of each key, from the schema or an argument's annotation."""
    for key, field in fields_of(e).items():
        value, names = values[key], field.metadata.get("names", "")
        length = len(names.split(", ")) if names else field.metadata.get("length")
        if value is not None and length and len(value) != length:
            yield key, f"must be {f'[{names}]' if names else f'{length} numbers'}, not {value}"
        for rule in filter(None, field.metadata.get("rule", "").split(", ")):
            words, _, limit = rule.rpartition(" ")
            if rule == "not empty":
                if not value:
                    yield key, "must not be empty"
            elif words == "in" and not all(0 <= number <= 1 for number in _each(value)):
                yield key, f"must lie {rule}, not {value}"
            elif words != "in" and not all(_HOLDS[words](number, float(limit)) for number in _each(value)):
                yield key, f"must be {rule}{' each' if isinstance(value, list) else ''}, not {value}"


def watched_metrics(e: ExperimentConfig) -> dict[str, str]:
    """Logged names of the metrics that choose an epoch or lower the rate, by their key."""
    watched = {"trainer.monitor": e.trainer.monitor, "schedule.monitor": getattr(e.schedule, "monitor", None)}
    return {key: monitor for key, monitor in watched.items() if monitor is not None}


def _combinations(e: ExperimentConfig) -> Complaints:
    watchable, watched = monitors(tuple(e.data.classes)), watched_metrics(e)
    for key, monitor in watched.items():
        if monitor not in watchable:
            own = [name for name in watchable if "/MR/" not in name]
            yield key, f"{monitor!r} is not one of val/MR/SUBSET, {', '.join(own)}{nearest(monitor, watchable)}"
    owner: dict[str, str] = {}
    for name, labels in e.data.classes.items():
        if not name.strip() or "/" in name or not labels:
            example = "names without / and labels of each, as {person: [person]}"
            yield "data.classes", f"needs {example}, not {e.data.classes}"
        for label in labels:
            if (other := owner.setdefault(label_key(label), name)) != name:
                yield "data.classes", f"the label {label!r} belongs to both {other} and {name}"
    for name in e.data.classes:  # in result files the class with this label has it as its name
        if label_key(name) == PERSON and owner.get(PERSON, name) != name:
            yield "data.classes", f"{name} lacks the label {PERSON}, which {owner[PERSON]} has; call {name} otherwise"
    for key, ends in (("data.lwir_range", e.data.lwir_range), ("data.lwir_quantiles", e.data.lwir_quantiles)):
        if ends is not None and ends[0] >= ends[1]:
            yield key, f"must be [low, high], low below high, not {ends}"
    for key in ("train_annotations", "val_annotations", "test_annotations"):
        if e.data.kind == "coco" and getattr(e.data, key):
            yield f"data.{key}", "is for data.kind: kaist; of coco each split's JSON file holds its annotations"
    if e.neck.topology == "none" and e.adapter.after_neck:
        yield "adapter.after_neck", "needs a neck; set neck.topology"
    if e.fusion.name == "concat" and (size := getattr(e.fusion, "kernel_size", 1)) not in (1, 3):
        yield "fusion.kernel_size", f"must be 1 or 3, not {size}"
    if e.fusion.shared and e.fusion.shared_from:
        yield "fusion.shared_from", "must be null with fusion.shared, which shares all levels"
    if "schedule.monitor" in watched and not e.data.val:
        watches = f"{e.schedule.name} watches {watched['schedule.monitor']}"
        yield "schedule.name", f"{watches}, but data.val names no validation split"
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
    """Errors of constructors that need only the config."""
    for key in ("augment", "matcher", "class_loss", "box_loss"):
        try:
            make(getattr(e, key), variances=tuple(e.anchors.variances))
        except ValueError as error:
            yield key, str(error)


def _each(value: Any) -> list[Any]:
    """A key's value as a list, which is empty for null."""
    return value if isinstance(value, list) else [] if value is None else [value]
