"""Writes checkpoint files whole. Reading: :mod:`ssd_effnet.models.weights`; resuming: :func:`.run.run`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from data_kaist.files import write_whole


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
