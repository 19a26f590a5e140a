"""Simulated workers who all fail on the same hard images: what a model finds confusable, people confuse too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lightning_annot.stored import read_arrays
from lightning_annot.types import AnnotError, Task
from lightning_annot.workers.simulated import (
    Matrix,
    SimulatedWorkers,
    StructuredWorkers,
    check_probability,
    hashed_uniform,
)

ALL_WORKERS = -1  # stands for the worker in draws that all workers share


class DifficultyWorkers(SimulatedWorkers):
    """The workers ``base``, who confuse hard images in the way that a model does, and often together.

    An image's difficulty is 1 - p(y): what a model that never learned from it leaves for its wrong classes. With probability
    ``share`` times this, a worker is confused, and answers a wrong class z in proportion to p(z)^(1 / ``temperature``). Else
    the answer is that of ``base``. Whether they are confused is drawn once for all workers with probability ``together``, else
    by each alone; so is the wrong class with probability ``alike``. The defaults were set on CIFAR-10N (Wei et al. 2022), where
    three people are wrong together four times as often as independence predicts.

    ``probabilities``: an .npz of ``items`` (N,), ``classes`` (K,) and ``probabilities`` (N, K), such as
    ``scripts/make_difficulty.py`` writes; items may stand in any order, classes in that of the task. ``base``: structured
    workers of accuracy 0.89 by default. The confusions that are exported are what the answers amount to on average.
    """

    def __init__(
        self,
        probabilities: str,
        base: SimulatedWorkers | None = None,
        share: float = 0.2,
        together: float = 0.6,
        alike: float = 0.3,
        temperature: float = 2.0,
    ) -> None:
        self.base = base if base is not None else StructuredWorkers(accuracy=0.89)
        super().__init__(self.base.n_workers, self.base.spammers)
        self.probabilities, self.temperature = probabilities, temperature
        self.share = check_probability("share", share)
        self.together, self.alike = check_probability("together", together), check_probability("alike", alike)
        if not temperature > 0:
            raise AnnotError(f"temperature {temperature} given; it must be above 0.")

    def confusions(self, classes: Sequence[str], seed: int) -> Matrix:
        """Those of ``base``: how people who are not confused answer."""
        return self.base.confusions(classes, seed)

    def bind(self, task: Task) -> None:
        """Draw the workers, and read how hard each image is."""
        super().bind(task)
        table = _read_probabilities(Path(self.probabilities), task.items, task.classes)
        rows = np.arange(len(table))
        self._confused = self.share * (1.0 - table[rows, self._truth])  # (N,) probability of being confused
        wrong = table ** (1.0 / self.temperature)
        wrong[rows, self._truth] = 0.0
        total = wrong.sum(1, keepdims=True)
        self._wrong = np.divide(wrong, total, out=np.zeros_like(wrong), where=total > 0)  # (N, K), the class to confuse it with
        self._confused[total[:, 0] == 0] = 0.0
        streams = np.random.SeedSequence((task.seed, 3)).generate_state(4, np.uint64) >> np.uint64(1)
        self._streams: list[int] = streams.tolist()
        if self._true is not None:
            self._true = self._on_average(self._true)

    def answer(self, worker: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.int64]:
        """The answer of each (worker, item) pair of rows."""
        label = super().answer(worker, item)
        when, which, shares_when, shares_which = self._streams
        draw = self._shared_or_own(when, shares_when, self.together, worker, item)
        at = np.flatnonzero((draw < self._confused[item]) & ~self._spammer[worker])
        draw = self._shared_or_own(which, shares_which, self.alike, worker[at], item[at])
        label[at] = (draw[:, None] >= self._wrong[item[at]].cumsum(1)[:, :-1]).sum(1)
        return label

    def _shared_or_own(
        self, stream: int, coin: int, shared: float, worker: NDArray[np.int64], item: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Uniform draws, each with probability ``shared`` the one that all workers have about the item."""
        whose = np.where(hashed_uniform(coin, worker, item) < shared, ALL_WORKERS, worker)
        return hashed_uniform(stream, whose, item)

    def _on_average(self, own: Matrix) -> Matrix:
        """Confusions (W, K, K) of the answers, each row over the items of its class; ``own`` where a class has none."""
        k = len(self._classes)
        there = np.bincount(self._truth, minlength=k)
        weight = self._confused / there[self._truth]  # of each item within its class
        confused = np.stack([weight[self._truth == c] @ self._wrong[self._truth == c] for c in range(k)])
        average: Matrix = own * (1.0 - confused.sum(1))[:, None] + confused
        return average


def _read_probabilities(path: Path, items: Sequence[str], classes: Sequence[str]) -> Matrix:
    """The rows of ``items`` (N, K) in order, each summing to 1."""
    remedy = "probabilities needs items, classes and probabilities in one .npz, as scripts/make_difficulty.py writes them."
    known, words, table = read_arrays(path, ("items", "classes", "probabilities"), remedy)
    if known.ndim != 1 or words.ndim != 1 or table.dtype.kind != "f":
        raise AnnotError(f"{path} has {table.dtype} probabilities of {known.shape} items and {words.shape} classes; {remedy}")
    names = words.tolist()
    if names != list(classes):
        raise AnnotError(
            f"probabilities {path} has the classes {names[:5]}; this task's are {list(classes)[:5]}, in this order."
        )
    if table.shape != (len(known), len(names)) or not (table >= 0).all() or not np.allclose(table.sum(1), 1.0, atol=1e-3):
        raise AnnotError(
            f"probabilities {path} has a table of shape {table.shape} for {len(known)} items and {len(names)} classes; it must "
            "have a row for each item and a column for each class, values from 0 up, and rows that sum to 1."
        )
    row = pd.Index(known.astype(str)).get_indexer(pd.Index(items))
    if (row < 0).any():
        missing = [items[i] for i in np.flatnonzero(row < 0)[:3]]
        raise AnnotError(f"probabilities {path} lacks {int((row < 0).sum())} of the {len(items)} items, such as {missing}.")
    found: Matrix = table[row].astype(np.float64)
    found /= found.sum(1, keepdims=True)
    return found
