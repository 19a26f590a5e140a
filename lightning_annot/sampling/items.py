"""Which items to ask about: scores, candidates, and a stochastic choice without replacement."""

from __future__ import annotations

import torch
from torch import Tensor


def candidates(finished: Tensor, n_asked: Tensor, cap: int, capacity: Tensor | None = None) -> Tensor:
    """Items (n,) that may be asked: unfinished, asked fewer than ``cap`` times, and answerable once more.

    ``finished`` (N,) bool; ``n_asked`` (N,) counts answers, skips and open questions; ``capacity`` (N,) or None.
    """
    allowed = ~finished & (n_asked < cap)
    if capacity is not None:
        allowed &= n_asked < capacity
    return allowed.nonzero()[:, 0]


def expected_error_reduction(posterior: Tensor, confusion: Tensor, top: int = 32) -> Tensor:
    """Expected fall of each item's error from one more answer of an average worker, (N,), at least 0.

    sum_z max_y p(y) c[y, z] - max_y p(y), with ``posterior`` (N, K) and ``confusion`` c (K, K). Classes beyond an item's
    ``top`` most probable ones are left out of both y and z: exact for K <= top, a lower bound otherwise. Streams in chunks.
    """
    n, n_classes = posterior.shape
    top = min(top, n_classes)
    gain = posterior.new_empty(n)
    rows = max(1, (1 << 21) // (top * top))
    for start in range(0, n, rows):
        part = posterior[start : start + rows]
        prob, label = part.topk(top, dim=1)
        joint = prob[:, :, None] * confusion[label[:, :, None], label[:, None, :]].to(part)  # (n, true y, answer z)
        gain[start : start + rows] = (joint.amax(1) - joint[:, 0]).sum(1)
    return gain.clamp_(min=0.0)


def gumbel_top(log_weight: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` distinct rows with probability proportional to ``exp(log_weight)`` (Gumbel top-k); fewer if fewer exist.

    Rows of weight -inf are drawn last, and at random.
    """
    uniform = torch.rand(log_weight.shape, generator=generator, dtype=torch.float64)
    noise = -torch.log(-torch.log(uniform.clamp(1e-300, 1.0 - 1e-16)))
    score = log_weight.double().clamp(min=-1e4) + noise
    return score.topk(min(n, len(score))).indices
