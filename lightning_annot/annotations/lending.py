"""What is lent to whom, and what comes back: the statements of the desk, each for a transaction that writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Float, Integer, Text, bindparam, delete, exists, func, insert, select

from lightning_annot.annotations.appending import add_answers
from lightning_annot.annotations.desk_tables import LEASE, PAUSE, RUN
from lightning_annot.annotations.schema import ANSWER, EXPERT, IMPORT_ROUND, IN_LIST, QUESTION
from lightning_annot.types import Answer

# Statements are put together once: that took longer than running them.
_Q, _MINE, _ASKED = QUESTION.c, LEASE.alias("mine"), QUESTION.alias("asked")
_ME, _N = bindparam("me", type_=Text), bindparam("some", type_=Integer)
_SINCE = bindparam("first", type_=Integer)
# "Since" is said of each table: a server that merges two of them would else begin at the first row of one.
WAITING = (_Q.id >= _SINCE) & (_Q.kind != "audit")
WAITING &= ~exists().where(ANSWER.c.question == _Q.id, ANSWER.c.question >= _SINCE)
FIRST = select(_Q.id).where(WAITING).order_by(_Q.id).limit(1)
_OTHERS = (LEASE.c.worker != _ME) & (LEASE.c.expires > bindparam("now", type_=Float))
_THEIRS = exists().where(LEASE.c.question == _Q.id, LEASE.c.question >= _SINCE, _OTHERS)
_MY_ANSWER = exists().where(ANSWER.c.question == _ASKED.c.id, ANSWER.c.worker == _ME)
_KNOWN = exists().where(_ASKED.c.item == _Q.item, _MY_ANSWER)  # nested: from the item, never from all that I have answered
# What an expert has seen is nobody else's to answer; gold is about who answers it.
_ORDINARY = (_Q.kind == "annotation") & (_Q.round != IMPORT_ROUND)
_EXPERTS = exists().where(ANSWER.c.question == _ASKED.c.id, ANSWER.c.source == EXPERT)
_SEEN = exists().where(_ASKED.c.item == _Q.item, _ASKED.c.kind == "annotation", _EXPERTS)
_FREE = select(_Q.id, _Q.item).where(WAITING, ~_THEIRS, ~_KNOWN, ~(_ORDINARY & _SEEN)).order_by(_Q.id).limit(_N)
_HAVE = (_MINE.c.question == _Q.id) & (_MINE.c.worker == _ME) & (_MINE.c.question >= _SINCE)
LENT_BEFORE = _FREE.join(_MINE, _HAVE)
# To anyone, to the worker, or to others who were set aside or have kept it too long (no time is before "", which is for never);
# but no expert's. Gold that somebody is late with waits: it is about that worker.
_ASIDE = exists().where(PAUSE.c.worker == _Q.worker, PAUSE.c.by == RUN)
_LATE = (_Q.asked_at < bindparam("back", type_=Text)) & (_Q.kind != "gold")
_FOR_ME = _Q.worker.is_(None) | (_Q.worker == _ME) | ((_ASIDE | _LATE) & (_Q.round != IMPORT_ROUND))
NEW = _FREE.where(~exists().where(_HAVE), _FOR_ME)
ADDRESSED = NEW.where(_Q.worker == _ME)
COUNTS = select(ANSWER.c.worker, func.count()).group_by(ANSWER.c.worker)
_GONE = delete(LEASE).where(LEASE.c.worker == _ME, LEASE.c.question == bindparam("old"))


def lend(connection: Connection, given: Mapping[str, Any], expires: float) -> list[int]:
    """Up to ``n`` questions for the worker ``me``, whose leases are renewed or made."""
    chosen: dict[str, int] = {}
    renewed = 0
    for query in (LENT_BEFORE, ADDRESSED, NEW):
        if len(chosen) < given["n"]:
            for question, item in connection.execute(query, given):  # more than n: an item may be asked about again
                if len(chosen) < given["n"]:
                    chosen.setdefault(item, question)
        renewed = len(chosen) if query is LENT_BEFORE else renewed
    ids = list(chosen.values())
    if old := ids[:renewed]:
        connection.execute(_GONE, [{"me": given["me"], "old": question} for question in old])
    if ids:
        rows = [{"question": question, "worker": given["me"], "expires": expires} for question in ids]
        connection.execute(insert(LEASE), rows)
    return ids


def take(connection: Connection, answers: Sequence[Answer]) -> list[bool | None]:
    """Append what is new of ``answers``; see ``Desk.take``."""
    if not answers:
        return []
    lent = _lent_items(connection, answers)
    items = {key: item for key, (item, _) in lent.items()}
    known = answered(connection, set(items.values()), {answer.worker for answer in answers})
    outcome: list[bool | None] = []
    for answer in answers:
        item = items.get((answer.question, answer.worker))
        outcome.append(None if item is None else (item, answer.worker) not in known)
        if item is not None:
            known.add((item, answer.worker))
    fresh = [answer for answer, new in zip(answers, outcome, strict=True) if new]
    experts = {key for key, (_, round_) in lent.items() if round_ == IMPORT_ROUND}
    add_answers(connection, [replace(a, source=EXPERT) if (a.question, a.worker) in experts else a for a in fresh])
    return outcome


def _lent_items(connection: Connection, answers: Iterable[Answer]) -> dict[tuple[int, str], tuple[str, int]]:
    """Item and round by (question, worker) of what was lent."""
    query = select(LEASE.c.question, LEASE.c.worker, QUESTION.c.item, QUESTION.c.round)
    query = query.join_from(LEASE, QUESTION, LEASE.c.question == QUESTION.c.id)
    rows = connection.execute(query.where(LEASE.c.question.in_({answer.question for answer in answers})))
    return {(question, worker): (item, round_) for question, worker, item, round_ in rows}


def answered(connection: Connection, items: set[str], workers: set[str]) -> set[tuple[str, str]]:
    """Which of these items these workers have answered."""
    return _pairs(connection, ANSWER.c.worker.in_(workers), items)


def seen_by_experts(connection: Connection, items: set[str]) -> set[str]:
    """Which of these items an expert has answered; audits apart."""
    by_expert = (ANSWER.c.source == EXPERT) & (QUESTION.c.kind == "annotation")
    return {item for item, _ in _pairs(connection, by_expert, items)}


def _pairs(connection: Connection, which: ColumnElement[bool], items: set[str]) -> set[tuple[str, str]]:
    """Item and worker of the answers about these items that fit."""
    query = select(QUESTION.c.item, ANSWER.c.worker).join_from(ANSWER, QUESTION).where(which)
    found: set[tuple[str, str]] = set()
    every = list(items)
    for start in range(0, len(every), IN_LIST):
        some = QUESTION.c.item.in_(every[start : start + IN_LIST])
        found.update(connection.execute(query.where(some)).tuples().all())
    return found
