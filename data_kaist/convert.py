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
- YOLO (ultralytics' form, and Roboflow's): a text file per image, each line ``class cx cy w h`` in shares of the image,
  or ``class x1 y1 x2 y2 x3 y3 ...`` for an outline; ``images/`` in an image's path becomes ``labels/``, or the text
  lies beside the image. ``data.yaml`` has ``names`` and, for train, val and test, folders or lists of images; without
  it ``classes.txt`` has the names, and folders train, val or valid, and test the splits.
- Pascal VOC (Everingham et al., IJCV 2010): ``Annotations/<name>.xml``, ``JPEGImages/`` or images beside the XML;
  splits in ``ImageSets/Main/<split>.txt`` or by folder. Corners are taken as they stand, as annotation tools write
  them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import ParseError

import numpy as np
import yaml
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from data_kaist.annotations import size_of
from data_kaist.errors import AnnotationError, DataError, Doubt
from data_kaist.files import (
    MOST_PIXELS,
    finite,
    is_finite,
    is_inside,
    is_possible,
    is_whole,
    json_of,
    label_of,
    text_of,
    write_whole,
)
from data_kaist.images import Reading, endings_of, image_size, read_image
from data_kaist.structures import PERSON

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
        label: its category; those that are not ``person`` are ignored, too.
    """

    full: Xywh
    visible: Xywh | None
    ignore: bool
    label: str = PERSON


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
        others: boxes by label that are not persons; ignore regions.
        left_out: boxes that have no area inside their image, or too little for a float32.
    """

    file: Path
    images: int = 0
    persons: int = 0
    ignored: int = 0
    others: Counter[str] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        line = f"{self.file}: {self.images:,} images, {self.persons:,} persons, {self.ignored:,} ignore regions"
        line += (
            f", of them {', '.join(f'{n:,} {name}' for name, n in self.others.most_common())}" if self.others else ""
        )
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
    if not source.is_dir() and not (data_set == "yolo" and source.is_file()):
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


def settings(done: Sequence[Converted]) -> list[str]:
    """``key=value`` of the splits, for ``ssd-effnet train``: the test split is never the one that chooses.

    A test split is tested on; without one val is, and the last epoch stands. Without val a tenth of train chooses.
    Empty without a training split.
    """
    images = {split.file.name: split.images for split in done}
    if "train.json" not in images:
        return []
    test = next((name for name in ("test.json", "val.json") if name in images), "")
    val = "val.json" if "val.json" in images else f"train.json%{max(2, min(10, images['train.json']))}"
    chosen = ["data.train=train.json", f"data.val={val}", f"data.test={test}"]
    return chosen + (["trainer.test_checkpoint=last"] if val == test else [])


def _write(pictures: list[AnnotatedImage], file: Path, box: Box) -> Converted:
    done = Converted(file, len(pictures))
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    ids = {PERSON: 1}
    for i, picture in enumerate(pictures):
        height, width = picture.size
        images.append({"id": i, "file_name": picture.name, "height": height, "width": width})
        for number, obj in enumerate(picture.objects, 1):
            chosen = obj.visible if box == "visible" and obj.visible and _area(obj.visible) > 0 else obj.full
            x, y, w, h = _cut(chosen, width, height)
            if w <= 0 or h <= 0 or not is_possible(x, y, w, h, np.float32):
                done.left_out.append(f"object {number} of {picture.name} has no area in the image {list(chosen)}")
                continue
            category = ids.setdefault(obj.label, len(ids) + 1)
            row = {"id": len(rows) + 1, "image_id": i, "category_id": category, "bbox": [x, y, w, h], "area": w * h}
            # pycocotools knows iscrowd only, the miss rate knows both
            ignore = int(obj.ignore or obj.label != PERSON)
            row |= {"iscrowd": ignore, "ignore": ignore}
            done.others.update([obj.label] if obj.label != PERSON else [])
            stated = obj.full[3] if obj.full[3] > 0 else chosen[3]
            rows.append(row | {"occlusion": _occlusion(obj), "height": stated})
    done.ignored = sum(row["ignore"] for row in rows)
    done.persons = len(rows) - done.ignored
    categories = [{"id": id_, "name": label} for label, id_ in ids.items()]
    content = {"images": images, "annotations": rows, "categories": categories}
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
    folder = file.absolute().parents[len(below) - 1]
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
        difficult = element.findtext("difficult", "0").strip() == "1"
        label = label_of(element.findtext("name", "").strip())
        objects.append(Object((x1, y1, x2 - x1, y2 - y1), None, difficult, label))
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


