"""From raw outputs and targets to losses. No loop over images or anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from ssd_effnet.boxes import area, cxcywh_to_xyxy, encode, intersection, iou, xyxy_to_cxcywh
from ssd_effnet.structures import RawOutputs, Targets


@dataclass
class Losses:
    """Scalars: ``total`` to follow downhill; ``cls`` and ``loc`` are its summands; ``positives`` counts anchors."""

    total: torch.Tensor
    cls: torch.Tensor
    loc: torch.Tensor
    positives: torch.Tensor


@dataclass
class Matches:
    """What each anchor is to learn.

    Attributes:
        object_index: int64 ``(N, A)``, row of the targets, -1 where the anchor has no object.
        ignored: bool ``(N, A)``, neither positive nor negative.
    """

    object_index: torch.Tensor
    ignored: torch.Tensor


def match(anchors_cxcywh: torch.Tensor, targets: Targets, iou_threshold: float = 0.5) -> Matches:
    """Each object takes its best anchor; then each anchor its best object with IoU >= ``iou_threshold`` (SSD, 2.2).

    Where two objects have the same best anchor, the later one takes it. An anchor without object that lies by half or
    more of its own area in one ignore region is ignored.

    Args:
        anchors_cxcywh: ``(A, 4)``.
        targets: objects in the same pixels.
    """
    anchors_xyxy = cxcywh_to_xyxy(anchors_cxcywh)
    is_object = targets.is_object
    overlaps = iou(targets.boxes_xyxy, anchors_xyxy)  # (N, M, A)
    overlaps.masked_fill_(~is_object[:, :, None], -1)

    best_overlap, best_object = overlaps.max(dim=1)  # (N, A)
    object_index = torch.where(best_overlap >= iou_threshold, best_object, -1)

    best_anchor = overlaps.argmax(dim=2)  # (N, M)
    rows = torch.arange(best_anchor.shape[1], device=best_anchor.device).expand_as(best_anchor)
    claims = torch.full_like(object_index, -1)
    # amax settles two objects that claim one anchor, in the same way on every device
    claims.scatter_reduce_(1, best_anchor, torch.where(is_object, rows, -1), "amax")
    object_index = torch.where(claims >= 0, claims, object_index)

    inside = intersection(targets.boxes_xyxy, anchors_xyxy) * targets.ignore[:, :, None]
    ignored = (inside.amax(dim=1) >= 0.5 * area(anchors_xyxy)) & (object_index < 0)
    return Matches(object_index, ignored)


class MultiBoxLoss(nn.Module):
    """SSD's loss: cross-entropy over positives and the hardest negatives, plus L1 over positives (SSD, 2.2).

    Both sums are divided by the number of positives in the batch (at least 1).

    Args:
        iou_threshold: from which on an anchor belongs to an object.
        negative_ratio: negatives to one positive, an image.
        min_negatives: at least so many negatives an image, so that an image without objects teaches something.
        localization: ``smooth_l1`` or ``l1``.
        localization_weight: factor on the box loss.
    """

    def __init__(
        self,
        iou_threshold: float = 0.5,
        negative_ratio: float = 3.0,
        min_negatives: int = 16,
        localization: Literal["smooth_l1", "l1"] = "smooth_l1",
        localization_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.iou_threshold = iou_threshold
        self.negative_ratio = negative_ratio
        self.min_negatives = min_negatives
        self.box_loss = F.smooth_l1_loss if localization == "smooth_l1" else F.l1_loss
        self.localization_weight = localization_weight

    def forward(self, outputs: RawOutputs, targets: Targets) -> Losses:
        """Losses of a batch; finite also where no image has an object."""
        with torch.no_grad():
            matches = match(outputs.anchors_cxcywh, targets, self.iou_threshold)
            positive = matches.object_index >= 0
            rows = matches.object_index.clamp(min=0)
            classes = torch.where(positive, targets.labels.gather(1, rows), 0)
        logits = outputs.cls_logits.float()
        entropy = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)

        negative = self._hardest_negatives(entropy.detach(), positive, ~positive & ~matches.ignored)
        image, anchor = positive.nonzero(as_tuple=True)
        boxes = xyxy_to_cxcywh(targets.boxes_xyxy[image, rows[image, anchor]])
        offsets = encode(boxes, outputs.anchors_cxcywh[anchor])
        loc = self.box_loss(outputs.bbox_regression[image, anchor].float(), offsets, reduction="sum")

        positives = positive.sum()
        divisor = positives.clamp(min=1)
        cls = (entropy * (positive | negative)).sum() / divisor
        loc = self.localization_weight * loc / divisor
        return Losses(cls + loc, cls, loc, positives)

    def _hardest_negatives(
        self, entropy: torch.Tensor, positive: torch.Tensor, candidates: torch.Tensor
    ) -> torch.Tensor:
        """bool ``(N, A)``: the candidates with the largest loss, a number of its own for each image."""
        wanted = (positive.sum(1) * self.negative_ratio).long().clamp(min=self.min_negatives)
        wanted = torch.minimum(wanted, candidates.sum(1))  # (N,)
        most = int(wanted.max())
        hardest = entropy.masked_fill(~candidates, -1).topk(most, dim=1).indices
        taken = torch.arange(most, device=entropy.device) < wanted[:, None]
        return torch.zeros_like(candidates).scatter_(1, hardest, taken)
