"""Readers of KAIST's own annotation files: XML, and the Caltech toolbox's ``bbGt`` text, single or paired.

All give :class:`~data_kaist.structures.Annotations`. A box may reach over the border (39 do in the official files)
and is kept as it is written; a box without area, or with no part inside the frame, is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from data_kaist.errors import AnnotationError
from data_kaist.files import MOST_PIXELS, finite, has_no_area, is_possible, label_of
from data_kaist.splits import daytime_of
from data_kaist.structures import PERSON, Annotations, Daytime

AnnotationFormat = Literal["xml", "bbgt", "paired"]

KAIST_SIZE = (512, 640)
"""(height, width) of a KAIST frame in pixels."""

BBGT_HEADER = "% bbGt version=3"
_BBGT_COLUMNS = 12  # label x y w h occ vx vy vw vh ignore angle
_CORNER_COLUMNS = 5  # label x1 y1 x2 y2


@dataclass
class _Rows:
    """The objects of one file while it is read."""

    where: str
    size: tuple[int, int]
    without_area: list[str] | None = None
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    ignore: list[bool] = field(default_factory=list)
    occlusion: list[int] = field(default_factory=list)
    height: list[float] = field(default_factory=list)

    @property
    def next_object(self) -> str:
        return f"{self.where}: object {len(self.boxes) + 1}"

    def add(self, label: str, xywh: tuple[float, float, float, float], occlusion: float, ignore: bool) -> None:
        """Append an object, or say why it cannot be one."""
        x, y, w, h = xywh
        box = f"x {x:g}, y {y:g}, w {w:g}, h {h:g}"
        if self.without_area is not None and has_no_area(xywh):
            self.without_area.append(f"{self.next_object} ({label})")
            return
        if w <= 0 or h <= 0 or not is_possible(x, y, w, h, np.float32):
            raise AnnotationError(f"{self.next_object} ({label}) has a box without area ({box})")
        height, width = self.size
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            raise AnnotationError(f"{self.next_object} ({label}) lies outside the {width}x{height} frame ({box})")
        if occlusion not in (0, 1, 2):
            raise AnnotationError(
                f"{self.next_object} ({label}) has occlusion {occlusion:g}, which should be 0, 1 or 2"
            )
        self.boxes.append((x, y, x + w, y + h))
        self.labels.append(label_of(label))
        self.ignore.append(ignore)
        self.occlusion.append(int(occlusion))
        self.height.append(h)

    def finish(self, daytime: Daytime | None) -> Annotations:
        return Annotations.from_rows(
            self.boxes,
            self.labels,
            ignore=self.ignore,
            occlusion=self.occlusion,
            height=self.height,
            size=self.size,
            daytime=daytime,
        )


def annotation_path(folder: Path, name: str, annotation_format: AnnotationFormat, modality: str = "visible") -> Path:
    """Where a frame's annotation file lies below the annotation folder.

    Args:
        folder: the annotation folder.
        name: the frame's name, ``setXX/VYYY/IZZZZZ``.
        annotation_format: ``xml``, ``bbgt`` (one text file a frame) or ``paired`` (one text file a modality, below
            ``visible/`` and ``lwir/``, either at the top of the folder or inside each video).
        modality: which of the paired files; both modalities together use the visible one, to which the boxes of
            the single-file formats were drawn too.
    """
    if annotation_format != "paired":
        return folder / f"{name}.{'xml' if annotation_format == 'xml' else 'txt'}"
    side = "lwir" if modality == "lwir" else "visible"
    video, _, number = name.rpartition("/")
    top = folder / side
    return top / f"{name}.txt" if top.is_dir() else folder / video / side / f"{number}.txt"


def read_annotation(
    folder: Path,
    name: str,
    annotation_format: AnnotationFormat,
    *,
    modality: str = "visible",
    size: tuple[int, int] = KAIST_SIZE,
    without_area: list[str] | None = None,
    file: Path | None = None,
) -> Annotations:
    """Read the annotation of one frame in any of the three forms.

    Arguments as in :func:`annotation_path` and, of ``without_area``, in :func:`data_kaist.coco.read_coco`; ``file`` is
    where it was found, None: where it should be.
    """
    path = file or annotation_path(folder, name, annotation_format, modality)
    parse = parse_xml if annotation_format == "xml" else parse_bbgt
    return parse(_read(path), str(path), size=size, daytime=daytime_of(name), without_area=without_area)


def parse_xml(
    data: bytes,
    where: str,
    *,
    size: tuple[int, int] = KAIST_SIZE,
    daytime: Daytime | None = None,
    without_area: list[str] | None = None,
) -> Annotations:
    """The objects in the bytes of an XML file.

    Args:
        data: the file's bytes.
        where: the file's name, for messages.
        size: (height, width) in pixels of the image, for files without ``<size>``.
        daytime: copied into the result.
        without_area: see :func:`data_kaist.coco.read_coco`.

    Raises:
        AnnotationError: broken XML, a missing tag, not a finite number, no area, outside the frame. One sentence
            that names the file and the object.
    """
    try:
        root = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise AnnotationError(f"{where}: not readable as XML ({error})") from error
    stated = root.find("size")
    if stated is not None:
        size = size_of(stated, f"{where}: <size>")
    rows = _Rows(where, size, without_area)
    for element in root.iter("object"):
        label = (element.findtext("name") or "").strip()
        if not label:
            raise AnnotationError(f"{rows.next_object} has no <name>")
        box = element.find("bndbox")
        if box is None:
            raise AnnotationError(f"{rows.next_object} ({label}) has no <bndbox>")
        at = f"{rows.next_object} ({label})"
        x, y, w, h = (_number(box, tag, at) for tag in ("x", "y", "w", "h"))
        rows.add(label, (x, y, w, h), _number(element, "occlusion", at), ignore=False)
    return rows.finish(daytime)


def size_of(element: Any, at: str) -> tuple[int, int]:
    """(height, width) in pixels that an XML element states in tags of these names.

    Args:
        element: the image's ``<size>``.
        at: file and element, for messages.

    Raises:
        AnnotationError: a tag is missing, or is no whole number from 1.
    """
    height, width = (_number(element, tag, at) for tag in ("height", "width"))
    if not (1 <= height <= MOST_PIXELS and 1 <= width <= MOST_PIXELS) or height % 1 or width % 1:
        raise AnnotationError(f"{at} says {width:g}x{height:g} pixels, which should be whole and above 0")
    return int(height), int(width)


def parse_bbgt(
    data: bytes,
    where: str,
    *,
    size: tuple[int, int] = KAIST_SIZE,
    daytime: Daytime | None = None,
    without_area: list[str] | None = None,
) -> Annotations:
    """The objects in the bytes of a ``bbGt`` file: a header, then ``label x y w h occ vx vy vw vh ignore angle``.

    The sanitized annotations' other form is read as well, which has no header and lines ``label x1 y1 x2 y2``.
    Arguments and errors as in :func:`parse_xml`; the text has no size of its own.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{where}: not a text file ({error})") from error
    corners = bool(lines) and len(lines[0].split()) == _CORNER_COLUMNS and not lines[0].startswith("%")
    if not corners and not (lines and lines[0].replace(" ", "").startswith("%bbGtversion=")):
        raise AnnotationError(f"{where}: the first line should be '{BBGT_HEADER}'")
    rows = _Rows(where, size, without_area)
    for line in lines if corners else lines[1:]:
        columns = line.split()
        if not columns:
            continue
        if corners and len(columns) == _CORNER_COLUMNS:
            at = f"{rows.next_object} ({columns[0]})"
            x1, y1, x2, y2 = (finite(text, "corner", at, AnnotationError) for text in columns[1:])
            rows.add(columns[0], (x1, y1, x2 - x1, y2 - y1), 0, ignore=False)
            continue
        if len(columns) != _BBGT_COLUMNS:
            raise AnnotationError(f"{rows.next_object} has {len(columns)} columns, which should be {_BBGT_COLUMNS}")
        at = f"{rows.next_object} ({columns[0]})"
        x, y, w, h, occlusion = (
            finite(text, name, at, AnnotationError)
            for text, name in zip(columns[1:6], ("x", "y", "w", "h", "occlusion"), strict=True)
        )
        rows.add(columns[0], (x, y, w, h), occlusion, ignore=finite(columns[10], "ignore", at, AnnotationError) != 0)
    return rows.finish(daytime)


