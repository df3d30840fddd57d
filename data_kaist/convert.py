"""Converts other pedestrian data sets to COCO files that ``data.kind: coco`` reads.

One function per format yields its images; :data:`FORMATS` names them.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_kaist.annotations import number_of, size_of, xml_of
from data_kaist.classes import PERSON, label_of
from data_kaist.errors import AnnotationError, DataError, Doubt
from data_kaist.files import MOST_PIXELS, finite, is_possible, text_of, walk, write_whole
from data_kaist.images import Reading, endings_of, read_image

VAL_STEP = 5
"""Of a data set without splits, every so many-th image is held out."""


@dataclass(frozen=True)
class Object:
    """One object of a source file. ``xywh`` is of the whole object, in pixels from (0, 0)."""

    xywh: tuple[float, float, float, float]
    label: str = PERSON
    ignore: bool = False


@dataclass(frozen=True)
class AnnotatedImage:
    """One image with its objects. ``split`` is "" where the data set has none."""

    split: str
    name: str
    file: Path
    size: tuple[int, int]
    objects: list[Object]
    lwir: Path | None = None


@dataclass
class Converted:
    """One written split. It counts images, boxes by label, ignore regions and boxes without area."""

    file: Path
    images: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    ignored: int = 0
    left_out: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        boxes = ", ".join(f"{n:,} {label}" for label, n in self.labels.most_common())
        line = f"{self.file}: {self.images:,} images, {boxes or 'no objects'}, {self.ignored:,} ignore regions"
        return line + (f"; {len(self.left_out):,} boxes left out: {self.left_out[0]}" if self.left_out else "")


def convert(data_set: str, source: Path | str, out: Path | str) -> list[Converted]:
    """Write ``<split>.json`` and links to the images below ``out``.

    Boxes are cut at the image's border: the study ignores persons who reach over it, here that would be many. A box
    keeps the height that it had before in ``height``. All labels are categories of every file. Files of the same names
    are replaced, links kept. A DataError names the file, and the line or object.

    Args:
        data_set: one of :data:`FORMATS`.
        source: the folder that the authors' archives unpack to.
        out: folder.
    """
    source, out = Path(source), Path(out)
    if data_set not in FORMATS:
        raise DataError(f"unknown data set {data_set!r}; it should be one of {', '.join(FORMATS)}")
    if not source.is_dir() and not (data_set == "yolo" and source.is_file()):
        raise DataError(f"{source}: no such folder")
    pictures = list(FORMATS[data_set](source))
    splits: dict[str, list[AnnotatedImage]] = {}
    for i, picture in enumerate(pictures):
        held_out = "val" if i % VAL_STEP == VAL_STEP - 1 else "train"
        splits.setdefault(picture.split or held_out, []).append(picture)
    if not pictures[0].split and "val" not in splits:
        raise DataError(f"{source}: too few images for a split 'val'")
    labels = {obj.label for picture in pictures for obj in picture.objects} or {PERSON}
    ids = {label: id_ for id_, label in enumerate(sorted(labels, key=lambda label: (label != PERSON, label)), 1)}
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        _link(picture.file, out, picture.name)
        if picture.lwir is not None:
            _link(picture.lwir, out, "lwir" + picture.name.removeprefix("visible"))
    return [_write(of_split, out / f"{split}.json", ids) for split, of_split in splits.items()]


def settings_for(done: Sequence[Converted]) -> list[str]:
    """Settings ``key=value`` of the splits for ``ssd-effnet train``.

    The test split never chooses the epoch: without one, val is tested and the last epoch used. Without val, a tenth of
    train chooses. Several labels without ``person`` are named as classes. Empty without a training split.
    """
    images = {split.file.name: split.images for split in done}
    if "train.json" not in images:
        return []
    test = next((name for name in ("test.json", "val.json") if name in images), "")
    val = "val.json" if "val.json" in images else f"train.json%{max(2, min(10, images['train.json']))}"
    chosen = ["data.train=train.json", f"data.val={val}", f"data.test={test}"]
    labels = sorted({label for split in done for label in split.labels})
    if PERSON not in labels and len(labels) > 1:
        classes = yaml.safe_dump({label: [label] for label in labels}, default_flow_style=True, width=10**6)
        chosen.append(f"data.classes={classes.strip()}")
    return chosen + (["trainer.test_checkpoint=last"] if val == test else [])


def _write(pictures: list[AnnotatedImage], file: Path, ids: dict[str, int]) -> Converted:
    done = Converted(file, len(pictures))
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for i, picture in enumerate(pictures):
        height, width = picture.size
        images.append({"id": i, "file_name": picture.name, "height": height, "width": width})
        for number, obj in enumerate(picture.objects, 1):
            x, y, w, h = obj.xywh
            x1, y1 = max(x, 0), max(y, 0)
            w1, h1 = min(x + w, width) - x1, min(y + h, height) - y1
            if w1 <= 0 or h1 <= 0 or not is_possible(x1, y1, w1, h1, np.float32):
                done.left_out.append(f"object {number} of {picture.name} has no area in the image {list(obj.xywh)}")
                continue
            row = {"id": len(rows) + 1, "image_id": i, "category_id": ids[obj.label], "bbox": [x1, y1, w1, h1]}
            # pycocotools knows iscrowd only, the miss rate knows both
            rows.append(row | {"area": w1 * h1, "iscrowd": int(obj.ignore), "ignore": int(obj.ignore), "height": h})
            done.labels.update([] if obj.ignore else [obj.label])
    done.ignored = sum(row["ignore"] for row in rows)
    categories = [{"id": id_, "name": label} for label, id_ in ids.items()]
    write_whole(file, json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return done


def _link(file: Path, out: Path, name: str) -> None:
    """Link the folder at the top of the image's name."""
    place = out / name
    if place.exists() and place.resolve() == file.resolve():
        return
    top, *below = Path(name).parts
    folder = file.absolute().parents[len(below) - 1]
    if (out / top).exists() or (out / top).is_symlink():
        raise DataError(f"{out / top}: is there already and is not {folder}; remove it, or choose another OUT")
    (out / top).symlink_to(folder, target_is_directory=True)


