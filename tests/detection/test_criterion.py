"""Matching and losses by hand."""

import math
from dataclasses import fields

import pytest
import torch
from waits import NoWaits

from data_kaist.structures import Targets
from ssd_effnet.detection.boxes import cxcywh_to_xyxy, iou
from ssd_effnet.detection.losses import BOX_LOSSES, CLASS_LOSSES, DetectionLoss, MultiBoxLoss
from ssd_effnet.detection.matching import Assignment, ATSSMatcher, Matcher, MaxIoUMatcher
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.structures import RawOutputs

# four anchors of 10x10 in a row, and one of 10x20 over the first
ANCHORS = torch.tensor([[5.0, 5, 10, 10], [15, 5, 10, 10], [25, 5, 10, 10], [35, 5, 10, 10], [5, 10, 10, 20]])


def targets(*images: list[tuple[list[float], bool]]) -> Targets:
    most = max(1, *(len(image) for image in images))
    result = Targets(
        torch.zeros(len(images), most, 4),
        torch.zeros(len(images), most, dtype=torch.int64),
        torch.zeros(len(images), most, dtype=torch.bool),
    )
    for i, image in enumerate(images):
        for j, (box, ignore) in enumerate(image):
            result.boxes_xyxy[i, j] = torch.tensor(box)
            result.labels[i, j] = 1
            result.ignore[i, j] = ignore
    return result


def match(anchors: torch.Tensor, truth: Targets, *thresholds: float) -> Assignment:
    nothing = torch.zeros(len(truth.labels), len(anchors), 1)
    return MaxIoUMatcher(*thresholds)(RawOutputs(nothing, nothing.expand(-1, -1, 4), anchors), truth)


def test_every_object_gets_its_best_anchor_and_all_above_the_threshold() -> None:
    # the first object equals anchor 0 and covers half of anchor 4; the second touches anchor 2 by IoU 1/3 only
    found = match(ANCHORS, targets([([0, 0, 10, 10], False), ([25, 0, 35, 10], False)]))
    # IoU of the second object with anchors 2 and 3 is 1/3 each: the first of them is its best
    assert found.object_index.tolist() == [[0, -1, 1, -1, 0]]
    assert found.classes.tolist() == [[1, 0, 1, 0, 1]]
    torch.testing.assert_close(found.quality, torch.tensor([[1, 0, 1 / 3, 0, 0.5]]))
    assert found.boxes_xyxy[0, 2:4].tolist() == [[25, 0, 35, 10], [30, 0, 40, 10]]  # an object, the anchor itself
    assert not found.ignored.any()


def test_ignore_regions_take_anchors_without_object() -> None:
    # the region covers anchors 0, 1 and 4 wholly and anchor 2 by half; anchor 1 belongs to an object all the same
    found = match(ANCHORS, targets([([0, 0, 25, 20], True), ([10, 0, 20, 10], False)]))
    assert found.object_index.tolist() == [[-1, 1, -1, -1, -1]]
    assert found.ignored.tolist() == [[True, False, True, False, True]]


def outputs(images: int) -> RawOutputs:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, len(ANCHORS), 2, generator=generator, requires_grad=True)
    offsets = torch.randn(images, len(ANCHORS), 4, generator=generator, requires_grad=True)
    return RawOutputs(logits, offsets, ANCHORS)


def test_a_batch_without_any_object_still_teaches() -> None:
    raw = outputs(2)
    losses = DetectionLoss(MultiBoxLoss(min_negatives=2))(raw, targets([], []))
    losses.total.backward()
    assert losses.positives.item() == 0
    assert torch.isfinite(losses.total) and losses.total > 0
    assert raw.cls_logits.grad is not None and raw.cls_logits.grad.abs().sum() > 0
    assert (raw.cls_logits.grad.abs().sum(-1) > 0).sum(1).tolist() == [2, 2]


def test_a_batch_of_ignore_regions_only_is_zero_and_finite() -> None:
    losses = DetectionLoss(MultiBoxLoss())(outputs(1), targets([([0, 0, 40, 20], True)]))
    assert losses.total.item() == 0


