"""The labelled, pseudo-labelled and unlabelled pools, as row indices with soft targets and class-balanced weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Objective = Literal["labelled", "pseudo", "confident", "mixmatch", "consistency"]
OBJECTIVES: tuple[Objective, ...] = ("labelled", "pseudo", "confident", "mixmatch", "consistency")


@dataclass(frozen=True)
class OwnTargets:
    """What a head learns of an item that nobody has answered: its own p(y | x) times class shares, to the power ``exponent``.

    It learns so only where the largest of these, normalised and without class shares, is above ``above``.
    ``log_share`` (K,): logarithms of the class shares; None: all alike.
    """

    exponent: float = 1.0
    log_share: Tensor | None = None
    above: float = 0.9


@dataclass(frozen=True)
class Pools:
    """Rows of the bank by what is known of them; together they are all rows.

    ``labelled``: prototypes and items with an answer. ``pseudo``: no answer, but some head is sure. ``unlabelled``: the rest.
    ``doubtful`` are those of the labelled whose risk is not low. ``target`` (N, K): what the learner learns, posterior or a
    prototype's clean label; only rows of the first two are used. ``own``: what heads learn of rows without an answer instead.
    """

    labelled: Tensor
    pseudo: Tensor
    unlabelled: Tensor
    doubtful: Tensor
    target: Tensor
    own: OwnTargets = OwnTargets()

    def rows(self, objective: Objective) -> Tensor:
        """Rows that the cross-entropy of ``objective`` learns from."""
        if objective == "pseudo":
            return torch.cat([self.labelled, self.pseudo])
        if objective == "confident":
            sure = self.labelled[~torch.isin(self.labelled, self.doubtful)]
            return torch.cat([sure, self.pseudo])
        return self.labelled


def make_pools(
    target: Tensor, known: Tensor, confident: Tensor, sure: Tensor | None = None, own: OwnTargets = OwnTargets()
) -> Pools:
    """Split the rows of ``target`` (N, K).

    ``known`` (N,) bool has a label or answer, ``confident`` (N,) bool has a low risk, ``sure`` (N,) bool would be learned from
    without an answer (None: the confident).
    """
    sure = confident if sure is None else sure
    return Pools(
        labelled=known.nonzero()[:, 0],
        pseudo=(sure & ~known).nonzero()[:, 0],
        unlabelled=(~sure & ~known).nonzero()[:, 0],
        doubtful=(known & ~confident).nonzero()[:, 0],
        target=target,
        own=own,
    )


def first_pools(prototype: Tensor, n_rows: int, n_classes: int) -> Pools:
    """Before any answer: prototypes are labelled, all other of ``n_rows`` unlabelled; ``prototype`` (N,), -1 elsewhere."""
    known, target = torch.zeros(n_rows, dtype=torch.bool), torch.zeros(n_rows, n_classes)
    rows = (prototype >= 0).nonzero()[:, 0]
    known[rows] = True
    target[rows, prototype[rows]] = 1.0
    return make_pools(target, known, known)


def harden(pools: Pools) -> Pools:
    """The same pools, with all of each row's target on its largest class."""
    target = pools.target
    hard = torch.zeros_like(target).scatter_(1, target.argmax(1, keepdim=True), 1.0)
    return replace(pools, target=hard)


def balanced_weights(target: Tensor, rows: Tensor, chunk: int = 1 << 14) -> Tensor:
    """Weight sum_k q_k / n_k of each row, (n,), where n_k = sum q_k over ``rows``: every class weighs the same.

    A class that nobody has yet (n_k of nothing, or next to it) carries no weight.
    """
    work = torch.promote_types(target.dtype, torch.float32)  # a half-precision posterior is multiplied in single
    mass = torch.zeros(target.shape[1], dtype=torch.float64)
    for part in torch.split(rows, chunk):
        mass += target[part].sum(0, dtype=torch.float64)
    per_class = torch.where(mass > 1e-30, 1.0 / mass, 0.0).to(work)  # below, float32 would make it infinite
    parts = [target[part].to(work) @ per_class for part in torch.split(rows, chunk)]
    return torch.cat(parts) if parts else target.new_empty(0)


def draw(rows: Tensor, weight: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` of ``rows`` with replacement, in proportion to ``weight``; of no rows none, and ``n`` must be 0."""
    if not n:
        return rows[:0]
    # Inverse of the cumulative weights: torch.multinomial refuses more than 2^24 rows and is slower.
    cumulative = weight.double().cumsum(0)
    position = torch.rand(n, generator=generator, dtype=torch.float64) * cumulative[-1]
    return rows[torch.searchsorted(cumulative, position, right=True).clamp(max=len(rows) - 1)]
