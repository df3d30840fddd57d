"""Postprocessing: raw outputs to detections by decoding and NMS."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ssd_effnet.detection.boxes import SSD_VARIANCES, Variances, cxcywh_to_xyxy, decode, nms
from ssd_effnet.structures import Detections, RawOutputs, ScoreActivation


@dataclass(frozen=True)
class PostProcess:
    """Score threshold, best ``pre_nms_top_k``, NMS per class, best ``top_k``; batched.

    Args:
        score_threshold: boxes of lower scores are dropped.
        pre_nms_top_k: boxes per image that enter NMS, all classes together.
        nms_iou: IoU above which the lower-scoring box of a class is dropped.
        top_k: boxes per image that remain.
        temperature: of the returned scores (:func:`ssd_effnet.evaluation.calibration.tempered`), after the threshold.
        activation, variances: of the loss.
    """

    score_threshold: float = 0.01
    pre_nms_top_k: int = 1000
    nms_iou: float = 0.45
    top_k: int = 200
    temperature: float = 1.0
    activation: ScoreActivation = "softmax"
    variances: Variances = SSD_VARIANCES

    @torch.no_grad()
    def __call__(
        self,
        outputs: RawOutputs,
        input_size: tuple[int, int],
        original_sizes: torch.Tensor | None = None,
        content_sizes: torch.Tensor | None = None,
    ) -> Detections:
        """Detections in pixels of the original images.

        Args:
            outputs: of the detector.
            input_size: (height, width) of the detector's input.
            original_sizes: ``(N, 2)``, (height, width) of each image before it was resized; None: not resized.
            content_sizes: ``(N, 2)``, (height, width) of the part of each input, from the top left, that is no
                padding; None: all. Boxes are clipped to it after NMS, as can be done with boxes of an exported file.
        """
        scores, anchor, labels = self.candidates(outputs)
        boxes = self.boxes(outputs, anchor, input_size)
        sized = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
        # shifted per class, so that classes do not suppress each other
        apart = boxes + (labels * 2 * max(input_size))[..., None]
        kept = nms(apart, (scores >= self.score_threshold) & sized, self.nms_iou, most=self.top_k)
        scores, rank = torch.where(kept, scores, 0).topk(min(self.top_k, scores.shape[1]), dim=1)
        labels = torch.where(scores > 0, labels.gather(1, rank), 0)
        boxes = boxes.gather(1, rank[..., None].expand(-1, -1, 4)) * (labels > 0)[..., None]
        found = Detections(boxes, self.tempered(scores), labels, anchor.gather(1, rank))
        if original_sizes is None:
            return found
        content = boxes.new_tensor([input_size]) if content_sizes is None else content_sizes.to(boxes)
        stretch = original_sizes.to(boxes) / content
        limits, stretch = (size.flip(-1).repeat(1, 2)[:, None] for size in (content, stretch))  # (N, 1, 4) as (x, y)
        boxes = torch.minimum(boxes, limits)
        inside = (boxes[..., :2] < boxes[..., 2:]).all(-1)
        return replace(
            found, boxes_xyxy=boxes * stretch * inside[..., None], scores=found.scores * inside, labels=labels * inside
        )

    def tempered(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores at the temperature. Scores of 0, as in padding, stay."""
        return scores if self.temperature == 1 else (scores.logit() / self.temperature).sigmoid()

    def boxes(self, outputs: RawOutputs, anchor: torch.Tensor, input_size: tuple[int, int]) -> torch.Tensor:
        """Boxes xyxy ``(N, n, 4)`` of anchors ``(N, n)``. They are clipped to the image."""
        offsets = outputs.bbox_regression.float().gather(1, anchor[..., None].expand(-1, -1, 4))
        boxes = cxcywh_to_xyxy(decode(offsets, outputs.anchors_cxcywh[anchor], self.variances))
        height, width = input_size
        return torch.minimum(boxes.clamp(min=0), boxes.new_tensor((width, height, width, height)))

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores of logits, ``(..., K)`` to ``(..., foreground classes)``."""
        if self.activation == "softmax":
            return logits.softmax(-1)[..., 1:]
        return (logits.unflatten(-1, (-1, 2)).amax(-1) if self.activation == "either" else logits).sigmoid()

    def candidates(self, outputs: RawOutputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Best ``pre_nms_top_k`` scores with anchor and label, sorted, ``(N, n)`` each.

        ``n`` depends on shapes alone: no host synchronisation, and exportable.
        """
        scores = self.scores(outputs.cls_logits.float())
        classes = scores.shape[-1]
        scores, place = scores.flatten(1).topk(min(self.pre_nms_top_k, scores.shape[1] * classes), dim=1)
        return scores, place // classes, place % classes + 1
