"""Writes a page of a detector's features and evidence for one image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_kaist.dataset import DetectionDataset, collate
from data_kaist.errors import DataError, ImageError
from data_kaist.files import write_whole
from data_kaist.structures import DetectionTable
from data_kaist.transforms import Sample
from ssd_effnet.build import build_criterion, build_dataset, build_postprocess
from ssd_effnet.config.yaml_files import nearest
from ssd_effnet.drawing import jpeg_address, save
from ssd_effnet.inference.predictor import Predictor
from ssd_effnet.inference.sources import Still, find_sources
from ssd_effnet.models.necks import GraphNeck
from ssd_effnet.training.run_directory import RunDirectory
from ssd_effnet.visualize.feature_pictures import (
    LISTED,
    anchors_picture,
    channels_picture,
    detection_picture,
    fusion_picture,
    image_picture,
    level_colour,
    levels_picture,
)
from ssd_effnet.visualize.features import AnchorMatches, Seen, evidence, matched_anchors, see
from ssd_effnet.visualize.templates import templates


@dataclass(frozen=True)
class FeaturePage:
    """Result of :func:`write_feature_page`.

    Attributes:
        index: the page to open.
        pictures: in the order of the page.
        summary: one line.
    """

    index: Path
    pictures: list[Path]
    summary: str


def default_folder(run: Path, image: str) -> Path:
    """``pictures/features_<image>`` in the run's directory, where a checkpoint lies in one; else beside it."""
    name = Path(image).stem if Path(image).is_file() else image.replace("/", "_")
    return RunDirectory.holding(run).path / "pictures" / f"features_{name}"


def find_sample(
    predictor: Predictor, image: str, lwir: Path | None = None, run: RunDirectory | None = None
) -> tuple[Sample, bool]:
    """Load the image for the detector; also whether its objects are known.

    Args:
        predictor: the detector with its experiment.
        image: a file, or a frame of the experiment's test split; for a detector of LWIR alone a file is LWIR.
        lwir: the LWIR file of a pair; None: the partner in KAIST's layout.
        run: that the detector is of; a frame that is named is of the data that it was begun with.

    Raises:
        DataError: it is neither, it cannot be read, or it is not what the modality reads.
        RunError: the test split is another one now.
    """
    if lwir is not None and len(predictor.sides) == 1:
        raise ImageError(f"{lwir}: this detector reads {predictor.sides[0]} images alone; give its image as --image")
    split = predictor.experiment.data.test
    if not Path(image).is_file():
        dataset = build_dataset(predictor.experiment, "test")
        if run is not None and run.environment_file.is_file():
            run.refuse_other_test_data(dataset.frames)
        places = {frame.name: i for i, frame in enumerate(dataset.frames)}
        if lwir is not None or image not in places:
            raise ImageError(
                f"{image}: is neither a file nor a frame of the test split {split!r}{nearest(image, list(places))} "
                f"(a frame is, for example, {dataset.frames[0].name})"
            )
        return dataset[places[image]], True
    if lwir is None:
        if (sample := _sample_of_split(predictor, Path(image))) is not None:
            return sample, True
        (source,) = find_sources([image], side="lwir" if predictor.modality == "lwir" else "visible")
        if not isinstance(source, Still):
            raise ImageError(f"{image}: is a video; give one image")
        files = [source.visible if side == "visible" else source.lwir for side in predictor.sides]
        if None in files:
            side = predictor.sides[files.index(None)]
            remedy = "add --lwir FILE" if side == "lwir" else "give the visible one as --image"
            raise ImageError(f"{image}: this detector needs a {side} image as well; {remedy}")
        return predictor.prepare(tuple(str(file) for file in files), image), False
    return predictor.prepare((image, lwir), image), False


def _sample_of_split(predictor: Predictor, file: Path) -> Sample | None:
    """The frame whose file it is, None where the split is not there or has no such frame."""
    try:
        dataset: DetectionDataset = build_dataset(predictor.experiment, "test")
    except DataError:
        return None
    wanted = file.resolve()
    side = predictor.sides[0]
    for i, frame in enumerate(dataset.frames):
        path = frame.visible if side == "visible" else frame.lwir
        if path is not None and path.name == wanted.name and path.resolve() == wanted:
            return dataset[i]
    return None


