"""Detections in files: three forms, read into a :class:`~data_kaist.structures.DetectionTable`; two of them written.

- KAIST text, ``image_number,x,y,w,h,score`` per line, image numbers from 1;
- COCO results, a JSON list of ``{"image_id", "category_id", "bbox": [x, y, w, h], "score"}``, image ids from 0 or those
  of the ground truth;
- the KAIST devkit's, a folder of ``setXX_VYYY_IZZZZZ.txt`` with ``person x1 y1 x2 y2 score`` per line, coordinates one
  less than those of the ground truth (the devkit adds 1).

Numbers are written so that reading them gives the score back exactly and coordinates to ten digits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_kaist.classes import PERSON, label_of
from data_kaist.errors import DetectionFileError, warn_doubt
from data_kaist.files import (
    MOST_PIXELS,
    as_whole,
    finite,
    has_no_area,
    is_finite,
    is_possible,
    is_whole,
    json_of,
    text_of,
    write_whole,
)
from data_kaist.structures import DetectionTable, xywh_rows

Form = Literal["kaist", "coco", "devkit"]

_COLUMNS = ("image_number", "x", "y", "w", "h", "score")


def form_of(path: Path | str) -> Form:
    """The form that a path has: a folder ``devkit``, ``.json`` COCO, any other file KAIST text."""
    path = Path(path)
    if path.is_dir():
        return "devkit"
    return "coco" if path.suffix.lower() == ".json" else "kaist"


def read_detections(
    path: Path | str,
    n_images: int,
    *,
    names: Sequence[str] | None = None,
    image_ids: Sequence[int] | None = None,
    person_categories: Collection[int] | None = None,
) -> DetectionTable:
    """Read detections in whichever form they are.

    Boxes of width or height 0 are left out, and a :class:`~data_kaist.errors.Doubt` counts them; another says that no
    entry is of a person.

    Args:
        path: a text file, a ``.json`` file or a folder.
        n_images: number of images in the ground truth.
        names: frame names in order; needed for the devkit's form only.
        image_ids: the ground truth's image ids in order, for COCO results; without them ids are places from 0.
        person_categories: COCO results of other categories are left out; None takes every category.

    Raises:
        DetectionFileError: one sentence that names the file and the line or entry, and says what is wrong with it.
    """
    path = Path(path)
    if not path.exists():
        raise DetectionFileError(f"{path}: there is no such file or folder")
    form = form_of(path)
    if form == "coco":
        return read_coco_results(path, n_images, image_ids=image_ids, person_categories=person_categories)
    if form == "kaist":
        return read_kaist(path, n_images)
    if names is None:
        raise DetectionFileError(f"{path}: a folder of the devkit's form needs the names of the frames to be read")
    return read_devkit(path, names)


# ---------------------------------------------------------------------------------------------------- KAIST text


def read_kaist(path: Path | str, n_images: int) -> DetectionTable:
    """KAIST text; see :func:`read_detections`. A file without lines is a detector that found nothing."""
    path = Path(path)
    text = text_of(path, DetectionFileError)
    if not text.strip():
        return DetectionTable.empty()
    try:
        rows = np.loadtxt(text.splitlines(), delimiter=",", ndmin=2, comments=None)
    except ValueError:
        rows = np.zeros((0, 0))
    if rows.shape[1] != len(_COLUMNS) or _is_bad(rows, n_images):
        rows = np.array([_kaist_line(line, n_images, where) for line, where in _lines(path, text)])
    table = _table(rows[:, 0].astype(np.int64) - 1, rows[:, 1:5], rows[:, 5])
    return table.rows(_has_area(path, table))


def _is_bad(rows: np.ndarray, n_images: int) -> bool:
    number, xy, wh = rows[:, 0], rows[:, 1:3], rows[:, 3:5]
    return not (
        np.isfinite(rows).all()
        and (np.abs(rows[:, 1:5]) <= MOST_PIXELS).all()
        and (xy + wh > xy).all()
        and (number == np.floor(number)).all()
        and (number >= 1).all()
        and (number <= n_images).all()
    )


def _kaist_line(line: str, n_images: int, where: str) -> list[float]:
    """The six numbers of a line, or the sentence that says why it has not got them."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != len(_COLUMNS):
        yolo = len(cells) == 1 and len(line.split()) in (5, 6)
        hint = (
            " (commas separate them; YOLO's class, centre, width and height in shares of the image name no image)"
            * yolo
        )
        raise DetectionFileError(f"{where} has {len(cells)} columns, not the six of {','.join(_COLUMNS)}{hint}")
    values = [finite(cell, column, where, DetectionFileError) for cell, column in zip(cells, _COLUMNS, strict=True)]
    number = values[0]
    if number == 0:
        raise DetectionFileError(f"{where} has image number 0, but image numbers are 1-based: the first image is 1")
    if number != math.floor(number) or number < 0:
        raise DetectionFileError(f"{where} has image number {cells[0]}, which should be a whole number from 1")
    if number > n_images:
        raise DetectionFileError(f"{where} has image number {cells[0]}, but there are only {n_images} images")
    _check_box(values[1:5], where)
    return values


