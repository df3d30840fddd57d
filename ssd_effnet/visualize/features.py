"""Pictures of a detector's maps, matched anchors and evidence for one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from data_kaist.dataset import collate
from data_kaist.errors import DataError, ImageError
from data_kaist.structures import DetectionTable, Targets
from data_kaist.transforms import Sample
from ssd_effnet.build import build_criterion, build_dataset, build_postprocess
from ssd_effnet.config.yaml_files import nearest
from ssd_effnet.detection.boxes import cxcywh_to_xyxy, iou
from ssd_effnet.detection.losses import DetectionLoss
from ssd_effnet.drawing import KINDS, Marking, as_rgb, draw
from ssd_effnet.inference.predictor import Predictor
from ssd_effnet.inference.sources import Still, find_sources
from ssd_effnet.models.detector import Detector
from ssd_effnet.structures import Level, RawOutputs, ScoreActivation
from ssd_effnet.training.run_directory import RunDirectory
from ssd_effnet.visualize.panels import Panel, save_panels

LISTED = 12
"""Detections, the surest ones, that are listed."""
_IN_A_ROW = 4
_YELLOW = (240, 228, 66)
# Okabe and Ito's, as in the drawing module; a level beyond the last begins anew
_LEVEL_COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), _YELLOW),
    *((213, 94, 0), (204, 121, 167), (0, 114, 178), (255, 255, 255)),
)


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """One map of one image. The part that made it, its level, and ``(1, C, h, w)`` in the graph of the outputs."""

    part: str
    level: Level
    tensor: torch.Tensor

    @property
    def values(self) -> np.ndarray:
        """float32 ``(C, h, w)``."""
        return np.asarray(self.tensor[0].detach().float().cpu().numpy())

    def __str__(self) -> str:
        height, width = self.tensor.shape[-2:]
        v = self.level
        return f"{self.part} {v.name}: {v.channels} channels, {height}x{width}, stride {v.stride}"


@dataclass(frozen=True, eq=False)
class Seen:
    """Maps of a detector for one image. In order of computation, with the head's levels and the outputs' graph."""

    maps: list[FeatureMap]
    levels: list[Level]
    outputs: RawOutputs
    input_size: tuple[int, int]

    def level_of_anchors(self) -> np.ndarray:
        """int64 ``(A,)``: place in :attr:`levels` of the level of each anchor."""
        per_level = self.outputs.anchors_per_level
        return np.repeat(np.arange(len(per_level)), per_level)

    def anchor_of(self, detections: DetectionTable, row: int = 0) -> tuple[int, Level, np.ndarray]:
        """The anchor that a detection came from. Its index, level and float32 ``(4,)`` cxcywh."""
        assert detections.anchor_index is not None  # set by PostProcess
        anchor = int(detections.anchor_index[row])
        place: np.ndarray = self.outputs.anchors_cxcywh[anchor].cpu().numpy()
        return anchor, self.levels[self.level_of_anchors()[anchor]], place


def see(detector: Detector, images: torch.Tensor) -> Seen:
    """Run the detector on one image and keep all maps. In evaluation; ``(1, C, H, W)``, 0..255."""
    size = (images.shape[-2], images.shape[-1])
    with torch.enable_grad():
        # a gradient that starts at the pixels reaches every map, even where all weights are frozen
        handed = detector.features(images.float().requires_grad_())
        outputs = detector.outputs_of(list(handed.values())[-1], size)
    maps: dict[int, FeatureMap] = {}
    for name, tensors in handed.items():
        levels: list[Level] = detector.parts[name].levels  # type: ignore[assignment]
        for level, tensor in zip(levels, tensors, strict=True):
            maps.setdefault(id(tensor), FeatureMap(name, level, tensor))
    return Seen(list(maps.values()), detector.levels, outputs, size)


def score_logit(logits: torch.Tensor, label: int, activation: ScoreActivation) -> torch.Tensor:
    """The logit whose sigmoid is the score. A scalar of one anchor's logits ``(K,)`` for a class from 1.

    With softmax: the log odds of the class against all others, background included.
    """
    if activation == "sigmoid":
        return logits[label - 1]
    if activation == "either":
        return logits[2 * label - 2 : 2 * label].amax()
    others = torch.cat((logits[:label], logits[label + 1 :]))
    return logits[label] - others.logsumexp(0)


def evidence(seen: Seen, detection: DetectionTable, activation: ScoreActivation) -> list[tuple[FeatureMap, np.ndarray]]:
    """Maps on which a detection's score depends, with their contributions. The detection is a table of one row.

    Each comes with ``(h, w)``, not negative: gradient times value at each position, summed over channels (HiResCAM,
    Draelos and Carin 2020). Only what this very anchor used.
    """
    anchor, label = seen.anchor_of(detection)[0], int(detection.labels[0])
    score = score_logit(seen.outputs.cls_logits[0, anchor].float(), label, activation)
    tensors = [m.tensor for m in seen.maps]
    gradients = torch.autograd.grad(score, tensors, retain_graph=True, allow_unused=True)
    return [
        (m, np.maximum((gradient[0].float().cpu().numpy() * m.values).sum(axis=0), 0))
        for m, gradient in zip(seen.maps, gradients, strict=True)
        if gradient is not None and bool(gradient.any())
    ]


@torch.no_grad()
def matched_anchors(seen: Seen, targets: Targets, criterion: DetectionLoss) -> tuple[np.ndarray, np.ndarray]:
    """The loss's assignment of one image's anchors.

    int64 ``(A,)``, the row of the targets that an anchor learns, -1 for none; bool ``(A,)``, ignored.
    """
    matches = criterion.matcher(seen.outputs, targets)
    return matches.object_index[0].cpu().numpy(), matches.ignored[0].cpu().numpy()


def find_sample(predictor: Predictor, image: str, run: RunDirectory | None = None) -> tuple[Sample, bool]:
    """Load the image for the detector; also whether its objects are known.

    It is a file (of a pair the other one lies as in KAIST's layout), or a frame of the experiment's test split, which
    must be the one that the ``run`` was begun with.
    """
    if Path(image).is_file():
        (source,) = find_sources([image], side="lwir" if predictor.modality == "lwir" else "visible")
        if not isinstance(source, Still):
            raise ImageError(f"{image}: is a video; give one image")
        return predictor.prepare(tuple(source.read(side, predictor.reading) for side in predictor.sides), image), False
    dataset = build_dataset(predictor.experiment, "test")
    if run is not None and run.environment_file.is_file():
        run.refuse_other_test_data(dataset.frames)
    places = {frame.name: i for i, frame in enumerate(dataset.frames)}
    if image not in places:
        raise ImageError(
            f"{image}: is neither a file nor a frame of the test split {predictor.experiment.data.test!r}"
            f"{nearest(image, list(places))} (a frame is, for example, {dataset.frames[0].name})"
        )
    return dataset[places[image]], True


def write_features(
    predictor: Predictor, sample: Sample, out: Path, *, truth: bool, detection: int = 1
) -> tuple[list[Path], Table]:
    """Draw a detector's maps, anchors and evidence for one image.

    Writes ``levels.png`` and, where there is something to show, ``anchors.png`` and ``detection.png``; returns them
    with a table of the surest detections. ``sample`` and ``truth`` are as :func:`find_sample` gives them; ``detection``
    is the rank by score of the one whose evidence is drawn, from 1. A DataError says that there are not so many.
    """
    if out.is_file():
        raise DataError(f"{out}: is a file, and pictures are written into a folder")
    e = predictor.experiment
    batch = collate([sample]).to(predictor.device)
    seen = see(predictor.detector, batch.images)
    postprocess = build_postprocess(e)
    sizes = batch.content_sizes
    detections = postprocess(seen.outputs, seen.input_size, sizes, sizes).table([0], predictor.classes)
    if not 1 <= detection <= max(len(detections), 1):
        raise DataError(f"{sample.name}: has {len(detections)} detections, counted from 1; there is no {detection}")
    known = (("ignored", sample.ignore), ("truth", ~sample.ignore)) if truth else ()
    markings = [Marking(kind, sample.boxes_xyxy[which]) for kind, which in known]
    for name in ("levels", "anchors", "detection"):  # of another image
        (out / f"{name}.png").unlink(missing_ok=True)
    pictures = [out / "levels.png"]
    _levels_picture(pictures[0], seen, sample)
    if truth and (~sample.ignore).any():
        pictures.append(out / "anchors.png")
        _anchors_picture(pictures[-1], seen, batch.targets, build_criterion(e), sample)
    table = Table(title=f"{sample.name}: {len(detections)} detections", caption="pixels of the network's input")
    for name in ("--detection", "class", "score", "level", "anchor", "box x1, y1, x2, y2"):
        table.add_column(name)
    if len(detections):
        pictures.append(out / "detection.png")
        chosen = detections.rows(np.array([detection - 1]))
        used = evidence(seen, chosen, postprocess.activation)
        _detection_picture(pictures[-1], seen, chosen, used, sample, markings)
        for i in sorted({*range(min(LISTED, len(detections))), detection - 1}):
            _, level, (*_, w, h) = seen.anchor_of(detections, i)
            box = ", ".join(f"{side:.0f}" for side in detections.boxes_xyxy[i])
            score = f"{detections.scores[i]:.3f}"
            table.add_row(str(i + 1), detections.class_names[i], score, level.name, f"{w:.0f}x{h:.0f}", box)
    return pictures, table


def _background(sample: Sample) -> np.ndarray:
    picture = sample.lwir if sample.visible is None else sample.visible
    assert picture is not None
    return as_rgb(picture)


def _levels_picture(path: Path, seen: Seen, sample: Sample) -> None:
    """Mean energy of each map: rows are levels, columns parts; maps that a part hands on are not drawn again."""
    parts = list(dict.fromkeys(m.part for m in seen.maps))
    rows: list[list[Panel | None]] = []
    for name in dict.fromkeys(m.level.name for m in seen.maps):
        row: list[Panel | None] = [None] * len(parts)
        for m in seen.maps:
            if m.level.name == name:
                row[parts.index(m.part)] = _heat(m, "mean |value|", np.abs(m.values).mean(axis=0), sample)
        rows.append(row)
    words = (
        "Energy: the mean over channels of the absolute value, enlarged over the image, each position one rectangle. "
        "Each map has its own scale from dark to bright, stated above it. Rows are levels, columns the parts in the "
        "order of the image; a part that hands a level on as it is has no map there."
    )
    save_panels(path, rows, [words])


def _heat(m: FeatureMap, what: str, values: np.ndarray, sample: Sample, boxes: Sequence[Any] = ()) -> Panel:
    lines = [str(m), f"{what} {float(values.min()):.3g} .. {float(values.max()):.3g}"]
    return Panel(lines, _background(sample), values, boxes)


def _anchors_picture(path: Path, seen: Seen, targets: Targets, criterion: DetectionLoss, sample: Sample) -> None:
    """Each object with its positive anchors in the colours of their levels."""
    objects, ignored = matched_anchors(seen, targets, criterion)
    boxes, anchors = targets.boxes_xyxy[0], cxcywh_to_xyxy(seen.outputs.anchors_cxcywh)
    best, level = iou(boxes, anchors).amax(dim=1), seen.level_of_anchors()
    cells: list[Panel] = []
    for number, row in enumerate(targets.is_object[0].nonzero()[:, 0].tolist(), start=1):
        own, box = np.flatnonzero(objects == row), boxes[row].cpu().numpy()
        places = anchors[own].cpu().numpy()
        here = ", ".join(f"{seen.levels[k].name} {n}" for k, n in enumerate(np.bincount(level[own])) if n)
        around = np.concatenate((box[None], places))
        corner = around[:, :2].min(axis=0) - 4
        view = np.concatenate((corner, corner + (around[:, 2:].max(axis=0) - corner).max() + 4))
        colours = [
            (place, _LEVEL_COLOURS[level[a] % len(_LEVEL_COLOURS)]) for a, place in zip(own, places, strict=True)
        ]
        lines = [
            f"object {number}, {box[2] - box[0]:.0f}x{box[3] - box[1]:.0f} pixels",
            f"best IoU {best[row]:.2f}; {here or 'no anchor'}",
        ]
        cells.append(Panel(lines, _background(sample), boxes=[(box, KINDS["truth"].colour), *colours[::-1]], view=view))
    words = (
        f"{int((objects >= 0).sum())} of {len(objects):,} anchors have an object, by the loss's own matcher; "
        f"{int(ignored.sum())} are ignored. A level's anchors have one colour."
    )
    rows = [cells[i : i + _IN_A_ROW] for i in range(0, len(cells), _IN_A_ROW)]
    save_panels(path, rows, [words], ["truth"])


def _detection_picture(
    path: Path,
    seen: Seen,
    chosen: DetectionTable,
    used: list[tuple[FeatureMap, np.ndarray]],
    sample: Sample,
    known: list[Marking],
) -> None:
    """The detection with its anchor, then its evidence in each map."""
    _, level, (cx, cy, w, h) = seen.anchor_of(chosen)
    boxes = [(chosen.boxes_xyxy[0], KINDS["detection"].colour)]
    anchor = (np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]), _YELLOW)
    lines = [
        f"score {chosen.scores[0]:.3f}, from the level {level.name} (stride {level.stride})",
        f"anchor of {w:.0f}x{h:.0f} pixels, width x height: yellow",
    ]
    cells = [Panel(lines, draw(_background(sample), known), boxes=[*boxes, anchor])]
    cells += [_heat(m, "gradient x value", at_place, sample, boxes) for m, at_place in used]
    words = (
        "Gradient x value at each position (HiResCAM), of every map on which the score depends: what this very anchor "
        "used. Only what speaks for the class is shown; each map has its own scale."
    )
    rows = [cells[i : i + _IN_A_ROW] for i in range(0, len(cells), _IN_A_ROW)]
    save_panels(path, rows, [words], ["detection"])
