"""Loads and checks an experiment file with its bases and overrides.

An error is a :class:`ConfigError` that names the file, the key and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_kaist.files import write_whole
from ssd_effnet.config import keys
from ssd_effnet.config.checks import check_experiment, watched_metrics
from ssd_effnet.config.groups import choice_fields, chosen, group
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import NULLS, ConfigError, as_written, nearest, parse_yaml, read_yaml
from ssd_effnet.evaluation.metrics import metric_of
from ssd_effnet.registry import maker, plugins

WHERE = (
    *("data.cache", "data.images", "data.root", "data.workers"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.panel_images"),
    *("trainer.process_timeout", "trainer.threads"),
)
"""Keys that say where and how comfortably a run was made, not what was made."""
_SHIPPED = Path(__file__).parents[1] / "experiments"  # in an installed package; a checkout has them at its top
EXPERIMENTS = _SHIPPED if _SHIPPED.is_dir() else Path(__file__).parents[2] / "experiments"
"""Folder of the project's own experiments, which are found by name from anywhere."""
_GONE = {"data": ("cache_folder",), "trainer": ("runtime", "channels_last")}  # once keys; no result depended on them
_OWN = ("name", "description", "changes")  # of a file, not of those that start from it


def _of_four(mean: Sequence[float], std: Sequence[float]) -> dict[str, list[float]]:
    """Mean and std of R, G, B and LWIR in 0..1. LWIR's are the averages of the others."""
    return {key: [round(v, 4) for v in (*of, sum(of) / 3)] for key, of in (("mean", mean), ("std", std))}


