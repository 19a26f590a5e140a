"""Errors of the log's database and of its driver, as sentences that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import StatementError, TimeoutError

from lightning_annot.types import AnnotError

_CHECK = "check the disk, the permissions and the database server, then try again"
_REMEDIES = {
    ("malformed", "not a database", "file is encrypted", "corrupt", "invalid page"): (
        "the file is damaged: put a backup in its place (the .db with its -wal and -shm files, if there are any), or save what "
        "can be read by the command sqlite3 OLD .recover | sqlite3 NEW"
    ),
    ("locked", "busy", "lock timeout"): "another process keeps it locked: wait for that one or stop it, then try again",
    ("readonly", "read-only", "permission denied"): "this account may only read it: allow it to write, or give another one",
    ("no such table", "no such column", "has no column", "does not exist"): (
        "the database lacks a part of the annotation log: put back a backup, or give the log's own address"
    ),
    ("full", "no space"): "make room on the disk, then try again",
}


class DatabaseError(AnnotError):
    """A statement failed and its transaction was rolled back; most causes are temporary."""


@contextmanager
def explained(engine: Engine, what: str) -> Iterator[None]:
    """Raise each error of the database or its driver inside the block as a ``DatabaseError``.

    Args:
        engine: The engine of the log.
        what: The failed action, such as ``cannot be read``.
    """
    driver = engine.dialect.loaded_dbapi.Error
    try:
        yield
    # The driver's own errors come from raw cursors; no database stores a lone surrogate or a number of more than 64 bits.
    except (StatementError, TimeoutError, driver, UnicodeEncodeError, OverflowError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())  # without the statement and its parameters
        name = engine.url.render_as_string(hide_password=True)
        raise DatabaseError(f"{name} {what}: {reason}; {_remedy(reason)}") from error


def _remedy(reason: str) -> str:
    lower = reason.lower()
    return next((cure for marks, cure in _REMEDIES.items() if any(mark in lower for mark in marks)), _CHECK)
