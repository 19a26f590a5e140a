"""What to ask next, and whom: a pure function of what a round goes by, of what it infers, and of (seed, round)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_annot.round.facts import Basis
from lightning_annot.round.inference import Inference
from lightning_annot.round.settings import SamplingSettings
from lightning_annot.sampling.activelab import activelab, best_first
from lightning_annot.sampling.assignment import SCORED, allowed_workers, assign, assign_hits
from lightning_annot.sampling.items import candidates, expected_error_reduction, gumbel_top
from lightning_annot.sampling.matching import DRAWABLE, draw_confusions, information
from lightning_annot.sampling.price import per_price

DRAWS = 8  # of the workers' confusions in a round that explores


def round_generator(seed: int, round_: int) -> torch.Generator:
    """The random numbers of one round's choices, a function of (seed, round)."""
    state = int(np.random.SeedSequence((seed, round_, 2)).generate_state(1)[0])
    return torch.Generator().manual_seed(state)


def open_to_questions(
    basis: Basis, inference: Inference, cap: int, capacity: Tensor | None, barred: Tensor | None = None
) -> Tensor:
    """Items that may be asked about once more.

    Args:
        basis: What the round goes by, with all facts.
        inference: What is believed after it.
        cap: Most questions an item, without those that workers who are ``barred`` have answered.
        capacity: (N,) most questions that each item can have at all, those included; None: no limit.
        barred: (W,) bool, workers who are not believed; None: nobody.

    Returns:
        Rows (n,) of unfinished items, less those whose last question still waits for its answer, and those that an expert
        has seen.
    """
    n, facts = len(basis.prototype), basis.facts
    believed = facts if barred is None else facts.without(barred)
    done = inference.finished[:n] | (basis.prototype >= 0)
    done[facts.open_item] = True
    done[believed.expert_items()] = True
    if capacity is not None:
        done |= facts.asked(n) >= capacity
    return candidates(done, believed.asked(n), cap)


def refilled(
    basis: Basis, inference: Inference, among: Tensor, settings: SamplingSettings, capacity: Tensor | None = None
) -> Tensor:
    """The items ``among``; where they are fewer than a round asks, but not none, finished ones too, riskiest first.

    ``capacity`` (N,) as in ``open_to_questions``.
    """
    lacking = settings.per_round - len(among)
    if not settings.refill or lacking <= 0 or not len(among):
        return among
    n = len(basis.prototype)
    not_spare = ~inference.finished[:n] | (basis.prototype >= 0)
    not_spare[basis.facts.open_item] = True
    rows = candidates(not_spare, basis.facts.asked(n), settings.most, capacity)
    riskiest = inference.decision.risk[rows].argsort(descending=True, stable=True)
    return torch.cat([among, rows[riskiest[:lacking]]])


@dataclass(frozen=True)
class Panel:
    """Who can be asked by name: the first ``size`` workers of the facts (None: all); with 0, questions go to anyone.

    ``possible``: (item, worker) pairs that can be answered, None for all. ``price`` (W,): what an answer of each worker costs,
    where greedy and information are to mind it. ``barred`` (W,) bool: who is not asked.
    """

    size: int | None = None
    possible: tuple[Tensor, Tensor] | None = None
    price: Tensor | None = None
    barred: Tensor | None = None


def choose(
    basis: Basis,
    inference: Inference,
    among: Tensor,
    n: int,
    settings: SamplingSettings,
    generator: torch.Generator,
    panel: Panel = Panel(),
    cost: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """At most ``n`` of the items ``among`` and the worker (n,) of the ``panel`` to ask about each; -1 is anyone.

    ``cost`` (K, K) as in ``infer``: what mistakes cost, None for one each.
    """
    # A HIT is filled with what its worker has not seen, so there is more to choose from than will be asked.
    order = _order(basis, inference, among, n if settings.hit_size == 1 else 2 * n, settings, generator, cost)
    n_workers = len(basis.facts.workers) if panel.size is None else panel.size
    if not n_workers:
        return order[:n], torch.full_like(order[:n], -1)
    asked_item, asked_worker = basis.facts.asked_pairs()
    by_name = (asked_worker >= 0) & (asked_worker < n_workers)
    asked_item, asked_worker = asked_item[by_name], asked_worker[by_name]
    allowed = allowed_workers(order, len(basis.prototype), n_workers, asked_item, asked_worker, panel.possible)
    if panel.barred is not None:
        allowed &= ~panel.barred[:n_workers]
    load = torch.bincount(asked_worker, minlength=n_workers)
    reliability = None
    if settings.workers in SCORED:
        reliability, chance = _worker_score(inference, order, n_workers, settings, generator, cost)
        if panel.price is not None:
            reliability = per_price(reliability, panel.price[:n_workers], chance)
    if settings.hit_size > 1:
        return assign_hits(
            order, allowed, load, generator, settings.hit_size, n, settings.workers, reliability, settings.worker_cap
        )
    return assign(order, allowed, load, generator, settings.workers, reliability, settings.worker_cap, settings.worker_share)


def _worker_score(
    inference: Inference,
    order: Tensor,
    n_workers: int,
    settings: SamplingSettings,
    generator: torch.Generator,
    cost: Tensor | None,
) -> tuple[Tensor, float]:
    """What each of ``n_workers`` is worth for each item of ``order``, (n, W), and what a guess is worth."""
    posterior, crowd = inference.posterior[order].float(), inference.crowd
    n_classes = posterior.shape[1]
    if settings.workers == "greedy" or n_workers * n_classes**2 > DRAWABLE:
        if settings.workers == "information" and cost is not None:
            at_stake = posterior * cost.amax(1).to(posterior)  # classes count by what a mistake about them costs
            posterior = at_stake / at_stake.sum(1, keepdim=True).clamp(min=1e-30)
        return posterior @ crowd.diagonal()[:n_workers].float().T, 1.0 / n_classes
    counts = crowd.all_counts()[:n_workers].float()
    if not settings.explore:
        return information(posterior, counts / counts.sum(2, keepdim=True), cost=cost), 0.0
    parts = posterior.tensor_split(max(1, min(DRAWS, len(order))))
    return torch.cat([information(part, draw_confusions(counts, generator), cost=cost) for part in parts]), 0.0


def _order(
    basis: Basis,
    inference: Inference,
    among: Tensor,
    n: int,
    settings: SamplingSettings,
    generator: torch.Generator,
    cost: Tensor | None,
) -> Tensor:
    """At most ``n`` of the items ``among``, first those to ask first."""
    if settings.items == "activelab":
        score = activelab(basis.facts.annotations(), basis.log_prior(torch.arange(len(basis.prototype))))[among]
        return among[best_first(score, n, generator)]
    weight = torch.zeros(len(among))
    if settings.items == "expected_error_reduction":
        confusion = inference.crowd.pooled_confusion(apart=basis.facts.is_expert())
        gain = expected_error_reduction(inference.posterior, confusion, among, cost=cost)
        weight = settings.sharpness * gain.clamp(min=1e-30).log()
    return among[gumbel_top(weight, n, generator)]
