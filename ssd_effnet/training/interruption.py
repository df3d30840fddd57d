"""Ctrl+C as people mean it: the step that is being computed is finished, and the run can go on later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopAfterStep(Callback):
    """Ends training, validation or test after the batch in which Ctrl+C was pressed; pressed twice, at once.

    While a batch is awaited nothing is computed, and once is enough: the batch may never come.

    SIGTERM, which batch systems and ``timeout`` send, counts as Ctrl+C.

    Args:
        echo: told one line when it is pressed.
        first: whether this process stops the run. The others must not stop at a step of their own: they would leave it
            waiting for their share of the next one, so they go on until it ends them.

    Attributes:
        asked: whether somebody wants the run to end.
    """

    def __init__(self, echo: Callable[[str], None], *, first: bool = True) -> None:
        self.echo = echo
        self.first = first
        self.asked = False
        self._listens = False
        self._complaint: Any = None  # torch's, about workers that have died

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals as long as the block runs; where threads may not, they stay with whoever has them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = [signal.getsignal(number) for number in SIGNALS]
        self._listens = True
        self._listen()
        try:
            yield
        finally:
            self._listens = False
            if self._complaint is not None:
                signal.signal(signal.SIGCHLD, self._complaint)
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)

    def _listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has put its own handler of SIGTERM before ours: it talks to processes that may not listen."""
        if self._listens:
            self._listen()

    on_test_start = on_train_start

    def _ask(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if not again and number == signal.SIGTERM:  # it may have ended the loader's workers, too
            self._complaint = signal.signal(signal.SIGCHLD, lambda *_: None)
        if self.first and (again or _waits_for_a_batch(frame)):
            raise KeyboardInterrupt
        self.echo("stopping after this step (Ctrl+C once more: at once)")

    def _stop(self, *_: Any, **__: Any) -> None:
        if self.asked and self.first:
            raise KeyboardInterrupt

    on_train_epoch_start = on_train_batch_end = on_validation_batch_end = on_test_batch_end = _stop


def _waits_for_a_batch(frame: FrameType | None) -> bool:
    """Whether what was interrupted is a loader."""
    while frame is not None and frame.f_globals.get("__name__") != DataLoader.__module__:
        frame = frame.f_back
    return frame is not None


def leave_to_parent(worker: int) -> None:
    """For a loader's worker: the terminal's Ctrl+C reaches it too, and would end it before the step that needs it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
