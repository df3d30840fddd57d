"""Draws the augmented, normalised images that enter the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data_kaist.annotations import training_ignore
from data_kaist.dataset import DetectionDataset, collate, doubts_of, read_pair
from data_kaist.errors import DataError, warn_doubt
from data_kaist.layouts import spread
from data_kaist.structures import Batch
from ssd_effnet.build import build_dataset, build_normalize
from ssd_effnet.config.groups import chosen
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.drawing import Marking, as_rgb, draw
from ssd_effnet.models.fusion import CHANNELS
from ssd_effnet.visualize.panels import Panel, save_panels

DRAWS = {"train": 4, "val": 1, "test": 1}
"""Draws of a frame; the stages without augmentation draw nothing."""

_CELL = 320  # width of one picture
_ROWS = 6  # frames on one picture


def write_data_view(e: ExperimentConfig, out: Path, *, stage: str = "train", count: int = 6) -> list[Path]:
    """Draw frames as the network receives them, turned back into pixels; returns the pictures.

    Normalisation is undone by the experiment's numbers, not the detector's buffers: if they differ, channels are
    swapped or boxes misplaced, the pictures look wrong.

    Args:
        e: the experiment.
        out: folder for the pictures, ``<stage>_1.png`` ...
        stage: ``train``, ``val`` or ``test``.
        count: frames, spread over those that have objects; each as in the first :data:`DRAWS` epochs.
    """
    if out.is_file():
        raise DataError(f"{out}: is a file, and pictures are written into a folder")
    if not getattr(e.data, stage):
        raise DataError(f"{e.name}: has no split for the stage {stage}; key `data.{stage}` is empty")
    dataset = build_dataset(e, stage)
    chosen = spread(dataset.frames, count)
    normalize = build_normalize(e)
    rows = []
    for place in chosen:
        batch = collate([dataset[(k, place)] for k in range(DRAWS[stage])])
        rows.append(_frame_row(dataset, place, batch, denormalised(normalize(batch.images), *configured(e))))
    doubts = doubts_of([dataset.frames[place] for place in chosen]).values()
    for sentence in doubts:
        warn_doubt(sentence)
    words = [
        f"{e.name}, {stage}: each frame as it is read, then as it enters the network. {_words(e, stage)}",
        *doubts,
    ]
    pictures = []
    for page, start in enumerate(range(0, len(rows), _ROWS), start=1):
        path = out / f"{stage}_{page}.png"
        save_panels(path, rows[start : start + _ROWS], words, ("truth", "ignored"))
        pictures.append(path)
    return pictures


def configured(e: ExperimentConfig) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std ``(C,)`` in 0..1 of the modality's channels, as the experiment states them; 0 and 1 for none."""
    places = list(CHANNELS[e.input.modality])
    if not e.input.normalize:
        return np.zeros(len(places)), np.ones(len(places))
    return np.array(e.input.mean)[places], np.array(e.input.std)[places]


def denormalised(entering: torch.Tensor, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Pixels uint8 ``(N, H, W, C)`` of a normalised tensor ``(N, C, H, W)``, clipped; mean and std ``(C,)`` in 0..1."""
    values = entering.permute(0, 2, 3, 1).double().numpy() * std + mean
    pixels: np.ndarray = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
    return pixels


def _words(e: ExperimentConfig, stage: str) -> str:
    if stage != "train":
        return "No augmentation: resized only."
    said = [f"{name} ({', '.join(f'{k} {v}' for k, v in vars(own).items())})" for _, name, own in chosen(e.augment)]
    return f"Augmentation: {', '.join(said) or 'none'}. An epoch draws anew."


def _frame_row(
    dataset: DetectionDataset,
    place: int,
    batch: Batch,
    pixels: np.ndarray,
) -> list[Panel]:
    """One row: a frame as read, then augmented; LWIR below visible."""
    frame = dataset.frames[place]
    annotations = frame.annotations
    ignore = training_ignore(annotations, dataset.min_height, dataset.classes)
    pair = [as_rgb(image) for image in read_pair(frame, dataset.modality) if image is not None]
    height, width = annotations.size
    named = dataset.classes.words(annotations.labels)
    said = [frame.name, f"as it is read, {width}x{height}"]
    cells = [_frame_cell(pair, annotations.boxes_xyxy, ignore, named, said)]
    for k, image in enumerate(pixels):
        targets = batch.targets
        there = (targets.labels[k] > 0).numpy()
        boxes, ignored = targets.boxes_xyxy[k].numpy()[there], targets.ignore[k].numpy()[there]
        shown = [image[..., :3]] if image.shape[2] >= 3 else []
        if image.shape[2] != 3:
            shown.append(as_rgb(image[..., -1]))
        people = int((~ignored).sum())
        what = f"{people} to be found, {len(ignored) - people} ignored"
        when = "as it enters" if len(pixels) == 1 else f"as it enters in epoch {k}"
        names = [dataset.classes.names[label - 1] for label in targets.labels[k].tolist() if label > 0]
        texts = names if len(dataset.classes.names) > 1 else []
        cells.append(_frame_cell(shown, boxes, ignored, texts, [when, f"{image.shape[1]}x{image.shape[0]}; {what}"]))
    return cells


def _frame_cell(
    pair: Sequence[np.ndarray], boxes_xyxy: np.ndarray, ignore: np.ndarray, texts: Sequence[str], words: Sequence[str]
) -> Panel:
    zoom = _CELL / pair[0].shape[1]
    named = [text for text, ignored in zip(texts, ignore, strict=False) if not ignored]
    markings = [Marking("ignored", boxes_xyxy[ignore]), Marking("truth", boxes_xyxy[~ignore], named)]
    return Panel(words, np.concatenate([draw(picture, markings, zoom=zoom) for picture in pair]))
