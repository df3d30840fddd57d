"""Writes a whole data set in KAIST's layout, reproducible from its seed."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock, Timeout

from data_kaist.annotations import BBGT_HEADER
from data_kaist.errors import RequestError
from data_kaist.layouts import UNFINISHED
from data_kaist.splits import FrameName
from data_kaist.synthetic.conditions import Conditions
from data_kaist.synthetic.render import Backdrop, Box, Noise, expose, make_backdrop, open_view, paint_figures
from data_kaist.synthetic.scene import EMPTY_SHARE, plan_frame

VERSION = 2
PAIRED = "annotations-paired"
MARKER = "README.txt"
_LOCK = ".lock"
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

_XML = """<annotation>
  <folder>KAIST Multispectral Ped Benchmark</folder>
  <filename>{name}</filename>
  <source>
    <database>synthetic twin of KAIST pedestrian</database>
    <annotation>synthetic twin of KAIST pedestrian</annotation>
    <image>painted</image>
    <url />
  </source>
  <size>
    <width>{width}</width>
    <height>{height}</height>
    <depth>4</depth>
  </size>
  <segmented>0</segmented>
{objects}</annotation>
"""

_OBJECT = """  <object>
    <name>{0.label}</name>
    <bndbox>
      <x>{0.x}</x>
      <y>{0.y}</y>
      <w>{0.w}</w>
      <h>{0.h}</h>
    </bndbox>
    <pose>unknown</pose>
    <truncated>0</truncated>
    <difficult>0</difficult>
    <occlusion>{0.occlusion}</occlusion>
  </object>
"""


def is_validation(frame: FrameName) -> bool:
    """Whether a frame is of the twin's validation video."""
    return (frame.set, frame.video) == (VALIDATION_SET, VALIDATION_VIDEO)


def _stretch(frame: FrameName) -> tuple[int, int, int]:
    """Frames with the same value share one background."""
    step, first = (2, VALIDATION_NUMBERS[0]) if is_validation(frame) else (NUMBER_STEP, NUMBER_STEP - 1)
    frames = 7 if is_validation(frame) else FRAMES_A_BACKDROP
    return frame.set, frame.video, (frame.number - first) // step // frames


def frame_ids(frames: int) -> list[FrameName]:
    """The first ``frames`` frames of the numbering, sorted. Those of a smaller number are a subset."""
    turn = sorted((k / share, order, cell) for order, (cell, share) in enumerate(SHARES.items()) for k in range(share))
    counts = dict.fromkeys(SHARES, 0)
    found = []
    for k in range(frames):
        cell = turn[k % len(turn)][2]
        if cell == "validation" and counts[cell] == len(VALIDATION_NUMBERS):
            cell = "train-day"
        place, counts[cell] = counts[cell], counts[cell] + 1
        if cell == "validation":
            found.append(FrameName(VALIDATION_SET, VALIDATION_VIDEO, VALIDATION_NUMBERS[place]))
            continue
        turn_of_video, position = divmod(place, FRAMES_A_VIDEO)
        video, which = divmod(turn_of_video, 3)
        set_number = SETS[cell][which]
        if set_number == VALIDATION_SET and video >= VALIDATION_VIDEO:
            video += 1
        found.append(FrameName(set_number, video, NUMBER_STEP * position + NUMBER_STEP - 1))
    return sorted(found)


def write_dataset(
    out: Path | str,
    frames: int,
    size: tuple[int, int],
    seed: int,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
    wide: bool = False,
) -> int:
    """Write ``frames`` pairs and their annotations below ``out``; see ``ssd-effnet synthesize``.

    The files depend on ``size`` and ``seed`` only, byte for byte: not on ``jobs``, and a smaller ``frames`` yields a
    part of the same files. ``README.txt`` is written last; without it the data set is incomplete and begun anew.

    Args:
        out: folder to write to; new, empty, left by an interrupted run, or already holding the same request.
        frames: number of pairs, 1 to 100,000; from 5 on every split has frames.
        size: (height, width) in pixels.
        seed: 0 or more.
        jobs: processes.
        progress: called with (frames written, frames in all) now and then.
        wide: vary light, weather, cameras, heat and people as far as
            :class:`~data_kaist.synthetic.conditions.Conditions` says, and write paired annotations too.

    Returns:
        Pairs written; 0 if all were there already.

    Raises:
        RequestError: if the request is not possible or ``out`` holds something else.
    """
    out = Path(out)
    readme = readme_of(frames, size, seed, wide)
    _check_request(frames, size, seed, jobs)
    if not _is_wanted(out, readme):
        return 0
    out.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(out / _LOCK).acquire(timeout=0)
    except Timeout:
        raise RequestError(f"{out}: another process is writing a data set there.") from None
    with held:
        if not _is_wanted(out, readme):  # another process has just written it
            return 0
        for name in ("images", "annotations-xml", PAIRED):
            shutil.rmtree(out / name, ignore_errors=True)
        (out / UNFINISHED).write_text(readme, encoding="utf-8")
        written = 0
        write = partial(write_frames, out, size=size, seed=seed, wide=wide)
        for done in _in_processes(jobs, write, list(_tasks(frame_ids(frames)))):
            written += done
            if progress:
                progress(written, frames)
        (out / UNFINISHED).replace(out / MARKER)
    return written


def _in_processes(jobs: int, write: Callable[[list[FrameName]], int], tasks: list[list[FrameName]]) -> Iterator[int]:
    if jobs == 1:
        yield from map(write, tasks)
        return
    # A fresh interpreter per worker: forking would copy locks that threads of the caller may hold.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from (future.result() for future in as_completed([pool.submit(write, task) for task in tasks]))
        finally:
            pool.shutdown(cancel_futures=True)


