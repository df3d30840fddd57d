"""What only a real card shows: agreement with the CPU, no waits, killed runs, memory that runs out, two processes."""

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from data_kaist.structures import Targets
from ssd_effnet.benchmark import scene
from ssd_effnet.build import build_criterion, build_dataset, build_detector, build_optimizer, build_postprocess
from ssd_effnet.config.loading import ExperimentConfig, load_experiment
from ssd_effnet.distributed import mean_over_processes, sync_batch_norms
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.fusion import CHANNELS
from ssd_effnet.structures import RawOutputs
from ssd_effnet.training.devices import Processes, loader
from ssd_effnet.training.memory import OutOfMemory
from ssd_effnet.training.run import run
from ssd_effnet.training.run_directory import RunDirectory

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
LITE0 = ROOT / "experiments" / "lite0.yaml"
Record = Callable[[str, object], None]
CARD = torch.device("cuda:0")
FP32, BF16 = 1e-3, 5e-2  # of the largest value: what CPU and card may differ by; TF32 is off

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no card here: torch finds no CUDA device")


@pytest.fixture(autouse=True)
def without_tf32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def on_both(path: Path) -> tuple[ExperimentConfig, Detector, Detector, torch.Tensor, Targets]:
    drops = load_experiment(path).backbone.name.startswith("efficientnet-b")
    e = load_experiment(path, ["backbone.drop_connect=0"] if drops else [], tiny=True)
    torch.manual_seed(0)
    detector = build_detector(e, pretrained=False)[0]
    height, width = e.input.size
    images = torch.randint(0, 256, (2, len(CHANNELS[e.input.modality]), height, width), dtype=torch.uint8)
    return e, detector, copy.deepcopy(detector).to(CARD), images, scene.targets(2, 3, (height, width))


def distance(card: torch.Tensor, cpu: torch.Tensor) -> float:
    """The largest difference as a share of the largest value."""
    return float((card.detach().float().cpu() - cpu.detach()).abs().max() / cpu.detach().abs().max().clamp(min=1e-6))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_a_step_and_an_evaluation_agree_with_the_cpu(path: Path, record_property: Record) -> None:
    e, cpu, card, images, targets = on_both(path)
    criterion, postprocess = build_criterion(e), build_postprocess(e)
    images_card, targets_card = images.to(CARD), targets.to(CARD)
    for mode, tolerance, low in ((False, BF16, True), (True, FP32, False)):  # batch norm of two images amplifies bf16
        outputs: RawOutputs = cpu.train(mode)(images)
        with torch.autocast("cuda", torch.bfloat16, enabled=low):
            found = copy.deepcopy(card).train(mode)(images_card)
        apart = distance(criterion(found, targets_card).total, criterion(outputs, targets).total)
        record_property(f"loss {'bf16' if low else 'fp32'} within", f"{apart:.1e}")
        assert apart < tolerance, low

    optimizer = build_optimizer(e, card)
    criterion(card.train()(images_card), targets_card).total.backward()  # the first step makes anchors and workspaces
    optimizer.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        criterion(card(images_card), targets_card).total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.grad is not None and p.grad.isfinite().all() for p in card.parameters())
    optimizer.step()

    # made-up raw outputs: an untrained network's scores are so equal that rounding alone would order them
    outputs = cpu.eval()(images)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(outputs.cls_logits.shape, generator=generator)
    offsets = 0.1 * torch.randn(outputs.bbox_regression.shape, generator=generator)
    raw = replace(outputs, cls_logits=logits, bbox_regression=offsets)
    size = (images.shape[-2], images.shape[-1])
    on_card = RawOutputs(logits.to(CARD), offsets.to(CARD), raw.anchors_cxcywh.to(CARD), raw.anchors_per_level)
    of_cpu, of_card = postprocess(raw, size), postprocess(on_card, size)
    assert distance(of_card.scores, of_cpu.scores) < 1e-5
    assert (of_card.labels.cpu() == of_cpu.labels).float().mean() > 0.99
    close = (of_card.boxes_xyxy.cpu() - of_cpu.boxes_xyxy).abs().amax(-1) < 1e-2
    assert close.float().mean() > 0.99


