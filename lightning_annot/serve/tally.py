"""What the log tells the owner while a round goes on. Each answer is read once, as it comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Integer, bindparam, func, select

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import ANSWER, IN_LIST, QUESTION
from lightning_annot.report.pace import per_hour
from lightning_annot.serve.counts import Counts

_Q, _A = QUESTION.c, ANSWER.c
_COUNTED = (_A.question, _Q.item, _A.worker, _A.label, _Q.kind == "gold", _Q.round, _A.answered_at, _A.seconds)
_NEW = select(_A.id, *_COUNTED).join_from(ANSWER, QUESTION).where(_A.id > bindparam("after", type_=Integer), _Q.kind != "audit")
_NEW = _NEW.order_by(_A.id).limit(bindparam("most", type_=Integer))
_ASKED = select(_Q.round, func.count(), func.max(_Q.id)).where(_Q.id > bindparam("after", type_=Integer), _Q.kind != "audit")
_ASKED = _ASKED.group_by(_Q.round)


@dataclass(frozen=True)
class Standing:
    """The round that was asked last: its number, its questions, and how many of them have an answer."""

    round: int
    asked: int
    answered: int


class Tally:
    """Counts of a log, as it is whenever something is asked. Audits, which are an expert's, are left out.

    ``at_once``: most answers that are read in one go, in between which other threads have their turn.
    """

    def __init__(self, log: AnnotationLog, at_once: int = 10_000) -> None:
        self._log, self._lock, self._at_once = log, threading.Lock(), at_once
        self._counts, self._last, self._last_asked, self._round = Counts(), 0, 0, -1

    @property
    def stamp(self) -> int:
        """Changes when answers come."""
        with self._now():
            return self._last

    def times(self) -> np.ndarray:
        """Seconds since 1970 of each answer."""
        with self._now() as counts:
            return counts.times.values

    def pace(self) -> float:
        """Answers an hour, lately."""
        return per_hour(self.times(), time.time())

    def open(self) -> int:
        """Questions without any answer."""
        with self._now() as counts:
            return counts.asked.total() - counts.answered.total()

    def standing(self) -> Standing | None:
        """How far the last round is; None before any question."""
        with self._now() as counts:
            last = self._round
            return Standing(last, counts.asked[last], counts.answered[last]) if last >= 0 else None

    def any_gold(self) -> bool:
        """Whether there are gold answers."""
        with self._now() as counts:
            return counts.any_gold

    def gold(self) -> pd.DataFrame:
        """Gold answers, skips too: ``worker``, ``task``, ``label``."""
        with self._now() as counts:
            return counts.gold()

    def people(self, truth: Mapping[str, str], prices: Mapping[str, Any]) -> pd.DataFrame:
        """``Counts.people`` with the ``cost`` of each."""
        with self._now() as counts:
            found = counts.people(truth)
        listed = pd.Series(dict(prices.get("workers", {})), dtype=float).reindex(found.index)
        each = listed.fillna(float(prices.get("per_answer", 1.0)))
        return found.assign(cost=found["n"] * each + float(prices.get("per_second", 0.0)) * found["spent"])

    def told(self) -> list[str]:
        """Items that have a label from somebody; skips and gold are none."""
        with self._now() as counts:
            labelled = counts.labelled.reach(len(counts.items)) > 0
            return [item for item, there in zip(counts.items, labelled.tolist(), strict=True) if there]

    def numbers(self, items: Collection[str]) -> np.ndarray:
        """What ``labelled`` knows each item by, (n,)."""
        with self._now() as counts:
            return counts.items.of(items)

    def labelled(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many labels each of these items got, and whether people disagree about it, both (n,)."""
        with self._now() as counts:
            n = len(counts.items)
            return counts.labelled.reach(n)[numbers], counts.disputed.reach(n)[numbers]

    def said(self, items: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """Who said what about a few items, in the order of the log."""
        found: dict[str, list[tuple[str, str]]] = {item: [] for item in items}
        query = select(_Q.item, _A.worker, _A.label, _A.source).join_from(QUESTION, ANSWER).where(_Q.kind != "audit")
        for start in range(0, len(items), IN_LIST):
            with self._log.reading() as connection:
                rows = connection.execute(query.where(_Q.item.in_(items[start : start + IN_LIST])).order_by(_A.id)).all()
            for item, worker, label, source in rows:
                reason = source.removeprefix("page: ") if source.startswith("page: ") else "skip"
                found[item].append((worker, reason if label is None else label))
        return found

    @contextmanager
    def _now(self) -> Iterator[Counts]:
        """The counts, with what has come meanwhile."""
        with self._lock:
            while not self._read_some():
                pass
            yield self._counts

    def _read_some(self) -> bool:
        """Read what is new, but not too much at once; whether that was all."""
        with self._log.reading() as connection:
            cursor = connection.execute(_NEW, {"after": self._last, "most": self._at_once}).cursor
            assert cursor is not None
            rows = cursor.fetchall()  # as the driver has them: to make SQLAlchemy's rows of them takes as long again
            all_ = len(rows) < self._at_once
            asked = connection.execute(_ASKED, {"after": self._last_asked}).all() if all_ else []
        if rows:
            _, *columns = zip(*rows, strict=True)
            self._counts.add(*columns)
            self._last = rows[-1][0]
        for round_, n, newest in sorted(asked, key=lambda row: int(row[2])):
            self._counts.asked[round_] += n
            self._last_asked = newest
            self._round = round_ if round_ >= 0 else self._round
        return all_