def readme_of(frames: int, size: tuple[int, int], seed: int, wide: bool = False) -> str:
    """The text of ``README.txt``; equal texts mean equal data sets."""
    return (
        "A synthetic twin of the KAIST multispectral pedestrian data set: painted street scenes, no photographs.\n"
        "Layout, names, annotations and split rules are KAIST's; numbers measured on it say nothing about KAIST.\n"
        f"frames: {frames}\nsize (height x width): {size[0]}x{size[1]}\nseed: {seed}\n"
        f"version: {VERSION}{', wide' if wide else ''}\n"
        "Made by scripts/make_synthetic.py; this file is written last, so without it the data set is incomplete.\n"
    )


def _check_request(frames: int, size: tuple[int, int], seed: int, jobs: int) -> None:
    low, high = SIDES
    for possible, sentence in (
        (0 < frames <= MAX_FRAMES, f"frames must be between 1 and {MAX_FRAMES}, not {frames}."),
        (
            low <= min(size) and max(size) <= high,
            f"both sides must be {low} to {high} pixels, not {size[0]}x{size[1]}.",
        ),
        (seed >= 0, f"the seed must be 0 or more, not {seed}."),
        (jobs >= 1, f"jobs must be 1 or more, not {jobs}."),
    ):
        if not possible:
            raise RequestError(sentence)


def _is_wanted(out: Path, readme: str) -> bool:
    """Whether the data set is to be written there; False if the same is there already."""
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file, not a folder.")
    marker = out / MARKER
    if marker.exists():
        if marker.read_text(encoding="utf-8", errors="replace") == readme:
            return False
        raise RequestError(f"{out} already holds another data set (see {marker}); choose another folder.")
    if out.exists() and not (out / UNFINISHED).exists() and {path.name for path in out.iterdir()} - {_LOCK}:
        raise RequestError(f"{out} is not empty and was not made by this command; choose another folder.")
    return True


def _tasks(ids: list[FrameName]) -> Iterator[list[FrameName]]:
    """Tasks of whole stretches, so that each background is painted once."""
    portion: list[FrameName] = []
    for _, stretch in groupby(ids, key=_stretch):
        portion.extend(stretch)
        if len(portion) >= FRAMES_A_TASK:
            yield portion
            portion = []
    if portion:
        yield portion


def write_frames(out: Path, ids: list[FrameName], size: tuple[int, int], seed: int, wide: bool = False) -> int:
    """Paint and write these frames (sorted); returns how many."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        noise = Noise(np.random.default_rng((seed, 1_000)), size)
        for stretch, members in groupby(ids, key=_stretch):
            first, *rest = members
            rng = np.random.default_rng((seed, 2_000, *stretch))
            backdrop = make_backdrop(rng, size, first.daytime == "day", wide)
            grain = noise.scaled(backdrop.look)
            for frame in (first, *rest):
                _write_frame(out, frame, backdrop.look, wide, *render_frame(frame, backdrop, grain, size, seed))
    finally:
        cv2.setNumThreads(threads)
    return len(ids)


def render_frame(
    frame: FrameName, backdrop: Backdrop, noise: tuple[np.ndarray, np.ndarray], size: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray, list[Box]]:
    """One frame's pictures and boxes. Visible BGR ``(H, W, 3)``, LWIR ``(H, W)``, both uint8."""
    key = (seed, 3_000, frame.set, frame.video, frame.number)
    rng = np.random.default_rng(key)
    empty = rng.random() < EMPTY_SHARE and not is_validation(frame)
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((*key, attempt))
        view = open_view(backdrop, size, rng)
        plan = plan_frame(rng, view.look, view.camera, view.depth, backdrop.obstacles, empty=empty)
        boxes = paint_figures(view, plan, rng)
        # Whoever is meant to be seen may have ended up wholly behind a car.
        clear = [box for box in boxes if box.label == "person" and box.occlusion < 2]
        if empty or (clear if is_validation(frame) else boxes):
            break
    return *expose(view, noise, rng), boxes


def _write_frame(
    out: Path, frame: FrameName, look: Conditions, wide: bool, visible: np.ndarray, lwir: np.ndarray, boxes: list[Box]
) -> None:
    """Write both JPEGs, the XML and paired annotations. Python writes the bytes, so that a full disk raises."""
    video, number = str(frame).rsplit("/", 1)
    objects = "".join(map(_OBJECT.format, boxes))
    xml = _XML.format(name=frame, width=visible.shape[1], height=visible.shape[0], objects=objects)
    files = {f"annotations-xml/{frame}.xml": xml.encode()}
    for side, image in (("visible", visible), ("lwir", lwir)):
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, round(look.quality)])[1]
        files[f"images/{video}/{side}/{number}.jpg"] = encoded.tobytes()
        if wide:
            files[f"{PAIRED}/{video}/{side}/{number}.txt"] = _bbgt(boxes, side).encode()
    for name, data in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _bbgt(boxes: list[Box], side: str) -> str:
    """Objects in one image of a pair, as bbGt text. Those not seen in the LWIR image are ignore regions there."""
    lines = [BBGT_HEADER]
    for box in boxes:
        seen = side == "visible" or box.lwir[2] > 0
        x, y, w, h = box.lwir if side == "lwir" and seen else (box.x, box.y, box.w, box.h)
        lines.append(f"{box.label} {x} {y} {w} {h} {box.occlusion} 0 0 0 0 {int(not seen)} 0")
    return "\n".join(lines) + "\n"
