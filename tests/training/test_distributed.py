"""Two processes with half the batch each are one process with the whole batch."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from processes import ENVIRONMENT, free_port, in_processes, script, started
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from untrained import LITE0, SMALL, of_pairs

from data_kaist.errors import Failure
from data_kaist.structures import Targets
from ssd_effnet.benchmark import scene
from ssd_effnet.build import build_criterion, build_detector
from ssd_effnet.config.loading import WHERE, ConfigError, ExperimentConfig, load_experiment
from ssd_effnet.distributed import gather_from_processes, mean_over_processes, rank, sync_batch_norms, world_size
from ssd_effnet.models.fusion import CHANNELS
from ssd_effnet.models.weights import read_plain
from ssd_effnet.training.devices import Processes, accelerator, devices
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import RunDirectory, RunError, State


def experiment(*overrides: str) -> ExperimentConfig:
    return load_experiment(LITE0, [*SMALL, "trainer.batch_size=8", *overrides])


def _batch(e: ExperimentConfig, images: int) -> tuple[torch.Tensor, Targets]:
    """Images with unequal numbers of people: many in the first half, none in the last image."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (images, len(CHANNELS[e.input.modality]), 64, 96), dtype=torch.uint8)
    targets = scene.targets(images, 3, (64, 96))
    targets.labels[images // 2 :, 1:] = 0
    targets.labels[-1] = 0
    return pixels, targets


class Step(nn.Module):
    """Forward and loss, as the training step has them."""

    def __init__(self, e: ExperimentConfig) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.detector = build_detector(e, pretrained=False)[0].double()
        self.criterion = build_criterion(e)

    def forward(self, pixels: torch.Tensor, targets: Targets) -> torch.Tensor:
        torch.manual_seed(2)  # of drop-connect
        total: torch.Tensor = self.criterion(self.detector(pixels), targets).total
        return total


def test_a_norm_that_activates_too_is_refused() -> None:
    """As timm's: what takes its place would let negative values through."""
    norm = nn.BatchNorm2d(2)
    norm.act = nn.ReLU()
    with pytest.raises(Failure, match="1: this batch norm also activates"):
        sync_batch_norms(nn.Sequential(nn.Conv2d(2, 2, 1), norm), gpu=False)


def _step(e: ExperimentConfig, images: int) -> dict[str, Any]:
    """Loss, gradients and statistics after one step of this process's share."""
    step = Step(e)
    pixels, targets = _batch(e, images)
    forward: nn.Module = step
    if e.trainer.devices > 1:
        distributed.init_process_group("gloo")
        sync_batch_norms(step.detector, gpu=False)
        forward = DistributedDataParallel(step)
        share = images // world_size()
        mine = slice(rank() * share, (rank() + 1) * share)
        pixels = pixels[mine]
        targets = Targets(targets.boxes_xyxy[mine], targets.labels[mine], targets.ignore[mine])
    loss = forward(pixels, targets)
    loss.backward()
    gradients = {name: p.grad for name, p in step.detector.named_parameters()}
    return {"loss": mean_over_processes(loss.detach()), "gradients": gradients, "buffers": dict(step.named_buffers())}


@pytest.mark.parametrize(
    "overrides",
    [("class_loss.name=focal",), ("input.modality=halfway", "fusion.shared=true")],  # lite0's is multibox
    ids=lambda o: "-".join(o),
)
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_shares_give_the_loss_and_the_gradients_of_the_whole(
    count: int, overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With drop-connect, trained batch norms, hard negatives and an image without people."""
    # doubles throughout, so that what differs by more than rounding stands out
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    e = experiment(*overrides, "backbone.drop_connect=0.5")
    whole = _step(e, 8)
    shared = experiment(*overrides, "backbone.drop_connect=0.5", f"trainer.devices={count}")
    for half in in_processes(count, tmp_path, lambda: _step(shared, 8)):
        torch.testing.assert_close(half["loss"], whole["loss"], rtol=1e-10, atol=0)
        for kind in ("gradients", "buffers"):
            assert half[kind].keys() == whole[kind].keys()
            for name, tensor in whole[kind].items():
                assert tensor is not None, name
                # a bias before a batch norm has no gradient but what rounding leaves
                atol = 1e-9 * float(tensor.abs().max()) + 1e-11
                torch.testing.assert_close(half[kind][name], tensor, rtol=0, atol=atol, msg=name)


def _everything(root: Path, *overrides: str) -> ExperimentConfig:
    loop = ("data.test=five.json", "data.allow_overlap=true", "trainer.test_checkpoint=last")
    # a rate so low that no weight moves: rounding would grow from step to step
    still = ("optimizer.name=sgd", "optimizer.lr=1e-30")
    # a low score, so that a detector that has not learned finds much
    much = ("postprocess.score_threshold=0.0001", "postprocess.top_k=200")
    return of_pairs(root, *loop, *still, *much, *overrides)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_of_several_processes_is_that_of_one(count: int, few_pairs: Path, tmp_path: Path) -> None:
    """Its five test images are three batches, of which two processes evaluate the first; it counts once."""
    batch = f"trainer.batch_size={count}"
    one, two = _everything(few_pairs, batch), _everything(few_pairs, batch, f"trainer.devices={count}")
    alone, together = RunDirectory.of(one, tmp_path / "one"), RunDirectory.of(two, tmp_path / "two")
    run(one, tmp_path / "one")
    lines: list[str] = []

    def work() -> tuple[int, list[str], Any]:
        results = run(two, tmp_path / "two", echo=lines.append)
        return rank(), lines, results["test"]

    first, second, *_ = in_processes(count, tmp_path, work)
    assert (first[0], second[0]) == (0, 1) and first[2] == second[2]
    assert any(line.startswith("epoch 1/1") for line in first[1]) and not second[1]
    assert _files(together) == _files(alone)
    for row_alone, row in zip(alone.metrics(), together.metrics(), strict=True):
        assert row.keys() == row_alone.keys()
        for name in ("train/loss_total", "train_epoch/loss_total", "val/loss_total"):
            assert row[name] == pytest.approx(row_alone[name], rel=1e-5)
        miss_rates = [name for name in row if name.startswith("val/MR/")]
        assert miss_rates and all(row[name] == row_alone[name] for name in miss_rates)

    # one process tests what they have learned
    shutil.rmtree(alone.path)
    shutil.copytree(together.path, alone.path)
    alone.results_file.unlink()
    run(one, tmp_path / "one", resume=True)
    assert alone.results()["test"] == together.results()["test"]
    assert alone.detections_file.read_bytes() == together.detections_file.read_bytes()
    assert len(alone.detections_file.read_bytes()) > 10_000


@pytest.mark.slow
def test_two_processes_step_clip_accumulate_cut_the_rate_and_go_on_as_one_does(few_pairs: Path, tmp_path: Path) -> None:
    """Here weights move: what differs after three steps is rounding."""
    loop = ("trainer.epochs=3", "optimizer.accumulate=2", "schedule.name=plateau", "schedule.patience=0")
    # validation never gets better than it begins, so plateau cuts; a norm of 0.01 is far below any gradient's
    rates = ("optimizer.lr=0.01", "optimizer.gradient_clip=0.01", "trainer.ema_decay=0.9")
    one = _everything(few_pairs, *loop, *rates)
    two = dataclasses.replace(one, trainer=dataclasses.replace(one.trainer, devices=2))
    alone, together = RunDirectory.of(one, tmp_path / "one"), RunDirectory.of(two, tmp_path / "two")
    run(one, tmp_path / "one")
    for epochs in (1, 2, 3):  # two processes, one, and two again
        e = dataclasses.replace(one if epochs == 2 else two)
        e.trainer = dataclasses.replace(e.trainer, epochs=epochs)

        def go_on(e: ExperimentConfig = e) -> None:
            run(e, tmp_path / "two", resume=e.trainer.epochs > 1)

        in_processes(e.trainer.devices, tmp_path, go_on)
    rates_alone, rates_together = ([row["lr/head"] for row in d.metrics()] for d in (alone, together))
    assert rates_together == rates_alone and len(set(rates_alone)) > 1
    seed_everything(one.trainer.seed, verbose=False)
    begin = build_detector(one, pretrained=False)[0]
    ways = []
    for directory in (alone, together):
        checkpoint = read_plain(directory.last)
        assert checkpoint["global_step"] == 3
        weights = {name.removeprefix("detector."): tensor for name, tensor in checkpoint["state_dict"].items()}
        ways.append(torch.cat([(weights[name] - p.detach()).flatten() for name, p in begin.named_parameters()]))
    assert (ways[1] - ways[0]).norm() < 1e-3 * ways[0].norm()


def _files(directory: RunDirectory) -> set[str]:
    return {path.name for path in directory.path.rglob("*") if "tfevents" not in path.name}


def test_a_process_that_is_alone_gets_back_what_it_gave() -> None:
    tensor = torch.ones(2)
    assert mean_over_processes(tensor) is tensor
    assert gather_from_processes("mine") == ["mine"]
    assert Processes.of(experiment()) == Processes(0, 1) and Processes().first


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer.batch_size is that of all 3 processes.* a multiple of 3, not 8"):
        Processes.of(experiment("trainer.devices=3"))


def test_processes_that_the_experiment_does_not_know_of_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    for number in (1, 2):
        with pytest.raises(ConfigError, match=rf"is {number}, but 4 processes were started"):
            Processes.of(experiment(f"trainer.devices={number}"))


def test_how_long_processes_wait_for_each_other_is_stated() -> None:
    for overrides, seconds in (((), 600), (("trainer.process_timeout=90",), 90)):
        strategy = devices(experiment("trainer.devices=2", *overrides))["strategy"]
        assert strategy._timeout.total_seconds() == seconds
    assert "trainer.process_timeout" in WHERE  # a run may go on with another one


@pytest.mark.slow
def test_a_process_that_never_answers_ends_the_run(few_pairs: Path, tmp_path: Path) -> None:
    """The second one hangs in its first step until the first one has given up."""
    e = _everything(few_pairs, "trainer.devices=2", "trainer.process_timeout=10")

    class Hang(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            while rank() and not (tmp_path / "given up").exists():
                time.sleep(0.1)

    def work() -> str:
        mine = int(os.environ["RANK"])
        try:
            run(e, tmp_path / "run", callbacks=[Hang()])
        except (RunError, SystemExit) as error:
            if mine == 0:
                (tmp_path / "given up").touch()
            distributed.destroy_process_group()
            return str(error)
        return "went on"

    said, _ = in_processes(2, tmp_path, work)
    assert "waited for it longer than trainer.process_timeout, 10 s" in said and "with --resume" in said


def _of_two(synthetic: Path, out: Path) -> list[str]:
    """The script as a user calls it, which starts the second process itself."""
    e = ("trainer.devices=2", "trainer.epochs=12", f"data.root={synthetic}", "trainer.batch_size=4", "data.workers=1")
    return script("train", LITE0, *SMALL, *e, "--out", out)


@pytest.mark.slow
def test_a_process_that_dies_takes_the_run_down_and_it_can_go_on(synthetic: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "lite0" / "seed0")
    command = _of_two(synthetic, tmp_path)
    with started(command, directory.path) as process:
        os.kill(_second_process_of(process.pid), signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"error: {directory}: one of the run's 2 processes has ended before its time" in said
    assert f"with --resume it resumes from {directory.last}" in said and said.count("epoch 1/12") == 1
    # where the first process hears of it before Lightning's watch ends it, it writes down why
    assert directory.state in (State.INTERRUPTED, State.FAILED)
    assert directory.failure() == "" or "has ended before its time" in directory.failure()

    done = subprocess.run([*command, "--resume"], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run directory: ") == 1 and "epoch 1/12" not in done.stdout
    assert [row["epoch"] for row in directory.metrics()] == list(range(12)) and directory.environment()["resumed"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_of_a_terminal_stops_all_processes(number: signal.Signals, synthetic: Path, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "lite0" / "seed0")
    with started(_of_two(synthetic, tmp_path), directory.path) as process:
        second = _second_process_of(process.pid)
        os.killpg(process.pid, number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith(f"error: {directory}: stopped in epoch ") and "Traceback" not in said
    assert directory.state is State.INTERRUPTED and _ended(second)


def _ended(pid: int) -> bool:
    """Within ten seconds; an orphan may stay a zombie, where nobody reaps."""
    status = Path(f"/proc/{pid}/status")
    for _ in range(100):
        if not status.exists() or "\nState:\tZ" in status.read_text():
            return True
        time.sleep(0.1)
    return False


def _second_process_of(pid: int) -> int:
    """The child with the local rank 1."""
    for path in Path("/proc").glob("[0-9]*"):
        if f"\nPPid:\t{pid}\n" in (path / "status").read_text() and b"LOCAL_RANK=1" in (path / "environ").read_bytes():
            return int(path.name)
    raise AssertionError("no second process")


Starts = list[tuple[dict[str, str], list[str]]]  # of each process: its environment, and what calls it


def _slurm(nodes: int) -> Starts:
    """What srun sets for two tasks on one node or on two, and what it calls."""
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NODELIST": "127.0.0.1"}
    job |= {"SLURM_NNODES": str(nodes), "SLURM_NTASKS_PER_NODE": str(2 // nodes), "MASTER_PORT": str(free_port())}
    places = [(i, 0, i) if nodes == 2 else (i, i, 0) for i in range(2)]
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
    return [(job | dict(zip(names, map(str, place), strict=True)), [sys.executable]) for place in places]


def _torchrun(nodes: int) -> Starts:
    """One torchrun for two processes, or one on each node."""
    where = ["--nnodes", str(nodes), "--nproc-per-node", str(2 // nodes), "--master-port", str(free_port())]
    start = [sys.executable, "-m", "torch.distributed.run", *where]
    return [({}, [*start, "--node-rank", str(node)]) for node in range(nodes)]


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("starter", [_slurm, _torchrun])
def test_others_start_it(starter: Callable[[int], Starts], nodes: int, synthetic: Path, tmp_path: Path) -> None:
    """Of two nodes that are both this machine, one writes and speaks."""
    e = (f"trainer.devices={2 // nodes}", f"trainer.num_nodes={nodes}", "trainer.epochs=1", "trainer.batch_size=4")
    _, *call = script("train", LITE0, *SMALL, *e, f"data.root={synthetic}", "--out", tmp_path)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    tasks = [subprocess.Popen([*start, *call], env=ENVIRONMENT | more, **pipes) for more, start in starter(nodes)]
    said = "".join(task.communicate(timeout=300)[0] for task in tasks)
    assert [task.returncode for task in tasks] == [0] * len(tasks), said
    assert said.count("epoch 1/1 ") == said.count("run directory: ") == 1, said
    directory = RunDirectory(tmp_path / "lite0" / "seed0")
    assert directory.state is State.FINISHED and _files(directory) >= {"results.json", "best.ckpt", "last.ckpt"}


@pytest.mark.parametrize(
    ("asked", "cuda", "chosen"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("gpu", True, "cuda")],
)
def test_where_a_run_computes(asked: str, cuda: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's own ``auto`` takes MPS on Apple silicon, while the run would believe in the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    e = experiment(f"trainer.accelerator={asked}")
    assert accelerator(e) == devices(e)["accelerator"] == chosen
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if asked == "gpu":
        with pytest.raises(ConfigError, match=r"trainer\.accelerator is gpu, but torch finds no CUDA device here"):
            Processes.of(e)
        with pytest.raises(ConfigError, match="finds no CUDA"):  # for those who test or estimate
            accelerator(e)
