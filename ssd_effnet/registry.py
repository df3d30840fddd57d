"""Registries of parts that an experiment names, with their arguments.

An entry is a class or function, registered beside its definition or in a plugin. Its own arguments are the parameters
of its signature that a config can hold, less those that :mod:`ssd_effnet.build` supplies (``docs/extending.md``).
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from data_kaist.errors import Failure

Entry = TypeVar("Entry", bound=Callable[..., Any])


class RegistryError(Failure, ValueError):
    """A part or plugin cannot be registered."""


class Argument(NamedTuple):
    """One argument of an entry.

    Attributes:
        kind: its type: bool, int, float, str, a ``Literal``, a list of these, or one of these and None.
        default: ``dataclasses.MISSING`` where it must be given.
        rule: limits of a number, or of each in a list, as in the schema; empty: none.
        length: of a list; None: any.
        meaning: from the docstring.
    """

    kind: Any
    default: Any
    rule: str
    length: int | None
    meaning: str


class Registry(MutableMapping[str, Callable[..., Any]]):
    """Entries of one kind by name. Imports its home module on first use.

    Args:
        kind: in messages.
        home: module of the project's own entries. If it cannot import this class, they are in ``table``.
        supplied: parameters that :mod:`ssd_effnet.build` gives to those entries that take them.
        table: name of a dictionary in ``home``.
    """

    def __init__(self, kind: str, home: str, supplied: tuple[str, ...] = (), table: str = "") -> None:
        self.kind = kind
        self.home = home
        self.supplied = supplied
        self.table = table
        self._own: dict[str, Callable[..., Any]] = {}
        self.plugins: dict[str, str] = {}  # of entries registered by one

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator that adds a class or function."""

        def add(entry: Entry) -> Entry:
            self[name] = entry
            return entry

        return add

    def _entries(self) -> dict[str, Callable[..., Any]]:
        module = importlib.import_module(self.home)
        return {**vars(module)[self.table], **self._own} if self.table else self._own

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """An entry. Members of a family have the family's, ``timm/resnet50`` that of ``timm/*``."""
        entries = self._entries()
        return entries[name] if name in entries else entries[f"{name.partition('/')[0]}/*"]

    def __setitem__(self, name: str, entry: Callable[..., Any]) -> None:
        before = self._own.get(name, entry)
        if (before.__module__, _named(before)) != (entry.__module__, _named(entry)):
            raise RegistryError(
                f"the {self.kind} {name!r} is registered twice, by {before.__module__} and {entry.__module__}"
            )
        self._own[name] = entry
        if _loading:
            self.plugins[name] = _loading[-1]

    def __delitem__(self, name: str) -> None:
        del self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries())

    def __len__(self) -> int:
        return len(self._entries())

    def __hash__(self) -> int:
        return id(self)

    def arguments(self, name: str) -> dict[str, Argument]:
        """An entry's own arguments, in the order of its signature.

        Raises:
            RegistryError: one without a default has a type that no config can hold.
        """
        entry = self[name]
        function = maker(entry)
        documented = [part for kind in getattr(function, "__mro__", ()) for part in (kind, kind.__init__)]
        doc = "\n".join(inspect.getdoc(part) or "" for part in documented or [function])
        found = {}
        for key, parameter in inspect.signature(entry).parameters.items():
            if key in self.supplied or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            hint = _evaluated(parameter.annotation, function)
            rule = ""
            if get_origin(hint) is Annotated:
                hint, *said = get_args(hint)
                rule = ", ".join(one for one in said if isinstance(one, str))
            default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
            kind = _kind(hint)
            if kind is not None:
                default = list(default) if isinstance(default, tuple) else default
                found[key] = Argument(kind, default, rule, _length(hint), _meaning(doc, key))
            elif default is dataclasses.MISSING:
                raise RegistryError(
                    f"the {self.kind} {name!r}: build.py does not supply its argument `{key}` (it supplies "
                    f"{', '.join(self.supplied) or 'none'}), and a config holds only those annotated as bool, "
                    "int, float, str, Literal, a list of these, or one of these or None"
                )
        return found

    def takes(self, name: str, parameter: str) -> bool:
        """Whether the entry has a parameter of this name."""
        return parameter in inspect.signature(self[name]).parameters

    def make(self, name: str, own: Mapping[str, Any], /, **supplied: Any) -> Any:
        """Call the entry with what it takes of ``own`` and ``supplied``."""
        if name not in self:
            raise RegistryError(f"{self.kind} {name!r} is unknown; known: {', '.join(self)}")
        entry, arguments = self[name], self.arguments(name)
        given = {key: value for key, value in supplied.items() if self.takes(name, key)}
        for key in arguments.keys() & own.keys():
            given[key] = own[key] if arguments[key].length is None else tuple(own[key])
        return entry(**given)


