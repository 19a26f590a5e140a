"""Neighbours among reference rows: one step of a simple graph convolution (Wu et al. 2019), bounded for any number of rows."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

ITSELF = 1e-2  # distance of unit vectors below which a neighbour is the row itself, stored in half precision
LONG = 1 << 32  # pairs of a row and a reference row; more take above half a minute

logger = logging.getLogger(__name__)


class NeighbourMean:
    """Callable: rows (n, d) -> the mean of each one's ``k`` nearest rows of ``reference`` (R, d) by cosine, (n, d).

    A row that is itself among the references is not its own neighbour, so that it is treated as a new row would be.
    """

    def __init__(self, reference: Tensor, k: int) -> None:
        from sklearn.neighbors import NearestNeighbors

        self._reference, self._k = reference.float(), k
        self._search = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(normalize(self._reference).numpy())

    def announce(self, n_rows: int) -> None:
        """Say that ``n_rows`` rows will take long, if they will."""
        if n_rows * len(self._reference) > LONG:
            logger.warning("looking for %d neighbours of %d rows among %d", self._k, n_rows, len(self._reference))

    def __call__(self, rows: Tensor) -> Tensor:
        distance, index = (torch.from_numpy(found) for found in self._search.kneighbors(normalize(rows).numpy()))
        # Among unit vectors the order of Euclidean distances is that of cosines, and far faster to find.
        first = (distance[:, :1] < ITSELF).long()
        return embedding_bag(index.gather(1, first + torch.arange(self._k)), self._reference, mode="mean")
