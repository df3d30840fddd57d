"""Frames in memory: the same samples, shared by workers, refused where there is no room."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from data_kaist import cache as cache_module
from data_kaist.dataset import DetectionDataset, collate
from data_kaist.errors import ImageError
from data_kaist.layouts import DataSource, Modality
from data_kaist.transforms import Compose, HorizontalFlip, PhotometricJitter, RandomResizedCrop, Resize

CHAIN = Compose((PhotometricJitter(p=1), RandomResizedCrop(p=1), Resize((40, 50)), HorizontalFlip()))


def dataset(root: Path, modality: Modality = "early", *, cached: bool = True) -> DetectionDataset:
    frames = DataSource("coco", root).frames("train.json", modality=modality)
    return DetectionDataset(frames, modality, CHAIN, cache="memory" if cached else "none")


@pytest.mark.parametrize("modality", ["visible", "lwir", "early"])
def test_samples_are_those_without(few_pairs: Path, modality: Modality) -> None:
    plain = dataset(few_pairs, modality, cached=False)
    cached = dataset(few_pairs, modality)
    for _ in range(2):  # once read, once kept
        for i in range(len(plain)):
            for name in ("visible", "lwir", "boxes_xyxy"):
                np.testing.assert_array_equal(getattr(cached[i], name), getattr(plain[i], name))


def test_a_frame_is_read_once_and_cannot_be_written_to(few_pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = dataset(few_pairs)
    assert cached.cache is not None and cached.cache.bytes == 4 * 96 * 128 * 4
    of_run = DetectionDataset(cached.frames, "early", CHAIN, cache="memory", processes=8)
    assert of_run.cache is not None and of_run.cache.bytes == 8 * cached.cache.bytes
    assert cached.cache.get(0) is None
    cached[0]
    monkeypatch.setattr("data_kaist.dataset.read_pair", lambda *_: pytest.fail("read again"))
    cached[0]
    images = cached.cache.get(0)
    assert images is not None and images[0] is not None and not images[0].flags.writeable


def test_forked_workers_share_it(few_pairs: Path) -> None:
    cached = dataset(few_pairs)
    loader = DataLoader(cached, 2, num_workers=1, collate_fn=collate, multiprocessing_context="fork")
    assert len(list(loader)) == 2
    assert cached.cache is not None and all(cached.cache.get(i) is not None for i in range(4))


def test_a_copy_for_a_spawned_worker_begins_empty(few_pairs: Path) -> None:
    cached = dataset(few_pairs)
    cached[0]
    copy = pickle.loads(pickle.dumps(cached))
    assert copy.cache.get(0) is None
    np.testing.assert_array_equal(copy[0].visible, cached[0].visible)


def test_too_little_memory_is_told_before_any_is_taken(few_pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "free_memory", lambda: 2**30)
    with pytest.raises(ImageError, match=r"would take 0\.0 GiB for 4 decoded frames, but 1\.0 GiB are free.*none"):
        dataset(few_pairs)
