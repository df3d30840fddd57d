"""Out-of-memory errors as one sentence with a remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from data_kaist.errors import Failure
from ssd_effnet.config.schema import ExperimentConfig

# of CUDA and cuDNN, of torch on a CPU (Linux, macOS and Windows), of cuBLAS
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


class OutOfMemory(Failure, RuntimeError):
    """The computation does not fit into memory."""


@contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """Context that turns out-of-memory errors into :class:`OutOfMemory`. What does not fit, and a remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error)
        of_torch = isinstance(error, torch.OutOfMemoryError) or any(words in said for words in _WORDS)
        if isinstance(error, Failure) or not (of_torch or isinstance(error, MemoryError)):
            raise
        whose = "the GPU's memory" if "CU" in said else "the memory"  # CUDA, CUDNN, CUBLAS
        asked = re.search(r"allocate ([\d.]+ \w+)", said)
        raise OutOfMemory(
            f"{whose} does not hold {what}{f' ({asked[1]} more were asked for)' if asked else ''}; {remedy}"
        ) from error


def enough_for_batches(e: ExperimentConfig) -> AbstractContextManager[None]:
    """:func:`enough_memory` for the batches of an experiment."""
    height, width = e.input.size
    return enough_memory(
        f"batches of {e.trainer.batch_size} images of {width}x{height} pixels",
        "set trainer.batch_size lower, and optimizer.accumulate higher by the same factor, so that a step of the "
        "optimizer learns from as many images as before",
    )
