"""Dirichlet priors of worker confusions, as pseudo-counts: ``strength`` x a row-normalised (K, K) mean."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_annot.types import AnnotError


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


def rescale_rows(counts: Tensor, strength: float) -> Tensor:
    """Scale positive ``counts`` (..., K, K) so that every row sums to ``strength``."""
    return counts * (strength / counts.sum(-1, keepdim=True))
