"""Frames found on disk, in KAIST's own layout or in COCO form."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from data_kaist.annotations import KAIST_SIZE, AnnotationFormat, read_annotation
from data_kaist.coco import CocoDataset, CocoImage, read_coco
from data_kaist.errors import AnnotationError, DataError, EmptySplitError, ImageError, SplitError
from data_kaist.files import is_inside
from data_kaist.images import AS_STORED, NOTE, Reading, image_size
from data_kaist.splits import is_frame_name, parse_split, select
from data_kaist.structures import Annotations

Side = Literal["visible", "lwir"]
Modality = Literal["visible", "lwir", "early", "halfway"]
Wanted = Modality | Literal["any"] | None
"""Images that must be there: those of a modality, of whichever sides the split has any image, or none."""
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
    "bbgt": ("annotations-bbgt", "annotations-txt", "annotations", "sanitized_annotations"),
    "paired": ("annotations-paired", "annotations_paired"),
}
"""Where annotations are looked for below the root; several that hold some are refused."""

IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg")
"""Of KAIST's images, in any case; where a frame has several, the first is read."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: its files (None where it has none) and what is known of its objects.

    Attributes:
        image_id: in a COCO file, None elsewhere.
        place: in its split from 0, bad frames that were left out counted: what image numbers count.
        category_id: of ``person`` in a COCO file, 1 elsewhere.
        reading: how its files become pixels.
        note: one row of :data:`data_kaist.images.NOTE`, filled in as they are read.
    """

    name: str
    visible: Path | None
    lwir: Path | None
    annotations: Annotations
    image_id: int | None = None
    place: int = 0
    category_id: int = 1
    reading: Reading = AS_STORED
    note: np.ndarray | None = None


def image_ids(frames: Sequence[Frame]) -> list[int]:
    """What COCO results call these frames: the ids of their COCO file, or their places in the split."""
    return [frame.place if frame.image_id is None else frame.image_id for frame in frames]


def spread(frames: Sequence[Frame], count: int) -> list[int]:
    """Places of ``count`` frames, spread evenly over those that have objects; over all where too few have."""
    peopled = [place for place, frame in enumerate(frames) if len(frame.annotations)]
    choice = peopled if len(peopled) >= count else range(len(frames))
    return [choice[i] for i in np.linspace(0, len(choice) - 1, min(count, len(choice))).round().astype(int)]


def shared(frames: Sequence[Frame], others: Sequence[Frame]) -> list[Frame]:
    """The ``frames`` whose image is among the ``others``' too: the same file, or another with the same bytes.

    Of a pair the visible image is compared. Only files of equal size are read.
    """

    def files(of: Sequence[Frame]) -> list[Path | None]:
        return [path and _real(path) for path in (frame.visible or frame.lwir for frame in of)]

    mine, its = files(frames), {path for path in files(others) if path}
    new = {path: path.stat().st_size for path in mine if path and path not in its}
    alike: dict[int, list[Path]] = {size: [] for size in new.values()}
    for path in its if new else ():
        if (size := path.stat().st_size) in alike:
            alike[size].append(path)
    contents = {_content(path) for paths in alike.values() for path in paths}
    same = {path for path, size in new.items() if alike[size] and _content(path) in contents}
    return [frame for frame, path in zip(frames, mine, strict=True) if path in its or path in same]


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def load_frames(
    kind: Literal["kaist", "coco"],
    root: str | Path,
    split: str,
    *,
    annotation_format: AnnotationFormat = "xml",
    annotations_dir: str | Path | None = None,
    images: str = "",
    exclude: str | None = None,
    modality: Wanted = "visible",
    skipped: Skipped | None = None,
    reading: Reading = AS_STORED,
) -> list[Frame]:
    """The frames of a split, of a data set in either form.

    Args:
        kind: ``kaist`` (:func:`load_kaist`) or ``coco`` (:func:`load_coco`, where ``split`` is ``file.json`` below
            ``root`` and the two arguments about annotations have no meaning).
        root: the data set's folder.
        split: which frames.
        annotation_format: ``xml``, ``bbgt`` or ``paired``.
        annotations_dir: where the annotations are, if not at one of :data:`ANNOTATION_FOLDERS`.
        images: folder of the images, if not where they are looked for.
        exclude: another split, to be cut out of this one: the validation frames out of the training frames.
        modality: images that must be there, see :data:`Wanted`.
        skipped: None stops at the first bad frame; a list collects bad frames instead, which are left out.
        reading: how image files become pixels; KAIST has no orientation tags, and none is looked at.

    Raises:
        SplitError: wrong root or split, or nothing in it.
        ImageError: an image is missing.
        AnnotationError: an annotation is missing or broken.
    """
    if kind == "coco":
        frames = load_coco(root, split, images=images, exclude=exclude, modality=modality, skipped=skipped)
        return _to_be_read(frames, reading)
    if kind != "kaist":
        raise SplitError(f"unknown kind of data set {kind!r}; it should be 'kaist' or 'coco'")
    frames = load_kaist(
        root,
        split,
        annotation_format=annotation_format,
        annotations_dir=annotations_dir,
        images=images,
        exclude=exclude,
        modality=modality,
        skipped=skipped,
    )
    return _to_be_read(frames, replace(reading, orientation="never"))


def _to_be_read(frames: Sequence[Frame], reading: Reading) -> list[Frame]:
    """The frames with their reading, and with notes in memory that workers share that are forked."""
    notes = np.frombuffer(mmap.mmap(-1, max(len(frames), 1) * NOTE.itemsize), NOTE)
    return [replace(frame, reading=reading, note=notes[i : i + 1]) for i, frame in enumerate(frames)]


def load_kaist(
    root: str | Path,
    split: str,
    *,
    annotation_format: AnnotationFormat = "xml",
    annotations_dir: str | Path | None = None,
    images: str = "",
    exclude: str | None = None,
    modality: Wanted = "visible",
    skipped: Skipped | None = None,
    without_area: list[str] | None = None,
) -> list[Frame]:
    """Frames of ``root/images/setXX/VYYY/{visible,lwir}/IZZZZZ.jpg`` (or ``.png``), sorted by name.

    Without a folder ``images`` the sets may lie in the root itself. Annotations lie in the same folders or, flat, as
    ``setXX_VYYY_IZZZZZ.txt``. A frame belongs to the data set when it has an image or an annotation; one without the
    other is an error, so that half a download is not mistaken for the whole. Of flat annotations, which are published
    for a selection of the frames, these alone belong to it. Arguments and errors as in :func:`load_frames`; ``split``
    and ``exclude`` as in :func:`data_kaist.splits.parse_split`, ``without_area`` as in
    :func:`data_kaist.coco.read_coco`.
    """
    root = Path(root)
    parse_split(split)
    folder_of_images = root / (images or "images")
    if not images and not folder_of_images.is_dir() and any(root.glob("set[0-9][0-9]/V[0-9][0-9][0-9]")):
        folder_of_images = root
    if modality not in (None, "any") and not folder_of_images.is_dir():
        raise SplitError(
            f"{root}: no KAIST images there; looked for {folder_of_images}/setXX/VYYY/visible/IZZZZZ.jpg and "
            "lwir (docs/kaist.md says where KAIST lives, ssd-effnet synthesize writes a twin of it)"
        )
    folder = _annotation_folder(root, annotation_format, annotations_dir)
    pictured = {side: _files(folder_of_images, side, *IMAGE_SUFFIXES) for side in SIDES["early"]}
    if annotation_format == "paired":
        side = "lwir" if modality == "lwir" else "visible"
        written = _files(folder, side, ".txt") | _files(folder / side, "", ".txt")
    else:
        written = _files(folder, "", ".xml" if annotation_format == "xml" else ".txt")
    names = set(written)
    if not any(file.parent == folder for file in written.values()):  # flat ones are a selection of frames
        names |= {name for of in pictured.values() for name in of}
    chosen = _cut(select(names, split), select(names, exclude) if exclude else [], split, exclude, len(names), root)
    files = {name: {side: of[name] for side, of in pictured.items() if name in of} for name in chosen}
    size = _usual_size([path for of in files.values() for path in of.values()][:20])
    sides = _sides(modality, files.values())
    frames = []
    for place, name in enumerate(chosen):
        try:
            for side in sides:
                if side not in files[name]:
                    video, _, number = name.rpartition("/")
                    path = folder_of_images / video / side / f"{number}.jpg"
                    raise ImageError(f"{path}: missing, the {side} image of {name}")
            annotations = read_annotation(
                folder,
                name,
                annotation_format,
                modality=str(modality),
                size=size or KAIST_SIZE,
                file=written.get(name),
                without_area=without_area,
            )
        except DataError as error:
            if skipped is None:
                lacking = sum(name not in written for name in chosen)
                if name in written or lacking == 1:
                    raise
                raise AnnotationError(
                    f"{error}; {lacking:,} of the {len(chosen):,} frames have none, and data.on_bad_frame: skip leaves "
                    "them out"
                ) from error
            skipped.append((name, str(error)))
            continue
        frames.append(Frame(name, files[name].get("visible"), files[name].get("lwir"), annotations, place=place))
    return _not_all_skipped(frames, split, skipped)


def load_coco(
    root: str | Path,
    split: str,
    *,
    images: str = "",
    exclude: str | None = None,
    modality: Wanted = "visible",
    skipped: Skipped | None = None,
) -> list[Frame]:
    """Frames of a COCO file, in order of their ids.

    Args:
        root: folder that ``split`` is relative to.
        split: ``train.json``, or ``train.json%10`` for every tenth image (place modulo 10 is 9).
        images: folder that the file names in the JSON file are relative to, see :func:`_image_folder`. A file name
            may also be a KAIST frame name, whose images are looked for below ``images/`` as :func:`load_kaist` does.
        exclude: another such split whose image files are cut out: with ``train.json`` and ``train.json%10``, no file
            need be split.
        modality: images that must be there; the LWIR image is the file of the same name below ``lwir/`` where the
            visible one is below ``visible/``.
        skipped: as in :func:`load_frames`.
    """
    root, file = Path(root), file_and_step(split)[0]
    bad: dict[int, str] | None = None if skipped is None else {}
    chosen, data = _coco_images(root, split, bad)
    folder, not_found = _image_folder(root, file, data, images)
    files = [_coco_files(folder, image.file_name) for image, _ in chosen]
    keys, excluded = [str(image.id) for image, _ in chosen], []
    if exclude:
        others, its_data = _coco_images(root, exclude, {})
        its_folder, _ = _image_folder(root, file_and_step(exclude)[0], its_data, images)
        excluded = [str(_real(_coco_files(its_folder, image.file_name)[0])) for image, _ in others]
        keys = [str(_real(visible)) for visible, _ in files]
    left = set(_cut(keys, excluded, split, exclude, len(data.images), root))
    there = [
        {side: path for side, path in zip(SIDES["early"], of, strict=True) if path and _is_file(path)} for of in files
    ]
    sides = _sides(modality, there)
    frames = []
    for place, (image, objects) in enumerate(chosen):
        name = image.file_name
        if keys[place] not in left:
            continue
        try:
            if bad and image.id in bad:
                raise AnnotationError(bad[image.id])
            if "://" in name:
                raise AnnotationError(
                    f"{root / file}: image {image.id} has the file name {name!r}, a URL; images are read from files, "
                    "so fetch it first"
                )
            if not is_inside(name):
                raise AnnotationError(
                    f"{root / file}: image {image.id} has the file name {name!r}, which leads out of {folder}"
                )
            for side in sides:
                path = files[place][SIDES["early"].index(side)]
                if path is None and modality != "any":
                    raise ImageError(f"{name}: has no {side} image, since it is not below a folder 'visible'")
                if path is not None and side not in there[place]:
                    raise ImageError(f"{path}: missing, the {side} image of {name}{not_found}")
        except DataError as error:
            if skipped is None:
                raise
            skipped.append((image.name, str(error)))
            continue
        here = there[place]
        category = min(data.person_categories)
        frames.append(Frame(image.name, here.get("visible"), here.get("lwir"), objects, image.id, place, category))
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


def _sides(modality: Wanted, there: Iterable[Mapping[Side, Path]]) -> Sequence[Side]:
    """The images that each frame must have, where ``there`` says what the frames of the split have."""
    if modality == "any":
        return [side for side in SIDES["early"] if any(side in of for of in there)]
    return SIDES[modality] if modality else ()


def _not_all_skipped(frames: list[Frame], split: str, skipped: Skipped | None) -> list[Frame]:
    if not frames and skipped:
        raise SplitError(f"every frame of split {split!r} is bad; the first: {skipped[0][1]}")
    return frames


def annotation_sets(root: Path) -> list[tuple[AnnotationFormat, Path]]:
    """Folders at one of :data:`ANNOTATION_FOLDERS` that hold anything, with their format."""
    forms: dict[str, AnnotationFormat] = {"xml": "xml", "bbgt": "bbgt", "paired": "paired"}
    found = [(forms[form], root / name) for form, names in ANNOTATION_FOLDERS.items() for name in names]
    return [
        ("paired" if any(path.glob("set??/V???/visible")) else form, path)  # AR-CNN's are called annotations
        for form, path in found
        if path.is_dir() and any(path.iterdir())
    ]


def _annotation_folder(root: Path, annotation_format: AnnotationFormat, given: str | Path | None) -> Path:
    if annotation_format not in ANNOTATION_FOLDERS:
        raise AnnotationError(
            f"unknown annotation format {annotation_format!r}; it should be one of {', '.join(ANNOTATION_FOLDERS)}"
        )
    if given is not None:
        if not Path(given).is_dir():
            raise SplitError(f"{given}: no such folder of annotations")
        return Path(given)
    found = [path for form, path in annotation_sets(root) if form == annotation_format]
    if len(found) > 1:
        raise SplitError(
            f"{root}: {' and '.join(map(str, found))} may both be meant; set data.annotations_dir to one of them"
        )
    if found:
        return found[0]
    names = " or ".join(ANNOTATION_FOLDERS[annotation_format])
    raise SplitError(f"{root}: no KAIST annotations there; looked for the folder {names}")


def annotations_of(
    kind: str,
    root: str | Path,
    split: str,
    *,
    annotation_format: AnnotationFormat = "xml",
    annotations_dir: str | Path | None = None,
    modality: str = "visible",
) -> str:
    """What :func:`load_frames` reads the objects from: the COCO file or the folder; of paired ones the side, too."""
    if kind == "coco":
        return str(Path(root) / file_and_step(split)[0])
    folder = _annotation_folder(Path(root), annotation_format, annotations_dir)
    side = "lwir" if modality == "lwir" else "visible"
    return f"{folder}, {side}" if annotation_format == "paired" else str(folder)


def _files(folder: Path, inner: str, *suffixes: str) -> dict[str, Path]:
    """Files ``folder/setXX/VYYY/inner/IZZZZZ.suffix`` or ``folder/inner/setXX_VYYY_IZZZZZ.suffix`` by frame name."""
    files: dict[str, Path] = {}
    flat = folder / inner
    inside = [(f"{video.parent.name}/{video.name}/", video / inner) for video in folder.glob("set??/V???")]
    for prefix, place in [*inside, ("", flat)]:
        for entry in place.iterdir() if place.is_dir() else ():
            name = prefix + (entry.stem if prefix else entry.stem.replace("_", "/"))
            if entry.suffix.lower() in suffixes and is_frame_name(name):
                files[name] = min(files.get(name, entry), entry, key=lambda path: suffixes.index(path.suffix.lower()))
    return files


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
) -> tuple[list[tuple[CocoImage, Annotations]], CocoDataset]:
    """The images that ``file.json`` or ``file.json%step`` selects, and all that the file holds."""
    file, step = file_and_step(spec)
    if step < 1 or ("%" in file and not _is_file(root / file)):
        file = file.rpartition("%")[0] or file
        raise SplitError(f"unknown split {spec!r}; did you mean '{file}' or '{file}%10' (every tenth image)?")
    if not _is_file(root / file):
        near = sorted(path.name for path in root.glob("*.json"))
        raise SplitError(f"{root / file}: no such COCO file" + (f"; there are {', '.join(near)}" if near else ""))
    data = read_coco(root / file, bad)
    pairs = list(zip(data.images, data.annotations, strict=True))
    return pairs[step - 1 :: step], data


def _image_folder(root: Path, file: str, data: CocoDataset, given: str) -> tuple[Path, str]:
    """The folder that the names in a COCO file are relative to, and a clause on where it was looked for in vain.

    It is the first of {the file's own folder, ``root``} x {., images, S, images/S} that holds an image of the file, S
    being the file's name without ``instances_`` and ``.json``; or x {``given``}. Exports of Roboflow, COCO and CVAT
    are found so. A file outside ``root`` looks there only where its own folder, and the one above ``annotations``, have
    nothing.

    Raises:
        SplitError: two folders hold the first image, and none is ``given``.
    """
    json = root / file
    stem = json.stem.removeprefix("instances_")
    names = [given] if given else [".", "images", stem, f"images/{stem}"]
    beside = [json.parent, *([json.parent.parent] if json.parent.name == "annotations" else [])]
    own, general = ([base / name for base in bases for name in names] for bases in (beside, [root]))
    is_apart = bool(given) or not _real(json.parent).is_relative_to(_real(root))
    for image in data.images:
        for folders in (own, general) if is_apart else ([*own, *general],):
            found: dict[Path, Path] = {}
            for folder in folders if is_inside(image.file_name) else ():
                for path in _coco_files(folder, image.file_name):
                    if path and _is_file(path):
                        found.setdefault(_real(path), folder)
                        break
            if len(found) > 1:
                at = ", ".join(map(str, found.values()))
                raise SplitError(f"{json}: its image {image.file_name} is in {at}; set data.images to the right one")
            if found:
                return next(iter(found.values())), ""
    looked = ", ".join(dict.fromkeys(map(str, (*own, *general))))
    return own[
        0
    ], f"; none of the {len(data.images):,} images of {json} is there; looked in {looked}; data.images names another"


def file_and_step(spec: str) -> tuple[str, int]:
    """``file.json`` and 10 of ``file.json%10``; a ``%`` that no number follows is part of the file's name."""
    match = re.fullmatch(r"(.+)%([0-9]{1,9})", spec, re.DOTALL)
    return (match[1], int(match[2])) if match else (spec, 1)


def _coco_files(folder: Path, name: str) -> tuple[Path, Path | None]:
    """Where the visible and the LWIR image of a COCO file name should be; None where the name leaves it open."""
    if is_frame_name(name):
        video, _, number = name.rpartition("/")
        visible, lwir = (_image_file(folder / "images" / video / side / number) for side in SIDES["early"])
        return visible, lwir
    parts = Path(name).parts
    if "visible" not in parts:
        return folder / name, None
    return folder / name, folder.joinpath(*("lwir" if part == "visible" else part for part in parts))


def _image_file(stem: Path) -> Path:
    """The file of this name with one of :data:`IMAGE_SUFFIXES`, the first where there is none."""
    files = [stem.with_suffix(suffix) for suffix in IMAGE_SUFFIXES]
    return next((file for file in files if _is_file(file)), files[0])


def _real(path: Path) -> Path:
    """The path without links, or as it is where no file system can hold it."""
    try:
        return path.resolve()
    except (OSError, ValueError):
        return path


def _is_file(path: Path) -> bool:
    """Also for names that no file system can hold, of which pathlib complains."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
