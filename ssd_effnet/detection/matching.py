"""Matching of anchors to objects, batched, without host synchronisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch

from data_kaist.structures import Targets
from ssd_effnet.detection.boxes import area, cxcywh_to_xyxy, intersection
from ssd_effnet.registry import MATCHERS
from ssd_effnet.structures import RawOutputs

# pairs of a box and an anchor compared at once, 4 MiB per tensor: 200 boxes of 16 images in one piece take gigabytes
_PAIRS = 2**20


@dataclass
class Assignment:
    """Training target of each anchor.

    Attributes:
        object_index: int64 ``(N, A)``, row of the targets, -1 where the anchor has no object.
        ignored: bool ``(N, A)``, neither positive nor negative.
        classes: int64 ``(N, A)``, the object's class, 0 without one.
        boxes_xyxy: float32 ``(N, A, 4)``, the object's box in pixels of the input; the anchor's own without one.
        quality: float32 ``(N, A)``, IoU of anchor and object, 0 without one.
        present: bool ``(N, A, 2)``, whether the visible and the LWIR image have the object; True without one.
    """

    object_index: torch.Tensor
    ignored: torch.Tensor
    classes: torch.Tensor
    boxes_xyxy: torch.Tensor
    quality: torch.Tensor
    present: torch.Tensor

    @classmethod
    def of_objects(
        cls,
        outputs: RawOutputs,
        targets: Targets,
        object_index: torch.Tensor,
        ignored: torch.Tensor,
        quality: torch.Tensor,
    ) -> Assignment:
        """Looks up classes and boxes by ``object_index``; positives are not ignored."""
        positive, rows = object_index >= 0, object_index.clamp(min=0)
        boxes = targets.boxes_xyxy.gather(1, rows[..., None].expand(-1, -1, 4))
        present = torch.ones_like(rows, dtype=torch.bool)[..., None].expand(-1, -1, 2)
        if targets.present is not None:
            present = targets.present.gather(1, rows[..., None].expand(-1, -1, 2)) | ~positive[..., None]
        return cls(
            object_index,
            ignored & ~positive,
            torch.where(positive, targets.labels.gather(1, rows), 0),
            torch.where(positive[..., None], boxes, cxcywh_to_xyxy(outputs.anchors_cxcywh)),
            torch.where(positive, quality, 0),
            present,
        )

    @property
    def positive(self) -> torch.Tensor:
        """Anchors with an object, bool ``(N, A)``."""
        return self.object_index >= 0


Matcher = Callable[[RawOutputs, Targets], Assignment]
"""From raw outputs and targets of a batch to what each anchor is to learn."""


Candidates = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From IoU ``(N, m, A)`` and boxes ``(N, m, 4)`` of m objects to the IoU, -1 where an anchor is no candidate."""


