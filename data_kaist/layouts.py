"""Finds frames on disk, in KAIST's layout or COCO form."""

from __future__ import annotations

import functools
import hashlib
import itertools
import mmap
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from data_kaist.annotations import KAIST_SIZE, AnnotationFormat, read_annotation, training_ignore
from data_kaist.classes import PEOPLE, Classes
from data_kaist.coco import CocoDataset, CocoImage, read_coco
from data_kaist.errors import AnnotationError, DataError, Doubt, EmptySplitError, ImageError, SplitError
from data_kaist.files import is_inside
from data_kaist.images import AS_STORED, NOTE, Reading, read_image
from data_kaist.splits import is_frame_name, parse_split, select
from data_kaist.structures import Annotations

Side = Literal["visible", "lwir"]
Modality = Literal["visible", "lwir", "early", "halfway"]
Wanted = Modality | Literal["any"] | None
"""Images that must be there: those of a modality, of whichever sides the split has any image, or none."""
Skipped = list[tuple[str, str]]
"""(frame name, reason) of what was left out."""

UNFINISHED = "README.unfinished.txt"  # marks a synthetic data set that is not whole
_BOTH: tuple[Side, ...] = ("visible", "lwir")
SIDES: dict[str, tuple[Side, ...]] = {"visible": ("visible",), "lwir": ("lwir",), "early": _BOTH, "halfway": _BOTH}
"""The images that a modality reads; early and halfway fusion differ in the detector, not in the data."""

ANNOTATION_FOLDERS: dict[AnnotationFormat, tuple[str, ...]] = {
    "xml": ("annotations-xml", "annotations-xml-new"),
    "bbgt": ("annotations-bbgt", "annotations-txt", "annotations", "sanitized_annotations"),
    "paired": ("annotations-paired", "annotations_paired"),
}
"""Where annotations are looked for below the root; several that hold some are refused."""

BoxOf = Literal["modality", "visible", "lwir", "union"]
"""Which box of paired annotations counts; by the modality it is the LWIR image's for ``lwir`` alone."""

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
"""Of KAIST's images, in any case; where a frame has several, the first is read."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: its image files and annotations.

    Attributes:
        image_id: in a COCO file, None elsewhere.
        place: index in its split, counting bad frames; image numbers refer to it.
        category_ids: of each class in a COCO file; empty elsewhere: 1, 2, ...
        note: one row of :data:`data_kaist.images.NOTE`, filled in as they are read.
    """

    name: str
    visible: Path | None
    lwir: Path | None
    annotations: Annotations
    image_id: int | None = None
    place: int = 0
    category_ids: tuple[int, ...] = ()
    reading: Reading = AS_STORED
    note: np.ndarray | None = None


def image_ids(frames: Sequence[Frame]) -> list[int]:
    """Image ids in COCO results. They are those of the COCO file, or indices in the split."""
    return [frame.place if frame.image_id is None else frame.image_id for frame in frames]


def category_ids(frames: Sequence[Frame], classes: Classes) -> list[int]:
    """Category ids of the classes in COCO results. They are those of the COCO file, or 1, 2, ..."""
    return list(frames[0].category_ids or range(1, len(classes.names) + 1))


def spread(frames: Sequence[Frame], count: int) -> list[int]:
    """Indices of ``count`` frames, spread evenly over those with objects."""
    peopled = [place for place, frame in enumerate(frames) if len(frame.annotations)]
    choice = peopled if len(peopled) >= count else range(len(frames))
    return [choice[i] for i in np.linspace(0, len(choice) - 1, min(count, len(choice))).round().astype(int)]


def with_people(frames: Sequence[Frame], min_height: float, classes: Classes) -> list[Frame]:
    """Frames with an object that is not ignored in training. Raises EmptySplitError if there is none."""
    found = [frame for frame in frames if not training_ignore(frame.annotations, min_height, classes).all()]
    if frames and not found:
        raise EmptySplitError(f"none of the {len(frames):,} training frames has a person who is not ignored")
    return found


