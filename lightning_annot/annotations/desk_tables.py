"""The tables of the desk, in the log's database. Nothing in them is a fact."""

from __future__ import annotations

import secrets

from sqlalchemy import Column, Connection, Float, Index, Integer, MetaData, Table, Text, insert, select

from lightning_annot.annotations.schema import ANSWER, QUESTION

OWNER, RUN = "owner", "run"
"""Who pauses a worker."""

_TABLES = MetaData()
LEASE = Table(
    "lease",
    _TABLES,
    Column("question", Integer, primary_key=True, autoincrement=False),
    Column("worker", Text, primary_key=True),
    Column("expires", Float, nullable=False),  # seconds since 1970; kept when over, as a late answer counts
)
INVITE = Table(
    "invite",
    _TABLES,
    Column("worker", Text, primary_key=True),
    Column("token_hash", Text, nullable=False, unique=True),
    Column("created", Text, nullable=False),
    Column("revoked", Text),
)
RENEWED = Table(
    "renewed",
    _TABLES,
    Column("token_hash", Text, primary_key=True),  # of a link that another has replaced
)
PAUSE = Table(
    "pause",
    _TABLES,
    Column("worker", Text, primary_key=True),  # "": everybody
    Column("by", Text, primary_key=True),  # the owner, or the run
    Column("reason", Text, nullable=False),
    Column("since", Text, nullable=False),
)
DESK = Table("desk", _TABLES, Column("run", Text, primary_key=True))  # one row: a name that no other log has
_INDEXES = (
    Index("question_of_item", QUESTION.c.item),
    Index("answer_of_worker", ANSWER.c.worker),
    Index("lease_by_worker", LEASE.c.worker, LEASE.c.question),
    Index("lease_until", LEASE.c.expires),
)


def create_desk(connection: Connection) -> str:
    """Make what is missing; what is there stays as it is. Returns the name of the run, which tells its pages from others'."""
    _TABLES.create_all(connection)
    for index in _INDEXES:
        index.create(connection, checkfirst=True)
    run = connection.scalar(select(DESK.c.run))
    if run is None:
        run = secrets.token_hex(8)
        connection.execute(insert(DESK), [{"run": run}])
    return str(run)
