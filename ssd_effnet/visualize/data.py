"""Draws the augmented, normalised images that enter the backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from data_kaist.annotations import training_ignore
from data_kaist.dataset import DetectionDataset, collate, doubts_of, read_pair
from data_kaist.errors import DataError
from data_kaist.layouts import spread
from data_kaist.structures import Batch
from ssd_effnet.build import build_dataset, build_normalize
from ssd_effnet.config.groups import chosen
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.drawing import Marking, as_rgb, draw
from ssd_effnet.models.fusion import CHANNEL_NAMES, CHANNELS
from ssd_effnet.visualize.panels import Panel, save_panels

DRAWS = {"train": 4, "val": 1, "test": 1}
"""Draws of a frame; the stages without augmentation draw nothing."""

_CELL = 320  # width of one picture
_ROWS = 6  # frames on one picture
_FAR_MEAN = 1.0
_FAR_STD = 3.0  # wide enough for networks trained on -1..1, whose inputs have a standard deviation near 0.5


@dataclass(frozen=True)
class DataView:
    """Pictures in order, the channels' mean and deviation as they enter the backbone, and what is doubtful."""

    pictures: list[Path]
    channels: dict[str, tuple[float, float]]
    verdict: str


def write_data_view(e: ExperimentConfig, out: Path, *, stage: str = "train", count: int = 6) -> DataView:
    """Draw frames as the network receives them, turned back into pixels.

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
    mean, std = configured(e)
    sums = np.zeros((3, len(mean)))  # number of values, sum, sum of squares
    rows = []
    for place in chosen:
        batch = collate([dataset[(k, place)] for k in range(DRAWS[stage])])
        with torch.no_grad():
            tensor: torch.Tensor = normalize(batch.images)
        values = tensor.double().transpose(0, 1).flatten(1).numpy()
        sums += (np.full(len(values), values.shape[1]), values.sum(1), (values**2).sum(1))
        rows.append(_frame_row(dataset, place, batch, denormalised(tensor, mean, std)))
    of_tensor = sums[1] / sums[0]
    deviation = np.sqrt(np.maximum(sums[2] / sums[0] - of_tensor**2, 0))
    names = [CHANNEL_NAMES[place] for place in CHANNELS[e.input.modality]]
    channels = dict(zip(names, zip(of_tensor.tolist(), deviation.tolist(), strict=True), strict=True))
    verdict = " ".join([_verdict(e, channels), *doubts_of([dataset.frames[place] for place in chosen]).values()])
    words = [
        f"{e.name}, {stage}: each frame as it is read, then as it enters the network. {_words(e, stage)}",
        verdict,
    ]
    pictures = []
    for page, start in enumerate(range(0, len(rows), _ROWS), start=1):
        path = out / f"{stage}_{page}.png"
        save_panels(path, rows[start : start + _ROWS], words, ("truth", "ignored"))
        pictures.append(path)
    return DataView(pictures, channels, verdict)


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


def channel_table(view: DataView) -> Table:
    """Entering statistics per channel."""
    table = Table(caption=view.verdict)
    for name in ("channel", "mean (wanted 0)", "std (wanted 1)"):
        table.add_column(name, justify="right")
    for name, (mean, std) in view.channels.items():
        table.add_row(name, f"{mean:+.3f}", f"{std:.3f}")
    return table


def _verdict(e: ExperimentConfig, channels: Mapping[str, tuple[float, float]]) -> str:
    far = [
        name for name, (mean, std) in channels.items() if abs(mean) > _FAR_MEAN or not 1 / _FAR_STD <= std <= _FAR_STD
    ]
    if not far:
        return (
            f"No channel is far from mean 0 and standard deviation 1 (beyond {_FAR_MEAN:g}, a factor of {_FAR_STD:g})."
        )
    why = (
        "input.mean and input.std do not describe these images (ssd-effnet inspect --stats counts theirs)"
        if e.input.normalize
        else "input.normalize is off"
    )
    return f"Far from mean 0 and standard deviation 1: {', '.join(far)}; {why}."


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
