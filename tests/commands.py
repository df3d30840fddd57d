"""A command as a user types it, but in this process, which has torch already: a start of Python takes seconds."""

import contextlib
import io
from dataclasses import dataclass

from ssd_effnet.cli.main import main


@dataclass(frozen=True)
class Done:
    """What it printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def command(*words: object) -> Done:
    """``ssd-effnet WORDS``."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
