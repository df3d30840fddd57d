"""Reads COCO ground truth, also KAIST's with ``im_name``, ``height``, ``occlusion``."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_kaist.annotations import ObjectRow, annotations_from
from data_kaist.classes import PEOPLE, PERSON, Classes, is_among, label_of
from data_kaist.errors import AnnotationError, warn_doubt
from data_kaist.files import MOST_PIXELS, as_whole, has_no_area, is_finite, is_whole, json_of, text_of
from data_kaist.splits import daytime_of, spelling
from data_kaist.structures import Annotations, Daytime


@dataclass(frozen=True)
class CocoImage:
    """One image of a COCO file. Day or night by its ``daytime``, else by the KAIST set's number in the name."""

    id: int
    file_name: str
    size: tuple[int, int]
    daytime: Daytime | None

    @property
    def name(self) -> str:
        """``set06/V000/I00019`` for a KAIST frame, however its path is written. Any other name without its suffix."""
        return spelling(self.file_name) or re.sub(r"\.\w{3,4}$", "", self.file_name)


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """A COCO file, images sorted by id. This is the order of 1-based image numbers.

    ``annotations`` has one per image; ``categories`` labels by id; ``listed`` the images' indices in the file's order.
    """

    images: list[CocoImage]
    annotations: list[Annotations]
    categories: dict[int, str]
    listed: list[int]

    @property
    def person_categories(self) -> frozenset[int]:
        """Ids of the categories that count as ``person``."""
        return frozenset(id_ for id_, label in self.categories.items() if label == PERSON)

    @property
    def image_ids(self) -> list[int]:
        return [image.id for image in self.images]

    @property
    def names(self) -> list[str]:
        return [image.name for image in self.images]


def read_coco(path: Path | str, bad: dict[int, str] | None = None, *, classes: Classes = PEOPLE) -> CocoDataset:
    """Read ground truth in COCO form.

    Labels are category names; ``pedestrian`` is read as ``person``. The only category of a file that has one is read as
    the only class, where there is one; case and blanks around do not count. ``ignore`` and ``iscrowd`` both set the
    ignore flag. Missing ``height`` is the box's, missing ``occlusion`` 0. A box may reach over the frame's edge (39 do
    in KAIST's file). A :class:`~data_kaist.errors.Doubt` is warned of where annotation ids or file names repeat, ids
    are written as ``"3"`` or ``1.0``, names have a backslash, or boxes no area.

    Args:
        path: the file.
        bad: None raises an AnnotationError at the first bad box; a dictionary collects the reason by image id instead.
        classes: one category at least must belong to one of them.
    """
    path = Path(path)
    document = _load(path)
    _tidy(path, document)
    labels = _labels(path, document, classes)
    images = sorted((_coco_image(path, i, row) for i, row in enumerate(document["images"])), key=lambda image: image.id)
    place = {image.id: i for i, image in enumerate(images)}
    if len(place) < len(images):
        twice = next(a.id for a, b in itertools.pairwise(images) if a.id == b.id)
        raise AnnotationError(f"{path}: image id {twice} occurs twice")
    rows: list[list[ObjectRow]] = [[] for _ in images]
    seen: Counter[Hashable] = Counter()
    without_area: list[str] = []
    for i, row in enumerate(document["annotations"]):
        where = _where(path, i, row)
        _require(row, ("image_id", "category_id", "bbox"), where)
        if "id" in row and not isinstance(row["id"], Hashable):
            raise AnnotationError(f"{where} has an id that is neither a number nor a text")
        if "id" in row:
            seen[row["id"]] += 1
        if not is_whole(row["image_id"]) or row["image_id"] not in place:
            raise AnnotationError(f"{where} is on image id {row['image_id']!r}, which is not among the file's images")
        if not is_whole(row["category_id"]) or row["category_id"] not in labels:
            raise AnnotationError(f"{where} is of category id {row['category_id']!r}, which the file does not define")
        if has_no_area(row["bbox"]):
            without_area.append(where)
            continue
        at = place[row["image_id"]]
        try:
            rows[at].append(_object(row, labels[row["category_id"]], images[at].size, where))
        except AnnotationError as error:
            if bad is None:
                raise
            bad.setdefault(row["image_id"], str(error))
    if without_area:
        warn_doubt(f"{path}: {len(without_area):,} boxes without area are left out (the first: {without_area[0]})")
    if repeated := [id_ for id_, times in seen.items() if times > 1]:
        warn_doubt(f"{path}: {len(repeated):,} annotation ids are repeated ({repeated[0]} first); all boxes count")
    times = Counter(posixpath.normpath(image.file_name) for image in images)
    if len(times) < len(images):
        name, most = times.most_common(1)[0]
        warn_doubt(f"{path}: {len(images) - len(times):,} images are listed more than once ({name}: {most} times)")
    return CocoDataset(
        images=images,
        annotations=[
            annotations_from(of_image, image.size, image.daytime, str(path))
            for image, of_image in zip(images, rows, strict=True)
        ],
        categories=labels,
        listed=[place[row["id"]] for row in document["images"]],
    )


