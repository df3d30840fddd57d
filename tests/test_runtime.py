"""The measured choice: the fastest way is taken, and results stay."""

import time

import torch
from torch import nn

from ssd_effnet import runtime
from ssd_effnet.runtime import Runtime, bfloat16_pays, choose, keep_freed_memory, threads_of


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


def test_memory_kept_or_not_computes_the_same() -> None:
    x = torch.randn(1, 16, 600, 600)
    results = []
    for keep in (True, False):
        assert keep_freed_memory(keep) in (True, False)
        results.append((x * 2).relu().sum())
    assert results[0] == results[1]


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    with threads_of(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    assert "1 threads, channels_last, freed memory kept" in str(Runtime(1, True, True))
    assert bfloat16_pays() in (True, False)
