"""Converts other pedestrian data sets to COCO files that ``data.kind: coco`` reads.

One function per format yields its images; :data:`FORMATS` names them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_kaist.annotations import number_of, size_of, xml_of
from data_kaist.classes import PERSON, label_of
from data_kaist.detections import write_images
from data_kaist.errors import AnnotationError, DataError
from data_kaist.files import MOST_PIXELS, is_possible, text_of

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
    if not source.is_dir():
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
    train chooses. Empty without a training split.
    """
    images = {split.file.name: split.images for split in done}
    if "train.json" not in images:
        return []
    test = next((name for name in ("test.json", "val.json") if name in images), "")
    val = "val.json" if "val.json" in images else f"train.json%{max(2, min(10, images['train.json']))}"
    chosen = ["data.train=train.json", f"data.val={val}", f"data.test={test}"]
    return chosen + (["trainer.test_checkpoint=last"] if val == test else [])


def _write(pictures: list[AnnotatedImage], file: Path, ids: dict[str, int]) -> Converted:
    done = Converted(file, len(pictures))
    rows: list[dict[str, Any]] = []
    for i, picture in enumerate(pictures):
        height, width = picture.size
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
    names, sizes = [picture.name for picture in pictures], [picture.size for picture in pictures]
    write_images(file, range(len(pictures)), names, sizes, {id_: label for label, id_ in ids.items()}, rows)
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


FORMATS: dict[str, Callable[[Path], Iterator[AnnotatedImage]]] = {"llvip": _llvip, "pennfudan": _pennfudan}


def _files(folder: Path, pattern: str) -> list[Path]:
    found = sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder}: no file {pattern} there")
    return found


def _image(path: Path, named_by: Path | str) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: missing, the image of {named_by}")
    return path
