"""Time between steps is the loader's, time in steps the device's."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_kaist import dataset
from ssd_effnet.benchmark.wait import measure_waits
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.training.progress import EpochLines, Waiting

LITE0 = Path(__file__).parents[2] / "experiments" / "lite0.yaml"


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


def test_how_long_a_step_takes_is_said_once_after_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    times = iter([0.0, 8.0])
    monkeypatch.setattr("ssd_effnet.training.progress.time.monotonic", lambda: next(times, 9.0))
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    shown = EpochLines(Waiting(), lines.append)
    trainer: Any = SimpleNamespace(num_training_batches=32)
    for _ in range(2):
        shown.on_train_epoch_start(trainer, trainer)
        for batch in range(32):
            shown.on_train_batch_end(trainer, trainer, None, None, batch)
    assert lines == ["about 2 s a step, 32 steps an epoch"]


def test_waiting_is_what_lies_between_two_steps() -> None:
    clock = [5.0]
    waiting = Waiting(clock=lambda: clock[0])
    _epoch(waiting, clock, [3.0, 0.5, 0.5], [2.0, 2.0, 2.0])
    assert waiting.of_epoch == pytest.approx(0.4)
    _epoch(waiting, clock, [0.0, 0.0], [5.0, 5.0])
    assert waiting.step_seconds == pytest.approx(20 / 5)
    assert waiting.of_epoch == 0 and waiting.of_run == pytest.approx(0.2)
    assert str(waiting).startswith("20.0% of the training time") and "data.workers" in str(waiting)

    resumed = Waiting(clock=lambda: clock[0])
    resumed.load_state_dict(waiting.state_dict())
    _epoch(resumed, clock, [0.0], [100.0])
    assert resumed.of_run == pytest.approx(4 / 120) and "data.workers" not in str(resumed)


def test_a_loader_that_keeps_up_lets_a_sleeping_model_wait_less(few_pairs: Path, monkeypatch: Any) -> None:
    """Images that take 20 ms each to read: steps of 1 ms wait for nearly all their time, of 200 ms for hardly any."""
    read = dataset.read_pair

    def slowly(*a: Any) -> Any:
        time.sleep(0.02)
        return read(*a)

    monkeypatch.setattr(dataset, "read_pair", slowly)
    settings = ("data.kind=coco", f"data.root={few_pairs}", "data.train=train.json", "data.val=val.json")
    e = load_experiment(LITE0, [*settings, "input.size=[64,96]", "trainer.batch_size=1", "data.workers=1"])
    fast, slow = measure_waits(e, [1, 200], batches=4)
    assert fast.share > 0.5 > 0.3 > slow.share
    assert slow.images_per_second < 5.1
