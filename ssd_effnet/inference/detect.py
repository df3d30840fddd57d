"""Runs a detector on images, pairs and videos. It writes files and annotated pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from data_kaist.classes import Classes
from data_kaist.detections import write_coco_results, write_images, write_kaist
from data_kaist.errors import DataError, ImageError
from data_kaist.images import NOTE
from data_kaist.splits import spelling
from data_kaist.structures import DetectionTable
from data_kaist.transforms import Sample
from ssd_effnet.build import build_classes
from ssd_effnet.drawing import Marking, beside, draw, save, with_caption
from ssd_effnet.evaluation.scores import refuse_a_run
from ssd_effnet.inference.predictor import Predictor
from ssd_effnet.inference.sources import IMAGES, Source, Still, Video, frame_count, read_video, states_its_length
from ssd_effnet.inference.video import SUFFIX, AnnotatedVideos


@dataclass
class DetectionSummary:
    """Counts of :func:`detect`. Images and video frames, detections, damaged frames, bad files; seconds in all."""

    images: int = 0
    detections: int = 0
    lost: int = 0
    bad: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = f" ({self.images / self.seconds:.2f} images per second)" if self.images else ""
        line = f"{self.images:,} images, {self.detections:,} detections in {self.seconds:.1f} s{rate}"
        line += f"; {self.lost:,} damaged frame{'s' * (self.lost > 1)} left out" if self.lost else ""
        return line + (f"; {self.bad:,} bad file{'s' * (self.bad > 1)} left out" if self.bad else "")


@dataclass(frozen=True, eq=False)
class _Shot:
    """One image: its number from 0, its frame in the video, pictures to draw on, detector input."""

    number: int
    place: int
    name: str
    source: Source
    pictures: tuple[np.ndarray, ...]
    sample: Sample
    note: np.ndarray


def detect(
    predictor: Predictor,
    sources: Sequence[Source],
    out: Path,
    *,
    score: float = 0.3,
    batch_size: int = 4,
    pictures: bool = True,
    on_bad_frame: Literal["stop", "skip"] = "stop",
    echo: Callable[[str], None] = print,
    on_image: Callable[[], None] = lambda: None,
) -> DetectionSummary:
    """Detect in all sources and write results below ``out``, batch by batch.

    - annotated images under the names of the sources, and ``NAME.webm`` for each video;
    - ``detections.json``, COCO results; ``images.json``, a COCO file of their images without
      annotations (``COCO("images.json").loadRes("detections.json")``);
    - ``detections_kaist.txt``: ``image_number,x,y,w,h,score`` per line for persons (or the
      first class, where none is of ``person``); image 1 is the one with id 0.

    Numbers count all images, also skipped ones and damaged video frames, for which the annotated video repeats the
    previous picture. Files are complete also after an error.

    Args:
        sources: see :func:`ssd_effnet.inference.sources.find_sources`.
        out: folder; what is there under the same names is replaced.
        score: detections below are neither drawn nor written.
        pictures: write annotated images and videos.
        on_bad_frame: ``stop`` at the first file that cannot be used, or ``skip`` and list such files.
        echo: called with one line per bad file or remark.

    Raises:
        DataError: a bad file, with ``on_bad_frame="stop"``; ``out`` is no folder, or a run's file or an input is there.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file, not a folder to write to")
    refuse_a_run(out)
    _refuse_to_overwrite(sources if pictures else (), out)
    summary, begun = DetectionSummary(), time.perf_counter()
    images: list[tuple[int, str, tuple[int, int]]] = []
    tables: list[DetectionTable] = []
    pending: list[_Shot] = []
    notes: dict[Sequence[Path], np.ndarray] = {}
    videos = AnnotatedVideos(out, echo)

    def flush() -> None:
        if not pending:
            return
        out.mkdir(parents=True, exist_ok=True)
        found = predictor.detect([shot.sample for shot in pending], score=score)
        for shot, detections in zip(pending, found, strict=True):
            images.append((shot.number, _listed_name(shot), shot.sample.original_size))
            tables.append(detections)
            if pictures and isinstance(shot.source, Video):
                videos.add(shot.source, _drawn(shot, detections, score), shot.place)
            elif pictures:
                save(_drawn(shot, detections, score), out / _picture_name(shot.source))
            summary.images += 1
            summary.detections += len(detections)
            on_image()
        pending.clear()

    with ExitStack() as at_the_end:
        at_the_end.callback(_write_results, out, build_classes(predictor.experiment), images, tables)
        at_the_end.callback(videos.close)
        number = 0
        for source in sources:
            first, read, gap = number, 0, 0
            try:
                for shot in _shots(predictor, source, number):
                    number = shot.number + 1
                    read += 1
                    gap = gap or (read if shot.place >= read else 0)
                    notes[source.files] = shot.note
                    pending.append(shot)
                    if len(pending) == batch_size:
                        flush()
                if isinstance(source, Video):
                    lost = number - first - read
                    summary.lost += lost
                    _say_what_is_missing(source, number - first, lost, gap, echo)
            except DataError as error:
                number += isinstance(source, Still)
                if on_bad_frame == "stop":
                    flush()
                    raise
                summary.bad += 1
                echo(f"left out: {error}")
        flush()
        for sentence in predictor.doubts(notes.items()):
            echo(sentence)
    summary.seconds = time.perf_counter() - begun
    return summary


