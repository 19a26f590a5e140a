"""The facts: questions and answers in an append-only, transactional database."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, Float, Integer, Select, exists, insert, select

from lightning_annot.annotations.appending import add_answers, add_questions, labels_of, last_id, new_positions
from lightning_annot.annotations.checks import check_answers, check_kinds, check_questions, few
from lightning_annot.annotations.failures import explained
from lightning_annot.annotations.peeking import another_run
from lightning_annot.annotations.schema import (
    ANSWER,
    FORMAT,
    FORMAT_KEY,
    IDENTITY,
    QUESTION,
    RUN_KEYS,
    check_tables,
    create_tables,
    has_log,
    isolation,
    lock_writers,
    open_engine,
)
from lightning_annot.names import clean
from lightning_annot.types import AnnotError, Answer, Kind, Question

if TYPE_CHECKING:
    import pandas as pd  # where frames are made it is imported: the page serves workers without it, and starts sooner


class AnnotationLog:
    """Append-only log of questions and answers, safe against ``kill -9`` and open in several processes at once.

    ``url`` is a path (a SQLite file, made with its folder if absent) or any SQLAlchemy URL. Each call that writes is
    one transaction: all of it is on disk when the call returns, or none of it ever is. Ids count from 1 without gaps,
    in the order of commits, also with several writers: one waits for the other, so that whoever has seen an id has seen all
    smaller ones. Times are UTC, ISO 8601, as text. In SQLite and PostgreSQL triggers refuse UPDATE and DELETE; on another
    server, grant neither of them on ``question`` and ``answer``. With ``create=False`` nothing is made, and a log that is not
    there is an AnnotError.
    """

    def __init__(self, url: str | Path, create: bool = True) -> None:
        if not create and not has_log(url):
            raise AnnotError(f"{url} holds no annotation log; give the folder of a run, or the URL of its log")
        self._engine = open_engine(url, create)
        self.name = self._engine.url.render_as_string(hide_password=True)
        try:
            failed = explained(self._engine, "cannot be opened as an annotation log")
            with failed, self._transaction(writes=create) as connection:
                if create:
                    create_tables(connection)
                check_tables(connection, self.name)
                found = connection.scalar(select(IDENTITY.c.value).where(IDENTITY.c.key == FORMAT_KEY))
            if found != FORMAT:
                raise AnnotError(f"{self.name} has log format {found}, only {FORMAT} is known; choose another output_dir")
        except AnnotError:
            self.close()
            raise

    def claim(self, identity: Mapping[str, str]) -> None:
        """Tie the log to one run: the first call stores ``identity``, later ones must bring an equal one.

        Keys that an older version did not store are added. Raises AnnotError that names the keys that differ. Hash long values
        (lists of items) before.
        """
        with self.writing() as connection:
            stored = _identity(connection)
            changed = {key for key, value in stored.items() if identity.get(key) != value}
            new = [{"key": key, "value": value} for key, value in identity.items() if key not in stored]
            if new and not changed:
                connection.execute(insert(IDENTITY), new)
        if changed and (error := another_run(self.name, stored, identity, {*stored, *identity})) is not None:
            raise error

    def identity(self) -> dict[str, str]:
        """What ``claim`` has stored, empty before."""
        with self.reading() as connection:
            return _identity(connection)

    def ask(self, questions: Sequence[Question]) -> list[Question]:
        """Commit new questions, all or none; returns them in order, with their ids."""
        check_questions(questions)
        with self.writing() as connection:
            return add_questions(connection, questions)

    def ask_newcomer(self, worker: str, questions: Sequence[Question]) -> bool:
        """Commit the first questions to ``worker``, all or none; nothing, and False, if the worker was asked any before."""
        check_questions(questions)
        with self.writing() as connection:
            if connection.scalar(select(exists().where(QUESTION.c.worker == worker))):
                return False
            add_questions(connection, questions)
        return True

    def answer(self, answers: Sequence[Answer]) -> int:
        """Commit answers to logged questions, all or none; returns how many were new.

        An answer that is there already (same question and worker) is left out: the first one counts, and a warning says
        so where the labels differ. An unknown question is an AnnotError.
        """
        check_answers(answers)
        with self.writing() as connection:
            last = last_id(connection, QUESTION)
            unknown = sorted({answer.question for answer in answers if not 1 <= answer.question <= last})
            if unknown:
                raise AnnotError(
                    f"answers to unknown questions {few(unknown)}: {self.name} has questions 1 to {last}; ask first "
                    "(nothing of this batch was stored)"
                )
            known = labels_of(connection, sorted({answer.question for answer in answers}))
            keys = [(answer.question, answer.worker) for answer in answers]
            new = new_positions(keys, [answer.label for answer in answers], known)
            add_answers(connection, [answers[i] for i in new])
        return len(new)

    def record(self, pairs: Sequence[tuple[Question, Answer]]) -> int:
        """Commit questions together with their answers (``Answer.question`` is ignored); returns how many were new.

        Where the item has an ordinary answer of that worker already, the pair is left out: recording twice changes
        nothing.
        """
        questions, answers = [question for question, _ in pairs], [answer for _, answer in pairs]
        check_questions(questions)
        check_answers(answers)
        with self.writing() as connection:
            query = select(QUESTION.c.item, ANSWER.c.worker, ANSWER.c.label).join_from(ANSWER, QUESTION)
            rows = connection.execute(query.where(QUESTION.c.kind == "annotation"))
            known: dict[Hashable, str | None] = {}
            for item, worker, label in rows:
                known.setdefault((item, clean(worker)), label)
            keys = [(question.item, answer.worker) for question, answer in pairs]
            new = new_positions(keys, [answer.label for answer in answers], known)
            asked = add_questions(connection, [questions[i] for i in new])
            add_answers(connection, [replace(answers[i], question=q.id) for i, q in zip(new, asked, strict=True)])
        return len(new)

    def questions(
        self,
        before_round: int | None = None,
        round: int | None = None,
        open_only: bool = False,
        kind: Kind | None = None,
        from_id: int = 1,
    ) -> pd.DataFrame:
        """Questions by id: id, item, worker (None: anyone), kind, round, asked_at; open ones have no answer at all.

        A question that was answered once is never open again: who reads open ones often starts ``from_id``, the first so far.
        """
        from_here = select(*QUESTION.c).where(QUESTION.c.id >= from_id).order_by(QUESTION.c.id)
        query = _filtered(from_here, before_round, round, kind)
        if open_only:
            query = query.where(~exists().where(ANSWER.c.question == QUESTION.c.id))
        return self._frame(query)

    def answers(self, before_round: int | None = None, after_id: int = 0, kind: Kind | None = None) -> pd.DataFrame:
        """Answers by id, with what was asked.

        Columns id, question, item, worker, label (None: skip), kind, round, answered_at, seconds (NaN: unknown),
        source. ``after_id`` gives what is new since the last id seen.
        """
        q, a = QUESTION.c, ANSWER.c
        columns = (a.id, a.question, q.item, a.worker, a.label, q.kind, q.round, a.answered_at, a.seconds, a.source)
        query = select(*columns).join_from(ANSWER, QUESTION).where(a.id > after_id).order_by(a.id)
        return self._frame(_filtered(query, before_round, None, kind))

    @property
    def url(self) -> str:
        """What opens the same log in another process."""
        return self._engine.url.render_as_string(hide_password=False)

    def close(self) -> None:
        """Give the database connections back."""
        self._engine.dispose()

    def __enter__(self) -> AnnotationLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _transaction(self, writes: bool) -> Iterator[Connection]:
        options = isolation(self._engine.dialect.name, writes)
        with self._engine.connect().execution_options(writes=writes, **options) as connection, connection.begin():
            yield connection

    def last_round(self) -> int:
        """The newest round that has asked anything but an audit; -1 if none has. Rounds ask one after the other."""
        query = select(QUESTION.c.round).where(QUESTION.c.kind != "audit", QUESTION.c.round >= 0)
        with self.reading() as connection:
            newest = connection.scalar(query.order_by(QUESTION.c.id.desc()).limit(1))
        return -1 if newest is None else int(newest)

    def size(self) -> tuple[int, int]:
        """How many questions and how many answers there are; neither ever falls."""
        with self.reading() as connection:
            return last_id(connection, QUESTION), last_id(connection, ANSWER)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the log; tables of other modules beside the log may be read in it too."""
        with explained(self._engine, "cannot be read"), self._transaction(writes=False) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that no other writer overlaps, so that the next id is the largest plus one."""
        failed = explained(self._engine, "cannot be written (nothing of this batch was stored)")
        with failed, self._transaction(writes=True) as connection:
            lock_writers(connection)
            yield connection

    def _frame(self, query: Select[Any]) -> pd.DataFrame:
        import pandas as pd

        with self.reading() as connection:
            rows = connection.execute(query).all()
        columns = list(query.selected_columns)
        values = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
        return pd.DataFrame({c.name: _series(v, c) for c, v in zip(columns, values, strict=True)})


def _identity(connection: Connection) -> dict[str, str]:
    query = select(IDENTITY.c.key, IDENTITY.c.value).where(RUN_KEYS)
    return dict(connection.execute(query).tuples().all())


def _filtered(query: Select[Any], before_round: int | None, round: int | None, kind: Kind | None) -> Select[Any]:
    if before_round is not None:
        query = query.where(QUESTION.c.round < before_round)
    if round is not None:
        query = query.where(QUESTION.c.round == round)
    if kind is not None:
        check_kinds([kind])
        query = query.where(QUESTION.c.kind == kind)
    return query


def _series(values: tuple[Any, ...], column: ColumnElement[Any]) -> pd.Series:
    """One column: int64, float64 with NaN for unknown, or text as objects with None (pandas would guess otherwise)."""
    import pandas as pd

    if isinstance(column.type, Integer):
        return pd.Series(values, dtype="int64")
    if column.name == QUESTION.c.worker.name:  # logs of old have `anna ` beside `anna`
        names = {name: None if name is None else clean(name) for name in {*values}}
        values = tuple(names[name] for name in values)
    return pd.Series(values, dtype="float64" if isinstance(column.type, Float) else object)
