"""Speed of forward passes, and from a JPEG to detections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import cv2
import numpy as np
import torch
from torch import nn

from ssd_effnet.benchmark.rows import Row, agree, compared
from ssd_effnet.build import as_size, build_detector, build_postprocess, build_skeleton
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.models.backbones import BACKBONES
from ssd_effnet.models.cost import cost
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.folding import fold
from ssd_effnet.training.runtime import bfloat16_pays, in_turns, keep_freed_memory

_UNTRAINED = ["backbone.pretrained=none", "backbone.norm=batch"]


def faster(module: nn.Module, image: torch.Tensor) -> nn.Module:
    """A copy for inference: norms folded (compared on a corner of the image), channels_last."""
    folded: nn.Module = fold(module, image[..., :64, :96]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return folded


def benchmark_forward(
    *,
    runs: int = 5,
    device: str = "cpu",
    size: tuple[int, int] | None = None,
    b4_size: tuple[int, int] | None = None,
) -> Iterator[Row]:
    """Rows of VGG16-BN, EfficientNet-B4 and lite0.

    Args:
        size, b4_size: (height, width) of the inputs; None: each experiment's own, and 512x640.
    """
    yield from _vgg_rows(runs, device, size)
    yield _b4(runs, device, b4_size or size or (512, 640))
    for name in ("00_vgg16", "lite0"):
        yield from _end_to_end(name, runs, device, size)


def _detector(name: str, size: tuple[int, int] | None) -> tuple[Detector, tuple[int, int], float]:
    """The experiment's detector with random weights and norms, its input size and its GFLOP."""
    torch.manual_seed(0)
    experiment = load_experiment(name, _UNTRAINED)
    detector = build_detector(experiment, pretrained=False)[0].eval()
    size = size or as_size(experiment.input.size)
    return detector, size, 2e-9 * cost(build_skeleton(experiment), size).multiply_adds


def _vgg_rows(runs: int, device: str, size: tuple[int, int] | None) -> Iterator[Row]:
    detector, size, gflop = _detector("00_vgg16", size)
    detector = detector.to(device)
    image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, device=device)
    last = image.to(memory_format=torch.channels_last)
    own = faster(detector, image)
    calls: dict[str, Callable[[], object]] = {
        "reference": partial(_with_memory, False, detector, image),
        "own": partial(_with_memory, True, own, last),
    }
    low = device != "cpu" or bfloat16_pays()
    if low:
        calls["bf16"] = partial(_in_bfloat16, device, own, last)
    with torch.inference_mode():
        agreement = agree("logits", own(last).cls_logits, detector(image).cls_logits, 1e-4)
        times = in_turns(calls, runs, device)
    case = f"VGG16-BN SSD {size[0]}x{size[1]}, {gflop:.0f} GFLOP"
    yield compared("forward", f"{case}: folded, channels_last, memory kept", times, agreement=agreement)
    if low:
        yield compared("forward", f"{case}: bf16, folded, channels_last", times, own="bf16", goal=3.5)


def _with_memory(keep: bool, module: nn.Module, image: torch.Tensor) -> object:
    keep_freed_memory(keep)
    return module(image)


def _in_bfloat16(device: str, module: nn.Module, image: torch.Tensor) -> object:
    keep_freed_memory(True)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        return module(image)


def _b4(runs: int, device: str, size: tuple[int, int]) -> Row:
    from efficientnet_pytorch import EfficientNet

    torch.manual_seed(0)
    theirs = EfficientNet.from_name("efficientnet-b4", image_size=None).eval().to(device)
    names = theirs.state_dict()
    ours = BACKBONES["efficientnet-b4"](levels=[2, 3, 4, 6], strides="published")
    ours.load_state_dict({name: names[name] for name in ours.state_dict()})
    image = torch.randn(1, 3, *size, device=device)
    own = faster(ours.to(device), image)
    last = image.to(memory_format=torch.channels_last)

    def plain() -> torch.Tensor:
        keep_freed_memory(False)
        x: torch.Tensor = theirs._swish(theirs._bn0(theirs._conv_stem(image)))
        for block in theirs._blocks:
            x = block(x)
        return x

    with torch.inference_mode():
        deepest, wanted = own(last)[-1], plain()
        scale = wanted.abs().max().clamp(min=1e-12)
        agreement = agree("deepest map over its largest value", deepest / scale, wanted / scale, 1e-4)
        times = in_turns({"reference": plain, "own": partial(_with_memory, True, own, last)}, runs, device)
    case = f"EfficientNet-B4 {size[0]}x{size[1]}, all blocks, against efficientnet-pytorch"
    return compared("forward", case, times, goal=1.7, agreement=agreement)


def _end_to_end(name: str, runs: int, device: str, size: tuple[int, int] | None) -> Iterator[Row]:
    """From the bytes of a JPEG to detections; the reference is the same network as it is trained, in NCHW."""
    detector, size, _ = _detector(name, size)
    experiment = load_experiment(name, _UNTRAINED)
    post = build_postprocess(experiment)
    detector = detector.to(device)
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8), size[::-1])
    own = faster(detector, torch.from_numpy(picture).permute(2, 0, 1)[None].to(device))
    data = cv2.imencode(".jpg", picture)[1]

    def detect(module: nn.Module, layout: torch.memory_format, keep: bool, low: bool = False) -> torch.Tensor:
        keep_freed_memory(keep)
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous(memory_format=layout).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=low):
            outputs = module(image)
        scores: torch.Tensor = post(outputs, size).scores
        return scores.cpu()

    calls = {
        "reference": partial(detect, detector, torch.contiguous_format, False),
        "own": partial(detect, own, torch.channels_last, True),
    }
    if low := device != "cpu" or bfloat16_pays():
        calls["bf16"] = partial(detect, own, torch.channels_last, True, True)
    with torch.inference_mode():
        agreement = agree("scores", calls["own"]()[:, :1], calls["reference"]()[:, :1], 1e-4)
        times = in_turns(calls, runs, device)
    case = f"JPEG to detections, {name} {size[0]}x{size[1]}"
    yield compared("forward", case, times, goal=1.2, agreement=agreement)
    if low:
        yield compared("forward", f"{case}, bf16", times, own="bf16", goal=4.0)