_IMAGENET = _of_four((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LITE = _of_four((127 / 255,) * 3, (128 / 255,) * 3)  # ssd_effnet.models.backbones.pretrained shows it
_PUBLISHED = {"vgg16": _IMAGENET, "efficientnet-b": _IMAGENET, "efficientnet-lite": _LITE}

TINY = (
    *("input.size=[128,160]", "backbone.pretrained=none", "backbone.norm=batch", "schedule.warmup_steps=0"),
    *("adapter.channels=32", "extras.channels=32", "trainer.batch_size=2", "trainer.epochs=1"),
    *("trainer.validate_every=1", "trainer.panel_images=2", "data.workers=0"),
)
"""What makes any experiment small enough to try on a CPU whether it runs at all; its figures mean nothing."""


def load_experiment(path: str | Path, overrides: Sequence[str] = (), *, tiny: bool = False) -> ExperimentConfig:
    """Read an experiment file, its bases and ``key=value`` overrides.

    Args:
        path: a YAML file: an experiment, or the ``config.yaml`` of a run; or see :func:`find_experiment`.
        overrides: dotted keys, YAML values: ``optimizer.lr=0.001``, ``input.size=[256,320]``.
        tiny: shrink it by :data:`TINY` (which overrides may change again) and append ``-tiny`` to its name.
    """
    chain = layers_of(path)
    path = chain[0][0]
    config = deepcopy(_defaults())
    config.plugins = _needed_plugins((str(p), layer.get("plugins")) for p, layer in reversed(chain))
    for layer_path, layer in reversed(chain):  # a base's name, question and list of changes are its own
        kept = {k: v for k, v in layer.items() if k != "plugins" and (layer is chain[0][1] or k not in _OWN)}
        _apply(config, kept, str(layer_path))
    names = [name_of(*own) + ("-tiny" if tiny else "") for own in chain]
    config.name = names[0]
    if tiny:
        _override(config, [text for text in TINY if text.partition("=")[0] in keys.key_types(config)])
    _override(config, overrides)
    experiment = _checked(config, str(path))
    # a file under another name is a difference from itself; a run's config.yaml as base brings its own ancestors
    names = list(dict.fromkeys([*names, *experiment.ancestors]))
    experiment.ancestors = [name for name in names if name != experiment.name]
    # a run's config.yaml states what null meant for its backbone; with another one it means that one's
    now = experiment.backbone.name
    begun = next((layer.get("backbone", {}).get("name", now) for _, layer in chain if "ancestors" in layer), now)
    former = (own_normalisation(begun) if begun != now else None) or {}
    for key in ("mean", "std"):
        if getattr(experiment.input, key) in (None, former.get(key)):
            if (own := own_normalisation(experiment.backbone.name)) is None:
                raise ConfigError(
                    f"{path}: key `input.{key}`: null means that of published weights, and none are known for "
                    f"{experiment.backbone.name}; state four numbers (R, G, B, LWIR)"
                )
            setattr(experiment.input, key, list(own[key]))
    return experiment


def name_of(path: Path, layer: dict[str, Any]) -> str:
    """Name that an experiment file gives itself, or that of the file."""
    return str(layer.get("name") or path.stem)


@cache
def _defaults() -> DictConfig:
    """Defaults as an OmegaConf config, cached for copying."""
    config: DictConfig = OmegaConf.structured(keys.defaults())
    return config


def elsewhere(experiment: ExperimentConfig, overrides: Sequence[str], free: Sequence[str] = WHERE) -> ExperimentConfig:
    """Copy with overrides of ``free`` keys, by default those of location.

    Raises:
        ConfigError: one of a key that is not free, or that :func:`load_experiment` would refuse.
    """
    if not overrides:
        return deepcopy(experiment)
    config = OmegaConf.structured(experiment)
    for override in overrides:
        source = f"override {override!r}"
        layer = _parse_override(override, config)
        if other := [key for key, _ in _leaves(layer, config, source, ()) if key not in free]:
            raise ConfigError(f"{source}: `{other[0]}` is settled in a finished run; free are {', '.join(free)}")
        _apply(config, layer, source)
    return _checked(config, "overrides")


def experiment_of(content: dict[str, Any], source: str) -> ExperimentConfig:
    """Experiment of a checkpoint; missing keys have the schema's defaults."""
    config = deepcopy(_defaults())
    content = _of_this_schema({str(key): value for key, value in content.items()})
    config.plugins = _needed_plugins([(source, content.pop("plugins", None))])
    _apply(config, content, source)
    return _checked(config, source)


def own_normalisation(backbone: str) -> dict[str, list[float]] | None:
    """Mean and std that a backbone's weights were trained with. Of R, G, B and LWIR; None without such."""
    if backbone.startswith("timm/"):
        from ssd_effnet.models.backbones.timm_models import normalisation

        return _of_four(*normalisation(backbone))
    return next((own for beginning, own in _PUBLISHED.items() if backbone.startswith(beginning)), None)


def find_experiment(path: str | Path, base_of: Path | None = None, *, folder: str = "") -> Path:
    """Path of an experiment file, with or without ``.yaml``.

    Args:
        path: of a file, or the bare name of one of the project's experiments (:data:`EXPERIMENTS`).
        base_of: the file that names it as its base, beside which it is looked for first.
        folder: below the project's experiments: ``spaces`` of searches.
    """
    path, beside = Path(path), base_of.parent if base_of else Path()
    named = (EXPERIMENTS / folder, Path("experiments", folder))
    folders = [beside / path.parent, *(named if len(path.parts) == 1 else ())]
    files = [Path(place, name) for place in folders for name in (path.name, f"{path.name}.yaml")]
    if there := [file for file in files if file.is_file()]:  # one that calls itself its base means the project's
        return next((file for file in there if base_of is None or not file.samefile(base_of)), there[0])
    others = [file.name for place in (*folders, named[0]) for file in sorted(place.glob("*.yaml")) if file != base_of]
    where = f"{base_of}: key `base`: {path}" if base_of else path
    raise ConfigError(f"{where}: there is no such experiment file{nearest(f'{path.stem}.yaml', others)}")


def save_experiment(experiment: ExperimentConfig, path: str | Path) -> None:
    """Write the resolved experiment; :func:`load_experiment` reads it back unchanged."""
    write_whole(path, OmegaConf.to_yaml(OmegaConf.structured(experiment)))


def as_difference(base: str, description: str, changes: Sequence[str], values: Mapping[str, Any]) -> str:
    """An experiment file that sets dotted keys on its base, YAML."""
    content = OmegaConf.create({"base": base, "description": description, "changes": list(changes)})
    for key, value in values.items():
        OmegaConf.update(content, key, value)
    return OmegaConf.to_yaml(content)


def differences(a: ExperimentConfig, b: ExperimentConfig) -> list[str]:
    """Sorted dotted keys in which two experiments differ, names and descriptions apart."""
    return list(keys.unlike(a, b))


def varied(experiments: Sequence[ExperimentConfig]) -> list[str]:
    """Sorted keys that differ among experiments, seed and :data:`WHERE` apart."""
    first, *others = experiments
    unlike = {key for other in others for key in differences(first, other)}
    return sorted(unlike - {"trainer.seed", *WHERE})


def layers_of(path: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """An experiment's file and its bases, each with its content less ``base``. The file itself comes first."""
    chain: dict[Path, tuple[Path, dict[str, Any]]] = {}
    current = find_experiment(path)
    while (real := current.resolve()) not in chain:
        content = read_layer(current)
        base = content.pop("base", None)
        chain[real] = current, content
        if base is None:
            return list(chain.values())
        if not isinstance(base, str):
            raise ConfigError(f"{current}: `base` must be the name of a file, not {base!r}")
        current = find_experiment(base, current)
    raise ConfigError(f"{current}: `base` leads in a circle: {' -> '.join(str(p) for p, _ in chain.values())}")


def read_layer(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "experiment")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, not a {type(content).__name__}")
    return _of_this_schema(content)


def _of_this_schema(content: dict[str, Any]) -> dict[str, Any]:
    """A file's or checkpoint's content without keys that are gone. These changed no result."""
    head = content.get("head")
    gone_here = _GONE | ({"head": ("layers",)} if isinstance(head, dict) and head.get("kind") == "ssd" else {})
    for name, gone in gone_here.items():
        if isinstance(own := content.get(name), dict):
            content = content | {name: {key: value for key, value in own.items() if key not in gone}}
    return content


def _needed_plugins(stated: Iterable[tuple[str, Any]]) -> list[str]:
    """The plugins that files declare, which nothing in a file imports; a ConfigError if one is not imported."""
    needed: dict[str, None] = {}
    for source, names in stated:
        if not isinstance(names, list | None) or not all(isinstance(name, str) for name in names or ()):
            raise ConfigError(f"{source}: key `plugins`: must be a list of modules, not {names!r}")
        if missing := [name for name in names or () if name not in sys.modules]:
            given = " ".join(f"--plugins {name}" for name in missing)
            raise ConfigError(
                f"{source}: `plugins` needs {', '.join(missing)}, which a file cannot import; add {given} to the "
                f"command, or in Python call ssd_effnet.registry.load_plugins({missing})"
            )
        needed |= dict.fromkeys(names or ())
    return list(needed)


def _override(config: DictConfig, overrides: Iterable[str]) -> None:
    """Apply ``key=value``, names of choices before their arguments and a range of LWIR last, whatever the order."""
    choosing = [key for key, field in keys.fields_of(config).items() if "registry" in field.metadata]

    def place(text: str) -> int:
        key = text.partition("=")[0].strip()
        return 0 if key in choosing else 2 if key == "data.lwir_range" else 1

    for text in sorted(overrides, key=place):
        _apply(config, _parse_override(text, config), f"override {text!r}")


def _parse_override(text: str, config: DictConfig) -> dict[str, Any]:
    """Key and value of ``key=value``; outer quotes of a text are removed."""
    key, equals, value = text.partition("=")
    key, written = key.strip(), value.strip()
    if not equals or not key:
        meant = f"{text}=VALUE, without a space" if text in keys.key_types(config) else "optimizer.lr=0.001"
        raise ConfigError(f"override {text!r}: must have the form key=value, for example {meant}")
    if key.startswith("data.classes."):
        raise ConfigError(f"override {text!r}: give the whole map, for example data.classes={{person: [person]}}")
    quoted = len(written) > 1 and written[0] == written[-1] and written[0] in "'\""
    as_text = not written or (keys.takes_text(key, config) and not quoted)
    return _nested(key, written if as_text else parse_yaml(value, f"override {text!r}: the value"))


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _apply(config: DictConfig, layer: dict[str, Any], source: str) -> None:
    """Merge a layer key by key; errors name the key. Keys that name entries are set first.

    A range of LWIR is forgotten where quantiles are stated, one from quantiles also where the training split changes.
    """
    data = layer["data"] if isinstance(layer.get("data"), dict) else {}
    measured = isinstance(data.get("lwir_quantiles"), list) or config.data.lwir_quantiles is not None
    if measured and {"lwir_quantiles", "train"} & data.keys() and "lwir_range" not in data:
        config.data.lwir_range = None
    already = set[str]()
    for name, stated in layer.items():
        if isinstance(stated, dict) and name in config and isinstance(config._get_node(name), DictConfig):
            _choose(config, name, stated, source)
            already |= {f"{name}.{key}" for key in choice_fields(keys.type_of(config[name]))}
    for key, value in _leaves(layer, config, source, ()):
        if key not in already:
            _put(config, key, value, source)


def _choose(config: DictConfig, name: str, layer: dict[str, Any], source: str) -> None:
    """Set a group's keys that name entries. Arguments stay if the old and the new entry are of one class."""
    kind: Any = keys.type_of(config[name])
    changed, gone = dict[str, Any](), set[str]()
    for key, of in choice_fields(kind).items():
        if key not in layer or (value := layer[key]) == config[name][key]:
            continue
        dotted, several = f"{name}.{key}", isinstance(config[name][key], ListConfig)
        known = keys.choices(dotted, config)
        if several and not isinstance(value, list):
            raise ConfigError(f"{source}: key `{dotted}`: expected list of names, for example [{','.join(known[:2])}]")
        for one in value if several else [value]:
            if one not in known and one not in of:
                raise ConfigError(
                    f"{source}: key `{dotted}`: {one!r} is not one of {', '.join(known)}{nearest(str(one), known)}"
                )
        if several and len(set(value)) < len(value):
            raise ConfigError(f"{source}: key `{dotted}`: names each once, not {as_written(value)}")
        changed[key] = value
        before = None if several else of.get(str(config[name][key]))
        if before is not None and (value not in of or maker(before) is not maker(of[value])):
            gone |= of.arguments(str(config[name][key])).keys()
    if changed:
        stated = cast("dict[str, Any]", OmegaConf.to_container(config[name]))
        config[name] = group(kind.base, {key: value for key, value in stated.items() if key not in gone} | changed)


def set_key(config: DictConfig, key: str, value: Any, source: str) -> None:
    """Set a dotted key of ``OmegaConf.structured(experiment)``. A text or list of texts is converted to its type."""
    _apply(config, _nested(key, value), source)


def _put(config: DictConfig, key: str, value: Any, source: str) -> None:
    if isinstance(value, str) and value in NULLS and not keys.takes_text(key, config):
        value = None
    try:
        OmegaConf.update(config, key, value, merge=False)
    except (OmegaConfBaseException, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        field = keys.fields_of(config).get(key)
        if few := keys.choices(key, config):
            reason = f"{value!r} is not one of {', '.join(few)}{nearest(str(value), few)}"
        elif field and isinstance(error, OmegaConfBaseException):
            default = keys.default_of(field)  # a list's, written as in a command
            shown = f"[{','.join(map(str, default))}]" if isinstance(default, list) else str(default).replace("'", "")
            example = f", for example {shown}" if isinstance(default, list | dict) else ""
            reason = f"expected {keys.in_words(field.type)}{example}, not {as_written(value)}"
        raise ConfigError(f"{source}: key `{key}`: {reason}") from error


def _leaves(layer: dict[str, Any], node: DictConfig, source: str, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    fields = {f.name: f for f in dataclasses.fields(keys.type_of(node))}
    for key, value in layer.items():
        dotted = ".".join((*path, str(key)))
        if not path and "." in str(key) and str(key) in keys.key_types(node):
            group, _, name = str(key).partition(".")
            raise ConfigError(f"{source}: key `{key}`: in a file write it in its group, `{group}: {{{name}: {value}}}`")
        if key not in fields:
            known = [".".join((*path, name)) for name in fields] + list(keys.key_types(node) if not path else ())
            raise ConfigError(f"{source}: key `{dotted}` is unknown{nearest(dotted, known)}{_of_what(node, path)}")
        child = node._get_node(str(key))
        if isinstance(child, DictConfig) and dataclasses.is_dataclass(keys.type_of(child)):
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: key `{dotted}` is a group of settings, not a value ({value!r})")
            yield from _leaves(value, child, source, (*path, str(key)))
        else:
            yield dotted, value


def _of_what(node: DictConfig, path: tuple[str, ...]) -> str:
    """Which arguments there are where something is chosen."""
    said = []
    for key, of in choice_fields(keys.type_of(node)).items():
        if isinstance(node[key], str) and node[key] in of:
            own = ", ".join(of.arguments(node[key]))
            said.append(f"{'.'.join((*path, key))} {node[key]} has {own or 'no arguments'}")
    return f" ({'; '.join(said)})" if said else ""


def _checked(config: DictConfig, source: str) -> ExperimentConfig:
    try:
        experiment = OmegaConf.to_object(config)
    except (OmegaConfBaseException, RecursionError) as error:  # unresolved ${...} or ???
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{source}: key `{key}`: {str(error).splitlines()[0]}") from error
    assert isinstance(experiment, ExperimentConfig)
    parts = (part for part in vars(experiment).values() if dataclasses.is_dataclass(part))
    used = [of.plugins.get(name) for part in parts for of, name, _ in chosen(part)]
    check_experiment(experiment, source)
    functions = (metric_of(monitor).function for monitor in watched_metrics(experiment).values())
    used += [name for name in (getattr(function, "__module__", "") for function in functions) if name in plugins]
    experiment.plugins = list(dict.fromkeys([*experiment.plugins, *filter(None, used)]))
    return experiment