def best_objects(
    outputs: RawOutputs, targets: Targets, candidates: Candidates
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Object of largest IoU of each anchor. Computed for a few objects at a time.

    Returns:
        ``(N, A)`` each: the IoU, -1 without a candidate; the row of the targets, of equals the first; True where one
        ignore region has half of the anchor's area or more.
    """
    anchors = cxcywh_to_xyxy(outputs.anchors_cxcywh)
    boxes, areas = targets.boxes_xyxy, area(anchors)
    best_overlap = anchors.new_full((len(boxes), len(anchors)), -1)
    best_object = torch.zeros_like(best_overlap, dtype=torch.int64)
    covered = torch.zeros_like(best_overlap)  # largest share of an anchor's area in one ignore region
    step = max(1, _PAIRS // best_overlap.numel())
    for start in range(0, boxes.shape[1], step):
        some = slice(start, start + step)
        shared = intersection(boxes[:, some], anchors)  # (N, m, A)
        covered = torch.maximum(covered, (shared * targets.ignore[:, some, None]).amax(dim=1))
        union = (area(boxes[:, some])[..., None] + areas).sub_(shared).clamp_(min=torch.finfo(shared.dtype).tiny)
        overlap = shared.div_(union).masked_fill_(~targets.is_object[:, some, None], -1)
        highest, row = candidates(overlap, boxes[:, some]).max(dim=1)
        better = highest > best_overlap
        best_overlap = torch.where(better, highest, best_overlap)
        best_object = torch.where(better, row + start, best_object)
    return best_overlap, best_object, covered >= 0.5 * areas


@MATCHERS.register("max_iou")
@dataclass(frozen=True)
class MaxIoUMatcher:
    """SSD's matching by IoU (section 2.2).

    Each object takes its best anchor; then each anchor its best object with IoU >= ``iou_threshold``.

    Where two objects have the same best anchor, the later one takes it. Ignore regions: see :func:`best_objects`.

    Args:
        iou_threshold: least IoU of a positive.
        negative_iou: other anchors from this IoU on are ignored (RetinaNet, section 4: 0.4); None: they are negatives.
    """

    iou_threshold: Annotated[float, "above 0, at most 1"] = 0.5
    negative_iou: Annotated[float | None, "above 0"] = None

    def __post_init__(self) -> None:
        if self.negative_iou is not None and self.negative_iou > self.iou_threshold:
            raise ValueError(f"negative_iou must be at most iou_threshold, not {self.negative_iou}")

    @torch.no_grad()
    def __call__(self, outputs: RawOutputs, targets: Targets) -> Assignment:
        of_objects = []  # largest IoU of each object, and its anchor

        def all_anchors(overlap: torch.Tensor, boxes_xyxy: torch.Tensor) -> torch.Tensor:
            of_objects.append(overlap.max(dim=2))
            return overlap

        best_overlap, best_object, ignored = best_objects(outputs, targets, all_anchors)
        of_object, best_anchor = (torch.cat(parts, dim=1) for parts in zip(*of_objects, strict=True))  # (N, M)
        rows = torch.arange(best_anchor.shape[1], device=best_anchor.device).expand_as(best_anchor)
        # amax resolves two objects with one anchor, alike on every device
        claims = torch.full_like(best_object, -1)
        claims.scatter_reduce_(1, best_anchor, torch.where(targets.is_object, rows, -1), "amax")
        object_index = torch.where(best_overlap >= self.iou_threshold, best_object, -1)
        quality = torch.where(claims >= 0, of_object.gather(1, claims.clamp(min=0)), best_overlap)
        if self.negative_iou is not None:
            ignored |= best_overlap >= self.negative_iou
        object_index = torch.where(claims >= 0, claims, object_index)
        return Assignment.of_objects(outputs, targets, object_index, ignored, quality)


@MATCHERS.register("atss")
@dataclass(frozen=True)
class ATSSMatcher:
    """Adaptive training sample selection (Zhang et al. 2020, algorithm 1).

    Candidates of an object are the anchors nearest to its centre on each level. Those with an IoU of at least mean +
    standard deviation of the candidates' IoU and a centre inside the box are positive; an anchor of several objects
    takes that of the largest IoU. An object may have no anchor. Ignore regions: see :func:`best_objects`.

    Args:
        positions: nearest positions per level (k), with all anchors there, as in the authors' code.
    """

    positions: Annotated[int, "at least 1"] = 9

    @torch.no_grad()
    def __call__(self, outputs: RawOutputs, targets: Targets) -> Assignment:
        wanted = self.positions * outputs.anchors_per_position
        x, y = outputs.anchors_cxcywh[:, :2].unbind(1)

        def positives(overlap: torch.Tensor, boxes_xyxy: torch.Tensor) -> torch.Tensor:
            x1, y1, x2, y2 = boxes_xyxy[..., None].unbind(2)  # (N, m, 1)
            distance, first, near = (x - (x1 + x2) / 2) ** 2 + (y - (y1 + y2) / 2) ** 2, 0, []
            for level in distance.split(outputs.anchors_per_level, dim=2):
                near.append(level.topk(min(wanted, level.shape[2]), largest=False).indices + first)
                first += level.shape[2]
            anchor = torch.cat(near, dim=2)  # (N, m, C)
            of_near = overlap.gather(2, anchor)
            threshold = of_near.mean(2, True) + of_near.std(2, correction=min(1, of_near.shape[2] - 1), keepdim=True)
            inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
            kept = torch.where((of_near >= threshold) & inside.gather(2, anchor), of_near, -1)
            return torch.full_like(overlap, -1).scatter_(2, anchor, kept)

        overlap, rows, ignored = best_objects(outputs, targets, positives)
        return Assignment.of_objects(outputs, targets, torch.where(overlap >= 0, rows, -1), ignored, overlap)
