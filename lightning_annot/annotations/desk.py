"""The desk beside the log: who may answer, what is lent to whom until when, who is paused. Nothing here is a fact.

Its tables lie in the log's database. Losing them loses no answer: workers are invited anew, and questions lent again.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Select, delete, exists, func, insert, select, update

from lightning_annot.annotations.appending import utc_now
from lightning_annot.annotations.checks import check_answers
from lightning_annot.annotations.desk_tables import INVITE, LEASE, OWNER, PAUSE, RENEWED, RUN, create_desk
from lightning_annot.annotations.lending import COUNTS, FIRST, WAITING, answered, lend, seen_by_experts, take
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import ANSWER, IMPORT_ROUND, IN_LIST, QUESTION
from lightning_annot.annotations.worker_names import warn_of_case, worker_name
from lightning_annot.types import AnnotError, Answer

if TYPE_CHECKING:
    import numpy as np  # a run alone needs it: the page starts sooner without

EVERYBODY = ""


@dataclass(frozen=True)
class Lending:
    """A question is lent for ``seconds``. One addressed to a worker goes to others too, unanswered ``give_back`` seconds
    after it was asked (None: never).
    """

    seconds: float = 600.0
    give_back: float | None = None

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise AnnotError(f"questions are lent for {self.seconds:g} seconds; give more than 0.")
        if self.give_back is not None and not self.give_back >= 0:
            raise AnnotError(f"questions are given back after {self.give_back:g} seconds; give 0 or more, or none.")


@dataclass(frozen=True)
class Person:
    """Somebody with a link; why no questions are lent, "" if they are: ``paused`` by the owner, ``set_aside`` by the run."""

    worker: str
    created: str
    revoked: bool
    paused: str
    set_aside: str


@dataclass(frozen=True)
class Loan:
    """``questions`` lent to a worker who has given ``done`` answers; ``paused``: why none are, "" if they are."""

    questions: list[int]
    done: int
    paused: str


class Desk:
    """Lends open questions, and checks what comes back. Every call is one transaction; several pages may share a log.

    ``run``: a name of the log that no other has.
    """

    def __init__(self, log: AnnotationLog, lending: Lending = Lending()) -> None:
        self._log, self._lending = log, lending
        self._first_open = 1  # no question before it is open; questions never open again, so it only grows
        with log.writing() as connection:
            self.run = create_desk(connection)

    def invite(self, worker: str) -> str:
        """A new secret for ``worker``, of 128 bits; only its hash is kept, and an older one is worth nothing from now on.

        White space around the name does not count. AnnotError where it can be no worker's.
        """
        worker = worker_name(worker)
        warn_of_case([worker, *(person.worker for person in self.people())], [worker])
        token = secrets.token_urlsafe(16)
        with self._log.writing() as connection:
            older = INVITE.c.worker == worker
            connection.execute(insert(RENEWED).from_select(["token_hash"], select(INVITE.c.token_hash).where(older)))
            connection.execute(delete(INVITE).where(older))
            row = {"worker": worker, "token_hash": _hash(token), "created": utc_now()}
            connection.execute(insert(INVITE), [row])
        return token

    def revoke(self, worker: str) -> None:
        """The link of ``worker`` opens nothing any more."""
        with self._log.writing() as connection:
            mine = (INVITE.c.worker == worker) & INVITE.c.revoked.is_(None)
            connection.execute(update(INVITE).where(mine).values(revoked=utc_now()))

    def who(self, token: str) -> str | None:
        """The worker whose secret it is."""
        query = select(INVITE.c.worker).where(INVITE.c.token_hash == _hash(token), INVITE.c.revoked.is_(None))
        with self._log.reading() as connection:
            return connection.scalar(query)

    def was_closed(self, token: str) -> bool:
        """Whether it was somebody's secret, whose link has been closed or renewed."""
        revoked = select(INVITE.c.worker).where(INVITE.c.token_hash == _hash(token), INVITE.c.revoked.is_not(None))
        renewed = select(RENEWED.c.token_hash).where(RENEWED.c.token_hash == _hash(token))
        with self._log.reading() as connection:
            return any(connection.scalar(query) is not None for query in (revoked, renewed))

    def people(self) -> list[Person]:
        """Everybody who was invited, by name."""
        why = [
            select(PAUSE.c.reason).where(PAUSE.c.worker == INVITE.c.worker, PAUSE.c.by == by).scalar_subquery().label(by)
            for by in (OWNER, RUN)
        ]
        query = select(INVITE.c.worker, INVITE.c.created, INVITE.c.revoked, *why).order_by(INVITE.c.worker)
        with self._log.reading() as connection:
            return [Person(w, c, r is not None, p or "", s or "") for w, c, r, p, s in connection.execute(query)]

    def pause(self, worker: str = EVERYBODY, reason: str = "paused by the owner") -> None:
        """Lend ``worker`` nothing more; what is lent may still be answered."""
        with self._log.writing() as connection:
            connection.execute(delete(PAUSE).where(PAUSE.c.worker == worker, PAUSE.c.by == OWNER))
            connection.execute(insert(PAUSE), [{"worker": worker, "by": OWNER, "reason": reason, "since": utc_now()}])

    def resume(self, worker: str = EVERYBODY) -> None:
        """End the owner's pause of ``worker``."""
        with self._log.writing() as connection:
            connection.execute(delete(PAUSE).where(PAUSE.c.worker == worker, PAUSE.c.by == OWNER))

    def set_aside(self, reasons: Mapping[str, str]) -> None:
        """Lend nothing more to the workers in ``reasons``, name -> why, as the run judges them now; others may take over what
        was meant for them. What an earlier call said is void.
        """
        with self._log.writing() as connection:
            connection.execute(delete(PAUSE).where(PAUSE.c.by == RUN))
            rows = [{"worker": name, "by": RUN, "reason": why, "since": utc_now()} for name, why in reasons.items()]
            if rows:
                connection.execute(insert(PAUSE), rows)

    def paused(self, worker: str = EVERYBODY) -> str | None:
        """Why ``worker`` is lent nothing; None if questions are lent."""
        with self._log.reading() as connection:
            return _paused(connection, worker)

    def lend(self, wishes: Sequence[tuple[str, int]]) -> list[list[int]]:
        """For each (worker, n), the ids of up to n questions, lent from now on: first those that were lent before and are
        open still, then those addressed to the worker, then others; of each kind the oldest first, and none that is lent to
        somebody else.

        Nobody gets an item that the worker has answered, or two questions about one item at once.
        """
        return [loan.questions for loan in self.deal([], wishes)[1]]

    def take(self, answers: Sequence[Answer]) -> list[bool | None]:
        """Commit the answers to questions that are or were lent to who answers; late ones count too.

        For each: True if it is new, False if the worker has answered the item before (the first answer counts), None if the
        question was never lent to this worker, which leaves the log as it is. What an expert was asked of the unfinished
        items comes in as an expert's.
        """
        return self.deal(answers, [])[0]

    def deal(self, answers: Sequence[Answer], wishes: Sequence[tuple[str, int]]) -> tuple[list[bool | None], list[Loan]]:
        """``take``, then ``lend``, in one transaction: many who come at once wait for the disk once."""
        check_answers(answers)
        now = time.time()
        with self._log.writing() as connection:
            outcome = take(connection, answers)
            if not wishes:
                return outcome, []
            first = connection.scalar(FIRST, {"first": self._first_open}) or self._first_open
            reasons = select(PAUSE.c.worker, PAUSE.c.reason).order_by(PAUSE.c.by.desc())  # the owner's is told before the run's
            paused = dict(connection.execute(reasons).tuples().all())
            back = "" if self._lending.give_back is None else utc_now(now - self._lending.give_back)
            mine = ANSWER.c.worker.in_({worker for worker, _ in wishes})
            done: dict[str, int] = dict(connection.execute(COUNTS.where(mine)).tuples().all())
            loans = []
            for worker, n in wishes:
                why = paused.get(worker, paused.get(EVERYBODY))
                given = {"me": worker, "n": n, "some": 4 * n, "first": first, "now": now, "back": back}
                questions = lend(connection, given, now + self._lending.seconds) if why is None and n > 0 else []
                loans.append(Loan(questions, done.get(worker, 0), why or ""))
        self._first_open = first  # only now: an answer that was not committed has closed nothing
        return outcome, loans

    def stuck(self) -> int:
        """Open questions that nobody who was invited can answer, as it is now: an expert has seen the item, or whoever might
        has answered it already, has a closed link, or was set aside by the run. An audit's and an expert's are left out.

        Whoever is named and not yet invited may still come, and whom the owner has paused may go on.
        """
        q, asked = QUESTION.c, (QUESTION.c.id, QUESTION.c.item, QUESTION.c.worker, QUESTION.c.kind)
        with self._log.reading() as connection:
            waiting = select(*asked).where(WAITING, q.round != IMPORT_ROUND).order_by(q.id)
            questions = connection.execute(waiting, {"first": self._first_open}).all()
            invited, able, aside = _within_reach(connection, select(INVITE.c.worker, INVITE.c.revoked))
            items = {question.item for question in questions}
            known, seen = answered(connection, items, invited), seen_by_experts(connection, items)
        if not invited or not questions:
            return 0
        self._first_open = questions[0][0]
        closed = (invited | aside) - able

        def waits(item: str, worker: str | None, kind: str) -> bool:
            if item in seen and kind == "annotation":
                return False
            if worker is None or worker in aside:
                return any((item, one) not in known for one in able)
            return worker not in closed and (item, worker) not in known

        return sum(not waits(item, worker, kind) for _, item, worker, kind in questions)

    def answerers(self, items: Sequence[str]) -> tuple[int, np.ndarray]:
        """Count the people who can be asked now and have come at least once, and for each of the ``items`` (N,) the others who
        have answered it, such as people that the run has set aside.
        """
        import numpy as np

        came = exists().where(LEASE.c.worker == INVITE.c.worker)
        with self._log.reading() as connection:
            _, able, _ = _within_reach(connection, select(INVITE.c.worker, INVITE.c.revoked).where(came))
            others = select(QUESTION.c.item, func.count(ANSWER.c.worker.distinct())).join_from(ANSWER, QUESTION)
            others = others.where(ANSWER.c.worker.not_in(able), QUESTION.c.kind == "annotation")
            found: dict[str, int] = dict(connection.execute(others.group_by(QUESTION.c.item)).tuples().all())
        return len(able), np.fromiter((found.get(item, 0) for item in items), np.int64, len(items))

    def item_lent(self, question: int, worker: str) -> str | None:
        """The item of a question that is or was lent to ``worker``; None for any other."""
        query = select(QUESTION.c.item).join_from(LEASE, QUESTION, LEASE.c.question == QUESTION.c.id)
        with self._log.reading() as connection:
            return connection.scalar(query.where(LEASE.c.question == question, LEASE.c.worker == worker))

    def gold_items(self, items: Sequence[str]) -> set[str]:
        """Those of the ``items`` that somebody was asked about as a gold question."""
        query, found = select(QUESTION.c.item).where(QUESTION.c.kind == "gold"), set[str]()
        with self._log.reading() as connection:
            for start in range(0, len(items), IN_LIST):
                found.update(connection.scalars(query.where(QUESTION.c.item.in_(items[start : start + IN_LIST]))))
        return found

    def counts(self) -> dict[str, int]:
        """Answers of each worker."""
        with self._log.reading() as connection:
            return dict(connection.execute(COUNTS).tuples().all())

    def lent(self) -> int:
        """Open questions that are lent just now."""
        count = select(func.count(LEASE.c.question.distinct())).join_from(LEASE, QUESTION, LEASE.c.question == QUESTION.c.id)
        count = count.where(LEASE.c.expires > time.time(), WAITING)
        with self._log.reading() as connection:
            return connection.scalar(count, {"first": self._first_open}) or 0


def _hash(token: str) -> str:
    """A plain hash will do: nobody can try 2^128 tokens."""
    return hashlib.sha256(token.encode()).hexdigest()


def _within_reach(connection: Connection, invited: Select[Any]) -> tuple[set[str], set[str], set[str]]:
    """Of those ``invited``, worker and when the link was closed: all, who can be asked now, and whom the run has set aside."""
    found = connection.execute(invited).all()
    aside = set(connection.scalars(select(PAUSE.c.worker).where(PAUSE.c.by == RUN)))
    return {worker for worker, _ in found}, {worker for worker, closed in found if closed is None} - aside, aside


def _paused(connection: Connection, worker: str) -> str | None:
    query = select(PAUSE.c.reason).where(PAUSE.c.worker.in_([worker, EVERYBODY])).order_by(PAUSE.c.worker.desc(), PAUSE.c.by)
    return connection.scalar(query.limit(1))
