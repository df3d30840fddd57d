"""GIoU, CIoU, quality focal loss and ATSS: by hand, by the authors' formulas, and for degenerate boxes."""

import math

import pytest
import torch

from data_kaist.structures import Targets
from ssd_effnet.detection.boxes import cxcywh_to_xyxy, decode, iou
from ssd_effnet.detection.losses import CIoU, DetectionLoss, FocalLoss, GIoU, QualityFocalLoss
from ssd_effnet.detection.matching import ATSSMatcher
from ssd_effnet.structures import RawOutputs

UNIT = [0.0, 0, 10, 10]
# IoU, (hull - union) / hull, squared distance of centres / squared diagonal of the hull, v, with the unit box
BY_HAND = {
    "identical": (UNIT, 1.0, 0.0, 0.0, 0.0),
    "half shared": ([5.0, 0, 15, 10], 1 / 3, 0.0, 25 / 325, 0.0),
    "a corner": ([5.0, 5, 15, 15], 25 / 175, 50 / 225, 50 / 450, 0.0),
    "apart": ([20.0, 0, 30, 10], 0.0, 100 / 300, 400 / 1000, 0.0),
    "half as wide": ([0.0, 0, 5, 10], 0.5, 0.0, 6.25 / 200, 4 / math.pi**2 * (math.pi / 4 - math.atan(0.5)) ** 2),
}
DEGENERATE = [[3.0, 3, 3, 3], [0.0, 0, 10, 0], [0.0, 0, 1e-9, 1e-9], [1e6, 1e6, 1e6 + 1, 1e6 + 1], [-1e5, 0, 1e5, 1]]
DEGENERATE += [UNIT]


