"""From raw outputs and targets to losses. No loop over images or anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from ssd_effnet.boxes import (
    SSD_VARIANCES,
    Variances,
    area,
    cxcywh_to_xyxy,
    encode,
    intersection,
    iou,
    xyxy_to_cxcywh,
)
from ssd_effnet.structures import RawOutputs, ScoreActivation, Targets

BoxLoss = Literal["smooth_l1", "l1", "huber"]


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


def match(
    anchors_cxcywh: torch.Tensor, targets: Targets, iou_threshold: float = 0.5, negative_iou: float | None = None
) -> Matches:
    """Each object takes its best anchor; then each anchor its best object with IoU >= ``iou_threshold`` (SSD, 2.2).

    Where two objects have the same best anchor, the later one takes it. An anchor without object that lies by half or
    more of its own area in one ignore region is ignored.

    Args:
        anchors_cxcywh: ``(A, 4)``.
        targets: objects in the same pixels.
        iou_threshold: from which on an anchor belongs to an object.
        negative_iou: an anchor without object, but with an IoU from here on, is ignored (RetinaNet, section 4: 0.4);
            None: it is negative.
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
    ignored = inside.amax(dim=1) >= 0.5 * area(anchors_xyxy)
    if negative_iou is not None:
        ignored |= best_overlap >= negative_iou
    return Matches(object_index, ignored & (object_index < 0))


class DetectionLoss(nn.Module):
    """What the losses share: who learns which object, the box loss, and the division by the number of positives.

    A subclass says how class logits are judged (:meth:`classification`) and what they mean (:attr:`activation`).
    Both sums are divided by the number of positives in the batch, an image without any counting as one.

    Args:
        iou_threshold: from which on an anchor belongs to an object.
        negative_iou: see :func:`match`.
        localization: ``smooth_l1``, ``l1`` or ``huber``.
        localization_delta: where ``smooth_l1`` and ``huber`` turn from square to straight; huber is ``delta`` times
            smooth_l1, so that its square part is the same for every delta.
        localization_weight: factor on the box loss.
        variances: of the box code, see :func:`ssd_effnet.boxes.encode`.
    """

    activation: ClassVar[ScoreActivation]

    def __init__(
        self,
        *,
        iou_threshold: float = 0.5,
        negative_iou: float | None = None,
        localization: BoxLoss = "smooth_l1",
        localization_delta: float = 1.0,
        localization_weight: float = 1.0,
        variances: Variances = SSD_VARIANCES,
    ) -> None:
        super().__init__()
        self.iou_threshold = iou_threshold
        self.negative_iou = negative_iou
        self.localization = localization
        self.localization_delta = localization_delta
        self.localization_weight = localization_weight
        self.variances = variances

    def forward(self, outputs: RawOutputs, targets: Targets) -> Losses:
        """Losses of a batch; finite also where no image has an object."""
        with torch.no_grad():
            matches = match(outputs.anchors_cxcywh, targets, self.iou_threshold, self.negative_iou)
            positive = matches.object_index >= 0
            rows = matches.object_index.clamp(min=0)
            classes = torch.where(positive, targets.labels.gather(1, rows), 0)
        cls = self.classification(outputs.cls_logits.float(), classes, matches.ignored)

        image, anchor = positive.nonzero(as_tuple=True)
        boxes = xyxy_to_cxcywh(targets.boxes_xyxy[image, rows[image, anchor]])
        offsets = encode(boxes, outputs.anchors_cxcywh[anchor], self.variances)
        loc = self.box_loss(outputs.bbox_regression[image, anchor].float(), offsets)

        # an image without positives counts as one: a batch with hardly any would else divide many negatives by nothing
        divisor = positive.sum(1).clamp(min=1).sum()
        cls, loc = cls / divisor, self.localization_weight * loc / divisor
        return Losses(cls + loc, cls, loc, positive.sum())

    def classification(self, logits: torch.Tensor, classes: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
        """The class loss, summed.

        Args:
            logits: float32 ``(N, A, K)``.
            classes: int64 ``(N, A)``, 0 where the anchor has no object.
            ignored: bool ``(N, A)``, neither positive nor negative.
        """
        raise NotImplementedError

    def box_loss(self, predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Summed over ``(P, 4)`` offsets."""
        if self.localization == "l1":
            return F.l1_loss(predicted, wanted, reduction="sum")
        if self.localization == "huber":
            return F.huber_loss(predicted, wanted, reduction="sum", delta=self.localization_delta)
        return F.smooth_l1_loss(predicted, wanted, reduction="sum", beta=self.localization_delta)


class MultiBoxLoss(DetectionLoss):
    """SSD's loss: cross-entropy over positives and the hardest negatives, plus L1 over positives (SSD, 2.2).

    Logits are those of all classes with background at index 0.

    Args:
        negative_ratio: negatives to one positive, an image.
        min_negatives: at least so many negatives an image, so that an image without objects teaches something.
        shared: see :class:`DetectionLoss`.
    """

    activation = "softmax"

    def __init__(self, negative_ratio: float = 3.0, min_negatives: int = 16, **shared: Any) -> None:
        super().__init__(**shared)
        self.negative_ratio = negative_ratio
        self.min_negatives = min_negatives

    def classification(self, logits: torch.Tensor, classes: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
        positive = classes > 0
        entropy = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
        negative = self._hardest_negatives(entropy.detach(), positive, ~positive & ~ignored)
        return (entropy * (positive | negative)).sum()

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


class FocalLoss(DetectionLoss):
    """EfficientDet's loss: focal loss over all anchors that are not ignored, plus a box loss over positives.

    ``-alpha_t (1 - p_t)^gamma log(p_t)`` (Lin et al. 2017, RetinaNet, equation 5), each class a yes-or-no question of
    its own: logits are those of the foreground classes only.

    Args:
        alpha: weight of the positive answer; the negative one has ``1 - alpha``.
        gamma: how little well-classified anchors count; 1.5 in EfficientDet, 2 in RetinaNet, 0 is cross-entropy.
        shared: see :class:`DetectionLoss`.
    """

    activation = "sigmoid"

    def __init__(self, alpha: float = 0.25, gamma: float = 1.5, **shared: Any) -> None:
        super().__init__(**shared)
        self.alpha = alpha
        self.gamma = gamma

    def classification(self, logits: torch.Tensor, classes: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
        yes = F.one_hot(classes, logits.shape[-1] + 1)[..., 1:] > 0  # (N, A, K)
        z = torch.where(yes, logits, -logits)  # p_t = sigmoid(z)
        # 1 - p_t = exp(-softplus(z)): as a power of a difference it would lose its gradient for sure answers
        focal = F.softplus(-z) * torch.exp(-self.gamma * F.softplus(z))
        weighted = torch.where(yes, self.alpha, 1 - self.alpha) * focal
        return (weighted * ~ignored[..., None]).sum()
