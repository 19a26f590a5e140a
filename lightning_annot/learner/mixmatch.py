"""The learner's losses, as pure functions over all folds at once.

``use`` (F, B) is True where fold f may learn from row b; each fold averages over its own rows, and folds are summed,
because they share no parameter. ``rows_used`` (F,) is the number of rows that each fold averages over, None for those of
``use``: one of several processes holds a part of the rows alone (``learner/slices.py``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def soft_cross_entropy(logits: Tensor, target: Tensor, use: Tensor, rows_used: Tensor | None = None) -> Tensor:
    """Cross-entropy of ``logits`` (F, B, K) to soft ``target`` (B, K) or (F, B, K), rows sum to 1; a scalar."""
    loss = -(logits.log_softmax(-1) * target).sum(-1)
    return fold_mean(loss, use, rows_used).sum()


def squared_error(logits: Tensor, target: Tensor, use: Tensor, rows_used: Tensor | None = None) -> Tensor:
    """Squared error of softmax(``logits``) (F, B, K) to ``target`` (B, K) or (F, B, K), averaged over classes; a scalar."""
    loss = (logits.softmax(-1) - target).square().mean(-1)
    return fold_mean(loss, use, rows_used).sum()


def consistency(clean: Tensor, view: Tensor, use: Tensor, above: float, rows_used: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits ``view`` (F, B, K) to the class of the logits ``clean`` (F, B, K), where that is sure; a scalar.

    Each fold is its own teacher; a row whose largest probability is not above ``above`` counts as 0 in the mean (FixMatch, Sohn
    et al. 2020, Eq. 4). No gradient goes through ``clean``.
    """
    best, label = clean.detach().softmax(-1).max(-1)
    loss = -view.log_softmax(-1).gather(-1, label[..., None])[..., 0]
    return fold_mean(loss * (best > above), use, rows_used).sum()


def fold_mean(loss: Tensor, use: Tensor, rows_used: Tensor | None = None) -> Tensor:
    """Mean of ``loss`` (F, B) over each fold's own rows, (F,); a fold without rows gives 0."""
    weight = use.to(loss)
    rows_used = weight.sum(1).clamp(min=1.0) if rows_used is None else rows_used
    return (loss * weight).sum(1) / rows_used


def mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """l' first + (1 - l') second with l' = max(l, 1 - l) for ``share`` l (..., B): MixMatch, Eq. 2 of Liao et al. 2021."""
    share = torch.maximum(share, 1.0 - share)[..., None].to(first)
    return share * first + (1.0 - share) * second


def fold_use(n_folds: int, *folds: Tensor) -> Tensor:
    """(F, B) bool: fold f learns from row b only if f is the fold of none of the items that the row is made of.

    Each of ``folds`` is (B,), or (F, B) where every fold has rows of its own.
    """
    index = torch.arange(n_folds, device=folds[0].device)[:, None]
    use = torch.ones(n_folds, folds[0].shape[-1], dtype=torch.bool, device=folds[0].device)
    for fold in folds:
        use &= index != fold
    return use


def windows(rows: Tensor, n_folds: int, share: float) -> Tensor:
    """Overlapping windows (F, m, ...) of a batch ``rows`` (B, ...), one a fold, m = ``share`` of B; views of one array.

    A batch is drawn row by row, so each window is a smaller batch drawn alike; together they use all rows
    of a batch that is not tiny (F^2 rows suffice, at a ``share`` of 2 / F or more).
    """
    n = len(rows)
    if n_folds == 1 or share >= 1.0 or n < n_folds:
        return rows.expand(n_folds, *rows.shape)
    size, step = math.ceil(share * n), n // n_folds
    round_ = torch.cat([rows, rows[:size]])[: (n_folds - 1) * step + size]
    return round_.unfold(0, size, step).movedim(-1, 1)
