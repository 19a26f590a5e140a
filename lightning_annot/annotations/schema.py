"""The database of the annotation log: its tables, its guards, and how a connection to it is made."""

from __future__ import annotations

import sqlite3
import time
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
    func,
    insert,
    inspect,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError

from lightning_annot.annotations.failures import explained
from lightning_annot.locks import told_if_slow
from lightning_annot.types import KINDS, AnnotError

FORMAT_KEY, FORMAT = "annotation log format", "1"
STUDY = "confusion study"  # the key under which a log without a run is claimed
IMPORT_ROUND = -1  # round of what was known before round 0, and of what an expert is asked besides
IN_LIST = 1000  # ids in one IN (...) list; every database takes this many
EXPERT = "expert"  # source of the answers of whoever was imported, or asked, as an expert

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
PLAN_KEYS = IDENTITY.c.key.like("audit plan %")  # audit plans stand beside the identity, see annotations/plans.py

_ADDRESS = "give a path, or a SQLAlchemy URL whose driver is installed (PostgreSQL: pip install 'lightning-annot[postgres]')"
RUN_KEYS = (IDENTITY.c.key != FORMAT_KEY) & ~PLAN_KEYS  # what ties the log to one run
_FORMAT_THERE = select(IDENTITY.c.value).where(IDENTITY.c.key == FORMAT_KEY)
_PATIENCE = 30  # seconds
_SQLITE_PRAGMAS = (
    f"busy_timeout = {_PATIENCE * 1000}",
    "synchronous = FULL",
    "foreign_keys = ON",
    "recursive_triggers = ON",  # without it INSERT OR REPLACE deletes rows unseen by the triggers
)
_POSTGRES_GUARD = (
    "CREATE OR REPLACE FUNCTION annotation_log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'the annotation log is append-only'; END $$",
    "CREATE TRIGGER no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} EXECUTE FUNCTION annotation_log_is_append_only()",
)
_POSTGRES_LOCK = 7_260_115_920_241  # any number; whoever writes to a log of this database takes this advisory lock


def _parse(url: str | Path) -> URL:
    """The URL of a path, or of a text with ``://``; raises AnnotError for what is neither."""
    if not isinstance(url, str) or "://" not in url:
        return URL.create("sqlite", database=str(url))
    refuse_password(url)
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise AnnotError(f"the annotation log cannot be opened: {error}; {_ADDRESS}") from error
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def refuse_password(url: str) -> None:
    """Raises AnnotError if a URL holds a password: settings are kept in files, and words of a command are seen by others."""
    if "://" not in url:
        return
    try:
        parsed = make_url(url)
    except ArgumentError:
        return  # told when it is opened
    if parsed.password is not None or any("passw" in name.lower() for name in parsed.query):
        raise AnnotError(
            "the URL of the annotation log holds a password, which would be written to config.yaml; leave it out of the URL "
            "(postgresql://USER@HOST/NAME). PostgreSQL looks it up in ~/.pgpass or in the variable PGPASSWORD."
        )


