"""Reads YAML files; errors name file and reason in one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from data_kaist.errors import Failure

NULLS = ("null", "Null", "NULL", "~", "")  # how YAML writes nothing


class ConfigError(Failure, ValueError):
    """An invalid experiment: one sentence with file, key and valid values."""


class _Loader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]
    """YAML loader that leaves scalars as text. YAML 1.1 reads 010 as 8, and no as False. Duplicate keys are refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ConfigError(f"key `{key.value}` is a duplicate (line {key.start_mark.line + 1})")
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        return dict(super().construct_mapping(node, deep))


def read_yaml(path: Path, kind: str) -> Any:
    """Content of a YAML file; ``kind`` names it in messages."""
    if not path.is_file():
        names = [str(p) for p in sorted(path.parent.glob("*.yaml"))] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: there is no such {kind} file{nearest(str(path), names)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Lists and mappings of a YAML text. Values are texts, for the schema to read; errors begin with ``where``."""
    try:
        depth = 0
        for event in yaml.parse(text, _Loader):
            if isinstance(event, yaml.AliasEvent):  # nine lines of aliases can expand to a billion values
                raise ConfigError(f"*{event.anchor}: aliases are not read")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > 100:  # libyaml takes minutes for 100,000
                raise ConfigError("is nested too deeply")
        return yaml.load(text, _Loader)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except Exception as error:  # deep nesting, or a tag like !!timestamp, sends PyYAML into any error
        raise ConfigError(f"{where}: is not YAML: {' '.join(str(error).split()) or type(error).__name__}") from error


def as_written(value: Any) -> str:
    """A value for a message. Numbers and lists as written, other text in quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return value if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.][\d.e+-]*", value) else repr(value)


def nearest(name: str, known: Sequence[str]) -> str:
    """Suggest the known name that is most like ``name``. The text is ``"; did you mean `...`?"``, or empty."""
    if len(name) > 1000:  # too long for a typo, and slow to compare
        return ""
    # the last part weighs most: `optimiser.lr` and `lr` both mean `optimizer.lr`
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [
        k for k in known if k.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]
    ]
    return f"; did you mean `{close[0]}`?" if close else ""
