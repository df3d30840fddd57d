"""From raw outputs and targets to losses. No loop over images or anchors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from data_kaist.structures import Targets
from ssd_effnet.detection.boxes import (
    SSD_VARIANCES,
    Variances,
    area,
    cxcywh_to_xyxy,
    encode,
    intersection,
    iou,
    touching,
    xyxy_to_cxcywh,
)
from ssd_effnet.distributed import mean_over_processes
from ssd_effnet.structures import RawOutputs, ScoreActivation

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
    # where pairs can be counted without waiting for the device, those that touch are enough
    if anchors_cxcywh.device.type == "cpu":
        return _match_near(anchors_cxcywh, targets, iou_threshold, negative_iou)
    return _match_all(anchors_cxcywh, targets, iou_threshold, negative_iou)


def _match_all(
    anchors_cxcywh: torch.Tensor, targets: Targets, iou_threshold: float, negative_iou: float | None
) -> Matches:
    """:func:`match` over every pair of a box and an anchor."""
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


def _match_near(
    anchors_cxcywh: torch.Tensor, targets: Targets, iou_threshold: float, negative_iou: float | None
) -> Matches:
    """:func:`match` over the pairs that touch, a few in a hundred: with 3 boxes per image 2 to 3 times as fast."""
    anchors_xyxy = cxcywh_to_xyxy(anchors_cxcywh)
    images, count = len(targets.labels), len(anchors_cxcywh)
    image, row = (targets.is_object | targets.ignore).nonzero(as_tuple=True)  # (B,): boxes without padding
    boxes, ignore = targets.boxes_xyxy[image, row], targets.ignore[image, row]
    box, anchor = touching(boxes, anchors_xyxy)  # (P,)
    place = image[box] * count + anchor  # in (N, A) laid out flat
    a, b = boxes[box], anchors_xyxy[anchor]
    size = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    shared = size[:, 0] * size[:, 1]
    area_b = area(b)
    overlap = shared / (area(a) + area_b - shared).clamp(min=torch.finfo(shared.dtype).tiny)
    of_region = ignore[box]

    enough = (~of_region & (overlap >= iou_threshold)).nonzero()[:, 0]
    at, of, by = place[enough], row[box[enough]], overlap[enough]
    tops = by == torch.zeros(images * count, dtype=by.dtype).scatter_reduce_(0, at, by, "amax")[at]
    none = targets.labels.shape[1]  # of equals the first object, as a maximum over rows would have it
    first = torch.full((images * count,), none).scatter_reduce_(0, at[tops], of[tops], "amin")
    object_index = torch.where(first < none, first, -1)

    highest = torch.zeros(len(boxes), dtype=overlap.dtype).scatter_reduce_(0, box, overlap, "amax")
    tops = overlap == highest[box]
    best_anchor = torch.full((len(boxes),), count).scatter_reduce_(0, box[tops], anchor[tops], "amin") % count
    mine = image * count + best_anchor
    claims = torch.full_like(object_index, -1).scatter_reduce_(0, mine[~ignore], row[~ignore], "amax")
    object_index = torch.where(claims >= 0, claims, object_index)

    ignored = torch.zeros(images * count, dtype=torch.bool)
    ignored[place[of_region & (shared >= 0.5 * area_b)]] = True
    if negative_iou is not None:
        ignored[place[~of_region & (overlap >= negative_iou)]] = True
    return Matches(object_index.view(images, count), (ignored & (object_index < 0)).view(images, count))


class DetectionLoss(nn.Module):
    """What the losses share: who learns which object, the box loss, and the division by the number of positives.

    A subclass says how class logits are judged (:meth:`classification`) and what they mean (:attr:`activation`).
    Both sums are divided by the number of positives in the batch, an image without any counting as one. Where several
    processes train, each has a share of the batch and the mean of their losses is that of the whole batch.

    Args:
        iou_threshold: from which on an anchor belongs to an object.
        negative_iou: see :func:`match`.
        localization: ``smooth_l1``, ``l1`` or ``huber``.
        localization_delta: where ``smooth_l1`` and ``huber`` turn from square to straight; huber is ``delta`` times
            smooth_l1, so that its square part is the same for every delta.
        localization_weight: factor on the box loss.
        variances: of the box code, see :func:`ssd_effnet.detection.boxes.encode`.
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
            matches = self.match(outputs, targets)
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
        if self.training:  # in evaluation the processes do not go in step
            divisor = mean_over_processes(divisor)
        cls, loc = cls / divisor, self.localization_weight * loc / divisor
        return Losses(cls + loc, cls, loc, positive.sum())

    def match(self, outputs: RawOutputs, targets: Targets) -> Matches:
        """Who learns what: :func:`match`; a subclass may choose otherwise."""
        return match(outputs.anchors_cxcywh, targets, self.iou_threshold, self.negative_iou)

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
        min_negatives: at least so many negatives per image, so that an image without objects teaches something.
        shared: see :class:`DetectionLoss`.
    """

    activation = "softmax"

    def __init__(self, negative_ratio: float = 3.0, min_negatives: int = 16, **shared: Any) -> None:
        super().__init__(**shared)
        self.negative_ratio = negative_ratio
        self.min_negatives = min_negatives

    def classification(self, logits: torch.Tensor, classes: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
        positive = classes > 0
        with torch.no_grad():  # entropy of a negative is softplus(margin), and so in the order of margins
            others = logits[..., 1] if logits.shape[-1] == 2 else logits[..., 1:].logsumexp(-1)
            negative = self._hardest_negatives(others - logits[..., 0], ~positive & ~ignored, positive.sum(1))
        taken = positive | negative
        return F.cross_entropy(logits[taken], classes[taken], reduction="sum")

    def _hardest_negatives(
        self, margin: torch.Tensor, candidates: torch.Tensor, positives: torch.Tensor
    ) -> torch.Tensor:
        """bool ``(N, A)``: the candidates with the largest margin, a number of its own for each image."""
        wanted = (positives * self.negative_ratio).long().clamp(min=self.min_negatives)
        wanted = torch.minimum(wanted, candidates.sum(1))  # (N,)
        most = int(wanted.max())
        hardest = margin.masked_fill(~candidates, -torch.inf).topk(most, dim=1).indices
        taken = torch.arange(most, device=margin.device) < wanted[:, None]
        return torch.zeros_like(candidates).scatter_(1, hardest, taken) & candidates


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
