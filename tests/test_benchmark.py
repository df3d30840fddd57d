"""The benchmark measures what it says, and refuses what it cannot."""

import subprocess
import sys
from pathlib import Path

import pytest

from ssd_effnet.benchmark.models import ModelFigures, models_table
from ssd_effnet.benchmark.timing import timed
from ssd_effnet.cost import Cost

ROOT = Path(__file__).parents[1]


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "models", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False, timeout=120
    )


@pytest.mark.parametrize(("size", "how"), [("64x96", ()), ("256x320", ("--training",))])
def test_one_row_an_experiment(size: str, how: tuple[str, ...]) -> None:
    file = ROOT / "experiments" / "efficientdet_d0.yaml"
    done = benchmark("--experiments", str(file), "--size", size, "--runs", "1", "--threads", "1", *how)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "efficientdet_d0" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[:3] == ["efficientdet_d0", size, "3.83"]
    assert all(float(cell) > 0 for cell in cells[5:8])
    assert "1 threads" in done.stdout and "torch" in done.stdout
    assert ("backward" in done.stdout) == bool(how)


def test_complaints() -> None:
    assert "is not HxW" in benchmark("--size", "512").stderr
    done = benchmark("--experiments", "experiments/none.yaml")
    assert done.returncode == 1 and "there is no such experiment file" in done.stderr


def test_the_first_call_is_not_counted() -> None:
    calls: list[int] = []
    assert len(timed(lambda: calls.append(1), 3)) == 3 and len(calls) == 4


def test_ratios_to_the_baseline_of_the_same_run() -> None:
    def figures(name: str, ms: float) -> ModelFigures:
        return ModelFigures(name, (512, 640), Cost(10**6, 10**9, 10), ms, ms, 100.0)

    table = models_table([figures("00_vgg16", 200.0), figures("x", 50.0)], "a machine")
    assert list(table.columns[-1].cells) == ["1.00", "0.25"]
    assert list(models_table([figures("x", 50.0)], "").columns[-1].cells) == ["-"]


@pytest.mark.slow
def test_all_experiments() -> None:
    done = benchmark("--size", "64x96", "--runs", "1")
    assert done.returncode == 0, done.stderr
    assert all(f"{i:02}_" in done.stdout for i in range(13))