def write_kaist(path: Path | str, table: DetectionTable) -> None:
    """KAIST text, rows in the table's order; it knows one class."""
    _check_writable(table)
    rows = zip(table.image_index.tolist(), xywh_rows(table.boxes_xyxy), table.scores.tolist(), strict=True)
    write_whole(path, "".join(f"{i + 1},{x:.10g},{y:.10g},{w:.10g},{h:.10g},{s!r}\n" for i, (x, y, w, h), s in rows))


# -------------------------------------------------------------------------------------------------- COCO results


def read_coco_results(
    path: Path | str,
    n_images: int,
    *,
    image_ids: Sequence[int] | None = None,
    person_categories: Collection[int] | None = None,
) -> DetectionTable:
    """COCO results; see :func:`read_detections`."""
    table, category = read_categories(path, n_images, image_ids=image_ids, needed=person_categories is not None)
    if person_categories is None:
        return table
    if len(table) and not np.isin(category, list(person_categories)).any():
        found = ", ".join(
            f"{n:,} are of category {c}" for c, n in zip(*np.unique(category, return_counts=True), strict=True)
        )
        ids = ", ".join(map(str, sorted(person_categories)))
        warn_doubt(f"{path}: no entry is of the ground truth's person category {ids}, but {found}")
    return table.rows(np.isin(category, list(person_categories)))


def read_categories(
    path: Path | str, n_images: int, *, image_ids: Sequence[int] | None = None, needed: bool = True
) -> tuple[DetectionTable, np.ndarray]:
    """COCO results of every category; see :func:`read_detections`.

    Returns:
        The table, and int64 ``(d,)``: the category of each detection; where that is not ``needed``, 0 for none.
    """
    path = Path(path)
    entries = json_of(text_of(path, DetectionFileError), str(path), DetectionFileError)
    if not isinstance(entries, list):
        raise DetectionFileError(f"{path}: should hold a list of results, not a {type(entries).__name__}")
    place = {id_: i for i, id_ in enumerate(range(n_images) if image_ids is None else image_ids)}
    rows = [_coco_entry(entry, f"{path}, entry {i + 1}", place, needed=needed) for i, entry in enumerate(entries)]
    odd = [entry["image_id"] for entry in entries if not is_whole(entry["image_id"])]
    if odd:
        warn_doubt(f"{path}: {len(odd):,} image ids are written as {odd[0]!r} and the like; they are read as numbers")
    values = np.array([(*box, score) for _, _, box, score in rows], np.float64).reshape(-1, 5)
    category = np.array([category for _, category, _, _ in rows], np.int64)
    table = _table(np.array([image for image, *_ in rows], np.int64), values[:, :4], values[:, 4])
    has_area = _has_area(path, table)
    return table.rows(has_area), category[has_area]


def _coco_entry(entry: Any, where: str, place: dict[int, int], *, needed: bool) -> tuple[int, int, list[float], float]:
    """Place of the image, category id, box xywh and score of an entry."""
    if not isinstance(entry, dict):
        raise DetectionFileError(f"{where} should be an object with image_id, category_id, bbox and score")
    for key in ("image_id", "category_id", "bbox", "score"):
        if (needed or key != "category_id") and key not in entry:
            raise DetectionFileError(f"{where} has no {key!r}")
    id_, category = as_whole(entry["image_id"]), as_whole(entry.get("category_id", 0))
    box, score = entry["bbox"], entry["score"]
    if not is_whole(id_):
        raise DetectionFileError(f"{where} has image_id {id_!r}, which should be a whole number")
    if id_ not in place:
        raise DetectionFileError(f"{where} has image_id {id_}, which the {len(place)} images do not have")
    if not is_whole(category):
        raise DetectionFileError(f"{where} has category_id {category!r}, which should be a whole number")
    if not isinstance(box, list) or len(box) != 4:
        raise DetectionFileError(f"{where} has bbox {box!r}, which should be four numbers x, y, w, h")
    for value, column in zip((*box, score), ("x", "y", "w", "h", "score"), strict=True):
        if not is_finite(value):
            raise DetectionFileError(f"{where} has {column} {value!r}, which should be a finite number")
    _check_box(box, where)
    return place[id_], category, box, score


