"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path | str, text: str) -> None:
    """Write beside the file and rename: whoever reads it sees the old text or the new one, never half.

    Missing folders are made; an interrupted or failed write leaves nothing behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_text(text, encoding="utf-8", newline="")
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
