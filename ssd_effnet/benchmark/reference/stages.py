"""Each stage written plainly, as reference for benchmark and tests.

It follows the papers and the protocol, not the project's code, so that agreement is evidence. Only the benchmark and
tests import it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

# --- images -------------------------------------------------------------------------------------------------------

_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


class Chain:
    """PIL reads and resizes, numpy does the rest in float32: jitter, crop or expand, resize, flip, normalise.

    Draws random numbers in the same order as the project's transforms, so that both give the same result.

    Args:
        size: (height, width) of the result.
        mean, std: of R, G, B, LWIR in 0..1.
        train: augment; otherwise resize and normalise only.
        jitter, crop_scale, crop_ratio, crop_probability, flip: as in an experiment's ``augment``.
        fill: R, G, B, LWIR of new canvas.
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: list[float],
        std: list[float],
        *,
        train: bool,
        jitter: float = 0.3,
        crop_scale: tuple[float, float] = (0.25, 4.0),
        crop_ratio: tuple[float, float] = (0.8, 1.2),
        crop_probability: float = 0.5,
        flip: float = 0.5,
        fill: tuple[int, int, int, int] = (88, 82, 72, 41),
    ) -> None:
        self.size = size
        self.mean, self.std = np.array(mean, np.float32), np.array(std, np.float32)
        self.train = train
        self.jitter = jitter
        self.crop_scale, self.crop_ratio, self.crop_probability = crop_scale, crop_ratio, crop_probability
        self.flip = flip
        self.fill = np.array(fill, np.float32)

    def __call__(
        self, visible: Path, lwir: Path, boxes_xyxy: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Float32 ``(4, H, W)``, normalised, and boxes ``(n, 4)`` of which a tenth or more is left."""
        with Image.open(visible) as file:
            colour = np.asarray(file.convert("RGB"))
        with Image.open(lwir) as file:
            heat = np.asarray(file.convert("L"))
        boxes = boxes_xyxy.astype(np.float64)
        if self.train:
            colour, heat = self._jittered(colour, heat, rng)
            colour, heat, boxes = self._cropped(colour, heat, boxes, rng)
        colour, heat, boxes = self._resized(colour, heat, boxes)
        if self.train and rng.random() < self.flip:
            colour, heat = colour[:, ::-1], heat[:, ::-1]
            boxes = np.stack([self.size[1] - boxes[:, 2], boxes[:, 1], self.size[1] - boxes[:, 0], boxes[:, 3]], 1)
        stacked = np.concatenate([colour, heat[..., None]], axis=2).astype(np.float32) / 255
        normalised = (stacked - self.mean) / self.std
        return np.ascontiguousarray(normalised.transpose(2, 0, 1)), boxes.astype(np.float32)

    def _jittered(
        self, colour: np.ndarray, heat: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        apply = rng.random() < 0.5
        factors = 1 + self.jitter * rng.uniform(-1, 1, size=5)
        turn = self.jitter * rng.uniform(-0.1, 0.1) * 2 * math.pi
        if not apply:
            return colour, heat
        brightness, contrast, saturation, heat_brightness, heat_contrast = factors.astype(np.float32)
        x = colour.astype(np.float32)
        mean_grey = float((x.mean(axis=(0, 1)) * _YIQ[0]).sum())
        yiq = x @ _YIQ.T.astype(np.float32)
        i, q = saturation * yiq[..., 1], saturation * yiq[..., 2]
        yiq[..., 1], yiq[..., 2] = np.cos(turn) * i - np.sin(turn) * q, np.sin(turn) * i + np.cos(turn) * q
        x = yiq @ np.linalg.inv(_YIQ).T.astype(np.float32)
        x = mean_grey + contrast * (x - mean_grey)
        x = np.clip(np.rint(brightness * x), 0, 255).astype(np.uint8)
        y = heat.astype(np.float32)
        y = heat_brightness * (y.mean() + heat_contrast * (y - y.mean()))
        return x, np.clip(np.rint(y), 0, 255).astype(np.uint8)

    def _cropped(
        self, colour: np.ndarray, heat: np.ndarray, boxes: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if rng.random() >= self.crop_probability:
            return colour, heat, boxes
        height, width = heat.shape
        scale = math.exp(rng.uniform(math.log(self.crop_scale[0]), math.log(self.crop_scale[1])))
        ratio = math.exp(rng.uniform(math.log(self.crop_ratio[0]), math.log(self.crop_ratio[1])))
        new_height, new_width = round(height * math.sqrt(scale / ratio)), round(width * math.sqrt(scale * ratio))
        x = int(rng.integers(min(width - new_width, 0), max(width - new_width, 0) + 1))
        y = int(rng.integers(min(height - new_height, 0), max(height - new_height, 0) + 1))
        canvas = np.empty((new_height, new_width, 4), np.uint8)
        canvas[:] = self.fill
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + new_width, width), min(y + new_height, height)
        canvas[y1 - y : y2 - y, x1 - x : x2 - x, :3] = colour[y1:y2, x1:x2]
        canvas[y1 - y : y2 - y, x1 - x : x2 - x, 3] = heat[y1:y2, x1:x2]
        kept = []
        for box in boxes:
            cut = [max(box[0], x1), max(box[1], y1), min(box[2], x2), min(box[3], y2)]
            left = max(cut[2] - cut[0], 0) * max(cut[3] - cut[1], 0)
            if left > 1 and left >= 0.1 * (box[2] - box[0]) * (box[3] - box[1]):
                kept.append([cut[0] - x, cut[1] - y, cut[2] - x, cut[3] - y])
        return canvas[..., :3], canvas[..., 3], np.array(kept).reshape(-1, 4)

    def _resized(
        self, colour: np.ndarray, heat: np.ndarray, boxes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        height, width = self.size
        scale = np.array([width / heat.shape[1], height / heat.shape[0]] * 2)
        boxes = np.clip(boxes * scale, 0, [width, height, width, height])
        boxes = boxes[(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) > 1]
        if heat.shape != self.size:
            colour = np.asarray(
                Image.fromarray(np.ascontiguousarray(colour)).resize((width, height), Image.Resampling.BILINEAR)
            )
            heat = np.asarray(
                Image.fromarray(np.ascontiguousarray(heat)).resize((width, height), Image.Resampling.BILINEAR)
            )
        return colour, heat, boxes


# --- boxes --------------------------------------------------------------------------------------------------------


def iou_matrix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``(n, m)`` of xyxy boxes ``(n, 4)`` and ``(m, 4)``."""
    low = torch.max(a[:, None, :2], b[None, :, :2])
    high = torch.min(a[:, None, 2:], b[None, :, 2:])
    size = (high - low).clamp(min=0)
    shared = size[..., 0] * size[..., 1]
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return shared / (area_a[:, None] + area_b[None] - shared)


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Centre and size to xyxy."""
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)


# --- loss ---------------------------------------------------------------------------------------------------------


def multibox_loss(
    cls_logits: torch.Tensor,
    bbox_regression: torch.Tensor,
    anchors_cxcywh: torch.Tensor,
    boxes: list[torch.Tensor],
    labels: list[torch.Tensor],
    *,
    threshold: float = 0.5,
    negative_ratio: float = 3.0,
    min_negatives: int = 16,
) -> tuple[torch.Tensor, torch.Tensor]:
    """SSD's class and box loss, image by image, negatives ranked by two full sorts.

    Args:
        cls_logits: ``(N, A, K)``, background first.
        bbox_regression: ``(N, A, 4)``.
        anchors_cxcywh: ``(A, 4)``.
        boxes: xyxy ``(n, 4)`` per image.
        labels: ``(n,)`` per image.
    """
    corner_anchors = corners(anchors_cxcywh)
    wanted_classes, wanted_offsets = [], []
    for image_boxes, image_labels in zip(boxes, labels, strict=True):
        classes = torch.zeros(len(anchors_cxcywh), dtype=torch.int64)
        offsets = torch.zeros(len(anchors_cxcywh), 4)
        if len(image_boxes):
            overlaps = iou_matrix(image_boxes, corner_anchors)
            best_overlap, best_object = overlaps.max(0)
            best_anchor = overlaps.max(1).indices
            for i, anchor in enumerate(best_anchor.tolist()):
                best_overlap[anchor], best_object[anchor] = 2.0, i
            classes = image_labels[best_object]
            classes[best_overlap < threshold] = 0
            matched = image_boxes[best_object]
            centre = ((matched[:, :2] + matched[:, 2:]) / 2 - anchors_cxcywh[:, :2]) / (0.1 * anchors_cxcywh[:, 2:])
            size = torch.log((matched[:, 2:] - matched[:, :2]) / anchors_cxcywh[:, 2:]) / 0.2
            offsets = torch.cat([centre, size], 1)
        wanted_classes.append(classes)
        wanted_offsets.append(offsets)
    target, offsets = torch.stack(wanted_classes), torch.stack(wanted_offsets)
    positive = target > 0
    mask = positive[..., None].expand_as(bbox_regression)
    loc = F.smooth_l1_loss(bbox_regression[mask], offsets[mask], reduction="sum")
    entropy = F.cross_entropy(cls_logits.reshape(-1, cls_logits.shape[-1]), target.reshape(-1), reduction="none")
    entropy = entropy.view_as(target)
    ranked = entropy.detach().clone()
    ranked[positive] = -1
    rank = ranked.sort(1, descending=True).indices.sort(1).indices
    count = (positive.sum(1, keepdim=True) * negative_ratio).long().clamp(min=min_negatives)
    negative = (rank < count) & ~positive
    cls = entropy[positive | negative].sum()
    divisor = positive.sum(1).clamp(min=1).sum()
    return cls / divisor, loc / divisor


# --- detections ---------------------------------------------------------------------------------------------------


def nms(boxes_xyxy: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    """Rows that stay, best first: take the best, drop what overlaps it, repeat."""
    left = scores.sort(descending=True, stable=True).indices
    kept = []
    while len(left):
        kept.append(int(left[0]))
        left = left[1:][iou_matrix(boxes_xyxy[left[:1]], boxes_xyxy[left[1:]])[0] <= threshold]
    return kept


def postprocess(
    cls_logits: torch.Tensor,
    bbox_regression: torch.Tensor,
    anchors_cxcywh: torch.Tensor,
    size: tuple[int, int],
    *,
    score_threshold: float = 0.01,
    nms_iou: float = 0.45,
    top_k: int = 200,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Boxes xyxy and scores of each image, of the only foreground class; no limit before NMS."""
    found = []
    for logits, offsets in zip(cls_logits, bbox_regression, strict=True):
        scores = logits.softmax(-1)[:, 1]
        centre = offsets[:, :2] * 0.1 * anchors_cxcywh[:, 2:] + anchors_cxcywh[:, :2]
        boxes = corners(torch.cat([centre, torch.exp(offsets[:, 2:] * 0.2) * anchors_cxcywh[:, 2:]], 1))
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, size[1])
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, size[0])
        good = (scores >= score_threshold) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, scores = boxes[good], scores[good]
        kept = nms(boxes, scores, nms_iou)[:top_k]
        found.append((boxes[kept], scores[kept]))
    return found


