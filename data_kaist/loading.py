"""Frames found on disk, in KAIST's own layout or in COCO form."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from data_kaist.annotations import KAIST_SIZE, AnnotationFormat, read_annotation
from data_kaist.coco import CocoImage, read_coco
from data_kaist.errors import AnnotationError, DataError, EmptySplitError, ImageError, SplitError
from data_kaist.frames import is_frame_name, parse_split, select
from data_kaist.images import image_size
from data_kaist.plain import is_inside
from ssd_effnet.structures import Annotations

Side = Literal["visible", "lwir"]
Modality = Literal["visible", "lwir", "early", "halfway"]
Skipped = list[tuple[str, str]]
"""(frame name, reason) of what was left out."""

SIDES: dict[str, tuple[Side, ...]] = {
    "visible": ("visible",),
    "lwir": ("lwir",),
    "early": ("visible", "lwir"),
    "halfway": ("visible", "lwir"),
}
"""The images that a modality reads; early and halfway fusion differ in the detector, not in the data."""

ANNOTATION_FOLDERS: dict[str, tuple[str, ...]] = {
    "xml": ("annotations-xml", "annotations-xml-new"),
    "bbgt": ("annotations-bbgt", "annotations-txt", "annotations"),
    "paired": ("annotations-paired", "annotations_paired"),
}
"""Where annotations are looked for below the root; the first that exists is used."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: its files (None where it has none) and what is known of its objects.

    Attributes:
        image_id: in a COCO file, None elsewhere.
        place: in its split from 0, bad frames that were left out counted: what image numbers count.
        category_id: of ``person`` in a COCO file, 1 elsewhere.
    """

    name: str
    visible: Path | None
    lwir: Path | None
    annotations: Annotations
    image_id: int | None = None
    place: int = 0
    category_id: int = 1


def image_ids(frames: Sequence[Frame]) -> list[int]:
    """What COCO results call these frames: the ids of their COCO file, or their places in the split."""
    return [frame.place if frame.image_id is None else frame.image_id for frame in frames]


def spread(frames: Sequence[Frame], count: int) -> list[int]:
    """Places of ``count`` frames, spread evenly over those that have objects; over all where too few have."""
    peopled = [place for place, frame in enumerate(frames) if len(frame.annotations)]
    choice = peopled if len(peopled) >= count else range(len(frames))
    return [choice[i] for i in np.linspace(0, len(choice) - 1, min(count, len(choice))).round().astype(int)]


def load_frames(
    kind: Literal["kaist", "coco"],
    root: str | Path,
    split: str,
    *,
    annotation_format: AnnotationFormat = "xml",
    annotations_dir: str | Path | None = None,
    exclude: str | None = None,
    modality: Modality | None = "visible",
    skipped: Skipped | None = None,
) -> list[Frame]:
    """The frames of a split, of a data set in either form.

    Args:
        kind: ``kaist`` (:func:`load_kaist`) or ``coco`` (:func:`load_coco`, where ``split`` is ``file.json`` below
            ``root`` and the two arguments about annotations have no meaning).
        root: the data set's folder.
        split: which frames.
        annotation_format: ``xml``, ``bbgt`` or ``paired``.
        annotations_dir: where the annotations are, if not at one of :data:`ANNOTATION_FOLDERS`.
        exclude: another split, to be cut out of this one: the validation frames out of the training frames.
        modality: images that must be there; None asks for none.
        skipped: None stops at the first bad frame; a list collects bad frames instead, which are left out.

    Raises:
        SplitError: wrong root or split, or nothing in it.
        ImageError: an image is missing.
        AnnotationError: an annotation is missing or broken.
    """
    if kind == "coco":
        return load_coco(root, split, exclude=exclude, modality=modality, skipped=skipped)
    if kind != "kaist":
        raise SplitError(f"unknown kind of data set {kind!r}; it should be 'kaist' or 'coco'")
    return load_kaist(
        root,
        split,
        annotation_format=annotation_format,
        annotations_dir=annotations_dir,
        exclude=exclude,
        modality=modality,
        skipped=skipped,
    )


def load_kaist(
    root: str | Path,
    split: str,
    *,
    annotation_format: AnnotationFormat = "xml",
    annotations_dir: str | Path | None = None,
    exclude: str | None = None,
    modality: Modality | None = "visible",
    skipped: Skipped | None = None,
) -> list[Frame]:
    """Frames of ``root/images/setXX/VYYY/{visible,lwir}/IZZZZZ.jpg``, sorted by name.

    A frame belongs to the data set when it has an image or an annotation; one without the other is an error, so that
    half a download is not mistaken for the whole. Arguments and errors as in :func:`load_frames`; ``split`` and
    ``exclude`` as in :func:`data_kaist.frames.parse_split`.
    """
    root = Path(root)
    parse_split(split)
    images = root / "images"
    if modality is not None and not images.is_dir():
        raise SplitError(
            f"{root}: no KAIST images there; looked for {images}/setXX/VYYY/visible/IZZZZZ.jpg and "
            "lwir (docs/kaist.md says where KAIST lives, scripts/make_synthetic.py writes a twin of it)"
        )
    folder = _annotation_folder(root, annotation_format, annotations_dir)
    pictured = {side: _names(images, side, ".jpg") for side in SIDES["early"]}
    names = pictured["visible"] | pictured["lwir"]
    if annotation_format == "paired":
        side = "lwir" if modality == "lwir" else "visible"
        names |= _names(folder, side, ".txt") | _names(folder / side, "", ".txt")
    else:
        names |= _names(folder, "", ".xml" if annotation_format == "xml" else ".txt")
    chosen = _cut(select(names, split), select(names, exclude) if exclude else [], split, exclude, len(names), root)

    def file(name: str, side: Side) -> Path | None:
        video, _, number = name.rpartition("/")
        return images / video / side / f"{number}.jpg" if name in pictured[side] else None

    files = {name: {side: file(name, side) for side in SIDES["early"]} for name in chosen}
    size = _usual_size([path for sides in files.values() for path in sides.values() if path is not None][:20])
    frames = []
    for place, name in enumerate(chosen):
        try:
            for side in SIDES[modality] if modality else ():
                if files[name][side] is None:
                    video, _, number = name.rpartition("/")
                    raise ImageError(f"{images / video / side / number}.jpg: missing, the {side} image of {name}")
            annotations = read_annotation(
                folder, name, annotation_format, modality=modality or "visible", size=size or KAIST_SIZE
            )
        except DataError as error:
            if skipped is None:
                raise
            skipped.append((name, str(error)))
            continue
        frames.append(Frame(name, files[name]["visible"], files[name]["lwir"], annotations, place=place))
    return _not_all_skipped(frames, split, skipped)


def load_coco(
    root: str | Path,
    split: str,
    *,
    exclude: str | None = None,
    modality: Modality | None = "visible",
    skipped: Skipped | None = None,
) -> list[Frame]:
    """Frames of a COCO file, in order of their ids.

    Args:
        root: the folder of the JSON file; the file names in it are relative to this folder. A file name may also be
            a KAIST frame name, whose images are then looked for as :func:`load_kaist` does.
        split: ``train.json``, or ``train.json%10`` for every tenth image (place modulo 10 is 9).
        exclude: another such split to be cut out: with ``train.json`` and ``train.json%10``, no file need be split.
        modality: images that must be there; the LWIR image is the file of the same name below ``lwir/`` where the
            visible one is below ``visible/``.
        skipped: as in :func:`load_frames`.
    """
    root, file = Path(root), _file_and_step(split)[0]
    bad: dict[int, str] | None = None if skipped is None else {}
    images, total, category = _coco_images(root, split, bad)
    excluded = [image.file_name for image, _ in _coco_images(root, exclude, {})[0]] if exclude else []
    left = set(_cut([image.file_name for image, _ in images], excluded, split, exclude, total, root))
    frames = []
    for place, (image, objects) in enumerate(images):
        name = image.file_name
        if name not in left:
            continue
        try:
            if bad and image.id in bad:
                raise AnnotationError(bad[image.id])
            if not is_inside(name):
                raise AnnotationError(
                    f"{root / file}: image {image.id} has the file name {name!r}, which leads out of {root}"
                )
            visible, lwir = _coco_files(root, name)
            found: dict[Side, Path | None] = {"visible": visible, "lwir": lwir}
            for side in SIDES[modality] if modality else ():
                path = found[side]
                if path is None:
                    raise ImageError(f"{name}: has no {side} image, since it is not below a folder 'visible'")
                if not _is_file(path):
                    raise ImageError(f"{path}: missing, the {side} image of {name}")
        except DataError as error:
            if skipped is None:
                raise
            skipped.append((image.name, str(error)))
            continue
        here = {side: path if path is not None and _is_file(path) else None for side, path in found.items()}
        frames.append(Frame(image.name, here["visible"], here["lwir"], objects, image.id, place, category))
    return _not_all_skipped(frames, split, skipped)


def _cut(chosen: list[str], excluded: list[str], split: str, exclude: str | None, total: int, root: Path) -> list[str]:
    """``chosen`` without ``excluded``; empty is an error that says at which step it became so."""
    if not chosen:
        found = f"{total:,} frames were found there and none belongs to it"
        raise EmptySplitError(f"{root}: split {split!r} is empty; {found}")
    out = set(excluded)
    left = [name for name in chosen if name not in out]
    if not left:
        raise EmptySplitError(f"{root}: split {split!r} is empty once {exclude!r} is cut out of it")
    return left


def _not_all_skipped(frames: list[Frame], split: str, skipped: Skipped | None) -> list[Frame]:
    if not frames and skipped:
        raise SplitError(f"every frame of split {split!r} is bad; the first: {skipped[0][1]}")
    return frames


def _annotation_folder(root: Path, annotation_format: AnnotationFormat, given: str | Path | None) -> Path:
    if annotation_format not in ANNOTATION_FOLDERS:
        raise AnnotationError(
            f"unknown annotation format {annotation_format!r}; it should be one of {', '.join(ANNOTATION_FOLDERS)}"
        )
    if given is not None:
        if not Path(given).is_dir():
            raise SplitError(f"{given}: no such folder of annotations")
        return Path(given)
    for name in ANNOTATION_FOLDERS[annotation_format]:
        if (root / name).is_dir():
            return root / name
    names = " or ".join(ANNOTATION_FOLDERS[annotation_format])
    raise SplitError(f"{root}: no KAIST annotations there; looked for the folder {names}")


def _names(folder: Path, inner: str, suffix: str) -> set[str]:
    """Names of the frames that have a file ``folder/setXX/VYYY/inner/IZZZZZ.suffix``."""
    names: set[str] = set()
    for video in folder.glob("set[0-9][0-9]/V[0-9][0-9][0-9]"):
        inside = video / inner
        if inside.is_dir():
            prefix = f"{video.parent.name}/{video.name}/"
            stems = (entry.stem for entry in inside.iterdir() if entry.suffix == suffix)
            names.update(prefix + stem for stem in stems if is_frame_name(prefix + stem))
    return names


def _usual_size(paths: Sequence[Path]) -> tuple[int, int] | None:
    """Size of the first image that can be read, for annotations that state none."""
    for path in paths:
        try:
            return image_size(path)
        except ImageError:
            continue
    return None


def _coco_images(
    root: Path, spec: str, bad: dict[int, str] | None = None
) -> tuple[list[tuple[CocoImage, Annotations]], int, int]:
    """The images that ``file.json`` or ``file.json%step`` selects, how many it holds, and its id of ``person``."""
    file, step = _file_and_step(spec)
    if step < 1 or ("%" in file and not _is_file(root / file)):
        file = file.rpartition("%")[0] or file
        raise SplitError(f"unknown split {spec!r}; did you mean '{file}' or '{file}%10' (every tenth image)?")
    if not _is_file(root / file):
        near = sorted(path.name for path in root.glob("*.json"))
        raise SplitError(f"{root / file}: no such COCO file" + (f"; there are {', '.join(near)}" if near else ""))
    data = read_coco(root / file, bad)
    pairs = list(zip(data.images, data.annotations, strict=True))
    return pairs[step - 1 :: step], len(pairs), min(data.person_categories)


def _file_and_step(spec: str) -> tuple[str, int]:
    """``file.json`` and 10 of ``file.json%10``; a ``%`` that no number follows is part of the file's name."""
    match = re.fullmatch(r"(.+)%([0-9]{1,9})", spec, re.DOTALL)
    return (match[1], int(match[2])) if match else (spec, 1)


def _coco_files(root: Path, name: str) -> tuple[Path | None, Path | None]:
    """Where the visible and the LWIR image of a COCO file name should be; None where the name leaves it open."""
    if is_frame_name(name):
        video, _, number = name.rpartition("/")
        folder = root / "images" / video
        return folder / "visible" / f"{number}.jpg", folder / "lwir" / f"{number}.jpg"
    parts = Path(name).parts
    if "visible" not in parts:
        return root / name, None
    return root / name, root.joinpath(*("lwir" if part == "visible" else part for part in parts))


def _is_file(path: Path) -> bool:
    """Also for names that no file system can hold, of which pathlib complains."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
