#!/usr/bin/env python
"""Look at what a detector gets and what it makes of it. `scripts/visualize.py COMMAND --help` says more.

examples:
  scripts/visualize.py frames runs/lite0/seed0 --count 40 --score 0.5 --out pictures
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from data_kaist.errors import DataError
from ssd_effnet.config import ConfigError

Commands = argparse._SubParsersAction
Call = Callable[[argparse.Namespace], str]
"""Does the work and returns what is to be said about it. Imports what it needs itself, since torch is slow to start."""


def command(commands: Commands, name: str, call: Call) -> argparse.ArgumentParser:
    """A subcommand; its help is the docstring of what it calls."""
    words = call.__doc__ or ""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=words.partition("\n")[0],
        description=words,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(call=call)
    return parser


# ------------------------------------------------------------------------------------------------- frames


def add_frames(commands: Commands) -> None:
    parser = command(commands, "frames", frames)
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument("--out", type=Path, help="folder for the pictures (default: RUN/pictures)")
    parser.add_argument("--count", type=int, default=16, help="how many frames, the worst first (default: 16)")
    parser.add_argument("--score", type=float, default=0.3, help="least score of a detection (default: 0.3)")


def frames(arguments: argparse.Namespace) -> str:
    """Test frames of a run on which most went wrong, a PNG each."""
    from ssd_effnet.gallery.frames import write_pictures

    out = arguments.out or arguments.run / "pictures"
    written = write_pictures(arguments.run, out, count=arguments.count, min_score=arguments.score)
    return f"{len(written)} pictures in {out}"


# ------------------------------------------------------------------------------------------------- all


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_frames,):
        add(commands)
    arguments = parser.parse_args(argv)
    try:
        print(arguments.call(arguments))
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
