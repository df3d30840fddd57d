"""From raw outputs to detections."""

from __future__ import annotations

import torch
from torch import nn

from ssd_effnet.boxes import SSD_VARIANCES, Variances, cxcywh_to_xyxy, decode, nms
from ssd_effnet.structures import Detections, RawOutputs, ScoreActivation


class PostProcess(nn.Module):
    """Scores, score threshold, the best ``pre_nms_top_k``, NMS within a class, the best ``top_k``; a batch at once.

    Args:
        score_threshold: boxes of lower scores are dropped.
        pre_nms_top_k: boxes an image that enter NMS, all classes together.
        nms_iou: overlap above which the worse of two boxes of one class goes.
        top_k: boxes an image that remain.
        activation: from logits to scores, as the loss was that they were trained by: ``softmax`` over all classes with
            background at index 0, or ``sigmoid`` of the foreground classes.
        variances: of the box code, as in the loss.
    """

    def __init__(
        self,
        score_threshold: float = 0.01,
        pre_nms_top_k: int = 1000,
        nms_iou: float = 0.45,
        top_k: int = 200,
        activation: ScoreActivation = "softmax",
        variances: Variances = SSD_VARIANCES,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.variances = variances
        self.score_threshold = score_threshold
        self.pre_nms_top_k = pre_nms_top_k
        self.nms_iou = nms_iou
        self.top_k = top_k

    @torch.no_grad()
    def forward(
        self, outputs: RawOutputs, input_size: tuple[int, int], original_sizes: torch.Tensor | None = None
    ) -> Detections:
        """Detections in pixels of the original images.

        Args:
            outputs: of the detector.
            input_size: (height, width) of the images that the detector saw.
            original_sizes: ``(N, 2)``, (height, width) of each image before it was resized; None: as they were seen.
        """
        logits = outputs.cls_logits.float()
        # (N, A, foreground classes)
        scores = logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(-1)[..., 1:]
        classes = scores.shape[-1]
        scores, place = scores.flatten(1).topk(min(self.pre_nms_top_k, scores[0].numel()), dim=1)
        anchor, label = place // classes, place % classes + 1

        offsets = outputs.bbox_regression.float().gather(1, anchor[..., None].expand(-1, -1, 4))
        boxes = cxcywh_to_xyxy(decode(offsets, outputs.anchors_cxcywh[anchor], self.variances))
        height, width = input_size
        limit = boxes.new_tensor((width, height, width, height))
        boxes = torch.minimum(boxes.clamp(min=0), limit)

        sized = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
        # far-apart copies of the plane, one a class, keep classes from suppressing each other
        apart = boxes + (label * 2 * max(height, width))[..., None]
        kept = nms(apart, (scores >= self.score_threshold) & sized, self.nms_iou)

        scores, rank = torch.where(kept, scores, 0).topk(min(self.top_k, scores.shape[1]), dim=1)
        boxes = boxes.gather(1, rank[..., None].expand(-1, -1, 4))
        label = torch.where(scores > 0, label.gather(1, rank), 0)
        if original_sizes is not None:
            stretch = original_sizes.to(boxes).flip(-1) / limit[:2]  # (N, 2) as (x, y)
            boxes = boxes * stretch.repeat(1, 2)[:, None]
        return Detections(boxes * (label > 0)[..., None], scores, label)
