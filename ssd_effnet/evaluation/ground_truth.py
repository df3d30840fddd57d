"""Ground truth that detections are scored against, with the names and ids that their files refer to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_kaist.annotations import doubt_of_boxes, other_labels
from data_kaist.classes import PERSON, Classes, is_among
from data_kaist.coco import read_coco
from data_kaist.detections import form_of, read_categories, read_detections
from data_kaist.errors import DataError, Doubt
from data_kaist.structures import Annotations, DetectionTable
from ssd_effnet.evaluation import box_formats
from ssd_effnet.evaluation.miss_rate import MissRateEvaluator


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Ground truth, with the names and ids that detections refer to.

    Attributes:
        annotations: one per image.
        names: frame names in the same order.
        image_ids: of a COCO file's images; None: ids are indices.
        person_categories: category ids that are ``person`` in a COCO file; None: all.
        source: the COCO file, or the folder of annotations and the split.
        listed: indices of the images in the order of the COCO file.
        category: name of the class in ``images.json``.
        whole: False after images were left out, whose detections look missing.
    """

    annotations: list[Annotations]
    names: list[str]
    image_ids: list[int] | None = None
    person_categories: frozenset[int] | None = None
    source: str = ""
    listed: Sequence[int] = ()
    category: str = PERSON
    whole: bool = True

    def __str__(self) -> str:
        persons = sum(int((is_among(a.labels, [PERSON]) & ~a.ignore).sum()) for a in self.annotations)
        others = other_labels(self.annotations)
        line = f"annotations: {self.source}; {len(self.annotations):,} images, {persons:,} boxes of persons"
        return line + (f"; not persons, so ignore regions: {others}" if others else "")

    def read_detections(self, path: Path | str) -> DetectionTable:
        """Detections of these images from a file or folder (:mod:`data_kaist.detections`).

        With ``images.json`` beside the file, as ``ssd-effnet detect`` writes it, images are matched by name.
        """
        return self._read(path)[0]

    def _read(self, path: Path | str) -> tuple[DetectionTable, set[int]]:
        """Detections, and the indices of the processed images."""
        if (listing := _listing(path)) is not None:
            return self._by_names(Path(path), listing)
        n, ids = len(self.annotations), self.image_ids
        table = read_detections(path, n, names=self.names, image_ids=ids, person_categories=self.person_categories)
        return table, set(range(n))

    def read_all(self, paths: Sequence[Path]) -> tuple[GroundTruth, list[DetectionTable]]:
        """Several files of detections, and the images that all of them cover.

        Images missing in a file's ``images.json`` are left out; a :class:`~data_kaist.errors.Doubt` counts them.
        """
        tables, looked_at = zip(*map(self._read, paths), strict=True)
        seen = set(range(len(self.names))).intersection(*looked_at)
        if len(seen) == len(self.names):
            return self, list(tables)
        if not seen:
            raise DataError(f"{', '.join(map(str, paths))}: no image of {self.source} was looked at for all of them")
        kept = sorted(seen)
        new = np.full(len(self.names), -1)
        new[kept] = range(len(kept))
        renumbered = [replace(table, image_index=new[table.image_index]) for table in tables]
        truth = replace(
            self,
            annotations=[self.annotations[place] for place in kept],
            names=[self.names[place] for place in kept],
            image_ids=self.image_ids and [self.image_ids[place] for place in kept],
            source=f"{self.source}, the {len(kept):,} images that were looked at",
            listed=[int(new[place]) for place in self.listed if new[place] >= 0],
            whole=False,
        )
        return truth, [table.rows(table.image_index >= 0) for table in renumbered]

    def _by_names(self, path: Path, listing: Path) -> tuple[DetectionTable, set[int]]:
        seen = read_coco(listing, classes=Classes({self.category: (self.category,)}))
        ids, is_text = seen.image_ids, path.suffix == ".txt"
        images = max(ids) + 1 if is_text else len(ids)
        categories = {id_ for id_, label in seen.categories.items() if label == self.category}
        table = read_detections(path, images, image_ids=ids, person_categories=categories)
        place = places_by_name(seen.names, self.names, str(listing))
        found = [(image.size, self.annotations[i].size) for image, i in zip(seen.images, place, strict=True) if i >= 0]
        if resized := sum(own != size for own, size in found):
            of_other = f"{resized:,} images have another size than in {self.source}"
            warnings.warn(f"{listing}: {of_other}: turned by an orientation tag, or resized?", Doubt, stacklevel=2)
        if len(seen.categories) > 1 and (others := other_labels(self.annotations)):
            rule = f"a person found on an object of another class is ignored here ({others}), a false alarm in its run"
            warnings.warn(f"{path}: {rule}", Doubt, stacklevel=2)
        unknown, unseen = place.count(-1), len(self.names) - len(set(place) - {-1})
        if unknown == len(place):
            raise DataError(f"{listing}: none of its {unknown:,} images, as {seen.names[0]}, is in {self.source}")
        if unknown or unseen:
            left_out = f"{unknown:,} of {len(place):,} images are not in {self.source} and are left out, and "
            warnings.warn(
                f"{path}: by the names in {listing.name}, {left_out if unknown else ''}{unseen:,} of the "
                f"{len(self.names):,} images of {self.source} were not looked at; scores are of those that were",
                Doubt,
                stacklevel=2,
            )
        to = dict(zip(ids if is_text else range(len(ids)), place, strict=True))
        index = np.array([to.get(i, -1) for i in table.image_index.tolist()], np.int64)
        return replace(table, image_index=index).rows(index >= 0), set(place)

    def doubt(self, path: Path | str, table: DetectionTable, evaluator: MissRateEvaluator) -> str:
        """A sentence if the detections of a file look wrongly written (:mod:`ssd_effnet.evaluation.box_formats`)."""

        def others() -> Iterator[tuple[str, DetectionTable]]:
            if _listing(path) is not None:
                return
            by_name = sorted(range(len(self.names)), key=self.names.__getitem__)
            for how, order in (("their names", by_name), ("the annotation file's list", self.listed)):
                if len(order):
                    index = np.asarray(order)[table.image_index]
                    yield f"its images are numbered in the order of {how}", replace(table, image_index=index)
            if form_of(path) == "coco" and self.person_categories is not None:
                with warnings.catch_warnings():  # doubts were reported at the first reading
                    warnings.simplefilter("ignore", Doubt)
                    everything, category = read_categories(path, len(self.annotations), image_ids=self.image_ids)
                for c in sorted(set(category.tolist()) - self.person_categories):
                    yield f"its category {c} is the person", everything.rows(category == c)

        return box_formats.doubt(evaluator, table, others)

    def say_doubts(self, tables: Mapping[Path, DetectionTable], evaluator: MissRateEvaluator) -> None:
        """Warn of each file whose detections look wrongly written, if no image was left out."""
        for path, table in tables.items():
            if self.whole and (doubt := self.doubt(path, table, evaluator)):
                warnings.warn(f"{path}: {doubt}", Doubt, stacklevel=3)


