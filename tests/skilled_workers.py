"""Simulated workers of given accuracies, for runs in which it matters who is good."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_annot.workers.simulated import Matrix, SimulatedWorkers, spread_evenly


class SkilledWorkers(SimulatedWorkers):
    """Worker j is right with ``accuracies[j]`` in every class, and otherwise errs evenly; 1 / K answers at random."""

    def __init__(self, accuracies: list[float]) -> None:
        super().__init__(len(accuracies))
        self.accuracies = accuracies

    def confusions(self, classes: Sequence[str], seed: int) -> Matrix:
        """One matrix a worker."""
        return np.stack([spread_evenly(np.full(len(classes), accuracy)) for accuracy in self.accuracies])