def _llvip(source: Path) -> Iterator[AnnotatedImage]:
    """LLVIP (Jia et al., arXiv:2108.10831): one Pascal VOC file for both images of a pair."""
    for visible in _files(source / "visible", "*/*.jpg"):
        split = visible.parent.name
        size, objects = _voc_objects(source / "Annotations" / f"{visible.stem}.xml")
        lwir = _image(source / "infrared" / split / visible.name, visible)
        yield AnnotatedImage(split, f"visible/{split}/{visible.name}", visible, size, objects, lwir)


def _voc_objects(file: Path) -> tuple[tuple[int, int], list[Object]]:
    """Size and objects of a Pascal VOC file; corners are used unchanged."""
    root = xml_of(text_of(file, AnnotationError), str(file))
    if (stated := root.find("size")) is None:
        raise AnnotationError(f"{file} has no <size>")
    size, objects = size_of(stated, f"{file}: <size>"), []
    for i, element in enumerate(root.iter("object"), 1):
        at = f"{file}: object {i}"
        if (box := element.find("bndbox")) is None:
            raise AnnotationError(f"{at} has no <bndbox>")
        x1, y1, x2, y2 = corners = [number_of(box, tag, at) for tag in ("xmin", "ymin", "xmax", "ymax")]
        if max(map(abs, corners)) > MOST_PIXELS / 2:
            raise AnnotationError(f"{at} has the corners {corners}, which lie beyond any image")
        difficult = element.findtext("difficult", "0").strip() == "1"
        label = label_of(element.findtext("name", "").strip())
        objects.append(Object((x1, y1, x2 - x1, y2 - y1), label, difficult))
    return size, objects


_PASCAL_SIZE = re.compile(r"^Image size \(X x Y x C\) : ([1-9]\d{0,8}) x ([1-9]\d{0,8}) x \d+\s*$", re.MULTILINE)
_PASCAL_COUNT = re.compile(r"^Objects with ground truth : (\d{1,9}) ", re.MULTILINE)
_PASCAL_BOX = re.compile(
    r"^Bounding box for object .* - \(Xmax, Ymax\) : \((\d{1,9}), (\d{1,9})\) - \((\d{1,9}), (\d{1,9})\)\s*$",
    re.MULTILINE,
)


def _pennfudan(source: Path) -> Iterator[AnnotatedImage]:
    """Penn-Fudan (Wang et al., ACCV 2007): PASCAL 1.00, inclusive corners from (1, 1).

    It has no splits; small or heavily occluded people are not annotated.
    """
    for file in _files(source / "Annotation", "*.txt"):
        text = text_of(file, AnnotationError)
        if not (size := _PASCAL_SIZE.search(text)):
            raise AnnotationError(f"{file}: no line says 'Image size (X x Y x C) : W x H x C'")
        corners = [tuple(map(int, box)) for box in _PASCAL_BOX.findall(text)]
        stated = int(count[1]) if (count := _PASCAL_COUNT.search(text)) else None
        if stated != len(corners):
            raise AnnotationError(f"{file}: states {stated} objects, but has {len(corners)} boxes that can be read")
        objects = [Object((x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1)) for x1, y1, x2, y2 in corners]
        name = f"PNGImages/{file.stem}.png"
        yield AnnotatedImage("", name, _image(source / name, file), (int(size[2]), int(size[1])), objects)


