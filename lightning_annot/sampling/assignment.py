"""Which worker answers which item: never the same worker twice on an item."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Assignment = Literal["random", "least_loaded", "greedy", "information"]
ASSIGNMENTS: tuple[Assignment, ...] = ("random", "least_loaded", "greedy", "information")

SCORED: tuple[Assignment, ...] = ("greedy", "information")  # rules that rank workers by a score of each item and worker


def assign(
    items: Tensor,
    allowed: Tensor,
    load: Tensor,
    generator: torch.Generator,
    rule: Assignment = "random",
    reliability: Tensor | None = None,
    cap: int | None = None,
    share: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Give each of ``items`` (n,) one worker out of its row of ``allowed`` (n, W) bool.

    ``load`` (W,): questions each worker has had. ``random`` draws evenly; ``least_loaded`` evens out the loads, by filling them
    up to one level and handing the places out at random; ``greedy`` and ``information`` take the largest ``reliability``
    (n, W): E_{y ~ posterior} w_j[y, y] (Liao et al. 2021, Eq. 1), or sampling/matching.py. Nobody gets more than ``cap``
    questions in all, which is Eq. 1's only limit. Under information, nobody gets more than ``share`` of the items while others
    may take them: of one worker's answers alone, no crowd model can tell systematic mistakes. Returns the items that some
    worker may answer, and their workers.
    """
    score = _score(allowed, load, generator, rule, reliability).masked_fill(~allowed, -torch.inf)
    room = torch.full_like(load, len(items)) if cap is None else (cap - load).clamp(min=0)
    first = room if share is None or rule != "information" else room.clamp(max=_most(share, len(items), len(load)))
    worker = best_with_room(score, first)
    left = (worker < 0).nonzero()[:, 0]
    if len(left):
        room = room - torch.bincount(worker[worker >= 0], minlength=len(room))
        worker[left] = best_with_room(score[left], room)
    keep = worker >= 0
    return items[keep], worker[keep]


def _most(share: float, n: int, n_workers: int) -> int:
    """Most of ``n`` questions that one worker gets: ``share`` of them, and at least twice an even share."""
    return math.ceil(max(share, 2.0 / n_workers) * n)


def assign_hits(
    items: Tensor,
    allowed: Tensor,
    load: Tensor,
    generator: torch.Generator,
    hit_size: int,
    n: int,
    rule: Assignment = "random",
    reliability: Tensor | None = None,
    cap: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Bundle ``items``, in their order, into HITs of ``hit_size`` for one worker each, until ``n`` questions are placed.

    A worker gets a second HIT only once everybody who may has one, and none that would exceed ``cap``. ``greedy`` chooses the
    worker by the mean ``reliability`` over the next items; the HIT then holds the first items which that worker is ``allowed``.
    """
    left, load, hits = torch.ones(len(items), dtype=torch.bool), load.clone(), torch.zeros_like(load)
    rows, workers, placed = [], [], 0
    while placed < n and bool(left.any()):
        size = min(hit_size, n - placed)
        can = (allowed & left[:, None]).any(0)
        if cap is not None:
            can &= load + size <= cap
        if not bool(can.any()):
            break
        merit = torch.rand(len(load), generator=generator) - 1e6 * hits
        if rule in SCORED:
            assert reliability is not None
            merit = 1e-6 * merit + reliability[left.nonzero()[:size, 0]].mean(0)  # ties by chance
        elif rule == "least_loaded":
            merit -= 2.0 * load
        worker = int(merit.masked_fill(~can, -torch.inf).argmax())
        hit = (left & allowed[:, worker]).nonzero()[:size, 0]
        left[hit] = False
        load[worker] += len(hit)
        hits[worker] += 1
        rows.append(hit)
        workers.append(torch.full_like(hit, worker))
        placed += len(hit)
    nothing = items.new_empty(0)
    return items[torch.cat([nothing, *rows])], torch.cat([nothing, *workers])


def best_with_room(score: Tensor, room: Tensor) -> Tensor:
    """Best worker (n,) of each row of ``score`` (n, W), in the order of the rows, while ``room`` (W,) lasts; -1 for none.

    All rows choose at once; those before the first that finds its worker full are settled, that worker is taken out, and the
    others choose again: at most W + 1 passes.
    """
    if not score.shape[1]:
        return torch.full((len(score),), -1)
    score = score.masked_fill(room <= 0, -torch.inf)
    room, worker, start = room.clone(), torch.full((len(score),), -1), 0
    while start < len(score):
        best, choice = score[start:].max(1)
        rank = _rank_within(choice)
        full = ((rank >= room[choice]) & (best > -torch.inf)).nonzero()
        stop = start + int(full[0]) if len(full) else len(score)
        settled = choice[: stop - start].masked_fill(best[: stop - start] == -torch.inf, -1)
        worker[start:stop] = settled
        room -= torch.bincount(settled[settled >= 0], minlength=len(room))
        score[:, room <= 0] = -torch.inf
        start = stop
    return worker


def _score(allowed: Tensor, load: Tensor, generator: torch.Generator, rule: Assignment, reliability: Tensor | None) -> Tensor:
    """What the rule prefers, (n, W); larger is better."""
    noise = torch.rand(allowed.shape, generator=generator)
    if rule in SCORED:
        assert reliability is not None
        return reliability + 1e-6 * noise  # ties by chance
    asked = allowed.any(0).nonzero()[:, 0]  # whoever is not asked any more takes no place
    if rule == "least_loaded" and len(asked):
        places = asked[_least_loaded(load[asked], len(noise))]
        places = places[torch.randperm(len(places), generator=generator)]
        # The place handed out wins where allowed, then whoever has the lowest load, then chance.
        noise -= load.double()[None, :] * 2.0
        noise[torch.arange(len(noise)), places] = torch.inf
    return noise


def _rank_within(choice: Tensor) -> Tensor:
    """How many rows before each one made the same ``choice`` (n,), (n,)."""
    order = torch.argsort(choice, stable=True)
    counts = torch.bincount(choice)
    first = (counts.cumsum(0) - counts)[choice[order]]
    rank = torch.empty_like(choice)
    rank[order] = torch.arange(len(choice)) - first
    return rank


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
