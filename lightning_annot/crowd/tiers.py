"""Two tiers of the crowd model: a confusion for all workers and class shares, then a confusion for each worker."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lightning_annot.crowd.em import (
    PLAIN,
    EMResult,
    LogPrior,
    answer_weight,
    check_em,
    renewed_counts,
    run_em,
    with_class_prior,
)
from lightning_annot.crowd.incidence import Incidence, build_incidence
from lightning_annot.crowd.pooled import MOST_ELEMENTS, PSEUDO_ITEMS, START, Rivals, fit_shares, pair_counts, shrunk_confusion
from lightning_annot.crowd.priors import Prior, homogeneous_prior, rescale_rows, with_experts
from lightning_annot.crowd.strength import TYPICAL, learn_strength
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.types import Annotations

Shares = Literal["none", "compared", "used"]
"""Whether class shares are learned, and whether the posterior goes by them."""


def run_tiered_em(
    annotations: Annotations,
    log_prior: LogPrior | Tensor,
    pseudo_counts: Tensor,
    n_workers: int,
    *,
    strength: float | None = None,
    expert: Tensor | None = None,
    shares: Shares = "none",
    **options: object,
) -> EMResult:
    """Two tiers (after Branson et al. 2017): first one confusion for all workers, then one each, shrunk to the first.

    The first (crowd/pooled.py) begins with the accuracy of ``pseudo_counts`` (K, K), and learns class shares unless ``shares``
    is none; where they are to be used, and classes differ in size, the second multiplies ``log_prior`` by them. The workers'
    prior is the pooled confusion times ``strength`` pseudo-counts a row, held fixed within the second EM, so that its
    objective stays one function. Without a ``strength`` it is learned from the counts of a first E step, in which everybody
    has the pooled confusion.

    Workers who are ``expert`` (W,) bool stand apart, see ``run_em``: they share one confusion in the first EM, have the
    prior of ``with_experts`` in the second, and say nothing of the others' strength.
    """
    expert = torch.zeros(n_workers, dtype=torch.bool) if expert is None else expert
    if isinstance(log_prior, Tensor):
        log_prior = log_prior.__getitem__
    apart = expert[annotations.worker]
    mean, _ = fit_pooled(annotations, log_prior, pseudo_counts, apart, **options)  # type: ignore[arg-type]
    log_share, rivals = None, None
    if shares != "none" and len(annotations):
        unequal, found = fit_pooled(annotations, log_prior, pseudo_counts, apart, True, **options)  # type: ignore[arg-type]
        rivals = Rivals(found[0], unequal, mean, *found[1:], answered=len(torch.unique(annotations.item)))
        if shares == "used" and rivals.differ:
            mean, log_share = unequal, rivals.log_share
    log_prior = with_class_prior(log_prior, log_share)
    if strength is None:
        crowd = Annotations(annotations.item[~apart], annotations.worker[~apart], annotations.label[~apart])
        first = run_em(crowd, log_prior, mean * TYPICAL, n_workers, **(options | {"max_iterations": 1}))  # type: ignore[arg-type]
        strength = learn_strength(first.incidence, first.counts, mean)
    prior = with_experts(mean * strength, expert)
    result = run_em(annotations, log_prior, prior, n_workers, expert=expert, **options)  # type: ignore[arg-type]
    return replace(result, log_share=log_share, rivals=rivals)


def fit_pooled(
    annotations: Annotations,
    log_prior: LogPrior,
    pseudo_counts: Tensor,
    apart: Tensor,
    with_shares: bool = False,
    *,
    m_step: Literal["soft", "hard"] = "soft",
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    tempering: Tempering = PLAIN,
    chunk_elements: int = 1 << 21,
) -> tuple[Tensor, tuple[Tensor, float, int]]:
    """Learn the confusion of all workers together, and the class shares.

    Args:
        annotations: The answers, of experts too.
        log_prior: log p(y | x) by item row.
        pseudo_counts: (K, K), whose diagonal says how often a worker is believed to be right beforehand.
        apart: (A,) bool, answers of experts, who share a confusion of their own.
        with_shares: Learn class shares too, instead of taking classes as they come from ``log_prior``.
        m_step: As in ``run_em``, like what follows.

    Returns:
        The confusion (K, K) of all but experts, rows sum to 1, and what ``fit_shares`` returns; without it, even shares.
    """
    everybody = Annotations(annotations.item, apart.long(), annotations.label)
    tiers = torch.tensor([False, True][: 1 + int(apart.any())])
    check_em(everybody, Prior(pseudo_counts), len(tiers), m_step, max_iterations)
    k = pseudo_counts.shape[-1]
    weight = answer_weight(everybody, tiers, tempering, pseudo_counts.dtype)
    inc = build_incidence(everybody, len(tiers), k, weight=weight, chunk_elements=chunk_elements)
    mean = rescale_rows(pseudo_counts, 1.0)
    accuracy = float(mean.diagonal().mean().clamp(0.01, 0.99))
    expert = with_experts(pseudo_counts, tiers).counts[-1] if len(tiers) > 1 else None
    experts = None if expert is None else rescale_rows(expert, 1.0)
    shares = torch.full((k,), 1.0 / k, dtype=torch.float64).log(), 0.0, 0
    if with_shares:  # of several accounts of the same answers take the one in which most of them are right
        mean = rescale_rows(homogeneous_prior(k, START, dtype=mean.dtype), 1.0)
        votes = torch.bincount(annotations.label[~apart], minlength=k).double() + PSEUDO_ITEMS
        shares = (votes / votes.sum()).log(), 0.0, 0
    before = -math.inf
    for _ in range(max_iterations):
        both = mean[None] if experts is None else torch.stack([mean, experts])
        table = both[inc.pair_worker, :, inc.pair_label].log()
        if with_shares:
            shares = _shares(inc, table, log_prior, tempering, shares[0])
        prior = with_class_prior(log_prior, shares[0]) if with_shares else log_prior
        counts, evidence = renewed_counts(inc, table, prior, m_step == "hard", tempering)
        mean = shrunk_confusion(pair_counts(inc, counts, 0), accuracy)
        if expert is not None:
            experts = rescale_rows(expert + pair_counts(inc, counts, 1), 1.0)
        if abs(evidence - before) <= tolerance * len(annotations):
            break
        before = evidence
    return mean, shares


def _shares(
    inc: Incidence, table: Tensor, log_prior: LogPrior, tempering: Tempering, start: Tensor
) -> tuple[Tensor, float, int]:
    """Class shares given the confusions in ``table`` (P, K), from answered items at even distances in all of them."""
    step = max(1, -(-len(inc.items) * inc.n_classes // MOST_ELEMENTS))
    parts = []
    for chunk in inc.chunks:
        some = slice(-chunk.start % step, None, step)
        a, b = tempering.of(chunk.n_answers[some])
        people = inc.item_sums(chunk, table)[some]
        parts.append((log_prior(inc.items[chunk.start : chunk.stop][some]), b * people, a))
    model, people, a = (torch.cat(part) for part in zip(*parts, strict=True))
    return fit_shares(model, people, a, start)