def _load(path: Path) -> dict[str, Any]:
    document = json_of(text_of(path, AnnotationError), str(path), AnnotationError)
    if not isinstance(document, dict):
        raise AnnotationError(f"{path}: should hold an object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            raise AnnotationError(f"{path}: has no list {key!r}")
    if not document["images"]:
        raise AnnotationError(f"{path}: lists no images")
    return document


def _tidy(path: Path, document: dict[str, Any]) -> None:
    """Rewrite ids and sizes as whole numbers. Backslashes in names become ``/``."""
    odd: list[Any] = []
    slashed: list[str] = []
    keys_of = {"images": ("id", "height", "width"), "annotations": ("image_id", "category_id"), "categories": ("id",)}
    for part, keys in keys_of.items():
        for row in document[part]:
            for key in keys if isinstance(row, dict) else ():
                value = row.get(key)
                if not is_whole(value) and is_whole(number := as_whole(value)):
                    row[key] = number
                    odd.append(value)
            for key in ("im_name", "file_name") if part == "images" and isinstance(row, dict) else ():
                if isinstance(name := row.get(key), str) and "\\" in name:
                    row[key] = name.replace("\\", "/")
                    slashed.append(name)
    if odd:
        warn_doubt(f"{path}: {len(odd):,} ids or sizes are written as {odd[0]!r} and the like; read as numbers")
    if slashed:
        warn_doubt(f"{path}: {len(slashed):,} file names are written with \\, read as / (the first: {slashed[0]})")


def _labels(path: Path, document: dict[str, Any], classes: Classes) -> dict[int, str]:
    """Category id -> label."""
    labels: dict[int, str] = {}
    for i, row in enumerate(document["categories"]):
        _require(row, ("id", "name"), f"{path}: category {i}")
        if not is_whole(row["id"]):
            raise AnnotationError(f"{path}: category {i} has an id that is not a whole number")
        if row["id"] in labels:
            raise AnnotationError(f"{path}: category id {row['id']} occurs twice")
        labels[row["id"]] = label_of(str(row["name"]))
    if is_among(labels.values(), classes.all_labels).any():
        return labels
    if len(labels) == len(classes.names) == 1:
        warn_doubt(f"{path}: its only category, {labels.popitem()[1]!r}, is read as {classes.all_labels[0]}")
        return {document["categories"][0]["id"]: classes.all_labels[0]}
    wanted = " or ".join(map(repr, classes.all_labels))
    raise AnnotationError(f"{path}: none of its categories ({', '.join(labels.values())}) is {wanted}")


def _coco_image(path: Path, index: int, row: Any) -> CocoImage:
    where = f"{path}: image {row['id'] if isinstance(row, dict) and 'id' in row else f'at place {index}'}"
    _require(row, ("id", "height", "width"), where)
    name = row.get("im_name", row.get("file_name"))
    if not isinstance(name, str) or "\0" in name:
        raise AnnotationError(f"{where} has neither 'im_name' nor 'file_name'")
    if not is_whole(row["id"]):
        raise AnnotationError(f"{where} has an id that is not a whole number")
    size = (row["height"], row["width"])
    if not all(is_whole(n) and 0 < n <= MOST_PIXELS for n in size):
        raise AnnotationError(f"{where} has height {size[0]!r} and width {size[1]!r}, which should be whole pixels")
    daytime = row.get("daytime")
    if daytime not in ("day", "night", None):
        raise AnnotationError(f"{where} has daytime {daytime!r}, which should be 'day' or 'night'")
    image = CocoImage(row["id"], name, size, daytime)
    return image if daytime else CocoImage(row["id"], name, size, daytime_of(image.name))


def _object(row: dict[str, Any], label: str, size: tuple[int, int], where: str) -> ObjectRow:
    """The annotation, with its numbers checked."""
    box = row["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(is_finite(n) for n in box)):
        raise AnnotationError(f"{where} has bbox {box!r}, which should be four finite numbers x, y, w, h")
    x, y, w, h = box
    ignore = row.get("ignore", 0) == 1 or row.get("iscrowd", 0) == 1
    checked = ObjectRow(label, (x, y, w, h), row.get("occlusion", 0), ignore, row.get("height")).checked(size, where)
    if not is_finite(stated := row.get("height", h)) or not 0 < stated <= MOST_PIXELS:
        raise AnnotationError(f"{where} has height {stated!r}, which should be a finite number above 0")
    for flag in ("ignore", "iscrowd"):
        if row.get(flag, 0) not in (0, 1):
            raise AnnotationError(f"{where} has {flag} {row[flag]!r}, which should be 0 or 1")
    return checked


def _where(path: Path, index: int, row: Any) -> str:
    return f"{path}: annotation {row['id'] if isinstance(row, dict) and 'id' in row else f'at place {index}'}"


def _require(row: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(row, dict):
        raise AnnotationError(f"{where} should be an object")
    for key in keys:
        if key not in row:
            raise AnnotationError(f"{where} has no {key!r}")
