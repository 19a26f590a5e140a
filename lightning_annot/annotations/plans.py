"""Audit plans in the log: texts that are appended in order and belong to the run's facts."""

from __future__ import annotations

from sqlalchemy import Connection, func, insert, select

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import IDENTITY, PLAN_KEYS


def plans(log: AnnotationLog) -> list[str]:
    """Return all plans, in the order in which they were added."""
    query = select(IDENTITY.c.value).where(PLAN_KEYS).order_by(IDENTITY.c.key)
    with log.reading() as connection:
        return list(connection.scalars(query))


def add_plan(log: AnnotationLog, text: str) -> None:
    """Append a plan; it is on disk when the call returns."""
    with log.writing() as connection:
        connection.execute(insert(IDENTITY).values(key=f"audit plan {_count(connection):06d}", value=text))


def _count(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(IDENTITY).where(PLAN_KEYS)) or 0
