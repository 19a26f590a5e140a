"""Which worker answers which item: never the same worker twice on an item."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Assignment = Literal["random", "least_loaded"]


def assign(
    items: Tensor,
    allowed: Tensor,
    load: Tensor,
    generator: torch.Generator,
    rule: Assignment = "random",
) -> tuple[Tensor, Tensor]:
    """Give each of ``items`` (n,) one worker out of its row of ``allowed`` (n, W) bool.

    ``load`` (W,): questions each worker has had. ``random`` draws evenly; ``least_loaded`` evens out the loads, by filling them
    up to one level and handing the places out at random. Returns the items that some worker may answer, and their workers.
    """
    noise = torch.rand(allowed.shape, generator=generator)
    if rule == "least_loaded":
        places = _least_loaded(load, len(items))
        places = places[torch.randperm(len(places), generator=generator)]
        # The place handed out wins where allowed, then whoever has the lowest load, then chance.
        noise -= load.double()[None, :] * 2.0
        noise[torch.arange(len(items)), places] = torch.inf
    worker = noise.masked_fill(~allowed, -torch.inf).argmax(1)
    keep = allowed.any(1)
    return items[keep], worker[keep]


def allowed_workers(
    items: Tensor,
    n_items: int,
    n_workers: int,
    asked_item: Tensor,
    asked_worker: Tensor,
    possible: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """(n, W) bool: worker j has not been asked item i, and may answer it at all.

    ``asked_item``, ``asked_worker`` (Q,): all questions so far; ``possible``: (item, worker) pairs that can be answered, None
    for all.
    """
    local = torch.full((n_items,), -1)
    local[items] = torch.arange(len(items))
    if possible is None:
        allowed = torch.ones(len(items), n_workers, dtype=torch.bool)
    else:
        allowed = torch.zeros(len(items), n_workers, dtype=torch.bool)
        here = local[possible[0]] >= 0
        allowed[local[possible[0][here]], possible[1][here]] = True
    here = (local[asked_item] >= 0) & (asked_worker >= 0)
    allowed[local[asked_item[here]], asked_worker[here]] = False
    return allowed


def _least_loaded(load: Tensor, n: int) -> Tensor:
    """Workers of the ``n`` lowest places, when each worker's places are numbered load, load + 1, ..."""
    n_workers = len(load)
    most = int(-(-n // n_workers)) + int(load.max() - load.min())
    level = load[:, None] + torch.arange(most)[None, :]
    worker = torch.arange(n_workers)[:, None].expand(-1, most)
    order = level.flatten().argsort(stable=True)[:n]
    return worker.flatten()[order]
