"""A finished run or another detector's results, with its test frames."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from data_kaist.classes import PEOPLE, Classes
from data_kaist.dataset import fingerprint, read_pair
from data_kaist.errors import DataError, Doubt, Failure
from data_kaist.layouts import IMAGE_SUFFIXES, Frame, Modality, category_ids, coco_files, image_ids
from data_kaist.structures import DetectionTable
from ssd_effnet.build import build_annotations, build_classes
from ssd_effnet.drawing import as_rgb
from ssd_effnet.evaluation.ground_truth import GroundTruth, load_ground_truth
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator
from ssd_effnet.evaluation.scores import short_names
from ssd_effnet.training.run_directory import RunDirectory


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished run with its test frames.

    ``modality`` is the pictures', ``sees`` the detector's (empty for a file); ``detections`` are of the class
    ``of_class``, one of ``classes``; ``annotations`` says what they are scored against.
    """

    name: str
    modality: Modality
    frames: Sequence[Frame]
    detections: DetectionTable
    classes: Classes
    of_class: str
    annotations: str = ""
    sees: str = ""

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = (), of_class: str | None = None) -> FinishedRun:
        """Load a finished run from its directory or tested checkpoint.

        ``overrides`` say where its data are; ``of_class`` names the class to look at (None: the main one).
        """
        directory = RunDirectory.holding(path)
        if not directory.detections_file.is_file():
            unfinished = "holds no detections.json; the run is not finished (ssd-effnet train --resume)"
            raise DataError(f"{path}: {unfinished if path.exists() else 'there is no such run or file'}")
        _refuse_another_checkpoint(path, directory)
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
        against, modality = build_annotations(experiment, "test"), experiment.input.modality
        return cls(name, modality, frames, found, classes, of_class, against, modality)

    @classmethod
    def load_all(
        cls,
        paths: Sequence[Path],
        overrides: Sequence[str] = (),
        of_class: str | None = None,
        annotations: Path | None = None,
        split: str | None = None,
        *,
        leave_out: bool = False,
    ) -> dict[Path, FinishedRun]:
        """Runs and other detectors' result files, on the same frames.

        Args:
            paths: run directories, tested checkpoints, COCO results, KAIST texts and devkit folders.
            overrides, of_class: as of :meth:`load`.
            annotations: COCO file or root that all are scored against, whose images are below ``data.root``; None: the
                test split of the first run.
            split: frames of a root; None: test-all-20.
            leave_out: runs that cannot be read, with a doubt, where others can.
        """
        files = [path for path in paths if _holds_results(path)]
        directories = {path: RunDirectory.holding(path) for path in paths if path not in files}
        places = [directories[path].path if path in directories else path for path in paths]
        names = dict(zip(paths, short_names(places), strict=True))
        if annotations is not None:
            if of_class not in (None, PEOPLE.main):
                raise DataError(f"{annotations}: other annotations score {PEOPLE.main}, not {of_class}")
            for path, directory in directories.items():
                _refuse_another_checkpoint(path, directory)
            found = [directories[path].detections_file if path in directories else path for path in paths]
            truth, tables = load_ground_truth(annotations, split).read_all(found)
            of = dict(zip(paths, tables, strict=True))
            truth.say_doubts(of, MissRateEvaluator(truth.annotations))
            frames = _with_images(truth, _root([*directories.values()], overrides, annotations))
            modality: Modality = "halfway" if all(frame.lwir for frame in frames) else "visible"
            trained = {path: of_run.trained() for path, of_run in directories.items() if of_run.config_file.is_file()}
            sees = {path: experiment.input.modality for path, experiment in trained.items()}
            shared = (PEOPLE, PEOPLE.main, truth.source)
            return {path: cls(names[path], modality, frames, of[path], *shared, sees.get(path, "")) for path in paths}
        if split is not None:
            raise DataError(f"split {split}: takes frames of a root, so say with --annotations of which")
        if len(files) == len(paths):
            raise DataError(f"{files[0]}: is no run, so say with --annotations what it is scored against")
        runs: dict[Path, FinishedRun] = {}
        for path in directories:
            try:
                runs[path] = cls.load(path, overrides, of_class)
            except Failure as error:
                if not leave_out or (path == [*directories][-1] and not runs):
                    raise
                warnings.warn(f"left out: {error}", Doubt, stacklevel=2)
        times = Counter(run.name for run in runs.values())
        runs = {k: replace(v, name=f"{v.name}, {names[k]}") if times[v.name] > 1 else v for k, v in runs.items()}
        one, first = next(iter(runs.items()))
        for path, run in runs.items():
            if run.scored_on != first.scored_on:
                raise DataError(f"{one} and {path} were not tested on the same frames, boxes and labels")
        place = first.classes.index(first.of_class) - 1
        truth = GroundTruth(
            [f.annotations for f in first.frames],
            [f.name for f in first.frames],
            image_ids(first.frames),
            frozenset({category_ids(first.frames, first.classes)[place]}) if first.frames[0].category_ids else None,
            first.annotations,
            category=first.classes.published[place],
        )
        of_all, tables = truth.read_all(files) if files else (truth, [])
        if of_all is not truth or (files and first.frames[-1].place != len(first.frames) - 1):
            raise DataError(
                f"{one} and {', '.join(map(str, files))} are not of the same images, since some were left out; "
                "give --annotations, which scores all on those that they share"
            )
        others = dict(zip(files, tables, strict=True))
        truth.say_doubts(others, first.truth)
        runs |= {path: replace(first, name=names[path], detections=table, sees="") for path, table in others.items()}
        return {path: runs[path] for path in paths if path in runs}

    @cached_property
    def scored_on(self) -> tuple[object, ...]:
        """Equal for runs that can be compared: frames, boxes, and labels of the class and of others."""
        return fingerprint(self.frames), self.classes.counted(self.of_class), self.classes.absent(self.of_class)

    @cached_property
    def truth(self) -> MissRateEvaluator:
        return MissRateEvaluator.for_class([f.annotations for f in self.frames], self.classes, self.of_class)

    def images(self, place: int, *, whole_pair: bool = False) -> list[np.ndarray]:
        """Images of a frame as RGB, visible first. Those that the detector uses, or all that there are."""
        frame, modality = self.frames[place], self.modality
        if whole_pair:
            if frame.visible is not None and frame.lwir is None:
                partner = Path(*("lwir" if part == "visible" else part for part in frame.visible.parts))
                frame = replace(frame, lwir=partner if partner != frame.visible and partner.is_file() else None)
            modality = "halfway" if frame.visible and frame.lwir else "visible" if frame.visible else "lwir"
        return [as_rgb(image) for image in read_pair(frame, modality) if image is not None]