def shared(frames: Sequence[Frame], others: Sequence[Frame]) -> list[Frame]:
    """Frames whose (visible) image is also among the ``others``. It is the same file or has the same content.

    Only files of equal size are read.
    """

    @functools.cache
    def content(path: Path) -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    def file_of(frame: Frame) -> Path | None:
        path = frame.visible or frame.lwir
        return path and path.resolve()

    by_size: dict[int, set[Path]] = {}
    for other in filter(None, map(file_of, others)):
        by_size.setdefault(other.stat().st_size, set()).add(other)

    def is_shared(path: Path) -> bool:
        alike = by_size.get(path.stat().st_size, set())
        return path in alike or content(path) in map(content, alike)

    return [frame for frame in frames if (path := file_of(frame)) and is_shared(path)]


@dataclass(frozen=True)
class DataSource:
    """Location and format of a data set.

    Attributes:
        kind: ``kaist``: ``root/images/setXX/VYYY/{visible,lwir}/IZZZZZ.jpg`` (``.png``; the sets may lie in the root
            itself), annotations in the same folders or, flat, as ``setXX_VYYY_IZZZZZ.txt``. ``coco``: JSON files.
        root: the data set's folder.
        form: of KAIST's annotations: ``xml``, ``bbgt``, ``paired`` or ``coco``, a file with ``im_name``.
        annotations: that file, or the folder of KAIST's annotations, if not one of :data:`ANNOTATION_FOLDERS`.
        images: folder of the images, if not where they are looked for.
        reading: settings for decoding; KAIST has no orientation tags.
        classes: a COCO file must have at least one of their labels.
    """

    kind: Literal["kaist", "coco"]
    root: Path
    form: AnnotationFormat = "xml"
    annotations: Path | None = None
    images: str = ""
    reading: Reading = AS_STORED
    classes: Classes = PEOPLE
    box_of: BoxOf = "modality"

    def annotated(self, given: str) -> DataSource:
        """The same images with other annotations. A form, or a folder or COCO file (below the root, or from here)."""
        if named := [form for form in ANNOTATION_FOLDERS if form == given]:
            return replace(self, form=named[0], annotations=None)
        path = next((path for path in (self.root / given, Path(given)) if path.exists()), self.root / given)
        form: AnnotationFormat | None = "coco" if path.is_file() else annotation_form(path)
        if form is None:
            lack = "holds no KAIST annotations" if path.exists() else "is not there, nor a form (xml, bbgt, paired)"
            raise SplitError(f"{path}: {lack}; annotations were looked for there")
        return replace(self, form=form, annotations=path)

    def frames(
        self, split: str, *, exclude: str | None = None, modality: Wanted = "visible", skipped: Skipped | None = None
    ) -> list[Frame]:
        """Frames of a split, sorted by name (KAIST) or id (COCO).

        A KAIST frame is one with an image or an annotation; one without the other is an error, so that half a download
        is not mistaken for the whole. Annotations other than the original XML, flat ones and lists of frames are
        selections: frames without annotation do not belong to them, nor frames of a COCO file without image, and a
        :class:`~data_kaist.errors.Doubt` counts these.

        Args:
            split: of KAIST as in :func:`data_kaist.splits.parse_split`; of COCO ``train.json`` below the root, or
                ``train.json%10`` for every tenth image (place modulo 10 is 9).
            exclude: another split to remove; of COCO files by image file.
            modality: images that must be there, see :data:`Wanted`; the LWIR image of a COCO file is the file of the
                same name below ``lwir/`` where the visible one is below ``visible/``.
            skipped: None stops at the first bad frame with a DataError; a list collects bad ones, which are left out.
        """
        if (unfinished := Path(self.root) / UNFINISHED).exists():
            raise SplitError(f"{unfinished}: the data set is still being made, or was left half made; make it again")
        find = _coco_frames if self.kind == "coco" else _kaist_frames
        frames = []
        for name, frame in find(self, split, exclude, modality, skipped is not None):
            try:
                frames.append(frame())
            except DataError as error:
                if skipped is None:
                    raise
                skipped.append((name, str(error)))
        if not frames and skipped:
            raise SplitError(f"every frame of split {split!r} is bad; the first: {skipped[0][1]}")
        # notes are in memory that forked workers share
        notes = np.frombuffer(mmap.mmap(-1, max(len(frames), 1) * NOTE.itemsize), NOTE)
        reading = self.reading if self.kind == "coco" else replace(self.reading, orientation="never")
        return [replace(frame, reading=reading, note=notes[i : i + 1]) for i, frame in enumerate(frames)]

    def annotations_of(self, split: str, modality: str = "visible") -> str:
        """Source of annotations. COCO file or folder, and the side of paired ones."""
        if self.kind == "coco":
            return str(self.root / file_and_step(split)[0])
        folder = self._annotation_folder()
        return f"{folder}, {self._box_of(modality)}" if self.form == "paired" else str(folder)

    def _box_of(self, modality: str | None) -> str:
        return self.box_of if self.box_of != "modality" else "lwir" if modality == "lwir" else "visible"

    def _annotation_folder(self) -> Path:
        if self.annotations is not None:
            if not self.annotations.exists():
                raise SplitError(f"{self.annotations}: no such folder of annotations")
            return self.annotations
        found = [path for form, path in annotation_sets(self.root) if form == self.form]
        if len(found) > 1:
            both = " and ".join(map(str, found))
            raise SplitError(f"{self.root}: {both} may both be meant; set data.annotations_dir to one of them")
        if not found:
            names = " or ".join(ANNOTATION_FOLDERS[self.form])
            raise SplitError(f"{self.root}: no KAIST annotations there; looked for the folder {names}")
        return found[0]


