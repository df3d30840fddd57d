"""How a file becomes an experiment.

An experiment is a YAML file that names its ``base`` and then only what it changes. :func:`load_experiment` follows the
chain of bases, applies ``key=value`` overrides and checks everything against :mod:`ssd_effnet.schema`; whatever is
wrong is a :class:`ConfigError` that names the file, the key and the nearest right name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssd_effnet.files import write_whole
from ssd_effnet.schema import ExperimentConfig
from ssd_effnet.yaml_files import ConfigError, nearest, parse_yaml, read_yaml

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
WHERE = (
    *("data.cache", "data.cache_folder", "data.root", "data.workers"),
    *("trainer.accelerator", "trainer.panel_images", "trainer.runtime", "trainer.threads"),
)
"""Keys that say where and how comfortably a run was made, not what was made."""
_TOO_LARGE = 2**31  # of any whole number
_LONGEST_LIST = 100
_NOT_SETTINGS = ("base", "name", "description", "changes")


TINY = (
    "input.size=[128,160]",
    "backbone.pretrained=none",
    "backbone.norm=batch",
    "adapter.channels=32",
    "extras.channels=32",
    "trainer.batch_size=2",
    "trainer.epochs=1",
    "trainer.validate_every=1",
    "trainer.panel_images=2",
    "data.workers=0",
)
"""What makes any experiment small enough to try on a CPU whether it runs at all; its figures mean nothing."""


def load_experiment(path: str | Path, overrides: Sequence[str] = (), *, tiny: bool = False) -> ExperimentConfig:
    """Read an experiment file, its bases and ``key=value`` overrides.

    Args:
        path: a YAML file: an experiment, or the ``config.yaml`` of a run.
        overrides: dotted keys, YAML values: ``optimizer.lr=0.001``, ``input.size=[256,320]``.
        tiny: shrink it by :data:`TINY` (which overrides may change again) and append ``-tiny`` to its name.

    Raises:
        ConfigError: one sentence naming file (or override), key and the nearest right key or value.
    """
    path = Path(path)
    if not path.exists() and (meant := [p for p in (path.with_suffix(".yaml"), _named(path)) if p.is_file()]):
        raise ConfigError(f"{path}: there is no such experiment file; did you mean {meant[0]}?")
    config = OmegaConf.structured(ExperimentConfig)
    for layer_path, layer in reversed(_chain(path)):
        config = _merge(config, layer, str(layer_path))
    config.name = (config.name or path.stem) + ("-tiny" if tiny else "")
    for override in (*(TINY if tiny else ()), *overrides):
        config = _merge(config, _parse_override(override), f"override {override!r}")
    experiment = _to_dataclass(config, str(path))
    check_experiment(experiment, str(path))
    return experiment


def _named(path: Path) -> Path:
    """The project's experiment of this name, seen from the checkout."""
    return Path("experiments", f"{path.stem}.yaml")


def load_base(path: str | Path) -> ExperimentConfig:
    """What an experiment file starts from: its base, or the defaults where it names none."""
    chain = _chain(Path(path))
    return load_experiment(chain[1][0]) if len(chain) > 1 else ExperimentConfig()


def ancestors(path: str | Path) -> list[str]:
    """Names of the experiments that a file is a difference from, the nearest first."""
    return [base.stem for base, _ in _chain(Path(path))[1:]]


def save_experiment(experiment: ExperimentConfig, path: str | Path) -> None:
    """Write the resolved experiment; :func:`load_experiment` reads it back as it is."""
    write_whole(path, OmegaConf.to_yaml(OmegaConf.structured(experiment)))


def differences(a: ExperimentConfig, b: ExperimentConfig) -> list[str]:
    """Sorted dotted keys in which two experiments differ, names and descriptions apart."""
    left, right = settings(a), settings(b)
    return sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))


def varied(experiments: Sequence[ExperimentConfig]) -> list[str]:
    """Sorted keys that do not have the same value in all of them, seed and :data:`WHERE` apart."""
    first, *others = experiments
    keys = {key for other in others for key in differences(first, other)}
    return sorted(keys - {"trainer.seed", *WHERE})


def settings(experiment: ExperimentConfig) -> dict[str, Any]:
    """All settings as ``{dotted key: value}``, without name, description and changes."""
    return {
        f"{group.name}.{key}": value
        for group in dataclasses.fields(experiment)
        if group.name not in _NOT_SETTINGS
        for key, value in dataclasses.asdict(getattr(experiment, group.name)).items()
    }