def _shots(predictor: Predictor, source: Source, number: int) -> Iterator[_Shot]:
    if isinstance(source, Still):
        note = np.zeros(1, NOTE)
        given = tuple(source.read(side, predictor.reading, note) for side in predictor.sides)
        yield _Shot(number, 0, source.name, source, given, predictor.prepare(given, str(source.path)), note)
        return
    if len(predictor.sides) > 1:
        raise ImageError(f"{source.path}: {predictor.modality} needs pairs (visible, lwir), and a video is not one")
    frames, note = read_video(source, side=predictor.sides[0]), np.zeros(1, NOTE)
    for i, frame in enumerate(frames):
        if frame is not None:
            sample = predictor.prepare(frame, f"{source.path}, frame {i + 1}", note)
            yield _Shot(number + i, i, f"{source.name}#{i + 1:06d}", source, (frame,), sample, note)


def _say_what_is_missing(video: Video, seen: int, lost: int, first: int, echo: Callable[[str], None]) -> None:
    """Report damaged frames and a premature end. Some formats only estimate their length, to within a tenth."""
    stated = frame_count(video)
    missing = stated - seen
    if lost:
        more = f"; {missing:,} more are missing, so numbers after that may be too low" if missing > 0 else ""
        echo(f"{video.path}: {lost:,} of {stated:,} frames are damaged or missing, the first is frame {first:,}{more}")
    elif missing > (0 if states_its_length(video) else 0.1 * stated):
        echo(f"{video.path}: has {seen:,} of the {stated:,} stated frames; after a missing one numbers are too low")


def _listed_name(shot: _Shot) -> str:
    """Name in ``images.json``; of a KAIST frame with set and video."""
    whole = "/".join(shot.source.path.absolute().parts[-4:])
    return whole if isinstance(shot.source, Still) and spelling(whole) and not spelling(shot.name) else shot.name


def _drawn(shot: _Shot, detections: DetectionTable, score: float) -> np.ndarray:
    marking = Marking("detection", detections.boxes_xyxy, detections.texts())
    drawn = beside([draw(picture, [marking]) for picture in shot.pictures])
    # OpenCV's letters are ASCII
    caption = f"{shot.name}   scores from {score:g}".encode("ascii", "replace").decode()
    return with_caption(drawn, caption)


def _picture_name(source: Source) -> str:
    if isinstance(source, Video):
        return source.name + SUFFIX
    return source.name if Path(source.name).suffix.lower() in IMAGES else f"{source.name}.png"


def _refuse_to_overwrite(sources: Sequence[Source], out: Path) -> None:
    """Refuse to overwrite an input, or one annotated picture with another."""
    taken = {path.resolve(): "an input; choose another folder" for source in sources for path in source.files}
    for source in sources:
        picture = out / _picture_name(source)
        if what := taken.get(picture.resolve()):
            raise DataError(f"{picture}: would be overwritten, and it is {what}")
        taken[picture.resolve()] = f"the picture of {source.name}, too; rename that, or write --no-pictures"


def _write_results(
    out: Path, classes: Classes, images: list[tuple[int, str, tuple[int, int]]], tables: list[DetectionTable]
) -> None:
    """``detections.json``, ``images.json`` and, of the main class, ``detections_kaist.txt``; none without images."""
    if not images:
        for name in ("detections.json", "images.json", "detections_kaist.txt"):
            (out / name).unlink(missing_ok=True)
        return
    ids, names, sizes = zip(*images, strict=True)
    tables = [replace(table, image_index=np.full(len(table), i)) for i, table in enumerate(tables)]
    whole = DetectionTable.joined(tables)
    write_images(out / "images.json", ids, names, sizes, dict(enumerate(classes.published, start=1)))
    write_coco_results(out / "detections.json", whole, image_ids=ids)
    main = whole.of_class(classes.index(classes.main))
    write_kaist(out / "detections_kaist.txt", replace(main, image_index=np.array(ids)[main.image_index]))
