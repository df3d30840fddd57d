"""Measures the machine's peak multiply rate."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ssd_effnet.training.runtime import in_turns


def multiply_rate(
    device: str = "cpu", runs: int = 5, dtype: torch.dtype = torch.float32, side: int = 1024
) -> tuple[float, float]:
    """GFLOP/s of multiplying square matrices and of a 3x3 convolution of 256 channels (channels_last)."""
    a = torch.randn(side, side, device=device).to(dtype)
    x = torch.randn(1, 256, side // 16, side // 16, device=device).to(dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device).to(dtype).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        times = in_turns({"matrix": lambda: a @ a, "convolution": lambda: F.conv2d(x, weight, padding=1)}, runs, device)
    of_convolution = 2 * 9 * 256 * 256 * (side // 16) ** 2
    return 2e-6 * side**3 / min(times["matrix"]), 1e-6 * of_convolution / min(times["convolution"])
