"""Frames in memory: the same samples, shared by workers, refused where there is no room."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from torch.utils.data import DataLoader

from data_kaist import cache as cache_module
from data_kaist.cache import DiskCache
from data_kaist.dataset import DetectionDataset, collate
from data_kaist.errors import ImageError
from data_kaist.layouts import DataSource, Modality
from data_kaist.transforms import Compose, HorizontalFlip, PhotometricJitter, RandomResizedCrop, Resize

CHAIN = Compose((PhotometricJitter(p=1), RandomResizedCrop(), Resize((40, 50)), HorizontalFlip()))


def dataset(
    root: Path, modality: Modality = "early", *, cached: bool = True, folder: Path | None = None
) -> DetectionDataset:
    frames = DataSource("coco", root).frames("train.json", modality=modality)
    cache: Literal["none", "memory", "disk"] = "disk" if folder else "memory" if cached else "none"
    return DetectionDataset(frames, modality, CHAIN, cache=cache, cache_folder=folder)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("modality", ["visible", "lwir", "early"])
def test_samples_are_those_without(few_pairs: Path, modality: Modality, on_disk: bool, tmp_path: Path) -> None:
    plain = dataset(few_pairs, modality, cached=False)
    cached = dataset(few_pairs, modality, folder=tmp_path if on_disk else None)
    for _ in range(2):  # once read, once kept
        for i in range(len(plain)):
            for name in ("visible", "lwir", "boxes_xyxy"):
                np.testing.assert_array_equal(getattr(cached[i], name), getattr(plain[i], name))


def test_a_frame_is_read_once_and_cannot_be_written_to(few_pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = dataset(few_pairs)
    assert cached.cache is not None and cached.cache.bytes == 4 * 96 * 128 * 4
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


def test_free_memory_is_known_or_not() -> None:
    free = cache_module.free_memory()
    assert free is None or 2**20 < free < 2**50


def test_the_processes_of_a_run_each_take_memory(few_pairs: Path) -> None:
    frames = DataSource("coco", few_pairs).frames("train.json", modality="early")
    cached = DetectionDataset(frames, "early", CHAIN, cache="memory", processes=8)
    assert cached.cache is not None and cached.cache.bytes == 8 * 4 * 96 * 128 * 4


def test_the_disk_is_shared_with_other_workers_and_with_the_next_run(
    few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = dataset(few_pairs, folder=tmp_path)
    assert isinstance(first.cache, DiskCache)
    assert str(first.cache) == f"will take 0 MiB in {first.cache.file}" and not first.cache.file.exists()
    loader = DataLoader(first, 2, num_workers=1, collate_fn=collate, multiprocessing_context="fork")
    assert len(list(loader)) == 2
    assert first.cache.file.stat().st_size == first.cache.bytes == 4 * 96 * 128 * 4
    again = dataset(few_pairs, folder=tmp_path)
    assert str(again.cache).endswith("which holds 4 of 4 already")
    monkeypatch.setattr("data_kaist.dataset.read_pair", lambda *_: pytest.fail("read again"))
    for kept in (again, pickle.loads(pickle.dumps(again))):
        np.testing.assert_array_equal(kept[2].visible, first[2].visible)


def test_a_file_that_has_changed_and_a_machine_that_was_restarted_are_read_anew(
    few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(few_pairs, root)
    kept = dataset(root, folder=tmp_path)
    before = kept[0].visible, kept[1].visible
    assert kept.cache is not None and kept.cache.get(0) is not None
    os.utime(root / "visible" / "0.png", (1, 1))
    assert kept.cache.get(0) is None and kept.cache.get(1) is not None
    np.testing.assert_array_equal(kept[0].visible, before[0])
    monkeypatch.setattr(cache_module, "_boot", lambda: "another")
    restarted = dataset(root, folder=tmp_path)
    assert restarted.cache is not None and str(restarted.cache).startswith("will take")
    assert restarted.cache.get(1) is None
    np.testing.assert_array_equal(restarted[1].visible, before[1])


def test_too_little_disk_is_told_before_any_is_taken(
    few_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "free_disk", lambda folder: 2**30)
    with pytest.raises(ImageError, match=rf"would take 0\.0 GiB in {tmp_path} for 4 .*data\.cache_folder"):
        dataset(few_pairs, folder=tmp_path)
    assert not list(tmp_path.iterdir())
