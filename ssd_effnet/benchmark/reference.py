"""Loss and postprocessing as loops over images and boxes: reference of the benchmark and of tests.

They follow the papers, not the project's code, so that agreement is evidence.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def iou_matrix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``(n, m)`` of xyxy boxes ``(n, 4)`` and ``(m, 4)``."""
    low = torch.max(a[:, None, :2], b[None, :, :2])
    high = torch.min(a[:, None, 2:], b[None, :, 2:])
    size = (high - low).clamp(min=0)
    shared = size[..., 0] * size[..., 1]
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return shared / (area_a[:, None] + area_b[None] - shared)


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Centre and size to xyxy."""
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


def multibox_loss(
    cls_logits: torch.Tensor,
    bbox_regression: torch.Tensor,
    anchors_cxcywh: torch.Tensor,
    boxes: list[torch.Tensor],
    labels: list[torch.Tensor],
    *,
    threshold: float = 0.5,
    negative_ratio: float = 3.0,
    min_negatives: int = 16,
) -> tuple[torch.Tensor, torch.Tensor]:
    """SSD's class and box loss, image by image, negatives ranked by two full sorts.

    Args:
        cls_logits: ``(N, A, K)``, background first.
        bbox_regression: ``(N, A, 4)``.
        anchors_cxcywh: ``(A, 4)``.
        boxes: xyxy ``(n, 4)`` per image.
        labels: ``(n,)`` per image.
    """
    corner_anchors = corners(anchors_cxcywh)
    wanted_classes, wanted_offsets = [], []
    for image_boxes, image_labels in zip(boxes, labels, strict=True):
        classes = torch.zeros(len(anchors_cxcywh), dtype=torch.int64)
        offsets = torch.zeros(len(anchors_cxcywh), 4)
        if len(image_boxes):
            overlaps = iou_matrix(image_boxes, corner_anchors)
            best_overlap, best_object = overlaps.max(0)
            best_anchor = overlaps.max(1).indices
            for i, anchor in enumerate(best_anchor.tolist()):
                best_overlap[anchor], best_object[anchor] = 2.0, i
            classes = image_labels[best_object]
            classes[best_overlap < threshold] = 0
            matched = image_boxes[best_object]
            centre = ((matched[:, :2] + matched[:, 2:]) / 2 - anchors_cxcywh[:, :2]) / (0.1 * anchors_cxcywh[:, 2:])
            size = torch.log((matched[:, 2:] - matched[:, :2]) / anchors_cxcywh[:, 2:]) / 0.2
            offsets = torch.cat([centre, size], 1)
        wanted_classes.append(classes)
        wanted_offsets.append(offsets)
    target, offsets = torch.stack(wanted_classes), torch.stack(wanted_offsets)
    positive = target > 0
    mask = positive[..., None].expand_as(bbox_regression)
    loc = F.smooth_l1_loss(bbox_regression[mask], offsets[mask], reduction="sum")
    entropy = F.cross_entropy(cls_logits.reshape(-1, cls_logits.shape[-1]), target.reshape(-1), reduction="none")
    entropy = entropy.view_as(target)
    ranked = entropy.detach().clone()
    ranked[positive] = -1
    rank = ranked.sort(1, descending=True).indices.sort(1).indices
    count = (positive.sum(1, keepdim=True) * negative_ratio).long().clamp(min=min_negatives)
    negative = (rank < count) & ~positive
    cls = entropy[positive | negative].sum()
    divisor = positive.sum(1).clamp(min=1).sum()
    return cls / divisor, loc / divisor


def nms(boxes_xyxy: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    """Rows that stay, best first: take the best, drop what overlaps it, repeat."""
    left = scores.sort(descending=True, stable=True).indices
    kept = []
    while len(left):
        kept.append(int(left[0]))
        left = left[1:][iou_matrix(boxes_xyxy[left[:1]], boxes_xyxy[left[1:]])[0] <= threshold]
    return kept


def postprocess(
    cls_logits: torch.Tensor,
    bbox_regression: torch.Tensor,
    anchors_cxcywh: torch.Tensor,
    size: tuple[int, int],
    *,
    score_threshold: float = 0.01,
    nms_iou: float = 0.45,
    top_k: int = 200,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Boxes xyxy and scores of each image, of the only foreground class; no limit before NMS."""
    found = []
    for logits, offsets in zip(cls_logits, bbox_regression, strict=True):
        scores = logits.softmax(-1)[:, 1]
        centre = offsets[:, :2] * 0.1 * anchors_cxcywh[:, 2:] + anchors_cxcywh[:, :2]
        boxes = corners(torch.cat([centre, torch.exp(offsets[:, 2:] * 0.2) * anchors_cxcywh[:, 2:]], 1))
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, size[1])
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, size[0])
        good = (scores >= score_threshold) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, scores = boxes[good], scores[good]
        kept = nms(boxes, scores, nms_iou)[:top_k]
        found.append((boxes[kept], scores[kept]))
    return found