def _voc(source: Path) -> Iterator[AnnotatedImage]:
    """Pascal VOC (Everingham et al., IJCV 2010): splits as ``ImageSets/Main`` lists them, or by folder."""
    xml = _walk(source, (".xml",))
    if not xml:
        raise DataError(f"{source}: no file *.xml there")
    images: dict[str, list[Path]] = {}
    for path in _walk(source, endings_of("image")):
        images.setdefault(path.stem, []).append(path)
    pictures = []
    for file, split in _voc_lists(source, xml) or _by_top_folder(source, xml):
        size, objects = _voc_objects(file)
        near = [image for image in images.get(file.stem, []) if image.parent == file.parent]
        if len(found := near or images.get(file.stem, [])) != 1:
            what = "missing" if not found else f"could be {found[0]} or {found[1]}"
            raise DataError(f"{file}: its image, {file.stem} with .jpg, .png or the like below {source}, is {what}")
        pictures.append(AnnotatedImage(split, "", found[0], size, objects))
    return _with_names(source, pictures)


def _voc_lists(source: Path, xml: list[Path]) -> list[tuple[Path, str]]:
    """XML files and their splits, where ``ImageSets/Main`` has lists."""
    lists = {name: source / "ImageSets" / "Main" / f"{name}.txt" for name in ("train", "trainval", "val", "test")}
    lists = {name: path for name, path in lists.items() if path.is_file()}
    if lists.keys() >= {"train", "trainval"}:
        del lists["trainval"]
    by_stem = {path.stem: path for path in xml}
    found = []
    for name, path in lists.items():
        for number, line in enumerate(text_of(path, AnnotationError).splitlines(), 1):
            if words := line.split():
                if words[0] not in by_stem:
                    raise AnnotationError(f"{path}: line {number} names {words[0]}, of which there is no XML file")
                found.append((by_stem[words[0]], _SPLITS[name]))
    return found


