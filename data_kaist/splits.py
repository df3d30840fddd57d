"""Names of KAIST frames, day and night, and splits.

A frame is named ``setXX/VYYY/IZZZZZ``. Every official list of the data set is a rule, so none is stored here:
``<train|test>-<all|day|night>-NN`` are the frames of those sets whose number modulo NN is NN - 1
(``test-all-20`` are the 2,252 frames on which the miss rate is published). Other lists are read from text files.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from data_kaist.errors import SplitError
from data_kaist.files import text_of
from data_kaist.structures import Daytime

STUDY_VALIDATION = "set02/V001/I00121-I00189"
"""The frames that the study cut out of the training frames to validate on; both ends belong to it."""

DAY_SETS = frozenset({0, 1, 2, 6, 7, 8})
NIGHT_SETS = frozenset({3, 4, 5, 9, 10, 11})
TRAIN_SETS = frozenset(range(6))
TEST_SETS = frozenset(range(6, 12))

_NAME = re.compile(r"set(\d{2})/V(\d{3})/I(\d{5})", re.ASCII)
_SPELLING = re.compile(r"set(\d{2})[/_]V(\d{3})[/_](?:(?:visible|lwir)[/_])?I(\d{5})", re.ASCII)
_RULE = re.compile(r"(train|test)-(all|day|night)-(\d{2,9})", re.ASCII)
_RANGE = re.compile(r"set(\d{2})/V(\d{3})/I(\d{5})-I(\d{5})", re.ASCII)
_USUAL = [f"{of}-{time}-{step}" for of, step in (("train", "02"), ("test", "20")) for time in ("all", "day", "night")]
_FORMS = f"a rule such as 'train-all-02', a range such as '{STUDY_VALIDATION}' or a text file of frame names"


class FrameName(NamedTuple):
    """The three numbers of a frame's name. They sort as the names do."""

    set: int
    video: int
    number: int

    @classmethod
    @cache
    def parse(cls, name: str) -> FrameName:
        """The numbers in ``setXX/VYYY/IZZZZZ``; :class:`SplitError` for anything else."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise SplitError(f"{name!r} is not a KAIST frame name, which looks like 'set06/V001/I00459'")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"set{self.set:02d}/V{self.video:03d}/I{self.number:05d}"

    @property
    def daytime(self) -> Daytime | None:
        """``day`` or ``night`` by the set's number. None for a set that KAIST does not have."""
        if self.set in DAY_SETS:
            return "day"
        return "night" if self.set in NIGHT_SETS else None


def is_frame_name(name: str) -> bool:
    """Whether ``name`` has the form ``setXX/VYYY/IZZZZZ``."""
    return _NAME.fullmatch(name) is not None


def daytime_of(name: str) -> Daytime | None:
    """``day`` or ``night`` of a KAIST frame name. None for any other name."""
    return FrameName.parse(name).daytime if is_frame_name(name) else None


@dataclass(frozen=True)
class Split:
    """Frames of a split: those that it ``holds``. ``listed`` are names of frames in text files."""

    holds: Callable[[FrameName], bool]
    listed: frozenset[str] = frozenset()

    def __contains__(self, frame: FrameName) -> bool:
        return self.holds(frame)


def _listed_in(file: Path) -> Split:
    """Frames of a text file, one per line. Names may be in any of KAIST's spellings."""
    frames = []
    for number, line in enumerate(text_of(file, SplitError).splitlines(), 1):
        if line.strip():
            if (name := spelling(line)) is None:
                raise SplitError(f"{file}: line {number} names no KAIST frame ({line.strip()[:60]!r})")
            frames.append(name)
    listed = frozenset(frames)
    return Split(lambda frame: str(frame) in listed, listed)


def spelling(text: str) -> str | None:
    """Frame name of a path in any of KAIST's spellings, or None.

    >>> spelling("images/set00_V000_visible_I00001.jpg")
    'set00/V000/I00001'
    """
    match = _SPELLING.search(text)
    return str(FrameName(*map(int, match.groups()))) if match else None


def parse_split(spec: str, root: Path | None = None) -> Split:
    """The split of a name. A SplitError for an invalid one has the nearest valid one.

    >>> FrameName.parse("set06/V000/I00019") in parse_split("test-all-20")
    True

    Args:
        spec: ``train-all-02``, ``test-night-20`` ..., a range ``set02/V001/I00121-I00189``, a text file that lists
            frames, or several of these joined by ``+``.
        root: folder that the text file is relative to; the current one is tried as well.
    """
    if "+" in spec:
        parts = [parse_split(part, root) for part in spec.split("+")]
        return Split(lambda frame: any(frame in part for part in parts), frozenset().union(*(p.listed for p in parts)))
    if spec.endswith(".txt"):
        file = (root or Path()) / spec
        return _listed_in(file if file.is_file() or not Path(spec).is_file() else Path(spec))
    if match := _RULE.fullmatch(spec):
        part, time, step = match.groups()
        sets = TRAIN_SETS if part == "train" else TEST_SETS
        if time != "all":
            sets &= DAY_SETS if time == "day" else NIGHT_SETS
        if (every := int(step)) < 1:
            raise SplitError(f"split {spec!r} takes every 0th frame; did you mean '{part}-{time}-01'?")
        return Split(lambda frame: frame.set in sets and frame.number % every == every - 1)
    if match := _RANGE.fullmatch(spec):
        set_, video, first, last = map(int, match.groups())
        if first > last:
            raise SplitError(f"split {spec!r} ends before it begins")
        return Split(lambda frame: FrameName(set_, video, first) <= frame <= FrameName(set_, video, last))
    near = difflib.get_close_matches(spec.lower(), _USUAL, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"it should be {_FORMS}"
    raise SplitError(f"unknown split {spec!r}; {hint}")


def select(names: Iterable[str], split: str | Split) -> list[str]:
    """The frames of ``names`` that belong to a split, sorted. May be empty."""
    wanted = parse_split(split) if isinstance(split, str) else split
    return sorted(name for name in names if FrameName.parse(name) in wanted)
