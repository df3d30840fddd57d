"""Search spaces: YAML files of dotted keys with ranges or choices.

    optimizer.lr: {low: 1e-4, high: 1e-2, log: true}
    optimizer.name: [sgd, rmsprop, adamw]
    schedule.warmup_steps: {low: 0, high: 200, step: 50}

Everything is checked against the schema before a trial is started.
"""

from __future__ import annotations

import json
import math
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ssd_effnet.config.keys import key_types, options
from ssd_effnet.config.loading import set_key
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import NULLS, ConfigError, nearest, read_yaml

_NOT_DRAWN = (
    *("data.allow_overlap", "data.annotations", "data.annotations_dir", "data.box_of", "data.classes", "data.images"),
    *("data.kind", "data.on_bad_frame", "data.train_annotations", "data.val_annotations", "data.test_annotations"),
    *("data.root", "data.test", "data.val", "trainer.devices", "trainer.monitor", "trainer.num_nodes", "trainer.seed"),
    *("trainer.test_checkpoint", "trainer.threads"),
)
_RANGE_KEYS = ("low", "high", "step", "log")

Space = dict[str, CategoricalDistribution | FloatDistribution | IntDistribution]
"""What each key is drawn from; choices as JSON, since Optuna stores no lists."""


def read_space(path: str | Path, base: ExperimentConfig | None = None) -> Space:
    """Read a space file around ``base``. ``{dotted key: how to draw it}`` in the order of the file."""
    path, base = Path(path), base or ExperimentConfig()
    content = read_yaml(path, "space")
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: must hold `key: what to draw` lines, for example `optimizer.name: [sgd, adamw]`")
    known, space, config = list(key_types(base)), Space(), OmegaConf.structured(base)
    for key, value in content.items():
        if key in _NOT_DRAWN:
            raise ConfigError(
                f"{path}: key `{key}` cannot be searched: it says what is measured, is chance, or is the machine's"
            )
        if key not in known:
            raise ConfigError(f"{path}: key `{key}` is unknown{nearest(str(key), known)}")
        space[key] = _distribution(config, str(path), key, value)
    return space


def _distribution(base: DictConfig, source: str, key: str, value: Any) -> Any:
    place = f"{source}: key `{key}`"
    if isinstance(value, list):
        return _choice(place, [_typed(base, source, key, one) for one in value])
    if isinstance(value, dict):
        return _range(place, key_types(base)[key], value)
    raise ConfigError(f"{place}: must be a list to choose from or {{low: ..., high: ...}}, not {value!r}")


def _typed(base: DictConfig, source: str, key: str, value: Any) -> Any:
    """The value as the experiment's schema takes it."""
    config = deepcopy(base)
    set_key(config, key, value, source)
    found = OmegaConf.select(config, key)
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


def _choice(place: str, values: list[Any]) -> CategoricalDistribution:
    if len(values) < 2:
        raise ConfigError(f"{place}: needs two values or more to choose from, not {values!r}")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ConfigError(f"{place}: {value!r} is a duplicate")
    return CategoricalDistribution([json.dumps(value) for value in values])


def _range(place: str, kind: Any, given: dict[Any, Any]) -> FloatDistribution | IntDistribution:
    """A number of ``low ... high``, both included: with a ``step`` between values, or drawn over the logarithm."""
    kinds = options(kind)
    if int not in kinds and float not in kinds:
        raise ConfigError(f"{place}: only numbers have a range; write a list to choose from")
    if unknown := [str(part) for part in given if part not in _RANGE_KEYS]:
        raise ConfigError(
            f"{place}: a range has low, high, step and log, not {unknown[0]!r}{nearest(unknown[0], _RANGE_KEYS)}"
        )
    if missing := [part for part in ("low", "high") if part not in given]:
        raise ConfigError(f"{place}: the range lacks {' and '.join(missing)}")
    whole = float not in kinds
    stated = {part: value for part, value in given.items() if value is not None and value not in NULLS}
    try:
        log = {"true": True, "false": False}[str(stated.pop("log", False)).lower()]
        numbers: dict[str, Any] = {part: int(value) if whole else float(value) for part, value in stated.items()}
        if not all(map(math.isfinite, numbers.values())):
            raise ValueError("not finite")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # high becomes the last value that steps lead to
            draw = IntDistribution(log=log, **numbers) if whole else FloatDistribution(log=log, **numbers)
    except (KeyError, TypeError, ValueError) as error:  # no numbers, low above high, log with a step or below 0
        kind_of = "whole numbers" if whole else "numbers"
        raise ConfigError(f"{place}: low, high and step are {kind_of}, log is true or false ({error})") from error
    if draw.single():
        raise ConfigError(f"{place}: from {draw.low} to {draw.high} there is nothing to draw")
    return draw
