"""Reads and writes files of detections in three formats.

- KAIST text, ``image_number,x,y,w,h,score`` per line, image numbers from 1;
- COCO results, a JSON list of ``{"image_id", "category_id", "bbox": [x, y, w, h], "score"}``, image ids from 0 or those
  of the ground truth;
- the KAIST devkit's, a folder of ``setXX_VYYY_IZZZZZ.txt`` with ``person x1 y1 x2 y2 score`` per line, coordinates one
  less than those of the ground truth (the devkit adds 1).

Scores are written exactly, coordinates with ten digits.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_kaist import files
from data_kaist.classes import PERSON, label_of
from data_kaist.errors import DetectionFileError, warn_doubt
from data_kaist.structures import DetectionTable, xywh_rows

Form = Literal["kaist", "coco", "devkit"]

Row = tuple[int, float, float, float, float, float]
"""Place of the image, x1, y1, x2, y2, score."""

_KAIST = ("image_number", "x", "y", "w", "h", "score")
_DEVKIT = ("x1", "y1", "x2", "y2", "score")


def form_of(path: Path | str) -> Form:
    """The form of detections that a path has. A folder is ``devkit``, ``.json`` COCO, any other file KAIST text."""
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
    """Read detections in any of the formats. An empty file means no detections.

    Boxes of width or height 0 are left out, and a :class:`~data_kaist.errors.Doubt` counts them; others say that no
    entry is of a person, or that categories are taken as one. A DetectionFileError names the file and line or entry.

    Args:
        path: a text file, a ``.json`` file or a folder.
        n_images: number of images in the ground truth.
        names: frame names in order; needed for the devkit's form only.
        image_ids: the ground truth's image ids in order, for COCO results; without them ids are places from 0.
        person_categories: COCO results of other categories are left out; None takes every category.
    """
    path = Path(path)
    if not path.exists():
        raise DetectionFileError(f"{path}: there is no such file or folder")
    form = form_of(path)
    if form == "kaist":
        return _table(path, list(_kaist_rows(path, n_images)))[0]
    if form == "devkit":
        if names is None:
            raise DetectionFileError(f"{path}: a folder of the devkit's form needs the names of the frames to be read")
        return _table(path, list(_devkit_rows(path, names)))[0]
    table, category = read_categories(path, n_images, image_ids=image_ids, needed=person_categories is not None)
    if person_categories is None:
        if len(several := np.unique(category)) > 1:
            warn_doubt(f"{path}: holds categories {', '.join(map(str, several))}; all are taken as {PERSON}")
        return table
    is_person = np.isin(category, list(person_categories))
    if len(table) and not is_person.any():
        counts = zip(*np.unique(category, return_counts=True), strict=True)
        found = ", ".join(f"{n:,} are of category {c}" for c, n in counts)
        ids = ", ".join(map(str, sorted(person_categories)))
        warn_doubt(f"{path}: no entry is of the ground truth's person category {ids}, but {found}")
    return table.rows(is_person)


def read_categories(
    path: Path | str, n_images: int, *, image_ids: Sequence[int] | None = None, needed: bool = True
) -> tuple[DetectionTable, np.ndarray]:
    """COCO results and their categories, int64 ``(d,)``. 0 for none, where that is not ``needed``."""
    path = Path(path)
    entries = files.json_of(files.text_of(path, DetectionFileError), str(path), DetectionFileError)
    if not isinstance(entries, list):
        raise DetectionFileError(f"{path}: should hold a list of results, not a {type(entries).__name__}")
    place = {id_: i for i, id_ in enumerate(range(n_images) if image_ids is None else image_ids)}
    read = [_coco_entry(entry, f"{path}, entry {i + 1}", place, needed=needed) for i, entry in enumerate(entries)]
    if odd := [entry["image_id"] for entry in entries if not files.is_whole(entry["image_id"])]:
        warn_doubt(f"{path}: {len(odd):,} image ids are written as {odd[0]!r} and the like; they are read as numbers")
    table, has_area = _table(path, [row for row, _ in read])
    return table, np.array([category for _, category in read], np.int64)[has_area]


def _kaist_rows(path: Path, n_images: int) -> Iterator[Row]:
    for line, where in _lines(path):
        number, x, y, w, h, score = _numbers(line.split(","), _KAIST, where)
        if number % 1 or number < 1:
            raise DetectionFileError(f"{where} has image number {number:g}, which should be a whole number from 1")
        if number > n_images:
            raise DetectionFileError(f"{where} has image number {number:g}, but there are only {n_images} images")
        _check_box((x, y, w, h), where)
        yield int(number) - 1, x, y, x + w, y + h, score


def _devkit_rows(folder: Path, names: Sequence[str]) -> Iterator[Row]:
    """Rows of a devkit folder; no file means no detections."""
    place = {name.replace("/", "_"): i for i, name in enumerate(names)}
    found = sorted(folder.glob("*.txt"))
    if not found:
        raise DetectionFileError(f"{folder}: holds no setXX_VYYY_IZZZZZ.txt")
    for file in found:
        if file.stem not in place:
            raise DetectionFileError(f"{file}: is named after no frame of the ground truth's {len(place)}")
        for line, where in _lines(file):
            label, *cells = line.split()
            if label_of(label) != PERSON:
                raise DetectionFileError(f"{where} detects {label!r}, but only 'person' is scored")
            x1, y1, x2, y2, score = _numbers(cells, _DEVKIT, where)
            _check_box((x1, y1, x2 - x1, y2 - y1), where)
            yield place[file.stem], x1 + 1, y1 + 1, x2 + 1, y2 + 1, score


def _coco_entry(entry: Any, where: str, place: dict[int, int], *, needed: bool) -> tuple[Row, int]:
    """Row and category id of an entry."""
    if not isinstance(entry, dict):
        raise DetectionFileError(f"{where} should be an object with image_id, category_id, bbox and score")
    for key in ("image_id", "category_id", "bbox", "score"):
        if (needed or key != "category_id") and key not in entry:
            raise DetectionFileError(f"{where} has no {key!r}")
    id_, category = files.as_whole(entry["image_id"]), files.as_whole(entry.get("category_id", 0))
    for key, value in (("image_id", id_), ("category_id", category)):
        if not files.is_whole(value):
            raise DetectionFileError(f"{where} has {key} {value!r}, which should be a whole number")
    if id_ not in place:
        raise DetectionFileError(f"{where} has image_id {id_}, which the {len(place)} images do not have")
    if not isinstance(entry["bbox"], list) or len(entry["bbox"]) != 4:
        raise DetectionFileError(f"{where} has bbox {entry['bbox']!r}, which should be four numbers x, y, w, h")
    for value, column in zip((*entry["bbox"], entry["score"]), _KAIST[1:], strict=True):
        if not files.is_finite(value):
            raise DetectionFileError(f"{where} has {column} {value!r}, which should be a finite number")
    x, y, w, h = entry["bbox"]
    _check_box((x, y, w, h), where)
    return (place[id_], x, y, x + w, y + h, entry["score"]), category


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Non-blank lines with their positions."""
    for i, line in enumerate(files.text_of(path, DetectionFileError).splitlines(), start=1):
        if line.strip():
            yield line, f"{path}, line {i}:"