_SPLITS = {"train": "train", "trainval": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def _by_top_folder(source: Path, files: list[Path]) -> list[tuple[Path, str]]:
    """Files and their splits by the first folder below the source that is named after one."""
    found = []
    for file in files:
        folders = (part.lower() for part in file.relative_to(source).parts[:-1])
        found.append((file, next((_SPLITS[folder] for folder in folders if folder in _SPLITS), "")))
    without = [file for file, split in found if not split]
    if without and len(without) < len(found):
        raise DataError(f"{without[0]}: is in no folder train, val or test, as others are")
    return found


def _walk(source: Path, endings: Collection[str]) -> list[Path]:
    """Files with these endings below a folder, sorted; hidden ones are left out."""
    return sorted(p for p in walk(source, Counter()) if p.suffix.lower() in endings and not p.name.startswith("."))


def _with_names(source: Path, pictures: list[AnnotatedImage]) -> Iterator[AnnotatedImage]:
    """Name the pictures below their common folder."""
    shared = Path(os.path.commonpath([picture.file.absolute().parent for picture in pictures]))
    one_split = len({picture.split for picture in pictures}) == 1
    for picture in pictures:
        name = picture.file.absolute().relative_to(shared)
        if len(name.parts) < 2 or shared != source.absolute():
            name = shared.name / name
        yield replace(picture, split="" if one_split else picture.split, name=name.as_posix())


def _yolo(source: Path) -> Iterator[AnnotatedImage]:
    """YOLO (ultralytics' form, and Roboflow's): one text file per image, one box or outline per line.

    The numbers are shares of the image; ``images/`` in an image's path becomes ``labels/``, or the text lies beside
    it. ``data.yaml`` has ``names`` and, for train, val and test, folders or lists of images; without it
    ``classes.txt`` has the names, and folders are the splits.
    """
    found = [source] if source.is_file() else sorted([*source.glob("*.yaml"), *source.glob("*.yml")])
    if len(found) > 1:
        found = [path for path in found if path.stem == "data"]
    folder = source.parent if source.is_file() else source
    classes, listed = _yolo_yaml(found[0], folder) if found else (_yolo_classes(folder), [])
    listed = listed or _by_top_folder(folder, _walk(folder, endings_of("image")))
    if not listed:
        raise DataError(f"{source}: no images there")
    pictures = [_yolo_image(file, split, classes) for file, split in listed]
    if not any(picture.objects for picture in pictures):
        raise DataError(f"{source}: none of the images has a box; looked for {_yolo_label(listed[0][0])} and its like")
    texts = {image: _yolo_label(image) for image, _ in listed}
    bare = [image for image, text in texts.items() if not text.is_file()]
    places = {text.parent for text in texts.values() if "labels" in text.parts}
    lost = {text for place in places for text in place.glob("*.txt") if text.name != "classes.txt"}
    for files, what in (
        (bare, "images have no text and count as without objects"),
        (sorted(lost - set(texts.values())), "texts of boxes have no image that is listed, and are left out"),
    ):
        if files:
            warnings.warn(f"{source}: {len(files):,} {what} (the first: {files[0]})", Doubt, stacklevel=2)
    return _with_names(folder, pictures)


def _yolo_yaml(file: Path, folder: Path) -> tuple[dict[int, str], list[tuple[Path, str]]]:
    """Names of the classes by number, and the images with their splits."""
    try:
        content = yaml.safe_load(text_of(file, DataError))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date like 2001-99-99 is a ValueError
        raise DataError(f"{file}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(names := content.get("names"), list | dict):
        raise DataError(f"{file}: has no list 'names' of classes")
    numbered = names.items() if isinstance(names, dict) else enumerate(names)
    try:
        classes = {int(key): str(name) for key, name in numbered}
    except (TypeError, ValueError) as error:
        raise DataError(f"{file}: names: {error}") from error
    base, listed = folder / str(content.get("path") or ""), []
    for split in ("train", "val", "test"):
        value = content.get(split)
        for entry in value if isinstance(value, list) else [value] if value else []:
            listed += [(image, split) for image in _yolo_images(str(entry), base, folder, file)]
    return classes, listed


def _yolo_classes(folder: Path) -> dict[int, str]:
    for file in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if file.is_file():
            return dict(enumerate(text_of(file, AnnotationError).split("\n")))
    raise DataError(f"{folder}: neither data.yaml nor classes.txt there says what the classes are")


def _yolo_images(entry: str, base: Path, folder: Path, named_by: Path) -> list[Path]:
    """Images of a folder or a list; Roboflow's paths start one folder too high."""
    short = re.sub(r"^(\.\./)+", "", entry)
    place = next((p for p in (base / entry, folder / entry, folder / short) if p.exists()), None)
    if place is None:
        raise DataError(f"{named_by}: names {entry!r}, but {base / entry} is not there")
    if place.is_dir():
        return _walk(place, endings_of("image"))
    lines = filter(None, map(str.strip, text_of(place, AnnotationError).splitlines()))
    return [
        _image(next((p for p in (place.parent / i, base / i) if p.is_file()), place.parent / i), place) for i in lines
    ]


def _yolo_label(image: Path) -> Path:
    """The text of an image: ``images`` nearest to the file becomes ``labels``, or beside it."""
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts) if Path(*parts).is_file() else image.with_suffix(".txt")


def _yolo_image(image: Path, split: str, classes: dict[int, str]) -> AnnotatedImage:
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
            raise AnnotationError(f"{at} has numbers beyond 0..1, but they should be shares of the image")
        if label not in classes:
            raise AnnotationError(f"{at} is of class {words[0]}, which has no name")
        if outline:
            x, y = shares[::2], shares[1::2]
            box = min(x), min(y), max(x) - min(x), max(y) - min(y)
        else:
            cx, cy, w, h = shares
            box = cx - w / 2, cy - h / 2, w, h
        x1, y1, w, h = (round(value * side, 3) for value, side in zip(box, (width, height) * 2, strict=True))
        objects.append(Object((x1, y1, w, h), label_of(classes[int(label)].strip())))
    return AnnotatedImage(split, "", image, (height, width), objects)


FORMATS: dict[str, Callable[[Path], Iterator[AnnotatedImage]]] = {
    "llvip": _llvip,
    "pennfudan": _pennfudan,
    "yolo": _yolo,
    "voc": _voc,
}


def _files(folder: Path, pattern: str) -> list[Path]:
    found = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: no file {pattern} there")
    return found


def _image(path: Path, named_by: Path | str) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: missing, the image of {named_by}")
    return path
