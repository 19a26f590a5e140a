"""The processes of one run that share a piece of work: who this one is, and how it waits for the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_annot.types import AnnotError


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


def trainer_ranks(trainer: Any) -> Ranks:
    """The processes of a Trainer, each with its device; None: this one alone."""
    if trainer is None or trainer.world_size == 1:
        return ALONE

    def wait() -> None:
        try:
            trainer.strategy.barrier("features")
        except RuntimeError as error:  # whoever stopped first, with a message of its own, closed the connection
            raise AnnotError(f"another process of this run has stopped; its own message says why ({error})") from error

    return Ranks(trainer.global_rank, trainer.world_size, trainer.num_devices, wait)
