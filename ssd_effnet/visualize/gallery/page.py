"""Writes a gallery: one HTML file with pictures, filters, sorting and zoom.

A page is made of plain values, so that anything can be shown on one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_kaist.classes import PERSON
from data_kaist.files import write_whole
from ssd_effnet.drawing import KINDS
from ssd_effnet.visualize.templates import templates

Fractions = tuple[float, float, float, float]
"""Left, top, width and height of a box as fractions of a picture's width and height."""


@dataclass(frozen=True)
class Large:
    """A picture that an entry is enlarged to. Address beside the page, and rings around its subject."""

    address: str
    caption: str = ""
    rings: Sequence[Fractions] = ()


@dataclass(frozen=True)
class GalleryEntry:
    """One picture of a gallery. None or empty is unknown, shown by filter "all" only.

    Attributes:
        kind: key in :attr:`GalleryPage.kinds`, or the words themselves.
        name: of the frame.
        thumbnail: address of a small picture; empty where it could not be drawn, and the caption says why.
        width, height_shown: of the thumbnail in pixels.
        larger: pictures to enlarge to; the thumbnail where there are none.
        height: of the object in pixels.
        score: of the detection in question.
    """

    kind: str
    name: str
    caption: str = ""
    thumbnail: str = ""
    width: int = 0
    height_shown: int = 0
    larger: Sequence[Large] = ()
    daytime: str = ""
    occlusion: str = ""
    height: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Bar:
    """A cell of a chart: words and a bar. 0 to 1 of the column's width; hatched where ``minus``."""

    words: str
    share: float
    minus: bool = False


@dataclass(frozen=True)
class Chart:
    """A table whose cells may be bars. The first cell of a row is its heading."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Bar]]
    note: str = ""


@dataclass(frozen=True)
class GalleryPage:
    """Content of a gallery: title, paragraphs below it, charts, entries.

    ``kinds`` names each kind of entry, in the order of the filter; ``legend`` has keys of
    :data:`ssd_effnet.drawing.KINDS`; ``of_class`` is what it calls a true box.
    """

    title: str
    lead: Sequence[str] = ()
    entries: Sequence[GalleryEntry] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    charts: Sequence[Chart] = ()
    legend: Sequence[str] = ("truth", "missed", "hit", "false_alarm", "ignored", "dropped", "focus")
    of_class: str = PERSON


def write_page(path: Path, page: GalleryPage) -> None:
    """Write the page; the file is replaced whole or not at all."""
    write_whole(path, render(page))


def render(page: GalleryPage) -> str:
    """The page as HTML text; names and captions are escaped."""
    keys = [*page.kinds, *(entry.kind for entry in page.entries)]
    heights = [entry.height for entry in page.entries if entry.height is not None]
    return (
        templates(__file__)
        .get_template("gallery.html")
        .render(
            page=page,
            kinds={key: page.kinds.get(key, key) for key in dict.fromkeys(keys)},
            daytimes=_in_order({entry.daytime for entry in page.entries}, ("day", "night")),
            occlusions=_in_order({entry.occlusion for entry in page.entries}, ("none", "partial", "heavy")),
            heights=(int(min(heights)), int(-(-max(heights) // 1))) if heights else None,
            scored=any(entry.score is not None for entry in page.entries),
            legend=[KINDS[kind] for kind in page.legend],
            large=[[[large.address, large.caption, large.rings] for large in entry.larger] for entry in page.entries],
            date=time.strftime("%Y-%m-%d %H:%M %z"),
        )
    )


def _in_order(found: set[str], order: Sequence[str]) -> list[str]:
    """The choices of a filter: none if all entries are equal; "" (unknown) last."""
    known = [word for word in order if word in found] + sorted(found - {*order, ""})
    return [*known, *([""] if "" in found else [])] if len(found) > 1 else []
