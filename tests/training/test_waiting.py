"""Time between steps is the loader's, time in steps the device's."""

from types import SimpleNamespace
from typing import Any

import pytest

from ssd_effnet.training.callbacks import Waiting


def _epoch(waiting: Waiting, clock: list[float], waits: list[float], steps: list[float]) -> None:
    nothing: Any = SimpleNamespace(logger=None)
    waiting.on_train_epoch_start(nothing, nothing)
    for number, (wait, step) in enumerate(zip(waits, steps, strict=True)):
        clock[0] += wait
        waiting.on_train_batch_start(nothing, nothing, None, number)
        clock[0] += step
        waiting.on_train_batch_end(nothing, nothing, None, None, number)
    clock[0] += 100  # validation is neither
    waiting.on_train_epoch_end(nothing, nothing)


def test_waiting_is_what_lies_between_two_steps() -> None:
    clock = [5.0]
    waiting = Waiting(clock=lambda: clock[0])
    _epoch(waiting, clock, [3.0, 0.5, 0.5], [2.0, 2.0, 2.0])
    assert waiting.of_epoch == pytest.approx(0.4)
    _epoch(waiting, clock, [0.0, 0.0], [5.0, 5.0])
    assert waiting.of_epoch == 0 and waiting.of_run == pytest.approx(0.2)
    assert str(waiting).startswith("20.0% of the training time") and "data.workers" in str(waiting)

    resumed = Waiting(clock=lambda: clock[0])
    resumed.load_state_dict(waiting.state_dict())
    _epoch(resumed, clock, [0.0], [100.0])
    assert resumed.of_run == pytest.approx(4 / 120) and "data.workers" not in str(resumed)
