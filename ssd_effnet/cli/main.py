"""The command ``ssd-effnet``: one command per task, each a module beside this one with a parser and a main."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from types import ModuleType

from ssd_effnet.cli import shell

COMMANDS = (
    *("train", "test", "study", "evaluate", "detect", "visualize", "export"),
    *("convert", "inspect", "summarize", "synthesize", "search", "benchmark", "demo", "keys"),
)
DOC = """Train SSD pedestrian detectors, compare them, and find people with them.

`ssd-effnet COMMAND --help` shows a command's options and examples.
"""


@shell.command
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command that the first word names."""
    words = list(argv) if argv is not None else _completed_words() or sys.argv[1:]
    if words and words[0] in COMMANDS:
        code: int | None = module(words[0]).main(words[1:])
        return code
    parser().completed().parse_args(words)
    return 0


def module(command: str) -> ModuleType:
    """The module of a command."""
    return import_module(f"ssd_effnet.cli.{command}")


def parser() -> shell.Parser:
    """Parser whose help lists the commands. Each has the first line of its module's docstring."""
    lines = (f"  {name:<12}{(module(name).__doc__ or '').partition(chr(10))[0]}" for name in COMMANDS)
    parser = shell.Parser("\n".join((DOC, "commands:", *lines)), plugins=False, prog="ssd-effnet")
    parser.add_argument("--version", action="version", version=f"ssd-effnet {version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        commands.add_parser(name)
    return parser


def version() -> str:
    """Of the installed package."""
    try:
        return metadata.version("ssd-effnet")
    except metadata.PackageNotFoundError:  # a checkout in the path
        return "(not installed)"


def _completed_words() -> list[str]:
    """Command of a line to complete; sets where argcomplete begins."""
    if "_ARGCOMPLETE" not in os.environ:
        return []
    first = int(os.environ["_ARGCOMPLETE"])  # place of the first word behind the program
    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    command = (line + "|").split()[first:-1][:1]  # complete only if something follows it
    if command and command[0] in COMMANDS:
        os.environ["_ARGCOMPLETE"] = str(first + 1)
    return command
