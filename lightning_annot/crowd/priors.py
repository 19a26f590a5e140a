"""Dirichlet priors of worker confusions, as pseudo-counts: ``strength`` x a row-normalised mean, one or one a worker."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_annot.types import AnnotError

DENSE_PRIORS = 1 << 27  # entries of (W, K, K); above it workers cannot have priors of their own
EXPERT_ACCURACY, EXPERT_STRENGTH = 0.98, 20.0  # of each row: .90 is two and a half standard deviations off, and can be learned


@dataclass(frozen=True)
class Prior:
    """Pseudo-counts of confusions, looked up by (worker, answer): ``counts`` (K, K) for everybody, (W, K, K) for each, or
    (G, K, K), of which each worker has that of the ``group`` (W,).
    """

    counts: Tensor
    group: Tensor | None = None

    @cached_property
    def _by_answer(self) -> Tensor:
        return self.counts.transpose(-1, -2).reshape(-1, self.counts.shape[-1]).contiguous()

    def rows(self, worker: Tensor, label: Tensor) -> Tensor:
        """Pseudo-counts of pairs ``worker`` (P,), ``label`` (P,) by true class, (P, K)."""
        if self.counts.ndim == 2:
            return self._by_answer[label]
        return self._by_answer[(worker if self.group is None else self.group[worker]) * self.counts.shape[-1] + label]

    def totals(self) -> Tensor:
        """Row sums, (K,) or (W, K)."""
        return self._by_worker(self.counts.sum(-1))

    def diagonal(self) -> Tensor:
        """Pseudo-counts of right answers, (K,) or (W, K)."""
        return self._by_worker(self.counts.diagonal(dim1=-2, dim2=-1))

    def each(self, n_workers: int) -> Tensor:
        """Those of every worker, (W, K, K); dense."""
        return self._by_worker(self.counts).expand(n_workers, -1, -1)

    def sum_over_workers(self, value: Tensor, n_workers: int) -> float:
        """Sum of ``value``, shaped as ``counts``, over all entries and workers, in double precision."""
        if self.group is None:
            return float(value.sum(dtype=torch.float64)) * (n_workers if self.counts.ndim == 2 else 1)
        return float(value.sum((-2, -1), dtype=torch.float64) @ self._sizes(self.group))

    def _by_worker(self, value: Tensor) -> Tensor:
        return value if self.group is None else value[self.group]

    def _sizes(self, group: Tensor) -> Tensor:
        return torch.bincount(group, minlength=len(self.counts)).double()

    def mean(self, of: Tensor | None = None) -> Tensor:
        """Mean of the workers' pseudo-counts, (K, K), or of those in ``of`` (W,) bool."""
        if self.counts.ndim == 2:
            return self.counts
        if self.group is None:
            return (self.counts if of is None else self.counts[of]).mean(0)
        sizes = self._sizes(self.group if of is None else self.group[of])
        return torch.einsum("g,gyz->yz", (sizes / sizes.sum()).to(self.counts), self.counts)


def diagonal_prior(accuracy: Tensor, strength: float) -> Tensor:
    """Pseudo-counts of workers right with ``accuracy`` (..., K) in each class, and otherwise wrong evenly: (..., K, K)."""
    n_classes = accuracy.shape[-1]
    accuracy = accuracy.clamp(0.01, 0.99)  # no answer is impossible
    if accuracy.numel() * n_classes > DENSE_PRIORS:
        raise AnnotError(
            f"priors of {accuracy.numel() // n_classes} workers with {n_classes} classes each do not fit into memory; use "
            "crowd.prior tiered, homogeneous or class."
        )
    even = ((1.0 - accuracy) / (n_classes - 1))[..., None].expand(*accuracy.shape, n_classes)
    return torch.diagonal_scatter(even, accuracy, dim1=-2, dim2=-1) * strength


def homogeneous_prior(
    n_classes: int, accuracy: float = 0.7, strength: float = 10.0, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Pseudo-counts (K, K) of a worker who is right with ``accuracy`` and otherwise errs evenly.

    Each row sums to ``strength``: Liao et al. 2021, supplement, Dir(n_beta alpha) with n_beta = 10 and a diagonal of 0.7.
    """
    if n_classes < 2:
        raise AnnotError(f"{n_classes} class given; a task needs at least 2.")
    if not 0.0 < accuracy < 1.0:
        raise AnnotError(f"prior accuracy {accuracy} given; it must lie between 0 and 1, both excluded.")
    if strength <= 0.0:
        raise AnnotError(f"prior strength {strength} given; it must be above 0 pseudo-counts.")
    alpha = torch.full((n_classes, n_classes), (1.0 - accuracy) / (n_classes - 1), dtype=dtype)
    return alpha.fill_diagonal_(accuracy) * strength


def with_experts(counts: Tensor, expert: Tensor) -> Prior:
    """The prior ``counts``, (K, K) or (W, K, K), where workers who are ``expert`` (W,) bool have one of their own.

    They are right with ``EXPERT_ACCURACY`` in each class, and otherwise wrong evenly; rows sum to ``EXPERT_STRENGTH``.
    """
    if not bool(expert.any()):
        return Prior(counts)
    own = diagonal_prior(counts.new_full((counts.shape[-1],), EXPERT_ACCURACY), EXPERT_STRENGTH)
    if counts.ndim == 2:
        return Prior(torch.stack([counts, own]), expert.long())
    return Prior(torch.where(expert[:, None, None], own, counts))


def rescale_rows(counts: Tensor, strength: float) -> Tensor:
    """Scale positive ``counts`` (..., K, K) so that every row sums to ``strength``."""
    return counts * (strength / counts.sum(-1, keepdim=True))