def _chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and its bases, each with its content less ``base``; the file itself first."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    current = path
    while True:
        if any(current.resolve() == seen.resolve() for seen, _ in chain):
            raise ConfigError(f"{current}: `base` leads in a circle: {' -> '.join(str(p) for p, _ in chain)}")
        content = _read_layer(current)
        base = content.pop("base", None)
        if chain:  # a base's name, question and list of changes are its own
            content = {key: value for key, value in content.items() if key not in _NOT_SETTINGS}
        chain.append((current, content))
        if base is None:
            return chain
        if not isinstance(base, str):
            raise ConfigError(f"{current}: `base` must be the name of a file, not {base!r}")
        if not (current.parent / base).is_file():
            names = [p.name for p in sorted(current.parent.glob("*.yaml"))]
            raise ConfigError(f"{current}: base {base!r} is not beside it{nearest(base, names)}")
        current = current.parent / base


def _read_layer(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "experiment")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, not a {type(content).__name__}")
    return content


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        meant = f"{text}=VALUE, without a space" if text in settings(ExperimentConfig()) else "optimizer.lr=0.001"
        raise ConfigError(f"override {text!r}: must have the form key=value, for example {meant}")
    content: Any = parse_yaml(value, f"override {text!r}: the value") if value.strip() else ""
    for part in reversed(key.strip().split(".")):
        content = {part: content}
    assert isinstance(content, dict)
    return content


def _merge(config: DictConfig, layer: dict[str, Any], source: str) -> DictConfig:
    """Merge key by key, so that a complaint can name the very key."""
    for key, value in _leaves(layer, ExperimentConfig, source, ()):
        if isinstance(value, str):
            value = _as_float_if_that_is_meant(config, key, value)
        try:
            OmegaConf.update(config, key, value, merge=False)
        except (OmegaConfBaseException, ValueError, TypeError, OverflowError, RecursionError) as error:
            reason, wanted = str(error).splitlines()[0], _wanted(key)
            if wanted and isinstance(error, OmegaConfBaseException):
                reason = f"wants {wanted}, not {value!r}"
            choices = _choices(key)
            if choices:
                reason = f"{value!r} is not one of {', '.join(choices)}{nearest(str(value), choices)}"
            raise ConfigError(f"{source}: key `{key}`: {reason}") from error
    return config


def _type_of(key: str) -> Any:
    """The type that the schema gives a key of a group; None for others."""
    group, _, name = key.partition(".")
    return get_type_hints(type(getattr(ExperimentConfig(), group))).get(name) if name else None


def _choices(key: str) -> tuple[str, ...]:
    """The values that a key may have, where its type is a ``Literal``; else nothing."""
    return get_args(_type_of(key)) if get_origin(_type_of(key)) is Literal else ()


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_LISTS = {
    int: "a list of whole numbers, for example [256,320]",
    float: "a list of numbers, for example [0.5,1.0]",
    str: "a list of names, for example [person]",
}


def _wanted(key: str) -> str:
    """What a key's value must be, in words; empty where the schema says more than this knows."""
    kind = _type_of(key)
    options = [option for option in get_args(kind) or [kind] if option is not type(None)]
    if get_origin(kind) is list:
        return _LISTS.get(options[0], "")
    if get_origin(kind) is Literal or len(options) != 1:
        return ""
    (option,) = options
    said = _LISTS.get(get_args(option)[0], "") if get_origin(option) is list else _KINDS.get(option, "")
    return f"{said}, or null" if said and len(get_args(kind)) > 1 else said


def _as_float_if_that_is_meant(config: DictConfig, key: str, value: str) -> Any:
    """YAML 1.1 reads 1e-4 as text (it wants 1.0e-4); people mean the number."""
    if isinstance(OmegaConf.select(config, key), float):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _leaves(layer: dict[str, Any], schema: type, source: str, path: tuple[str, ...]) -> Iterable[tuple[str, Any]]:
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in layer.items():
        dotted = ".".join((*path, str(key)))
        if key not in fields:
            known = [".".join((*path, name)) for name in fields] + list(settings(ExperimentConfig()))
            raise ConfigError(f"{source}: key `{dotted}` is unknown{nearest(dotted, known)}")
        factory = fields[key].default_factory
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: key `{dotted}` is a group of settings, not a value ({value!r})")
            yield from _leaves(value, factory, source, (*path, str(key)))
        else:
            yield dotted, value


def _to_dataclass(config: DictConfig, source: str) -> ExperimentConfig:
    try:
        experiment = OmegaConf.to_object(config)
    except (OmegaConfBaseException, RecursionError) as error:  # ${...} that leads nowhere, ??? that nobody filled
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{source}: key `{key}`: {str(error).splitlines()[0]}") from error
    assert isinstance(experiment, ExperimentConfig)
    return experiment


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
