"""The learner's losses, as pure functions over all folds at once.

``use`` (F, B) is True where fold f may learn from row b; each fold averages over its own rows, and folds are summed,
because they share no parameter.
"""

from __future__ import annotations

import torch
from torch import Tensor


def soft_cross_entropy(logits: Tensor, target: Tensor, use: Tensor) -> Tensor:
    """Cross-entropy of ``logits`` (F, B, K) to soft ``target`` (B, K), rows sum to 1; a scalar."""
    loss = -(logits.log_softmax(-1) * target).sum(-1)
    return fold_mean(loss, use).sum()


def squared_error(logits: Tensor, target: Tensor, use: Tensor) -> Tensor:
    """Squared error of softmax(``logits``) (F, B, K) to ``target`` (B, K), averaged over classes; a scalar."""
    loss = (logits.softmax(-1) - target).square().mean(-1)
    return fold_mean(loss, use).sum()


def fold_mean(loss: Tensor, use: Tensor) -> Tensor:
    """Mean of ``loss`` (F, B) over each fold's own rows, (F,); a fold without rows gives 0."""
    weight = use.to(loss)
    return (loss * weight).sum(1) / weight.sum(1).clamp(min=1.0)


def mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """l' first + (1 - l') second with l' = max(l, 1 - l) for ``share`` l (B,): MixMatch, Eq. 2 of Liao et al. 2021."""
    share = torch.maximum(share, 1.0 - share)[:, None].to(first)
    return share * first + (1.0 - share) * second


def fold_use(n_folds: int, *folds: Tensor) -> Tensor:
    """(F, B) bool: fold f learns from row b only if f is the fold of none of the items that the row is made of."""
    index = torch.arange(n_folds, device=folds[0].device)[:, None]
    use = torch.ones(n_folds, len(folds[0]), dtype=torch.bool, device=folds[0].device)
    for fold in folds:
        use &= index != fold
    return use
