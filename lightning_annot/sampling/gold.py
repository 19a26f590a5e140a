"""Which prototypes each worker is asked about, so that their skill is known before their answers count."""

from __future__ import annotations

import torch
from torch import Tensor


def gold_questions(
    n: int, prototypes: Tensor, n_workers: int, generator: torch.Generator, possible: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """At most ``n`` of the items ``prototypes`` (P,) for each worker, drawn anew for everybody: items (G,), workers (G,).

    ``possible``: (item, worker) pairs that can be answered, None for all. Fewer possible prototypes mean fewer questions.
    """
    noise = torch.rand(n_workers, len(prototypes), generator=generator)
    if possible is not None:
        item, worker = possible
        size = int(torch.cat([item, prototypes]).max()) + 1
        column = torch.full((size,), -1)
        column[prototypes] = torch.arange(len(prototypes))
        here = (column[item] >= 0) & (worker < n_workers)
        allowed = torch.zeros_like(noise, dtype=torch.bool)
        allowed[worker[here], column[item[here]]] = True
        noise[~allowed] = -1.0
    drawn, at = noise.topk(min(n, len(prototypes)), dim=1)
    workers = torch.arange(n_workers)[:, None].expand_as(at)
    keep = drawn >= 0
    return prototypes[at[keep]], workers[keep]
