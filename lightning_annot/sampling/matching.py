"""Who should answer which item: how much one answer of each worker would lower the item's error."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_annot.sampling.loss import at_stake, loss_reduction

DRAWABLE = 1 << 24  # entries of (W, K, K) above which confusions are not drawn


def information(posterior: Tensor, confusions: Tensor, top: int = 8, cost: Tensor | None = None) -> Tensor:
    """Expected fall of the error of items with ``posterior`` (n, K) from an answer of each worker: (n, W), at least 0.

    sum_z max_y q(y) w_j[y, z] - max_y q(y) with ``confusions`` w (W, K, K). Classes beyond an item's ``top`` most probable ones
    are left out of y and z: exact for K <= top, a lower bound otherwise. A tiny share of E_y w_j[y, y] breaks ties.

    With ``cost`` (K, K) it is the expected fall of the risk, as in ``expected_error_reduction``, and E_y w_j[y, y] counts each
    class y by the largest cost of a mistake about it.
    """
    if cost is not None:
        return _risk_reduction(posterior.to(confusions), confusions, cost.to(confusions), min(top, posterior.shape[1]))
    top = min(top, posterior.shape[1])
    prob, label = posterior.to(confusions).topk(top, dim=1)
    gains = [confusions.new_empty(0, len(confusions))]
    rows = max(1, (1 << 21) // (len(confusions) * top * top))
    for p, y in zip(torch.split(prob, rows), torch.split(label, rows), strict=True):
        joint = _joint(p, y, confusions)
        right = joint.diagonal(dim1=2, dim2=3).sum(2)
        gains.append((joint.amax(2).sum(2) - p[:, :1]).clamp_(min=0.0) + 1e-3 * right)
    return torch.cat(gains)


def _risk_reduction(posterior: Tensor, confusions: Tensor, cost: Tensor, top: int) -> Tensor:
    """``information`` under a cost matrix."""
    n_workers, gains = len(confusions), [confusions.new_empty(0, len(confusions))]
    for part in torch.split(posterior, max(1, (1 << 21) // (n_workers * top * top))):
        p, y, loss = at_stake(part, cost, top)
        joint = _joint(p, y, confusions)
        right = (joint.diagonal(dim1=2, dim2=3) * cost.amax(1)[y][:, None, :]).sum(2)
        fall = loss_reduction(joint.transpose(1, 2).flatten(2), loss).view(len(p), n_workers, top).sum(2)
        gains.append(fall.clamp_(min=0.0) + 1e-3 * right)
    return torch.cat(gains)


def _joint(p: Tensor, y: Tensor, confusions: Tensor) -> Tensor:
    """Probabilities (n, W, true y, answer z) of the classes ``y`` (n, top) of probability ``p`` and of their answers."""
    return p[:, None, :, None] * confusions[:, y[:, :, None], y[:, None, :]].transpose(0, 1)


def draw_confusions(counts: Tensor, generator: torch.Generator) -> Tensor:
    """Confusions (W, K, K) drawn from Dirichlet posteriors with pseudo-counts and ``counts`` (W, K, K) together.

    Thompson sampling: a worker who has said little varies much, and so is tried; one who is known to be poor is not.
    """
    seed = int(torch.randint(1 << 62, (), generator=generator))
    drawn = np.random.default_rng(seed).standard_gamma(counts.numpy().astype(np.float32), dtype=np.float32)
    mass = torch.from_numpy(drawn).clamp_(min=1e-30)
    return mass / mass.sum(2, keepdim=True)
