"""What answers amount to, counted as they come: by item, by worker, by question and over time."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

Word = TypeVar("Word")


class Numbers(dict[Word, int]):
    """Numbers words from 0, in the order in which they first come."""

    def __missing__(self, word: Word) -> int:
        number = self[word] = len(self)
        return number

    def of(self, words: Collection[Word]) -> np.ndarray:
        """The numbers of ``words`` (n,)."""
        return np.fromiter(map(self.__getitem__, words), np.int64, len(words))


class Growing:
    """An array that grows at its end; ``values`` (n,) is a view, which a later growth leaves as it is."""

    def __init__(self, dtype: Any, fill: float = 0) -> None:
        self._fill, self._n = fill, 0
        self._room = np.full(1024, fill, dtype)

    @property
    def values(self) -> np.ndarray:
        """What is there."""
        return self._room[: self._n]

    def reach(self, n: int) -> np.ndarray:
        """``values`` with at least ``n`` entries; new ones have the fill value."""
        if n > len(self._room):
            more = np.full(max(n, 2 * len(self._room)) - len(self._room), self._fill, self._room.dtype)
            self._room = np.concatenate([self._room, more])
        self._n = max(self._n, n)
        return self.values

    def extend(self, new: np.ndarray) -> None:
        """Append ``new`` (m,)."""
        start = self._n
        self.reach(start + len(new))[start:] = new


class Counts:
    """Counts of answers, none of them an audit's, in the order of the log.

    ``asked`` and ``answered``: questions by round, and those of them that have an answer. ``times`` (A,): seconds since 1970.
    By item: ``labelled``, the ordinary answers with a label, and whether they are ``disputed``, as ``items`` numbers them.
    """

    def __init__(self) -> None:
        self.items, self.workers = Numbers[str](), Numbers[str]()
        self._labels = Numbers[str | None]({None: 0})  # a skip is 0
        self.asked, self.answered = Counter[int](), Counter[int]()
        self.times = Growing(np.float64)
        self.labelled, self._first, self.disputed = Growing(np.int32), Growing(np.int32), Growing(np.bool_)
        self._has_answer = Growing(np.bool_)  # by question
        self._given, self._skips, self._spent = Growing(np.int64), Growing(np.int64), Growing(np.float64)  # by worker
        self._last = Growing(np.float64)
        self._seconds: defaultdict[int, array[float]] = defaultdict(lambda: array("d"))
        self._medians: dict[int, tuple[int, float]] = {}  # of so many seconds
        self._gold = [Growing(np.int64) for _ in range(3)]  # worker, item, label of each gold answer

    def add(
        self, question: Sequence[int], item: Sequence[str], worker: Sequence[str], label: Sequence[str | None],
        gold: Sequence[bool], round_: Sequence[int], answered_at: Sequence[str], seconds: Sequence[float | None],
    ) -> None:  # fmt: skip
        """More answers, at least one, a column each; ``label``: None for a skip."""
        items, workers, labels = self.items.of(item), self.workers.of(worker), self._labels.of(label)
        golden, times = np.array(gold, dtype=np.bool_), _seconds(answered_at)
        self.times.extend(times)
        self._add_questions(np.array(question, dtype=np.int64), np.array(round_, dtype=np.int64))
        told = ~golden & (labels > 0)
        self._add_labels(items[told], labels[told])
        self._add_workers(workers, labels > 0, times, np.array(seconds, dtype=np.float64))
        for column, values in zip(self._gold, (workers, items, labels), strict=True):
            column.extend(values[golden])

    @property
    def any_gold(self) -> bool:
        """Whether there are gold answers."""
        return len(self._gold[0].values) > 0

    def gold(self) -> pd.DataFrame:
        """Gold answers, skips too: ``worker``, ``task``, ``label``, in the order of the log."""
        worker, item, label = (column.values for column in self._gold)
        names = [np.array(list(words), dtype=object) for words in (self.workers, self.items, self._labels)]
        columns = {"worker": names[0][worker], "task": names[1][item], "label": names[2][label]}
        return pd.DataFrame(columns, dtype=object)  # pandas would take text with None for something else

    def people(self, truth: Mapping[str, str]) -> pd.DataFrame:
        """One row a worker, by name: ``answers``, ``skips``, ``gold``, ``right`` of these, ``seconds`` (median), ``last``
        (seconds since 1970), ``n`` (all), and ``spent`` (sum of seconds). ``truth``: classes of prototypes.
        """
        worker, item, label = (column.values for column in self._gold)
        n, true = len(self.workers), np.zeros(len(self.items), np.int64)
        for task, name in truth.items():
            if (number := self.items.get(task)) is not None:
                true[number] = self._labels.get(name, 0)
        gold, right = label > 0, (label > 0) & (label == true[item])
        answers, skips = self._given.reach(n), self._skips.reach(n)
        columns = {
            "answers": answers.copy(), "skips": skips.copy(), "n": answers + skips,
            "gold": np.bincount(worker[gold], minlength=n), "right": np.bincount(worker[right], minlength=n),
            "seconds": np.array([self._median(j) for j in range(n)]), "last": self._last.reach(n).copy(),
            "spent": self._spent.reach(n).copy(),
        }  # fmt: skip
        return pd.DataFrame(columns, index=pd.Index(list(self.workers), dtype=object, name="worker")).sort_index()

    def _add_questions(self, question: np.ndarray, round_: np.ndarray) -> None:
        has = self._has_answer.reach(int(question.max()) + 1)
        question, first = np.unique(question, return_index=True)
        new = ~has[question]
        has[question] = True
        self.answered.update(round_[first[new]].tolist())

    def _add_labels(self, item: np.ndarray, label: np.ndarray) -> None:
        n = len(self.items)
        np.add.at(self.labelled.reach(n), item, 1)
        first = self._first.reach(n)
        new = first[item] == 0
        first[item[new]] = label[new]  # which of them is kept is all one: the others differ from it, or not
        self.disputed.reach(n)[item[label != first[item]]] = True

    def _add_workers(self, worker: np.ndarray, given: np.ndarray, times: np.ndarray, seconds: np.ndarray) -> None:
        n, known = len(self.workers), ~np.isnan(seconds)
        np.add.at(self._given.reach(n), worker[given], 1)
        np.add.at(self._skips.reach(n), worker[~given], 1)
        np.add.at(self._spent.reach(n), worker[known], seconds[known])
        np.maximum.at(self._last.reach(n), worker, times)
        order = np.argsort(worker[known], kind="stable")
        who, seconds = worker[known][order], seconds[known][order]
        names, starts = np.unique(who, return_index=True)
        for name, some in zip(names.tolist(), np.split(seconds, starts[1:]), strict=False):  # nobody: one empty piece
            self._seconds[name].frombytes(some.tobytes())

    def _median(self, worker: int) -> float:
        """Seconds of an answer; nan where none are known."""
        n = len(self._seconds[worker])
        if n != self._medians.get(worker, (0, 0.0))[0]:
            self._medians[worker] = n, float(np.median(np.frombuffer(self._seconds[worker])))
        return self._medians[worker][1] if n else float("nan")


def _seconds(answered_at: Sequence[str]) -> np.ndarray:
    """Seconds since 1970 of times as the log has them."""
    moments = pd.to_datetime(pd.Series(answered_at), format="ISO8601", utc=True)
    seconds: np.ndarray = (moments - pd.Timestamp(0, tz="UTC")).dt.total_seconds().to_numpy(np.float64)
    return seconds
