"""What the learner is calibrated on: prototypes, or, where a class has none, the answers too."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_annot.data.items import ItemTable

CERTAIN = -30.0  # log p of anything but a prototype's own class: certain, yet finite


def prototypes(table: ItemTable) -> tuple[Tensor, Tensor]:
    """Rows (P,) of the prototypes and their classes (P,)."""
    rows = table.is_prototype.nonzero()[:, 0]
    return rows, table.prototype[rows]


def known_by_answers(table: ItemTable, items: Tensor, log_likelihood: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (P,) and log p(what is known | class) (P, K): of prototypes, and of the other ``items`` (n,), answered, (n, K)."""
    rows, label = prototypes(table)
    certain = torch.full((len(rows), len(table.classes)), CERTAIN, dtype=log_likelihood.dtype)
    certain[torch.arange(len(rows)), label] = 0.0
    other = ~table.is_prototype[items]
    return torch.cat([rows, items[other]]), torch.cat([certain, log_likelihood[other]])
