"""Losses of raw outputs, batched, without host synchronisation; hard negative mining."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from data_kaist.errors import Failure
from data_kaist.structures import Batch, Targets
from ssd_effnet.detection import boxes
from ssd_effnet.detection.matching import Assignment, Matcher, MaxIoUMatcher
from ssd_effnet.distributed import mean_over_processes
from ssd_effnet.registry import BOX_LOSSES, CLASS_LOSSES
from ssd_effnet.structures import RawOutputs, ScoreActivation

AtLeast0 = Annotated[float, "at least 0"]

# square pixels added to divisors: boxes without area have finite losses and gradients
_EPS = 1e-7


@dataclass
class Losses:
    """Scalars: ``total`` to minimise, and its parts. ``cls``, ``loc`` and ``own`` by name, number of positives."""

    total: torch.Tensor
    cls: torch.Tensor
    loc: torch.Tensor
    positives: torch.Tensor
    own: dict[str, torch.Tensor] = field(default_factory=dict)

    def named(self) -> dict[str, torch.Tensor]:
        """Losses without gradient by name: ``loss_total``, ``loss_cls``, ``loss_loc``, ``loss_NAME``."""
        every = {"total": self.total, "cls": self.cls, "loc": self.loc, **self.own}
        return {f"loss_{name}": loss.detach() for name, loss in every.items()}

    def with_own(self, detector: nn.Module, batch: Batch) -> Losses:
        """Add the losses of modules with a method ``losses``. It is ``losses(batch) -> {name: scalar}``.

        The method is called after the forward pass, whose results the module keeps. Losses of one name are added.
        """
        own: dict[str, torch.Tensor] = {}
        for module in detector.modules():
            losses: Callable[[Batch], dict[str, torch.Tensor]] = getattr(module, "losses", lambda _: {})
            for name, loss in losses(batch).items():
                if name in ("total", "cls", "loc"):
                    raise LossNameError(f"the loss {name!r} of {type(module).__name__} has the name of another")
                own[name] = own[name] + loss if name in own else loss
        return replace(self, total=sum(own.values(), self.total), own=own)


class LossNameError(Failure, ValueError):
    """A module's loss has a name that is taken."""


class ClassLoss(ABC):
    """Loss of the class logits, summed over a batch."""

    activation: ClassVar[ScoreActivation]
    """What the logits mean: see :data:`ScoreActivation`."""
    prior: float | None = None
    """Score of every anchor before training, which the head begins with; None: as its weights have it."""

    @abstractmethod
    def __call__(self, outputs: RawOutputs, assignment: Assignment) -> torch.Tensor: ...


BoxLoss = Callable[[RawOutputs, Assignment], torch.Tensor]
"""Loss of the boxes, summed over the positive anchors of a batch."""


