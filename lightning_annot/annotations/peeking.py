"""Read the identity of an existing log without writing to its folder, as ``AnnotationLog`` would."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Engine, create_engine, inspect, select

from lightning_annot.annotations.failures import explained
from lightning_annot.annotations.schema import IDENTITY, RUN_KEYS, open_engine
from lightning_annot.types import AnnotError

_SECONDS = "5"  # to reach a server


def peek_identity(address: str | Path) -> tuple[str, dict[str, str]]:
    """Return the name of the log at ``address`` and its stored identity, which is empty if there is no log yet."""
    path: str | Path | None = address
    if isinstance(address, str) and "://" in address:
        engine = open_engine(address)
        name, path = engine.url.render_as_string(hide_password=True), engine.url.database
        if engine.dialect.name == "postgresql" and "connect_timeout" not in engine.url.query:
            patient = engine.url.update_query_dict({"connect_timeout": _SECONDS})
            engine = open_engine(patient.render_as_string(hide_password=False))
        if engine.dialect.name != "sqlite":
            return name, _read(engine, name)
    file = Path(path or "")
    name = URL.create("sqlite", database=str(path)).render_as_string(hide_password=True)
    there = file.is_file() and file.stat().st_size > 0
    return name, _read(_read_only(file), name) if there else {}


def another_run(name: str, stored: Mapping[str, str], identity: Mapping[str, str], keys: Collection[str]) -> AnnotError | None:
    """The error for a log called ``name`` whose ``stored`` identity differs in some of the ``keys``; None if it does not."""
    differ = [key for key in sorted(keys) if stored.get(key) != identity.get(key)]
    if not differ:
        return None
    old_new = (f"{key}: {stored.get(key, 'absent')} -> {identity.get(key, 'absent')}" for key in differ)
    reason = "the features, an image, the backbone or its weights have changed; " if differ == ["features"] else ""
    return AnnotError(
        f"{name} belongs to another run (old -> new: {'; '.join(old_new)}); {reason}choose another output_dir, or "
        "take the old settings back"
    )


def _read_only(path: Path) -> Engine:
    """Open a SQLite file read-only. Without a write-ahead log no process is writing, and SQLite need not make any file."""
    query = {"mode": "ro", "uri": "true"}
    if not path.with_name(path.name + "-wal").exists():
        query["immutable"] = "1"
    return create_engine(URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query=query))


def _read(engine: Engine, name: str) -> dict[str, str]:
    try:
        with explained(engine, "cannot be read as an annotation log"), engine.connect() as connection:
            if not inspect(connection).has_table(IDENTITY.name):
                return {}
            query = select(IDENTITY.c.key, IDENTITY.c.value).where(RUN_KEYS)
            return dict(connection.execute(query).tuples().all())
    finally:
        engine.dispose()
