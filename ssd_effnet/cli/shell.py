"""Help, error messages, exit codes, tables and tab completion of all commands.

Exit codes: 0, done; 1, a sentence on stderr says why not; 2, the command line is wrong; 130, stopped by Ctrl+C or
SIGTERM; 141, the output was closed. Colours are rich's: none where the output is no terminal, none with
``NO_COLOR``.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from data_kaist.errors import Doubt, Failure, one_line

if TYPE_CHECKING:
    from rich.table import Table

Main = Callable[[Sequence[str] | None], int | None]


class Parser(argparse.ArgumentParser):
    """Argument parser whose help is the module's docstring; errors are one sentence."""

    def __init__(self, doc: str | None = None, plugins: bool = True, **more: Any) -> None:
        more.setdefault("description", doc)
        super().__init__(**more, formatter_class=argparse.RawDescriptionHelpFormatter)
        text = "import it first: it registers parts that an experiment, run or checkpoint names; may be repeated"
        if plugins:
            self.add_argument("--plugins", action=_Import, default=argparse.SUPPRESS, metavar="MODULE", help=text)

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"error: {message}; {self.prog} --help says more\n")

    def add_overrides(self, words: str = "settings that differ from the file") -> None:
        """The positional argument ``key=value ...``, whose keys a shell can complete."""
        overrides = self.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=words)
        overrides.completer = complete_setting  # type: ignore[attr-defined]

    def parse_overrides(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The arguments; ``key=value`` that no argument takes joins ``overrides``, wherever it stands."""
        arguments, rest = self.completed().parse_known_args(argv)
        if unknown := [word for word in rest if "=" not in word or word.startswith("-")]:
            self.error(f"unknown arguments: {' '.join(unknown)}")
        arguments.overrides = [*getattr(arguments, "overrides", []), *rest]
        return arguments

    def completed(self) -> Parser:
        """Return the parser. If a shell asks for completions (``docs/running.md``), answer and exit."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)
        return self


class _Import(argparse.Action):
    """Imports a plugin; only a command line does, no file."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        from ssd_effnet.registry import load_plugins

        load_plugins([values])


def command(main: Main) -> Callable[..., int]:
    """Turn failures of a command's ``main`` into exit codes. Each is also one sentence on stderr.

    What is neither a :class:`~data_kaist.errors.Failure` nor an ``OSError`` is a defect of the program and keeps its
    traceback.
    """

    @functools.wraps(main)
    def guarded(argv: Sequence[str] | None = None) -> int:
        os.environ["MPLBACKEND"] = "agg"  # a notebook's may not be installed here, and no command opens a window
        try:
            with _sigterm_as_ctrl_c(), _doubts_in_a_line(), _threads_errors():
                code = main(argv) or 0
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        except BrokenPipeError:  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its exit
            return 141
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("ssd_effnet", "data_kaist"):
                raise
            print(
                f"error: {error.name} is not installed for {sys.executable}; run `make setup`, then "
                "`source .venv/bin/activate`, or `pip install .`",
                file=sys.stderr,
            )
            return 1
        except (Failure, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code if isinstance(error, Failure) else 1

    return guarded


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Context in which SIGTERM raises KeyboardInterrupt. It holds the signal, so that child processes are told."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _doubts_in_a_line() -> Iterator[None]:
    """Context that prints each :class:`~data_kaist.errors.Doubt` as ``warning: ...``, in the first process only."""
    usual = warnings.showwarning
    first = all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, Doubt):
            usual(message, category, *where, **more)
        elif first:
            print(f"warning: {one_line(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _threads_errors() -> Iterator[None]:
    """Context whose end raises a background thread's OSError. Any other error comes first; no traceback is printed.

    TensorBoard's writer is such a thread: it raises its error once more in the first one, at the next figure.
    """
    usual, failures = threading.excepthook, list[OSError]()

    def keep(failed: threading.ExceptHookArgs) -> None:
        if isinstance(failed.exc_value, OSError):
            failures.append(failed.exc_value)
        else:
            usual(failed)

    threading.excepthook = keep
    try:
        yield
    finally:
        threading.excepthook = usual
    for failure in failures:
        raise failure


def plugins_again() -> str:
    """The ``--plugins`` of this command, for the next commands that it prints."""
    from ssd_effnet.registry import plugins

    return "".join(f" --plugins {name}" for name in plugins)


def without_settings(words: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Paths, and the ``key=value`` among them. These are words with ``=`` that name no file."""
    settings = [str(word) for word in words if "=" in str(word) and not Path(word).exists()]
    return [Path(word) for word in words if str(word) not in settings], settings


def add_subsets(parser: argparse.ArgumentParser) -> None:
    """The option ``--subsets`` of a table of miss rates: names, or ``all``."""
    from ssd_effnet.evaluation.subsets import REASONABLE, SUBSETS

    class Chosen(argparse.Action):
        def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
            setattr(namespace, self.dest, tuple(SUBSETS) if "all" in values else tuple(dict.fromkeys(values)))

    words = f"whose miss rates the table shows: {', '.join(SUBSETS)}, or all (default: the reasonable ones)"
    choices = (*SUBSETS, "all")
    parser.add_argument(
        "--subsets", nargs="+", choices=choices, default=REASONABLE, action=Chosen, metavar="SUBSET", help=words
    )


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal. In a pipe it has 200 columns. Brackets in names are no markup."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False).print(table)


def size(text: str) -> tuple[int, int]:
    """An argument ``512x640`` as (height, width) in pixels, each at least 32.

    >>> size("512x640")
    (512, 640)
    """
    try:
        height, width = (whole_number(part, least=32) for part in text.split("x"))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW of at least 32 pixels each, as 512x640") from None
    return height, width


def whole_number(text: str, least: int = 0) -> int:
    """An argument that is a whole number."""
    if not text.isdecimal() or len(text) > 15 or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from {least}")
    return int(text)


positive = functools.partial(whole_number, least=1)


def complete_setting(prefix: str, **_: object) -> list[str]:
    """Completions of ``key=value``: keys, and values of keys with few choices.

    >>> complete_setting("optimizer.l")
    ['optimizer.lr=']
    >>> complete_setting("optimizer.name=")
    ['optimizer.name=sgd', 'optimizer.name=rmsprop', 'optimizer.name=adamw']
    """
    from ssd_effnet.config.keys import choices, key_types

    key, equals, _value = prefix.partition("=")
    if not equals:
        return [f"{name}=" for name in key_types() if name.startswith(prefix)]
    return [word for value in choices(key) if (word := f"{key}={value}").startswith(prefix)]


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} should lie in 0..1")
    return value


def picture(text: str) -> Path:
    """An argument that is a picture's file; its suffix chooses the format."""
    if not text.endswith((".png", ".svg", ".pdf", ".jpg")):
        raise argparse.ArgumentTypeError(f"{text}: a picture's name should end in .png, .svg, .pdf or .jpg")
    return Path(text)
