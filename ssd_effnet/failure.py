"""What goes wrong in a way that a sentence can tell."""

from typing import ClassVar


class Failure(Exception):
    """One sentence for the user, naming the file, frame or key; a command prints it and ends with its exit code."""

    exit_code: ClassVar[int] = 1