def training_ignore(annotations: Annotations, min_height: float = 12) -> np.ndarray:
    """Which objects are ignore regions in training: neither to be found nor background.

    They are those that are not ``person``, that the file flags, that are lower than ``min_height`` pixels, or that
    reach over the border of the image (the rule of the study).

    Returns:
        bool ``(n,)``.
    """
    height, width = annotations.size
    x1, y1, x2, y2 = annotations.boxes_xyxy.T
    over_border = (x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height)
    not_person = np.asarray(annotations.labels != PERSON, dtype=bool)
    ignore: np.ndarray = not_person | annotations.ignore | (annotations.height < min_height) | over_border
    return ignore


def other_labels(annotations: Iterable[Annotations]) -> str:
    """``people 205, cyclist 105``: labels other than person with their numbers of boxes; empty where there is none."""
    counts = Counter(str(label) for of_image in annotations for label in of_image.labels if label != PERSON)
    return ", ".join(f"{label} {count:,}" for label, count in counts.most_common())


def doubt_of_boxes(annotations: Iterable[Annotations], min_height: float = 12) -> str:
    """A sentence where most boxes of persons reach out of their image, are under a pixel or are ignored in training.

    Corners that are read as x, y, w, h reach out of the image on most images; where all boxes would fit as corners, a
    tenth of them is enough.

    Args:
        annotations: one per image.
        min_height: see :func:`training_ignore`.

    Returns:
        With the numbers; empty where there is no doubt.
    """
    n = out = tiny = ignored = corners = 0
    for of_image in annotations:
        person = np.asarray(of_image.labels == PERSON, bool)
        x1, y1, x2, y2 = of_image.boxes_xyxy[person].T
        height, width = of_image.size
        w, h = x2 - x1, y2 - y1
        n += len(w)
        out += int(((x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height)).sum())
        tiny += int(((w < 1) | (h < 1)).sum())
        ignored += int(training_ignore(of_image, min_height)[person].sum())
        corners += int(((w > x1) & (h > y1) & (w <= width) & (h <= height)).sum())
    if 2 * max(out, tiny, ignored) <= n and not (corners == n and 10 * out >= n > 0):
        return ""
    return (
        f"of {n:,} boxes of persons {out:,} reach out of their image, {tiny:,} are under a pixel wide or high and "
        f"{ignored:,} become ignore regions in training; are they x, y, width, height in pixels of the image"
        f"{', or corners' if corners == n else ''}?"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file system can hold
        raise AnnotationError(
            f"{path}: cannot read the annotation ({getattr(error, 'strerror', None) or error})"
        ) from error


def _number(parent: Any, tag: str, at: str) -> float:
    text = parent.findtext(tag)
    if text is None:
        raise AnnotationError(f"{at} has no <{tag}>")
    return finite(text, tag, at, AnnotationError)