@pytest.mark.parametrize("way", ["compiled", "channels_last"])
def test_another_way_to_compute_gives_the_same(way: str, record_property: Record) -> None:
    _, _, detector, images, _ = on_both(LITE0)
    detector, images = detector.eval(), images.to(CARD)
    with torch.inference_mode():
        plain = detector(images).cls_logits.cpu()
    other: nn.Module = copy.deepcopy(detector)
    if way == "compiled":
        other = torch.compile(other)  # type: ignore[assignment]
    else:
        other, images = (x.to(memory_format=torch.channels_last) for x in (other, images))  # type: ignore[call-overload]
    with torch.no_grad():
        apart = distance(other(images).cls_logits, plain)
    record_property("logits within", f"{apart:.1e}")
    assert apart < FP32


def small(root: Path, *overrides: str) -> ExperimentConfig:
    settings = (f"data.root={root}", "trainer.accelerator=gpu", "trainer.batch_size=4", "backbone.pretrained=none")
    return load_experiment(LITE0, [*settings, "backbone.norm=batch", *overrides], tiny=True)


def test_memory_that_runs_out_ends_in_a_sentence(synthetic: Path, tmp_path: Path) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(OutOfMemory, match="the GPU's memory does not hold batches of 4 images"):
            run(small(synthetic, "input.size=[512,640]"), tmp_path, echo=lambda line: None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_run_killed_in_an_epoch_goes_on(synthetic: Path, tmp_path: Path) -> None:
    settings = [f"data.root={synthetic}", "trainer.accelerator=gpu", "trainer.epochs=6", "backbone.pretrained=none"]
    code = "import sys; from ssd_effnet.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", str(LITE0), *settings, "backbone.norm=batch", "--tiny"]
    command += ["--out", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    directory = RunDirectory(tmp_path / "lite0-tiny" / "seed0")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while directory.epochs_done() < 2 and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in directory.metrics()] == list(range(6))


def test_the_loader_pins_memory_and_keeps_up(synthetic: Path, tmp_path: Path, record_property: Record) -> None:
    e = small(synthetic, "data.cache=memory", "data.workers=2", "trainer.epochs=3")
    batch = next(iter(loader(e, build_dataset(e, "train"), "train", Processes())))
    assert batch.images.is_pinned()
    results = run(e, tmp_path, echo=lambda line: None)
    record_property("waiting for data", f"{results['data_share']:.1%}")
    assert results["data_share"] < 0.5


def _share(rank: int, address: str, folder: str) -> None:
    """One of two processes: its half of a batch; writes the loss of both and the head's gradient."""
    many = torch.cuda.device_count() > 1
    device = torch.device("cuda", rank if many else 0)
    torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if many else "gloo", init_method=address, rank=rank, world_size=2)
    e, _, detector, images, targets = on_both(LITE0)
    detector = detector.to(device).train()
    sync_batch_norms(detector, gpu=True)
    share = slice(rank, rank + 1)
    mine = Targets(targets.boxes_xyxy[share], targets.labels[share], targets.ignore[share]).to(device)
    outputs = DistributedDataParallel(detector, device_ids=[device.index])(images[share].to(device))
    loss = build_criterion(e)(outputs, mine).total
    loss.backward()
    gradient = next(detector.head.parameters()).grad
    torch.save({"loss": mean_over_processes(loss.detach()).cpu(), "gradient": gradient.cpu()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path, record_property: Record) -> None:
    record_property("processes", "NCCL on two cards" if torch.cuda.device_count() > 1 else "gloo on one card")
    spawn(_share, (f"file://{tmp_path}/meeting", str(tmp_path)), nprocs=2)
    e, _, detector, images, targets = on_both(LITE0)
    loss = build_criterion(e)(detector.train()(images.to(CARD)), targets.to(CARD)).total
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(distance(half["loss"], loss.cpu()) < FP32 for half in halves)
    assert torch.equal(halves[0]["gradient"], halves[1]["gradient"])  # tests/training/test_distributed.py: of the whole
