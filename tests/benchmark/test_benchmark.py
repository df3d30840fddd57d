"""The benchmark measures what it says, and refuses what it cannot."""

import json
from pathlib import Path

import pytest
import torch
from commands import command

from data_kaist.errors import RequestError
from ssd_effnet.benchmark import gpu
from ssd_effnet.benchmark.gpu import Speed, write_speeds
from ssd_effnet.benchmark.stages import STAGES
from ssd_effnet.cli import benchmark
from ssd_effnet.config.schema import ExperimentConfig


def test_complaints() -> None:
    assert "is not HxW" in command("benchmark", "loss", "--size", "512").stderr
    assert command("benchmark", "loss", "input.modality=lwir").returncode == 2
    assert command("benchmark", "loss", "--runs", 0).returncode == 2
    assert command("benchmark", "gpu", "--steps", 0).returncode == 2


def test_what_the_gpu_benchmark_cannot_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="20_lwir: reads lwir"):
        next(gpu.benchmark_gpu(tmp_path, gpu.Trial(torch.device("cpu")), ["lite0", "20_lwir"]))
    assert not list(tmp_path.iterdir())

    def small(e: object, trial: object, way: str, batch: int) -> tuple[float, float]:
        if batch > 16:
            raise torch.OutOfMemoryError
        return 100.0, 9000.0

    monkeypatch.setattr(gpu, "_train", small)
    (only,) = gpu._training(ExperimentConfig("any"), gpu.Trial(torch.device("cuda")), "fp32")
    assert (only.batch, only.images_per_second, only.peak_mib) == (16, 100, 9000)

    monkeypatch.setattr(gpu, "_train", lambda e, trial, way, batch: (100.0, 2000.0 + 1125 * batch))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (42_000 * 2**20, 0))
    every = gpu._training(ExperimentConfig("any"), gpu.Trial(torch.device("cuda")), "fp32")
    assert [(speed.batch, speed.peak_mib) for speed in every] == [(16, 20_000), (32, 38_000)]  # twice as many fit


@pytest.mark.slow
def test_each_stage_states_its_figures(tmp_path: Path) -> None:
    """Small and once: the figures mean nothing, only that they are there."""
    out = tmp_path / "new" / "figures.json"
    done = command("benchmark", "all", "--runs", 1, "--size", "128x160", "--json", out)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert list(dict.fromkeys(row["stage"] for row in figures["rows"])) == list(STAGES) == list(benchmark.STAGES)
    assert all(row["ms"] > 0 and row["times_faster"] > 0 for row in figures["rows"])
    assert len([row for row in figures["rows"] if "folded" in row["case"]]) == 3
    assert "1 threads" in figures["machine"] and "processor time" in figures["machine"]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_end_to_end_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "devices" / "cpu.json"
    done = command("benchmark", "gpu", "--device", "cpu", "--tiny", "--json", out)
    assert done.returncode == 0, done.stderr
    speeds = json.loads(out.read_text())["speeds"]
    loader = "training from the loader"
    inference = [(f"inference from {source}", "fp32", n) for n in (1, 2) for source in ("memory", "JPEG")]
    expected = [("training", "fp32", 2), ("training", "bf16", 2), (loader, "bf16", 2), *inference]
    assert [(s["what"], s["precision"], s["batch"]) for s in speeds] == expected
    assert all(s["images_per_second"] > 0 and s["peak_mib"] is None for s in speeds)
    assert [s["what"] for s in speeds if s["waiting"] is not None] == [loader]
    page = (out.parent / "README.md").read_text()
    assert page.count("| lite0 | 64x96 |") == len(expected) and "1,058" in page


def test_speeds_stand_beside_files_of_others(tmp_path: Path) -> None:
    speed = Speed("lite0", (64, 96), "training", "fp32", 2, 100.0, None, None)
    (tmp_path / "other.json").write_text('{"machine": "mine"}')
    write_speeds(tmp_path / "cpu.json", [speed], "this machine")
    page = (tmp_path / "README.md").read_text()
    assert page.count("| lite0 | 64x96 |") == 1 and "mine" not in page
    write_speeds(tmp_path / "second.json", [speed], "that machine")  # the page is its own
    assert (tmp_path / "README.md").read_text().count("| lite0 | 64x96 |") == 2
    (tmp_path / "README.md").write_text("# Mine\n")
    write_speeds(tmp_path / "cpu.json", [speed], "this machine")
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    assert len(json.loads((tmp_path / "cpu.json").read_text())["speeds"]) == 1


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    done = command("benchmark", "gpu", "--device", "cuda")
    assert done.returncode == 1 and "device 'cuda'" in done.stderr and done.stderr.count("\n") == 1
