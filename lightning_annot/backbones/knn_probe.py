"""How well features tell classes apart, by the few images whose class is known: each is named by its nearest others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

CHUNK = 1024


def leave_one_out_knn(features: Tensor, label: Tensor, neighbours: int = 5, temperature: float = 0.1) -> Tensor:
    """Share of rows whose nearest other rows vote for their ``label`` (n,), a scalar; ``features`` (n, D), n at least 2.

    The ``neighbours`` most alike by the cosine s vote with the weight exp(s / ``temperature``) (Wu et al., CVPR 2018,
    Section 3.4); of equal votes the lowest class counts.
    """
    rows, label = normalize(features.float(), dim=1), label.long()
    kinds = one_hot(label).to(rows)
    right = rows.new_zeros(())
    for part in torch.split(torch.arange(len(rows), device=rows.device), CHUNK):
        alike = rows[part] @ rows.T
        alike[torch.arange(len(part), device=rows.device), part] = -torch.inf
        near, which = alike.topk(min(neighbours, len(rows) - 1), dim=1)
        votes = ((near / temperature).exp()[:, :, None] * kinds[which]).sum(1)
        right += (votes.argmax(1) == label[part]).sum()
    return right / len(rows)
