"""The benchmark measures what it says, and refuses what it cannot."""

import json
from pathlib import Path

import pytest
import torch
from commands import command

from ssd_effnet.benchmark.models import ModelFigures, models_table
from ssd_effnet.benchmark.stages import STAGES
from ssd_effnet.cli import benchmark
from ssd_effnet.models.cost import Cost


def cells_of(name: str, *words: object) -> list[str]:
    done = command("benchmark", "models", "--runs", "1", "--threads", "1", *words)
    assert done.returncode == 0 and "1 threads" in done.stdout and "torch" in done.stdout, done.stderr
    row = next(line for line in done.stdout.splitlines() if name in line)
    return [cell.strip() for cell in row.strip("│").split("│")]


def test_one_row_an_experiment() -> None:
    cells = cells_of("efficientdet_d0", "--experiments", "efficientdet_d0", "--size", "64x96")
    assert cells[:3] == ["efficientdet_d0", "64x96", "3.83"]
    assert cells[5] == "32-true" and all(float(cell) > 0 for cell in cells[6:9])
    assert float(cells[8]) == pytest.approx(1000 / float(cells[6]), rel=0.02)


def test_settings_of_all_experiments() -> None:
    """Halfway fusion has two backbones' stems, LWIR alone one channel; precision is that of the passes."""
    small = ("--size", "64x96", "--experiments", "lite0")
    halfway = cells_of("lite0", "input.modality=halfway", "trainer.precision=bf16-mixed", *small)
    lwir = cells_of("lite0", *small, "input.modality=lwir")
    assert (halfway[5], lwir[5]) == ("bf16-mixed", "32-true") and float(halfway[3]) > float(lwir[3])
    assert command("benchmark", "loss", "input.modality=lwir").returncode == 2


def test_complaints() -> None:
    assert "is not HxW" in command("benchmark", "models", "--size", "512").stderr
    done = command("benchmark", "models", "--experiments", "experiments/none.yaml")
    assert done.returncode == 1 and "there is no such experiment file" in done.stderr


def test_ratios_to_the_baseline_of_the_same_run() -> None:
    def figures(name: str, ms: float) -> ModelFigures:
        return ModelFigures(name, (512, 640), Cost(10**6, 10**9, 10), [ms, 2 * ms])

    table = models_table([figures("00_vgg16", 200.0), figures("x", 50.0)], "a machine")
    assert list(table.columns[-1].cells) == ["1.00", "0.25"]
    assert list(models_table([figures("x", 50.0)], "").columns[-1].cells) == ["-"]


@pytest.mark.slow
def test_each_stage_states_its_figures(tmp_path: Path) -> None:
    """Small and once: the figures mean nothing, only that they are there."""
    out = tmp_path / "figures.json"
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


@pytest.mark.parametrize("what", ["models", "gpu"])
def test_a_gpu_that_is_not_there_is_named(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    done = command("benchmark", what, "--device", "cuda")
    assert done.returncode == 1 and "device 'cuda'" in done.stderr and done.stderr.count("\n") == 1
