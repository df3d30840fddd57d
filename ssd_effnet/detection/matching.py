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
    """

    object_index: torch.Tensor
    ignored: torch.Tensor
    classes: torch.Tensor
    boxes_xyxy: torch.Tensor
    quality: torch.Tensor

    @classmethod
    def of_objects(
        cls,
        outputs: RawOutputs,
        targets: Targets,
        object_index: torch.Tensor,
        ignored: torch.Tensor,
        quality: torch.Tensor,
    ) -> Assignment:
        """Look up classes and boxes by ``object_index``; positives are not ignored."""
        positive, rows = object_index >= 0, object_index.clamp(min=0)
        boxes = targets.boxes_xyxy.gather(1, rows[..., None].expand(-1, -1, 4))
        return cls(
            object_index,
            ignored & ~positive,
            torch.where(positive, targets.labels.gather(1, rows), 0),
            torch.where(positive[..., None], boxes, cxcywh_to_xyxy(outputs.anchors_cxcywh)),
            torch.where(positive, quality, 0),
        )

    @property
    def positive(self) -> torch.Tensor:
        """Anchors with an object, bool ``(N, A)``."""
        return self.object_index >= 0


Matcher = Callable[[RawOutputs, Targets], Assignment]
"""From raw outputs and targets of a batch to what each anchor is to learn."""


@MATCHERS.register("max_iou")
@dataclass(frozen=True)
class MaxIoUMatcher:
    """SSD's matching by IoU (section 2.2).

    Each object takes its best anchor; then each anchor its best object with IoU >= ``iou_threshold``.

    Where two objects have the same best anchor, the later one takes it. An anchor without object that has half
    of its area or more in one ignore region is ignored.

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
        """Time grows with the padded number of objects; memory with the anchors of the batch."""
        anchors = cxcywh_to_xyxy(outputs.anchors_cxcywh)
        boxes, is_object, areas = targets.boxes_xyxy, targets.is_object, area(anchors)
        best_overlap = anchors.new_full((len(boxes), len(anchors)), -1)  # (N, A)
        best_object = torch.zeros_like(best_overlap, dtype=torch.int64)
        covered = torch.zeros_like(best_overlap)  # largest share of an anchor's area in one ignore region
        of_objects = []  # largest IoU of each object, and its anchor
        step = max(1, _PAIRS // best_overlap.numel())
        for start in range(0, boxes.shape[1], step):
            some = slice(start, start + step)
            shared = intersection(boxes[:, some], anchors)  # (N, m, A)
            covered = torch.maximum(covered, (shared * targets.ignore[:, some, None]).amax(dim=1))
            union = (area(boxes[:, some])[..., None] + areas).sub_(shared).clamp_(min=torch.finfo(shared.dtype).tiny)
            overlap = shared.div_(union).masked_fill_(~is_object[:, some, None], -1)
            of_objects.append(overlap.max(dim=2))
            highest, row = overlap.max(dim=1)
            better = highest > best_overlap  # of equals the first object
            best_overlap = torch.where(better, highest, best_overlap)
            best_object = torch.where(better, row + start, best_object)

        of_object, best_anchor = (torch.cat(parts, dim=1) for parts in zip(*of_objects, strict=True))  # (N, M)
        rows = torch.arange(boxes.shape[1], device=boxes.device).expand_as(best_anchor)
        # amax resolves two objects with one anchor, alike on every device
        claims = torch.full_like(best_object, -1)
        claims.scatter_reduce_(1, best_anchor, torch.where(is_object, rows, -1), "amax")
        object_index = torch.where(best_overlap >= self.iou_threshold, best_object, -1)
        quality = torch.where(claims >= 0, of_object.gather(1, claims.clamp(min=0)), best_overlap)
        ignored = covered >= 0.5 * areas
        if self.negative_iou is not None:
            ignored |= best_overlap >= self.negative_iou
        object_index = torch.where(claims >= 0, claims, object_index)
        return Assignment.of_objects(outputs, targets, object_index, ignored, quality)
