"""What one of several processes learns from a batch, such that their mean gradient is that of one process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, distributed

from lightning_annot.learner.mixmatch import windows


@dataclass(frozen=True)
class Slice:
    """The rows ``rank``, ``rank`` + ``world``, ... of every batch, as ``data.batches.RoundBatches`` deals them out.

    A fold's window is taken from the order of the whole batch, so the processes hold different numbers of its rows. Where a
    process holds fewer rows of one window than of another, the window is padded with rows that are not ``present``.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def of_process(cls) -> Slice:
        """The slice of this process."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def windows(self, rows: Tensor, total: int, n_folds: int, share: float) -> Tensor:
        """This process's part (F, m, ...) of each fold's window, out of its ``rows`` (B, ...) of a batch of ``total`` rows."""
        if self.world == 1:
            return windows(rows, n_folds, share)
        place, _ = _parts(total, n_folds, share, self.rank, self.world)
        return rows[place.to(rows.device)]

    def present(self, total: int, n_folds: int, share: float, device: torch.device) -> Tensor:
        """Which rows of ``windows`` are no padding, (F, m) bool, or a scalar True where none are."""
        if self.world == 1:
            return torch.ones((), dtype=torch.bool, device=device)
        return _parts(total, n_folds, share, self.rank, self.world)[1].to(device)

    def rows_used(self, use: Tensor) -> Tensor:
        """Rows (F,) that each fold learns from, the mean over all processes, of which this one has ``use`` (F, m) bool.

        A sum over the rows of a process, divided by this mean, has a gradient whose mean over processes is that of the mean
        over the whole batch. At least 1 row of the whole batch, so that a fold without rows divides by no zero.
        """
        count = use.sum(1).float()  # exact up to 2^24 rows
        if self.world > 1:
            distributed.all_reduce(count)
        return count.clamp(min=1.0) / self.world


@lru_cache(maxsize=8)
def _parts(total: int, n_folds: int, share: float, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """Places (F, m) in a process's slice of the rows of each fold's window, and which of these are no padding, (F, m) bool."""
    window = windows(torch.arange(total), n_folds, share)
    mine = window % world == rank
    most = int(mine.sum(1).max())
    first = (~mine).byte().argsort(dim=1, stable=True)[:, :most]
    present = mine.gather(1, first)
    return (window.gather(1, first) // world).masked_fill(~present, 0), present
