"""The one form that every format is read into, and written from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lightning_annot.annotations.columns import (
    check_names,
    check_none,
    check_workers,
    cleaned,
    numbers,
    parse_seconds,
    settled,
)
from lightning_annot.annotations.formats import read_table
from lightning_annot.annotations.json_text import text_of
from lightning_annot.names import clean
from lightning_annot.types import AnnotError

COLUMNS = ("task", "worker", "label", "seconds", "kind", "skip")


@dataclass(frozen=True)
class Records:
    """Answers, and what the same file knows to be true.

    ``answers`` has ``COLUMNS``: task, worker, label (text; None for a skip), seconds (float64, NaN: unknown), kind
    ("annotation", or "gold" where the file knew the class when it asked) and skip (bool); other columns may follow. The
    index says where in the file each stands. ``truth``: class by task. ``classes`` in order, where the file says so, else
    empty.
    """

    answers: pd.DataFrame
    truth: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def labels(self) -> pd.DataFrame:
        """The answers that are labels: no skips."""
        return self.answers[~self.answers["skip"]]

    def class_names(self) -> tuple[str, ...]:
        """The classes, or, where the file does not list them, the sorted labels."""
        return self.classes or tuple(sorted({*self.labels()["label"], *self.truth.values()}))


@dataclass(frozen=True)
class Reading:
    """What a file does not say itself. ``columns``: what it calls task, worker, label or seconds, where that is another word.
    ``worker``: who gave all the answers. ``side``: a second file, where the format has two.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    worker: str | None = None
    side: Path | None = None

    def column(self, name: str, usual: str | None = None) -> str:
        """What the file calls ``name``."""
        return self.columns.get(name, usual or name)


def records(
    path: Path,
    task: pd.Series,
    worker: pd.Series,
    label: pd.Series,
    *,
    seconds: pd.Series | None = None,
    gold: pd.Series | None = None,
    skip: pd.Series | None = None,
    truth: Mapping[str, str] | None = None,
    classes: Sequence[str] = (),
) -> Records:
    """Check and join columns of equal index, which says where each row stands in the file (the index' name: line, entry).

    ``label`` is text; where ``skip`` (bool) it does not count. White space around names does not either. A worker's repeat of
    an answer is left out, and so is a skip beside a label of the same worker.

    Raises:
        AnnotError: There is no answer; a task, worker or label is empty or can be no name; a worker gave a task two labels.
    """
    if not len(task):
        raise AnnotError(f"no answer found in {path}; export after labelling, and check that --format is right")
    skipped = pd.Series(False, index=label.index) if skip is None else skip.astype(bool)
    task, worker = cleaned(task).rename("task"), cleaned(worker).rename("worker")
    label = cleaned(label).rename("label")
    check_names(path, task)
    check_workers(path, worker)
    check_names(path, label[~skipped])
    known = {clean(name): clean(of) for name, of in (truth or {}).items()}
    check_names(path, column([*known, *known.values()], [*known, *known], "truth of", name="truth"))
    frame = pd.DataFrame(
        {
            "task": task,
            "worker": worker,
            "label": label.astype(object).mask(skipped, None),
            "seconds": np.nan if seconds is None else seconds.astype("float64"),
            "kind": np.where(False if gold is None else gold.astype(bool), "gold", "annotation"),
            "skip": skipped,
        }
    )
    return Records(settled(path, frame), known, tuple(map(clean, classes)))


def from_table(path: Path, how: Reading, worker: str = "worker", old_names: Mapping[str, str] | None = None) -> Records:
    """Answers of a CSV with one a line; its columns are task, ``worker``, label and, where it has them, seconds."""
    names = {"task": how.column("task"), "worker": how.column("worker", worker), "label": how.column("label")}
    needed = [name for key, name in names.items() if key != "worker" or how.worker is None]
    table = read_table(path, needed, [how.column("seconds")], old_names, numbers=[how.column("seconds")])
    who = pd.Series(how.worker, index=table.index, dtype=object) if how.worker is not None else table[names["worker"]]
    seconds = parse_seconds(path, table[how.column("seconds")]) if how.column("seconds") in table else None
    return records(path, table[names["task"]], who, table[names["label"]], seconds=seconds)


def texts(values: pd.Series) -> list[str]:
    """Numbers as text, whole ones without a point, empty where unknown."""
    return ["" if np.isnan(value) else text_of(value) for value in values.tolist()]


def objects(path: Path | str, value: object, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, from 1, and content of each object of a list; AnnotError for what is no list of objects."""
    if not isinstance(value, list):
        raise AnnotError(f"{path} has {type(value).__name__} where a list of {what} belongs; export it anew")
    for number, entry in enumerate(value, start=1):
        if not isinstance(entry, dict):
            raise AnnotError(f"{path}, {what} {number}: {str(entry)[:60]!r} is no JSON object; export it anew")
        yield number, entry


def member(path: Path, where: str, entry: Mapping[str, Any], key: str) -> Any:
    """``entry[key]``, or AnnotError that says where it is missing."""
    if key not in entry:
        raise AnnotError(f"{path}, {where} has no {key!r}, only {sorted(entry)[:10]}; export it anew or correct it")
    return entry[key]


def column(values: Sequence[Any], where: Sequence[Any], word: str = "entry", name: str | None = None) -> pd.Series:
    """A column from Python values that stand at ``where`` in the file; ``word``: what such a place is called."""
    return pd.Series(list(values), index=pd.Index(list(where), name=word), dtype=object, name=name)


def check_numbers(path: Path, values: pd.Series, size: int, what: str) -> pd.Series:
    """``values`` as int64 in [0, ``size``); AnnotError for others."""
    number = numbers(values)
    good = (number >= 0) & (number < size) & (number % 1 == 0)
    check_none(path, values[~good], f"have no {what}", f"allowed are whole numbers from 0 to {size - 1}")
    return number.astype("int64")


def check_unlike(path: Path, names: Sequence[str], bad: Sequence[str], why: str) -> None:
    """AnnotError if one of the ``names`` is among the ``bad`` ones, which the format cannot write: ``why``."""
    if odd := sorted(set(names) & set(bad)):
        raise AnnotError(f"{path} cannot be written: {odd[:5]} {why}; choose another format")


def check_no_spaces_around(path: Path, names: Sequence[str]) -> None:
    """AnnotError if one of the ``names`` begins or ends with a space, which who reads the file takes away."""
    odd = [name for name in {*names} if name != name.strip()]
    check_unlike(path, odd, odd, "would be read without the spaces around them")
