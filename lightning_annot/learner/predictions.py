"""The learner's calibrated out-of-fold probabilities, by row: computed once a round, or anew when asked if K is wide."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_annot.types import Learner

CACHED_ELEMENTS = 1 << 27  # values of (rows, K) float32 that are kept: 512 MiB; wider tables are computed in chunks


class Predictions:
    """Callable: rows (n,) -> log p(y | x) (n, K), for ``features`` (N, d) with their ``folds`` (N,).

    ``options`` go to the learner's ``log_probability``.
    """

    def __init__(
        self, learner: Learner, features: Tensor, folds: Tensor, cached_elements: int = CACHED_ELEMENTS, **options: int
    ) -> None:
        self._learner, self._features, self._folds, self._options = learner, features, folds, options
        self._most = cached_elements
        self._cache: Tensor | None = None
        self.renew()

    def renew(self) -> None:
        """Predict all rows again, after the learner has changed."""
        self._cache = None
        n_classes = self._compute(torch.arange(1)).shape[1]
        if len(self._features) * n_classes <= self._most:
            self._cache = torch.cat([self._compute(rows) for rows in torch.split(torch.arange(len(self._features)), 1 << 15)])

    def __call__(self, rows: Tensor) -> Tensor:
        return self._compute(rows) if self._cache is None else self._cache[rows]

    def label(self, chunk: int = 1 << 15) -> Tensor:
        """The learner's most probable class of every row, (N,)."""
        return torch.cat([self(rows).argmax(1) for rows in torch.split(torch.arange(len(self._features)), chunk)])

    def _compute(self, rows: Tensor) -> Tensor:
        return self._learner.log_probability(self._features[rows], self._folds[rows], **self._options)
