"""The processes of one run that share a piece of work: who this one is, and how it waits for the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ranks:
    """This process is ``rank`` of ``size``, ``local`` of them on this machine; ``wait`` returns once all have called it."""

    rank: int = 0
    size: int = 1
    local: int = 1
    wait: Callable[[], object] = lambda: None

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of ``rows`` that are this process's, by row number: whoever looks when, nobody does another's."""
        mine: NDArray[np.int64] = rows[rows % self.size == self.rank]
        return mine


ALONE = Ranks()
