"""What the owner says of a task before anybody is asked: its classes, and the items whose class is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lightning_annot.annotations.formats import read_labels
from lightning_annot.annotations.worker_names import warn_of_case
from lightning_annot.data.classes import Subset, read_classes
from lightning_annot.data.items import ItemTable, build_items
from lightning_annot.data.loading import Loaded
from lightning_annot.names import KnownNames
from lightning_annot.types import OTHER, AnnotError


@dataclass(frozen=True)
class TaskClasses:
    """``ids`` in order, with ``OTHER`` where there are distractors; None: as the labels have them. What people call them, and
    which items are of them (None: all).
    """

    ids: tuple[str, ...] | None = None
    readable: Mapping[str, str] = field(default_factory=dict)
    subset: Subset | None = None


@dataclass(frozen=True)
class Owner:
    """Settings of ``AnnotationDataModule`` that are about classes and prototypes."""

    classes: list[str] | str | None
    distractors: float | None
    prototypes: str | None
    prototypes_per_class: int
    n_folds: int
    holdout: Literal["items", "prototypes"]
    seed: int

    def task_classes(self) -> TaskClasses:
        """The classes of the task."""
        if self.classes is None:
            if self.distractors is not None:
                raise AnnotError(
                    f"data.distractors {self.distractors} given without data.classes; name the classes that are no distractors."
                )
            return TaskClasses()
        given = read_classes(self.classes)
        readable = dict(zip(given.ids, given.names, strict=True))
        if self.distractors is None:
            return TaskClasses(given.ids, readable)
        other = (OTHER,) if self.distractors else ()
        return TaskClasses((*given.ids, *other), readable, Subset(given.ids, self.distractors, self.seed))

    def given(self) -> dict[str, str] | None:
        """The class of each prototype that the owner gives by file; None without a file."""
        if self.prototypes is None:
            return None
        frame = read_labels(self.prototypes)
        return dict(zip(frame["task"], frame["label"], strict=True))

    def table(self, loaded: Loaded, classes: TaskClasses, truth_is_whole: bool) -> ItemTable:
        """The items ``loaded``, with their prototypes; unless ``truth_is_whole``, labels of some items are the prototypes."""
        truth, prototypes = loaded.labels, self.given()
        if prototypes is not None:
            known = KnownNames(classes.ids or (truth or {}).values(), ignore_case=True)
            prototypes = {task: known.find(label) for task, label in prototypes.items()}
            prototypes = self._kept(prototypes, loaded, set(classes.ids or ()))
        elif truth is not None and not truth_is_whole and len(truth) < len(loaded.ids):
            truth, prototypes = None, truth
        table = build_items(
            loaded.ids,
            None if classes.ids is None else list(classes.ids),
            truth,
            prototypes,
            prototypes_per_class=self.prototypes_per_class,
            n_folds=self.n_folds,
            seed=self.seed,
            holdout=self.holdout,
            readable=dict(classes.readable),
        )
        if classes.ids is None:  # else both are meant
            warn_of_case(table.classes, what="classes")
        return table

    def knows_some(self, loaded: Loaded) -> bool:
        """Whether there will be prototypes."""
        return self.prototypes is not None or bool(loaded.labels and self.prototypes_per_class > 0)

    def _kept(self, given: Mapping[str, str], loaded: Loaded, known: set[str]) -> dict[str, str]:
        """The owner's labels without those of items that were left out; distractors are ``OTHER``, whatever they are."""
        truth, gone = loaded.labels or {}, loaded.dropped.union(loaded.unreadable)
        items, classes = KnownNames([*loaded.ids, *gone]), KnownNames(known, ignore_case=True)
        kept = {}
        for written, label in given.items():
            task = items.find(written)
            is_other = self.distractors and classes.find(label) not in known and truth.get(task) == OTHER
            if task not in gone:
                kept[written] = OTHER if is_other else label
        return kept
