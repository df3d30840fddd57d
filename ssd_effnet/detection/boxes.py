"""Box formats, overlap, the regression code and non-maximum suppression; torch tensors, pixels."""

from __future__ import annotations

import torch

Variances = tuple[float, float]
SSD_VARIANCES: Variances = (0.1, 0.2)

# exp(8) times an anchor is larger than any image; larger offsets would overflow
_LARGEST_LOG_SIZE = 8.0


def xyxy_to_cxcywh(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    """``(..., 4)`` corners to centre and size."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), dim=-1)


def cxcywh_to_xyxy(boxes_cxcywh: torch.Tensor) -> torch.Tensor:
    """``(..., 4)`` centre and size to corners."""
    cx, cy, w, h = boxes_cxcywh.unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)


def area(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    """Areas, ``(..., 4)`` to ``(...)``; 0 for inverted boxes."""
    size = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def intersection(a_xyxy: torch.Tensor, b_xyxy: torch.Tensor) -> torch.Tensor:
    """Areas of pairwise intersections, ``(..., n, m)``. Boxes are ``(..., n, 4)`` and ``(..., m, 4)``."""
    # one coordinate at a time: (..., n, m, 2) temporaries cost twice the memory traffic
    ax1, ay1, ax2, ay2 = a_xyxy.unsqueeze(-2).unbind(-1)
    bx1, by1, bx2, by2 = b_xyxy.unsqueeze(-3).unbind(-1)
    w = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    h = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    return w * h


def iou(a_xyxy: torch.Tensor, b_xyxy: torch.Tensor) -> torch.Tensor:
    """Intersection over union of ``(..., n, 4)`` and ``(..., m, 4)``: ``(..., n, m)``.

    >>> iou(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 5], [20, 20, 30, 30]]))
    tensor([[0.5000, 0.0000]])
    """
    inter = intersection(a_xyxy, b_xyxy)
    union = (area(a_xyxy).unsqueeze(-1) + area(b_xyxy).unsqueeze(-2)).sub_(inter)
    return inter / union.clamp_(min=torch.finfo(inter.dtype).tiny)


def encode(
    boxes_cxcywh: torch.Tensor, anchors_cxcywh: torch.Tensor, variances: Variances = SSD_VARIANCES
) -> torch.Tensor:
    """Box offsets from anchors, ``(..., 4)``. SSD, equation 2; variances as in its code.

    Sizes must be positive; degenerate boxes would give minus infinity.
    """
    centre = (boxes_cxcywh[..., :2] - anchors_cxcywh[..., :2]) / (variances[0] * anchors_cxcywh[..., 2:])
    size = torch.log(boxes_cxcywh[..., 2:] / anchors_cxcywh[..., 2:]) / variances[1]
    return torch.cat((centre, size), dim=-1)


def decode(offsets: torch.Tensor, anchors_cxcywh: torch.Tensor, variances: Variances = SSD_VARIANCES) -> torch.Tensor:
    """The inverse of :func:`encode`, ``(..., 4)`` both; finite for finite input.

    >>> anchor = torch.tensor([50.0, 60, 20, 40])
    >>> decode(torch.zeros(4), anchor).tolist()
    [50.0, 60.0, 20.0, 40.0]
    >>> decode(torch.tensor([1.0, 0, 0, 0]), anchor).tolist()  # a tenth of the width to the right
    [52.0, 60.0, 20.0, 40.0]
    """
    centre = offsets[..., :2] * variances[0] * anchors_cxcywh[..., 2:] + anchors_cxcywh[..., :2]
    size = torch.exp((offsets[..., 2:] * variances[1]).clamp(max=_LARGEST_LOG_SIZE)) * anchors_cxcywh[..., 2:]
    return torch.cat((centre, size), dim=-1)


def nms(
    boxes_xyxy: torch.Tensor, valid: torch.Tensor, iou_threshold: float, *, block: int = 256, most: int | None = None
) -> torch.Tensor:
    """Greedy non-maximum suppression of a batch, bool ``(N, n)``: kept.

    A box is kept unless a kept box before it overlaps it with IoU > ``iou_threshold``. Block by block: the greedy
    choice within a block, then suppression of later boxes. On a CPU, rows suppressed in every image are left out of
    later blocks; elsewhere no shape depends on a value.

    Args:
        boxes_xyxy: ``(N, n, 4)`` float, each image's boxes sorted by falling score.
        valid: bool ``(N, n)``; False for padding and excluded rows.
        block: boxes compared at a time, at most 32 on a CPU; memory grows with ``N * n * block``.
        most: number of kept boxes needed per image; a CPU may leave out later ones.
    """
    compact = boxes_xyxy.device.type == "cpu" and not torch.compiler.is_exporting()
    block = min(block, 32) if compact else block
    kept, row = torch.zeros_like(valid), torch.arange(valid.shape[1], device=valid.device)
    while len(row):
        if compact:
            if most is not None and bool((kept.sum(1) >= most).all()):
                break
            left = valid.any(0).nonzero()[:, 0]
            boxes_xyxy, valid, row = boxes_xyxy[:, left], valid[:, left], row[left]
        overlaps = iou(boxes_xyxy[:, :block], boxes_xyxy) > iou_threshold
        first = _greedy(overlaps[:, :, :block].triu(diagonal=1), valid[:, :block])
        kept.index_copy_(1, row[:block], first)
        valid = valid[:, block:] & ~(overlaps[:, :, block:] & first[:, :, None]).any(1)
        boxes_xyxy, row = boxes_xyxy[:, block:], row[block:]
    return kept


def _greedy(better_overlaps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Greedy choice among sorted boxes.

    The fixed point of "kept = valid and not overlapped by a kept better box", reached after as many rounds as the
    longest chain of suppressions. An exported graph has the rounds as one loop.

    Args:
        better_overlaps: bool ``(N, b, b)``, [i, j]: i is better than j and overlaps it.
        valid: bool ``(N, b)``.
    """

    def one_round(kept: torch.Tensor, changed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        new = valid & ~(better_overlaps & kept[:, :, None]).any(1)
        return new, (new != kept).any()

    def go_on(kept: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        return changed.clone()

    state = valid.clone(), torch.ones((), dtype=torch.bool, device=valid.device)
    if torch.compiler.is_exporting():
        state = torch.while_loop(go_on, one_round, state)
    else:
        while state[1]:
            state = one_round(*state)
    return state[0]
