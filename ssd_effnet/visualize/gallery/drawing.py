"""Draws a run's frames and detections, whole or as thumbnails."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from data_kaist.classes import PEOPLE, Classes, is_among
from data_kaist.dataset import fingerprint, read_pair
from data_kaist.errors import DataError, Doubt, Failure
from data_kaist.layouts import Frame, Modality, coco_files, image_ids
from data_kaist.structures import DetectionTable
from ssd_effnet.build import build_annotations, build_classes
from ssd_effnet.drawing import Marking, as_rgb, beside, draw
from ssd_effnet.evaluation.error_analysis import Errors, Kind
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator, Outcome
from ssd_effnet.evaluation.scores import GroundTruth, load_ground_truth, short_names
from ssd_effnet.training.run_directory import RunDirectory

GAP = 4  # pixels between the images of a pair
_CONTEXT = 2.2  # a thumbnail shows so many times the object's longer side
_LEAST = 72.0  # pixels of the picture that a thumbnail shows at least

_ALARMS = {Kind.BACKGROUND: "background", Kind.MISPLACED: "badly placed", Kind.DUPLICATE: "duplicate"}


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run with its test frames.

    Attributes:
        name: experiment and seed.
        modality: of the detector and the pictures.
        frames: of the test split.
        detections: on them, of the class.
        classes: that the detector tells apart.
        of_class: the one that is looked at.
        annotations: what they are scored against.
    """

    name: str
    modality: Modality
    frames: Sequence[Frame]
    detections: DetectionTable
    classes: Classes
    of_class: str
    annotations: str = ""

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = (), of_class: str | None = None) -> FinishedRun:
        """Load a finished run from its directory or tested checkpoint.

        Args:
            path: of it.
            overrides: where its data are, as :meth:`ssd_effnet.training.run_directory.RunDirectory.at_hand` takes them.
            of_class: name of the class to look at; None: the main one.

        Raises:
            DataError, ConfigError: one sentence, where the run is not finished or its data are not there.
        """
        directory = RunDirectory.holding(path)
        if not directory.detections_file.is_file():
            raise DataError(
                f"{directory}: holds no detections.json; the run is not finished (ssd-effnet train --resume)"
            )
        if path.is_file() and path.name != (tested := directory.results()["checkpoint"]):
            raise DataError(f"{path}: the detections of {directory} are those of {tested}, not of this checkpoint")
        experiment, frames, table = directory.tested(overrides)
        if edited := directory.edited(experiment):
            doubt = f"{directory.config_file} was edited after the training, and is not believed: {edited}"
            warnings.warn(doubt, Doubt, stacklevel=2)
        classes = build_classes(experiment)
        if of_class is not None and of_class not in classes.names:
            raise DataError(f"{directory}: has no class {of_class!r}; there are {', '.join(classes.names)}")
        of_class = of_class or classes.main
        name = f"{experiment.name} seed {experiment.trainer.seed}"
        name += f", {of_class}" if len(classes.names) > 1 else ""
        found = table.of_class(classes.index(of_class))
        against = build_annotations(experiment, "test")
        return cls(name, experiment.input.modality, frames, found, classes, of_class, against)

    @classmethod
    def load_runs(
        cls, paths: Sequence[Path], overrides: Sequence[str], of_class: str | None = None, *, leave_out: bool = False
    ) -> dict[Path, FinishedRun]:
        """Runs that were tested on the same frames and boxes; ``leave_out`` those that cannot be read, with a doubt."""
        runs: dict[Path, FinishedRun] = {}
        for path in paths:
            try:
                runs[path] = cls.load(path, overrides, of_class)
            except Failure as error:
                if not leave_out or (path == paths[-1] and not runs):
                    raise
                warnings.warn(f"left out: {error}", Doubt, stacklevel=3)
        first = next(iter(runs))
        for path, run in runs.items():
            if run.fingerprint != runs[first].fingerprint:
                raise DataError(f"{first} and {path} were not tested on the same frames and boxes")
        return runs

    @classmethod
    def load_all(
        cls,
        paths: Sequence[Path],
        overrides: Sequence[str] = (),
        of_class: str | None = None,
        annotations: Path | None = None,
        split: str = "test-all-20",
    ) -> list[FinishedRun]:
        """Runs and result files of others, on the same frames.

        Args:
            paths: run directories, tested checkpoints, COCO results, KAIST texts and devkit folders.
            overrides, of_class: as of :meth:`load`.
            annotations: COCO file or root that all are scored against, whose images are below ``data.root``; None: the
                test split of the first run.
            split: frames of a root.

        Raises:
            DataError, ConfigError: one sentence, where one cannot be read, or they are not of the same frames.
        """
        files = [path for path in paths if _holds_results(path)]
        names = dict(zip(files, short_names(files), strict=True))
        if annotations is not None:
            found = [path if path in files else RunDirectory.holding(path).detections_file for path in paths]
            truth, tables = load_ground_truth(annotations, split).read_all(found)
            _say_doubts(truth, dict(zip(paths, tables, strict=True)), MissRateEvaluator(truth.annotations))
            frames = _with_images(truth, _root(paths, files, overrides, annotations))
            words = [names.get(path) or "/".join(RunDirectory.holding(path).path.parts[-2:]) for path in paths]
            modality: Modality = "halfway" if all(frame.lwir for frame in frames) else "visible"
            return [
                cls(name, modality, frames, table, PEOPLE, PEOPLE.main, truth.source)
                for name, table in zip(words, tables, strict=True)
            ]
        if len(files) == len(paths):
            raise DataError(f"{files[0]}: is no run, so say with --annotations what it is scored against")
        runs = cls.load_runs([path for path in paths if path not in files], overrides, of_class)
        first = next(iter(runs.values()))
        truth = first.ground_truth()
        others = {path: truth.read_detections(path) for path in files}
        _say_doubts(truth, others, first.truth)
        return [
            runs[path] if path in runs else replace(first, name=names[path], detections=others[path]) for path in paths
        ]

    @cached_property
    def truth(self) -> MissRateEvaluator:
        return MissRateEvaluator.for_class([f.annotations for f in self.frames], self.classes, self.of_class)

    def ground_truth(self) -> GroundTruth:
        """Its test split, for detections of others."""
        frames = list(self.frames)
        return GroundTruth([f.annotations for f in frames], [f.name for f in frames], image_ids(frames))

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the frames' names and annotations."""
        return fingerprint(self.frames)

    def images(self, place: int) -> list[np.ndarray]:
        """Images of a frame that the detector uses, visible first, as RGB.

        Raises:
            ImageError: one of them cannot be read.
        """
        pair = read_pair(self.frames[place], self.modality)
        return [as_rgb(image) for image in pair if image is not None]


