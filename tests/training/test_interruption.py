"""Runs that are killed, stopped, or run out of disk: what is there stays good, and --resume equals not stopping."""

import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from processes import ENVIRONMENT, script, started
from untrained import LITE0, SMALL, splits

from data_kaist import files
from data_kaist.dataset import collate
from data_kaist.files import write_whole
from ssd_effnet.config.loading import ExperimentConfig, load_experiment
from ssd_effnet.models.weights import WeightsError
from ssd_effnet.training.checkpoints import WholeCheckpoints
from ssd_effnet.training.devices import LostBatch
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import Interrupted, RunDirectory, RunError, State


def settings(root: Path, *overrides: str) -> list[str]:
    """Dropout, moving average, jitter and crops: whatever draws numbers or has a state."""
    trainer = ("trainer.epochs=3", "trainer.ema_decay=0.9", "trainer.test_checkpoint=last", "trainer.panel_images=1")
    recipe = ("augment.resized_crop.p=1", "schedule.name=cosine", "backbone.drop_connect=0.5")
    return [*SMALL, *splits(root, val="val.json"), *trainer, *recipe, "trainer.monitor=val/loss_total", *overrides]


def experiment(root: Path, *overrides: str) -> ExperimentConfig:
    return load_experiment(LITE0, settings(root, *overrides))


class Strikes(Callback):
    """Writes down the frames and pixel sums of each step; kills its process at a moment of the second epoch."""

    def __init__(self, seen: Path, moment: str) -> None:
        self.seen, self.moment = seen, moment

    def strike(self, moment: str, epoch: int = 1) -> None:
        if (moment, epoch) == (self.moment, 1):
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        self.strike("between two epochs", trainer.current_epoch)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        with self.seen.open("a") as file:
            print(trainer.current_epoch, batch_idx, *batch.names, batch.images.double().sum().item(), file=file)
        self.strike(f"in step {batch_idx} of an epoch", trainer.current_epoch)

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        self.strike("in a validation", trainer.current_epoch)

    def on_test_batch_start(self, *_: Any) -> None:
        self.strike("in the test")


def child(e: ExperimentConfig, folder: Path, moment: str = "", *, resume: bool = False) -> tuple[int, list[str]]:
    """Run in a process of its own; its exit code, and the frames and pixel sums of each step of its epochs."""
    strikes = Strikes(folder / f"seen-{resume}.txt", moment)
    whole, written = os.fsync, itertools.count(1)

    def half(number: int) -> None:
        if next(written) == 4:  # best, last; best and now last again
            os.ftruncate(number, os.fstat(number).st_size // 2)
            strikes.strike("in the writing of a checkpoint")
        whole(number)

    def work() -> None:
        files.os.fsync = half if moment == "in the writing of a checkpoint" else whole
        run(e, folder, resume=resume, callbacks=[strikes])

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode, strikes.seen.read_text().splitlines() if strikes.seen.is_file() else []


def comparable(checkpoint: Any) -> Any:
    """A checkpoint without what measures time or names the folder that it lies in."""
    callbacks = {name: state for name, state in checkpoint["callbacks"].items() if not name.startswith("Timer")}
    for name, state in callbacks.items():
        if name.startswith("ModelCheckpoint"):
            callbacks[name] = {k: v for k, v in state.items() if not k.endswith(("path", "dirpath", "models"))}
    return checkpoint | {"callbacks": callbacks}


def same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, wherever tensors lie in it."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), (where, a.keys() ^ b.keys())
        for key in a:
            same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}/{i}")
    else:
        assert a == b or (a != a and b != b), (where, a, b)


def same_runs(a: RunDirectory, b: RunDirectory) -> None:
    assert a.metrics_file.read_text() == b.metrics_file.read_text()
    assert a.detections_file.read_text() == b.detections_file.read_text()
    clocked = {"minutes", "data_share"}
    first, second = ({k: v for k, v in d.results().items() if k not in clocked} for d in (a, b))
    assert first == second
    for file in ("last.ckpt", "best.ckpt"):
        left, right = (torch.load(d.last.with_name(file), weights_only=True) for d in (a, b))
        assert {"state_dict", "optimizer_states", "lr_schedulers", "current_model_state"} <= left.keys()
        same(comparable(left), comparable(right), file)


