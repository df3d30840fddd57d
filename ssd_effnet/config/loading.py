"""Loads an experiment file with its bases and overrides into a checked config.

:func:`load_experiment` follows the chain of bases, applies ``key=value`` overrides and checks everything against the
schema; an error is a :class:`ConfigError` that names the file, the key and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_kaist.errors import Doubt
from data_kaist.files import write_whole
from ssd_effnet.config.checks import check_experiment
from ssd_effnet.config.keys import choices, in_words, key_types, settings, takes_text
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.config.yaml_files import NULLS, ConfigError, as_written, nearest, parse_yaml, read_yaml

WHERE = (
    *("data.cache", "data.images", "data.root", "data.workers"),
    *("trainer.accelerator", "trainer.panel_images", "trainer.process_timeout", "trainer.runtime", "trainer.threads"),
)
"""Keys that say where and how comfortably a run was made, not what was made."""
_SHIPPED = Path(__file__).parents[1] / "experiments"  # in an installed package; a checkout has them at its top
EXPERIMENTS = _SHIPPED if _SHIPPED.is_dir() else Path(__file__).parents[2] / "experiments"
"""Folder of the project's own experiments, which are found by name from anywhere."""
_OWN = ("name", "description", "changes")  # of a file, not of those that start from it


class Normalisation(NamedTuple):
    """Mean and deviation of R, G, B in 0..1, of the images that weights were trained on."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TENSORFLOW_LITE = Normalisation((127 / 255,) * 3, (128 / 255,) * 3)  # ssd_effnet.models.backbones.pretrained shows it
_PUBLISHED = {"vgg16": IMAGENET, "efficientnet-b": IMAGENET, "efficientnet-lite": TENSORFLOW_LITE}

TINY = (
    "input.size=[128,160]",
    "backbone.pretrained=none",
    "backbone.norm=batch",
    "schedule.warmup_steps=0",
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
        path: a YAML file: an experiment, or the ``config.yaml`` of a run; or see :func:`find_experiment`.
        overrides: dotted keys, YAML values: ``optimizer.lr=0.001``, ``input.size=[256,320]``.
        tiny: shrink it by :data:`TINY` (which overrides may change again) and append ``-tiny`` to its name.

    Raises:
        ConfigError: one sentence naming file (or override), key and the nearest right key or value.
    """
    path = find_experiment(path)
    config = OmegaConf.structured(ExperimentConfig)
    chain = _chain(path)
    for layer_path, layer in reversed(chain):  # a base's name, question and list of changes are its own
        kept = {k: v for k, v in layer.items() if layer is chain[0][1] or k not in _OWN}
        config = _merge(config, kept, str(layer_path))
    names = [str(layer.get("name") or p.stem) + ("-tiny" if tiny else "") for p, layer in chain]
    config.name = names[0]
    for override in (*(TINY if tiny else ()), *overrides):
        config = _merge(config, _parse_override(override), f"override {override!r}")
    experiment = _to_dataclass(config, str(path))
    # a file under another name is a difference from itself; a run's config.yaml as base brings its own ancestors
    names = list(dict.fromkeys([*names, *experiment.ancestors]))
    experiment.ancestors = [name for name in names if name != experiment.name]
    check_experiment(experiment, str(path))
    for key in Normalisation._fields:
        if getattr(experiment.input, key) is None:
            if (own := own_normalisation(experiment.backbone.name)) is None:
                refuse_unknown_backbone(experiment.backbone.name, str(path))
                raise ConfigError(
                    f"{path}: key `input.{key}`: null means that of published weights, and none are known for "
                    f"{experiment.backbone.name}; state four numbers (R, G, B, LWIR)"
                )
            setattr(experiment.input, key, own[key])
    return experiment


