"""What a run will take is timed as the run itself computes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from untrained import LITE0

from ssd_effnet.build import build_criterion
from ssd_effnet.config import load_experiment
from ssd_effnet.criterion import Losses
from ssd_effnet.memory import OutOfMemory
from ssd_effnet.schema import ExperimentConfig
from ssd_effnet.structures import RawOutputs, Targets
from ssd_effnet.study.estimate import estimate

DATA = ("data.kind=coco", "data.train=train.json", "data.val=", "data.test=", "trainer.accelerator=cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    # Lightning takes bfloat16 for both on a CPU
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.bfloat16)],
)
def test_steps_are_timed_in_the_precision_of_the_run(
    precision: str, dtype: torch.dtype, few_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()

    def watched(e: ExperimentConfig) -> Callable[[RawOutputs, Targets], Losses]:
        def criterion(outputs: RawOutputs, targets: Targets) -> Losses:
            seen.add(outputs.cls_logits.dtype)
            losses: Losses = build_criterion(e)(outputs, targets)
            return losses

        return criterion

    monkeypatch.setattr("ssd_effnet.study.estimate.build_criterion", watched)
    settings = (*DATA, f"data.root={few_pairs}", f"trainer.precision={precision}")
    assert estimate(load_experiment(LITE0, settings, tiny=True)).step_seconds > 0
    assert seen == {dtype}


def test_too_little_memory_is_a_sentence(few_pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    monkeypatch.setattr("ssd_effnet.study.estimate.build_criterion", lambda e: fails)
    with pytest.raises(OutOfMemory, match=r"set trainer\.batch_size lower"):
        estimate(load_experiment(LITE0, (*DATA, f"data.root={few_pairs}"), tiny=True))