def write_coco_results(
    path: Path | str,
    table: DetectionTable,
    *,
    image_ids: Sequence[int] | None = None,
    category_ids: Sequence[int] | None = None,
) -> None:
    """COCO results, rows in the table's order; ids are places from 0 and labels unless the ground truth's are given."""
    _check_writable(table)
    entries = [
        {
            "image_id": i if image_ids is None else int(image_ids[i]),
            "category_id": label if category_ids is None else int(category_ids[label - 1]),
            "bbox": [float(f"{value:.10g}") for value in box],
            "score": score,
        }
        for i, label, box, score in zip(
            table.image_index.tolist(),
            table.labels.tolist(),
            xywh_rows(table.boxes_xyxy),
            table.scores.tolist(),
            strict=True,
        )
    ]
    write_whole(path, json.dumps(entries) + "\n")


# ------------------------------------------------------------------------------------------------- devkit folder


def read_devkit(path: Path | str, names: Sequence[str]) -> DetectionTable:
    """The devkit's folder; see :func:`read_detections`. A frame without a file is one where nothing was found."""
    folder = Path(path)
    place = {name.replace("/", "_"): i for i, name in enumerate(names)}
    index, rows = [], []
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise DetectionFileError(f"{folder}: holds no setXX_VYYY_IZZZZZ.txt")
    for file in files:
        if file.stem not in place:
            raise DetectionFileError(f"{file}: is named after no frame of the ground truth's {len(place)}")
        for line, where in _lines(file, text_of(file, DetectionFileError)):
            rows.append(_devkit_line(line, where))
            index.append(place[file.stem])
    values = np.array(rows, np.float64).reshape(-1, 5)
    table = DetectionTable(np.array(index, np.int64), values[:, :4] + 1, values[:, 4])
    return table.rows(_has_area(folder, table))


def _devkit_line(line: str, where: str) -> list[float]:
    cells = line.split()
    if len(cells) != 6:
        raise DetectionFileError(f"{where} has {len(cells)} columns, not the six of 'person x1 y1 x2 y2 score'")
    if label_of(cells[0]) != PERSON:
        raise DetectionFileError(f"{where} detects {cells[0]!r}, but only 'person' is scored")
    columns = ("x1", "y1", "x2", "y2", "score")
    values = [finite(cell, column, where, DetectionFileError) for cell, column in zip(cells[1:], columns, strict=True)]
    x1, y1, x2, y2 = values[:4]
    _check_box([x1, y1, x2 - x1, y2 - y1], where)
    return values


# ----------------------------------------------------------------------------------------------------- what they share


def _lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, each with where it stands."""
    for i, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield line, f"{path}, line {i}:"


def _check_box(xywh: Sequence[float], where: str) -> None:
    x, y, w, h = xywh
    if w < 0 or h < 0:
        raise DetectionFileError(f"{where} has a box of width {w:g} and height {h:g}; both should be above 0")
    if not has_no_area(xywh) and not is_possible(x, y, w, h):
        raise DetectionFileError(f"{where} has a box that cannot be (x {x:g}, y {y:g}, width {w:g}, height {h:g})")


def _check_writable(table: DetectionTable) -> None:
    """Boxes without area and numbers that are not finite are refused before they are written."""
    sizes = table.boxes_xyxy[:, 2:] - table.boxes_xyxy[:, :2]
    good = np.isfinite(table.boxes_xyxy).all(axis=1) & np.isfinite(table.scores) & (sizes > 0).all(axis=1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise DetectionFileError(
            f"detection {row} on image {table.image_index[row]} cannot be written: "
            f"box {table.boxes_xyxy[row].tolist()}, score {table.scores[row]}"
        )


def _table(index: np.ndarray, boxes_xywh: np.ndarray, scores: np.ndarray) -> DetectionTable:
    boxes = boxes_xywh.copy()
    boxes[:, 2:] += boxes[:, :2]
    return DetectionTable(index, boxes, scores.copy())


def _has_area(path: Path, table: DetectionTable) -> np.ndarray:
    """bool ``(d,)``; the boxes that have none are counted in a doubt."""
    has_area = np.asarray((table.boxes_xyxy[:, 2:] > table.boxes_xyxy[:, :2]).all(axis=1))
    if left_out := int((~has_area).sum()):
        warn_doubt(f"{path}: {left_out:,} boxes of width or height 0 are left out")
    return has_area
