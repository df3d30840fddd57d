"""What a run will take is timed as the run itself computes."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from untrained import of_pairs

from data_kaist.structures import Targets
from ssd_effnet.build import build_criterion
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.detection.losses import Losses
from ssd_effnet.structures import RawOutputs
from ssd_effnet.study.estimate import estimate_run
from ssd_effnet.training.memory import OutOfMemory


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", torch.float32), ("16-mixed", torch.bfloat16)],  # as Lightning takes it on a CPU
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
    e = of_pairs(few_pairs, f"trainer.precision={precision}", "input.size=[32,64]")
    assert estimate_run(e).minutes > 0
    assert seen == {dtype}


@pytest.mark.parametrize(("wanted", "jobs", "threads"), [(0, 1, 6), (0, 4, 1), (3, 4, 3)])
def test_steps_are_timed_with_the_threads_of_the_run(
    wanted: int, jobs: int, threads: int, few_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(_: object) -> None:
        raise RuntimeError(f"{torch.get_num_threads()} threads")

    monkeypatch.setattr("ssd_effnet.study.estimate.cores", lambda: 6)
    monkeypatch.setattr("ssd_effnet.study.estimate.collate", watched)
    before = torch.get_num_threads()
    e = of_pairs(few_pairs, f"trainer.threads={wanted}")
    with pytest.raises(RuntimeError, match=f"^{threads} threads"):
        estimate_run(e, jobs)
    assert torch.get_num_threads() == before


def test_minutes_by_hand(few_pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that advances two seconds at each look: a step reads for two and computes for two."""
    clock = itertools.count(0, 2)
    monkeypatch.setattr("ssd_effnet.study.estimate.time.perf_counter", lambda: next(clock))
    e = of_pairs(few_pairs, "trainer.epochs=30", "trainer.validate_every=3", "input.size=[32,64]")
    steps = 30 * 2 + 10 * 2 / 2 / 3  # of two images; each of ten validations has two, at a third of the time
    assert estimate_run(e).minutes == pytest.approx(steps * 4 / 60)


def test_too_little_memory_is_a_sentence(few_pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    monkeypatch.setattr("ssd_effnet.study.estimate.build_criterion", lambda e: fails)
    with pytest.raises(OutOfMemory, match=r"trainer\.batch_size"):
        estimate_run(of_pairs(few_pairs))
