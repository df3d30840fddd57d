"""Writes a page of a detector's features and evidence for one image."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    levels_picture,
)
from ssd_effnet.visualize.features import Seen, evidence, matched_anchors, see


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
    notes = []
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
    listed = _detections_table(seen, detections, detection)
    titles = [title for _, title, _ in pages]
    index = out / "index.html"
    addresses = [jpeg_address(picture, quality=92) for *_, picture in pages]
    write_whole(index, _page(f"{e.name}: {sample.name}", titles, addresses, notes, listed))
    summary = f"{len(pictures)} pictures of {sample.name}, {len(detections)} detections: open {index}"
    return FeaturePage(index, pictures, summary)


def _detections_table(seen: Seen, detections: DetectionTable, chosen: int) -> str:
    if not len(detections):
        return ""
    numbers = sorted({*range(1, min(LISTED, len(detections)) + 1), chosen})
    rows = []
    for number in numbers:
        row = number - 1
        x1, y1, x2, y2 = detections.boxes_xyxy[row]
        _, place, (*_, w, h) = seen.anchor_of(detections, row)
        level = seen.head_maps[place].level.name
        cells = (
            *(f"{number}", detections.class_names[row], f"{detections.scores[row]:.3f}", level, f"{w:.0f}x{h:.0f}"),
            f"{x1:.0f}, {y1:.0f}, {x2:.0f}, {y2:.0f}",
        )
        mark = ' class="chosen"' if number == chosen else ""
        rows.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("--detection", "class", "score", "level", "anchor", "box"))
    return (
        f"<p>{len(detections)} detections in all; boxes (x1, y1, x2, y2) and anchors (width x height) in pixels of the "
        f"network's input.</p><table><tr>{head}</tr>{''.join(rows)}</table>"
    )


_STYLE = """
body { font: 15px/1.4 sans-serif; margin: 1.5em auto; max-width: 1700px; padding: 0 1em; color: #111; background: #fff }
img { max-width: 100%; border: 1px solid #ccc; cursor: zoom-in } img.whole { max-width: none; cursor: zoom-out }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 2px 12px 2px 0 } .chosen { font-weight: bold }
"""


def _page(title: str, titles: Sequence[str], addresses: Sequence[str], notes: Sequence[str], listed: str) -> str:
    parts = []
    for number, (words, address) in enumerate(zip(titles, addresses, strict=True), start=1):
        shown = html.escape(words)
        toggle = "this.classList.toggle('whole')"
        parts.append(
            f'<h2 id="p{number}">{number}. {shown}</h2><img src="{address}" alt="{shown}" onclick="{toggle}">'
            + (listed if number == 1 else "")
        )
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    links = " &middot; ".join(
        f'<a href="#p{number}">{html.escape(words)}</a>' for number, words in enumerate(titles, start=1)
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1><p>{links}</p>{said}{''.join(parts)}"
        "</body></html>\n"
    )
