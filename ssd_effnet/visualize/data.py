"""Draws the augmented, normalised images that enter the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
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
from ssd_effnet.models.detector import Normalize
from ssd_effnet.models.fusion import CHANNEL_NAMES, CHANNELS
from ssd_effnet.visualize.panels import Panel, save_panels

DRAWS = 4  # of a frame, in as many epochs

_CELL = 320  # width of one picture
_ROWS = 6  # frames on one picture
_FAR_MEAN, _FAR_STD = 1.0, 3.0  # wide enough for networks trained on -1..1, whose inputs deviate by about 0.5


def write_data_view(e: ExperimentConfig, out: Path, *, count: int = 6) -> list[Path]:
    """Draw training frames as the network receives them, turned back into pixels. Returns the pictures.

    ``count`` frames are spread over those that have objects, each drawn as in the first :data:`DRAWS` epochs, into the
    folder ``out``: ``train_1.png`` ... A Doubt names channels whose mean or deviation is far from the wanted 0 and 1.
    """
    if out.is_file():
        raise DataError(f"{out}: is a file, and pictures are written into a folder")
    dataset = build_dataset(e, "train")
    places = spread(dataset.frames, count)
    normalize = build_normalize(e)
    rows, of_frames = [], []
    for place in places:
        batch = collate([dataset[(k, place)] for k in range(DRAWS)])
        entering = normalize(batch.images)
        rows.append(_frame_row(dataset, place, batch, denormalised(entering, normalize)))
        of_frames.append(entering.transpose(0, 1).flatten(1))
    std, mean = torch.std_mean(torch.cat(of_frames, dim=1), dim=1)
    names = [CHANNEL_NAMES[place] for place in CHANNELS[e.input.modality]]
    channels = [f"{name} {m:+.3f} and {s:.3f}" for name, m, s in zip(names, mean.tolist(), std.tolist(), strict=True)]
    far = ((mean.abs() > _FAR_MEAN) | (std > _FAR_STD) | (std < 1 / _FAR_STD)).tolist()
    if wrong := list(compress(channels, far)):
        warn_doubt(f"{e.name}: far from mean 0 and standard deviation 1: {', '.join(wrong)}; see input.mean, input.std")
    for sentence in doubts_of([dataset.frames[place] for place in places]).values():
        warn_doubt(sentence)
    said = [f"{name} ({', '.join(f'{k} {v}' for k, v in vars(own).items())})" for _, name, own in chosen(e.augment)]
    words = [
        f"{e.name}: each frame as it is read, then as it enters the network. Augmentation: "
        f"{', '.join(said) or 'none'}. An epoch draws anew.",
        f"Mean and standard deviation as they enter (wanted: 0 and 1): {', '.join(channels)}.",
    ]
    pictures = []
    for old in out.glob("train_*.png"):  # of other settings
        old.unlink()
    for page, start in enumerate(range(0, len(rows), _ROWS), start=1):
        path = out / f"train_{page}.png"
        named = " or ".join(dataset.classes.names)
        save_panels(path, rows[start : start + _ROWS], words, ("truth", "ignored"), of_class=named)
        pictures.append(path)
    return pictures


def denormalised(entering: torch.Tensor, normalize: Normalize) -> np.ndarray:
    """Pixels of a normalised tensor, clipped. uint8 ``(N, H, W, C)`` of ``(N, C, H, W)``."""
    values = entering.permute(0, 2, 3, 1).double().numpy() * normalize.std.numpy() + normalize.mean.numpy()
    return np.asarray(np.clip(np.rint(values * 255), 0, 255), np.uint8)


def _frame_row(dataset: DetectionDataset, place: int, batch: Batch, pixels: np.ndarray) -> list[Panel]:
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
        when = f"as it enters in epoch {k}"
        names = [dataset.classes.names[label - 1] for label in targets.labels[k].tolist() if label > 0]
        texts = names if len(dataset.classes.names) > 1 else []
        words = [when, f"{image.shape[1]}x{image.shape[0]}; {what}"]
        present = targets.present if len(shown) > 1 else None
        sides = None if present is None else present[k].numpy()[there].T
        cells.append(_frame_cell(shown, boxes, ignored, texts, words, sides))
    return cells


def _frame_cell(
    pair: Sequence[np.ndarray],
    boxes_xyxy: np.ndarray,
    ignore: np.ndarray,
    texts: Sequence[str],
    words: Sequence[str],
    sides: np.ndarray | None = None,
) -> Panel:
    """One cell: images of one frame, one below the other. ``sides`` says which objects each image shows (None: all)."""
    pictures = []
    for picture, shows in zip(pair, np.ones((len(pair), len(ignore)), bool) if sides is None else sides, strict=True):
        others, wanted = ignore & shows, ~ignore & shows
        markings = [
            Marking("ignored", boxes_xyxy[others]),
            Marking("truth", boxes_xyxy[wanted], list(compress(texts, wanted))),
        ]
        pictures.append(draw(picture, markings, zoom=_CELL / picture.shape[1]))
    return Panel(words, np.concatenate(pictures))
