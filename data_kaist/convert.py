"""Other pedestrian data sets as COCO files that ``data.kind: coco`` reads.

The formats, as their authors have them:

- CityPersons (Zhang et al., CVPR 2017; README of its archive at Cityscapes): a JSON file per image,
  ``gtBboxCityPersons/<split>/<city>/<name>_gtBboxCityPersons.json``, objects with ``label``, ``bbox`` and ``bboxVis``
  as x, y, w, h; images ``leftImg8bit/<split>/<city>/<name>_leftImg8bit.png``. Only ``pedestrian`` is to be found;
  riders, sitting and other persons, groups and ``ignore`` are ignored, as the authors' evaluation has it.
- CrowdHuman (Shao et al., arXiv:1805.00123; ``annotation_train.odgt`` of its site): a JSON object a line with ``ID``
  and ``gtboxes``: ``tag``, ``fbox`` (full), ``vbox`` (visible), ``hbox`` (head) as x, y, w, h, and ``extra.ignore``;
  ``mask`` is an ignore region. Images ``Images/<ID>.jpg``.
- LLVIP (Jia et al., arXiv:2108.10831): Pascal VOC XML ``Annotations/<name>.xml`` for both images of a pair,
  ``visible/<split>/<name>.jpg`` and ``infrared/<split>/<name>.jpg``.
- Penn-Fudan (Wang et al., ACCV 2007; ``PennFudanPed.zip``): PASCAL Annotation Version 1.00, ``Annotation/<name>.txt``,
  corners counted from (1, 1) and both inside the box; images ``PNGImages/<name>.png``. Its authors name no split, and
  leave people who are small or much occluded unmarked.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from data_kaist.annotations import size_of
from data_kaist.errors import AnnotationError, DataError
from data_kaist.images import image_size
from data_kaist.plain import MOST_PIXELS, finite, is_finite, is_inside, is_possible, is_whole, json_of, text_of
from ssd_effnet.files import write_whole
from ssd_effnet.structures import PERSON

Box = Literal["full", "visible"]
Xywh = tuple[float, float, float, float]

# Caltech's bounds, which KAIST took over (Dollar et al., PAMI 2012, section 2.1): partial up to 35 % hidden
_PARTLY, _HEAVILY = 0.99, 0.65


@dataclass(frozen=True)
class Object:
    """One object as its file has it.

    Attributes:
        full: x, y, w, h of the whole person, pixels from (0, 0).
        visible: of what can be seen; None where the data set does not say.
        ignore: neither to be found nor background.
    """

    full: Xywh
    visible: Xywh | None
    ignore: bool


@dataclass(frozen=True)
class AnnotatedImage:
    """One image: its name below the folder that is written, its file (and the LWIR file's), and its objects."""

    name: str
    file: Path
    size: tuple[int, int]
    objects: list[Object]
    lwir: Path | None = None


@dataclass
class Converted:
    """What was written for one split.

    Attributes:
        file: the COCO file.
        images: how many.
        persons: boxes to be found.
        ignored: ignore regions.
        left_out: boxes that have no area inside their image, or too little for a float32.
    """

    file: Path
    images: int = 0
    persons: int = 0
    ignored: int = 0
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        line = f"{self.file}: {self.images:,} images, {self.persons:,} persons, {self.ignored:,} ignore regions"
        return line + (f"; {len(self.left_out):,} boxes left out: {self.left_out[0]}" if self.left_out else "")


def convert(
    data_set: str, source: Path | str, out: Path | str, *, box: Box = "full", copy: bool = False, val_step: int = 5
) -> list[Converted]:
    """Write ``<split>.json`` files below ``out`` and put the images there, as links or as copies.

    Boxes are cut at the image's border: the study ignores persons who reach over it, here that would be many. A box
    keeps the whole person's height in ``height`` (where that is not known, the box's own before the cut), and
    ``occlusion`` says how much of the person is hidden: 0 up to 1 %, 1 up to 35 %, 2 beyond.

    Args:
        data_set: one of :data:`DATA_SETS`.
        source: the folder that the authors' archives unpack to.
        out: folder; files of the same names are replaced, links kept.
        box: ``full`` persons as annotated, hidden parts guessed, or what is ``visible`` of them.
        copy: copy images instead of linking their folders.
        val_step: of a data set without splits, every ``val_step``-th image is held out for ``val.json``.

    Raises:
        DataError: one sentence that names the file, and the line or object.
        OSError: something cannot be written.
    """
    source, out = Path(source), Path(out)
    if data_set not in DATA_SETS:
        raise DataError(f"unknown data set {data_set!r}; it should be one of {', '.join(DATA_SETS)}")
    if box == "visible" and data_set not in WITH_VISIBLE_BOXES:
        raise DataError(
            f"{data_set} has one box a person only; --box visible is for {' and '.join(WITH_VISIBLE_BOXES)}"
        )
    if val_step < 2:
        raise DataError(f"every {val_step}th image cannot be held out; the step should be at least 2")
    if not source.is_dir():
        raise DataError(f"{source}: no such folder")
    splits = DATA_SETS[data_set](source)
    if set(splits) == {"all"}:
        pictures = splits["all"]
        splits = {"train": [p for i, p in enumerate(pictures) if i % val_step != val_step - 1]}
        splits["val"] = pictures[val_step - 1 :: val_step]
    for split, pictures in splits.items():
        if not pictures:
            raise DataError(f"{source}: too few images for a split {split!r}")
    out.mkdir(parents=True, exist_ok=True)
    for picture in (p for pictures in splits.values() for p in pictures):
        _place(picture.file, out, picture.name, copy)
        if picture.lwir is not None:
            _place(picture.lwir, out, "lwir" + picture.name.removeprefix("visible"), copy)
    return [_write(pictures, out / f"{split}.json", box) for split, pictures in splits.items()]


def _write(pictures: list[AnnotatedImage], file: Path, box: Box) -> Converted:
    done = Converted(file, len(pictures))
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for i, picture in enumerate(pictures):
        height, width = picture.size
        images.append({"id": i, "file_name": picture.name, "height": height, "width": width})
        for number, obj in enumerate(picture.objects, 1):
            chosen = obj.visible if box == "visible" and obj.visible and _area(obj.visible) > 0 else obj.full
            x, y, w, h = _cut(chosen, width, height)
            if w <= 0 or h <= 0 or not is_possible(x, y, w, h, np.float32):
                done.left_out.append(f"object {number} of {picture.name} has no area in the image {list(chosen)}")
                continue
            row = {"id": len(rows) + 1, "image_id": i, "category_id": 1, "bbox": [x, y, w, h], "area": w * h}
            # pycocotools knows iscrowd only, the miss rate knows both
            row |= {"iscrowd": int(obj.ignore), "ignore": int(obj.ignore)}
            stated = obj.full[3] if obj.full[3] > 0 else chosen[3]
            rows.append(row | {"occlusion": _occlusion(obj), "height": stated})
    done.ignored = sum(row["ignore"] for row in rows)
    done.persons = len(rows) - done.ignored
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": PERSON}]}
    write_whole(file, json.dumps(content))
    return done


def _occlusion(obj: Object) -> int:
    if obj.visible is None or _area(obj.full) == 0:
        return 0
    share = _area(obj.visible) / _area(obj.full)
    return 0 if share >= _PARTLY else 1 if share >= _HEAVILY else 2


def _area(xywh: Xywh) -> float:
    return max(xywh[2], 0) * max(xywh[3], 0)


def _cut(xywh: Xywh, width: int, height: int) -> Xywh:
    x, y, w, h = xywh
    x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    return x1, y1, x2 - x1, y2 - y1


def _place(file: Path, out: Path, name: str, copy: bool) -> None:
    """Make ``out/name`` be the image: a copy, or a link to the folder at the top of its name."""
    place = out / name
    if place.exists() and place.resolve() == file.resolve():
        return
    if copy:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
        return
    top, *below = Path(name).parts
    folder = file.resolve().parents[len(below) - 1]
    if (out / top).exists() or (out / top).is_symlink():
        raise DataError(f"{out / top}: is there already and is not {folder}; remove it, or choose another OUT")
    try:
        (out / top).symlink_to(folder, target_is_directory=True)
    except OSError as error:
        raise DataError(f"{out / top}: cannot be made a link ({error.strerror or error}); try --copy") from error


def _citypersons(source: Path) -> dict[str, list[AnnotatedImage]]:
    splits: dict[str, list[AnnotatedImage]] = {}
    ending = "_gtBboxCityPersons.json"
    for folder in _folders(source / "gtBboxCityPersons", "CityPersons' boxes"):
        splits[folder.name] = []
        for file in _files(folder, f"*/*{ending}"):
            content = _json(text_of(file, AnnotationError), str(file))
            size = tuple(_whole(content, key, str(file)) for key in ("imgHeight", "imgWidth"))
            objects = []
            for i, row in enumerate(_list(content, "objects", str(file)), 1):
                at = f"{file}: object {i}"
                label = _key(row, "label", at)
                full, visible = _xywh(row, "bbox", at), _xywh(row, "bboxVis", at)
                objects.append(Object(full, visible, label != "pedestrian"))
            name = f"leftImg8bit/{folder.name}/{file.parent.name}/{file.name.removesuffix(ending)}_leftImg8bit.png"
            splits[folder.name].append(AnnotatedImage(name, _image(source / name, file), (size[0], size[1]), objects))
    return splits


def _crowdhuman(source: Path) -> dict[str, list[AnnotatedImage]]:
    splits: dict[str, list[AnnotatedImage]] = {}
    for file in _files(source, "annotation_*.odgt"):
        pictures = splits[file.stem.removeprefix("annotation_")] = []
        for number, line in enumerate(text_of(file, AnnotationError).splitlines(), 1):
            at = f"{file}: line {number}"
            if not line.strip():
                continue
            content = _json(line, at)
            objects = []
            for i, row in enumerate(_list(content, "gtboxes", at), 1):
                where = f"{at}: box {i}"
                tag, extra = _key(row, "tag", where), row.get("extra", {})
                ignore = tag != "person" or (isinstance(extra, dict) and bool(extra.get("ignore", 0)))
                objects.append(Object(_xywh(row, "fbox", where), _xywh(row, "vbox", where), ignore))
            name = f"Images/{_key(content, 'ID', at)}.jpg"
            if not is_inside(name):
                raise AnnotationError(f"{at}: the ID {content['ID']!r} leads out of {source}")
            image = _image(source / name, at)
            pictures.append(AnnotatedImage(name, image, image_size(image), objects))
    return splits


def _llvip(source: Path) -> dict[str, list[AnnotatedImage]]:
    splits: dict[str, list[AnnotatedImage]] = {}
    for folder in _folders(source / "visible", "LLVIP's visible images"):
        splits[folder.name] = []
        for visible in _files(folder, "*.jpg"):
            file = source / "Annotations" / f"{visible.stem}.xml"
            size, objects = _voc(file)
            lwir = _image(source / "infrared" / folder.name / visible.name, visible)
            name = f"visible/{folder.name}/{visible.name}"
            splits[folder.name].append(AnnotatedImage(name, visible, size, objects, lwir))
    return splits


def _voc(file: Path) -> tuple[tuple[int, int], list[Object]]:
    try:
        root = fromstring(text_of(file, AnnotationError))
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise AnnotationError(f"{file}: not readable as XML ({error})") from error
    if (stated := root.find("size")) is None:
        raise AnnotationError(f"{file} has no <size>")
    size = size_of(stated, f"{file}: <size>")
    objects = []
    for i, element in enumerate(root.iter("object"), 1):
        at = f"{file}: object {i}"
        tags = ("xmin", "ymin", "xmax", "ymax")
        x1, y1, x2, y2 = corners = [_number(element.findtext(f"bndbox/{tag}"), tag, at) for tag in tags]
        if max(map(abs, corners)) > MOST_PIXELS:
            raise AnnotationError(f"{at} has the corners {corners}, which lie beyond any image")
        ignore = element.findtext("name", "").strip() != PERSON or element.findtext("difficult", "0").strip() == "1"
        objects.append(Object((x1, y1, x2 - x1, y2 - y1), None, ignore))
    return size, objects


_PASCAL_SIZE = re.compile(r"Image size \(X x Y x C\) : ([1-9]\d{0,8}) x ([1-9]\d{0,8}) x \d+\s*")
_PASCAL_BOX = re.compile(
    r"Bounding box for object \d+ \"[^\"]*\" \(Xmin, Ymin\) - \(Xmax, Ymax\) : "
    r"\((\d{1,9}), (\d{1,9})\) - \((\d{1,9}), (\d{1,9})\)\s*"
)


def _pennfudan(source: Path) -> dict[str, list[AnnotatedImage]]:
    pictures = []
    for file in _files(source / "Annotation", "*.txt"):
        size: tuple[int, int] | None = None
        stated: int | None = None
        objects = []
        for number, line in enumerate(text_of(file, AnnotationError).splitlines(), 1):
            if line.startswith("Image size"):
                if not (match := _PASCAL_SIZE.fullmatch(line)):
                    raise AnnotationError(f"{file}: line {number} is not 'Image size (X x Y x C) : W x H x C'")
                size = int(match[2]), int(match[1])
            elif line.startswith("Objects with ground truth"):
                count = re.match(r"Objects with ground truth : (\d{1,9}) ", line)
                stated = int(count[1]) if count else None
            elif line.startswith("Bounding box"):
                if not (match := _PASCAL_BOX.fullmatch(line)):
                    raise AnnotationError(f"{file}: line {number} is no box '... : (Xmin, Ymin) - (Xmax, Ymax)'")
                x1, y1, x2, y2 = map(int, match.groups())
                objects.append(Object((x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1), None, False))
        if size is None:
            raise AnnotationError(f"{file}: no line says 'Image size (X x Y x C)'")
        if stated != len(objects):
            raise AnnotationError(f"{file}: states {stated} objects, but has {len(objects)} boxes")
        name = f"PNGImages/{file.stem}.png"
        pictures.append(AnnotatedImage(name, _image(source / name, file), size, objects))
    return {"all": pictures}


DATA_SETS: dict[str, Callable[[Path], dict[str, list[AnnotatedImage]]]] = {
    "citypersons": _citypersons,
    "crowdhuman": _crowdhuman,
    "llvip": _llvip,
    "pennfudan": _pennfudan,
}
WITH_VISIBLE_BOXES = ("citypersons", "crowdhuman")


def _folders(folder: Path, what: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; looked there for {what}")
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: empty; looked there for {what}")
    return found


def _files(folder: Path, pattern: str) -> Iterator[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise DataError(f"{folder}: no file {pattern} there")
    yield from found


def _image(path: Path, named_by: Path | str) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: missing, the image of {named_by}")
    return path


def _json(text: str, at: str) -> dict[str, Any]:
    content = json_of(text, at, AnnotationError)
    if not isinstance(content, dict):
        raise AnnotationError(f"{at}: should hold a JSON object, not a {type(content).__name__}")
    return content


def _key(row: Any, key: str, at: str) -> Any:
    if not isinstance(row, dict) or key not in row:
        raise AnnotationError(f"{at} has no {key!r}")
    return row[key]


def _list(row: dict[str, Any], key: str, at: str) -> list[Any]:
    rows = _key(row, key, at)
    if not isinstance(rows, list):
        raise AnnotationError(f"{at}: {key!r} should be a list, not {rows!r}")
    return rows


def _whole(row: dict[str, Any], key: str, at: str) -> int:
    number = _key(row, key, at)
    if not is_whole(number) or not 1 <= number <= MOST_PIXELS:
        raise AnnotationError(f"{at} has {key} {number!r}, which should be whole pixels")
    return number


def _xywh(row: Any, key: str, at: str) -> Xywh:
    box = _key(row, key, at)
    right = isinstance(box, list) and len(box) == 4
    if not right or not all(is_finite(n) and abs(n) <= MOST_PIXELS for n in box):
        raise AnnotationError(f"{at} has {key} {box!r}, which should be four finite numbers x, y, w, h")
    x, y, w, h = box
    return x, y, w, h


def _number(text: str | None, tag: str, at: str) -> float:
    if text is None:
        raise AnnotationError(f"{at} has no <{tag}>")
    return finite(text, tag, at, AnnotationError)
