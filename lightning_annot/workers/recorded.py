"""Workers who answered already: a replay of recorded answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_annot.annotations.formats import read_answers
from lightning_annot.types import AnnotError, Answer, Finding, Question, Task
from lightning_annot.workers.base import Workers

Int64s = NDArray[np.int64]
_SHOWN = 5


class RecordedWorkers(Workers):
    """Replays a CSV ``task,worker,label[,seconds][,slot]``.

    A question to anyone gets the item's next answer that was not used yet: by ``slot`` where the file has that column,
    else in the order of the file. A question to a worker gets what that worker said. So an answer depends on the
    questions alone and not on when they were asked, and a resumed run repeats an uninterrupted one.

    Args:
        answers: path of the CSV.
        by_worker: offer the recorded workers by name; ``can_answer`` says which items each of them can be asked about.
        ignore_unknown: leave out answers about items that are not in the task, instead of raising AnnotError.
    """

    def __init__(self, answers: str, by_worker: bool = False, ignore_unknown: bool = False) -> None:
        self._path = answers
        self._by_worker = by_worker
        self._ignore_unknown = ignore_unknown
        self._submitted: set[int] = set()
        self._arrived: list[Answer] = []
        self._truth: Mapping[str, str] | None = None
        self._auditor: str | None = None

    def bind(self, task: Task) -> None:
        """Read the file; AnnotError for unknown tasks or labels, a worker's second answer to a task, and no answer."""
        table = read_answers(self._path, task.classes, None if self._ignore_unknown else task.items)
        self._items, self._truth = pd.Index(task.items, dtype=object), task.truth
        item = self._items.get_indexer(table["task"])
        table = table.assign(item=item)[item >= 0]
        if table.empty:
            raise AnnotError(f"{self._path} holds no answers about the task's items; give recorded answers to replay")
        table = table.sort_values(["item", "slot"] if "slot" in table else ["item"], kind="stable")
        self._names = pd.Index(sorted(set(table["worker"])), dtype=object)
        # Row r is one recorded answer; rows are sorted by item and, within one, in the order of the replay.
        self._item: Int64s = table["item"].to_numpy(np.int64)
        self._worker: Int64s = self._names.get_indexer(table["worker"]).astype(np.int64)
        self._label: list[str] = table["label"].tolist()
        self._seconds: list[float] = table["seconds"].tolist() if "seconds" in table else [np.nan] * len(table)
        self._used = np.zeros(len(table), dtype=bool)
        key = self._item * len(self._names) + self._worker
        self._by_key = np.argsort(key)
        self._keys = key[self._by_key]

    def check(self, task: Task) -> Finding:
        """Read the file."""
        self.bind(task)
        without = len(task.items) - len(np.unique(self._item))
        told = (f"{without:,} of {len(task.items):,} items have no recorded answer; they cannot be asked about",)
        text = f"{len(self._item):,} recorded answers of {len(self._names):,} workers in {self._path}"
        return Finding(text, told if without else ())

    def names(self) -> Sequence[str]:
        """The recorded workers, sorted, if ``by_worker``; else nobody, as questions go to anyone."""
        return self._names.tolist() if self._by_worker else []

    def capacity(self) -> Tensor:
        """Recorded answers of each item, (N,) int64."""
        return torch.from_numpy(np.bincount(self._item, minlength=len(self._items)))

    def can_answer(self) -> tuple[Tensor, Tensor] | None:
        """All (item row, worker row) pairs with an answer, two (A,) int64 tensors; None when questions go to anyone."""
        if not self._by_worker:
            return None
        return torch.from_numpy(self._item.copy()), torch.from_numpy(self._worker.copy())

    def recorded(self) -> tuple[Int64s, Int64s, list[str]]:
        """All answers in the order of the replay: item rows (A,), sorted, rows among the sorted workers (A,), and labels."""
        return self._item.copy(), self._worker.copy(), list(self._label)

    def remember(self, pairs: Iterable[tuple[str, str]], people: Collection[str] = ()) -> None:
        """Learn which (item, worker) pairs have answers already; to be called after ``bind``, before ``submit``."""
        del people
        given = list(pairs)
        rows = self._find([item for item, _ in given], [worker for _, worker in given])
        self._used[rows[rows >= 0]] = True

    def trust(self, name: str) -> None:
        """An expert who knows the truth audits, since recorded people were not asked to; AnnotError where it is not known."""
        if self._truth is None or name in self._names:
            raise AnnotError(
                f"stopping.auditor {name!r} given, and recorded people answer no audits; an expert of another name can be "
                "simulated where data.labels gives the truth."
            )
        self._auditor = name

    def submit(self, questions: Sequence[Question]) -> None:
        """Answer the questions not submitted before; AnnotError, with none taken, where no recorded answer is left."""
        new = sorted({q.id: q for q in questions if q.id not in self._submitted}.values(), key=lambda q: q.id)
        audits = [q for q in new if q.worker is not None and q.worker == self._auditor]
        addressed = [q for q in new if q.worker is not None and q.worker != self._auditor]
        to_anyone = [q for q in new if q.worker is None]
        own = self._find([q.item for q in addressed], [str(q.worker) for q in addressed])
        used = self._used.copy()
        used[own[own >= 0]] = True
        rows = np.concatenate([own, _next_unused(self._item, used, self._items.get_indexer([q.item for q in to_anyone]))])
        asked = addressed + to_anyone
        impossible = [q for q, row in zip(asked, rows, strict=True) if row < 0]
        if impossible:
            shown = ", ".join(f"{q.item!r} to {q.worker or 'anyone'}" for q in impossible[:_SHOWN])
            raise AnnotError(
                f"{len(impossible)} questions have no recorded answer left in {self._path} ({shown}); ask at most as "
                "many as the file has for an item, or record more answers"
            )
        self._used[rows] = True
        self._submitted.update(q.id for q in new)
        truth = self._truth or {}
        self._arrived += [Answer(q.id, str(q.worker), truth[q.item], source="simulated") for q in audits]
        self._arrived += [self._answer(q, row) for q, row in zip(asked, rows.tolist(), strict=True)]

    def collect(self) -> list[Answer]:
        """The answers to what was submitted since the last call, by question."""
        arrived, self._arrived = sorted(self._arrived, key=lambda answer: answer.question), []
        return arrived

    def _answer(self, question: Question, row: int) -> Answer:
        seconds = self._seconds[row]
        worker = self._names[self._worker[row]]
        return Answer(question.id, worker, self._label[row], None if np.isnan(seconds) else seconds, source="recorded")

    def _find(self, items: Sequence[str], workers: Sequence[str]) -> Int64s:
        """Row of each worker's answer about each item, -1 where there is none."""
        item, worker = self._items.get_indexer(items), self._names.get_indexer(workers)
        key = item.astype(np.int64) * len(self._names) + worker
        at = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        found = (item >= 0) & (worker >= 0) & (self._keys[at] == key)
        return np.where(found, self._by_key[at], -1)


def _next_unused(item: Int64s, used: NDArray[np.bool_], asked: Int64s) -> Int64s:
    """Row of the recorded answer that each question gets, -1 where none is left; (Q,).

    ``item`` (A,) are the sorted items of the recorded answers, ``used`` (A,) which are spent, ``asked`` (Q,) the items
    of the questions in order: the m-th question about an item gets its m-th unused answer.
    """
    free = np.flatnonzero(~used)
    position = np.searchsorted(item[free], asked) + pd.Series(asked).groupby(asked).cumcount().to_numpy()
    found = position < len(free)
    found[found] = item[free[position[found]]] == asked[found]
    rows = np.full(len(asked), -1, dtype=np.int64)
    rows[found] = free[position[found]]
    return rows
