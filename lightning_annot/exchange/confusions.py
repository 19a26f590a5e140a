"""Confusions of people, counted from gold answers, in the form of the paper's AMT study (``group_workers.json``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lightning_annot.annotations.json_text import name_of, read_json
from lightning_annot.exchange.records import Reading, Records, member, records
from lightning_annot.files import write_text
from lightning_annot.names import clean
from lightning_annot.types import AnnotError

MOST_COUNTS = 10_000_000
IDS, NAMES, GROUPS, TOTAL = "imagenet100", "imagenet100_name", "group_workers", "total_cm"  # the keys of the study


def count_confusions(answers: pd.DataFrame, truth: Mapping[str, str], classes: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names of the workers, sorted, and their counts (W, K, K): row = true class, column = answer.

    ``answers``: ``task``, ``worker``, ``label`` (None for a skip, which is not counted); tasks without a ``truth`` are not
    either.
    """
    names = pd.Index(classes)
    true = names.get_indexer(answers["task"].map(truth))
    label = names.get_indexer(answers["label"])
    used = (true >= 0) & (label >= 0)
    worker, who = pd.factorize(answers["worker"][used], sort=True)
    k = len(classes)
    cell = (worker * k + true[used]) * k + label[used]
    return [str(name) for name in who], np.bincount(cell, minlength=len(who) * k * k).reshape(-1, k, k)


def write_group_workers(
    path: Path,
    classes: Sequence[str],
    names: Sequence[str],
    groups: Mapping[str, np.ndarray],
    workers: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """``classes`` (K) are ids, ``names`` (K) what people call them; ``groups``: counts (people, K, K) by group, and
    ``workers``, who these are.
    """
    total = sum((counts.sum(0) for counts in groups.values()), np.zeros((len(classes),) * 2, dtype=np.int64))
    data = {
        IDS: list(classes),
        NAMES: list(names),
        GROUPS: {group: counts.astype(int).tolist() for group, counts in groups.items()},
        TOTAL: total.astype(int).tolist(),
        **({} if workers is None else {"workers": {group: list(who) for group, who in workers.items()}}),
    }
    write_text(path, json.dumps(data, ensure_ascii=False))


def read_group_workers(path: Path, how: Reading) -> Records:
    """Each count as that many gold answers about images that the file does not name: task ``WORKER/CLASS/NUMBER``.

    Workers are called ``GROUP-PERSON``, or as ``workers`` in our own files names them.
    """
    data, classes, tables = _read(path)
    called = _called(path, data.get("workers", {}), tables)
    if (total := sum(int(counts.sum()) for counts in tables.values())) > MOST_COUNTS:
        raise AnnotError(f"{path} counts {total} answers; at most {MOST_COUNTS} can be taken in one by one")
    cells = [
        (called[group][person], y, z, n)
        for group, counts in tables.items()
        for person, y, z, n in np.c_[np.argwhere(counts), counts[counts > 0]].tolist()
    ]
    rows = pd.DataFrame(cells, columns=["worker", "true", "answer", "n"])
    rows = rows.loc[rows.index.repeat(rows["n"])].reset_index(drop=True)
    number = rows.groupby(["worker", "true"]).cumcount().astype(str)
    names = np.array(classes, dtype=object)
    true = pd.Series(names[rows["true"].to_numpy(np.int64)], dtype=object)
    task = rows["worker"] + "/" + true + "/" + number
    label = pd.Series(names[rows["answer"].to_numpy(np.int64)], dtype=object)
    gold = pd.Series(True, index=rows.index)
    truth = dict(zip(task, true, strict=True))
    return records(path, task.astype(object), rows["worker"].astype(object), label, gold=gold, truth=truth, classes=classes)


def read_counts(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Classes (K) of the study, and counts (people, K, K; row = true class, column = answer) by group, sorted.

    Raises:
        AnnotError: The file is no such study.
    """
    _, classes, tables = _read(path)
    return classes, tables


def _read(path: Path) -> tuple[dict[str, Any], list[str], dict[str, np.ndarray]]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise AnnotError(f"{path} has no JSON object at its top; it must have {IDS} and {GROUPS}")
    given = member(path, "the file", data, IDS)
    if not isinstance(given, list):
        raise AnnotError(f"{path} has {str(given)[:60]!r} as {IDS}, where a list of classes belongs; export it anew")
    classes = [clean(name_of(path, IDS, name)) for name in given]
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise AnnotError(f"{path} has {twice[:5]} more than once in {IDS}; name each class once")
    people = member(path, "the file", data, GROUPS)
    if not isinstance(people, dict):
        raise AnnotError(f"{path} has {str(people)[:60]!r} as {GROUPS}, where {{group: counts}} belongs; export it anew")
    tables = {group: _counts(path, group, counts, len(classes)) for group, counts in sorted(people.items())}
    return data, classes, tables


def _called(path: Path, names: Any, tables: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """What the people of each group are called; by number where ``names`` does not have all, each another one."""
    numbered = {group: [f"{group}-{person}" for person in range(len(counts))] for group, counts in tables.items()}
    if not names:
        return numbered
    lists = {group: names.get(group) for group in tables} if isinstance(names, dict) else {}
    found = {group: [name_of(path, "workers", name) for name in who] for group, who in lists.items() if isinstance(who, list)}
    whole = [name for group in found.values() for name in group]
    if {group: len(who) for group, who in found.items()} != {group: len(who) for group, who in numbered.items()}:
        raise AnnotError(f"{path} has other numbers of people in workers than in {GROUPS}; correct or remove workers")
    return found if len({*whole}) == len(whole) else numbered


def _counts(path: Path, group: str, counts: object, k: int) -> np.ndarray:
    """Whole counts (people, K, K)."""
    try:
        table = np.asarray(counts, dtype=float)
    except (TypeError, ValueError, OverflowError) as error:
        raise AnnotError(f"{path}, group {group!r}: {error}; counts must be (people, {k}, {k})") from error
    counted = (table >= 0) & (table <= MOST_COUNTS) & (np.floor(table) == table)
    if table.ndim != 3 or table.shape[1:] != (k, k) or not counted.all():
        raise AnnotError(f"{path}, group {group!r} has shape {table.shape}; counts must be whole numbers, (people, {k}, {k})")
    return table.astype(np.int64)
