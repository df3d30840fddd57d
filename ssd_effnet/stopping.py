"""Ctrl+C as people mean it: the step that is being computed is finished, and the run can go on later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch import Callback


class StopAfterStep(Callback):
    """Ends training, validation or test after the batch in which Ctrl+C was pressed; pressed twice, at once.

    Args:
        echo: told one line when it is pressed.
        first: whether this process stops the run. The others must not stop at a step of their own: they would leave it
            waiting for their share of the next one, so they go on until it ends them.
    """

    def __init__(self, echo: Callable[[str], None], *, first: bool = True) -> None:
        self.echo = echo
        self.first = first
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT as long as the block runs; where threads may not, it stays with whoever has it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._ask if self.first else signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.echo("stopping after this step (Ctrl+C once more: at once)")

    def _stop(self, *_: Any, **__: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = _stop


def leave_to_parent(worker: int) -> None:
    """For a loader's worker: the terminal's Ctrl+C reaches it too, and would end it before the step that needs it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