def _pascal_voc(source: Path) -> dict[str, list[AnnotatedImage]]:
    xml = {path.relative_to(source): path for path in _walk(source, (".xml",))}
    if not xml:
        raise DataError(f"{source}: no file *.xml there")
    images: dict[str, list[Path]] = {}
    for path in _walk(source, _PICTURES):
        images.setdefault(path.stem, []).append(path)
    splits: dict[str, list[AnnotatedImage]] = {}
    for split, files in _voc_splits(source, xml).items():
        splits[split] = []
        for file in files:
            size, objects = _voc(file)
            near = [image for image in images.get(file.stem, []) if image.parent == file.parent]
            if len(found := near or images.get(file.stem, [])) != 1:
                what = "missing" if not found else f"could be {found[0]} or {found[1]}"
                raise DataError(f"{file}: its image, {file.stem} with .jpg, .png or the like below {source}, is {what}")
            splits[split].append(AnnotatedImage("", found[0], size, objects))
    return _with_persons(source, splits)


def _voc_splits(source: Path, xml: dict[Path, Path]) -> dict[str, list[Path]]:
    """XML files by split: as ``ImageSets/Main`` has them, or by the folder at the top."""
    lists = {name: source / "ImageSets" / "Main" / f"{name}.txt" for name in ("train", "trainval", "val", "test")}
    lists = {name: path for name, path in lists.items() if path.is_file()}
    if lists.keys() >= {"train", "trainval"}:
        del lists["trainval"]
    by_stem = {path.stem: path for path in xml.values()}
    splits: dict[str, list[Path]] = {}
    for name, path in lists.items():
        splits[_SPLITS.get(name, name)] = files = []
        for number, line in enumerate(text_of(path, AnnotationError).splitlines(), 1):
            if words := line.split():
                if words[0] not in by_stem:
                    raise AnnotationError(f"{path}: line {number} names {words[0]}, of which there is no XML file")
                files.append(by_stem[words[0]])
    return splits or _by_top_folder(xml)


