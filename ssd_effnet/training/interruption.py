"""Handling of Ctrl+C and SIGTERM: the run ends at once and can be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lightning.pytorch import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(Callback):
    """Raises KeyboardInterrupt on Ctrl+C and SIGTERM (sent by batch systems and ``timeout``).

    Only the ``first`` process stops the run; the others note that they were ``asked``, and go on until it ends them.
    """

    def __init__(self, *, first: bool = True) -> None:
        self.first = first
        self.asked = False
        self._listens = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals within the block. Outside the main thread they are left alone."""
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
        """Restore this handler of SIGTERM: Lightning's waits for processes that may hang."""
        if self._listens:
            self._listen()

    on_test_start = on_train_start

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.first:
            raise KeyboardInterrupt


def leave_to_parent(worker: int) -> None:
    """Ignore Ctrl+C in a loader's worker; its parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
