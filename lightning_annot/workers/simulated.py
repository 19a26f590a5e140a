"""Simulated workers: each answers by its confusion matrix, and every answer is a pure function of (seed, worker, item)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_annot.files import replacing
from lightning_annot.types import AnnotError, Answer, Finding, Question, Task
from lightning_annot.workers.base import Workers

Matrix = NDArray[np.float64]
EXPORTED = 1 << 24  # numbers W x K x K, 64 MiB in single precision, above which true confusions are not exported


class SimulatedWorkers(Workers):
    """Workers with known confusions. They, and reporting, are the only ones who see the truth.

    ``spammers``: share of the workers, rounded, who answer evenly at random, whatever the class. The seed chooses them.
    """

    def __init__(self, n_workers: int, spammers: float = 0.0) -> None:
        if n_workers < 1:
            raise AnnotError(f"n_workers {n_workers} given; at least 1 is needed.")
        self.n_workers, self.spammers = n_workers, check_probability("spammers", spammers)
        self._waiting: dict[int, Question] = {}
        self._auditor: str | None = None

    @abstractmethod
    def confusions(self, classes: Sequence[str], seed: int) -> Matrix:
        """Confusions (W, K, K) of all who are no spammers, row = true class, column = answer, rows sum to 1."""

    def bind(self, task: Task) -> None:
        """Draw the workers' confusions for the task's classes; needs the truth of every item."""
        if task.truth is None:
            raise AnnotError(
                f"{type(self).__name__} answers from the truth, and this data has none. Give data.labels, or ask real people "
                "with annotation.workers: lightning_annot.workers.files.FileWorkers."
            )
        unknown = [i for i in task.items if i not in task.truth]
        if unknown:
            raise AnnotError(f"{len(unknown)} items without a true label, such as {unknown[:3]}; simulated workers need all.")
        self._seed, self._classes = task.seed, list(task.classes)
        self._row = {item: i for i, item in enumerate(task.items)}
        code = {name: k for k, name in enumerate(task.classes)}
        self._truth = np.fromiter((code[task.truth[i]] for i in task.items), np.int64, len(task.items))
        self._names = [f"w{j:03d}" for j in range(self.n_workers)]
        self._number = {name: j for j, name in enumerate(self._names)}
        self._spammer = _draw_spammers(self.n_workers, self.spammers, task.seed)
        true = self.confusions(task.classes, task.seed)
        self._true = true if true.size <= EXPORTED else None
        self._cumulative = _cumulative(true)

    def check(self, task: Task) -> Finding:
        """Draw the workers, which reads their files."""
        self.bind(task)
        return Finding(f"{self.n_workers} simulated workers ({type(self).__name__})")

    def export(self, path: Path) -> None:
        """Write what is true of the workers, for reports and oracles: ``workers`` (W,), ``classes`` (K,), ``confusions``
        (W, K, K), even rows for spammers, and ``spammer`` (W,) bool.

        Nothing is written where the confusions are more than ``EXPORTED`` numbers.
        """
        if self._true is not None:
            true = self._true.astype(np.float32)
            true[self._spammer] = 1.0 / len(self._classes)
            with replacing(path) as draft:
                np.savez(draft, workers=self._names, classes=self._classes, confusions=true, spammer=self._spammer)

    def names(self) -> Sequence[str]:
        """w000, w001, ..."""
        return self._names

    def trust(self, name: str) -> None:
        """One of the workers audits as well as they can; anybody else is an expert who knows the truth."""
        self._auditor = None if name in self._number else name

    def submit(self, questions: Sequence[Question]) -> None:
        """Take questions; each must name its worker."""
        for q in questions:
            if q.worker not in self._number and (q.worker is None or q.worker != self._auditor):
                raise AnnotError(f"question {q.id} is for worker {q.worker!r}; simulated workers are {self._names[:3]} ...")
            self._waiting[q.id] = q

    def collect(self) -> Sequence[Answer]:
        """Answer everything that was submitted, at once."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        audits = [q for q in waiting if q.worker == self._auditor]
        told = [Answer(q.id, str(q.worker), self._classes[self._truth[self._row[q.item]]], source="simulated") for q in audits]
        questions = [q for q in waiting if q.worker != self._auditor]
        if not questions:
            return told
        item = np.fromiter((self._row[q.item] for q in questions), np.int64, len(questions))
        worker = np.fromiter((self._number[str(q.worker)] for q in questions), np.int64, len(questions))
        label = self.answer(worker, item)
        return told + [
            Answer(q.id, str(q.worker), self._classes[k], source="simulated") for q, k in zip(questions, label, strict=True)
        ]

    def answer(self, worker: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.int64]:
        """The answer of each (worker, item) pair of rows, by inverting the worker's cumulative confusion row."""
        cumulative = self._cumulative[worker, self._truth[item]]
        draw = hashed_uniform(self._seed, worker, item)
        label: NDArray[np.int64] = (draw[:, None] >= cumulative[:, :-1]).sum(1)
        # Not by an even matrix, since workers may share one matrix that is too large to have one for each.
        return np.where(self._spammer[worker], (draw * len(self._classes)).astype(np.int64), label)


