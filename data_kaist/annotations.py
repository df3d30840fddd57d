"""Reads KAIST's annotation files: XML, and the Caltech toolbox's ``bbGt`` text.

A box may reach over the border (39 do in the official files) and is kept so; one without area is left out with a
doubt; one with no part inside the frame is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from data_kaist.classes import PEOPLE, Classes, is_among, label_of
from data_kaist.errors import AnnotationError, warn_doubt
from data_kaist.files import MOST_PIXELS, finite, has_no_area, is_possible, text_of
from data_kaist.splits import daytime_of
from data_kaist.structures import Annotations, Daytime

AnnotationFormat = Literal["xml", "bbgt", "paired", "coco"]

KAIST_SIZE = (512, 640)
"""(height, width) of a KAIST frame in pixels."""

BBGT_HEADER = "% bbGt version=3"
_BBGT_COLUMNS = 12  # label x y w h occ vx vy vw vh ignore angle
_CORNER_COLUMNS = 5  # label x1 y1 x2 y2


class ObjectRow(NamedTuple):
    """One object of a ground-truth file; see :class:`~data_kaist.structures.Annotations`."""

    label: str
    xywh: tuple[float, float, float, float]
    occlusion: Any = 0
    ignore: bool = False
    height: float | None = None

    def checked(self, size: tuple[int, int] | None, at: str) -> ObjectRow:
        """The row. Raises AnnotationError for an impossible box or occlusion, or a box outside ``size``."""
        x, y, w, h = self.xywh
        box = f"x {x:g}, y {y:g}, w {w:g}, h {h:g}"
        if not (has_no_area(self.xywh) or is_possible(x, y, w, h, np.float32)):
            raise AnnotationError(f"{at} has a box without area ({box})")
        if size and (x >= size[1] or y >= size[0] or x + w <= 0 or y + h <= 0):
            raise AnnotationError(f"{at} lies outside its {size[1]}x{size[0]} image ({box})")
        if self.occlusion not in (0, 1, 2):
            raise AnnotationError(f"{at} has occlusion {self.occlusion!r}, which should be 0, 1 or 2")
        return self


def annotations_from(
    rows: Sequence[ObjectRow], size: tuple[int, int], daytime: Daytime | None, where: str
) -> Annotations:
    """The rows as arrays. A missing height is the box's; boxes without area are left out with a doubt."""
    given, rows = rows, [row for row in rows if not has_no_area(row.xywh)]
    if len(rows) < len(given):
        warn_doubt(f"{where}: {len(given) - len(rows):,} boxes without area are left out")
    return Annotations.from_rows(
        [(x, y, x + w, y + h) for x, y, w, h in (row.xywh for row in rows)],
        [label_of(row.label) for row in rows],
        ignore=[row.ignore for row in rows],
        occlusion=[int(row.occlusion) for row in rows],
        height=[row.xywh[3] if row.height is None else row.height for row in rows],
        size=size,
        daytime=daytime,
    )


def read_annotation(file: Path, name: str, *, size: tuple[int, int] = KAIST_SIZE, of_pair: bool = False) -> Annotations:
    """Read the annotation of one frame: ``.xml``, else text.

    ``size`` (height, width) is that of files that state none. With ``of_pair`` the file is of one image of a pair, and
    its objects may be outside that image. An AnnotationError names the file and the object.
    """
    parse = parse_xml if file.suffix.lower() == ".xml" else partial(parse_bbgt, of_pair=of_pair)
    return parse(text_of(file, AnnotationError), str(file), size=size, daytime=daytime_of(name))


def parse_xml(
    text: str, where: str, *, size: tuple[int, int] = KAIST_SIZE, daytime: Daytime | None = None
) -> Annotations:
    """The objects of an XML file named ``where``. The rest as for :func:`read_annotation`."""
    root = xml_of(text, where)
    stated = root.find("size")
    if stated is not None:
        size = size_of(stated, f"{where}: <size>")
    rows: list[ObjectRow] = []
    for number, element in enumerate(root.iter("object"), 1):
        label = (element.findtext("name") or "").strip()
        at = f"{where}: object {number} ({label})"
        if not label:
            raise AnnotationError(f"{where}: object {number} has no <name>")
        if (box := element.find("bndbox")) is None:
            raise AnnotationError(f"{at} has no <bndbox>")
        x, y, w, h = (number_of(box, tag, at) for tag in "xywh")
        row = ObjectRow(label, (x, y, w, h), number_of(element, "occlusion", at))
        rows.append(row.checked(size, at))
    return annotations_from(rows, size, daytime, where)


