"""Two hundred epochs: memory and file handles stay flat, and TensorBoard bears a hundred such runs."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from untrained import of_pairs

from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")]
EPOCHS = 200


class Watch(Callback):
    """Resident memory (MiB) and open files of this process after each epoch."""

    def __init__(self) -> None:
        self.memory: list[float] = []
        self.files: list[int] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.files.append(len(list(Path("/proc/self/fd").iterdir())))


@pytest.fixture(scope="module")
def watched(few_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Watch, RunDirectory]:
    settings = ("data.workers=2", "trainer.panel_images=2", "trainer.ema_decay=0.9", f"trainer.epochs={EPOCHS}")
    e, out, watch = of_pairs(few_pairs, *settings), tmp_path_factory.mktemp("long"), Watch()
    run(e, out, echo=lambda line: None, callbacks=[watch])
    return watch, RunDirectory.of(e, out)


def test_memory_and_file_handles_stay_flat(watched: tuple[Watch, RunDirectory]) -> None:
    watch, _ = watched
    slope, of_files = (np.polyfit(np.arange(20, EPOCHS), of[20:], 1)[0] for of in (watch.memory, watch.files))
    memory, files = ([int(of[i]) for i in (1, 20, 100, 199)] for of in (watch.memory, watch.files))
    print(f"after epochs 1, 20, 100, 199: {memory} MiB, {files} open files; {slope:.3f} MiB an epoch")
    assert of_files < 0.25  # batches on their way from the workers hold some, now more, now fewer
    assert slope < 0.25  # MiB; one picture or one set of weights that is kept would be more


def test_tensorboard_bears_a_hundred_runs(watched: tuple[Watch, RunDirectory], tmp_path: Path) -> None:
    """As many runs of 200 epochs, each with its pictures."""
    events = sorted(watched[1].path.glob("events.out.tfevents.*"))
    size = sum(path.stat().st_size for path in events) / 2**20
    for number in range(100):
        (tmp_path / f"run{number}").mkdir()
        for path in events:
            shutil.copy(path, tmp_path / f"run{number}")
    board, since = EventMultiplexer(), time.perf_counter()
    board.AddRunsFromDirectory(str(tmp_path))
    board.Reload()
    print(f"{size:.1f} MiB of events a run; 100 runs read in {time.perf_counter() - since:.0f} s")
    assert len(board.Runs()) == 100
    assert size < 20
