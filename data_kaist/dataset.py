"""Data set, sampler and batches of frames."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from data_kaist.annotations import training_ignore
from data_kaist.cache import FrameCache
from data_kaist.classes import PEOPLE, Classes
from data_kaist.errors import ImageError, SplitError
from data_kaist.images import doubts, read_image
from data_kaist.layouts import SIDES, Frame, Modality, Side, Skipped
from data_kaist.splits import daytime_of, spelling
from data_kaist.structures import Annotations, Batch, Targets
from data_kaist.transforms import Sample, Transform


def read_pair(frame: Frame, modality: Modality) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Read a frame's images, uint8. Visible is ``(H, W, 3)`` RGB, LWIR ``(H, W)``; one that the modality lacks is None.

    An ImageError says which is missing, truncated, or of another size than its partner or its annotations.
    """
    images: dict[Side, np.ndarray] = {}
    for side in SIDES[modality]:
        path = frame.visible if side == "visible" else frame.lwir
        if path is None:
            raise ImageError(f"{frame.name}: has no {side} image")
        size = frame.annotations.size
        images[side] = read_image(path, colour=side == "visible", reading=frame.reading, size=size, note=frame.note)
        if images[side].shape[:2] != size:
            (height, width), (should_height, should_width) = images[side].shape[:2], size
            raise ImageError(f"{path}: {width}x{height} pixels, but annotated for {should_width}x{should_height}")
    return images.get("visible"), images.get("lwir")


def doubts_of(frames: Sequence[Frame]) -> dict[str, str]:
    """Doubts about read frames, see :func:`data_kaist.images.doubts`."""
    notes = [([file for file in (f.visible, f.lwir) if file], f.note) for f in frames if f.note is not None]
    return doubts(notes, frames[0].reading) if frames else {}