@pytest.fixture(scope="module")
def unbroken(few_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, list[str]]:
    folder = tmp_path_factory.mktemp("unbroken")
    e = experiment(few_pairs)
    code, seen = child(e, folder)
    assert code == 0
    return RunDirectory.of(e, folder), seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "epochs"),
    [
        ("in step 1 of an epoch", 1),
        ("between two epochs", 1),
        ("in a validation", 1),
        ("in the writing of a checkpoint", 1),
        ("in the test", 3),
    ],
)
def test_a_killed_run_goes_on_and_equals_one_that_was_not(
    moment: str, epochs: int, few_pairs: Path, unbroken: tuple[RunDirectory, list[str]], tmp_path: Path
) -> None:
    e, (whole, seen) = experiment(few_pairs), unbroken
    directory = RunDirectory.of(e, tmp_path)
    code, before = child(e, tmp_path, moment)
    assert code == -signal.SIGKILL and directory.state is State.INTERRUPTED
    done = torch.load(directory.last, weights_only=True)["epoch"] + 1
    assert done == epochs  # at most the epoch that was under way is lost
    code, after = child(e, tmp_path, resume=True)
    assert code == 0 and directory.state is State.FINISHED
    same_runs(whole, directory)
    kept = [line for line in before if int(line.split()[0]) < epochs]
    assert kept + after == seen and len(seen) == 6
    assert not list(directory.path.rglob("*.part"))  # what was half written is swept away


class Presses(Callback):
    """Presses Ctrl+C in the middle of a step of an epoch, and counts the steps that are computed."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.steps = 0

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGINT)

    def on_before_zero_grad(self, *_: Any) -> None:
        self.steps += 1


@pytest.fixture(scope="module")
def stopped(few_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentConfig, Path, str]:
    """A run in whose second epoch Ctrl+C was pressed: experiment, folder and the sentence."""
    out = tmp_path_factory.mktemp("stopped")
    e = experiment(few_pairs, "trainer.epochs=2", "trainer.panel_images=0")
    before, presses = signal.getsignal(signal.SIGINT), Presses(epoch=1)
    with pytest.raises(Interrupted) as caught:
        run(e, out, callbacks=[presses])
    assert signal.getsignal(signal.SIGINT) is before
    assert presses.steps == 2  # those of the first epoch
    return e, out, str(caught.value)


def test_ctrl_c_stops_at_once_and_says_how_to_go_on(stopped: tuple[ExperimentConfig, Path, str]) -> None:
    e, out, sentence = stopped
    directory = RunDirectory.of(e, out)
    assert sentence == f"{directory}: stopped in epoch 2; with --resume it resumes from {directory.last}"
    assert directory.state is State.INTERRUPTED and len(directory.metrics()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "number"), [(0, signal.SIGTERM), (2, signal.SIGINT), (2, signal.SIGTERM)])
def test_ctrl_c_of_a_terminal_and_sigterm(workers: int, number: int, few_pairs: Path, tmp_path: Path) -> None:
    """They reach the whole process group, the loaders' workers too."""
    keys = settings(few_pairs, f"data.workers={workers}", "trainer.epochs=1000")
    directory = RunDirectory(tmp_path / "lite0" / "seed0")
    with started(script("train", LITE0, *keys, f"--out={tmp_path}"), directory.path) as process:
        os.killpg(process.pid, number)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert directory.state is State.INTERRUPTED
    assert said.splitlines()[-1].startswith(f"error: {directory}: stopped in epoch ") and "Traceback" not in said


class Unsendable:
    """What cannot be pickled."""

    def __reduce__(self) -> str:
        raise ValueError("cannot\nbe pickled")


