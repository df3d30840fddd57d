"""Speed of the MultiBox loss, against a loop over images with full sorts."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ssd_effnet.benchmark import scene
from ssd_effnet.benchmark.reference import stages as reference
from ssd_effnet.benchmark.rows import Row, agree, compared
from ssd_effnet.detection.losses import DetectionLoss, MultiBoxLoss
from ssd_effnet.structures import RawOutputs
from ssd_effnet.training.runtime import in_turns


def benchmark_loss(
    *, runs: int = 5, batch: int = 8, people: int = 3, size: tuple[int, int] = scene.SIZE
) -> Iterator[Row]:
    """One row; on the CPU."""
    anchors, targets = scene.anchors(size), scene.targets(batch, people, size)
    logits, offsets = (x.requires_grad_() for x in scene.raw(batch, len(anchors)))
    criterion = DetectionLoss(MultiBoxLoss())

    def own() -> torch.Tensor:
        logits.grad = offsets.grad = None
        total: torch.Tensor = criterion(RawOutputs(logits, offsets, anchors), targets).total
        total.backward()
        return total.detach()

    def plain() -> torch.Tensor:
        logits.grad = offsets.grad = None
        cls, loc = reference.multibox_loss(logits, offsets, anchors, list(targets.boxes_xyxy), list(targets.labels))
        (cls + loc).backward()
        return (cls + loc).detach()

    results = []
    for call in (own, plain):
        total = call()
        assert logits.grad is not None and offsets.grad is not None
        results.append((total, logits.grad.clone(), offsets.grad.clone()))
    (loss, by_logits, by_offsets), (plain_loss, plain_by_logits, plain_by_offsets) = results
    agreement = agree("loss", loss / plain_loss, torch.ones(()), 1e-6)
    agree("gradient of logits", by_logits, plain_by_logits, 1e-6)
    agree("gradient of offsets", by_offsets, plain_by_offsets, 1e-6)
    case = f"MultiBox, {len(anchors):,} anchors, batch {batch}, {people} boxes, forward + backward"
    times = in_turns({"own": own, "reference": plain}, runs)
    yield compared("loss", case, times, agreement=f"{agreement} of its size, gradients too")
