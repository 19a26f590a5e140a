"""Audits as facts: questions of kind ``audit`` in the log, a CSV for the expert, and the expert's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lightning_annot.annotations.columns import check_members, check_none, distinct, matched
from lightning_annot.annotations.formats import read_labels, read_table, write_table
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.types import AnnotError, Answer, Question

EXPERT = "expert"
SKIPS = ("skip", "unsure")


def known_answers(log: AnnotationLog, before_round: int | None = None) -> dict[str, str | None]:
    """What the expert said of each audited item, asked ``before_round`` alone if given; None where unsure."""
    answers = log.answers(before_round, kind="audit").drop_duplicates("item")
    return dict(zip(answers["item"], answers["label"], strict=True))


def draws(log: AnnotationLog) -> int:
    """How often items were drawn for an audit; the questions of a draw are committed together."""
    return int(log.questions(kind="audit")["asked_at"].nunique())


def ask(log: AnnotationLog, tasks: Sequence[str], round_: int, worker: str = EXPERT) -> None:
    """Commit the question about each task to ``worker``, unless it is there already."""
    questions = log.questions(kind="audit")
    asked = set(questions["item"][questions["worker"] == worker])
    new = [Question(task, worker, "audit", round_) for task in tasks if task not in asked]
    if new:
        log.ask(new)


def write_audit(path: Path, tasks: Sequence[str], root: str | None) -> None:
    """``task,path,label`` for the expert; label is empty, and the run's own is not shown, lest it lead the eye.

    ``path`` is there where each task is a file below ``root``, the folder of the images.
    """
    columns: dict[str, object] = {"task": list(tasks)}
    paths = [] if root is None else [Path(root).expanduser() / task for task in tasks]
    if paths and all(file.is_file() for file in paths):
        columns["path"] = [str(file) for file in paths]
    write_table(path, pd.DataFrame({**columns, "label": ""}))


def read_audit(log: AnnotationLog, path: Path, classes: Sequence[str]) -> dict[str, str | None]:
    """New answers of a filled CSV, task to class, None for ``unsure`` or ``skip``; lines with an empty label wait.

    Answers that the log has already may stay. Raises AnnotError that names the lines for tasks that were not drawn, labels
    outside the classes, and answers that contradict each other or the log.
    """
    known = known_answers(log)
    table = read_table(path, ("task", "label"))
    table = table[table["label"] != ""]
    skipped = table["label"].str.casefold().isin(set(SKIPS) - {name.casefold() for name in classes})
    questions = log.questions(kind="audit")
    drawn = list(questions["item"][questions["worker"] == EXPERT])
    table["task"] = matched(table["task"], drawn)
    table["label"] = matched(table["label"], classes, ignore_case=True)
    check_members(path, table["task"], drawn, "items that were drawn")
    check_members(path, table["label"][~skipped], classes, "classes")
    said = table["label"].astype(object).mask(skipped, "")
    problem = "answer a task that was answered in another way above"
    distinct(path, table.assign(label=said), ("task",), "label", problem, "keep one answer of each task")
    before = table["task"].map({task: label or "" for task, label in known.items()})
    changed = table["task"][before.notna() & (before != said)]
    check_none(path, changed, "contradict the answer that the log has", "the first answer counts: take these lines back")
    return {task: label or None for task, label in zip(table["task"], said, strict=True) if task not in known}


def simulated_answers(path: Path, tasks: Sequence[str], classes: Sequence[str]) -> dict[str, str | None]:
    """An expert who knows a CSV ``task,label``. Raises AnnotError where it lacks a drawn task or has another class for it."""
    table = read_labels(path)
    table["task"], table["label"] = matched(table["task"], tasks), matched(table["label"], classes, ignore_case=True)
    if missing := sorted(set(tasks) - set(table["task"])):
        raise AnnotError(
            f"{path} has no label for {len(missing)} of the {len(tasks)} tasks drawn, such as {missing[:3]}; add them."
        )
    drawn = table[table["task"].isin(set(tasks))]
    check_members(path, drawn["label"], classes, "classes")
    return dict(zip(drawn["task"], drawn["label"], strict=True))


def commit(log: AnnotationLog, answers: Mapping[str, str | None]) -> int:
    """Put answers to drawn items into the log, in one transaction; returns how many were new."""
    questions = log.questions(kind="audit")
    questions = questions[questions["worker"] == EXPERT]
    by_item = dict(zip(questions["item"], questions["id"], strict=True))
    return log.answer([Answer(int(by_item[task]), EXPERT, label, source="audit") for task, label in answers.items()])
