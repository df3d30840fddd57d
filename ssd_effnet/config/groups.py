"""Config groups whose keys include the arguments of a registry entry.

A class of the schema marks the key that names an entry of a registry by :func:`choice`. :func:`group_class` makes the
dataclass that has the entry's arguments too: with ``name: focal`` the keys ``alpha``, ``gamma`` and ``prior``. Where
the key is a list of names, each of them is a group within the group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from omegaconf import MISSING

from ssd_effnet.registry import Argument, Registry, RegistryError, load_plugins, plugins

_Entries = tuple[tuple[Registry, str, Any, bool], ...]  # registry, name, entry, whether it is one of a list


def choice(of: Registry, default: str | list[str]) -> Any:
    """A key that names registry entries. A default that is no entry means none."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"registry": of})
    return dataclasses.field(default=default, metadata={"registry": of})


def choice_fields(group: Any) -> dict[str, Registry]:
    """The keys of a group that name entries, each with its registry."""
    return {f.name: f.metadata["registry"] for f in dataclasses.fields(group) if "registry" in f.metadata}


def names_for(field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """Allowed names of a key of :func:`choice`; empty for other keys."""
    known = tuple(field.metadata.get("registry", ()))
    none = (field.default,) if known and isinstance(field.default, str) and field.default not in known else ()
    return none + known


def chosen(part: Any) -> Iterator[tuple[Registry, str, Any]]:
    """Entries that a group names. Each comes with its registry and the dataclass that holds its arguments."""
    for key, of in choice_fields(part).items():
        value = getattr(part, key)
        for name in [value] if isinstance(value, str) else value:
            if name in of:
                yield of, name, part if isinstance(value, str) else getattr(part, name)


def make(part: Any, **supplied: Any) -> list[Any]:
    """Build the entries that a group names. Their arguments are the group's and the supplied ones."""
    return [of.make(name, vars(own), **supplied) for of, name, own in chosen(part)]


def group(base: type, values: Mapping[str, Any] | None = None) -> Any:
    """A group with these values, of the dataclass for its entries."""
    stated = {**vars(base()), **(values or {})}
    kind = group_class(base, stated)
    given = {}
    for field in dataclasses.fields(kind):
        if field.name in stated:
            value, own = stated[field.name], field.type
            given[field.name] = own(**value) if isinstance(value, dict) and isinstance(own, type) else value
    return kind(**given)


def group_class(base: type, chosen: Mapping[str, Any]) -> type:
    """The dataclass of a group that names these entries.

    Raises:
        RegistryError: an argument has the name of another key, or a type that no config can hold.
    """
    entries = []
    for key, of in choice_fields(base).items():
        several = not isinstance(chosen[key], str)
        names = chosen[key] if several else [chosen[key]]
        entries += [(of, name, of[name], several) for name in names if name in of]
    return _class(base, tuple(entries))


@cache
def _class(base: type, entries: _Entries) -> type:
    fields: dict[str, tuple[str, Any, Any]] = {}
    taken = {field.name for field in dataclasses.fields(base)}
    for of, name, _, several in entries:
        arguments = [_field(key, argument) for key, argument in of.arguments(name).items()]
        if several:
            part = dataclasses.make_dataclass(name, arguments)
            arguments = [(name, part, dataclasses.field(default_factory=part))]
        for argument in arguments:
            if argument[0] in taken:
                raise RegistryError(f"the {of.kind} {name!r}: its argument `{argument[0]}` is another key of its group")
            taken.add(argument[0])
            fields[argument[0]] = argument
    own = {"__reduce__": _reduce, "base": base}
    return dataclasses.make_dataclass(base.__name__, list(fields.values()), bases=(base,), namespace=own)


def _field(key: str, argument: Argument) -> tuple[str, Any, Any]:
    metadata, default = argument._asdict(), argument.default
    if isinstance(default, list):
        return key, argument.kind, dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    default = MISSING if default is dataclasses.MISSING else default
    return key, argument.kind, dataclasses.field(default=default, metadata=metadata)


def _reduce(self: Any) -> tuple[Any, ...]:
    """For pickling and copying: makes the class again."""
    return _restore, (self.base, dataclasses.asdict(self), dict(plugins))


def _restore(base: type, values: dict[str, Any], needed: dict[str, str]) -> Any:
    for module, folder in needed.items():
        load_plugins([module], folder)
    return group(base, values)
