"""The machine workers of a run: learners of further banks, and models that come with scores of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_annot.crowd.em import LogPrior
from lightning_annot.crowd.machines import Machine, fit_confusion
from lightning_annot.learner.calibration import fit_temperature
from lightning_annot.learner.predictions import Predictions
from lightning_annot.types import AnnotError, Learner


class MachinePanel:
    """``learning``: names of machines with banks of their own, the first of which is the learner's bank 1, and so on.

    ``scores``: log p(class) (N, K) by the name of each other machine. ``features`` (N, d) and ``folds`` (N,): all banks'.
    """

    def __init__(
        self, learner: Learner, features: Tensor, folds: Tensor, learning: Sequence[str], scores: Mapping[str, Tensor]
    ) -> None:
        if learning and not hasattr(learner, "learners"):
            raise AnnotError(
                f"data.banks has the machines {list(learning)}, and {type(learner).__name__} has no learners for them; use "
                "MixMatchModule, or give their scores."
            )
        self._learning = {name: Predictions(learner, features, folds, bank=i + 1) for i, name in enumerate(learning)}
        self._scores = dict(scores)

    def __len__(self) -> int:
        return len(self._learning) + len(self._scores)

    def renew(self) -> None:
        """Let those that learn predict again, after they have learned."""
        for predictions in self._learning.values():
            predictions.renew()

    def fit(self, rows: Tensor, log_belief: Tensor, pseudo_counts: Tensor) -> tuple[Machine, ...]:
        """The machines with their confusions, by what is known of ``rows`` (n,): ``log_belief`` (n, K).

        Scores are first given the temperature under which they predict best what is known; learners have one already.
        """
        every: dict[str, LogPrior] = dict(self._learning)
        for name, scores in self._scores.items():
            every[name] = (scores / fit_temperature(scores[rows], log_belief)).log_softmax(1).__getitem__
        return tuple(
            Machine(name, answer, fit_confusion(log_belief, answer(rows), pseudo_counts)) for name, answer in every.items()
        )
