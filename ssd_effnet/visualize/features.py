"""Feature maps, evidence of a detection and matched anchors of one image.

Maps are taken by forward hooks, which are removed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from data_kaist.structures import DetectionTable, Targets
from ssd_effnet.detection.boxes import cxcywh_to_xyxy, iou
from ssd_effnet.detection.losses import DetectionLoss
from ssd_effnet.models.detector import Detector
from ssd_effnet.models.fusion import HalfwayFusion
from ssd_effnet.structures import Level, RawOutputs, ScoreActivation


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """One map of one image.

    Attributes:
        part: that returned it: ``backbone``, ``adapter``, ``neck``, ``extras``; with halfway fusion also ``visible
            stream`` and ``lwir stream``, whose joined maps the ``backbone`` hands out.
        level: its name, channels and stride.
        tensor: ``(N, C, h, w)``, part of the graph of the outputs.
        row: the image in the tensor.
        handed_on_from: the earlier part that made this map; None where ``part`` made it.
    """

    part: str
    level: Level
    tensor: torch.Tensor
    row: int = 0
    handed_on_from: str | None = None

    @property
    def values(self) -> np.ndarray:
        """float32 ``(C, h, w)``."""
        return np.asarray(self.tensor[self.row].detach().float().cpu().numpy())

    @property
    def size(self) -> tuple[int, int]:
        return self.tensor.shape[-2], self.tensor.shape[-1]

    def energy(self) -> np.ndarray:
        """Mean over channels of the absolute value, ``(h, w)``."""
        return np.asarray(np.abs(self.values).mean(axis=0))

    def liveliest(self, count: int) -> list[int]:
        """The channels with the largest standard deviation over the image, descending.

        Not the largest values: a constant channel has no information about the image.
        """
        spread = self.values.std(axis=(1, 2))
        return [int(c) for c in np.argsort(-spread, kind="stable")[:count]]


@dataclass(frozen=True, eq=False)
class Seen:
    """Maps and outputs of a detector for one image.

    Attributes:
        maps: in the order in which they were returned.
        outputs: of the detector, with their graph.
        input_size: (height, width) of the image.
    """

    maps: list[FeatureMap]
    outputs: RawOutputs
    input_size: tuple[int, int]

    @property
    def parts(self) -> list[str]:
        """The parts that returned maps, in order."""
        return list(dict.fromkeys(m.part for m in self.maps))

    def of_part(self, part: str) -> list[FeatureMap]:
        return [m for m in self.maps if m.part == part]

    @property
    def head_maps(self) -> list[FeatureMap]:
        """The head's input maps, one per level."""
        return self.of_part(self.maps[-1].part)

    def level_of_anchors(self) -> np.ndarray:
        """int64 ``(A,)``: place in :attr:`head_maps` of the level of each anchor."""
        per_level = self.outputs.anchors_per_level
        return np.repeat(np.arange(len(per_level)), per_level)

    def anchor_of(self, detections: DetectionTable, row: int = 0) -> tuple[int, int, np.ndarray]:
        """The anchor that a detection came from: its index, the place of its level, and float32 ``(4,)`` cxcywh."""
        assert detections.anchor_index is not None  # PostProcess knows it
        anchor = int(detections.anchor_index[row])
        place: np.ndarray = self.outputs.anchors_cxcywh[anchor].cpu().numpy()
        return anchor, int(self.level_of_anchors()[anchor]), place


@contextmanager
def recording(detector: Detector) -> Iterator[list[FeatureMap]]:
    """Context that records the maps of a batch's first image."""
    maps: list[FeatureMap] = []

    def record(part: str, levels: Sequence[Level]) -> Callable[..., None]:
        names = part.split("|")

        def hook(_module: nn.Module, _given: Any, handed: Sequence[torch.Tensor]) -> None:
            made_by = {(id(m.tensor), m.row): m.handed_on_from or m.part for m in maps}
            for i, name in enumerate(names):
                for level, x in zip(levels, handed, strict=True):
                    maps.append(FeatureMap(name, level, x, i, made_by.get((id(x), i))))

        return hook

    hooks = []
    try:
        for name, part in detector.parts.items():
            levels: list[Level] = part.levels  # type: ignore[assignment]
            if isinstance(part, HalfwayFusion):
                both = levels[: len(part.fuse)]
                # a single stream for both modalities takes them as one batch, an image's two rows beside each other
                labels = ["visible stream|lwir stream"] if len(part.streams) == 1 else ["visible stream", "lwir stream"]
                for label, stream in zip(labels, part.streams, strict=True):
                    hooks.append(stream.register_forward_hook(record(label, both)))
            hooks.append(part.register_forward_hook(record(name, levels)))
        yield maps
    finally:
        for handle in hooks:
            handle.remove()


