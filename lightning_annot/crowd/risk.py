"""Risk of deciding now: the expected loss of the best decision under the posterior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_annot.types import AnnotError


@dataclass(frozen=True)
class Decision:
    """``label`` (N,) int64 with the least expected loss, ``risk`` (N,) that loss, ``confidence`` (N,) its probability."""

    label: Tensor
    risk: Tensor
    confidence: Tensor


def decide(posterior: Tensor, cost: Tensor | None = None) -> Decision:
    """Choose each item's label from ``posterior`` (N, K).

    Without ``cost`` the loss is zero-one: risk = 1 - max posterior (Liao et al. 2021, Section 3). With ``cost`` (K, K),
    row = true class, column = decided class, risk = min_d sum_y posterior[y] cost[y, d].
    """
    if cost is None:
        confidence, label = posterior.max(1)
        confidence = confidence if posterior.dtype == torch.float64 else confidence.float()
        return Decision(label, 1.0 - confidence, confidence)
    check_cost(cost, posterior.shape[1])
    risk, label = (posterior @ cost.to(posterior)).min(1)
    return Decision(label, risk, posterior.gather(1, label[:, None])[:, 0])


def check_cost(cost: Tensor, n_classes: int) -> None:
    """Raise AnnotError unless ``cost`` is a finite, non-negative (K, K) matrix with a zero diagonal."""
    if cost.shape != (n_classes, n_classes):
        raise AnnotError(f"cost matrix of shape {tuple(cost.shape)} given; {n_classes} classes need {n_classes} x {n_classes}.")
    if not bool(torch.isfinite(cost).all()) or bool((cost < 0).any()) or bool((cost.diagonal() != 0).any()):
        raise AnnotError("cost matrix given with a negative, infinite or non-zero diagonal entry; being right costs 0.")
