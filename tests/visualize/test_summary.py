"""What a detector is said to cost, against what is published."""

import pytest
import torch
from torch import nn

from ssd_effnet.build import build_skeleton
from ssd_effnet.cli.main import main
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.models.cost import cost, multiply_adds
from ssd_effnet.visualize.summary import summarize


def test_a_convolutions_multiply_adds() -> None:
    convolution = nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    count, _ = multiply_adds(convolution, torch.zeros(1, 4, 5, 7))
    assert count == 5 * 7 * 6 * (4 // 2) * 9


def test_a_summary_adds_up() -> None:
    e = load_experiment("02_widen_3x3")
    parts, whole = summarize(e), cost(build_skeleton(e), (512, 640))
    assert [part.name for part in parts] == ["backbone", "adapter", "extras", "head"]
    assert sum(part.parameters for part in parts) == whole.parameters
    assert sum(part.multiply_adds for part in parts) == whole.multiply_adds
    anchors = [f"{n:,} anchors" for n in (30_720, 7_680, 1_920, 480, 480, 480)]
    assert [words.partition(": ")[2] for words in parts[-1].maps] == anchors
    stages = ("stage3: 56 @ 64x80, stride 8", "stage4: 112 @ 32x40, stride 16", "stage5: 160 @ 16x20, stride 32")
    assert parts[0].maps == stages
    # convolution with bias and batch norm: 9 * inputs * 512 + 512 + 2 * 512
    assert parts[1].parameters == 9 * (56 + 112 + 160) * 512 + 3 * (512 + 1024)
    assert parts[1].multiply_adds == 9 * 512 * (56 * 64 * 80 + 112 * 32 * 40 + 160 * 16 * 20)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summarize", "01_effnet_b4", "input.modality=halfway"]) == 0
    said = capsys.readouterr().out
    assert "halfway, one image of 512x640" in said and "30,720 anchors" in said