def _holds_results(path: Path) -> bool:
    """Whether it is a file or folder of detections, no run and no checkpoint."""
    return any(path.glob("set*_V*_I*.txt")) if path.is_dir() else path.is_file() and path.suffix != ".ckpt"


def _say_doubts(truth: GroundTruth, tables: Mapping[Path, DetectionTable], evaluator: MissRateEvaluator) -> None:
    for path, table in tables.items():
        if doubt := truth.doubt(path, table, evaluator):
            warnings.warn(f"{path}: {doubt}", Doubt, stacklevel=3)


def _root(paths: Sequence[Path], files: Sequence[Path], overrides: Sequence[str], annotations: Path) -> Path:
    """Where the images are: as said, else where the annotations or the first run's data are."""
    for key, _, value in (override.partition("=") for override in overrides):
        if key.strip() == "data.root":
            return Path(value.strip())
    if annotations.is_dir():
        return annotations
    for directory in (RunDirectory.holding(path) for path in paths if path not in files):
        return Path(directory.at_hand(directory.trained()).data.root)
    raise DataError(f"{annotations}: does not state where its images are; give data.root=...")


def _with_images(truth: GroundTruth, root: Path) -> list[Frame]:
    """The frames of a ground truth; a :class:`~data_kaist.errors.Doubt` counts those whose images are not there."""
    pairs = [coco_files(root, name) for name in truth.names]
    if lacking := [visible for visible, _ in pairs if not visible.is_file()]:
        said = f"{len(lacking):,} of {len(pairs):,} images are not there and cannot be drawn"
        warnings.warn(f"{root}: {said}, {lacking[0]} first", Doubt, stacklevel=3)
    has_lwir = any(lwir and lwir.is_file() for _, lwir in pairs)
    return [
        Frame(name, visible, lwir if has_lwir else None, of, place=place)
        for place, (name, (visible, lwir), of) in enumerate(zip(truth.names, pairs, truth.annotations, strict=True))
    ]


