"""What the answers say of each item's class, whatever the learner says: for calibration where no label is certain."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_annot.crowd.em import EMResult

MOST_ELEMENTS = 1 << 21  # values of (items, K): 210,000 items of 10 classes, 2,100 of 1,000


def answer_evidence(result: EMResult, generator: torch.Generator, most_elements: int = MOST_ELEMENTS) -> tuple[Tensor, Tensor]:
    """Answered items (n,) and log prod_j w_j[y, z_ij] of each one's answers by class y, (n, K).

    Of more than ``most_elements`` / K items a sample is drawn by ``generator``.
    """
    inc = result.incidence
    n = len(inc.items)
    chosen = torch.randperm(n, generator=generator)[: max(1, most_elements // inc.n_classes)].sort().values
    rows = [result.prior.counts.new_empty(0, inc.n_classes)]
    for chunk in inc.chunks:
        here = chosen[(chosen >= chunk.start) & (chosen < chunk.stop)]
        rows.append(result.log_likelihood(chunk)[here - chunk.start])
    return inc.items[chosen], torch.cat(rows)