Candidates = Iterator[tuple[str, Callable[[], Frame]]]
"""Names of frames, each with what reads its annotation and raises a DataError where the frame is bad."""


def _kaist_frames(source: DataSource, split: str, exclude: str | None, modality: Wanted, may_skip: bool) -> Candidates:
    root = source.root
    wanted = parse_split(split, root)
    images = root / (source.images or "images")
    if not source.images and not images.is_dir() and any(root.glob("set[0-9][0-9]/V[0-9][0-9][0-9]")):
        images = root
    if modality not in (None, "any") and not images.is_dir():
        raise SplitError(
            f"{root}: no KAIST images there; looked for {images}/setXX/VYYY/visible/IZZZZZ.jpg and "
            "lwir (docs/kaist.md says where KAIST lives, ssd-effnet synthesize writes a twin of it)"
        )
    folder = source._annotation_folder()
    pictured = {side: _files_by_frame(images, side, *IMAGE_SUFFIXES) for side in SIDES["early"]}
    written: dict[str, list[Path]] = {}  # of a pair both files, where both count
    bad: dict[int, str] = {}
    coco: dict[str, tuple[CocoImage, Annotations]] = {}
    if source.form == "coco":
        data = read_coco(folder, bad, classes=source.classes)
        categories = _category_ids(data, source.classes)
        coco = {image.name: (image, objects) for image, objects in zip(data.images, data.annotations, strict=True)}
        if len(coco) < len(data.images):
            raise AnnotationError(f"{folder}: two of its images are of one frame; give a file of one of them")
        written = {name: [folder] for name in coco if is_frame_name(name)}
    else:
        side = source._box_of(modality) if source.form == "paired" else ""
        suffix = ".xml" if source.form == "xml" else ".txt"
        of_side = [
            _files_by_frame(folder, k, suffix) | (_files_by_frame(folder / k, "", suffix) if k else {})
            for k in (("visible", "lwir") if side == "union" else (side,))
        ]
        written = {name: [of[name] for of in of_side] for name in of_side[0].keys() & of_side[-1].keys()}
    pictures = {name for of in pictured.values() for name in of}
    is_selection = source.form != "xml" or bool(wanted.listed) or any(of[0].parent == folder for of in written.values())
    names = set(written) | pictures | wanted.listed
    chosen = select(names, wanted)
    lacking = [name for name in chosen if name not in written]
    blind = [name for name in chosen if name not in pictures] if source.form == "coco" and images.is_dir() else []
    for what, without in (("annotation there", lacking if is_selection else []), ("image", blind)):
        if without:
            said = f"{len(without):,} of the {len(chosen):,} frames of {split} have no {what} and are left out"
            warnings.warn(f"{folder}: {said}, {without[0]} first", Doubt, stacklevel=3)
    out = [*(select(names, parse_split(exclude, root)) if exclude else ()), *(lacking if is_selection else ())]
    total = len(written) if is_selection else len(names)
    chosen = _without_excluded(chosen, out, split, exclude, total, root)
    places = {name: place for place, name in enumerate(chosen)}
    chosen = _without_excluded(chosen, blind, split, "frames without image", total, root)
    files = {name: {side: of[name] for side, of in pictured.items() if name in of} for name in chosen}
    size = KAIST_SIZE  # of annotations that state none
    for path in (path for of in files.values() for path in of.values()):
        with suppress(ImageError):
            size = read_image(path, colour=False).shape[:2]
            break
    sides = _sides(modality, files.values())
    hint = f"; {len(lacking):,} frames of {split} have none, and data.on_bad_frame: skip leaves them out"

    def frame(place: int, name: str) -> Frame:
        video, _, number = name.rpartition("/")
        for side in sides:
            if side not in files[name]:
                raise ImageError(f"{images / video / side / number}.jpg: missing, the {side} image of {name}")
        if name not in written:
            raise AnnotationError(f"{folder / name}.xml: missing, the annotation of {name}{'' if may_skip else hint}")
        visible, lwir = files[name].get("visible"), files[name].get("lwir")
        if name in coco:
            image, objects = coco[name]
            if image.id in bad:
                raise AnnotationError(bad[image.id])
            return Frame(name, visible, lwir, objects, place=place, category_ids=categories)
        of_pair = [read_annotation(file, name, size=size, of_pair=source.form == "paired") for file in written[name]]
        return Frame(name, visible, lwir, _union(of_pair, written[name]), place=place)

    return ((name, partial(frame, places[name], name)) for name in chosen)


