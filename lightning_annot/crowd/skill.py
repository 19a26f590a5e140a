"""What is believed of the workers before their answers are counted: pooled, by class, by worker, from gold or from an oracle.

The paper's Figure 4 calls its priors None (one accuracy), A (one a class), B (one a worker) and A+B; here they are
``homogeneous``, ``class``, ``worker`` and ``class_worker``. Every one is a Dirichlet prior whose rows sum to its strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PriorKind = Literal["tiered", "homogeneous", "class", "worker", "class_worker"]
PRIORS: tuple[PriorKind, ...] = ("tiered", "homogeneous", "class", "worker", "class_worker")
PSEUDO_GOLD = 10.0  # gold questions' worth of belief in the coarser estimate


@dataclass(frozen=True)
class Gold:
    """Answers to gold questions: ``worker`` (G,), the item's clean class ``truth`` (G,), and if they are ``right`` (G,)."""

    worker: Tensor
    truth: Tensor
    right: Tensor


def reduce_accuracy(accuracy: Tensor, kind: PriorKind) -> Tensor:
    """Known accuracies (W, K) as far as prior ``kind`` tells them apart: (K,), or (W, K) if it tells workers apart."""
    if kind == "homogeneous":
        return accuracy.mean().expand(accuracy.shape[1])
    if kind == "class":
        return accuracy.mean(0)
    return accuracy.mean(1, keepdim=True).expand(accuracy.shape) if kind == "worker" else accuracy


def gold_accuracy(gold: Gold, kind: PriorKind, n_workers: int, n_classes: int, accuracy: float) -> Tensor:
    """Accuracies estimated from gold answers, (K,) or (W, K); each finer estimate is shrunk to the coarser one.

    One for all, shrunk to ``accuracy``; then one a class and one a worker, shrunk to that; then one for each worker and class,
    shrunk to the product of the two over the first.
    """
    right = gold.right.float()
    pooled = _shrunk(right, torch.zeros_like(gold.worker), 1, torch.tensor([accuracy]))
    by_class = _shrunk(right, gold.truth, n_classes, pooled)
    by_worker = _shrunk(right, gold.worker, n_workers, pooled)
    if kind == "homogeneous":
        return pooled.expand(n_classes)
    if kind == "class":
        return by_class
    if kind == "worker":
        return by_worker[:, None].expand(n_workers, n_classes)
    product = (by_worker[:, None] * by_class / pooled).clamp(0.01, 0.99)
    cell = gold.worker * n_classes + gold.truth
    return _shrunk(right, cell, n_workers * n_classes, product.flatten()).view(n_workers, n_classes)


def _shrunk(right: Tensor, group: Tensor, n: int, towards: Tensor) -> Tensor:
    """Share of ``right`` (G,) in each of ``n`` groups, with ``PSEUDO_GOLD`` answers' worth of ``towards`` (n,) or (1,)."""
    hits = torch.bincount(group, right, minlength=n)
    return (hits + PSEUDO_GOLD * towards) / (torch.bincount(group, minlength=n) + PSEUDO_GOLD)
