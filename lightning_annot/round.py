"""One annotation round, free of Lightning: infer from the facts, then choose what to ask whom.

Everything here is a pure function of the facts, of the learner's probabilities, and of (seed, round).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_annot.crowd.em import EMResult, LogPrior, run_em, run_tiered_em, write_posterior
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.risk import Decision, decide
from lightning_annot.sampling.activelab import activelab, best_first
from lightning_annot.sampling.assignment import Assignment, allowed_workers, assign
from lightning_annot.sampling.items import candidates, expected_error_reduction, gumbel_top
from lightning_annot.types import Annotations, AnnotError

HALF_ABOVE = 1 << 29  # values of (N, K); above it the posterior is kept as float16


@dataclass(frozen=True)
class CrowdSettings:
    """``strength``: pseudo-counts of a worker's confusion row. ``accuracy``: diagonal of the homogeneous prior, which is the
    workers' own prior (``prior: homogeneous``) or that of their pooled confusion (``prior: tiered``).
    """

    prior: Literal["tiered", "homogeneous"] = "tiered"
    accuracy: float = 0.7
    strength: float = 10.0
    m_step: Literal["soft", "hard"] = "soft"
    max_iterations: int = 100
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if self.prior not in ("tiered", "homogeneous"):
            raise AnnotError(f"crowd.prior {self.prior!r} given; allowed are tiered, homogeneous.")


@dataclass(frozen=True)
class SamplingSettings:
    """``per_round``: questions a round. ``cap``: most answers an item. ``items``: how items are drawn among the unfinished.
    ``workers``: how a worker is chosen for each.
    """

    per_round: int = 200
    cap: int = 3
    items: Literal["expected_error_reduction", "uniform", "activelab"] = "expected_error_reduction"
    workers: Assignment = "random"

    def __post_init__(self) -> None:
        if self.per_round < 1 or self.cap < 1:
            raise AnnotError(f"sampling.per_round {self.per_round}, sampling.cap {self.cap} given; both must be at least 1.")
        if self.items not in ("expected_error_reduction", "uniform", "activelab"):
            raise AnnotError(f"sampling.items {self.items!r} given; allowed are expected_error_reduction, uniform, activelab.")
        if self.workers not in ("random", "least_loaded"):
            raise AnnotError(f"sampling.workers {self.workers!r} given; allowed are random, least_loaded.")


@dataclass(frozen=True)
class Facts:
    """What the log says, as indices. Answers (A,): ``item``, ``worker``, ``label`` (-1 for a skip); open questions (Q,):
    ``open_item``, ``open_worker`` (-1 for anyone). ``extra_paid`` counts gold and audit answers.
    """

    workers: tuple[str, ...]
    item: Tensor
    worker: Tensor
    label: Tensor
    open_item: Tensor
    open_worker: Tensor
    extra_paid: int = 0

    def annotations(self) -> Annotations:
        """The labels given, without skips."""
        given = self.label >= 0
        return Annotations(self.item[given], self.worker[given], self.label[given])

    def asked(self, n_items: int) -> Tensor:
        """Answers, skips and open questions of each item, (N,)."""
        return torch.bincount(torch.cat([self.item, self.open_item]), minlength=n_items)


@dataclass(frozen=True)
class Inference:
    """``posterior`` (rows, K) over items and extra rows, its ``decision``, ``finished`` (rows,) bool, and the EM's result."""

    posterior: Tensor
    decision: Decision
    finished: Tensor
    crowd: EMResult


