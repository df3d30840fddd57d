"""A whole data set in KAIST's layout, reproducible from its seed."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from data_kaist.errors import Failure
from data_kaist.synthetic.render import Backdrop, Box, Noise, expose, make_backdrop, open_view, paint_figures
from data_kaist.synthetic.scene import EMPTY_SHARE, plan_frame

VERSION = 2
JPEG_QUALITY = 90
MARKER = "README.txt"
UNFINISHED = "README.unfinished.txt"
MAX_FRAMES = 100_000
SIDES = (96, 4096)

# One turn of the wheel is 50 frames: 70 % training (validation among it) and 30 % test, 60 % day and 40 % night.
SHARES = {"train-day": 16, "train-night": 14, "test-day": 9, "test-night": 6, "validation": 5}
SETS = {"train-day": (0, 1, 2), "train-night": (3, 4, 5), "test-day": (6, 7, 8), "test-night": (9, 10, 11)}
VALIDATION_SET, VALIDATION_VIDEO = 2, 1
VALIDATION_NUMBERS = tuple(range(121, 190, 2))
# Numbers 19, 39, 59 ... obey test-all-20 and, being odd, train-all-02.
NUMBER_STEP = 20
FRAMES_A_VIDEO = 40
FRAMES_A_BACKDROP = 10
FRAMES_A_TASK = 40
ATTEMPTS = 25


class SyntheticRequestError(Failure, ValueError):
    """A request that cannot be met, in one sentence for the user."""


@dataclass(frozen=True, order=True)
class FrameId:
    """Where a frame stands in KAIST's numbering."""

    set_number: int
    video: int
    number: int

    @property
    def name(self) -> str:
        """For example ``set00/V000/I00019``."""
        return f"set{self.set_number:02d}/V{self.video:03d}/I{self.number:05d}"

    @property
    def is_day(self) -> bool:
        return self.set_number in (0, 1, 2, 6, 7, 8)

    @property
    def is_validation(self) -> bool:
        return (self.set_number, self.video) == (VALIDATION_SET, VALIDATION_VIDEO)

    @property
    def stretch(self) -> tuple[int, int, int]:
        """Frames with the same value share one background."""
        step, first = (2, VALIDATION_NUMBERS[0]) if self.is_validation else (NUMBER_STEP, NUMBER_STEP - 1)
        frames = 7 if self.is_validation else FRAMES_A_BACKDROP
        return self.set_number, self.video, (self.number - first) // step // frames


@dataclass(frozen=True)
class Report:
    """What :func:`write_dataset` did: frames (pairs) written, seconds it took; 0 frames if all was there already."""

    frames: int
    seconds: float


def frame_ids(frames: int) -> list[FrameId]:
    """The first ``frames`` frames of the numbering, sorted; those of a smaller number are always among them."""
    turn = sorted((k / share, order, cell) for order, (cell, share) in enumerate(SHARES.items()) for k in range(share))
    counts = dict.fromkeys(SHARES, 0)
    found = []
    for k in range(frames):
        cell = turn[k % len(turn)][2]
        if cell == "validation" and counts[cell] == len(VALIDATION_NUMBERS):
            cell = "train-day"
        place, counts[cell] = counts[cell], counts[cell] + 1
        if cell == "validation":
            found.append(FrameId(VALIDATION_SET, VALIDATION_VIDEO, VALIDATION_NUMBERS[place]))
            continue
        turn_of_video, position = divmod(place, FRAMES_A_VIDEO)
        video, which = divmod(turn_of_video, 3)
        set_number = SETS[cell][which]
        if set_number == VALIDATION_SET and video >= VALIDATION_VIDEO:
            video += 1
        found.append(FrameId(set_number, video, NUMBER_STEP * position + NUMBER_STEP - 1))
    return sorted(found)


