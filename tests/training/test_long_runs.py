"""Two hundred epochs: memory and file handles stay flat."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Callback
from untrained import of_pairs

from ssd_effnet.training.run import run

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


def test_memory_and_file_handles_stay_flat(few_pairs: Path, tmp_path: Path) -> None:
    settings = ("data.workers=2", "trainer.panel_images=2", "trainer.ema_decay=0.9", f"trainer.epochs={EPOCHS}")
    watch = Watch()
    run(of_pairs(few_pairs, *settings), tmp_path, callbacks=[watch])
    slope, of_files = (np.polyfit(np.arange(20, EPOCHS), of[20:], 1)[0] for of in (watch.memory, watch.files))
    memory, files = ([int(of[i]) for i in (1, 20, 100, 199)] for of in (watch.memory, watch.files))
    print(f"after epochs 1, 20, 100, 199: {memory} MiB, {files} open files; {slope:.3f} MiB an epoch")
    assert of_files < 0.25  # batches on their way from the workers hold some, now more, now fewer
    assert slope < 0.25  # MiB; one picture or one set of weights that is kept would be more
