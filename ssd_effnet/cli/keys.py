"""Write the page of all config keys, docs/keys.md: types, defaults, meanings.

Meanings are the schema's comments and the docstrings of registry entries. Without a checkout the page is printed.

examples:
  ssd-effnet keys   (in a checkout: writes docs/keys.md)
  ssd-effnet keys   (elsewhere: prints the page)
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from data_kaist.files import write_whole
from ssd_effnet.cli import shell
from ssd_effnet.config import schema
from ssd_effnet.config.groups import choice_fields
from ssd_effnet.config.keys import choices, in_words, key_types, options
from ssd_effnet.registry import maker

PAGE = Path(__file__).resolve().parents[2] / "docs" / "keys.md"  # in a checkout
HEAD = """# All keys

Keys of an experiment, in its file or in a command: `ssd-effnet train lite0 trainer.seed=1 'input.size=[256,320]'`.
First stands the default, which an experiment's base may change; then other values, where they are few.

<!-- written by `ssd-effnet keys` from ssd_effnet/config/schema.py and the registries -->
"""


def keys_page() -> str:
    """The whole page, Markdown."""
    meanings, experiment, parts = _meanings(), schema.ExperimentConfig(), [HEAD]
    for name, section in vars(experiment).items():
        if dataclasses.is_dataclass(section):
            kind: Any = getattr(section, "base", type(section))
            whole, prefix = section, f"{name}."
        elif name in key_types():  # stands in no section
            kind, whole, prefix = schema.ExperimentConfig, experiment, ""
        else:  # name, description, changes, ancestors, plugins
            continue
        words = inspect.getdoc(kind) or ""
        keys = [field.name for field in dataclasses.fields(kind)] if prefix else [name]
        parts += [
            f"## {name}\n",
            *([_code(words) + "\n"] if prefix and not words.startswith(f"{kind.__name__}(") else []),
            "| key | values | meaning |\n|---|---|---|",
            *(
                f"| `{prefix}{key}` | {_values(key_types()[prefix + key], getattr(whole, key), choices(prefix + key))} "
                f"| {_null(meanings[kind.__name__][key])} |"
                for key in keys
            ),
            *_arguments(name, whole),
            "",
        ]
    return "\n".join(parts)


def _meanings() -> dict[str, dict[str, str]]:
    """Meanings of keys, by class of the schema. They are the comments in a key's line and right above it."""
    found: dict[str, dict[str, str]] = {}
    said: list[str] = []
    for line in Path(schema.__file__).read_text(encoding="utf-8").splitlines():
        if head := re.match(r"class (\w+)", line):
            of = found.setdefault(head[1], {})
        elif line.startswith("    # "):
            said.append(line[6:])
        elif key := re.match(r"    (\w+): .*?(?:  # (.*))?$", line):
            of[key[1]] = " ".join([*said, *filter(None, [key[2]])])
            said = []
    return found


def _arguments(group: str, whole: Any) -> Iterator[str]:
    """Rows for the arguments of a group's entries, without plugins."""
    rows: dict[tuple[str, str, str], list[str]] = {}  # key, values and meaning, with the entries that have them
    for key, of in choice_fields(whole).items():
        alike: dict[object, list[str]] = {}
        for name in of:
            if name not in of.plugins:
                alike.setdefault(maker(of[name]), []).append(name)
        for first, *others in alike.values():
            named = f"`{first}`" + (f" ... `{others[-1]}`" if others else "")
            prefix = f"{group}." if isinstance(getattr(whole, key), str) else f"{group}.{first}."
            for argument, a in of.arguments(first).items():
                row = (prefix + argument, _values(a.kind, a.default), _null(a.meaning))
                rows.setdefault(row, []).append(named)
    for (key, values, meaning), names in rows.items():
        yield f"| `{key}` | {values} | {', '.join(names)}: {meaning} |"


def _code(words: str) -> str:
    """The roles of a docstring as code."""
    return re.sub(r":\w+:`(?:\w+\.)*(\w+)`|``(.+?)``", r"`\1\2`", words)


def _values(kind: Any, default: Any, few: Sequence[str] = ()) -> str:
    """The default in YAML, with other possible values. Others are left out where the default shows the type."""
    written = yaml.safe_dump(default, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    shown = "empty" if default == "" else f"`{written}`"
    few = get_args(kind) if get_origin(kind) is Literal else few if kind is not bool else ()
    others = [f"`{name}`" for name in few if name != default]
    if default is None:
        others = [in_words(option) for option in options(kind) if option is not type(None)]
    elif type(None) in options(kind):
        others = ["`null`"]
    if kind == list[str] and few:
        return f"{shown} of {', '.join(others)}"
    return ", ".join([shown, *others])


def _null(meaning: str) -> str:
    return meaning.replace("None:", "null:").replace("None for", "null for")


def parser() -> shell.Parser:
    return shell.Parser(__doc__, prog="ssd-effnet keys")


def main(argv: Sequence[str] | None = None) -> None:
    parser().completed().parse_args(argv)
    if PAGE.is_file():
        write_whole(PAGE, keys_page())
    print(PAGE if PAGE.is_file() else keys_page())
