"""Data structures passed between the parts of a detector.

Names of box arrays state their format; units are pixels. Sizes are ``(height, width)``. Torch is imported for type
annotations only, so that the evaluator starts without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from data_kaist.errors import Failure
from data_kaist.structures import DetectionTable

if TYPE_CHECKING:
    import torch


# What class logits mean: all classes with background at index 0 (softmax), foreground classes only (sigmoid), or two
# per foreground class, for the visible and the LWIR image, the larger of which is the score (either).
# The class loss decides it (ClassLoss.activation); head and postprocess are built to agree.
ScoreActivation = Literal["softmax", "sigmoid", "either"]


@dataclass(frozen=True)
class Level:
    """Name, channels and stride of a feature map.

    Attributes:
        name: shown in tables and graphs, for example ``"conv4_3"`` or ``"stage2"``.
        channels: number of channels of the map.
        stride: input pixels to one step of the map, the same along height and width.
    """

    name: str
    channels: int
    stride: int


@dataclass
class RawOutputs:
    """Outputs of the head for all anchors.

    Attributes:
        cls_logits: ``(N, A, K)``, K classes: with background at index 0, or foreground only, see
            :data:`ScoreActivation`.
        bbox_regression: ``(N, A, 4)``, offsets from the anchors (see :func:`ssd_effnet.detection.boxes.encode`).
        anchors_cxcywh: ``(A, 4)``, pixels of the network's input.
        anchors_per_level: anchors of each level of the head, in the order of ``A``; empty: one level.
        anchors_per_position: consecutive anchors with one centre.
    """

    cls_logits: torch.Tensor
    bbox_regression: torch.Tensor
    anchors_cxcywh: torch.Tensor
    anchors_per_level: tuple[int, ...] = ()
    anchors_per_position: int = 1

    def __post_init__(self) -> None:
        self.anchors_per_level = self.anchors_per_level or (len(self.anchors_cxcywh),)

    def refuse_non_finite(self, names: Sequence[str]) -> None:
        """Raise a NonFiniteError that names the images where an output is infinite or NaN."""
        scores, offsets = (x.isfinite().flatten(1).all(1) for x in (self.cls_logits, self.bbox_regression))
        finite = (scores & offsets).tolist()
        if bad := [name for name, fine in zip(names, finite, strict=True) if not fine]:
            raise NonFiniteError(f"the detector's outputs are not finite on {', '.join(bad)}")


class NonFiniteError(Failure, RuntimeError):
    """Loss, weights or outputs are infinite or NaN."""


@dataclass
class Detections:
    """Detections of a batch, padded to ``D`` rows per image, best first.

    Attributes:
        boxes_xyxy: float32 ``(N, D, 4)``.
        scores: float32 ``(N, D)``, 0 on padding.
        labels: int64 ``(N, D)``, 0 on padding.
        anchor_index: int64 ``(N, D)``, the anchor of each; undefined on padding.
    """

    boxes_xyxy: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    anchor_index: torch.Tensor

    def image(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Detections of image ``i`` without the padding. Boxes ``(d, 4)``, scores ``(d,)`` and labels ``(d,)``."""
        rows = self.labels[i] > 0
        return self.boxes_xyxy[i, rows], self.scores[i, rows], self.labels[i, rows]

    def table(self, image_index: Sequence[int], classes: Sequence[str]) -> DetectionTable:
        """Detections without padding as a table, sorted by image.

        Args:
            image_index: ``N`` indices of the images in the list of frames.
            classes: names of the labels 1, 2, ...
        """
        image, row = (self.labels > 0).nonzero(as_tuple=True)
        return DetectionTable(
            np.asarray(image_index, np.int64)[image.cpu().numpy()],
            self.boxes_xyxy[image, row].cpu().numpy(),
            self.scores[image, row].cpu().numpy(),
            self.labels[image, row].cpu().numpy(),
            tuple(classes),
            self.anchor_index[image, row].cpu().numpy(),
        )
