"""The keys of the schema with their types and values."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, Literal, get_args, get_origin

from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.evaluation.metrics import monitors

_OF_THE_FILE = ("name", "description", "changes", "ancestors")
_WORDS = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text"}


@cache
def key_types() -> dict[str, Any]:
    """The type of every dotted key, in the schema's order; name, description, changes and ancestors are none."""
    types: dict[str, Any] = {}
    for group in dataclasses.fields(ExperimentConfig):
        if dataclasses.is_dataclass(group.type):
            types |= {f"{group.name}.{field.name}": field.type for field in dataclasses.fields(group.type)}
        elif group.name not in _OF_THE_FILE:
            types[group.name] = group.type
    return types


def settings(experiment: ExperimentConfig) -> dict[str, Any]:
    """All settings as ``{dotted key: value}``, without name, description, changes and ancestors."""
    values = dataclasses.asdict(experiment)
    parts = {key: key.partition(".") for key in key_types()}
    return {key: values[group][name] if name else values[group] for key, (group, _, name) in parts.items()}


def choices(key: str) -> tuple[str, ...]:
    """The allowed values of a key with few choices; otherwise empty."""
    kind = key_types().get(key)
    if key.endswith(".monitor") and kind is str:
        return tuple(monitors(("person",)))
    return ("true", "false") if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()


def takes_text(key: str) -> bool:
    """Whether the key's value is text, any or one of a few words."""
    kind = key_types().get(key, str if key in ("name", "description") else None)
    return kind is str or get_origin(kind) is Literal


def options(kind: Any) -> tuple[Any, ...]:
    """The types that ``X | None`` stands for; any other stands for itself."""
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
