"""Ctrl+C and SIGTERM end a run at once; it goes on from its last epoch's checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lightning.pytorch import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(Callback):
    """Raises KeyboardInterrupt at Ctrl+C, and at SIGTERM, which batch systems and ``timeout`` send.

    Args:
        first: whether this process stops the run; the others go on until it ends them.

    Attributes:
        asked: whether somebody wants the run to end.
    """

    def __init__(self, *, first: bool = True) -> None:
        self.first = first
        self.asked = False
        self._listens = False

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
        self.asked = True
        if self.first:
            raise KeyboardInterrupt


def leave_to_parent(worker: int) -> None:
    """For a loader's worker: the terminal's Ctrl+C reaches it too, and is its parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
