"""Memory that runs out is one sentence that says what to change, wherever it happens."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from untrained import of_pairs, write_checkpoint

from ssd_effnet.inference.predictor import Predictor, load_detector
from ssd_effnet.structures import NonFiniteError
from ssd_effnet.training.memory import OutOfMemory, enough_memory
from ssd_effnet.training.module import TrainingModule
from ssd_effnet.training.run import run

OF_CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 11.90 GiB"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError(OF_CUDA), "the GPU's memory does not hold it (2.50 GiB more were asked for); rest"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "the GPU's memory does not"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes"), "(4 by"),
        (MemoryError(), "the memory does not hold it; rest"),
    ],
)
def test_memory_that_runs_out_is_a_sentence(error: Exception, says: str) -> None:
    with pytest.raises(OutOfMemory, match=re.escape(says)), enough_memory("it", "rest"):
        raise error


def test_what_torch_and_numpy_say_themselves_is_understood() -> None:
    with pytest.raises(OutOfMemory, match=r"^the memory does not hold it \(\d+ bytes"), enough_memory("it", "rest"):
        torch.empty(2**55, dtype=torch.uint8)
    with pytest.raises(OutOfMemory, match=r"^the memory does not hold it \(32\.0 PiB"), enough_memory("it", "rest"):
        np.empty(2**55, np.uint8)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("out of memory"), NonFiniteError("out of memory")])
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, enough_memory("it", "rest"):
        raise error
    assert caught.value is error


def fails(*_: object) -> None:
    raise torch.OutOfMemoryError(OF_CUDA)


@pytest.mark.parametrize("step", ["training_step", "validation_step", "test_step"])
def test_a_run_names_its_batch(step: str, few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e = of_pairs(few_pairs, "data.test=five.json", "data.allow_overlap=true")
    monkeypatch.setattr(TrainingModule, step, fails)
    with pytest.raises(OutOfMemory, match=r"GPU.* 2 images of 96x64 .*trainer\.batch_size .*optimizer\.accumulate"):
        run(e, tmp_path)


def test_a_detector_names_batch_and_zoom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor: Predictor = load_detector(write_checkpoint(tmp_path / "a.ckpt"), device="cpu")
    height, width = predictor.input_size
    monkeypatch.setattr(predictor, "folded", fails)
    with pytest.raises(OutOfMemory, match=rf"hold 2 images of {width}x{height} pixels at once .*--batch.*--zoom"):
        predictor.predict([np.zeros((64, 64, 3), np.uint8)] * 2)