def _union(of_pair: Sequence[Annotations], files: Sequence[Path]) -> Annotations:
    """Objects of one or two files of a frame. An object in both has the union of its boxes."""
    first, *others = of_pair
    for file, other in zip(files[1:], others, strict=True):
        if other.labels.tolist() != first.labels.tolist():
            raise AnnotationError(f"{file}: its objects are not those of {files[0]} in order; no union of boxes")
        low = np.minimum(first.boxes_xyxy[:, :2], other.boxes_xyxy[:, :2])
        high = np.maximum(first.boxes_xyxy[:, 2:], other.boxes_xyxy[:, 2:])
        first = replace(first, boxes_xyxy=np.concatenate([low, high], axis=1), height=high[:, 1] - low[:, 1])
    return first


def _coco_frames(source: DataSource, split: str, exclude: str | None, modality: Wanted, may_skip: bool) -> Candidates:
    root, file = source.root, file_and_step(split)[0]
    bad: dict[int, str] | None = {} if may_skip else None
    chosen, data = _coco_images(root, split, source.classes, bad)
    folder, not_found = _image_folder(root, file, data, source.images)
    files = [coco_files(folder, image.file_name) for image, _ in chosen]
    keys, excluded = [str(image.id) for image, _ in chosen], []
    if exclude:
        others, its_data = _coco_images(root, exclude, source.classes, {})
        its_folder, _ = _image_folder(root, file_and_step(exclude)[0], its_data, source.images)
        excluded = [str(coco_files(its_folder, image.file_name)[0].resolve()) for image, _ in others]
        keys = [str(visible.resolve()) for visible, _ in files]
    left = set(_without_excluded(keys, excluded, split, exclude, len(data.images), root))
    there = [
        {side: path for side, path in zip(SIDES["early"], of, strict=True) if path and path.is_file()} for of in files
    ]
    sides = _sides(modality, there)
    categories = _category_ids(data, source.classes)

    def frame(place: int, image: CocoImage, objects: Annotations) -> Frame:
        name = image.file_name
        named = f"{root / file}: image {image.id} has the file name {name!r}"
        if bad and image.id in bad:
            raise AnnotationError(bad[image.id])
        if "://" in name:
            raise AnnotationError(f"{named}, a URL; images are read from files, so fetch it first")
        if not is_inside(name):
            raise AnnotationError(f"{named}, which leads out of {folder}")
        for side in sides:
            path = files[place][SIDES["early"].index(side)]
            if path is None and modality != "any":
                raise ImageError(f"{name}: has no {side} image, since it is not below a folder 'visible'")
            if path is not None and side not in there[place]:
                raise ImageError(f"{path}: missing, the {side} image of {name}{not_found}")
        here = there[place]
        return Frame(image.name, here.get("visible"), here.get("lwir"), objects, image.id, place, categories)

    return (
        (image.name, partial(frame, place, image, objects))
        for place, (image, objects) in enumerate(chosen)
        if keys[place] in left
    )