class PerfectWorkers(SimulatedWorkers):
    """Always right."""

    def __init__(self, n_workers: int = 1) -> None:
        super().__init__(n_workers)

    def confusions(self, classes: Sequence[str], seed: int) -> Matrix:
        """Identity matrices."""
        return np.broadcast_to(np.eye(len(classes)), (self.n_workers, len(classes), len(classes)))


class UniformNoiseWorkers(SimulatedWorkers):
    """Right with probability ``accuracy`` in every class, otherwise any other class evenly."""

    def __init__(self, n_workers: int = 50, accuracy: float = 0.8, spammers: float = 0.0) -> None:
        super().__init__(n_workers, spammers)
        self.accuracy = check_probability("accuracy", accuracy)

    def confusions(self, classes: Sequence[str], seed: int) -> Matrix:
        """One matrix for all workers."""
        k = len(classes)
        return np.broadcast_to(spread_evenly(np.full(k, self.accuracy)), (self.n_workers, k, k))


class StructuredWorkers(SimulatedWorkers):
    """Workers drawn from a generator of structured confusions, for trials without any file.

    Skill differs by worker and class around ``accuracy`` (standard deviation ``spread``), and errors go to a few classes that
    people share: each row of errors is drawn around one common Dirichlet(``concentration``) pattern.
    """

    def __init__(
        self,
        n_workers: int = 50,
        accuracy: float = 0.8,
        spread: float = 0.08,
        concentration: float = 0.3,
        spammers: float = 0.0,
    ) -> None:
        super().__init__(n_workers, spammers)
        self.accuracy = check_probability("accuracy", accuracy)
        if spread < 0 or concentration <= 0:
            raise AnnotError(f"spread {spread}, concentration {concentration} given; need 0 or more, and above 0.")
        self.spread, self.concentration = spread, concentration

    def confusions(self, classes: Sequence[str], seed: int) -> Matrix:
        """Worker j's matrix depends on the seed and j alone, so adding workers changes nobody."""
        k = len(classes)
        common = np.random.default_rng((seed, 0)).dirichlet(np.full(k - 1, self.concentration), k)
        off = ~np.eye(k, dtype=bool)
        out = np.empty((self.n_workers, k, k))
        for j, matrix in enumerate(out):
            rng = np.random.default_rng((seed, 1, j))
            skill = rng.normal(self.accuracy, self.spread) + rng.normal(0.0, self.spread, k)
            right = np.clip(skill, 0.05, 0.99)
            errors = np.stack([rng.dirichlet(20.0 * row + 1e-3) for row in common])
            matrix[off] = (errors * (1.0 - right)[:, None]).ravel()
            np.fill_diagonal(matrix, right)
        return out


def _cumulative(confusions: Matrix) -> Matrix:
    """Cumulative rows; workers who share one matrix go on sharing it, since W x K x K is large for many classes."""
    if confusions.strides[0] == 0:
        return np.broadcast_to(confusions[0].cumsum(1), confusions.shape)
    return confusions.cumsum(2)


def _draw_spammers(n_workers: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Who is a spammer, (W,): the ``share`` of workers with the lowest draws about item -1, which no question names."""
    draw = hashed_uniform(seed, np.arange(n_workers), np.full(n_workers, -1))
    spammer = np.zeros(n_workers, dtype=bool)
    spammer[draw.argsort(kind="stable")[: round(share * n_workers)]] = True
    return spammer


def spread_evenly(diagonal: NDArray[np.float64]) -> Matrix:
    """Confusion (K, K) with this ``diagonal`` (K,) and even errors ("uniform noise")."""
    k = len(diagonal)
    matrix = np.repeat(((1.0 - diagonal) / (k - 1))[:, None], k, axis=1)
    np.fill_diagonal(matrix, diagonal)
    return matrix


def hashed_uniform(seed: int, worker: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), each a hash of (seed, worker, item) by three rounds of splitmix64."""
    state = np.zeros(len(item), np.uint64)
    for part in (np.full_like(item, seed), worker, item):  # the seed is mixed alone: 0 and 1 share no worker's draws
        state = (state ^ part.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    uniform: NDArray[np.float64] = (state >> np.uint64(11)) / float(1 << 53)
    return uniform


def check_probability(name: str, value: float) -> float:
    """``value``, if it is a probability; AnnotError else."""
    if not 0.0 <= value <= 1.0:
        raise AnnotError(f"{name} {value} given; it must lie in 0..1.")
    return value
