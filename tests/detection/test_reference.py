"""Loss and postprocessing against loops over images and boxes, written from the papers."""

import pytest
import torch
from torch.nn import functional as F

from data_kaist.structures import Targets
from ssd_effnet.detection.losses import DetectionLoss, MultiBoxLoss
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.structures import RawOutputs


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def centred(seed: int, *shape: int) -> torch.Tensor:
    """cxcywh, in 320x256 pixels."""
    numbers = torch.rand(*shape, 4, generator=generator(seed))
    return numbers * torch.tensor([320.0, 256, 90, 90]) + torch.tensor([0.0, 0, 6, 6])


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Centre and size to xyxy."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def iou_matrix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``(n, m)`` of xyxy boxes ``(n, 4)`` and ``(m, 4)``."""
    size = (torch.min(a[:, None, 2:], b[None, :, 2:]) - torch.max(a[:, None, :2], b[None, :, :2])).clamp(min=0)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b)]
    return size.prod(-1) / (areas[0][:, None] + areas[1][None] - size.prod(-1))


def plain_targets(
    anchors: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes ``(A,)`` and offsets ``(A, 4)`` of one image, as SSD matches."""
    if not len(boxes):
        return torch.zeros(len(anchors), dtype=torch.int64), torch.zeros(len(anchors), 4)
    overlaps = iou_matrix(corners(boxes), corners(anchors))
    best_overlap, best_object = overlaps.max(0)
    for i, anchor in enumerate(overlaps.max(1).indices.tolist()):
        best_overlap[anchor], best_object[anchor] = 2.0, i
    matched = boxes[best_object]
    centre = (matched[:, :2] - anchors[:, :2]) / (0.1 * anchors[:, 2:])
    offsets = torch.cat([centre, torch.log(matched[:, 2:] / anchors[:, 2:]) / 0.2], 1)
    return torch.where(best_overlap < 0.5, 0, labels[best_object]), offsets


@pytest.mark.parametrize("people", [0, 1, 5])
@pytest.mark.parametrize("classes", [2, 3])
def test_loss_and_gradients_are_those_of_the_loop(people: int, classes: int) -> None:
    anchors, boxes = centred(1, 700), centred(2, 4, people)
    labels = torch.randint(1, classes, (4, people), generator=generator(3))
    padded = torch.cat([corners(boxes), torch.zeros(4, 1, 4)], 1), torch.cat([labels, torch.zeros(4, 1).long()], 1)
    targets = Targets(*padded, torch.zeros(4, people + 1, dtype=torch.bool))
    values = []
    for own in (True, False):
        logits = torch.randn(4, 700, classes, generator=generator(4)).requires_grad_()
        offsets = torch.randn(4, 700, 4, generator=generator(5)).requires_grad_()
        if own:
            losses = DetectionLoss(MultiBoxLoss())(RawOutputs(logits, offsets, anchors), targets)
            cls, loc = losses.cls, losses.loc
        else:
            of_images = [plain_targets(anchors, *image) for image in zip(boxes, labels, strict=True)]
            wanted, where = zip(*of_images, strict=True)
            target, positive = torch.stack(wanted), torch.stack(wanted) > 0
            divisor = positive.sum(1).clamp(min=1).sum()
            loc = F.smooth_l1_loss(offsets[positive], torch.stack(where)[positive], reduction="sum") / divisor
            entropy = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
            rank = entropy.detach().masked_fill(positive, -1).sort(1, descending=True).indices.sort(1).indices
            hard = rank < (3 * positive.sum(1, keepdim=True)).clamp(min=16)
            cls = entropy[positive | hard].sum() / divisor
        (cls + loc).backward()
        values.append((cls, loc, logits.grad, offsets.grad))
    for own_value, plain in zip(*values, strict=True):
        torch.testing.assert_close(own_value, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.5, 1.0])
def test_postprocess_finds_what_the_loop_finds(threshold: float) -> None:
    anchors = centred(0, 900)
    logits = 3 * torch.randn(3, 900, 2, generator=generator(1))
    logits[2, :, 0] = 30  # an image with nobody on it
    offsets = 0.5 * torch.randn(3, 900, 4, generator=generator(2))
    detections = PostProcess(threshold, 900, 0.45, 50)(RawOutputs(logits, offsets, anchors), (256, 320))
    for i in range(3):
        scores = logits[i].softmax(-1)[:, 1]
        centre = offsets[i, :, :2] * 0.1 * anchors[:, 2:] + anchors[:, :2]
        boxes = corners(torch.cat([centre, torch.exp(offsets[i, :, 2:] * 0.2) * anchors[:, 2:]], 1))
        boxes = boxes.clamp(min=0).minimum(torch.tensor([320.0, 256, 320, 256]))
        good = (scores >= threshold) & (scores > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)  # a score of 0 is none
        left, kept = scores.masked_fill(~good, -1).sort(descending=True, stable=True).indices[: good.sum()], []
        while len(left):  # take the best, drop what overlaps it, repeat
            kept.append(int(left[0]))
            left = left[1:][iou_matrix(boxes[left[:1]], boxes[left[1:]])[0] <= 0.45]
        own_boxes, own_scores, _ = detections.image(i)
        torch.testing.assert_close(own_boxes, boxes[kept[:50]], rtol=0, atol=1e-4)
        torch.testing.assert_close(own_scores, scores[kept[:50]], rtol=0, atol=0)


def test_the_best_candidates_alone_enter_nms() -> None:
    anchors = centred(0, 300)
    logits = torch.randn(2, 300, 2, generator=generator(1))
    offsets = torch.zeros(2, 300, 4)
    every = PostProcess(0.01, 300, 1.0, 300)(RawOutputs(logits, offsets, anchors), (10_000, 10_000))
    best = PostProcess(0.01, 40, 1.0, 300)(RawOutputs(logits, offsets, anchors), (10_000, 10_000))
    assert best.scores.shape[1] == 40
    assert torch.equal(best.scores, every.scores[:, :40])