def fingerprint(frames: Sequence[Frame]) -> str:
    """SHA-256 of names, boxes, labels, flags and a time of day that is not the name's; equal for equal objects."""
    digest = hashlib.sha256()
    for frame in frames:
        a = frame.annotations
        when = "" if a.daytime == daytime_of(frame.name) else a.daytime
        digest.update(f"{frame.name} {a.size} {','.join(map(str, a.labels))}{when}\n".encode())
        for array in (a.boxes_xyxy, a.ignore, a.occlusion, a.height):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class DetectionDataset(Dataset[Sample]):
    """Frames, read and transformed.

    A key is an index, or ``(epoch, index)`` from :class:`EpochSampler`. Random transforms depend on (seed, epoch,
    index) alone, not on workers or reading order.

    Attributes:
        frames: the given frames without skipped ones.
        skipped: (name, reason) of unreadable frames, with ``on_bad_frame="skip"``.
        without_people: number of frames left out before, because nobody in them counts.
        cache: decoded frames, None without.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        modality: Modality,
        transform: Transform,
        *,
        seed: int = 0,
        on_bad_frame: Literal["stop", "skip"] = "stop",
        min_height: float = 12,
        cache: Literal["none", "memory"] = "none",
        processes: int = 1,
        classes: Classes = PEOPLE,
    ) -> None:
        """Data set of ``frames``, read as ``modality`` and transformed.

        Args:
            frames: of :meth:`data_kaist.layouts.DataSource.frames`.
            modality: images to read.
            transform: must end with a resize to one size, if samples are to be collated.
            seed: of the random transforms.
            on_bad_frame: ``skip`` reads each frame once and drops unreadable ones; ``stop`` raises at the first met.
            min_height: see :func:`data_kaist.annotations.training_ignore`.
            cache: ``memory`` keeps decoded frames (:mod:`data_kaist.cache`).
            processes: of the run on this machine, with a cache each.
            classes: labels of each class.
        """
        if modality not in SIDES:
            raise ImageError(f"unknown modality {modality!r}; it should be one of {', '.join(SIDES)}")
        self.frames = list(frames)
        self.modality = modality
        self.transform = transform
        self.seed = seed
        self.min_height = min_height
        self.classes = classes
        self.skipped: Skipped = []
        self.without_people = 0
        if on_bad_frame == "skip":
            self.scan()
        self.cache = FrameCache(self.frames, modality, processes) if cache == "memory" else None

    @property
    def annotations(self) -> list[Annotations]:
        """Annotations of each frame, in order."""
        return [frame.annotations for frame in self.frames]

    def __str__(self) -> str:
        times = Counter(frame.annotations.daytime for frame in self.frames)
        known = f" ({times['day']:,} by day, {times['night']:,} by night)" if times["day"] or times["night"] else ""
        left_out = f"; {self.without_people:,} in which nobody counts are left out" if self.without_people else ""
        return f"{len(self.frames):,} frames{known}{left_out}"

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        # by place: bad frames that are left out change nothing for others
        return self.transform(self._read(index), np.random.default_rng((self.seed, epoch, self.frames[index].place)))

    def _read(self, index: int) -> Sample:
        frame = self.frames[index]
        visible, lwir = self._images(index)
        annotations = frame.annotations
        return Sample(
            visible=visible,
            lwir=lwir,
            boxes_xyxy=annotations.boxes_xyxy,
            labels=np.maximum(self.classes.indices(annotations.labels), 1),  # 0 would be padding
            ignore=training_ignore(annotations, self.min_height, self.classes),
            original_size=annotations.size,
            index=index,
            name=frame.name,
            daytime=annotations.daytime,
            another=lambda rng: self._read(int(rng.integers(len(self)))),
            earlier=lambda places: self._read(self.earlier(index, places)),
        )

    def earlier(self, index: int, places: int) -> int:
        """Index of the frame ``places`` earlier, or of its video's first. A video is one folder and one size."""

        def video(i: int) -> tuple[Path, tuple[int, int]]:
            frame = self.frames[i]
            return Path(spelling(frame.name) or frame.name).parent, frame.annotations.size

        least = max(index - places, 0)
        while index > least and video(index - 1) == video(index):
            index -= 1
        return index

    def _images(self, index: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The frame's images, not to be written to."""
        if self.cache is None:
            return read_pair(self.frames[index], self.modality)
        images = self.cache.get(index)
        if images is None:
            images = read_pair(self.frames[index], self.modality)
            self.cache.put(index, images)
        return images

    def scan(self) -> Skipped:
        """Decode every frame and drop those that cannot be read. Returns what was dropped."""

        def problem(frame: Frame) -> str | None:
            try:
                read_pair(frame, self.modality)
            except ImageError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            problems = list(pool.map(problem, self.frames))
        bad = [(frame.name, reason) for frame, reason in zip(self.frames, problems, strict=True) if reason]
        if bad and len(bad) == len(self.frames):
            raise SplitError(f"none of the {len(bad):,} frames can be read; the first: {bad[0][1]}")
        self.frames = [frame for frame, reason in zip(self.frames, problems, strict=True) if not reason]
        self.skipped += bad
        return bad


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(epoch, index)``; batches of several processes equal those of one.

    Processes take turns, one batch each. A round of training has the images of one process's batch, and evaluation the
    batches of one process.

    Args:
        length: of the data set.
        batch_size: of each process.
        train: shuffle, and drop an incomplete last round. Otherwise all in order; processes without a batch in the last
            round repeat one from the front.
        seed: of the order.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(
        self, length: int, batch_size: int, *, train: bool, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.train = train
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(map(len, self._batches(np.arange(self.length))))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.length)
        if self.train:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter([(self.epoch, int(place)) for batch in self._batches(order) for place in batch])

    def _batches(self, order: np.ndarray) -> list[np.ndarray]:
        """Batches of this process."""
        batches = [order[start : start + self.batch_size] for start in range(0, self.length, self.batch_size)]
        if self.train:
            batches = batches[: self.length // (self.batch_size * self.world_size) * self.world_size]
        rounds = -(-len(batches) // self.world_size)
        return [batches[i % len(batches)] for i in range(self.rank, rounds * self.world_size, self.world_size)]


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples of one size and modality into a batch. Objects are padded."""
    sizes = {sample.size for sample in samples}
    if len(sizes) != 1 or len({(s.visible is None, s.lwir is None) for s in samples}) != 1:
        raise ValueError(f"samples of several sizes or modalities cannot be one batch (sizes {sorted(sizes)})")
    height, width = samples[0].size
    colours = 3 if samples[0].visible is not None else 0
    channels = colours + (samples[0].lwir is not None)
    images = torch.empty((len(samples), height, width, channels), dtype=torch.uint8)
    most = max(1, *(len(sample.labels) for sample in samples))
    targets = Targets(
        boxes_xyxy=torch.zeros((len(samples), most, 4)),
        labels=torch.zeros((len(samples), most), dtype=torch.int64),
        ignore=torch.zeros((len(samples), most), dtype=torch.bool),
        present=(present := torch.ones((len(samples), most, 2), dtype=torch.bool)),
    )
    for i, sample in enumerate(samples):
        pixels, n = images[i].numpy(), len(sample.labels)
        if sample.visible is not None:
            pixels[..., :3] = sample.visible
        if sample.lwir is not None:
            pixels[..., colours] = sample.lwir
        targets.boxes_xyxy[i, :n] = torch.from_numpy(sample.boxes_xyxy)
        targets.labels[i, :n] = torch.from_numpy(sample.labels)
        targets.ignore[i, :n] = torch.from_numpy(sample.ignore)
        present[i, :n] = torch.from_numpy(sample.in_sides)
    return Batch(
        images=images.permute(0, 3, 1, 2),  # NHWC memory seen as NCHW: channels_last without a copy
        targets=targets,
        original_sizes=torch.tensor([sample.original_size for sample in samples], dtype=torch.int64),
        content_sizes=torch.tensor([sample.content_size or sample.size for sample in samples], dtype=torch.int64),
        daytime=torch.tensor([{"day": 1, "night": 0, None: -1}[sample.daytime] for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        names=[sample.name for sample in samples],
    )
