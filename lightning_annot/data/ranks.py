"""The processes of one run that share a piece of work: who this one is, and how it waits for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    return Ranks(trainer.global_rank, trainer.world_size, trainer.num_devices, lambda: trainer.strategy.barrier("features"))


@contextmanager
def peers_explained() -> Iterator[None]:
    """Raise AnnotError where the block fails because another process of the run has stopped, with a message of its own."""
    try:
        yield
    except RuntimeError as error:
        if not _lost_peer(error):
            raise
        reason = str(error).splitlines()[0]
        raise AnnotError(f"another process of this run has stopped; its own message says why ({reason})") from error


def _lost_peer(error: RuntimeError) -> bool:
    """Whether a collective operation lost its connection; Gloo raises plain RuntimeErrors that name its source file."""
    import torch.distributed

    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)