def _refuse_another_checkpoint(path: Path, directory: RunDirectory) -> None:
    if path.is_file() and path.name != (tested := directory.results()["checkpoint"]):
        raise DataError(f"{path}: the detections of {directory} are those of {tested}, not of this checkpoint")


def _holds_results(path: Path) -> bool:
    """Whether a path holds detections, not a run or checkpoint. It may be a file or folder."""
    return any(path.glob("set*_V*_I*.txt")) if path.is_dir() else path.is_file() and path.suffix != ".ckpt"


def _root(runs: Sequence[RunDirectory], overrides: Sequence[str], annotations: Path) -> Path:
    """Where the images are: as said, else where the annotations or the first run's data are."""
    for key, _, value in (override.partition("=") for override in overrides):
        if key.strip() == "data.root":
            return Path(value.strip())
    if annotations.is_dir():
        return annotations
    for run in runs:
        return Path(run.at_hand(run.trained()).data.root)
    raise DataError(f"{annotations}: does not state where its images are; give data.root=...")


def _with_ending(path: Path) -> Path:
    """The image file of a name without ending."""
    return next((p for s in IMAGE_SUFFIXES if (p := Path(f"{path}{s}")).is_file()), path)


def _with_images(truth: GroundTruth, root: Path) -> list[Frame]:
    """Frames of a ground truth. A :class:`~data_kaist.errors.Doubt` counts those whose images are missing."""
    pairs = [
        (_with_ending(path), lwir and _with_ending(lwir)) for path, lwir in (coco_files(root, n) for n in truth.names)
    ]
    if lacking := [visible for visible, _ in pairs if not visible.is_file()]:
        said = f"{len(lacking):,} of {len(pairs):,} images are not there and cannot be drawn"
        warnings.warn(f"{root}: {said}, {lacking[0]} first", Doubt, stacklevel=3)
    has_lwir = any(lwir and lwir.is_file() for _, lwir in pairs)
    return [
        Frame(name, visible, lwir if has_lwir else None, of, place=place)
        for place, (name, (visible, lwir), of) in enumerate(zip(truth.names, pairs, truth.annotations, strict=True))
    ]
