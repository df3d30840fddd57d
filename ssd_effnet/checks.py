"""What can be wrong with an experiment whose keys have the right types: values, and keys that do not go together."""

from __future__ import annotations

import math

from ssd_effnet.keys import settings
from ssd_effnet.schema import ExperimentConfig
from ssd_effnet.yaml_files import ConfigError

_AT_LEAST: dict[str, float] = {
    "adapter.channels": 1,
    "data.workers": 0,
    "extras.channels": 2,
    "head.layers": 1,
    "loss.min_negatives": 0,
    "loss.negative_ratio": 0,
    "neck.repeats": 1,
    "optimizer.accumulate": 1,
    "optimizer.gradient_clip": 0,
    "optimizer.weight_decay": 0,
    "postprocess.pre_nms_top_k": 1,
    "postprocess.top_k": 1,
    "schedule.patience": 0,
    "schedule.warmup_steps": 0,
    "trainer.batch_size": 1,
    "trainer.devices": 1,
    "trainer.epochs": 1,
    "trainer.num_nodes": 1,
    "trainer.panel_images": 0,
    "trainer.seed": 0,
    "trainer.threads": 0,
    "trainer.validate_every": 1,
}
_SHARES = (
    *("augment.crop_probability", "augment.flip", "augment.jitter", "loss.iou_threshold", "optimizer.momentum"),
    *("postprocess.nms_iou", "postprocess.score_threshold", "schedule.final_lr_factor"),
)
_TOO_LARGE = 2**31  # of any whole number
_LONGEST_LIST = 100


def check_experiment(e: ExperimentConfig, source: str) -> None:
    """What types alone cannot say.

    Raises:
        ConfigError: one sentence naming the source, the key and what would be right.
    """

    def refuse(key: str, why: str) -> None:
        raise ConfigError(f"{source}: key `{key}`: {why}")

    values = settings(e)
    for key, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                refuse(key, f"must be finite, not {value}")
            if isinstance(number, int) and abs(number) >= _TOO_LARGE:
                refuse(key, f"must be below {_TOO_LARGE:,}, not {value}")
        if isinstance(value, list) and len(value) > _LONGEST_LIST:
            refuse(key, f"must hold at most {_LONGEST_LIST} values, not {len(value):,}")
    if e.name in ("", ".", "..") or "/" in e.name or "\0" in e.name or len(e.name.encode(errors="replace")) > 200:
        refuse("name", f"must be the name of a folder below --out, not {e.name!r}")
    for key, pair in (("input.size", e.input.size), ("anchors.reference_size", e.anchors.reference_size)):
        if pair is not None and (len(pair) != 2 or min(pair) < 32 or max(pair) > 16384):
            refuse(key, f"must be [height, width] of 32 to 16384 pixels each, not {pair}")
    for key, four in (("input.mean", e.input.mean), ("input.std", e.input.std)):
        if len(four) != 4:
            refuse(key, f"must be four numbers (R, G, B, LWIR), not {four}")
    if min(e.input.std) <= 0:
        refuse("input.std", f"must be above 0, not {e.input.std}")
    if not e.head.classes:
        refuse("head.classes", "must name at least one class")
    if len(e.augment.crop_scale) != 2 or len(e.augment.crop_ratio) != 2:
        refuse("augment.crop_scale", "and augment.crop_ratio must be [smallest, largest]")
    for key, limits in (("augment.crop_scale", e.augment.crop_scale), ("augment.crop_ratio", e.augment.crop_ratio)):
        if not 0 < limits[0] <= limits[1]:
            refuse(key, f"must be [smallest, largest], both above 0, not {limits}")
    if not all(min(values[f"anchors.{key}"], default=0) > 0 for key in ("sizes", "ratios", "scales")):
        refuse("anchors.sizes", "anchors.ratios and anchors.scales must be positive and not empty")
    if len(e.anchors.variances) != 2 or min(e.anchors.variances) <= 0:
        refuse("anchors.variances", f"must be two numbers above 0 (centre, size), not {e.anchors.variances}")
    if e.loss.negative_iou is not None and not 0 <= e.loss.negative_iou <= e.loss.iou_threshold:
        refuse("loss.negative_iou", f"must be from 0 to loss.iou_threshold, not {e.loss.negative_iou}")
    if not 0 < e.loss.prior < 1:
        refuse("loss.prior", f"must be above 0 and below 1, not {e.loss.prior}")
    if e.loss.localization_delta <= 0:
        refuse("loss.localization_delta", f"must be above 0, not {e.loss.localization_delta}")
    if e.neck.topology == "none" and e.adapter.after_neck:
        refuse("adapter.after_neck", "needs a neck; set neck.topology")
    for key, least in _AT_LEAST.items():
        if values[key] < least:
            refuse(key, f"must be at least {least}, not {values[key]}")
    for key in _SHARES:
        if not 0 <= values[key] <= 1:
            refuse(key, f"must lie in 0..1, not {values[key]}")
    if min(e.extras.strides, default=1) < 1:
        refuse("extras.strides", f"must be at least 1 each, not {e.extras.strides}")
    if e.optimizer.lr <= 0:
        refuse("optimizer.lr", f"must be above 0, not {e.optimizer.lr}")
    if not 0 <= e.trainer.ema_decay < 1:
        refuse("trainer.ema_decay", f"must be at least 0 and below 1, not {e.trainer.ema_decay}")
    if e.fusion.kernel_size not in (1, 3):
        refuse("fusion.kernel_size", f"must be 1 or 3, not {e.fusion.kernel_size}")
    if e.schedule.name == "plateau" and not e.data.val:
        refuse("schedule.name", f"plateau watches {e.schedule.monitor}, but data.val names no validation split")
    if e.schedule.name == "plateau" and e.schedule.warmup_steps:
        refuse("schedule.warmup_steps", "must be 0 with plateau, which knows nothing of steps")
    if e.trainer.validate_every > e.trainer.epochs and e.data.val:
        refuse(
            "trainer.validate_every", f"must be at most trainer.epochs ({e.trainer.epochs}), or nothing is validated"
        )
    if not all(0 <= share <= 1 for share in e.schedule.milestones):
        refuse("schedule.milestones", f"must be shares of the run in 0..1, not {e.schedule.milestones}")
    if not 0 < e.schedule.gamma < 1:
        refuse("schedule.gamma", f"must lie between 0 and 1, not {e.schedule.gamma}")
    if e.backbone.norm == "frozen" and e.backbone.pretrained == "none":
        refuse("backbone.norm", "frozen needs weights that bring statistics to freeze; set backbone.pretrained")
    if e.data.test and e.data.test == e.data.val and e.trainer.test_checkpoint == "best":
        refuse("data.val", "is the test split, which must not choose the epoch; set trainer.test_checkpoint: last")
