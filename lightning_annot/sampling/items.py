"""Which items to ask about: scores, candidates, and a stochastic choice without replacement."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_annot.sampling.loss import at_stake, loss_reduction

ItemRule = Literal["expected_error_reduction", "uniform", "activelab"]
ITEM_RULES: tuple[ItemRule, ...] = ("expected_error_reduction", "uniform", "activelab")


def candidates(done: Tensor, n_asked: Tensor, cap: int, capacity: Tensor | None = None) -> Tensor:
    """Items (n,) that may be asked: not ``done``, asked fewer than ``cap`` times, and answerable once more.

    ``done`` (N,) bool; ``n_asked`` (N,) counts answers, skips and open questions; ``capacity`` (N,) or None.
    """
    allowed = ~done & (n_asked < cap)
    if capacity is not None:
        allowed &= n_asked < capacity
    return allowed.nonzero()[:, 0]


def expected_error_reduction(
    posterior: Tensor, confusion: Tensor, rows: Tensor | None = None, top: int = 32, cost: Tensor | None = None
) -> Tensor:
    """Expected fall of the error of ``rows`` (n,), default all, from one more answer of an average worker: (n,), at least 0.

    sum_z max_y p(y) c[y, z] - max_y p(y), with ``posterior`` (N, K) and ``confusion`` c (K, K). Classes beyond an item's
    ``top`` most probable ones are left out of both y and z: exact for K <= top, a lower bound otherwise. Streams in chunks.

    With ``cost`` C (K, K), row = true class, column = decided class, it is the expected fall of the risk: min_d sum_y p(y)
    C[y, d] - sum_z min_d sum_y p(y) c[y, z] C[y, d], over the classes and decisions of ``at_stake``; exact for K <= top.
    """
    rows = torch.arange(len(posterior)) if rows is None else rows
    top = min(top, posterior.shape[1])
    confusion = confusion.to(torch.promote_types(posterior.dtype, confusion.dtype))
    gains = [confusion.new_empty(0)]
    for part in torch.split(rows, max(1, (1 << 21) // (top * top))):
        if cost is None:
            prob, label = posterior[part].to(confusion).topk(top, dim=1)
        else:
            prob, label, loss = at_stake(posterior[part].to(confusion), cost, top)
        joint = prob[:, :, None] * confusion[label[:, :, None], label[:, None, :]]  # (n, true y, answer z)
        gains.append((joint.amax(1) - joint[:, 0] if cost is None else loss_reduction(joint, loss)).sum(1))
    return torch.cat(gains).clamp_(min=0.0)


def gumbel_top(log_weight: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` distinct rows with probability proportional to ``exp(log_weight)`` (Gumbel top-k); fewer if fewer exist.

    Rows of weight -inf are drawn last, and at random.
    """
    uniform = torch.rand(log_weight.shape, generator=generator, dtype=torch.float64)
    noise = -torch.log(-torch.log(uniform.clamp(1e-300, 1.0 - 1e-16)))
    score = log_weight.double().clamp(min=-1e4) + noise
    return score.topk(min(n, len(score))).indices
