"""Search spaces: YAML files of keys with ranges or choices.

    optimizer.lr: {low: 1e-4, high: 1e-2, log: true}
    optimizer.name: [sgd, rmsprop, adamw]
    schedule.warmup_steps: {low: 0, high: 200, step: 50}

Keys may be dotted or nested as in an experiment. Everything is checked against the schema before a trial
is started; whatever is wrong is a :class:`ConfigError` that names file, key and the nearest right
name.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ssd_effnet.config.keys import key_types, options
from ssd_effnet.config.loading import set_key
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import NULLS, ConfigError, as_written, nearest, read_yaml

_NOT_DRAWN = {
    "data.allow_overlap": "says what is measured",
    "data.annotations": "says what is measured",
    "data.images": "says what is measured",
    "data.kind": "says what is measured",
    "data.on_bad_frame": "says what is measured",
    "data.root": "says what is measured",
    "data.test": "must not choose anything",
    "data.val": "says what is measured",
    "data.classes": "says what is measured",
    "trainer.devices": "belongs to the machine",
    "trainer.monitor": "is what a search gets better at",
    "trainer.num_nodes": "belongs to the machine",
    "trainer.seed": "is chance; a search for the luckiest seed finds nothing",
    "trainer.test_checkpoint": "does not change a trial",
    "trainer.threads": "belongs to the machine",
}
_RANGE_KEYS = ("low", "high", "step", "log")

Space = dict[str, CategoricalDistribution | FloatDistribution | IntDistribution]
"""What each key is drawn from; choices as JSON, since Optuna stores no lists."""


def read_space(path: str | Path, base: ExperimentConfig | None = None) -> Space:
    """Read a space file: ``{dotted key: how to draw it}`` in the order of the file.

    Args:
        path: the file.
        base: the experiment that is searched around; None: the schema's defaults.

    Raises:
        ConfigError: one sentence that names the file, the key and, where there is one, the nearest right name.
    """
    path, base = Path(path), base or ExperimentConfig()
    content = read_yaml(path, "space")
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: must hold `key: what to draw` lines, for example `optimizer.name: [sgd, adamw]`")
    space: Space = {}
    for key, value in _space_leaves(content, base, str(path), ""):
        if key in space:
            raise ConfigError(f"{path}: key `{key}` is a duplicate")
        space[key] = _draw(base, str(path), key, value)
    return space


def _space_leaves(
    content: dict[Any, Any], base: ExperimentConfig, source: str, prefix: str
) -> Iterator[tuple[str, Any]]:
    known = list(key_types(base))
    groups = sorted({key[:end] for key in known for end, letter in enumerate(key) if letter == "."})
    for part, value in content.items():
        key = f"{prefix}{part}"
        if key in _NOT_DRAWN:
            raise ConfigError(f"{source}: key `{key}` cannot be searched: it {_NOT_DRAWN[key]}")
        if key in known:
            yield key, value
        elif key not in groups:
            raise ConfigError(f"{source}: key `{key}` is unknown{nearest(key, [*known, *groups])}")
        elif not isinstance(value, dict):
            raise ConfigError(f"{source}: key `{key}` is a group of settings, not one to draw ({value!r})")
        else:
            yield from _space_leaves(value, base, source, f"{key}.")


def _draw(base: ExperimentConfig, source: str, key: str, value: Any) -> Any:
    place = f"{source}: key `{key}`"
    if isinstance(value, list):
        return _choice(place, [_typed(base, source, key, one) for one in value])
    if isinstance(value, dict):
        return _range(place, key_types(base)[key], value)
    raise ConfigError(f"{place}: must be a list to choose from or {{low: ..., high: ...}}, not {value!r}")


def _typed(base: ExperimentConfig, source: str, key: str, value: Any) -> Any:
    """The value as the experiment's schema takes it."""
    config = OmegaConf.structured(base)
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
    for part in given:
        if part not in _RANGE_KEYS:
            raise ConfigError(
                f"{place}: a range has low, high, step and log, not {part!r}{nearest(str(part), _RANGE_KEYS)}"
            )
    kinds = options(kind)
    if int not in kinds and float not in kinds:
        raise ConfigError(f"{place}: only numbers have a range; write a list to choose from")
    whole = float not in kinds
    if missing := [part for part in ("low", "high") if part not in given]:
        raise ConfigError(f"{place}: the range lacks {' and '.join(missing)}")
    low, high = (_number(f"{place}: {part}", given[part], whole) for part in ("low", "high"))
    step = _number(f"{place}: step", given["step"], whole) if given.get("step", "") not in NULLS else None
    log = str(given.get("log", "false")).lower()
    if log not in ("true", "false"):
        raise ConfigError(f"{place}: log must be true or false, not {given['log']!r}")
    draw: FloatDistribution | IntDistribution
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # high becomes the last value that steps lead to
            if whole:
                draw = IntDistribution(int(low), int(high), log == "true", 1 if step is None else int(step))
            else:
                draw = FloatDistribution(low, high, log == "true", step)
    except ValueError as error:  # low above high, log with a step or below 0
        raise ConfigError(f"{place}: {error}") from error
    if draw.single():
        raise ConfigError(f"{place}: from {low} to {high} there is nothing to draw")
    return draw


def _number(place: str, value: Any, whole: bool) -> float:
    kind = "a whole number" if whole else "a number"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (whole and number != int(number)):
        raise ConfigError(f"{place} must be {kind}, not {as_written(value)}")
    return int(number) if whole else number
