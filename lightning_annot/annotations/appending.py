"""What is appended to the log: rows with the next ids, and which of the answers that came are new."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import replace
from datetime import datetime, timezone

from sqlalchemy import Connection, Table, func, insert, select

from lightning_annot.annotations.checks import few
from lightning_annot.annotations.schema import ANSWER, IN_LIST, QUESTION
from lightning_annot.types import Answer, Question

logger = logging.getLogger(__name__)


def last_id(connection: Connection, table: Table) -> int:
    """The newest id of ``table``, 0 if it has no rows."""
    return connection.scalar(select(func.max(table.c.id))) or 0


def utc_now(seconds: float | None = None) -> str:
    """The time now, or so many seconds after 1970, as the log has it."""
    moment = datetime.now(timezone.utc) if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="microseconds")


def add_questions(connection: Connection, questions: Sequence[Question]) -> list[Question]:
    """Append checked questions inside a transaction of ``AnnotationLog.writing``; returns them in order, with their ids."""
    first, now = last_id(connection, QUESTION) + 1, utc_now()
    asked = [replace(question, id=first + i) for i, question in enumerate(questions)]
    rows = [
        {"id": q.id, "item": q.item, "worker": q.worker, "kind": q.kind, "round": int(q.round), "asked_at": now} for q in asked
    ]
    if rows:
        connection.execute(insert(QUESTION), rows)
    return asked


def add_answers(connection: Connection, answers: Sequence[Answer]) -> None:
    """Append checked answers inside a transaction of ``AnnotationLog.writing``."""
    first, now = last_id(connection, ANSWER) + 1, utc_now()
    rows = [
        {
            "id": first + i,
            "question": int(a.question),
            "worker": a.worker,
            "label": a.label,
            "answered_at": now,
            "seconds": None if a.seconds is None else float(a.seconds),
            "source": a.source,
        }
        for i, a in enumerate(answers)
    ]
    if rows:
        connection.execute(insert(ANSWER), rows)


def labels_of(connection: Connection, questions: Sequence[int]) -> dict[Hashable, str | None]:
    """Labels by (question, worker) of what these questions were answered."""
    known: dict[Hashable, str | None] = {}
    for start in range(0, len(questions), IN_LIST):
        ids = [int(question) for question in questions[start : start + IN_LIST]]
        query = select(ANSWER.c.question, ANSWER.c.worker, ANSWER.c.label).where(ANSWER.c.question.in_(ids))
        known.update({(question, worker): label for question, worker, label in connection.execute(query)})
    return known


def new_positions(
    keys: Sequence[tuple[object, str]], labels: Sequence[str | None], known: dict[Hashable, str | None]
) -> list[int]:
    """Positions of the first label of each key that is not in ``known``, which takes them in; warns of conflicts."""
    new, conflicts = [], []
    for i, (key, label) in enumerate(zip(keys, labels, strict=True)):
        if key not in known:
            known[key] = label
            new.append(i)
        elif known[key] != label:
            conflicts.append(f"{key}: {known[key]!r} stays, {label!r} is dropped")
    if conflicts:
        logger.warning("%d answers contradict earlier ones, the first counts (%s)", len(conflicts), few(conflicts))
    return new
