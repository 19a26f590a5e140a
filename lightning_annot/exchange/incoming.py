"""The way of foreign answers into a run: their names made ours, checked, and put into the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd

from lightning_annot.annotations.formats import check_members, check_none, read_answers, read_table, write_table
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import IMPORT_ROUND
from lightning_annot.exchange.records import Records
from lightning_annot.types import AnnotError, Answer, Question

CONVERTED = "answers_import.csv"  # beside nothing yet: what annotation.import_answers takes
SOURCE = "import"


def rename(
    path: Path, given: Records, labels: Mapping[str, str] | None = None, task: Callable[[str], str] | None = None
) -> Records:
    """``given`` with other words for labels and tasks; labels that ``labels`` does not name stay.

    AnnotError where two tasks that a worker answered become one.
    """
    answers, words = given.answers.copy(), labels or {}
    answers["label"] = answers["label"].map(lambda label: words.get(label, label), na_action="ignore")
    truth = {name: words.get(label, label) for name, label in given.truth.items()}
    if task is not None:
        names = {name: task(name) for name in {*answers["task"].unique(), *truth}}
        answers["task"] = answers["task"].map(names)
        truth = {names[name]: label for name, label in truth.items()}
        twice = answers.loc[answers.duplicated(["task", "worker"]), "task"]
        check_none(path, twice, "answer a task that the same worker answered before", "keep the folders in the names of tasks")
    return replace(given, answers=answers, truth=truth)


def file_name(address: str) -> str:
    """The last part of a path or URL, or, of one to Label Studio's local files, of its ``?d=``; without escapes."""
    parts = urlsplit(address)
    inner = [value for key, _, value in (item.partition("=") for item in parts.query.split("&")) if key == "d"]
    return PurePosixPath(unquote(inner[0] if inner else parts.path if parts.scheme else address)).name


def without(prefix: str) -> Callable[[str], str]:
    """A function that takes ``prefix`` off tasks that begin with it."""
    return lambda task: task.removeprefix(prefix)


def read_words(path: Path) -> dict[str, str]:
    """What labels are called here, from a CSV ``from,to``."""
    table = read_table(path, ("from", "to"))
    twice = table.loc[table.duplicated("from"), "from"]
    check_none(path, twice, "rename a label that is renamed above", "keep one row of each")
    return dict(zip(table["from"], table["to"], strict=True))


def known_only(given: Records, items: pd.Series) -> Records:
    """The answers about ``items``."""
    return replace(given, answers=given.answers[given.answers["task"].isin(items)])


def into_log(path: Path, log: AnnotationLog, given: Records, labels: pd.DataFrame, classes: list[str], source: str) -> int:
    """Put answers into the log as known before round 0, all or none; returns how many were new. Again changes nothing.

    ``labels``: the run's ``labels.csv``. A gold answer about a prototype is a gold answer here; about another item it is an
    ordinary one, as nothing here knows that item's class.
    """
    answers = given.answers
    check_members(path, answers["task"], labels["task"], "items")
    check_members(path, answers["label"][~answers["skip"]], classes, "classes")
    prototypes = labels.loc[labels["status"] == "prototype", "task"]
    gold = (answers["kind"] == "gold") & answers["task"].isin(prototypes)
    before, pair = log.answers(), pd.MultiIndex.from_frame(answers[["task", "worker"]])
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
    old = read_answers(path) if path.is_file() else found[:0]
    whole = pd.concat([part for part in (old, found) if len(part)] or [found], ignore_index=True)
    whole = whole.drop_duplicates(["task", "worker"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnnotError(f"no folder at {folder}: {error}; give the folder that the run will have") from error
    write_table(path, whole)
    return path, len(whole) - len(old)