def write_dataset(
    out: Path | str,
    frames: int,
    size: tuple[int, int],
    seed: int,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Write ``frames`` pairs and their annotations below ``out``; see ``ssd-effnet synthesize``.

    The files depend on ``size`` and ``seed`` only, byte for byte: not on ``jobs``, and a smaller ``frames`` yields a
    part of the same files. ``README.txt`` is written last; without it the data set is not whole and is begun anew.

    Args:
        out: folder to write to; new, empty, left by an interrupted run, or already holding the same request.
        frames: number of pairs, 1 to 100,000; from 5 on every split has frames.
        size: (height, width) in pixels.
        seed: 0 or more.
        jobs: processes.
        progress: called with (frames written, frames in all) now and then.

    Raises:
        RequestError: if the request is not possible or ``out`` holds something else.
        OSError: if a file cannot be written.
    """
    out = Path(out)
    _check(frames, size, seed, jobs)
    readme = describe(frames, size, seed)
    if not _make_room(out, readme):
        return Report(0, 0.0)
    start = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    (out / UNFINISHED).write_text(readme, encoding="utf-8")
    tasks = list(_tasks(frame_ids(frames)))
    written = 0
    if jobs == 1:
        for task in tasks:
            written += write_frames(out, task, size, seed)
            if progress:
                progress(written, frames)
    else:
        # A fresh interpreter a worker: forking would copy locks that threads of the caller may hold.
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(write_frames, out, task, size, seed) for task in tasks]
            try:
                for future in as_completed(futures):
                    written += future.result()
                    if progress:
                        progress(written, frames)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    (out / UNFINISHED).replace(out / MARKER)
    return Report(written, time.perf_counter() - start)


def describe(frames: int, size: tuple[int, int], seed: int) -> str:
    """The text of ``README.txt``; equal texts mean equal data sets."""
    return (
        "A synthetic twin of the KAIST multispectral pedestrian data set: painted street scenes, no photographs.\n"
        "Layout, names, annotations and split rules are KAIST's; numbers measured on it say nothing about KAIST.\n"
        f"frames: {frames}\nsize (height x width): {size[0]}x{size[1]}\nseed: {seed}\nversion: {VERSION}\n"
        "Made by scripts/make_synthetic.py; this file is written last, so without it the data set is incomplete.\n"
    )


def _check(frames: int, size: tuple[int, int], seed: int, jobs: int) -> None:
    if not 0 < frames <= MAX_FRAMES:
        raise SyntheticRequestError(f"frames must be between 1 and {MAX_FRAMES}, not {frames}.")
    if not all(SIDES[0] <= side <= SIDES[1] for side in size):
        raise SyntheticRequestError(
            f"both sides of the size must be {SIDES[0]} to {SIDES[1]} pixels, not {size[0]}x{size[1]}."
        )
    if seed < 0:
        raise SyntheticRequestError(f"the seed must be 0 or more, not {seed}.")
    if jobs < 1:
        raise SyntheticRequestError(f"jobs must be 1 or more, not {jobs}.")


def _make_room(out: Path, readme: str) -> bool:
    """Clear what an interrupted run left; False if the very same data set is there already."""
    if out.exists() and not out.is_dir():
        raise SyntheticRequestError(f"{out} is a file, not a folder.")
    marker, unfinished = out / MARKER, out / UNFINISHED
    if marker.exists():
        if marker.read_text(encoding="utf-8", errors="replace") == readme:
            return False
        raise SyntheticRequestError(f"{out} already holds another data set (see {marker}); choose another folder.")
    if unfinished.exists():
        for name in ("images", "annotations-xml"):
            if (out / name).exists():
                shutil.rmtree(out / name)
    elif out.exists() and any(out.iterdir()):
        raise SyntheticRequestError(f"{out} is not empty and was not made by this command; choose another folder.")
    return True


def _tasks(ids: list[FrameId]) -> Iterator[list[FrameId]]:
    """Portions of work of whole stretches, so that each background is painted once."""
    portion: list[FrameId] = []
    for _, stretch in groupby(ids, key=lambda frame: frame.stretch):
        portion.extend(stretch)
        if len(portion) >= FRAMES_A_TASK:
            yield portion
            portion = []
    if portion:
        yield portion


def write_frames(out: Path, ids: list[FrameId], size: tuple[int, int], seed: int) -> int:
    """Paint and write these frames (sorted); returns how many."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        noise = Noise(np.random.default_rng((seed, 1_000)), size)
        for stretch, members in groupby(ids, key=lambda frame: frame.stretch):
            first, *rest = members
            backdrop = make_backdrop(np.random.default_rng((seed, 2_000, *stretch)), size, first.is_day)
            grain = noise.scaled(backdrop.look.noise)
            for frame in (first, *rest):
                visible, lwir, boxes = render_frame(frame, backdrop, noise, grain, size, seed)
                _write_pair(out, frame, visible, lwir)
                path = out / "annotations-xml" / f"{frame.name}.xml"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(annotation_xml(frame, boxes, size), encoding="utf-8")
    finally:
        cv2.setNumThreads(threads)
    return len(ids)


def render_frame(
    frame: FrameId, backdrop: Backdrop, noise: Noise, grain: np.ndarray, size: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray, list[Box]]:
    """One frame's pictures (visible BGR ``(H, W, 3)``, LWIR ``(H, W)``, both uint8) and boxes."""
    key = (seed, 3_000, frame.set_number, frame.video, frame.number)
    rng = np.random.default_rng(key)
    empty = rng.random() < EMPTY_SHARE and not frame.is_validation
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((*key, attempt))
        view = open_view(backdrop, size, rng)
        plan = plan_frame(rng, view.look, view.camera, view.depth, backdrop.obstacles, empty=empty)
        boxes = paint_figures(view, plan, rng)
        # Whoever is meant to be seen may have ended up wholly behind a car.
        clear = [box for box in boxes if box.label == "person" and box.occlusion < 2]
        if empty or (clear if frame.is_validation else boxes):
            break
    visible, lwir = expose(view, noise, grain, size, rng)
    return visible, lwir, boxes


def _write_pair(out: Path, frame: FrameId, visible: np.ndarray, lwir: np.ndarray) -> None:
    """Write both JPEGs; bytes go through Python so that a full disk raises instead of being a return value."""
    folder, number = frame.name.rsplit("/", 1)
    for modality, image in (("visible", visible), ("lwir", lwir)):
        path = out / "images" / folder / modality / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        path.write_bytes(encoded.tobytes())


def annotation_xml(frame: FrameId, boxes: list[Box], size: tuple[int, int]) -> str:
    """The annotation file of a frame, as KAIST writes it."""
    root = ElementTree.Element("annotation")

    def put(parent: ElementTree.Element, tag: str, text: str | int | None = None) -> ElementTree.Element:
        child = ElementTree.SubElement(parent, tag)
        child.text = None if text is None else str(text)
        return child

    put(root, "folder", "KAIST Multispectral Ped Benchmark")
    put(root, "filename", frame.name)
    source = put(root, "source")
    put(source, "database", "synthetic twin of KAIST pedestrian")
    put(source, "annotation", "synthetic twin of KAIST pedestrian")
    put(source, "image", "painted")
    put(source, "url")
    shape = put(root, "size")
    for tag, value in (("width", size[1]), ("height", size[0]), ("depth", 4)):
        put(shape, tag, value)
    put(root, "segmented", 0)
    for box in boxes:
        item = put(root, "object")
        put(item, "name", box.label)
        bounds = put(item, "bndbox")
        for tag, value in (("x", box.x), ("y", box.y), ("w", box.w), ("h", box.h)):
            put(bounds, tag, value)
        put(item, "pose", "unknown")
        for tag, value in (("truncated", 0), ("difficult", 0), ("occlusion", box.occlusion)):
            put(item, tag, value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
