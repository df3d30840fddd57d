"""Speed of a training step, against efficientnet-pytorch; effects of bf16 and compiling."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ssd_effnet.benchmark import scene
from ssd_effnet.benchmark.reference import stages as reference
from ssd_effnet.benchmark.reference.network import PackageBackbone
from ssd_effnet.benchmark.rows import Row, agree, compared
from ssd_effnet.build import as_size, build_criterion, build_detector, build_optimizer
from ssd_effnet.config.loading import load_experiment
from ssd_effnet.models.backbones import EfficientNet
from ssd_effnet.models.detector import Detector
from ssd_effnet.training.runtime import in_turns, keep_freed_memory


def benchmark_train(
    *,
    runs: int = 3,
    device: str = "cpu",
    size: tuple[int, int] | None = None,
    batch: int = 2,
    name: str = "01_effnet_b4",
    compiled: bool = False,
) -> Iterator[Row]:
    """Rows of one experiment's step: forward, loss, backward, optimiser.

    Args:
        size: (height, width) of the input; None: the experiment's own.
        batch: images.
        compiled: measure ``torch.compile`` too; compiling takes a minute or more and needs a compiler.
    """
    overrides = ["backbone.pretrained=none", "backbone.norm=batch", "class_loss.name=multibox"]
    experiment = load_experiment(name, overrides)
    size = size or as_size(experiment.input.size)
    image = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8).to(device)
    targets = scene.targets(batch, 3, size).to(device)
    criterion = build_criterion(experiment)

    def detector_of(layout: torch.memory_format) -> Detector:
        torch.manual_seed(0)
        detector = build_detector(experiment, pretrained=False)[0].to(device).train()
        laid: Detector = detector.to(memory_format=layout)  # type: ignore[call-overload]
        return laid

    plain_detector, own_detector = detector_of(torch.contiguous_format), detector_of(torch.channels_last)
    if isinstance(plain_detector.backbone, EfficientNet) and "lite" not in experiment.backbone.name:
        plain_detector.backbone = PackageBackbone(plain_detector.backbone, experiment.backbone.name).to(device)
    plain_optimizer, own_optimizer = (build_optimizer(experiment, d) for d in (plain_detector, own_detector))
    last = image.to(memory_format=torch.channels_last)

    def plain() -> torch.Tensor:
        keep_freed_memory(False)
        torch.manual_seed(0)
        plain_optimizer.zero_grad()
        out = plain_detector(image)
        if device == "cpu":
            boxes, labels = list(targets.boxes_xyxy), list(targets.labels)
            total = sum(reference.multibox_loss(out.cls_logits, out.bbox_regression, out.anchors_cxcywh, boxes, labels))
        else:
            total = criterion(out, targets).total
        assert isinstance(total, torch.Tensor)
        total.backward()
        plain_optimizer.step()
        return total.detach()

    def own(forward: nn.Module = own_detector, low: bool = False) -> torch.Tensor:
        keep_freed_memory(True)
        torch.manual_seed(0)
        own_optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=low):
            out = forward(last)
        total: torch.Tensor = criterion(out, targets).total
        total.backward()
        own_optimizer.step()
        return total.detach()

    first, plain_first = own(), plain()
    agreement = agree("loss of the first step", first / plain_first, torch.ones_like(first), 1e-3)
    calls = {"reference": plain, "own": own, "bf16": lambda: own(low=True)}
    if compiled:
        program = torch.compile(own_detector)
        calls["compiled"] = lambda: own(program)  # type: ignore[arg-type]
    times = in_turns(calls, runs, device)
    case = f"training step, {name} {size[0]}x{size[1]}, batch {batch}"
    yield compared("train", f"{case}: channels_last, memory kept", times, goal=1.3, agreement=agreement, per=batch)
    yield compared("train", f"{case}: and bf16 (its ratio to fp32)", times, own="bf16", reference="own", per=batch)
    if compiled:
        yield compared("train", f"{case}: and torch.compile", times, own="compiled", reference="own", per=batch)