def maker(entry: Callable[..., Any]) -> Callable[..., Any]:
    """Class or function behind an entry, without its fixed arguments."""
    return entry.func if isinstance(entry, partial) else entry


def _named(entry: Callable[..., Any]) -> str:
    return str(getattr(entry, "__qualname__", entry))


def _evaluated(annotation: Any, function: Callable[..., Any]) -> Any:
    """The evaluated annotation; None where that is not possible."""
    if annotation is inspect.Parameter.empty:
        return None
    names: dict[str, Any] = {}
    for kind in reversed(getattr(function, "__mro__", (function,))):  # module of the base class with the parameter
        names |= vars(sys.modules[kind.__module__])
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), names, include_extras=True)["it"]
    except (NameError, AttributeError, TypeError):  # imported for the type checker alone
        return None


def _kind(hint: Any) -> Any:
    """Type in the schema; None if a config cannot hold it. Sequences are lists."""
    if hint in (bool, int, float, str) or get_origin(hint) is Literal:
        return hint
    parts = [part for part in get_args(hint) if part is not Ellipsis]
    if get_origin(hint) in (list, tuple, Sequence) and len(set(parts)) == 1:
        return list[parts[0]] if _kind(parts[0]) is parts[0] else None  # type: ignore[valid-type]
    if type(None) in parts and len(parts) == 2:
        kind = _kind(next(part for part in parts if part is not type(None)))
        return None if kind is None else Union[kind, None]  # noqa: UP007
    return None


def _length(hint: Any) -> int | None:
    parts = get_args(hint)
    return len(parts) if get_origin(hint) is tuple and Ellipsis not in parts else None


def _meaning(doc: str, argument: str) -> str:
    """Description of an argument in ``Args`` or ``Attributes``."""
    found = re.search(rf"^ +{argument}: (.*(?:\n {{8,}}.*)*)", doc, re.MULTILINE)
    words = " ".join(found[1].split()) if found else ""
    return re.sub(r":\w+:`(?:[.~]?\w+\.)*(\w+)`|``(.+?)``", r"`\1\2`", words).rstrip(".")


BACKBONES = Registry("backbone", "ssd_effnet.models.backbones", ("name", "in_channels", "levels"))
TOPOLOGIES = Registry("topology", "ssd_effnet.models.necks.topologies", ("num_levels", "outputs"))
STREAM_FUSIONS = Registry("fusion of streams", "ssd_effnet.models.fusion", ("channels", "stride"))
FUSIONS = Registry("fusion", "ssd_effnet.models.necks.graph", ("num_inputs",))
UPSAMPLINGS = Registry("upsampling", "ssd_effnet.models.necks.resampling", ("in_channels", "out_channels", "ratio"))
DOWNSAMPLINGS = Registry("downsampling", "ssd_effnet.models.necks.resampling", ("in_channels", "out_channels", "ratio"))
CONVOLUTIONS = Registry(
    "convolution", "ssd_effnet.models.layers", ("in_channels", "out_channels", "activation", "bias")
)
HEADS = Registry("head", "ssd_effnet.models.heads", ("levels", "anchors_per_position", "num_classes", "prior"))
MATCHERS = Registry("matcher", "ssd_effnet.detection.matching", ("variances",))
CLASS_LOSSES = Registry("class loss", "ssd_effnet.detection.losses", ("variances",))
BOX_LOSSES = Registry("box loss", "ssd_effnet.detection.losses", ("variances",))
OPTIMIZERS = Registry("optimizer", "ssd_effnet.recipes", ("params", "lr"))
SCHEDULES = Registry("schedule", "ssd_effnet.recipes", ("optimizer", "steps", "warmup_steps"))
AUGMENTATIONS = Registry("augmentation", "data_kaist.transforms", table="AUGMENTATIONS")
CORRUPTIONS = Registry("corruption", "data_kaist.corruptions", table="CORRUPTIONS")

plugins: dict[str, str] = {}
"""Imported plugins and the folder from which each was asked for."""
_loading: list[str] = []


def load_plugins(modules: Sequence[str], folder: str | Path | None = None) -> None:
    """Import modules that register parts: installed ones, or those of a folder.

    Args:
        modules: names, as in ``import``.
        folder: searched after the installed ones; None: the working folder.
    """
    place = str(Path(folder or "").resolve())
    for of in [value for value in globals().values() if isinstance(value, Registry)]:
        len(of)  # the project's own parts come first
    for module in modules:
        if place not in sys.path:
            sys.path.append(place)
        _loading.append(module)
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            raise RegistryError(f"plugin {module}: there is no such module, installed or in {place}") from error
        finally:
            _loading.pop()
        plugins.setdefault(module, place)