@pytest.mark.parametrize("name", BY_HAND)
def test_overlap_losses_by_hand(name: str) -> None:
    box, overlap, gap, off_centre, v = BY_HAND[name]
    alpha = v / (1 - overlap + v) if v else 0
    for loss, expected in ((GIoU(), 1 - overlap + gap), (CIoU(), 1 - overlap + off_centre + alpha * v)):
        for a, b in ((UNIT, box), (box, UNIT)):
            assert loss.of_boxes(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("loss", [GIoU(), CIoU()])
def test_gradients_of_overlap_losses(loss: GIoU) -> None:
    random = torch.Generator().manual_seed(0)
    anchors = torch.rand(6, 4, generator=random, dtype=torch.float64) * 20 + 5
    wanted = cxcywh_to_xyxy(anchors + torch.rand(6, 4, generator=random, dtype=torch.float64) * 8)
    wanted[5] += 100  # apart
    offsets = torch.randn(6, 4, generator=random, dtype=torch.float64, requires_grad=True)

    def of_offsets(x: torch.Tensor) -> torch.Tensor:
        return loss.of_boxes(cxcywh_to_xyxy(decode(x, anchors)), wanted)

    if isinstance(loss, CIoU):  # alpha is a constant of the step: its own derivative is left out
        found = cxcywh_to_xyxy(decode(offsets, anchors))
        ratio = [torch.atan((x[:, 2] - x[:, 0]) / (x[:, 3] - x[:, 1])) for x in (wanted, found)]
        v = 4 / math.pi**2 * (ratio[0] - ratio[1]) ** 2
        not_shared = 1 - iou(found[:, None], wanted[:, None])[:, 0, 0]
        alpha = (v / (not_shared + v)).detach()

        def formula(x: torch.Tensor) -> torch.Tensor:
            found = cxcywh_to_xyxy(decode(x, anchors))
            low, high = torch.minimum(found, wanted), torch.maximum(found, wanted)
            centres = (found[:, :2] + found[:, 2:] - wanted[:, :2] - wanted[:, 2:]) / 2
            diagonal = ((high[:, 2:] - low[:, :2]) ** 2).sum(1)
            angle = ratio[0] - torch.atan((found[:, 2] - found[:, 0]) / (found[:, 3] - found[:, 1]))
            overlap = iou(found[:, None], wanted[:, None])[:, 0, 0]
            return 1 - overlap + (centres**2).sum(1) / diagonal + alpha * 4 / math.pi**2 * angle**2

        torch.testing.assert_close(of_offsets(offsets), formula(offsets))
        (ours,), (theirs,) = (torch.autograd.grad(f(offsets).sum(), offsets) for f in (of_offsets, formula))
        torch.testing.assert_close(ours, theirs)
        assert torch.autograd.gradcheck(formula, offsets)
    else:
        assert torch.autograd.gradcheck(of_offsets, offsets)


@pytest.mark.parametrize("loss", [GIoU(), CIoU()])
def test_overlap_losses_of_degenerate_boxes_are_finite(loss: GIoU) -> None:
    found = torch.tensor(DEGENERATE)[:, None].repeat(1, len(DEGENERATE), 1).requires_grad_()
    values = loss.of_boxes(found, torch.tensor(DEGENERATE))
    values.sum().backward()
    assert torch.isfinite(values).all() and (values > -1e-6).all() and torch.isfinite(found.grad).all()
    # the same with offsets that decode to nothing and to more than any image
    for size in (0.0, -1e4, 1e4):
        raw = RawOutputs(torch.zeros(1, 2, 1), torch.full((1, 2, 4), size, requires_grad=True), ANCHORS[:2])
        losses = DetectionLoss(QualityFocalLoss(), loss)(raw, one_object(UNIT))
        losses.total.backward()
        assert torch.isfinite(losses.total) and torch.isfinite(raw.bbox_regression.grad).all()


# nine of 10x10 in a 3x3 grid, then a level of four of 20x20
ANCHORS = torch.tensor(
    [[5.0 + 10 * x, 5 + 10 * y, 10, 10] for y in range(3) for x in range(3)]
    + [[10.0 + 20 * x, 10 + 20 * y, 20, 20] for y in range(2) for x in range(2)]
)


def one_object(*boxes: list[float], ignore: bool = False) -> Targets:
    is_region = torch.tensor([[False] * (len(boxes) - ignore) + [True] * ignore])
    return Targets(torch.tensor([boxes]), torch.ones(1, len(boxes), dtype=torch.int64), is_region)


def raw(anchors: torch.Tensor, *levels: int, images: int = 1, per_position: int = 1) -> RawOutputs:
    nothing = torch.zeros(images, len(anchors), 1)
    return RawOutputs(nothing, nothing.expand(-1, -1, 4), anchors, levels, per_position)


def test_atss_by_hand() -> None:
    # k = 3: of the fine level anchors 4, 3 and 1 (IoU 0.81 / 1.19, 0.09 / 1.91 twice), of the coarse one 9, 10 and 11
    truth = one_object([9.0, 9, 19, 19], [2.0, 2, 12, 12])
    found = ATSSMatcher(3)(raw(ANCHORS, 9, 4), one_object([9.0, 9, 19, 19]))
    ious = torch.tensor([0.81 / 1.19, 0.09 / 1.91, 0.09 / 1.91, 100 / 400, 0, 0])
    assert ious.mean() + ious.std() < ious[0] and ious.mean() + ious.std() > ious[3]
    assert found.object_index.tolist() == [[-1] * 4 + [0] + [-1] * 8]
    assert found.quality[0, 4].item() == pytest.approx(0.81 / 1.19)
    both = ATSSMatcher(3)(raw(ANCHORS, 9, 4), truth)
    assert both.object_index[0, [0, 4]].tolist() == [1, 0] and both.positive.sum() == 2


def reference(anchors: torch.Tensor, levels: list[int], per_position: int, boxes: torch.Tensor) -> list[int]:
    """The authors' code (atss_core/modeling/rpn/atss/loss.py), one image."""
    ious = iou(cxcywh_to_xyxy(anchors), boxes)  # (A, M)
    distances = ((anchors[:, None, :2] - (boxes[:, :2] + boxes[:, 2:]) / 2) ** 2).sum(-1).sqrt()
    chosen, start = [], 0
    for level in levels:
        k = min(9 * per_position, level)
        chosen.append(distances[start : start + level].topk(k, dim=0, largest=False).indices + start)
        start += level
    rows, of = torch.cat(chosen), torch.arange(len(boxes))
    candidates = ious[rows, of]
    positive = candidates >= candidates.mean(0) + candidates.std(0)
    sides = torch.stack([anchors[rows, 0] - boxes[:, 0], anchors[rows, 1] - boxes[:, 1],
                         boxes[:, 2] - anchors[rows, 0], boxes[:, 3] - anchors[rows, 1]])  # fmt: skip
    positive &= sides.amin(0) > 0.01
    best = torch.full_like(ious, -1)
    for m in range(len(boxes)):
        best[rows[positive[:, m], m], m] = ious[rows[positive[:, m], m], m]
    value, index = best.max(1)
    return torch.where(value < 0, -1, index).tolist()


def test_atss_equals_the_authors_code(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    grids, levels = [], []
    for stride, size in ((8, 12), (16, 6), (32, 3)):
        y, x = (torch.stack(torch.meshgrid(*[torch.arange(size)] * 2, indexing="ij")) + 0.5) * stride
        shapes = torch.tensor([[2.0, 4.0], [3, 3]]) * stride
        centres = torch.stack([x, y], -1)[:, :, None].expand(-1, -1, 2, -1)
        grids.append(torch.cat([centres, shapes.expand(size, size, -1, -1)], -1).reshape(-1, 4))
        levels.append(len(grids[-1]))
    anchors = torch.cat(grids)
    first = torch.rand(3, 8, 2, generator=random) * 70
    boxes = torch.cat([first, first + 6 + 40 * torch.rand(3, 8, 2, generator=random)], 2)
    is_region = torch.zeros(3, 8, dtype=torch.bool)
    labels = torch.ones(3, 8, dtype=torch.int64)
    is_region[0, 6:] = True
    labels[2], boxes[2] = 0, 0  # an image without objects
    for pairs in (2**20, 1):
        monkeypatch.setattr("ssd_effnet.detection.matching._PAIRS", pairs)
        found = ATSSMatcher()(raw(anchors, *levels, images=3, per_position=2), Targets(boxes, labels, is_region))
        assert found.object_index[0].tolist() == reference(anchors, levels, 2, boxes[0, :6])
        assert found.object_index[1].tolist() == reference(anchors, levels, 2, boxes[1])
        assert found.positive.sum(1).tolist()[2] == 0 and not found.ignored[1:].any()
        regions = iou(cxcywh_to_xyxy(anchors), boxes[0, 6:]) > 0
        assert found.ignored[0].any() and regions[found.ignored[0]].any(1).all()


def test_atss_with_one_candidate_takes_it() -> None:
    assert ATSSMatcher(1)(raw(ANCHORS[:1]), one_object([3.0, 3, 9, 9])).object_index.tolist() == [[0]]


def test_quality_focal_by_hand() -> None:
    # anchor 0 decodes to half of its object, anchor 4 is a negative; all others lie in an ignore region
    anchors = torch.tensor([[5.0, 5, 10, 10], [45, 5, 10, 10], [85, 5, 10, 10]])
    logits, offsets = torch.tensor([[[0.0], [1], [3]]]), torch.zeros(1, 3, 4)
    offsets[0, 0, 2] = math.log(0.5) / 0.2
    offsets.requires_grad_()  # of no use to the class loss: the quality is a target
    truth = one_object(UNIT, [75.0, 0, 95, 20], ignore=True)
    p = 1 / (1 + math.exp(-1))
    for beta in (0.0, 0.5, 2.0):
        losses = DetectionLoss(QualityFocalLoss(beta))(RawOutputs(logits, offsets, anchors), truth)
        at_quality = max(0, 1e-7) ** beta * math.log(2)  # p = y = 0.5
        assert losses.cls.item() == pytest.approx(at_quality - p**beta * math.log(1 - p), rel=1e-5)
        assert not losses.cls.requires_grad


def test_losses_of_a_positive_and_a_negative_by_hand() -> None:
    """Variances decode, the positive alone has a box loss, the quality is a soft target, the sum is over positives."""
    anchors, offsets = torch.tensor([[5.0, 5, 10, 10], [45, 5, 10, 10]]), torch.zeros(1, 2, 4)
    offsets[0, 0, 0], offsets[0, 1] = 0.5, 3.0  # half of its width to the right: IoU 1/3, the hull is the union
    logits, truth = torch.tensor([[[1.0], [-30]]]), one_object(UNIT)
    for of_box in (GIoU, CIoU):
        losses = DetectionLoss(FocalLoss(), of_box((1.0, 1.0)), box_weight=2)(
            RawOutputs(logits, offsets, anchors), truth
        )
        gap = 25 / 325 if of_box is CIoU else 0
        assert losses.loc.item() == pytest.approx(2 * (1 - 1 / 3 + gap), rel=1e-5)
        assert losses.total.item() == pytest.approx(losses.loc.item() + losses.cls.item())
    p = 1 / (1 + math.exp(-1))
    offsets[0, 0] = torch.tensor([0, 0, math.log(0.5), 0])  # half as wide: IoU 1/2
    for beta in (0.0, 1.0, 2.0):
        loss = DetectionLoss(QualityFocalLoss(beta, variances=(1.0, 1.0)))
        expected = -(abs(0.5 - p) ** beta) * (0.5 * math.log(1 - p) + 0.5 * math.log(p))
        assert loss(RawOutputs(logits, offsets, anchors), truth).cls.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_gradients_of_quality_focal(beta: float) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 13, 2, generator=random, dtype=torch.float64, requires_grad=True)
    nothing, truth = torch.zeros(1, 13, 4), one_object(UNIT)
    y = torch.zeros(1, 13, 2, dtype=torch.float64)
    y[0, 0, 0] = 1  # the only positive equals its object

    def formula(z: torch.Tensor) -> torch.Tensor:
        p = z.sigmoid()
        return (-((y - p).abs() ** beta) * ((1 - y) * (1 - p).log() + y * p.log())).sum()

    def of_logits(z: torch.Tensor) -> torch.Tensor:
        return DetectionLoss(QualityFocalLoss(beta))(RawOutputs(z, nothing, ANCHORS), truth).cls

    assert torch.autograd.gradcheck(formula, logits)
    (ours,), (theirs,) = (torch.autograd.grad(f(logits), logits) for f in (of_logits, formula))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for size in (0.0, 30.0, 1e4, -1e4):
        extreme = torch.full((1, 13, 2), size, requires_grad=True)
        total = of_logits(extreme)
        total.backward()
        assert torch.isfinite(total) and torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("box_loss", [GIoU(), CIoU()])
def test_bf16_is_computed_in_float32(box_loss: GIoU) -> None:
    random = torch.Generator().manual_seed(0)
    logits, offsets = (torch.randn(1, 13, n, generator=random).bfloat16() for n in (1, 4))
    criterion = DetectionLoss(QualityFocalLoss(), box_loss, ATSSMatcher())
    whole = criterion(RawOutputs(logits.float(), offsets.float(), ANCHORS, (9, 4)), one_object([3.0, 3, 14, 18]))
    with torch.autocast("cpu", torch.bfloat16):
        half = criterion(RawOutputs(logits, offsets, ANCHORS, (9, 4)), one_object([3.0, 3, 14, 18]))
    assert half.total.dtype == torch.float32 and whole.positives > 0
    torch.testing.assert_close(half.total, whole.total)
