"""The benchmark measures what it says, and refuses what it cannot."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from commands import command

from ssd_effnet.benchmark.models import ModelFigures, models_table
from ssd_effnet.benchmark.stages import DisagreementError, agree, compared
from ssd_effnet.models.cost import Cost

ROOT = Path(__file__).parents[2]


def test_one_row_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    line = ("--experiments", "efficientdet_d0", "--runs", "1", "--threads", "1", "--training", "--size")
    small = command("benchmark", "models", *line, "64x96")
    assert small.returncode == 1 and "would normalise a single value" in small.stderr
    done = command("benchmark", "models", *line, "256x320")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "efficientdet_d0" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[:3] == ["efficientdet_d0", "256x320", "3.83"]
    assert cells[5] == "32-true" and all(float(cell) > 0 for cell in cells[6:10])
    assert float(cells[8]) == pytest.approx(1000 / float(cells[6]), rel=0.02)
    assert "1 threads" in done.stdout and "torch" in done.stdout
    assert "backward" in done.stdout


@pytest.mark.slow
def test_settings_of_all_experiments() -> None:
    """Halfway fusion has two backbones' stems, LWIR alone one channel; precision is that of the passes."""
    size = ("--size", "64x96", "--runs", "1", "--threads", "1")
    halfway = ("input.modality=halfway", "trainer.precision=bf16-mixed")
    rows = []
    for words in (
        (*halfway, *size, "--experiments", "lite0"),
        (*size, "--experiments", "lite0", "input.modality=lwir"),
    ):
        done = command("benchmark", "models", *words)
        assert done.returncode == 0, done.stderr
        rows.append([c.strip() for line in done.stdout.splitlines() if "lite0" in line for c in line.split("│")][1:-1])
    assert [row[5] for row in rows] == ["bf16-mixed", "32-true"] and float(rows[0][3]) > float(rows[1][3])
    assert command("benchmark", "loss", "input.modality=lwir").returncode == 2


def test_complaints() -> None:
    assert "is not HxW" in command("benchmark", "models", "--size", "512").stderr
    done = command("benchmark", "models", "--experiments", "experiments/none.yaml")
    assert done.returncode == 1 and "there is no such experiment file" in done.stderr


def test_ratios_to_the_baseline_of_the_same_run() -> None:
    def figures(name: str, ms: float) -> ModelFigures:
        return ModelFigures(name, (512, 640), Cost(10**6, 10**9, 10), ms, ms, 100.0)

    table = models_table([figures("00_vgg16", 200.0), figures("x", 50.0)], "a machine")
    assert list(table.columns[-1].cells) == ["1.00", "0.25"]
    assert list(models_table([figures("x", 50.0)], "").columns[-1].cells) == ["-"]


@pytest.mark.slow
def test_each_stage_agrees_with_its_reference_and_states_its_figures(tmp_path: Path) -> None:
    """Small and once: the figures mean nothing, only that they are there."""
    out = tmp_path / "figures.json"
    done = command("benchmark", "all", "--runs", 1, "--size", "128x160", "--json", out)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    rows = figures["rows"]
    stages = ["data", "loss", "postprocess", "whole", "forward", "export", "train"]
    assert list(dict.fromkeys(row["stage"] for row in rows)) == stages
    assert all(row["own_ms"] >= 0 for row in rows)
    compared = {row["stage"] for row in rows if row["ratio"]}
    assert compared == {"loss", "postprocess", "whole", "forward", "export", "train"}
    assert "1 threads" in figures["machine"] and "processor time" in figures["machine"]


def test_no_ratio_without_agreement() -> None:
    agree("x", torch.ones(2), torch.ones(2) + 1e-7, 1e-6)
    for other in (torch.zeros(2), torch.ones(3)):
        with pytest.raises(DisagreementError):
            agree("x", torch.ones(2), other, 1e-6)


def test_a_row_by_hand() -> None:
    times = {"own": [1.0, 2.0, 4.0], "reference": [10.0, 10.0, 10.0]}
    row = compared("loss", "x", times, goal=6.0, per=2)
    assert (row.own_ms, row.reference_ms, row.ratio, row.goal) == (1, 5, 5, 6)
    assert compared("loss", "x", times, reference=None).ratio is None


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


@pytest.mark.parametrize("what", ["models", "train", "gpu"])
def test_a_gpu_that_is_not_there_is_named(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    done = command("benchmark", what, "--device", "cuda")
    assert done.returncode == 1 and "device 'cuda'" in done.stderr and done.stderr.count("\n") == 1