@pytest.mark.parametrize("class_loss", CLASS_LOSSES)
@pytest.mark.parametrize("box_loss", BOX_LOSSES)
@pytest.mark.parametrize("matcher", [MaxIoUMatcher(0.5, 0.4), ATSSMatcher()])
def test_nothing_waits_for_the_device_before_the_step(class_loss: str, box_loss: str, matcher: Matcher) -> None:
    raw, truth = outputs(2), targets([([0, 0, 10, 10], False), ([0, 0, 40, 20], True)], [])
    criterion = DetectionLoss(CLASS_LOSSES[class_loss](), BOX_LOSSES[box_loss](), matcher)
    with NoWaits():
        criterion(raw, truth).total.backward()
    assert raw.cls_logits.grad is not None and raw.cls_logits.grad.abs().sum() > 0
    with pytest.raises(AssertionError), NoWaits():
        raw.cls_logits[raw.cls_logits > 0].sum().item()


def test_matching_in_pieces_is_matching_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    anchors = torch.rand(300, 4, generator=random) * 60 + 4
    first = torch.rand(3, 7, 2, generator=random) * 60
    boxes = torch.cat([first, first + 3 + 40 * torch.rand(3, 7, 2, generator=random)], 2)
    boxes[0, 5] = boxes[0, 0]  # two objects in one place
    boxes[1, 0] += 10_000  # an object that no anchor touches
    truth = Targets(boxes, torch.ones(3, 7).long(), torch.rand(3, 7, generator=random) < 0.3)
    whole = match(anchors, truth, 0.5, 0.4)
    for pairs in (1, 2 * 3 * 300):
        monkeypatch.setattr("ssd_effnet.detection.matching._PAIRS", pairs)
        pieces = match(anchors, truth, 0.5, 0.4)
        for field in fields(Assignment):
            assert torch.equal(getattr(pieces, field.name), getattr(whole, field.name)), field.name
    # by the plain rule
    for image in range(3):
        overlaps = iou(boxes[image], cxcywh_to_xyxy(anchors)) * truth.is_object[image][:, None]
        for anchor in range(300):
            claims = [o for o in range(7) if truth.is_object[image, o] and overlaps[o].argmax() == anchor]
            best = int(overlaps[:, anchor].argmax())
            expected = claims[-1] if claims else best if overlaps[best, anchor] >= 0.5 else -1
            assert whole.object_index[image, anchor] == expected


def test_the_multi_label_loss_by_hand() -> None:
    """Two logits per class: a person in the LWIR image alone has the labels 0 and 1; the score is the larger one."""
    truth = targets([([0, 0, 10, 9], False)])
    logits = torch.full((1, 2, 2), -20.0)
    logits[0, 0] = torch.tensor([1.0, 2.0])
    raw = RawOutputs(logits, torch.zeros(1, 2, 4), ANCHORS[:2])
    criterion = DetectionLoss(CLASS_LOSSES["multi_label"](min_negatives=1))
    # softplus(-1) = 0.3133, softplus(1) = 1.3133, softplus(-2) = 0.1269, softplus(2) = 2.1269; the negative adds none
    for present, wanted in (((0, 1), 1.4402), ((1, 0), 2.4402), ((1, 1), 0.4402), (None, 0.4402)):
        truth.present = None if present is None else torch.tensor([[present]]).bool()
        assert criterion(raw, truth).cls.item() == pytest.approx(wanted, abs=1e-3)
    logits[0, 1, 0] = 3.0  # a hard one: softplus(3) = 3.0486
    assert criterion(raw, truth).cls.item() == pytest.approx(0.4402 + 3.0486, abs=1e-3)
    # probabilities of any are 0.75 and 0.731, although the second has the larger sum of odds
    either = torch.tensor([[[0.0, 0.0], [1.0, -9.0]]])
    assert criterion.class_loss.margin(either)[0].tolist() == pytest.approx([-math.log(0.25), 1.31339], abs=1e-4)
    scores = PostProcess(activation="either").scores(torch.tensor([[1.0, 2.0, -1.0, -3.0]]))
    torch.testing.assert_close(scores, torch.tensor([[2.0, -1.0]]).sigmoid())
