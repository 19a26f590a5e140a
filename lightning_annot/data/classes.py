"""The classes of a task: their ids in order, what people call them, and which items belong to them or to none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.annotations.columns import check_names, distinct, matched
from lightning_annot.annotations.formats import read_table
from lightning_annot.names import clean, refuse_unusable
from lightning_annot.types import OTHER, AnnotError


@dataclass(frozen=True)
class ClassList:
    """``ids`` as the data has them, in order; ``names``: what people call them, the id itself where there is no name."""

    ids: tuple[str, ...]
    names: tuple[str, ...]


def read_classes(classes: Sequence[str] | str) -> ClassList:
    """Ids as they are given, less white space around them, or the lines of a CSV ``class[,name]``."""
    if not isinstance(classes, str):
        ids = tuple(clean(str(name)) for name in classes)
        refuse_unusable("names of data.classes", ids)
        if len(set(ids)) < len(ids):
            raise AnnotError(f"data.classes names a class twice: {list(ids)}.")
        return ClassList(ids, ids)
    path = Path(classes)
    if not path.is_file():
        raise AnnotError(
            f"data.classes is {classes!r}, and there is no such file; give a list of names, such as [cat,dog], or the path of "
            "a CSV with the columns class,name or class alone."
        )
    table = read_table(path, ("class",), ("name",))
    check_names(path, table["class"])
    shown = table["name"] if "name" in table else table["class"]
    table = distinct(path, table.assign(name=shown), ("class",), "name", "give a class another name than a line above")
    ids = table["class"]
    names = table["name"].where(lambda name: name != "", ids)
    return ClassList(tuple(ids), tuple(names))


@dataclass(frozen=True)
class Subset:
    """The items of ``named`` classes, and ``ratio`` times as many of other classes, drawn by ``seed`` (distractors).

    Distractors are of the class ``OTHER``, which comes last, and which there is only for a ``ratio`` above 0.
    """

    named: tuple[str, ...]
    ratio: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < np.inf:
            raise AnnotError(
                f"data.distractors {self.ratio} given; it must be 0 or more: how many items of other classes there "
                "shall be for each item of data.classes."
            )
        if self.ratio and OTHER in self.named:
            raise AnnotError(f"data.classes names {OTHER!r}, which is the class of the distractors; leave it out or rename it.")

    def choose(self, ids: Sequence[str], labels: Mapping[str, str] | None) -> tuple[list[int], dict[str, str]]:
        """Rows of ``ids`` that stay, in order, and the class of each by its id; ``labels``: the truth of every item."""
        labels = labels or {}
        bare = [name for name in ids if name not in labels]
        if bare:
            raise AnnotError(
                f"data.distractors needs the true label of every item, and {len(bare)} of {len(ids)} have none, such as "
                f"{bare[:3]}. Give data.labels or a root of one folder a class, or leave out data.distractors."
            )
        label = matched(pd.Series([labels[name] for name in ids], dtype=object), self.named, ignore_case=True)
        present = label.unique()
        absent = sorted(set(self.named).difference(present))
        if absent:
            raise AnnotError(
                f"{len(absent)} of the {len(self.named)} classes of data.classes have no item: {absent[:5]}; the data has "
                f"{len(present)} classes, such as {sorted(present)[:3]}. Correct data.classes, or give the data of all of them."
            )
        is_named = label.isin(self.named).to_numpy()
        rows = np.sort(np.append(np.flatnonzero(is_named), self._draw(np.flatnonzero(~is_named), int(is_named.sum()))))
        label[~is_named] = OTHER
        kept: list[int] = rows.tolist()
        return kept, dict(zip([ids[row] for row in kept], label[kept], strict=True))

    def _draw(self, foreign: np.ndarray, n_named: int) -> np.ndarray:
        wanted = round(self.ratio * n_named)
        if wanted > len(foreign):
            raise AnnotError(
                f"data.distractors {self.ratio} asks for {wanted} items of other classes beside {n_named} of data.classes, and "
                f"there are {len(foreign)}. Lower data.distractors, or give more items of other classes."
            )
        return np.random.default_rng(self.seed).choice(foreign, wanted, replace=False)
