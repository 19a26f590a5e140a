"""Who should answer which item: how much one answer of each worker would lower the item's error."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DRAWABLE = 1 << 24  # entries of (W, K, K) above which confusions are not drawn


def information(posterior: Tensor, confusions: Tensor, top: int = 8) -> Tensor:
    """Expected fall of the error of items with ``posterior`` (n, K) from an answer of each worker: (n, W), at least 0.

    sum_z max_y q(y) w_j[y, z] - max_y q(y) with ``confusions`` w (W, K, K). Classes beyond an item's ``top`` most probable ones
    are left out of y and z: exact for K <= top, a lower bound otherwise. A tiny share of E_y w_j[y, y] breaks ties.
    """
    top = min(top, posterior.shape[1])
    prob, label = posterior.to(confusions).topk(top, dim=1)
    gains = [confusions.new_empty(0, len(confusions))]
    rows = max(1, (1 << 21) // (len(confusions) * top * top))
    for p, y in zip(torch.split(prob, rows), torch.split(label, rows), strict=True):
        joint = p[:, None, :, None] * confusions[:, y[:, :, None], y[:, None, :]].transpose(0, 1)  # (n, W, true y, answer z)
        right = joint.diagonal(dim1=2, dim2=3).sum(2)
        gains.append((joint.amax(2).sum(2) - p[:, :1]).clamp_(min=0.0) + 1e-3 * right)
    return torch.cat(gains)


def draw_confusions(counts: Tensor, generator: torch.Generator) -> Tensor:
    """Confusions (W, K, K) drawn from Dirichlet posteriors with pseudo-counts and ``counts`` (W, K, K) together.

    Thompson sampling: a worker who has said little varies much, and so is tried; one who is known to be poor is not.
    """
    seed = int(torch.randint(1 << 62, (), generator=generator))
    drawn = np.random.default_rng(seed).standard_gamma(counts.numpy().astype(np.float32), dtype=np.float32)
    mass = torch.from_numpy(drawn).clamp_(min=1e-30)
    return mass / mass.sum(2, keepdim=True)
