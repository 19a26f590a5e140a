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
    """Pseudo-counts of confusions, looked up by (worker, answer): ``counts`` (K, K) for everybody, or (W, K, K)."""

    counts: Tensor

    @cached_property
    def _by_answer(self) -> Tensor:
        return self.counts.transpose(-1, -2).reshape(-1, self.counts.shape[-1]).contiguous()

    def rows(self, worker: Tensor, label: Tensor) -> Tensor:
        """Pseudo-counts of pairs ``worker`` (P,), ``label`` (P,) by true class, (P, K)."""
        return self._by_answer[label if self.counts.ndim == 2 else worker * self.counts.shape[-1] + label]

    def totals(self) -> Tensor:
        """Row sums, (K,) or (W, K)."""
        return self.counts.sum(-1)

    def mean(self, of: Tensor | None = None) -> Tensor:
        """Mean of the workers' pseudo-counts, (K, K), or of those in ``of`` (W,) bool."""
        if self.counts.ndim == 2:
            return self.counts
        return (self.counts if of is None else self.counts[of]).mean(0)


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


def with_experts(counts: Tensor, expert: Tensor) -> Tensor:
    """Pseudo-counts ``counts``, (K, K) or (W, K, K), where workers who are ``expert`` (W,) bool have a prior of their own.

    They are right with ``EXPERT_ACCURACY`` in each class, and otherwise wrong evenly; rows sum to ``EXPERT_STRENGTH``. Without
    an expert ``counts`` is returned as it is, else (W, K, K).
    """
    if not bool(expert.any()):
        return counts
    n_workers, n_classes = len(expert), counts.shape[-1]
    check_experts_fit(n_workers, n_classes)
    own = diagonal_prior(counts.new_full((n_classes,), EXPERT_ACCURACY), EXPERT_STRENGTH)
    return torch.where(expert[:, None, None], own, counts)


def check_experts_fit(n_workers: int, n_classes: int) -> None:
    """AnnotError where priors of single workers, which an expert needs, are too large."""
    if n_workers * n_classes**2 > DENSE_PRIORS:
        raise AnnotError(
            f"an expert among {n_workers} workers, with {n_classes} classes, needs a prior for each worker, which does not fit "
            f"into memory; at most {DENSE_PRIORS // n_classes**2} workers are possible. Import the answers by --worker instead "
            "of --expert."
        )


def rescale_rows(counts: Tensor, strength: float) -> Tensor:
    """Scale positive ``counts`` (..., K, K) so that every row sums to ``strength``."""
    return counts * (strength / counts.sum(-1, keepdim=True))