# --- miss rate ----------------------------------------------------------------------------------------------------


def miss_rate(
    truth: list[list[dict[str, Any]]], found: list[dict[str, Any]], images: list[int], size: tuple[int, int]
) -> float:
    """Log-average miss rate of the subset "reasonable" under the rules of the KAIST devkit, image by image.

    Args:
        truth: a list per image of ``{"label", "bbox" (xywh), "height", "occlusion", "ignore"}``.
        found: ``{"image", "bbox" (xywh), "score"}`` in any order.
        images: which images the subset has.
        size: (height, width) of all images.
    """
    by_image: dict[int, list[dict[str, Any]]] = {}
    for row in found:
        by_image.setdefault(row["image"], []).append(row)
    outcomes: list[tuple[float, int]] = []
    counted = 0
    for image in images:
        people: list[dict[str, Any]] = []
        regions: list[dict[str, Any]] = []
        for thing in truth[image]:
            x, y, w, h = thing["bbox"]
            outside = x < 5 or y < 5 or x + w > size[1] - 5 or y + h > size[0] - 5
            small = thing["height"] < 55 or thing["occlusion"] not in (0, 1)
            unwanted = thing["label"] != "person" or thing["ignore"] or outside or small
            (regions if unwanted else people).append(thing)
        counted += len(people)
        taken = [False] * len(people)
        for row in sorted(by_image.get(image, []), key=lambda row: -row["score"])[:1000]:
            best, best_overlap = -1, 0.5
            for i, person in enumerate(people):
                shared = overlap(row["bbox"], person["bbox"], of_first=False)
                if not taken[i] and shared >= best_overlap:
                    best, best_overlap = i, shared
            if best >= 0:
                taken[best] = True
                outcomes.append((row["score"], 1))
            elif not any(overlap(row["bbox"], region["bbox"], of_first=True) >= 0.5 for region in regions):
                outcomes.append((row["score"], 0))
    if not counted:
        return math.nan
    outcomes.sort(key=lambda outcome: -outcome[0])
    logarithms = []
    for reference in 10.0 ** np.arange(-2, 0.01, 0.25):
        hits = misses = recall = 0.0
        for _, hit in outcomes:
            hits, misses = hits + hit, misses + 1 - hit
            if misses / len(images) > reference:
                break
            recall = hits / counted
        logarithms.append(math.log(max(1 - recall, 1e-10)))
    return math.exp(sum(logarithms) / len(logarithms))


def overlap(a: list[float], b: list[float], *, of_first: bool) -> float:
    """IoU of two xywh boxes, or the share of the first that lies on the second."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (a[2] * a[3] if of_first else a[2] * a[3] + b[2] * b[3] - shared)