def parse_bbgt(
    text: str, where: str, *, size: tuple[int, int] = KAIST_SIZE, daytime: Daytime | None = None, of_pair: bool = False
) -> Annotations:
    """Objects of a ``bbGt`` file. A row is ``label x y w h occ vx vy vw vh ignore angle``, after a header.

    The sanitized annotations' other form is read as well, which has no header and lines ``label x1 y1 x2 y2``.
    Arguments and errors as for :func:`read_annotation`; the text states no size.
    """
    lines = text.splitlines()
    corners = bool(lines) and len(lines[0].split()) == _CORNER_COLUMNS and not lines[0].startswith("%")
    if not corners and not (lines and lines[0].replace(" ", "").startswith("%bbGtversion=")):
        raise AnnotationError(f"{where}: the first line should be '{BBGT_HEADER}'")
    rows: list[ObjectRow] = []
    for number, columns in enumerate(filter(None, map(str.split, lines if corners else lines[1:])), 1):
        at = f"{where}: object {number} ({columns[0]})"
        has_corners = corners and len(columns) == _CORNER_COLUMNS
        if not has_corners and len(columns) != _BBGT_COLUMNS:
            raise AnnotationError(f"{where}: object {number} has {len(columns)} columns, which should be 12")
        names = ("x", "y", "x2", "y2") if has_corners else ("x", "y", "w", "h", "occlusion")
        x, y, w, h, *occlusion = (
            finite(column, k, at, AnnotationError) for column, k in zip(columns[1:], names, strict=False)
        )
        if has_corners:
            row = ObjectRow(columns[0], (x, y, w - x, h - y))
        else:
            ignore = finite(columns[10], "ignore", at, AnnotationError) != 0
            row = ObjectRow(columns[0], (x, y, w, h), occlusion[0], ignore)
        rows.append(row.checked(None if of_pair else size, at))
    return annotations_from(rows, size, daytime, where)


def xml_of(text: str, where: str) -> Any:
    """Root element of an XML text; AnnotationError for invalid XML or entities."""
    try:
        return fromstring(text)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise AnnotationError(f"{where}: not readable as XML ({error})") from error


def size_of(element: Any, at: str) -> tuple[int, int]:
    """(height, width) of an XML element ``<size>``; AnnotationError unless whole and positive."""
    height, width = (number_of(element, tag, at) for tag in ("height", "width"))
    if not (1 <= height <= MOST_PIXELS and 1 <= width <= MOST_PIXELS) or height % 1 or width % 1:
        raise AnnotationError(f"{at} says {width:g}x{height:g} pixels, which should be whole and above 0")
    return int(height), int(width)


def number_of(parent: Any, tag: str, at: str) -> float:
    """Finite number of an XML tag; AnnotationError if there is none."""
    text = parent.findtext(tag)
    if text is None:
        raise AnnotationError(f"{at} has no <{tag}>")
    return finite(text, tag, at, AnnotationError)


def training_ignore(annotations: Annotations, min_height: float = 12, classes: Classes = PEOPLE) -> np.ndarray:
    """Ignore regions in training, bool ``(n,)``: neither objects nor background.

    Objects of no class, flagged ones, those lower than ``min_height`` pixels, and those over the image's border by more
    than half a pixel (the rule of the study; rounding of other formats is less).
    """
    height, width = annotations.size
    x1, y1, x2, y2 = annotations.boxes_xyxy.T
    over_border = (x1 < -0.5) | (y1 < -0.5) | (x2 > width + 0.5) | (y2 > height + 0.5)
    of_no_class = classes.indices(annotations.labels) == 0
    ignore: np.ndarray = of_no_class | annotations.ignore | (annotations.height < min_height) | over_border
    return ignore


def other_labels(annotations: Iterable[Annotations], classes: Classes = PEOPLE) -> str:
    """Labels of no class with counts: ``people 205, cyclist 105``. Empty for none."""
    counts = Counter(str(label) for of_image in annotations for label in of_image.labels)
    others = [label for label, _ in counts.most_common() if not is_among([label], classes.all_labels).any()]
    return ", ".join(f"{label} {counts[label]:,}" for label in others)


def doubt_of_boxes(annotations: Iterable[Annotations], min_height: float = 12, classes: Classes = PEOPLE) -> str:
    """A sentence if most boxes of a class look wrong; else empty.

    Boxes over the border, under a pixel, or ignored in training. Corners and centres read as x, y, w, h cross the right
    and lower border only; if all boxes fit as such, three of them and a tenth of all suffice.
    """
    n = out = tiny = ignored = corners = centres = 0
    for of_image in annotations:
        wanted = classes.indices(of_image.labels) > 0
        x1, y1, x2, y2 = of_image.boxes_xyxy[wanted].T
        height, width = of_image.size
        w, h = x2 - x1, y2 - y1
        n += len(w)
        out += int(((x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height)).sum())
        tiny += int(((w < 1) | (h < 1)).sum())
        ignored += int(training_ignore(of_image, min_height, classes)[wanted].sum())
        corners += int(((w > x1) & (h > y1) & (w <= width) & (h <= height)).sum())
        left, top, right, bottom = 2 * x1 - w, 2 * y1 - h, 2 * x1 + w - 2 * width, 2 * y1 + h - 2 * height
        centres += int(((left > -2) & (top > -2) & (right < 2) & (bottom < 2)).sum())  # to a pixel
    fit = "".join(f", or {form}" for form, fits in (("corners", corners), ("centres", centres)) if fits == n and out)
    if 2 * max(out, tiny, ignored) <= n and not (fit and out >= max(3, n / 10)):
        return ""
    return (
        f"of {n:,} boxes of {classes} {out:,} reach out of "
        f"their image, {tiny:,} are under a pixel wide or high and {ignored:,} become ignore regions in "
        f"training; are they x, y, width, height in pixels of the image{fit}?"
    )
