"""Reads experiments, runs and checkpoints of older schemas."""

from __future__ import annotations

import warnings
from typing import Any

from data_kaist.errors import Doubt
from ssd_effnet import registry
from ssd_effnet.config.yaml_files import ConfigError, nearest
from ssd_effnet.registry import Registry

RENAMED = {
    "augment.crop_probability": "augment.resized_crop.p",
    "augment.crop_ratio": "augment.resized_crop.ratio",
    "augment.crop_scale": "augment.resized_crop.scale",
    "augment.flip": "augment.flip.p",
    "augment.jitter": "augment.jitter.strength",
    "loss.alpha": "class_loss.alpha",
    "loss.gamma": "class_loss.gamma",
    "loss.iou_threshold": "matcher.iou_threshold",
    "loss.kind": "class_loss.name",
    "loss.localization": "box_loss.name",
    "loss.localization_delta": "box_loss.delta",
    "loss.localization_weight": "box_loss.weight",
    "loss.min_negatives": "class_loss.min_negatives",
    "loss.negative_iou": "matcher.negative_iou",
    "loss.negative_ratio": "class_loss.negative_ratio",
    "loss.prior": "class_loss.prior",
}
"""Keys of older schemas and what they are now."""
# of groups that held the arguments of all choices at once: what belonged to one of them
_FLAT: dict[str, tuple[Registry, tuple[str, ...]]] = {
    "backbone": (registry.BACKBONES, ("strides", "drop_connect")),
    "box_loss": (registry.BOX_LOSSES, ("delta",)),
    "class_loss": (registry.CLASS_LOSSES, ("alpha", "gamma", "prior", "negative_ratio", "min_negatives")),
    "optimizer": (registry.OPTIMIZERS, ("momentum",)),
    "schedule": (
        registry.SCHEDULES,
        ("milestones", "gamma", "patience", "monitor", "final_lr_factor"),
    ),
}
_CROPS = {"none": (), "resized": ("resized_crop",), "ssd": ("expand", "ssd_crop")}


def translated(layer: dict[str, Any], augmentations: list[str], source: str) -> dict[str, Any]:
    """A file's or checkpoint's content under the keys of this schema.

    A whole experiment of an older schema also holds arguments of what it does not name, which nothing read: they are
    left out. In a part of one they stay, and the schema refuses them.

    Args:
        layer: the content; it stays as it is.
        augmentations: those of the experiment before this content is applied.
        source: for a doubt.
    """
    head, data = layer.get("head"), layer.get("data", {})
    if isinstance(data, dict) and data.get("cache") == "disk":
        layer = layer | {"data": (data := data | {"cache": "memory"})}
        warnings.warn(f"{source}: data.cache: disk is no more; frames are kept in memory", Doubt, stacklevel=2)
    if isinstance(data, dict) and "cache_folder" in data:
        layer = layer | {"data": (data := {k: v for k, v in data.items() if k != "cache_folder"})}
    if isinstance(head, dict) and isinstance(head.get("classes"), list) and isinstance(data, dict):
        classes = {"classes": {str(name): [name] for name in head["classes"]}}
        layer = {**layer, "head": {k: v for k, v in head.items() if k != "classes"}, "data": classes | data}
    augment, loss = layer.get("augment"), layer.get("loss")
    old_augment = isinstance(augment, dict) and (
        augment.keys() & {"crop", "crop_scale", "crop_ratio", "crop_probability"}
        or any(not isinstance(augment.get(key, {}), dict) for key in ("jitter", "flip"))
    )
    if not isinstance(loss, dict) and not old_augment:
        return layer
    whole = isinstance(loss, dict) and {"kind", "alpha", "negative_ratio", "localization"} <= loss.keys()
    groups = {key: dict(value) if isinstance(value, dict) else value for key, value in layer.items() if key != "loss"}
    if isinstance(augment, dict) and old_augment:
        names = list(augmentations)
        if "crop" in augment:
            crops = _CROPS.get(str(augment["crop"]), (str(augment["crop"]),))
            names = [name for name in names if not any(name in some for some in _CROPS.values())]
            names[1 if "jitter" in names else 0 : 0] = crops
            del groups["augment"]["crop"]
        if "jitter" in names and str(augment.get("jitter")) in ("0", "0.0"):  # it draws no numbers
            names.remove("jitter")
            del groups["augment"]["jitter"]
        groups["augment"]["names"] = names
    if unknown := [key for key in loss if f"loss.{key}" not in RENAMED] if isinstance(loss, dict) else []:
        key = f"loss.{unknown[0]}"
        raise ConfigError(f"{source}: key `{key}` is unknown{nearest(key, list(RENAMED))}")
    for old, new in RENAMED.items():
        group, _, key = old.partition(".")
        stated = loss if group == "loss" else groups.get(group)
        if not isinstance(stated, dict) or key not in stated or isinstance(stated[key], dict):
            continue
        value = stated[key] if group == "loss" else stated.pop(key)
        *path, last = new.split(".")
        node = groups
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    if whole:
        for group, (of, keys) in _FLAT.items():
            taken = of.arguments(groups[group]["name"]) if groups.get(group, {}).get("name") in of else {}
            for key in set(keys) - taken.keys():
                groups.get(group, {}).pop(key, None)
        if "resized_crop" not in groups.get("augment", {}).get("names", augmentations):
            del groups["augment"]["resized_crop"]
        groups["changes"] = [RENAMED.get(key, key) for key in groups.get("changes") or []]
    return groups
