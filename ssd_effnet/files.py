"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path | str, content: str | bytes, *, sync: bool = False) -> None:
    """Write beside the file and rename: whoever reads it sees the old content or the new one, never half.

    Missing folders are made; an interrupted or failed write leaves nothing behind.

    Args:
        path: of the file.
        content: text is written as UTF-8.
        sync: wait until the disk has it, so that it outlives a power cut too.

    Raises:
        OSError: it cannot be written; names the file.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            # names from the disk may hold bytes that are no UTF-8: they come out as they were
            file.write(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
            if sync:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        _forget(beside)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        _forget(beside)
        raise


def _forget(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # what went wrong before is what is to be told
        return