def open_engine(url: str | Path, create: bool = True) -> Engine:
    """An engine for a path (SQLite) or for a text with ``://`` (any SQLAlchemy URL).

    On SQLite a transaction of a connection with the execution option ``writes`` locks the file from its start. A URL with a
    password is refused. ``postgresql://`` means psycopg 3. With ``create`` the folder of a path is made, and a SQLite file is
    switched to a write-ahead log.
    """
    try:
        parsed = _parse(url)
        if create and not (isinstance(url, str) and "://" in url):
            Path(url).parent.mkdir(parents=True, exist_ok=True)
        # A server may have closed a connection that waited in the pool; a file is always there.
        engine = create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite", hide_parameters=True)
    except (OSError, ArgumentError, ImportError) as error:
        raise AnnotError(f"the annotation log cannot be opened: {error}; {_ADDRESS}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        if create:
            event.listen(engine, "connect", _switch_to_wal)
        event.listen(engine, "begin", _begin_sqlite)
    if engine.dialect.name == "postgresql":
        event.listen(engine, "connect", _prepare_postgres)
    return engine


def has_log(url: str | Path) -> bool:
    """Whether there is an annotation log at ``url``. Nothing is made by looking.

    Raises AnnotError where that cannot be told, as of a file that is no database.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite" and "uri" not in parsed.query:
        path = Path(parsed.database or "")
        try:
            if not path.is_file() or path.stat().st_size == 0:
                return False
        except OSError as error:
            raise AnnotError(f"{path} cannot be opened as an annotation log: {error}; check the permissions") from error
    engine = open_engine(url, create=False)
    try:
        with explained(engine, "cannot be opened as an annotation log"):
            return inspect(engine).has_table(IDENTITY.name)
    finally:
        engine.dispose()


def check_tables(connection: Connection, name: str) -> None:
    """Raises AnnotError unless all tables of a log are there with all their columns; ``name``: the log's."""
    there = inspect(connection)
    missing = [table.name for table in _TABLES.sorted_tables if not there.has_table(table.name)]
    for table in _TABLES.sorted_tables:
        if table.name not in missing:
            known = {column["name"] for column in there.get_columns(table.name)}
            missing += [f"{table.name}.{column.name}" for column in table.columns if column.name not in known]
    if missing:
        raise AnnotError(
            f"{name} is no whole annotation log: it lacks {', '.join(missing)}; put back a backup, or choose another output_dir"
        )


def lock_writers(connection: Connection) -> None:
    """Wait for all other writers, and keep them waiting until this transaction is over, and seen by all.

    Nothing may have been read before, so that what is read next is what the last writer left.
    """
    if connection.dialect.name == "sqlite":
        return  # BEGIN IMMEDIATE has locked the file
    with told_if_slow(connection.engine.url.render_as_string(hide_password=True)):
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_POSTGRES_LOCK)))
        else:
            connection.execute(select(IDENTITY).where(IDENTITY.c.key == FORMAT_KEY).with_for_update())


def isolation(dialect: str, writes: bool) -> dict[str, str]:
    """Execution options that make a server keep to what the log promises, whatever its own defaults are.

    A writer has to see, after ``lock_writers``, what was committed while it waited; a reader sees one state throughout.
    """
    return {"isolation_level": "READ COMMITTED" if writes else "REPEATABLE READ"} if dialect == "postgresql" else {}


def create_tables(connection: Connection) -> None:
    """Create the tables of a log where they are missing; change nothing that exists."""
    if connection.dialect.name == "postgresql":
        lock_writers(connection)  # two that create a table at once would both fail
    if inspect(connection).has_table(IDENTITY.name) and connection.scalar(_FORMAT_THERE) is not None:
        return
    if connection.dialect.name == "postgresql" and not inspect(connection).has_table(ANSWER.name):
        _TABLES.create_all(connection)
        for table in (QUESTION, ANSWER):
            for statement in _POSTGRES_GUARD:
                connection.exec_driver_sql(statement.format(table=table.name))
    _TABLES.create_all(connection)
    if connection.dialect.name == "sqlite":
        for table in (QUESTION, ANSWER):
            for action in ("UPDATE", "DELETE"):
                connection.exec_driver_sql(
                    f"CREATE TRIGGER IF NOT EXISTS no_{action.lower()}_{table.name} BEFORE {action} ON {table.name} "
                    f"BEGIN SELECT RAISE(ABORT, 'the annotation log is append-only'); END"
                )
    connection.execute(insert(IDENTITY).values(key=FORMAT_KEY, value=FORMAT))


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # the driver would start transactions late, at the first INSERT
    cursor = connection.cursor()
    for pragma in _SQLITE_PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _switch_to_wal(connection: Any, _: object) -> None:
    """Of two that open a new file together, one is told at once that it is locked: SQLite's own patience is not for this."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _prepare_postgres(connection: Any, _: object) -> None:
    """An answer that is confirmed is on disk, even where the server's own default is not to wait for that."""
    connection.execute(
        "SELECT set_config(name, 'on', false) FROM pg_settings WHERE name = 'synchronous_commit' AND setting = 'off'"
    )
    connection.commit()


def _begin_sqlite(connection: Connection) -> None:
    if connection.get_execution_options().get("writes", False):
        with told_if_slow(str(connection.engine.url.database)):
            connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("BEGIN")
