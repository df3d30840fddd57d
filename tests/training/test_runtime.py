"""The measured choice: the fastest way is taken, and results stay."""

import time
from pathlib import Path

import pytest
import torch
from torch import nn
from untrained import LITE0, SMALL, of_pairs

from ssd_effnet.build import build_detector
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.training import runtime
from ssd_effnet.training.devices import accelerator, devices
from ssd_effnet.training.run import _choose_runtime, run
from ssd_effnet.training.runtime import Runtime, bfloat16_pays, choose, keep_freed_memory, threads_of


def test_the_fastest_way_is_applied(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    module = nn.Conv2d(8, 8, 3)
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda on=True: True)
    before = torch.get_num_threads()

    def step() -> None:  # channels_first is the fast one here
        time.sleep(0.02 if module.weight.is_contiguous(memory_format=torch.channels_last) else 0.001)

    choice = choose(module, step, threads=1, rounds=1)
    assert len(choice.seconds) == 4
    assert not choice.chosen.channels_last and module.weight.is_contiguous()
    assert "channels_first" in str(choice) and "of 4 ways" in str(choice)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_what_cannot_be_set_is_not_tried(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda on=True: False)
    choice = choose(nn.Conv2d(2, 2, 1), lambda: None, threads=1, rounds=1)
    assert all(not way.keep_memory for way in choice.seconds) and len(choice.seconds) == 2


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    with threads_of(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    assert "1 threads, channels_last, freed memory kept" in str(Runtime(1, True, True))
    assert bfloat16_pays() in (True, False)


def test_measuring_leaves_weights_statistics_and_mode_alone() -> None:
    e = load_experiment(LITE0, SMALL)
    detector = build_detector(e, pretrained=False)[0]
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    assert "1 threads" in str(_choose_runtime(e, detector))
    assert detector.training and all(p.grad is None for p in detector.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    keep_freed_memory(False)


def test_a_run_says_what_it_chose_and_what_its_frames_take(few_pairs: Path, tmp_path: Path) -> None:
    how = ("data.val=", "trainer.test_checkpoint=last", "trainer.runtime=auto", "data.cache=memory")
    e = of_pairs(few_pairs, "data.test=val.json", *how)
    lines: list[str] = []
    results = run(e, tmp_path, echo=lines.append)
    keep_freed_memory(False)
    assert results["epochs"] == 1
    assert any(line.startswith("runtime: 1 threads, channels_") for line in lines)
    assert "train: decoded frames are kept and will take 0 MiB of memory" in lines


@pytest.mark.parametrize(
    ("asked", "cuda", "chosen"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("gpu", True, "cuda")],
)
def test_where_a_run_computes_is_decided_once(
    asked: str, cuda: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's own ``auto`` takes MPS on Apple silicon, while the run would believe in the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    e = load_experiment(LITE0, [f"trainer.accelerator={asked}"])
    assert accelerator(e) == devices(e)["accelerator"] == chosen