def markings(errors: Errors, place: int, words: Mapping[int, str] | None = None) -> list[Marking]:
    """All boxes of a frame with their kind at the operating point.

    Args:
        errors: of the run.
        place: of the frame.
        words: texts for some boxes of the ground truth, by their place among all boxes.
    """
    words, truth = words or {}, errors.truth
    here = np.arange(truth.box_start[place], truth.box_start[place + 1])
    counted, found = errors.counted[here], errors.found[here]
    rows = np.flatnonzero((errors.detections.image_index == place) & errors.shown)
    outcome = errors.matches.outcome[rows]
    scores = dict(zip(rows.tolist(), errors.detections.rows(rows).texts(), strict=True))
    for kind, word in _ALARMS.items():
        scores |= {int(row): f"{scores[int(row)]} {word}" for row in rows[errors.kinds[kind][rows]]}

    def people(kind: str, which: np.ndarray, word: str = "") -> Marking:
        return Marking(kind, truth.boxes_xyxy[here[which]], [words.get(int(g), word) for g in here[which]])

    def detections(kind: str, which: Outcome) -> Marking:
        chosen = rows[outcome == which]
        return Marking(kind, errors.detections.boxes_xyxy[chosen], [scores[int(row)] for row in chosen])

    return [
        people("ignored", ~counted),
        detections("dropped", Outcome.DROPPED),
        people("truth", counted & found),
        detections("hit", Outcome.TRUE_POSITIVE),
        people("missed", counted & ~found, "missed"),
        detections("false_alarm", Outcome.FALSE_POSITIVE),
    ]


def labels(run: FinishedRun) -> dict[int, str]:
    """Labels of boxes that are not of the run's class, by place among all boxes."""
    every = np.concatenate([np.zeros(0, object), *(frame.annotations.labels for frame in run.frames)])
    others = ~is_among(every, run.classes.counted(run.of_class))
    return {int(g): str(every[g]) for g in np.flatnonzero(others)}


def window(boxes_xyxy: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The square around boxes ``(n, 4)`` that a thumbnail shows, as far as a picture of ``(height, width)`` has it.

    Returns:
        x1, y1, x2, y2 in pixels; moved inwards at the picture's edges.
    """
    x1, y1 = boxes_xyxy[:, :2].min(axis=0)
    x2, y2 = boxes_xyxy[:, 2:].max(axis=0)
    side = max(_CONTEXT * max(x2 - x1, y2 - y1), _LEAST)
    edges = []
    for centre, length in (((x1 + x2) / 2, size[1]), ((y1 + y2) / 2, size[0])):
        extent = min(round(side), length)
        start = min(max(round(centre - extent / 2), 0), length - extent)
        edges.append((start, start + extent))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def cropped(
    images: Sequence[np.ndarray], marked: Sequence[Marking], shown: tuple[int, int, int, int], side: int
) -> np.ndarray:
    """A part of each image with its boxes, beside each other, the longer side of each ``side`` pixels."""
    left, top, right, bottom = shown
    offset = np.array([left, top, left, top], float)
    inside = []
    for marking in marked:
        boxes = np.asarray(marking.boxes_xyxy, float).reshape(-1, 4)
        kept = (boxes[:, 0] < right) & (boxes[:, 2] > left) & (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
        texts = [text for text, keep in zip(marking.texts, kept, strict=False) if keep]
        inside.append(Marking(marking.kind, boxes[kept] - offset, texts))
    zoom = side / max(right - left, bottom - top)
    return beside([draw(image[top:bottom, left:right], inside, zoom=zoom) for image in images], GAP)


def whole(images: Sequence[np.ndarray], marked: Sequence[Marking], zoom: float) -> np.ndarray:
    """Each image with its boxes, beside each other, ``zoom`` times as large."""
    return beside([draw(image, marked, zoom=zoom) for image in images], GAP)


def rings(
    box_xyxy: np.ndarray, size: tuple[int, int], images: int, zoom: float
) -> list[tuple[float, float, float, float]]:
    """Where a box is on a picture made by :func:`whole` of so many images: left, top, width, height in 0..1."""
    height, width = (max(round(length * zoom), 1) for length in size)
    total = images * width + (images - 1) * GAP
    x1, y1, x2, y2 = (float(v) * zoom for v in box_xyxy)
    parts = []
    for left in (i * (width + GAP) for i in range(images)):
        across, down = (left + x1) / total, y1 / height
        parts.append((round(across, 4), round(down, 4), round((x2 - x1) / total, 4), round((y2 - y1) / height, 4)))
    return parts
