"""Which prototypes each worker is asked about, so that their skill is known, and where these questions stand among others."""

from __future__ import annotations

import torch
from torch import Tensor


def gold_questions(
    n: int | Tensor,
    prototypes: Tensor,
    n_workers: int,
    generator: torch.Generator,
    possible: tuple[Tensor, Tensor] | None = None,
    seen: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """At most ``n``, or ``n`` (W,), of the items ``prototypes`` (P,) for each worker, drawn anew for everybody: items and
    workers, both (G,).

    ``possible``: (item, worker) pairs that can be answered, None for all; ``seen``: pairs that were asked before, which are not
    asked again. Fewer prototypes mean fewer questions.
    """
    noise = torch.rand(n_workers, len(prototypes), generator=generator)
    if possible is not None:
        allowed = torch.zeros_like(noise, dtype=torch.bool)
        allowed[_cells(possible, prototypes, n_workers)] = True
        noise[~allowed] = -1.0
    if seen is not None:
        noise[_cells(seen, prototypes, n_workers)] = -1.0
    most = torch.as_tensor(n).expand(n_workers)
    drawn, at = noise.topk(min(int(most.max()) if n_workers else 0, len(prototypes)), dim=1)
    workers = torch.arange(n_workers)[:, None].expand_as(at)
    keep = (drawn >= 0) & (torch.arange(at.shape[1]) < most[:, None])
    return prototypes[at[keep]], workers[keep]


def gold_to_anyone(n: int, prototypes: Tensor, asked: Tensor, generator: torch.Generator, room: Tensor | None = None) -> Tensor:
    """At most ``n`` of the items ``prototypes`` (P,), each once, first those that come least in ``asked`` (A,), by chance among
    equals; none that comes ``room`` (P,) times.
    """
    times = torch.bincount(asked, minlength=int(prototypes.max()) + 1 if len(prototypes) else 0)[prototypes]
    order = (times + torch.rand(len(times), generator=generator, dtype=torch.float64)).argsort()
    if room is not None:
        order = order[(times < room)[order]]
    return prototypes[order[:n]]


def examples(prototype: Tensor) -> Tensor:
    """Which items (N,) bool are shown as examples, by their clean classes ``prototype`` (N,), -1 for all others: the first
    third of each class's prototypes, and at least one.
    """
    rows = (prototype >= 0).nonzero()[:, 0]
    rows = rows[prototype[rows].argsort(stable=True)]
    count = torch.bincount(prototype[rows])
    place = torch.arange(len(rows)) - (count.cumsum(0) - count)[prototype[rows]]
    shown = torch.zeros_like(prototype, dtype=torch.bool)
    shown[rows[place < (count // 3).clamp(min=1)[prototype[rows]]]] = True
    return shown


def gold_share(worker: Tensor, n_workers: int, rate: float, generator: torch.Generator) -> Tensor:
    """Gold questions for each worker, (W,), so that they are a share ``rate`` of all theirs beside the ``worker`` (n,) of
    ordinary ones: n rate / (1 - rate) on average, rounded up or down by chance.
    """
    wanted = torch.bincount(worker[worker >= 0], minlength=n_workers).double() * (rate / (1.0 - rate))
    more = torch.rand(n_workers, generator=generator, dtype=torch.float64) < wanted - wanted.floor()
    return wanted.floor().long() + more


def interleaved(worker: Tensor, gold_worker: Tensor, generator: torch.Generator) -> Tensor:
    """Order (n + G,) of ordinary questions to ``worker`` (n,) and then gold ones to ``gold_worker`` (G,), in which nothing
    tells them apart: each gold question stands beside a random ordinary one of the same worker, or anywhere if there is none.

    Ordinary questions keep their order, so HITs stay together. Rows of the result count gold questions from n on.
    """
    n, n_gold = len(worker), len(gold_worker)
    by_worker = worker.argsort(stable=True)
    first = torch.searchsorted(worker[by_worker], gold_worker)
    count = torch.searchsorted(worker[by_worker], gold_worker, right=True) - first
    draw = torch.rand(n_gold, 2, generator=generator, dtype=torch.float64)
    beside = by_worker[(first + (draw[:, 0] * count).long()).clamp(max=max(0, n - 1))] if n else gold_worker
    place = torch.where(count > 0, beside + draw[:, 1] - 0.5, draw[:, 0] * n - 0.5)
    return torch.cat([torch.arange(n, dtype=torch.float64), place]).argsort(stable=True)


def _cells(pairs: tuple[Tensor, Tensor], prototypes: Tensor, n_workers: int) -> tuple[Tensor, Tensor]:
    """Row and column of those (item, worker) ``pairs`` that are about ``prototypes`` and the first ``n_workers``."""
    item, worker = pairs
    column = torch.full((int(torch.cat([item, prototypes, item.new_zeros(1)]).max()) + 1,), -1)
    column[prototypes] = torch.arange(len(prototypes))
    here = (column[item] >= 0) & (worker >= 0) & (worker < n_workers)
    return worker[here], column[item[here]]