_SPLITS = {"train": "train", "trainval": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_PICTURES = endings_of("image")


def _by_top_folder(files: dict[Path, Path]) -> dict[str, list[Path]]:
    """Files, keyed by their path below the source, by the first folder that is named after a split."""
    splits: dict[str, list[Path]] = {}
    for below, file in files.items():
        split = next((_SPLITS[part.lower()] for part in below.parts[:-1] if part.lower() in _SPLITS), "all")
        splits.setdefault(split, []).append(file)
    if len(splits) > 1 and "all" in splits:
        raise DataError(f"{splits['all'][0]}: is in no folder train, val or test, as others are")
    return splits


def _walk(source: Path, endings: Collection[str]) -> list[Path]:
    """Files below a folder, by name; links are followed, each folder once, and what is hidden left out."""
    found: list[Path] = []
    seen: set[str] = set()
    for inside, folders, names in os.walk(source, followlinks=True):
        new = {name: os.path.realpath(Path(inside, name)) for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, real in new.items() if real not in seen]
        seen.update(new.values())
        found += [Path(inside, name) for name in sorted(names) if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in endings)


def _with_persons(source: Path, splits: dict[str, list[AnnotatedImage]]) -> dict[str, list[AnnotatedImage]]:
    """The pictures under names below the folder that they share; the only label that there is becomes ``person``."""
    pictures = [picture for of_split in splits.values() for picture in of_split]
    labels = sorted({obj.label for picture in pictures for obj in picture.objects})
    if labels and PERSON not in labels and len(labels) > 1:
        raise DataError(f"{source}: none of its classes ({', '.join(labels)}) is 'person'")
    if labels and PERSON not in labels:
        warnings.warn(f"{source}: its only class, {labels[0]!r}, is read as person", Doubt, stacklevel=2)
    shared = Path(os.path.commonpath([picture.file.absolute().parent for picture in pictures]))

    def named(picture: AnnotatedImage) -> AnnotatedImage:
        name = picture.file.absolute().relative_to(shared)
        whole = len(name.parts) > 1 and shared == source.absolute()
        objects = [replace(obj, label=PERSON if len(labels) == 1 else obj.label) for obj in picture.objects]
        return replace(picture, name=(name if whole else shared.name / name).as_posix(), objects=objects)

    named_splits = {split: [named(picture) for picture in of_split] for split, of_split in splits.items()}
    return named_splits if len(splits) > 1 else {"all": next(iter(named_splits.values()))}


def _yolo(source: Path) -> dict[str, list[AnnotatedImage]]:
    found = [source] if source.is_file() else sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
    if len(found) > 1:
        found = [path for path in found if path.stem == "data"]
    folder = source.parent if source.is_file() else source
    listed: dict[str, list[Path]] = {}
    if found:
        try:
            content = yaml.safe_load(text_of(found[0], DataError))
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date like 2001-99-99 is a ValueError
            raise DataError(f"{found[0]}: is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict) or not isinstance(names := content.get("names"), list | dict):
            raise DataError(f"{found[0]}: has no list 'names' of classes")
        classes = {
            int(key): str(name) for key, name in (names.items() if isinstance(names, dict) else enumerate(names))
        }
        base = folder / str(content.get("path") or "")
        for key in ("train", "val", "test"):
            value = content.get(key)
            entries = value if isinstance(value, list) else [value] if value else []
            if images := [image for entry in entries for image in _yolo_images(str(entry), base, folder, found[0])]:
                listed[key] = images
    else:
        text = next(
            (path for path in (folder / "classes.txt", folder / "labels" / "classes.txt") if path.is_file()), None
        )
        if text is None:
            raise DataError(f"{source}: neither data.yaml nor classes.txt there says what the classes are")
        classes = dict(enumerate(text_of(text, AnnotationError).split("\n")))
    if not listed:
        listed = _by_top_folder({path.relative_to(folder): path for path in _walk(folder, _PICTURES)})
    if not listed:
        raise DataError(f"{source}: no images there")
    splits = {split: [_yolo_image(file, classes) for file in images] for split, images in listed.items()}
    if not any(picture.objects for pictures in splits.values() for picture in pictures):
        first = next(iter(listed.values()))[0]
        raise DataError(f"{source}: none of the images has a box; looked for {_yolo_label(first)} and its like")
    pairs = [(image, _yolo_label(image)) for images in listed.values() for image in images]
    bare, texts = [image for image, text in pairs if not text.is_file()], {text for _, text in pairs}
    places = {text.parent for text in texts if "labels" in text.parts}
    lost = {text for place in places for text in place.glob("*.txt") if text.name != "classes.txt"} - texts
    for files, what in (
        (bare, "images have no text and count as without objects"),
        (sorted(lost), "texts of boxes have no image that is listed, and are left out"),
    ):
        if files:
            warnings.warn(f"{source}: {len(files):,} {what} (the first: {files[0]})", Doubt, stacklevel=2)
    return _with_persons(folder, splits)


def _yolo_images(entry: str, base: Path, folder: Path, named_by: Path) -> list[Path]:
    """Images of a folder or of a list of images; Roboflow's paths go up from a folder that is not there."""
    short = entry
    while short.startswith("../"):
        short = short.removeprefix("../")
    place = next((p for p in (base / entry, folder / entry, folder / short) if p.exists()), None)
    if place is None:
        raise DataError(f"{named_by}: names {entry!r}, but {base / entry} is not there")
    if place.is_dir():
        return _walk(place, _PICTURES)
    lines = [line.strip() for line in text_of(place, AnnotationError).splitlines() if line.strip()]
    found = [
        next((p for p in (place.parent / line, base / line) if p.is_file()), place.parent / line) for line in lines
    ]
    return [_image(path, place) for path in found]


def _yolo_label(image: Path) -> Path:
    """The text of an image: ``images`` nearest to the file becomes ``labels``, or beside it."""
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts) if Path(*parts).is_file() else image.with_suffix(".txt")


def _yolo_image(image: Path, classes: dict[int, str]) -> AnnotatedImage:
    # YOLO's programs turn a picture by its tag: the shares are of the upright one, whose size the reader goes by
    height, width = read_image(image, colour=True, reading=Reading(orientation="follow")).shape[:2]
    file, objects = _yolo_label(image), []
    for number, line in enumerate(text_of(file, AnnotationError).splitlines() if file.is_file() else (), 1):
        if not (words := line.split()):
            continue
        at = f"{file}: line {number}"
        outline = len(words) > 6 and len(words) % 2 == 1
        if len(words) != 5 and not outline:
            raise AnnotationError(f"{at} has {len(words)} columns, which should be the five of 'class cx cy w h'")
        label, *shares = [finite(word, "number", at, AnnotationError) for word in words]
        if not all(-0.01 <= share <= 1.01 for share in shares):
            raise AnnotationError(
                f"{at} has numbers beyond 0..1, but they should be shares of the image ({line.strip()})"
            )
        if label not in classes:
            raise AnnotationError(f"{at} is of class {words[0]}, which has no name")
        if outline:
            x, y = shares[::2], shares[1::2]
            box = min(x), min(y), max(x) - min(x), max(y) - min(y)
        else:
            cx, cy, w, h = shares
            box = cx - w / 2, cy - h / 2, w, h
        x1, y1, w, h = (round(value * side, 3) for value, side in zip(box, (width, height) * 2, strict=True))
        objects.append(Object((x1, y1, w, h), None, False, label_of(classes[int(label)].strip())))
    return AnnotatedImage("", image, (height, width), objects)


DATA_SETS: dict[str, Callable[[Path], dict[str, list[AnnotatedImage]]]] = {
    "citypersons": _citypersons,
    "crowdhuman": _crowdhuman,
    "llvip": _llvip,
    "pennfudan": _pennfudan,
    "yolo": _yolo,
    "voc": _pascal_voc,
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
