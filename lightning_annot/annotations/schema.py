"""The database of the annotation log: its tables, its guards, and how a connection to it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    insert,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError

from lightning_annot.types import KINDS, AnnotError

FORMAT_KEY, FORMAT = "annotation log format", "1"

_TABLES = MetaData()
QUESTION = Table(
    "question",
    _TABLES,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("item", Text, nullable=False),
    Column("worker", Text),
    Column("kind", Text, nullable=False),
    Column("round", Integer, nullable=False),
    Column("asked_at", Text, nullable=False),
    CheckConstraint(f"kind IN {KINDS}"),
)
ANSWER = Table(
    "answer",
    _TABLES,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("question", ForeignKey(QUESTION.c.id), nullable=False),
    Column("worker", Text, nullable=False),
    Column("label", Text),
    Column("answered_at", Text, nullable=False),
    Column("seconds", Float),
    Column("source", Text, nullable=False),
    UniqueConstraint("question", "worker"),
)
IDENTITY = Table("identity", _TABLES, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

_SQLITE_PRAGMAS = (
    "busy_timeout = 30000",  # milliseconds; first, so that it holds for the switch to WAL too
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    "recursive_triggers = ON",  # without it INSERT OR REPLACE deletes rows unseen by the triggers
)


def open_engine(url: str | Path) -> Engine:
    """An engine for a path (SQLite; the folder is made if absent) or for a text with ``://`` (any SQLAlchemy URL).

    On SQLite a transaction of a connection with the execution option ``writes`` locks the file from its start.
    """
    try:
        if isinstance(url, str) and "://" in url:
            engine = create_engine(make_url(url))
        else:
            Path(url).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(URL.create("sqlite", database=str(url)))
    except (OSError, ArgumentError, ImportError) as error:
        raise AnnotError(
            f"the annotation log cannot be opened: {error}; give a path, or a SQLAlchemy URL whose driver is installed"
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def create_tables(connection: Connection) -> None:
    """Make what is missing; what is there stays as it is."""
    _TABLES.create_all(connection)
    if connection.dialect.name == "sqlite":
        for table in (QUESTION, ANSWER):
            for action in ("UPDATE", "DELETE"):
                connection.exec_driver_sql(
                    f"CREATE TRIGGER IF NOT EXISTS no_{action.lower()}_{table.name} BEFORE {action} ON {table.name} "
                    f"BEGIN SELECT RAISE(ABORT, 'the annotation log is append-only'); END"
                )
    if connection.scalar(select(IDENTITY.c.value).where(IDENTITY.c.key == FORMAT_KEY)) is None:
        connection.execute(insert(IDENTITY).values(key=FORMAT_KEY, value=FORMAT))


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # the driver would start transactions late, at the first INSERT
    cursor = connection.cursor()
    for pragma in _SQLITE_PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