def write_feature_page(
    predictor: Predictor, sample: Sample, out: Path, *, truth: bool, detection: int = 1
) -> FeaturePage:
    """Draw a detector's maps, anchors and evidence for one image, as one page.

    Args:
        predictor: the detector.
        sample: as :func:`find_sample` gives it.
        out: folder for the pictures and ``index.html``.
        truth: whether the sample's objects are known.
        detection: whose evidence is drawn; 1 has the highest score.

    Raises:
        DataError: there are not so many detections, or ``out`` is a file.
        OSError: a file cannot be written.
    """
    if out.is_file():
        raise DataError(f"{out}: is a file, and pictures are written into a folder")
    if detection < 1:
        raise DataError(f"detection {detection}: detections are counted from 1, the surest")
    e = predictor.experiment
    batch = collate([sample]).to(predictor.device)
    seen = see(predictor.detector, batch.images)
    postprocess = build_postprocess(e)
    detections = postprocess(seen.outputs, seen.input_size).table([0], predictor.classes)
    if len(detections) and detection > len(detections):
        raise DataError(f"{sample.name}: has {len(detections)} detections, so there is no number {detection}")
    if not len(detections) and detection > 1:
        raise DataError(f"{sample.name}: the detector finds nothing there, so there is no detection {detection}")

    pages: list[tuple[str, str, np.ndarray]] = [
        ("image", "What enters the network, and what it finds", image_picture(sample, detections, truth)),
        ("levels", "Each level after each part, as energy", levels_picture(seen, sample)),
    ]
    for part in seen.parts:
        made = [m for m in seen.of_part(part) if m.handed_on_from is None]
        if made:
            title = f"Channels of the {part}: those that vary most over the image"
            pages.append((f"channels_{part.replace(' ', '_')}", title, channels_picture(made, sample)))
    neck = predictor.detector.part("neck")
    notes, matches = [], None
    if isinstance(neck, GraphNeck):
        if neck.fusion_weights():
            pages.append(("fusion_weights", "What each node of the neck weighs its inputs by", fusion_picture(neck)))
        else:
            notes.append("The neck sums its inputs: no weights were learned.")
    if truth:
        matches = matched_anchors(seen, batch.targets, build_criterion(e))
        title = "Which anchors learn which object"
        pages.append(("anchors", title, anchors_picture(seen, matches, sample)))
    else:
        notes.append("No ground truth is known for this image: no anchors are matched.")
    if len(detections):
        chosen = detections.rows(np.array([detection - 1]))
        used = evidence(seen, chosen, postprocess.activation)
        title = f"Why detection {detection} scores {chosen.scores[0]:.2f}"
        pages.append(("detection", title, detection_picture(seen, chosen, used, sample, truth)))
    else:
        notes.append(f"Nothing is found, not even with a score of {postprocess.score_threshold:g}.")

    pictures = []
    for number, (name, _, picture) in enumerate(pages, start=1):
        path = out / f"{number:02d}_{name}.png"
        save(picture, path)
        pictures.append(path)
    numbers = sorted({*range(1, min(LISTED, len(detections)) + 1), detection}) if len(detections) else []
    text = (
        templates(__file__)
        .get_template("features.html")
        .render(
            title=f"{e.name}: {sample.name}",
            pages=[
                {"name": name, "title": title, "address": jpeg_address(picture, quality=92)}
                for name, title, picture in pages
            ],
            notes=notes,
            found=len(detections),
            chosen=detection,
            rows=[_detection_cells(seen, detections, n - 1) for n in numbers],
            **(_anchor_table(seen, matches) if matches else {"levels": [], "counts": []}),
        )
    )
    index = out / "index.html"
    write_whole(index, text)
    summary = f"{len(pictures)} pictures of {sample.name}, {len(detections)} detections: open {index}"
    return FeaturePage(index, pictures, summary)


def _detection_cells(seen: Seen, detections: DetectionTable, row: int) -> tuple[Any, ...]:
    _, place, (*_, w, h) = seen.anchor_of(detections, row)
    box = ", ".join(f"{side:.0f}" for side in detections.boxes_xyxy[row])
    score, level = f"{detections.scores[row]:.3f}", seen.head_maps[place].level.name
    return row + 1, detections.class_names[row], score, level, f"{w:.0f}x{h:.0f}", box


def _anchor_table(seen: Seen, matches: AnchorMatches) -> dict[str, Any]:
    """Positive anchors by object (rows) and level (columns)."""
    heights = matches.anchors_xyxy[:, 3] - matches.anchors_xyxy[:, 1]
    levels = []
    for k, m in enumerate(seen.head_maps):
        own = heights[matches.level_of_anchor == k]
        colour = "rgb({}, {}, {})".format(*level_colour(k))
        levels.append({"name": m.level.name, "colour": colour, "heights": f"{own.min():.0f}-{own.max():.0f}"})
    counts = [(f"object {i}", row.tolist()) for i, row in enumerate(matches.counts, start=1)]
    if matches.ignored.any():
        counts.append(("ignored", matches.ignored_counts.tolist()))
    return {"levels": levels, "counts": counts}
