"""The project's stages against the plain reference implementations that the benchmarks compare them with."""

import pytest
import torch

from data_kaist.structures import Targets
from ssd_effnet.benchmark import reference
from ssd_effnet.detection.boxes import cxcywh_to_xyxy
from ssd_effnet.detection.losses import DetectionLoss, MultiBoxLoss
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.structures import RawOutputs


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes_of(seed: int, *shape: int, largest: float = 90) -> torch.Tensor:
    """xyxy, in 320x256 pixels."""
    numbers = torch.rand(*shape, 4, generator=generator(seed))
    scale = torch.tensor([320.0, 256, largest, largest])
    return cxcywh_to_xyxy(numbers * scale + torch.tensor([0.0, 0, 6, 6]))


def anchors_of(seed: int, count: int) -> torch.Tensor:
    b = boxes_of(seed, count)
    return torch.cat([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1)


@pytest.mark.parametrize("people", [0, 1, 5])
@pytest.mark.parametrize("classes", [2, 3])
def test_loss_and_gradients_are_those_of_the_loop(people: int, classes: int) -> None:
    anchors = anchors_of(1, 700)
    boxes = boxes_of(2, 4, people)
    labels = torch.randint(1, classes, (4, people), generator=generator(3))
    padded = torch.cat([boxes, torch.zeros(4, 1, 4)], 1), torch.cat([labels, torch.zeros(4, 1).long()], 1)
    targets = Targets(*padded, torch.zeros(4, people + 1, dtype=torch.bool))
    values = []
    for own in (True, False):
        logits = torch.randn(4, 700, classes, generator=generator(4)).requires_grad_()
        offsets = torch.randn(4, 700, 4, generator=generator(5)).requires_grad_()
        if own:
            losses = DetectionLoss(MultiBoxLoss())(RawOutputs(logits, offsets, anchors), targets)
            cls, loc = losses.cls, losses.loc
        else:
            cls, loc = reference.multibox_loss(logits, offsets, anchors, list(boxes), list(labels))
        (cls + loc).backward()
        values.append((cls, loc, logits.grad, offsets.grad))
    for own_value, plain in zip(*values, strict=True):
        torch.testing.assert_close(own_value, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.5, 1.0])
def test_postprocess_finds_what_the_loop_finds(threshold: float) -> None:
    anchors = anchors_of(0, 900)
    logits = 3 * torch.randn(3, 900, 2, generator=generator(1))
    logits[2, :, 0] = 30  # an image with nobody on it
    offsets = 0.5 * torch.randn(3, 900, 4, generator=generator(2))
    detections = PostProcess(threshold, 900, 0.45, 50)(RawOutputs(logits, offsets, anchors), (256, 320))
    plain = reference.postprocess(
        logits, offsets, anchors, (256, 320), score_threshold=threshold, nms_iou=0.45, top_k=50
    )
    for i, (boxes, scores) in enumerate(plain):
        if threshold == 0:  # a score of 0 is no detection of ours
            boxes, scores = boxes[scores > 0], scores[scores > 0]
        own_boxes, own_scores, _ = detections.image(i)
        torch.testing.assert_close(own_boxes, boxes, rtol=0, atol=1e-4)
        torch.testing.assert_close(own_scores, scores, rtol=0, atol=0)


def test_the_best_candidates_alone_enter_nms() -> None:
    anchors = anchors_of(0, 300)
    logits = torch.randn(2, 300, 2, generator=generator(1))
    offsets = torch.zeros(2, 300, 4)
    every = PostProcess(0.01, 300, 1.0, 300)(RawOutputs(logits, offsets, anchors), (10_000, 10_000))
    best = PostProcess(0.01, 40, 1.0, 300)(RawOutputs(logits, offsets, anchors), (10_000, 10_000))
    assert best.scores.shape[1] == 40
    assert torch.equal(best.scores, every.scores[:, :40])
