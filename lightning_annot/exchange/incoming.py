"""The way of foreign answers into a run: their names made ours, checked, and put into the log."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.annotations.addresses import find_items
from lightning_annot.annotations.appending import new_positions
from lightning_annot.annotations.columns import check_members, check_names, distinct, matched, settled
from lightning_annot.annotations.formats import matched_tasks, read_answers, read_table, write_table
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import IMPORT_ROUND
from lightning_annot.annotations.worker_names import warn_of_case
from lightning_annot.exchange.records import Records
from lightning_annot.names import KnownNames, clean
from lightning_annot.types import AnnotError, Answer, Question

CONVERTED = "answers_import.csv"  # beside nothing yet: what annotation.import_answers takes
SOURCE = "import"


def rename(
    path: Path, given: Records, labels: Mapping[str, str] | None = None, task: Callable[[str], str] | None = None
) -> Records:
    """``given`` with other words for labels and tasks; labels that ``labels`` does not name stay.

    AnnotError where two tasks that a worker answered in two ways become one, or a task loses its name.
    """
    answers, words = given.answers.copy(), labels or {}
    answers["label"] = answers["label"].map(lambda label: words.get(label, label), na_action="ignore")
    truth = {name: words.get(label, label) for name, label in given.truth.items()}
    if task is not None:
        names = {name: clean(task(name)) for name in {*answers["task"].unique(), *truth}}
        answers["task"] = answers["task"].map(names)
        check_names(path, answers["task"])
        truth = {names[name]: label for name, label in truth.items()}
        answers = settled(path, answers)
    return replace(given, answers=answers, truth=truth)


def fitted(path: Path, given: Records, items: pd.Series, classes: Sequence[str]) -> Records:
    """``given`` with the names that the run has for its ``items`` and ``classes``.

    Labels are compared without regard to case, tasks in both forms of Unicode and by their addresses, see ``find_items``.
    """
    answers = given.answers.copy()
    answers["task"] = matched_tasks(path, answers["task"], items)
    labels = answers["label"].notna()
    answers.loc[labels, "label"] = matched(answers.loc[labels, "label"], classes, ignore_case=True)
    names, words = KnownNames(items).find_all({*given.truth}), KnownNames(classes, ignore_case=True)
    found = find_items(names.values(), items)
    truth = {found.get(names[name], names[name]): words.find(label) for name, label in given.truth.items()}
    return replace(given, answers=settled(path, answers), truth=truth)


def without(prefix: str) -> Callable[[str], str]:
    """A function that takes ``prefix`` off tasks that begin with it."""
    return lambda task: task.removeprefix(prefix)


def read_words(path: Path) -> dict[str, str]:
    """What labels are called here, from a CSV ``from,to``."""
    table = read_table(path, ("from", "to"))
    for name in ("from", "to"):
        check_names(path, table[name])
    table = distinct(path, table, ("from",), "to", "rename a label that is renamed in another way above")
    return dict(zip(table["from"], table["to"], strict=True))


def known_only(given: Records, items: pd.Series) -> Records:
    """The answers about ``items``."""
    return replace(given, answers=given.answers[given.answers["task"].isin(items)])


def into_log(path: Path, log: AnnotationLog, given: Records, labels: pd.DataFrame, classes: list[str], source: str) -> int:
    """Put answers, ``fitted`` before, into the log as known before round 0, all or none; again changes nothing.

    ``labels``: the run's ``labels.csv``. A gold answer about a prototype is a gold answer here; about another item it is an
    ordinary one, as nothing here knows that item's class.

    Returns:
        How many were new.
    """
    answers = given.answers
    check_members(path, answers["task"], labels["task"], "items")
    check_members(path, answers["label"][~answers["skip"]], classes, "classes")
    prototypes = labels.loc[labels["status"] == "prototype", "task"]
    gold = (answers["kind"] == "gold") & answers["task"].isin(prototypes)
    before, pair = log.answers(), pd.MultiIndex.from_frame(answers[["task", "worker"]])
    warn_of_case([*answers["worker"].unique(), *before["worker"].unique()], answers["worker"])
    known = pd.MultiIndex.from_frame(before[["item", "worker"]])
    # What is left is told apart by the log itself, which knows of ordinary answers alone.
    fresh = ~(pair.isin(known[before["kind"] == "gold"]) | (gold.to_numpy() & pair.isin(known)))
    kind = np.where(gold, "gold", "annotation")[fresh]
    columns = (answers[name][fresh] for name in ("task", "worker", "label", "skip", "seconds"))
    return log.record(
        [
            (
                Question(task, worker, kind_, IMPORT_ROUND),
                Answer(0, worker, None if skip else label, None if np.isnan(s) else s, source),
            )
            for task, worker, label, skip, s, kind_ in zip(*columns, kind.tolist(), strict=True)
        ]
    )


def into_file(given: Records, folder: Path) -> tuple[Path, int]:
    """Before there is a run: add the answers to ``answers_import.csv`` in its ``folder``; returns it, and how many were new.

    Skips have no place in it. The first answer of a worker about a task counts, as in the log.
    """
    path = folder / CONVERTED
    found = given.labels()[["task", "worker", "label", "seconds"]]
    if found.empty:
        raise AnnotError(f"no label found in {given.answers.index.size} answers; skips have no place before there is a run")
    old = read_answers(path) if path.is_file() else found[:0]
    warn_of_case([*old["worker"].unique(), *found["worker"].unique()], found["worker"])
    known: dict[Hashable, str | None] = dict(zip(zip(old["task"], old["worker"], strict=True), old["label"], strict=True))
    new = new_positions(list(zip(found["task"], found["worker"], strict=True)), found["label"].tolist(), known)
    whole = pd.concat([part for part in (old, found.iloc[new]) if len(part)], ignore_index=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnnotError(f"no folder at {folder}: {error}; give the folder that the run will have") from error
    write_table(path, whole)
    return path, len(whole) - len(old)
