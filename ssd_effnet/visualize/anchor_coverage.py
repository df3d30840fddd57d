"""How well an experiment's anchors cover a data set's objects. Anchors can also be fitted to these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data_kaist.annotations import training_ignore
from data_kaist.files import write_whole
from data_kaist.layouts import Frame, spread
from data_kaist.structures import Annotations, DetectionTable, Targets
from data_kaist.transforms import Sample
from ssd_effnet import build
from ssd_effnet.config.keys import unlike
from ssd_effnet.config.loading import as_difference, load_experiment
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.detection.boxes import cxcywh_to_xyxy, encode, iou, xyxy_to_cxcywh
from ssd_effnet.evaluation.average_precision import AveragePrecision
from ssd_effnet.models.detector import Detector
from ssd_effnet.structures import RawOutputs

COVERED = 0.5
"""IoU with its best anchor from which an object counts as covered: the matching threshold of SSD."""
_HEIGHTS = (0, 12, 45, 55, 80, 115, 160)  # pixels; 12: ignored in training; 45, 55, 115: KAIST's subsets
_BOUND_FRAMES = 1000  # of the AP figures, which match and suppress frame by frame
_FIT_OBJECTS = 5000
_FIT_ROUNDS = 30  # it settles within ten


@dataclass(frozen=True, eq=False)
class Coverage:
    """Objects as an experiment's training sees them, with their best anchors.

    Attributes:
        boxes_cxcywh: float32 ``(n, 4)``, pixels of the network's input; no ignore regions.
        best_iou: float32 ``(n,)``, with the best of all anchors.
        level: int64 ``(n,)``, of the best anchor.
        height: float32 ``(n,)``, pixels of the original image.
        daytime: str ``(n,)``: ``day``, ``night`` or empty.
        level_names: of the head's levels, with strides.
        steps: float32 ``(levels, 2)``, pixels of the input from one anchor centre to the next, in x and y.
        bounds: COCO figures in percent with the IoU as score, by what stands in the way.
    """

    boxes_cxcywh: torch.Tensor
    best_iou: np.ndarray
    level: np.ndarray
    height: np.ndarray
    daytime: np.ndarray
    level_names: list[str]
    steps: torch.Tensor
    bounds: dict[str, dict[str, float]]

    def rows(self) -> list[tuple[str, ...]]:
        """Group, objects, mean best IoU, percent covered: all, day and night, by height, by level."""
        bins, ends = np.digitize(self.height, _HEIGHTS) - 1, (*map("to {}".format, _HEIGHTS[1:]), "and more")
        groups = {
            "all": np.full(len(self.level), True),
            **{time: self.daytime == time for time in ("day", "night")},
            **{f"height {low} {to}": bins == i for i, (low, to) in enumerate(zip(_HEIGHTS, ends, strict=True))},
            **{name: self.level == i for i, name in enumerate(self.level_names)},
        }
        return [(name, f"{of.sum():,}", *cover(self.best_iou[of])) for name, of in groups.items() if of.any()]


def cover(best_iou: np.ndarray | torch.Tensor) -> tuple[str, str]:
    """Mean IoU and percent covered, as text."""
    best = np.asarray(best_iou)
    return f"{best.mean():.3f}", f"{100 * (best >= COVERED).mean():.1f}"


def anchor_coverage(e: ExperimentConfig, frames: Sequence[Frame]) -> Coverage | None:
    """Best anchors of all objects, and what AP they leave. None without objects. Images are not read.

    The AP comes from made-up outputs through the experiment's matching, box code and NMS, of up to 1,000 frames:
    every positive anchor has the right class, its IoU as score, and exact offsets or none.
    """
    blank, detector = _blank_outputs(e)
    size, classes, resize = build.as_size(e.input.size), build.build_classes(e), build.build_transforms(e, "test")
    corners = cxcywh_to_xyxy(blank.anchors_cxcywh)
    level_of = np.repeat(np.arange(len(blank.anchors_per_level)), blank.anchors_per_level)
    matcher, postprocess = build.build_criterion(e).matcher, build.build_postprocess(e)
    peopled = [f for f in frames if not training_ignore(f.annotations, e.data.min_height, classes).all()]
    bounded = set(spread(peopled, _BOUND_FRAMES)) if peopled else set()
    columns: list[tuple[np.ndarray, ...]] = []
    truths: list[Annotations] = []
    found: dict[str, list[DetectionTable]] = {"exact offsets": [], "no offsets": []}
    for number, frame in enumerate(peopled):
        a = frame.annotations
        ignore, row = training_ignore(a, e.data.min_height, classes), np.arange(len(a))
        sample = resize(Sample(None, None, a.boxes_xyxy, row, ignore, a.size), np.random.default_rng(0))
        row, boxes, real = sample.labels, torch.from_numpy(sample.boxes_xyxy), ~sample.ignore
        overlap, anchor = (of.numpy() for of in iou(boxes[real], corners).max(1))
        times = np.full(len(overlap), a.daytime or "")
        columns.append((boxes[real].numpy(), overlap, level_of[anchor], a.height[row[real]], times))
        if number not in bounded:
            continue
        labels = np.maximum(classes.indices(a.labels[row]), 1)
        given = (torch.from_numpy(of)[None] for of in (sample.boxes_xyxy, labels, sample.ignore))
        assigned = matcher(blank, Targets(*given))
        column = assigned.classes - int(postprocess.activation != "softmax")
        column = (column * (2 if postprocess.activation == "either" else 1)).clamp(min=0)[..., None]
        score = assigned.quality.logit(eps=1e-6)[..., None]  # of two anchors the better one survives
        outputs = replace(blank, cls_logits=blank.cls_logits.scatter(2, column, score))
        exact = encode(xyxy_to_cxcywh(assigned.boxes_xyxy), blank.anchors_cxcywh, postprocess.variances)
        for name, offsets in zip(found, (exact, blank.bbox_regression), strict=True):
            shown = torch.tensor([sample.content_size])
            detections = postprocess(replace(outputs, bbox_regression=offsets), size, shown, shown)
            found[name].append(detections.table([len(truths)], classes.names))
        named = [classes.names[label - 1] for label in labels]
        truths.append(Annotations.from_rows(sample.boxes_xyxy, named, ignore=sample.ignore.tolist(), size=size))
    if not columns:
        return None
    boxes_xyxy, best_iou, level, height, daytime = (np.concatenate(of) for of in zip(*columns, strict=True))
    bounds = {
        name: AveragePrecision(truths, DetectionTable.joined(tables), classes.names).figures()
        for name, tables in found.items()
    }
    names = [f"{level.name}, stride {level.stride}" for level in detector.levels]
    centres = [of[:, :2] for of in blank.anchors_cxcywh.split(blank.anchors_per_level)]
    steps = torch.tensor([[size[1 - axis] / len(of[:, axis].unique()) for axis in (0, 1)] for of in centres])
    boxes_cxcywh = xyxy_to_cxcywh(torch.from_numpy(boxes_xyxy))
    return Coverage(boxes_cxcywh, best_iou, level, height, daytime, names, steps, bounds)


def _blank_outputs(e: ExperimentConfig) -> tuple[RawOutputs, Detector]:
    """Outputs of one image without any object, and the detector without memory."""
    detector, size = build.build_skeleton(e), build.as_size(e.input.size)
    with torch.no_grad():
        images = torch.empty(1, detector.normalize.mean.numel(), *size, device="meta")
        maps = list(detector.features(images).values())[-1]
        outputs = detector.outputs_of(maps, size)
    anchors = detector.anchors([(x.shape[-2], x.shape[-1]) for x in maps], size, torch.zeros(()))
    logits = torch.full(outputs.cls_logits.shape, -20.0)  # a score of 0
    logits[..., : int(build.build_postprocess(e).activation == "softmax")] = 0  # background, where it is a class
    offsets = torch.zeros(outputs.bbox_regression.shape)
    return replace(outputs, cls_logits=logits, bbox_regression=offsets, anchors_cxcywh=anchors), detector


@dataclass(frozen=True, eq=False)
class Fit:
    """Anchors fitted to objects, for some of the levels.

    Attributes:
        sizes: one per level from the finest, pixels of the experiment's reference size.
        ratios: width / height.
        best_iou: float32 ``(n,)``, of each object with its best anchor.
    """

    sizes: torch.Tensor
    ratios: torch.Tensor
    best_iou: torch.Tensor


def fit_anchors(e: ExperimentConfig, coverage: Coverage) -> list[Fit]:
    """Sizes and ratios by k-means in IoU. Redmon and Farhadi 2017, section 2; for the finest level, two, ... all.

    An anchor's IoU is that at the centre of its level nearest to the object: a coarse level, whose centres miss small
    objects, is not given them. The number of ratios, the scales and the reference size are the experiment's. At most
    5,000 of the objects take part.
    """
    (height, width), input_size = build.as_size(e.anchors.reference_size or e.input.size), build.as_size(e.input.size)
    stretch = torch.tensor((input_size[1] / width, input_size[0] / height))
    some = torch.linspace(0, len(coverage.level) - 1, min(len(coverage.level), _FIT_OBJECTS)).round().long()
    boxes, steps, scales = coverage.boxes_cxcywh[some], coverage.steps / stretch, torch.tensor(e.anchors.scales)
    centre, wh = (boxes[:, :2] / stretch)[:, None], boxes[:, 2:] / stretch
    off = (((centre / steps) % 1 - 0.5).abs() * steps)[:, :, None, None]  # (n, level, 1, 1, 2) from the nearest centre
    side, ratio = wh.prod(1).sqrt(), wh[:, 0] / wh[:, 1]
    count = len(e.anchors.ratios)
    sizes, ratios = side.median()[None], ratio.quantile((torch.arange(count) + 0.5) / count)
    fits = []
    for levels in range(1, len(steps) + 1):
        best = Fit(sizes, ratios, torch.zeros(()))
        for _ in range(_FIT_ROUNDS):
            overlap, place = _best_anchors(wh, off[:, :levels], sizes[:, None, None] * scales, ratios)
            if overlap.mean() > best.best_iou.mean():
                best = Fit(sizes, ratios, overlap)
            level, of_ratio, of_scale = torch.unravel_index(place, (levels, count, len(scales)))
            sizes = _geometric_means(side / scales[of_scale], level, sizes)
            ratios = _geometric_means(ratio, of_ratio, ratios)
        fits.append(best)
        sizes, ratios = torch.cat((best.sizes, best.sizes[-1:] * 1.5)), best.ratios  # no worse than without the level
    return fits


def _best_anchors(
    wh: torch.Tensor, off: torch.Tensor, sizes: torch.Tensor, ratios: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and index of each object's best anchor, ``(n,)`` both. The index is flat over (level, ratio, scale)."""
    root = ratios.sqrt()[:, None]
    anchors, objects = torch.stack((sizes * root, sizes / root), dim=-1), wh[:, None, None, None]
    shared = torch.minimum(torch.minimum((objects + anchors) / 2 - off, objects), anchors).clamp(min=0).prod(-1)
    return (shared / (objects.prod(-1) + anchors.prod(-1) - shared)).flatten(1).max(1)


def _geometric_means(values: torch.Tensor, cluster: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Geometric mean of each cluster. An empty one keeps its value of ``before``."""
    means = torch.zeros_like(before).scatter_reduce_(0, cluster, values.log(), "mean", include_self=False).exp()
    return torch.where(torch.bincount(cluster, minlength=len(before)) > 0, means, before)


def write_fitted(path: Path, base: str, e: ExperimentConfig, fit: Fit) -> None:
    """Write an experiment that changes the anchors of ``e``, which is ``base`` but for keys that it states again."""
    fitted = {"anchors.ratios": sorted(fit.ratios.tolist()), "anchors.sizes": fit.sizes.tolist()}
    given = {key: own for key, (_, own) in unlike(load_experiment(base), e).items()}
    values = given | {key: [float(f"{value:.3g}") for value in of] for key, of in fitted.items()}
    description = (
        f"What do anchors fitted to these objects give? Sizes and ratios of {e.name} by k-means in IoU. "
        f"Changes together: {', '.join(sorted(values))}: shapes, and what they were fitted for."
    )
    write_whole(path, as_difference(base, description, sorted(values), values))
