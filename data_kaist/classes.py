"""Classes to detect, and the data's labels that belong to each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PERSON = "person"
KAIST_LABELS = (PERSON, "people", "cyclist", "person?")


def label_of(name: str) -> str:
    """Normalised label: ``person`` also for ``pedestrian``, without case and blanks.

    >>> label_of(" Pedestrian")
    'person'
    """
    return PERSON if label_key(name) == PERSON else name


def label_key(label: str) -> str:
    """Label without case and outer blanks, for comparison."""
    key = str(label).strip().casefold()
    return PERSON if key == "pedestrian" else key


def is_among(labels: Iterable[str], wanted: Iterable[str]) -> np.ndarray:
    """Whether labels are among the wanted ones, bool ``(n,)``. Case and blanks are ignored."""
    names = list(labels)
    keys = {label_key(label) for label in wanted}
    known = {name: label_key(name) in keys for name in set(names)}
    return np.array([known[name] for name in names], bool)


@dataclass(frozen=True)
class Classes:
    """Classes of a detector: the data's labels by class name. Class 0 is background.

    >>> classes = Classes({"person": ("person", "people"), "cyclist": ("cyclist",)})
    >>> classes.indices(["Cyclist ", "person", "person?"]).tolist()
    [2, 1, 0]
    >>> classes.counted("person"), classes.absent("person"), classes.absent("cyclist")
    (('person',), (), ('person', 'people'))
    """

    labels: Mapping[str, tuple[str, ...]]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the class indices 1, 2, ..."""
        return tuple(self.labels)

    @cached_property
    def all_labels(self) -> tuple[str, ...]:
        """Labels of all classes."""
        return tuple(label for labels in self.labels.values() for label in labels)

    @cached_property
    def main(self) -> str:
        """Class with the label ``person``, else the first. Its figures have no class name."""
        return next((name for name in self.names if is_among([PERSON], self.labels[name]).all()), self.names[0])

    @cached_property
    def published(self) -> tuple[str, ...]:
        """Names in result files: as :attr:`names`, but ``person`` for the class with that label."""
        return tuple(PERSON if is_among([PERSON], of).any() else name for name, of in self.labels.items())

    def __str__(self) -> str:
        return "persons" if self == PEOPLE else " and ".join(self.names)

    def index(self, name: str) -> int:
        """Index of a class, from 1."""
        return self.names.index(name) + 1

    def indices(self, labels: Iterable[str]) -> np.ndarray:
        """Class index of each label, int64 ``(n,)``, 0 for none."""
        index = {label_key(label): self.index(name) for name, of in self.labels.items() for label in of}
        return np.array([index.get(label_key(label), 0) for label in labels], np.int64)

    def words(self, labels: Iterable[str]) -> list[str]:
        """Captions of boxes: their class, if there are several."""
        return [self.names[i - 1] if i and len(self.names) > 1 else "" for i in self.indices(labels)]

    def counted(self, name: str) -> tuple[str, ...]:
        """Scored labels of a class; others are ignore regions, or :meth:`absent`.

        All of the class, but that KAIST's other labels never count beside ``person``: its protocol ignores them.
        """
        labels = self.labels[name]
        if not is_among([PERSON], labels).any():
            return labels
        return tuple(label for label in labels if not is_among([label], KAIST_LABELS[1:]).any())

    def ignored_in_scoring(self, name: str) -> tuple[str, ...]:
        """Labels used in training but not in scoring: ignore regions there."""
        return tuple(label for label in self.labels[name] if label not in self.counted(name))

    def absent(self, name: str) -> tuple[str, ...]:
        """Labels of other classes in scoring: detections on them are false positives.

        Not so KAIST's other labels beside ``person``: its protocol makes them ignore regions.
        """
        others = tuple(label for other, labels in self.labels.items() if other != name for label in labels)
        if not is_among([PERSON], self.labels[name]).any():
            return others
        return tuple(label for label in others if not is_among([label], KAIST_LABELS).any())


PEOPLE = Classes({PERSON: (PERSON,)})