def elsewhere(experiment: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """A copy with overrides of keys that only say where it runs.

    Raises:
        ConfigError: one of a key that is none of :data:`WHERE`, or that :func:`load_experiment` would refuse.
    """
    config = OmegaConf.structured(experiment)
    for override in overrides:
        source = f"override {override!r}"
        layer = _parse_override(override)
        if other := [key for key, _ in _leaves(layer, ExperimentConfig, source, ()) if key not in WHERE]:
            raise ConfigError(f"{source}: `{other[0]}` is settled in a finished run; free are {', '.join(WHERE)}")
        config = _merge(config, layer, source)
    moved = _to_dataclass(config, "overrides")
    check_experiment(moved, "overrides")
    return moved


def own_normalisation(backbone: str) -> dict[str, list[float]] | None:
    """Normalisation of a backbone's published weights (``null``): R, G, B, and their average for LWIR.

    Returns:
        ``{"mean": ..., "std": ...}``; None for a backbone without published weights.
    """
    for beginning, published in _PUBLISHED.items():
        if backbone.startswith(beginning):
            return {
                key: [round(value, 4) for value in (*channels, sum(channels) / 3)]
                for key, channels in published._asdict().items()
            }
    return None


def refuse_unknown_backbone(name: str, where: str) -> None:
    """A backbone must be one of :data:`ssd_effnet.models.backbones.BACKBONES`.

    Raises:
        ConfigError: it is not; begins with ``where``.
    """
    from ssd_effnet.models.backbones import BACKBONES  # with torch, for which reading a config need not wait

    if name not in BACKBONES:
        raise ConfigError(
            f"{where}: key `backbone.name`: {name!r} is not one of {', '.join(BACKBONES)}"
            f"{nearest(name, list(BACKBONES))}"
        )


def find_experiment(path: str | Path, base_of: Path | None = None, *, folder: str = "") -> Path:
    """The experiment file that is meant, with or without ``.yaml``.

    Args:
        path: of a file, or the bare name of one of the project's experiments (:data:`EXPERIMENTS`).
        base_of: the file that names it as its base: it is looked for beside that one first.
        folder: below the project's experiments: ``spaces`` of searches.

    Raises:
        ConfigError: there is none; names the most similar one.
    """
    path, beside = Path(path), base_of.parent if base_of else Path()
    named = (EXPERIMENTS / folder, Path("experiments", folder))
    folders = [beside / path.parent, *(named if len(path.parts) == 1 else ())]
    files = [Path(place, name) for place in folders for name in (path.name, f"{path.name}.yaml")]
    if there := [file for file in files if file.is_file()]:
        return there[0]
    others = [file.name for place in (*folders, named[0]) for file in sorted(place.glob("*.yaml")) if file != base_of]
    where = f"{base_of}: key `base`: {path}" if base_of else path
    raise ConfigError(f"{where}: there is no such experiment file{nearest(f'{path.stem}.yaml', others)}")


def normalisation_in_doubt(e: ExperimentConfig) -> str:
    """A warning if the normalisation belongs to weights that the backbone does not have; else empty."""
    own, stated = own_normalisation(e.backbone.name), {"mean": e.input.mean, "std": e.input.std}
    if not e.input.normalize or own is None or stated not in [own_normalisation(name) for name in _PUBLISHED]:
        return ""
    if e.backbone.pretrained == "none":
        return (
            f"input.mean, input.std: those of published weights, but {e.backbone.name} begins at random; "
            "ssd-effnet inspect --stats counts the data's own"
        )
    return "" if stated == own else f"input.mean, input.std: not those of {e.backbone.name}'s weights, which null means"


def load_base(path: str | Path) -> ExperimentConfig:
    """An experiment file's base; the defaults if it names none."""
    chain = _chain(find_experiment(path))
    return load_experiment(chain[1][0]) if len(chain) > 1 else ExperimentConfig()


def save_experiment(experiment: ExperimentConfig, path: str | Path) -> None:
    """Write the resolved experiment; :func:`load_experiment` reads it back unchanged."""
    write_whole(path, OmegaConf.to_yaml(OmegaConf.structured(experiment)))


def differences(a: ExperimentConfig, b: ExperimentConfig) -> list[str]:
    """Sorted dotted keys in which two experiments differ, names and descriptions apart; the order of classes counts."""
    left, right = settings(a), settings(b)
    return sorted(key for key in left.keys() | right.keys() if str(left.get(key)) != str(right.get(key)))


def varied(experiments: Sequence[ExperimentConfig]) -> list[str]:
    """Sorted keys that do not have the same value in all of them, seed and :data:`WHERE` apart."""
    first, *others = experiments
    keys = {key for other in others for key in differences(first, other)}
    return sorted(keys - {"trainer.seed", *WHERE})


def _chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and its bases, each with its content less ``base``; the file itself first."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    current = path
    while True:
        if any(current.resolve() == seen.resolve() for seen, _ in chain):
            raise ConfigError(f"{current}: `base` leads in a circle: {' -> '.join(str(p) for p, _ in chain)}")
        content = _read_layer(current)
        base = content.pop("base", None)
        chain.append((current, content))
        if base is None:
            return chain
        if not isinstance(base, str):
            raise ConfigError(f"{current}: `base` must be the name of a file, not {base!r}")
        current = find_experiment(base, current)


def _read_layer(path: Path) -> dict[str, Any]:
    content = read_yaml(path, "experiment")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, not a {type(content).__name__}")
    return content


def _parse_override(text: str) -> dict[str, Any]:
    """A key of type text takes what is written; quotes around all of it are the shell's or YAML's."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        meant = f"{text}=VALUE, without a space" if text in key_types() else "optimizer.lr=0.001"
        raise ConfigError(f"override {text!r}: must have the form key=value, for example {meant}")
    key, written = key.strip(), value.strip()
    if any(key.startswith(f"{of}.") and get_origin(kind) is dict for of, kind in key_types().items()):
        raise ConfigError(f"override {text!r}: give the whole map, for example data.classes={{person: [person]}}")
    quoted = len(written) > 1 and written[0] == written[-1] and written[0] in "'\""
    content: Any = written
    if written and (quoted or not takes_text(key)):
        content = parse_yaml(value, f"override {text!r}: the value")
    for part in reversed(key.split(".")):
        content = {part: content}
    assert isinstance(content, dict)
    return content


def _merge(config: DictConfig, layer: dict[str, Any], source: str) -> DictConfig:
    """Merge key by key, so that an error can name the key."""
    for key, value in _leaves(of_today(layer, source), ExperimentConfig, source, ()):
        put(config, key, value, source)
    return config


def of_today(layer: dict[str, Any], source: str) -> dict[str, Any]:
    """A layer of an older schema in today's keys.

    ``head.classes`` became ``data.classes``; ``data.cache: disk`` is ``memory`` now, and ``data.cache_folder`` went.
    """
    head, data = layer.get("head"), layer.get("data", {})
    if not isinstance(data, dict):
        return layer
    if data.get("cache") == "disk":
        data = data | {"cache": "memory"}
        warnings.warn(f"{source}: data.cache: disk is no more; frames are kept in memory", Doubt, stacklevel=2)
    if "cache_folder" in data or data.get("cache"):
        layer = layer | {"data": (data := {k: v for k, v in data.items() if k != "cache_folder"})}
    if not (isinstance(head, dict) and isinstance(head.get("classes"), list)):
        return layer
    classes = {"classes": {str(name): [name] for name in head["classes"]}}
    return {**layer, "head": {k: v for k, v in head.items() if k != "classes"}, "data": classes | data}


def put(config: DictConfig, key: str, value: Any, source: str) -> None:
    """Set a dotted key; OmegaConf converts the text to the schema's type, numbers in decimal.

    Args:
        config: an experiment, ``OmegaConf.structured(ExperimentConfig)``; it is changed.
        key: one that the schema has.
        value: as :func:`ssd_effnet.config.yaml_files.parse_yaml` gives it: text, or a list of texts.
        source: file or override, for the sentence.

    Raises:
        ConfigError: one sentence naming source, key and what the schema wants.
    """
    if isinstance(value, str) and value in NULLS and not takes_text(key):
        value = None
    try:
        OmegaConf.update(config, key, value, merge=False)
    except (OmegaConfBaseException, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        if few := choices(key):
            reason = f"{value!r} is not one of {', '.join(few)}{nearest(str(value), few)}"
        elif key in key_types() and isinstance(error, OmegaConfBaseException):
            reason = f"wants a {in_words(key_types()[key])}{_example(key)}, not {as_written(value)}"
        raise ConfigError(f"{source}: key `{key}`: {reason}") from error


def _example(key: str) -> str:
    """A list's default, written as in a command."""
    default = settings(ExperimentConfig())[key]
    shown = f"[{','.join(map(str, default))}]" if isinstance(default, list) else str(default).replace("'", "")
    return f", for example {shown}" if isinstance(default, list | dict) else ""


def _leaves(layer: dict[str, Any], schema: type, source: str, path: tuple[str, ...]) -> Iterable[tuple[str, Any]]:
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in layer.items():
        dotted = ".".join((*path, str(key)))
        if not path and "." in str(key) and str(key) in key_types():
            group, _, name = str(key).partition(".")
            raise ConfigError(
                f"{source}: key `{key}`: in a file it stands in its group, `{group}: {{{name}: {value}}}`"
            )
        if key not in fields:
            known = [".".join((*path, name)) for name in fields] + list(key_types())
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