def _listing(path: Path | str) -> Path | None:
    """Image names by number, from ``images.json`` of ``ssd-effnet detect``."""
    listing = Path(path).with_name("images.json")
    return listing if Path(path).name in ("detections.json", "detections_kaist.txt") and listing.is_file() else None


def places_by_name(names: Sequence[str], among: Sequence[str], where: str) -> list[int]:
    """Index of each name among others, -1 for none. Leading folders may differ.

    >>> places_by_name(["b", "street/a", "c"], ["mine/a", "mine/b"], "images.json")
    [1, 0, -1]

    Args:
        names, among: without the files' endings; folders ``visible`` and ``lwir`` do not count.
        where: file of ``names``, for messages.

    Raises:
        DataError: a name fits several, or several fit one.
    """

    def parts(name: str) -> tuple[str, ...]:
        return tuple(part for part in name.split("/") if part not in ("visible", "lwir", "."))

    ends: dict[tuple[str, ...], list[int]] = {}
    whole = [parts(name) for name in among]
    for place, of_name in enumerate(whole):
        for start in range(len(of_name)):
            ends.setdefault(of_name[start:], []).append(place)
    places: list[int] = []
    taken: dict[int, str] = {}
    for name in names:
        tails = [parts(name)[start:] for start in range(len(parts(name)))]
        tail = next((tail for tail in tails if tail in ends), ())
        fitting = ends.get(tail, [])
        fitting = [place for place in fitting if whole[place] == tail] or fitting
        if len(fitting) > 1:
            raise DataError(f"{where}: {name} may be {among[fitting[0]]} or {among[fitting[1]]}, whose folders differ")
        places += fitting or [-1]
        if fitting and (other := taken.setdefault(fitting[0], name)) != name:
            raise DataError(f"{where}: {other} and {name} are both {among[fitting[0]]}")
    return places


def load_ground_truth(path: Path | str, split: str | None = None) -> GroundTruth:
    """Ground truth from a COCO file or a data set's annotations.

    Args:
        path: a ``.json`` file (all its images), or a data set's root or annotation folder.
        split: frames to take from a folder (:mod:`data_kaist.splits`); None: test-all-20. Refused for a file.
    """
    path = Path(path)
    if path.is_dir():
        truth = _load_folder(path, split or "test-all-20")
    elif split is not None:
        raise DataError(f"{path}: is no data set's root, of which a split, here {split}, takes frames")
    else:
        of = read_coco(path)
        truth = GroundTruth(of.annotations, of.names, of.image_ids, of.person_categories, str(path), of.listed)
    if doubt := doubt_of_boxes(truth.annotations):
        warnings.warn(f"{truth.source}: {doubt}", Doubt, stacklevel=2)
    return truth


def _load_folder(folder: Path, split: str) -> GroundTruth:
    """Annotations below a data set's root or annotation folder. Images may be missing."""
    from data_kaist.layouts import DataSource, annotation_form, annotation_sets

    found = annotation_sets(folder)
    if len(found) > 1:
        sets = ", ".join(str(path) for _, path in found)
        raise DataError(f"{folder}: holds {len(found)} sets of annotations, {sets}; give one of these folders instead")
    inside = annotation_form(folder)
    form, annotations_dir = found[0] if found else (inside or "xml", folder if inside else None)
    # a text states no size: the images of the data set in which it lies do
    root = folder.parent if inside and form != "xml" and (folder.parent / "images").is_dir() else folder
    data = DataSource("kaist", root, form, annotations_dir)
    frames = data.frames(split, modality=None)
    source = f"{annotations_dir}, {'visible, ' if form == 'paired' else ''}{split}"
    return GroundTruth([frame.annotations for frame in frames], [frame.name for frame in frames], source=source)
