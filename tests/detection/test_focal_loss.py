"""The focal loss, the box losses and the ignore band by hand."""

import math

import pytest
import torch

from data_kaist.structures import Targets
from ssd_effnet.detection.boxes import encode, xyxy_to_cxcywh
from ssd_effnet.detection.losses import L1, BoxLoss, ClassLoss, DetectionLoss, FocalLoss, Huber, MultiBoxLoss, SmoothL1
from ssd_effnet.detection.matching import Assignment, MaxIoUMatcher
from ssd_effnet.detection.postprocess import PostProcess
from ssd_effnet.structures import RawOutputs

# one object of 10x10; IoU 1 with anchor 0, 0.45 with anchor 1, 0 with anchor 2; anchor 3 lies in an ignore region
ANCHORS = torch.tensor([[5.0, 5, 10, 10], [5, 5, 4.5, 10], [45, 5, 10, 10], [85, 5, 10, 10]])
BOXES = torch.tensor([[[0.0, 0, 10, 10], [75, 0, 95, 20]]])
TARGETS = Targets(BOXES, torch.tensor([[2, 1]]), torch.tensor([[False, True]]))


def outputs(logits: torch.Tensor) -> RawOutputs:
    return RawOutputs(logits, torch.zeros(1, 4, 4), ANCHORS)


def test_equality_with_the_formula() -> None:
    logits = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(0))
    alpha, gamma = 0.3, 2.0
    expected = 0.0
    for anchor in (0, 1, 2):
        for k in (0, 1):
            p = torch.sigmoid(logits[0, anchor, k]).item()
            if (anchor, k) == (0, 1):
                expected -= alpha * (1 - p) ** gamma * math.log(p)
            else:
                expected -= (1 - alpha) * p**gamma * math.log(1 - p)
    losses = DetectionLoss(FocalLoss(alpha, gamma))(outputs(logits), TARGETS)
    assert losses.cls.item() == pytest.approx(expected, rel=1e-5) and losses.positives.item() == 1


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
@pytest.mark.parametrize("size", [0.0, 30.0, 200.0, 1e4])
def test_extreme_logits_have_finite_losses_and_gradients(gamma: float, size: float) -> None:
    for sign in (-1, 1):
        logits = torch.full((1, 4, 2), sign * size, requires_grad=True)
        losses = DetectionLoss(FocalLoss(gamma=gamma))(outputs(logits), TARGETS)
        losses.total.backward()
        assert torch.isfinite(losses.total) and torch.isfinite(logits.grad).all()
        # a wrong answer, however sure, is pulled back
        assert size == 0 or logits.grad[0, 0 if sign < 0 else 2].abs().max() > 0.1


def test_images_without_objects_are_divided_by_one() -> None:
    nothing = Targets(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.bool))
    losses = DetectionLoss(FocalLoss())(outputs(torch.zeros(1, 4, 1)), nothing)
    assert losses.cls.item() == pytest.approx(4 * 0.75 * 2**-1.5 * math.log(2)) and losses.loc.item() == 0


def match(anchors: torch.Tensor, truth: Targets, *thresholds: float) -> Assignment:
    nothing = torch.zeros(len(truth.labels), len(anchors), 1)
    return MaxIoUMatcher(*thresholds)(RawOutputs(nothing, nothing.expand(-1, -1, 4), anchors), truth)


def test_the_ignore_band() -> None:
    assert match(ANCHORS, TARGETS).ignored.tolist() == [[False, False, False, True]]
    assert match(ANCHORS, TARGETS, 0.5, 0.4).ignored.tolist() == [[False, True, False, True]]
    assert match(ANCHORS, TARGETS, 0.5, 0.46).ignored.tolist() == [[False, False, False, True]]
    # an object's best anchor stays positive, however little it overlaps
    far = match(ANCHORS[1:], TARGETS, 0.5, 0.4)
    assert far.object_index.tolist() == [[0, -1, -1]] and far.ignored.tolist() == [[False, False, True]]


@pytest.mark.parametrize("kind", [FocalLoss, MultiBoxLoss])
def test_box_losses_of_both_kinds(kind: type[ClassLoss]) -> None:
    raw = RawOutputs(torch.zeros(1, 1, 3), torch.tensor([[[0.05, 1.0, 0.0, 0.0]]]), ANCHORS[:1])

    def loc(box_loss: BoxLoss | None = None, weight: float = 1.0) -> float:
        return DetectionLoss(kind(), box_loss, box_weight=weight)(raw, TARGETS).loc.item()

    # the anchor equals the object: offsets 0 are wanted
    assert loc() == pytest.approx(0.05**2 / 2 + 0.5)
    assert loc(L1()) == pytest.approx(1.05)
    assert loc(Huber(0.1)) == pytest.approx(0.05**2 / 2 + 0.1 * (1 - 0.05))
    assert loc(SmoothL1(0.1)) == pytest.approx(0.05**2 / 0.2 + 0.95)
    assert loc(weight=50.0) == pytest.approx(50 * (0.05**2 / 2 + 0.5))


@pytest.mark.parametrize("variances", [(0.1, 0.2), (1.0, 1.0)])
def test_offsets_that_the_loss_wants_are_boxes_that_postprocess_returns(variances: tuple[float, float]) -> None:
    box = torch.tensor([[31.0, 12, 47, 60]])
    anchors = torch.tensor([[40.0, 32, 16, 32]])
    wanted = encode(xyxy_to_cxcywh(box), anchors, variances)
    raw = RawOutputs(torch.tensor([[[5.0]]]), wanted[None], anchors)
    targets = Targets(box[None], torch.ones(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.bool))
    losses = DetectionLoss(FocalLoss(), SmoothL1(variances=variances))(raw, targets)
    assert losses.loc.item() == pytest.approx(0, abs=1e-6)
    found = PostProcess(activation="sigmoid", variances=variances)(raw, (64, 80))
    torch.testing.assert_close(found.boxes_xyxy[0, :1], box)
    torch.testing.assert_close(found.scores[0, 0], torch.tensor(5.0).sigmoid())
    assert found.labels[0, 0] == 1