def die(samples: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("collated", "error", "says"),
    [
        (lambda samples: Unsendable(), LostBatch, r"^a batch .* \(cannot be pickled\); data\.workers=0"),
        (die, RunError, r"has died.*data\.workers .*stopped in epoch 1; with --resume it starts over"),
    ],
    ids=["unsendable", "killed"],
)
def test_a_batch_that_is_lost_in_a_worker_ends_the_run_with_a_sentence(
    collated: Any, error: type[Exception], says: str, few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the loader waits for ever."""
    monkeypatch.setattr("ssd_effnet.training.devices.collate", collated)
    e = experiment(few_pairs, "data.workers=1", "trainer.epochs=1")
    with pytest.raises(error, match=says) as caught:
        run(e, tmp_path)
    directory = RunDirectory.of(e, tmp_path)
    assert directory.failure() == str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_waits_for_a_batch_is_stopped_at_once(
    number: signal.Signals, few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch may never come."""

    def late(samples: Any) -> Any:
        time.sleep(0.3)  # by now the run waits
        os.kill(os.getppid(), number)
        time.sleep(1)
        return collate(samples)

    monkeypatch.setattr("ssd_effnet.training.devices.collate", late)
    presses = Presses(epoch=99)
    with pytest.raises(Interrupted, match="stopped in epoch 1"):
        run(experiment(few_pairs, "data.workers=1"), tmp_path, callbacks=[presses])
    assert presses.steps == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="mounts a small /dev/shm of its own")
def test_a_small_dev_shm_is_named(few_pairs: Path, tmp_path: Path) -> None:
    """As a container has it: 64 MiB there, one here, for batches of 1.5."""
    keys = settings(few_pairs, "data.workers=2", "input.size=[512,512]")
    small = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm || exit 77; exec "$@"', "sh"]
    command = [*small, *script("train", LITE0, *keys, f"--out={tmp_path}")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("nothing may be mounted here")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: a batch that was read ahead could not be handed over (")
    assert all(words in done.stderr for words in ("/dev/shm holds 1 MiB", "--shm-size", "data.workers=0"))


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_checkpoint_that_is_not_written_leaves_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    writer = WholeCheckpoints()
    writer.save_checkpoint({"epoch": 1}, path)
    monkeypatch.setattr("data_kaist.files.os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device; .*last\.ckpt"):
        writer.save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_whole_files_name_themselves(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/below"):
        write_whole(tmp_path / "file" / "below" / "a.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"folder'$"):
        write_whole(tmp_path / "folder", "x")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}


def test_a_damaged_checkpoint_begins_nothing(stopped: tuple[ExperimentConfig, Path, str], tmp_path: Path) -> None:
    e, out = stopped[:2]
    shutil.copytree(out, tmp_path / "copy")
    directory = RunDirectory.of(e, tmp_path / "copy")
    whole, best = directory.last.read_bytes(), directory.best.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"PK" + whole[9:], b"PK\3\4 of another kind"):
        directory.last.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"last\.ckpt .*damaged"):
            run(e, tmp_path / "copy", resume=True)
        assert (directory.best.read_bytes(), directory.last.read_bytes()) == (best, damaged)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds three checkpoints and little more; Linux lends one to root."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no small file system can be mounted here (needs root)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk_leaves_the_last_good_checkpoint_and_one_sentence(few_pairs: Path, small_disk: Path) -> None:
    command = script("train", LITE0, *settings(few_pairs, "trainer.epochs=8"), f"--out={small_disk}")
    directory = RunDirectory(small_disk / "lite0" / "seed0")
    with started(command, directory.path) as run:
        filler = small_disk / "filler"
        while run.poll() is None:  # what a checkpoint leaves free for a moment is filled too
            try:
                with filler.open("ab") as file:
                    while True:
                        file.write(b"x" * 65536)
                        file.flush()
            except OSError:
                time.sleep(0.05)
        said, _ = run.communicate(timeout=300)
    assert run.returncode == 1 and "Traceback" not in said, said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1, said
    assert "No space left on device" in said and str(small_disk) in said
    epoch = torch.load(directory.last, weights_only=True)["epoch"]
    assert 0 <= epoch < 7 and not list(directory.path.rglob("*.part"))
    filler.unlink()
    done = subprocess.run([*command, "--resume"], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in directory.metrics()] == list(range(8))
    assert directory.results()["epochs"] == 8
