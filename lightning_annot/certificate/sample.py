"""The set of labels that is certified, and the random order in which it is audited."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lightning_annot.types import AnnotError


@dataclass(frozen=True)
class CertifiedSet:
    """N labels: ``task``, ``label`` (text) and ``risk``, as series of one index, in the order of the run's items.

    ``top`` is the risk threshold that bounds the set.
    """

    task: pd.Series
    label: pd.Series
    risk: pd.Series
    top: float

    def __len__(self) -> int:
        return len(self.task)

    @cached_property
    def digest(self) -> str:
        """Which tasks are in the set, what they are called and their risks, which order them; changes with any of it."""
        text = pd.DataFrame({"task": self.task, "label": self.label, "risk": self.risk}).to_csv(
            index=False, float_format="%.6f"
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Audits:
    """What is known of a set, in its random order: ``risk`` (N,) of all, ``wrong`` (n,) of the part answered without a gap.

    ``unsure`` (n,): those that the expert skipped, which count as wrong. ``waiting`` answers are behind the first gap.
    """

    risk: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    unsure: NDArray[np.bool_]
    waiting: int

    def first(self, n: int) -> Audits:
        """The first n audits alone, as a plan of one look has it."""
        return Audits(self.risk, self.wrong[:n], self.unsure[:n], 0)


def certified_set(labels: pd.DataFrame, threshold: float | None, below: float | None) -> CertifiedSet:
    """The finished items of ``labels.csv``, or those with a risk below ``below``; prototypes never.

    ``threshold`` is the run's; where it is not known, as in a run that was cut off, the largest risk stands for it. Raises
    AnnotError for an empty set.
    """
    ours = labels["status"] != "prototype"
    chosen = labels["status"] == "finished" if below is None else ours & (labels["risk"] < below)
    if not chosen.any():
        what = "no item is finished" if below is None else f"no item has a risk below {below:g}"
        raise AnnotError(f"{what}, so there is nothing to certify; let the run go on, or give a larger --below.")
    some = labels[chosen]
    risk = some["risk"].astype("float64")
    top = threshold if below is None else below
    return CertifiedSet(some["task"], some["label"], risk, float(np.nextafter(risk.max(), np.inf)) if top is None else top)


def weighted_order(found: CertifiedSet, weight: NDArray[np.float64], seed: int, stage: int) -> NDArray[np.int64]:
    """Positions of the set in a random order in which each is next with a probability proportional to its ``weight`` (N,).

    An exponential clock of that rate runs for each; the order is that in which they ring (Efraimidis & Spirakis 2006).
    """
    uniform = ((_bits(found, seed, stage) >> np.uint64(11)).astype(np.float64) + 0.5) / float(1 << 53)
    return np.argsort(-np.log(uniform) / weight, kind="stable")


def drawn_order(found: CertifiedSet, seed: int, stage: int) -> NDArray[np.int64]:
    """Positions 0 ... N - 1 of the set in random order, a function of seed, set and stage.

    The set is a part of what the order depends on, so that nobody can know the order before the labels are what they are,
    and labels that change are audited in an order of their own. Raw bits of PCG64 are the same in every release of NumPy.
    """
    return np.argsort(_bits(found, seed, stage), kind="stable")


def _bits(found: CertifiedSet, seed: int, stage: int) -> NDArray[np.uint64]:
    key = hashlib.sha256(f"{seed} {found.digest} {stage}".encode()).digest()
    return np.random.PCG64(int.from_bytes(key, "big")).random_raw(len(found))


def audits_of(found: CertifiedSet, order: NDArray[np.int64], answers: Mapping[str, str | None]) -> Audits:
    """What ``answers`` (item -> class, None: unsure) say of the set, in its random order.

    Answers behind a gap are left out until it is filled: which ones are missing may depend on how hard they are.
    """
    task, label = found.task.to_numpy()[order], found.label.to_numpy()[order]
    there = pd.Index(task).isin(list(answers))
    n = len(there) if there.all() else int(there.argmin())
    said = [answers[item] for item in task[:n]]
    wrong = np.array([a != b for a, b in zip(said, label[:n], strict=True)], dtype=np.bool_)
    unsure = np.array([answer is None for answer in said], dtype=np.bool_)
    return Audits(found.risk.to_numpy()[order], wrong, unsure, int(there[n:].sum()))