class DetectionLoss(nn.Module):
    """Matching, class loss and box loss, divided by the number of positives.

    An image without positives counts as one. With several processes, each has a share of the batch and the mean of
    their losses is that of the whole batch.

    Args:
        class_loss: of all anchors.
        box_loss: of the positive ones; None: :class:`SmoothL1`.
        matcher: None: :class:`.matching.MaxIoUMatcher`.
        box_weight: factor on the box loss.
    """

    def __init__(
        self,
        class_loss: ClassLoss,
        box_loss: BoxLoss | None = None,
        matcher: Matcher | None = None,
        *,
        box_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.class_loss = class_loss
        self.box_loss = box_loss or SmoothL1()
        self.matcher = matcher or MaxIoUMatcher()
        self.box_weight = box_weight

    def forward(self, outputs: RawOutputs, targets: Targets) -> Losses:
        """Losses of a batch; finite also where no image has an object."""
        assignment = self.matcher(outputs, targets)
        positives = assignment.positive.sum(1)  # (N,)
        # an image without positives counts as one, so that the divisor is never 0
        divisor = positives.clamp(min=1).sum()
        if self.training:  # in evaluation the processes are not synchronised
            divisor = mean_over_processes(divisor)
        cls = self.class_loss(outputs, assignment) / divisor
        loc = self.box_weight * self.box_loss(outputs, assignment) / divisor
        return Losses(cls + loc, cls, loc, positives.sum())


@CLASS_LOSSES.register("multibox")
@dataclass(eq=False)
class MultiBoxLoss(ClassLoss):
    """Cross-entropy over positives and hard negatives of each image (SSD, 2.2).

    Logits are those of all classes with background at index 0.

    Args:
        negative_ratio: negatives per positive, in each image.
        min_negatives: at least this many per image, so that images without objects count.
    """

    activation: ClassVar[ScoreActivation] = "softmax"
    negative_ratio: AtLeast0 = 3.0
    min_negatives: Annotated[int, "at least 0"] = 16

    def __call__(self, outputs: RawOutputs, assignment: Assignment) -> torch.Tensor:
        logits = outputs.cls_logits.float()
        taken = assignment.positive | self.hardest_negatives(logits.detach(), assignment)
        classes = torch.where(taken, assignment.classes, -1)
        return F.cross_entropy(logits.flatten(0, 1), classes.flatten(), ignore_index=-1, reduction="sum")

    def hardest_negatives(self, logits: torch.Tensor, assignment: Assignment) -> torch.Tensor:
        """Hard negatives: those of largest cross-entropy per image, bool ``(N, A)``."""
        candidates = ~assignment.positive & ~assignment.ignored
        wanted = (assignment.positive.sum(1) * self.negative_ratio).long().clamp(min=self.min_negatives)
        margin = self.margin(logits).masked_fill(~candidates, -torch.inf)
        order = margin.argsort(dim=1, descending=True)
        rank = torch.arange(margin.shape[1], device=margin.device)
        first = torch.zeros_like(candidates).scatter_(1, order, rank < wanted[:, None])
        return first & candidates

    def margin(self, logits: torch.Tensor) -> torch.Tensor:
        """``(N, A)`` in the order of a negative's loss, which is the softplus of this."""
        return (logits[..., 1] if logits.shape[-1] == 2 else logits[..., 1:].logsumexp(-1)) - logits[..., 0]


@CLASS_LOSSES.register("multi_label")
class MultiLabelLoss(MultiBoxLoss):
    """Cross-entropy per modality over positives and hard negatives. MLPD: Kim et al., RA-L 2021.

    Logits are two per foreground class, whether the visible and the LWIR image show it. Written from the paper's
    description; negatives are mined as in :class:`MultiBoxLoss`, by the probability of any.
    """

    activation = "either"

    def margin(self, logits: torch.Tensor) -> torch.Tensor:
        """``(N, A)``, minus the logarithm of the probability of none."""
        return F.softplus(logits).sum(-1)

    def __call__(self, outputs: RawOutputs, assignment: Assignment) -> torch.Tensor:
        logits = outputs.cls_logits.float()
        taken = assignment.positive | self.hardest_negatives(logits.detach(), assignment)
        labels = torch.arange(2, logits.shape[-1] + 2, device=logits.device) // 2  # 1, 1, 2, 2, ...
        present = assignment.present.repeat(1, 1, logits.shape[-1] // 2)  # (N, A, 2K)
        wanted = (assignment.classes[..., None] == labels) & present
        losses = F.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="none")
        return (losses * taken[..., None]).sum()


@CLASS_LOSSES.register("focal")
@dataclass(eq=False)
class FocalLoss(ClassLoss):
    """Focal loss over all anchors that are not ignored (Lin et al. 2017, RetinaNet, equation 5).

    ``-alpha_t (1 - p_t)^gamma log(p_t)``, a binary loss per class: logits are those of the foreground classes only.

    Args:
        alpha: weight of positives; negatives have ``1 - alpha``.
        gamma: less weight of well-classified anchors; EfficientDet: 1.5, RetinaNet: 2, cross-entropy: 0.
        prior: initial score of every anchor.
    """

    activation = "sigmoid"
    alpha: Annotated[float, "in 0..1"] = 0.25
    gamma: AtLeast0 = 1.5
    prior: Annotated[float, "above 0, below 1"] = 0.01

    def __call__(self, outputs: RawOutputs, assignment: Assignment) -> torch.Tensor:
        logits = outputs.cls_logits.float()
        labels = torch.arange(1, logits.shape[-1] + 1, device=logits.device)
        yes = assignment.classes[..., None] == labels  # (N, A, K)
        z = torch.where(yes, logits, -logits)  # p_t = sigmoid(z)
        # 1 - p_t = exp(-softplus(z)): a power of the difference would lose its gradient at 1
        focal = F.softplus(-z) * torch.exp(-self.gamma * F.softplus(z))
        weighted = torch.where(yes, self.alpha, 1 - self.alpha) * focal
        return (weighted * ~assignment.ignored[..., None]).sum()


@CLASS_LOSSES.register("quality_focal")
@dataclass(eq=False)
class QualityFocalLoss(ClassLoss):
    """Quality focal loss (QFL) over all anchors that are not ignored. Source: Li et al. 2020.

    ``-|y - p|^beta ((1 - y) log(1 - p) + y log(p))``; y is 0 for negatives and other classes, else the IoU of the
    decoded box and its object, without gradient. Logits are those of the foreground classes only.

    Args:
        beta: less weight of well-estimated anchors; the authors' is 2, cross-entropy: 0.
        prior: initial score of every anchor.
    """

    activation = "sigmoid"
    beta: AtLeast0 = 2.0
    prior: Annotated[float, "above 0, below 1"] = 0.01
    variances: boxes.Variances = boxes.SSD_VARIANCES

    def __call__(self, outputs: RawOutputs, assignment: Assignment) -> torch.Tensor:
        logits = outputs.cls_logits.float()
        found = decoded(outputs, self.variances).detach()
        quality = boxes.iou(found[..., None, :], assignment.boxes_xyxy[..., None, :])[..., 0]  # (N, A, 1)
        labels = torch.arange(1, logits.shape[-1] + 1, device=logits.device)
        wanted = torch.where(assignment.classes[..., None] == labels, quality, 0)  # (N, A, K)
        # a power below 1 has no finite gradient at 0
        modulation = (wanted - logits.sigmoid()).abs().clamp(min=_EPS) ** self.beta
        losses = modulation * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return (losses * ~assignment.ignored[..., None]).sum()


@BOX_LOSSES.register("smooth_l1")
@dataclass(eq=False)
class SmoothL1:
    """Smooth L1 loss of the box code (SSD, equation 2).

    Args:
        delta: change from quadratic to linear.
    """

    delta: Annotated[float, "above 0"] = 1.0
    variances: boxes.Variances = boxes.SSD_VARIANCES

    def __call__(self, outputs: RawOutputs, assignment: Assignment) -> torch.Tensor:
        wanted = boxes.encode(boxes.xyxy_to_cxcywh(assignment.boxes_xyxy), outputs.anchors_cxcywh, self.variances)
        losses = self.of_offsets(outputs.bbox_regression.float(), wanted)
        return torch.where(assignment.positive[..., None], losses, 0).sum()

    def of_offsets(self, predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Losses of offsets, all ``(N, A, 4)``."""
        return F.smooth_l1_loss(predicted, wanted, reduction="none", beta=self.delta)


@BOX_LOSSES.register("huber")
class Huber(SmoothL1):
    """Huber loss: ``delta`` times smooth L1."""

    def of_offsets(self, predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.huber_loss(predicted, wanted, reduction="none", delta=self.delta)


@BOX_LOSSES.register("l1")
class L1(SmoothL1):
    """L1 loss of the box code."""

    def __init__(self, variances: boxes.Variances = boxes.SSD_VARIANCES) -> None:
        super().__init__(0.0, variances)


def decoded(outputs: RawOutputs, variances: boxes.Variances) -> torch.Tensor:
    """Boxes of all anchors, xyxy in pixels, float32 ``(N, A, 4)``."""
    return boxes.cxcywh_to_xyxy(boxes.decode(outputs.bbox_regression.float(), outputs.anchors_cxcywh, variances))


@BOX_LOSSES.register("giou")
class GIoU:
    """1 - GIoU of the decoded box and its object. Source: Rezatofighi et al. 2019, algorithm 2."""

    def __init__(self, variances: boxes.Variances = boxes.SSD_VARIANCES) -> None:
        self.variances = variances

    def __call__(self, outputs: RawOutputs, assignment: Assignment) -> torch.Tensor:
        losses = self.of_boxes(decoded(outputs, self.variances), assignment.boxes_xyxy)
        return torch.where(assignment.positive, losses, 0).sum()

    def of_boxes(self, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Losses of boxes, xyxy ``(..., 4)`` to ``(...)``; finite also without area."""
        shared, union, hull = overlap_and_hull(found, wanted)
        return 1 - shared / (union + _EPS) + (boxes.area(hull) - union) / (boxes.area(hull) + _EPS)


@BOX_LOSSES.register("ciou")
class CIoU(GIoU):
    """CIoU loss: 1 - IoU, distance of centres and aspect ratio (Zheng et al. 2020, equations 8 to 11).

    Alpha has no gradient, as in the authors' code; the gradient of the aspect ratio is that of the formula.
    """

    def of_boxes(self, found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        shared, union, hull = overlap_and_hull(found, wanted)
        a, b = boxes.xyxy_to_cxcywh(found), boxes.xyxy_to_cxcywh(wanted)
        diagonal = (hull[..., 2:] - hull[..., :2]).square().sum(-1)
        off_centre = (a - b)[..., :2].square().sum(-1) / (diagonal + _EPS)
        angle = torch.atan(b[..., 2] / (b[..., 3] + _EPS)) - torch.atan(a[..., 2] / (a[..., 3] + _EPS))
        v, not_shared = 4 / math.pi**2 * angle**2, 1 - shared / (union + _EPS)
        alpha = (v / (not_shared.clamp(min=0) + v + _EPS)).detach()
        return not_shared + off_centre + alpha * v


def overlap_and_hull(a_xyxy: torch.Tensor, b_xyxy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Intersection, union and smallest enclosing box of pairs. ``(...)`` twice, for boxes ``(..., 4)``."""
    low, high = torch.minimum(a_xyxy, b_xyxy), torch.maximum(a_xyxy, b_xyxy)
    shared = boxes.area(torch.cat((high[..., :2], low[..., 2:]), dim=-1))
    return shared, boxes.area(a_xyxy) + boxes.area(b_xyxy) - shared, torch.cat((low[..., :2], high[..., 2:]), dim=-1)
