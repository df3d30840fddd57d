"""Checkpoint files: atomic writing, and reading. Resuming: :mod:`.resume`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from data_kaist.files import write_whole
from ssd_effnet.models.weights import WeightsError, read_plain

PREFIX = "detector."
"""The training module's name of the detector."""


def read_checkpoint(file: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Content of a training checkpoint: tensors, from disk where ``mapped``, and plain data only.

    Raises:
        WeightsError: missing, damaged, or not of this project.
    """
    refusal = f"{file}: is not a checkpoint of this project"
    try:
        content = read_plain(file, mapped=mapped)
    except WeightsError as error:
        raise WeightsError(f"{refusal}, or it is damaged: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{refusal}; it holds a {type(content).__name__}")
    if missing := [key for key in ("experiment", "state_dict") if not isinstance(content.get(key), dict)]:
        raise WeightsError(f"{refusal}; it has no {' and no '.join(map(repr, missing))}")
    if not any(name.startswith(PREFIX) for name in content["state_dict"]):
        raise WeightsError(f"{refusal}; none of its weights is named {PREFIX}...")
    return content


class WholeCheckpoints(TorchCheckpointIO):
    """Atomic checkpoint files: temporary file, sync, rename.

    Lightning itself writes into the system's folder for temporary files and moves: where that is another file system,
    moving is copying over the last good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            write_whole(path, content.getvalue(), sync=True)
        except OSError as error:
            reason = f"{error.strerror or error}; the checkpoint before it stays whole"
            raise OSError(error.errno, reason, str(path)) from error