def _category_ids(data: CocoDataset, classes: Classes) -> tuple[int, ...]:
    """Category id of each class: its first category's, or a new one."""
    index = dict(zip(data.categories, classes.indices(data.categories.values()).tolist(), strict=True))
    free = itertools.count(max(data.categories) + 1)
    return tuple(
        min(ids) if (ids := [id_ for id_, of in index.items() if of == label]) else next(free)
        for label in range(1, len(classes.names) + 1)
    )


def _without_excluded(
    chosen: list[str], excluded: list[str], split: str, exclude: str | None, total: int, root: Path
) -> list[str]:
    """``chosen`` without ``excluded``; raises if nothing is left."""
    if not chosen:
        found = f"{total:,} frames were found there and none belongs to it"
        raise EmptySplitError(f"{root}: split {split!r} is empty; {found}")
    out = set(excluded)
    left = [name for name in chosen if name not in out]
    if not left:
        raise EmptySplitError(f"{root}: split {split!r} is empty once {exclude!r} is cut out of it")
    return left


def _sides(modality: Wanted, there: Iterable[Mapping[Side, Path]]) -> Sequence[Side]:
    """Images that each frame must have, given those that are ``there``."""
    if modality == "any":
        return [side for side in SIDES["early"] if any(side in of for of in there)]
    return SIDES[modality] if modality else ()


def annotation_form(folder: Path) -> AnnotationFormat | None:
    """The form of the annotations in a folder. None where there are none."""
    for form, starts, suffix in _PLACES:
        if any(any(folder.glob(f"{start}I?????{suffix}")) for start in starts):
            return form
    return None


_PLACES: tuple[tuple[AnnotationFormat, tuple[str, ...], str], ...] = (
    ("paired", ("set??/V???/visible/", "visible/set??/V???/", "visible/set??_V???_"), ".txt"),
    ("xml", ("set??/V???/", "set??_V???_"), ".xml"),
    ("bbgt", ("set??/V???/", "set??_V???_"), ".txt"),
)


def annotation_sets(root: Path) -> list[tuple[AnnotationFormat, Path]]:
    """Folders at one of :data:`ANNOTATION_FOLDERS` that hold anything, with their format."""
    found = [(form, root / name) for form, names in ANNOTATION_FOLDERS.items() for name in names]
    return [(annotation_form(path) or form, path) for form, path in found if path.is_dir() and any(path.iterdir())]