def see(detector: Detector, images: torch.Tensor) -> Seen:
    """Run the detector on one image and keep all maps.

    Args:
        detector: in evaluation.
        images: ``(1, C, H, W)``, 0..255, on the detector's device.

    Raises:
        ValueError: not one image, or a detector that is training: its batch norms would learn from the image.
    """
    if images.shape[0] != 1:
        raise ValueError(f"one image is looked at at a time, not {images.shape[0]}")
    if detector.training:
        raise ValueError("the detector must be in evaluation; call eval() first")
    with torch.enable_grad(), recording(detector) as maps:
        # a gradient that starts at the pixels reaches every map, even where all weights are frozen
        outputs = detector(images.float().requires_grad_())
    return Seen(list(maps), outputs, (images.shape[-2], images.shape[-1]))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one map contributed to the score of one detection.

    Attributes:
        map: the map.
        grad_cam: ``(h, w)``, not negative. Each channel weighted by its mean gradient (Selvaraju et al. 2017, equations
            1 and 2): wherever the map shows what made the score, also at other objects.
        at_place: ``(h, w)``, not negative. Gradient times value at each position, summed over channels (HiResCAM,
            Draelos and Carin 2020): only what this very anchor used.
    """

    map: FeatureMap
    grad_cam: np.ndarray
    at_place: np.ndarray


def score_logit(logits: torch.Tensor, label: int, activation: ScoreActivation) -> torch.Tensor:
    """The logit whose sigmoid is the score, a scalar.

    With softmax that is the log odds of the class against all others, not its logit alone: background's logit says as
    much about a person as a person's.

    Args:
        logits: ``(K,)`` of one anchor.
        label: class index, from 1.
        activation: what the logits mean.
    """
    if activation == "sigmoid":
        return logits[label - 1]
    others = torch.cat((logits[:label], logits[label + 1 :]))
    return logits[label] - others.logsumexp(0)


def evidence(seen: Seen, detection: DetectionTable, activation: ScoreActivation) -> list[Evidence]:
    """The maps on which the score of a detection, a table of one row, depends, each once, in order."""
    anchor, label = seen.anchor_of(detection)[0], int(detection.labels[0])
    made = [m for m in seen.maps if m.handed_on_from is None]
    score = score_logit(seen.outputs.cls_logits[0, anchor].float(), label, activation)
    gradients = torch.autograd.grad(score, [m.tensor for m in made], retain_graph=True, allow_unused=True)
    result = []
    for m, gradient in zip(made, gradients, strict=True):
        if gradient is None or not bool(gradient[m.row].any()):
            continue
        g, values = gradient[m.row].float().cpu().numpy(), m.values
        cam = np.tensordot(g.mean(axis=(1, 2)), values, axes=1)
        result.append(Evidence(m, np.maximum(cam, 0), np.maximum((g * values).sum(axis=0), 0)))
    return result


@dataclass(frozen=True, eq=False)
class AnchorMatches:
    """Matching of one image's anchors.

    Attributes:
        boxes_xyxy: float32 ``(M, 4)``, the objects to be found, pixels of the network's input.
        best_iou: ``(M,)``, the largest with any anchor.
        object_of_anchor: int64 ``(A,)``, row of ``boxes_xyxy``, -1 where the anchor has no object.
        ignored: bool ``(A,)``, neither positive nor negative.
        level_of_anchor: int64 ``(A,)``.
        anchors_xyxy: float32 ``(A, 4)``.
        counts: int64 ``(M, levels)``, positive anchors of each object.
        ignored_counts: int64 ``(levels,)``.
        iou_threshold: from which on an anchor belongs to an object; None where the matcher has none.
    """

    boxes_xyxy: np.ndarray
    best_iou: np.ndarray
    object_of_anchor: np.ndarray
    ignored: np.ndarray
    level_of_anchor: np.ndarray
    anchors_xyxy: np.ndarray
    counts: np.ndarray
    ignored_counts: np.ndarray
    iou_threshold: float | None

    def of_object(self, row: int) -> np.ndarray:
        """Places of the positive anchors of an object."""
        return np.flatnonzero(self.object_of_anchor == row)


@torch.no_grad()
def matched_anchors(seen: Seen, targets: Targets, criterion: DetectionLoss) -> AnchorMatches:
    """What the loss's own matcher says of one image's anchors and objects."""
    matches = criterion.matcher(seen.outputs, targets)
    rows = targets.is_object[0].nonzero()[:, 0]
    boxes = targets.boxes_xyxy[0, rows]
    anchors_xyxy = cxcywh_to_xyxy(seen.outputs.anchors_cxcywh)
    best = iou(boxes, anchors_xyxy).amax(dim=1) if len(rows) else boxes.new_zeros(0)
    numbers = np.full(targets.labels.shape[1] + 1, -1)  # the last one: what -1 points at
    numbers[rows.cpu().numpy()] = np.arange(len(rows))
    objects = numbers[matches.object_index[0].cpu().numpy()]
    ignored = matches.ignored[0].cpu().numpy()
    level = seen.level_of_anchors()
    counts = np.zeros((len(rows), len(seen.head_maps)), np.int64)
    positive = objects >= 0
    np.add.at(counts, (objects[positive], level[positive]), 1)
    return AnchorMatches(
        boxes_xyxy=boxes.cpu().numpy(),
        best_iou=best.cpu().numpy(),
        object_of_anchor=objects,
        ignored=ignored,
        level_of_anchor=level,
        anchors_xyxy=anchors_xyxy.cpu().numpy(),
        counts=counts,
        ignored_counts=np.bincount(level[ignored], minlength=len(seen.head_maps)),
        iou_threshold=getattr(criterion.matcher, "iou_threshold", None),
    )