def infer(
    facts: Facts,
    log_prior: LogPrior,
    prototype: Tensor,
    n_rows: int,
    n_classes: int,
    crowd: CrowdSettings,
    threshold: float,
    cost: Tensor | None = None,
) -> Inference:
    """Joint EM over the facts; ``log_prior`` gives the learner's log p(y | x) by row.

    ``prototype`` (N,) is the clean class of a prototype, else -1: their labels are certain. ``threshold`` is C: an item is
    finished if its risk is below it.
    """
    annotations, n_workers = facts.annotations(), max(1, len(facts.workers))
    prior = _with_prototypes(log_prior, prototype, n_classes)
    base = homogeneous_prior(n_classes, crowd.accuracy, crowd.strength)
    options = {"m_step": crowd.m_step, "max_iterations": crowd.max_iterations, "tolerance": crowd.tolerance}
    if crowd.prior == "tiered" and len(annotations):
        result = run_tiered_em(annotations, prior, base, n_workers, strength=crowd.strength, **options)
    else:
        result = run_em(annotations, prior, base, n_workers, **options)  # type: ignore[arg-type]
    # Half precision is exact to 5e-4, and keeps the one array of this size within reach where N x K is vast.
    dtype = torch.float16 if n_rows * n_classes > HALF_ABOVE else torch.float32
    posterior = write_posterior(result, prior, n_rows, torch.empty(n_rows, n_classes, dtype=dtype))
    rows = (prototype >= 0).nonzero()[:, 0]
    posterior[rows] = torch.nn.functional.one_hot(prototype[rows], n_classes).to(posterior)
    decision = decide(posterior, cost)
    return Inference(posterior, decision, decision.risk < threshold, result)


def _with_prototypes(log_prior: LogPrior, prototype: Tensor, n_classes: int) -> LogPrior:
    """``log_prior``, but certain where an item is a prototype (which imported answers may be about)."""
    floor = -30.0  # e^-30: certain, yet finite

    def prior(rows: Tensor) -> Tensor:
        out = log_prior(rows)
        clean = prototype[rows[rows < len(prototype)]]
        at = (clean >= 0).nonzero()[:, 0]
        if len(at):
            out = out.clone()
            position = (rows < len(prototype)).nonzero()[:, 0][at]
            out[position] = floor
            out[position, clean[at]] = 0.0
        return out

    return prior


def round_generator(seed: int, round_: int) -> torch.Generator:
    """The random numbers of one round's choices, a function of (seed, round)."""
    state = int(np.random.SeedSequence((seed, round_, 2)).generate_state(1)[0])
    return torch.Generator().manual_seed(state)


def open_to_questions(inference: Inference, facts: Facts, prototype: Tensor, cap: int, capacity: Tensor | None) -> Tensor:
    """Items that may be asked about once more, (n,): not those whose last question still waits for its answer."""
    n = len(prototype)
    done = inference.finished[:n] | (prototype >= 0)
    done[facts.open_item] = True
    return candidates(done, facts.asked(n), cap, capacity)


def choose(
    inference: Inference,
    facts: Facts,
    among: Tensor,
    n: int,
    n_items: int,
    settings: SamplingSettings,
    generator: torch.Generator,
    possible: tuple[Tensor, Tensor] | None = None,
    askable: int | None = None,
    log_prior: LogPrior | None = None,
) -> tuple[Tensor, Tensor]:
    """At most ``n`` of the items ``among`` and the worker (n,) to ask about each.

    The first ``askable`` workers (None: all) can be asked by name, others have only answered; with 0 it is -1, anyone.
    ``log_prior``: the learner's log p(y | x) by row, which activelab needs.
    """
    if settings.items == "activelab":
        if log_prior is None:
            raise AnnotError("sampling.items activelab needs the learner's log p(y | x); give it as log_prior.")
        score = activelab(facts.annotations(), log_prior(torch.arange(n_items)))[among]
        order = among[best_first(score, n, generator)]
    elif settings.items == "uniform":
        order = among[gumbel_top(torch.zeros(len(among)), n, generator)]
    else:
        confusion = inference.crowd.pooled_confusion()
        weight = expected_error_reduction(inference.posterior, confusion, among).clamp(min=1e-30).log()
        order = among[gumbel_top(weight, n, generator)]
    n_workers = len(facts.workers) if askable is None else askable
    if not n_workers:
        return order, torch.full_like(order, -1)
    asked_item = torch.cat([facts.item, facts.open_item])
    asked_worker = torch.cat([facts.worker, facts.open_worker])
    by_name = (asked_worker >= 0) & (asked_worker < n_workers)
    asked_item, asked_worker = asked_item[by_name], asked_worker[by_name]
    allowed = allowed_workers(order, n_items, n_workers, asked_item, asked_worker, possible)
    load = torch.bincount(asked_worker, minlength=n_workers)
    return assign(order, allowed, load, generator, settings.workers)