def _files_by_frame(folder: Path, inner: str, *suffixes: str) -> dict[str, Path]:
    """Files of a folder by frame name, nested or flat."""
    files: dict[str, Path] = {}
    flat = folder / inner
    inside = [(f"{video.parent.name}/{video.name}/", video / inner) for video in folder.glob("set??/V???")]
    for prefix, place in [*inside, ("", flat)]:
        for entry in place.iterdir() if place.is_dir() else ():
            name = prefix + (entry.stem if prefix else entry.stem.replace("_", "/"))
            if entry.suffix.lower() in suffixes and is_frame_name(name):
                files[name] = min(files.get(name, entry), entry, key=lambda path: suffixes.index(path.suffix.lower()))
    return files


def _coco_images(
    root: Path, spec: str, classes: Classes, bad: dict[int, str] | None = None
) -> tuple[list[tuple[CocoImage, Annotations]], CocoDataset]:
    """Images selected by ``file.json`` or ``file.json%step``, and all of the file."""
    file, step = file_and_step(spec)
    if step < 1 or ("%" in file and not (root / file).is_file()):
        file = file.rpartition("%")[0] or file
        raise SplitError(f"unknown split {spec!r}; did you mean '{file}' or '{file}%10' (every tenth image)?")
    if not (root / file).is_file():
        near = sorted(path.name for path in root.glob("*.json"))
        raise SplitError(f"{root / file}: no such COCO file" + (f"; there are {', '.join(near)}" if near else ""))
    data = read_coco(root / file, bad, classes=classes)
    pairs = list(zip(data.images, data.annotations, strict=True))
    return pairs[step - 1 :: step], data


def _image_folder(root: Path, file: str, data: CocoDataset, given: str) -> tuple[Path, str]:
    """Find the folder of a COCO file's images. The second value is a clause on the places searched.

    It is the first of {the file's own folder, ``root``} x {., images, S, images/S} that holds an image of the file, S
    being the file's name without ``instances_`` and ``.json``; or x {``given``}. Two that hold it are refused. A file
    outside ``root`` looks there only where its own folder, and the one above ``annotations``, have nothing.
    """
    json = root / file
    stem = json.stem.removeprefix("instances_")
    names = [given] if given else [".", "images", stem, f"images/{stem}"]
    beside = [json.parent, *([json.parent.parent] if json.parent.name == "annotations" else [])]
    own, general = ([base / name for base in bases for name in names] for bases in (beside, [root]))
    is_apart = bool(given) or not json.parent.resolve().is_relative_to(root.resolve())
    for image in data.images:
        for folders in (own, general) if is_apart else ([*own, *general],):
            found: dict[Path, Path] = {}
            for folder in folders if is_inside(image.file_name) else ():
                for path in coco_files(folder, image.file_name):
                    if path and path.is_file():
                        found.setdefault(path.resolve(), folder)
                        break
            if len(found) > 1:
                at = ", ".join(map(str, found.values()))
                raise SplitError(f"{json}: its image {image.file_name} is in {at}; set data.images to the right one")
            if found:
                return next(iter(found.values())), ""
    looked = ", ".join(dict.fromkeys(map(str, (*own, *general))))
    return own[0], f"; none of {len(data.images):,} images of {json} is there; looked in {looked}; see data.images"


def file_and_step(spec: str) -> tuple[str, int]:
    """Parts of ``file.json%10``: file and 10. ``%`` without a number is part of the name."""
    match = re.fullmatch(r"(.+)%([0-9]{1,9})", spec, re.DOTALL)
    return (match[1], int(match[2])) if match else (spec, 1)


def coco_files(folder: Path, name: str) -> tuple[Path, Path | None]:
    """Visible and LWIR image paths of a COCO file name."""
    if is_frame_name(name):
        video, _, number = name.rpartition("/")
        named = [folder / "images" / video / side / number for side in SIDES["early"]]
        files = [[path.with_suffix(suffix) for suffix in IMAGE_SUFFIXES] for path in named]
        visible, lwir = (next((file for file in of_side if file.is_file()), of_side[0]) for of_side in files)
        return visible, lwir
    parts = Path(name).parts
    if "visible" not in parts:
        return folder / name, None
    return folder / name, folder.joinpath(*("lwir" if part == "visible" else part for part in parts))