def _numbers(cells: Sequence[str], columns: Sequence[str], where: str) -> list[float]:
    if len(cells) != len(columns):
        raise DetectionFileError(f"{where} has {len(cells)} columns, not the {len(columns)} of {' '.join(columns)}")
    return [files.finite(cell, column, where, DetectionFileError) for cell, column in zip(cells, columns, strict=True)]


def _check_box(xywh: tuple[float, float, float, float], where: str) -> None:
    x, y, w, h = xywh
    if w < 0 or h < 0:
        raise DetectionFileError(f"{where} has a box of width {w:g} and height {h:g}; both should be above 0")
    if not files.has_no_area(xywh) and not files.is_possible(x, y, w, h):
        raise DetectionFileError(f"{where} has a box that cannot be (x {x:g}, y {y:g}, width {w:g}, height {h:g})")


def _table(path: Path, rows: Sequence[Row]) -> tuple[DetectionTable, np.ndarray]:
    """Rows that have an area, and a bool mask of these. A doubt counts the others."""
    values = np.array(rows, np.float64).reshape(-1, 6)
    boxes = values[:, 1:5]
    has_area = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    if left_out := int((~has_area).sum()):
        warn_doubt(f"{path}: {left_out:,} boxes of width or height 0 are left out")
    return DetectionTable(values[:, 0].astype(np.int64), boxes, values[:, 5]).rows(has_area), has_area


def write_kaist(path: Path | str, table: DetectionTable) -> None:
    """Write KAIST text of one class, rows in the table's order."""
    _check_writable(table)
    rows = zip(table.image_index.tolist(), xywh_rows(table.boxes_xyxy), table.scores.tolist(), strict=True)
    files.write_whole(
        path, "".join(f"{i + 1},{x:.10g},{y:.10g},{w:.10g},{h:.10g},{s!r}\n" for i, (x, y, w, h), s in rows)
    )


def write_coco_results(
    path: Path | str,
    table: DetectionTable,
    *,
    image_ids: Sequence[int] | None = None,
    category_ids: Sequence[int] | None = None,
) -> None:
    """Write COCO results; ids default to indices from 0 and labels."""
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
    files.write_whole(path, json.dumps(entries) + "\n")


def write_images(
    path: Path,
    image_ids: Sequence[int],
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    categories: Mapping[int, str],
    annotations: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a COCO file; without annotations it says what a ``detections.json`` is of. Sizes are (height, width)."""
    images = [
        {"id": id_, "file_name": name, "height": height, "width": width}
        for id_, name, (height, width) in zip(image_ids, names, sizes, strict=True)
    ]
    of_ids = [{"id": id_, "name": name} for id_, name in categories.items()]
    files.write_whole(path, json.dumps({"images": images, "annotations": [*annotations], "categories": of_ids}) + "\n")


def _check_writable(table: DetectionTable) -> None:
    """Refuse boxes without area and non-finite numbers."""
    sizes = table.boxes_xyxy[:, 2:] - table.boxes_xyxy[:, :2]
    good = np.isfinite(table.boxes_xyxy).all(axis=1) & np.isfinite(table.scores) & (sizes > 0).all(axis=1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise DetectionFileError(
            f"detection {row} on image {table.image_index[row]} cannot be written: "
            f"box {table.boxes_xyxy[row].tolist()}, score {table.scores[row]}"
        )
