"""The keys of the schema with their types and values."""

from __future__ import annotations

import dataclasses
from functools import cache
from operator import attrgetter
from typing import Any, Literal, get_args, get_origin

from omegaconf import DictConfig, OmegaConf

from ssd_effnet.config.groups import names_for
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.evaluation.metrics import monitors

_OF_THE_FILE = ("name", "description", "changes", "ancestors", "plugins")
_WORDS = {bool: "`true` or `false`", int: "integer", float: "number", str: "text"}

Node = ExperimentConfig | DictConfig
Field = dataclasses.Field[Any]


@cache
def defaults() -> ExperimentConfig:
    """The schema's defaults; not to be changed."""
    return ExperimentConfig()


def type_of(node: Any) -> Any:
    """Dataclass of a group in an OmegaConf config. Of other values: their content."""
    return OmegaConf.get_type(node) if isinstance(node, DictConfig) else type(node)


def fields_of(node: Node) -> dict[str, Field]:
    """Fields of an experiment's dotted keys, with the arguments of its entries. Callers must not change it."""
    names = [field.name for field in dataclasses.fields(ExperimentConfig)]
    parts = map(node._get_node, names) if isinstance(node, DictConfig) else (getattr(node, name) for name in names)
    return _fields(ExperimentConfig, tuple(map(type_of, parts)))


@cache
def _fields(of: type, kinds: tuple[Any, ...]) -> dict[str, Field]:
    found: dict[str, Field] = {}
    for field, kind in zip(dataclasses.fields(of), kinds, strict=True):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            nested = _fields(kind, tuple(part.type for part in dataclasses.fields(kind)))
            found |= {f"{field.name}.{key}": part for key, part in nested.items()}
        elif of is not ExperimentConfig or field.name not in _OF_THE_FILE:
            found[field.name] = field
    return found


def key_types(of: Node | None = None) -> dict[str, Any]:
    """Types of the dotted keys, in the schema's order. Without name, description and the like."""
    return {key: field.type for key, field in fields_of(of or defaults()).items()}


def settings(experiment: ExperimentConfig) -> dict[str, Any]:
    """All settings as ``{dotted key: value}``. Without name, description, changes, ancestors and plugins."""
    return {key: attrgetter(key)(experiment) for key in key_types(experiment)}


def default_of(field: Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def unlike(a: ExperimentConfig, b: ExperimentConfig) -> dict[str, tuple[Any, Any]]:
    """Keys and values in which two experiments differ, by their order of classes too; missing ones have defaults."""
    left, right = settings(a), settings(b)
    fields = fields_of(a) | fields_of(b)
    pairs = {key: tuple(of.get(key, default_of(fields[key])) for of in (left, right)) for key in sorted(fields)}
    return {key: (before, after) for key, (before, after) in pairs.items() if str(before) != str(after)}


def choices(key: str, of: Node | None = None) -> tuple[str, ...]:
    """The allowed values of a key with few choices; otherwise empty."""
    field = fields_of(of or defaults()).get(key)
    if field is None or field.type is bool:
        return ("true", "false") if field else ()
    if key.endswith(".monitor") and field.type is str:
        return tuple(monitors(("person",)))
    return names_for(field) or (get_args(field.type) if get_origin(field.type) is Literal else ())


def takes_text(key: str, of: Node | None = None) -> bool:
    """Whether the key's value is text: any, or one of a few words."""
    field = fields_of(of or defaults()).get(key)
    kind = field.type if field else str if key in ("name", "description") else None
    return kind is str or get_origin(kind) is Literal


def options(kind: Any) -> tuple[Any, ...]:
    """Types of ``X | None``; other types alone."""
    return (kind,) if kind in _WORDS or get_origin(kind) in (Literal, list, dict) else get_args(kind)


def in_words(kind: Any) -> str:
    """A schema type in words.

    >>> in_words(list[float] | None)
    'list of numbers, or `null`'
    """
    if kind is type(None):
        return "`null`"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) is list:
        return f"list of {in_words(get_args(kind)[0])}s"
    if get_origin(kind) is dict:
        return f"map of names, each to a {in_words(get_args(kind)[1])}"
    return _WORDS.get(kind) or ", or ".join(in_words(option) for option in options(kind))
