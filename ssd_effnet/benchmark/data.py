"""Speed of reading training, test and cached pairs, against Pillow + numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from data_kaist.dataset import DetectionDataset
from data_kaist.layouts import DataSource
from data_kaist.synthetic import write_dataset
from data_kaist.transforms import Sample
from ssd_effnet.benchmark.reference import stages as reference
from ssd_effnet.benchmark.rows import DisagreementError, Row, compared
from ssd_effnet.build import build_transforms
from ssd_effnet.config.schema import ExperimentConfig
from ssd_effnet.training.runtime import in_turns

LARGEST_MEAN_DIFFERENCE = 3.0  # grey levels of 255 between two resamplers, averaged over a picture


def benchmark_data(
    root: Path, *, runs: int = 5, pairs: int = 8, frames: int = 6, size: tuple[int, int] = (512, 640)
) -> Iterator[Row]:
    """Rows of the stage, in this process and one thread.

    Args:
        root: a data set in KAIST's layout; an empty or missing folder is filled with ``frames`` synthetic pairs.
        runs: rounds.
        pairs: read in a round, with other random numbers each.
        size: (height, width) of the samples, and of the synthetic pairs.
    """
    if not (root / "images").is_dir():
        write_dataset(root, frames, size, seed=0)
    source = DataSource("kaist", root)
    found = source.frames("train-all-01", modality="early") if _has_training(root) else None
    chosen = found or source.frames("test-all-01", modality="early")
    experiment = ExperimentConfig()
    experiment.input.size, experiment.input.modality = list(size), "early"
    keys = [(i // len(chosen), i % len(chosen)) for i in range(pairs)]
    cv2.setNumThreads(0)
    calls: dict[str, Callable[[], object]] = {}
    agreement = {}
    for stage in ("train", "test"):
        chain = reference.Chain(size, experiment.input.mean or [], experiment.input.std or [], train=stage == "train")
        transforms = build_transforms(experiment, stage)
        own = DetectionDataset(chosen, "early", transforms)
        agreement[stage] = _agreement(own, chain, keys)
        calls[f"{stage} reference"] = partial(_read_plainly, own, chain, keys)
        calls[f"{stage} own"] = partial(_read, own, keys)
        kept = DetectionDataset(chosen, "early", transforms, cache="memory")
        _read(kept, keys)
        calls[f"{stage} kept"] = partial(_read, kept, keys)
    times = in_turns(calls, runs)
    names = {"train": "training pair: read, jitter, crop, resize, flip", "test": "test pair: read, resize"}
    for stage, goal in {"train": 2.5, "test": 2.0}.items():
        plain = f"{stage} reference"
        yield compared(
            *("data", names[stage], times),
            own=f"{stage} own",
            reference=plain,
            goal=goal,
            per=pairs,
            agreement=agreement[stage],
        )
        yield compared(
            *("data", f"{names[stage].partition(':')[0]}, frames kept (data.cache: memory)", times),
            own=f"{stage} kept",
            reference=plain,
            goal=10.0,
            per=pairs,
            agreement=agreement[stage],
        )


def _has_training(root: Path) -> bool:
    return any((root / "images" / f"set{number:02}").is_dir() for number in range(6))


def _read(dataset: DetectionDataset, keys: list[tuple[int, int]]) -> None:
    for key in keys:
        dataset[key]


def _read_plainly(dataset: DetectionDataset, chain: reference.Chain, keys: list[tuple[int, int]]) -> None:
    for key in keys:
        _plain(dataset, chain, key)


def _plain(dataset: DetectionDataset, chain: reference.Chain, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    frame = dataset.frames[key[1]]
    assert frame.visible is not None and frame.lwir is not None
    random = np.random.default_rng((dataset.seed, *key))
    return chain(frame.visible, frame.lwir, frame.annotations.boxes_xyxy, random)


def _agreement(dataset: DetectionDataset, chain: reference.Chain, keys: list[tuple[int, int]]) -> str:
    worst = 0.0
    for key in keys:
        sample: Sample = dataset[key]
        images, _ = _plain(dataset, chain, key)
        assert sample.visible is not None and sample.lwir is not None
        levels = 255 * (images.transpose(1, 2, 0) * chain.std + chain.mean)
        own = np.concatenate([sample.visible, sample.lwir[..., None]], axis=2)
        worst = max(worst, float(np.abs(levels - own).mean()))
    if worst > LARGEST_MEAN_DIFFERENCE:
        raise DisagreementError(
            f"transforms: pictures differ by {worst:.2f} grey levels on average, more than {LARGEST_MEAN_DIFFERENCE}"
        )
    return f"pictures within {worst:.2f} grey levels on average"
