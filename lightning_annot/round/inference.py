"""What is believed of items and workers after a round's facts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_annot.crowd.em import PLAIN, EMResult, run_em, write_posterior
from lightning_annot.crowd.priors import diagonal_prior, homogeneous_prior, rescale_rows, with_experts
from lightning_annot.crowd.risk import Decision, decide
from lightning_annot.crowd.skill import gold_accuracy, reduce_accuracy
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.crowd.tiers import Shares, run_tiered_em
from lightning_annot.round.facts import Basis, Facts
from lightning_annot.round.settings import CrowdSettings
from lightning_annot.types import Annotations

HALF_ABOVE = 1 << 29  # values of (N, K); above it the posterior is kept as float16


@dataclass(frozen=True)
class Inference:
    """``posterior`` (rows, K) over items and extra rows, its ``decision``, ``finished`` (rows,) bool, and the EM's result."""

    posterior: Tensor
    decision: Decision
    finished: Tensor
    crowd: EMResult


def infer(
    basis: Basis,
    crowd: CrowdSettings,
    threshold: float,
    cost: Tensor | None = None,
    oracle: Tensor | None = None,
    tempering: Tempering = PLAIN,
    shares: Shares = "none",
) -> Inference:
    """Joint EM over the facts of ``basis``.

    ``threshold`` is C: an item is finished if its risk is below it. ``oracle`` (W, K, K): true confusions, where the settings
    name them. ``shares``: whether class shares are learned, and the posterior goes by them.
    """
    basis = _with_prototypes(basis)
    result = fit_crowd(basis, crowd, oracle, tempering, shares)
    n_rows, n_classes, prototype = basis.n_rows, basis.n_classes, basis.prototype
    # Half precision is exact to 5e-4, and keeps the one array of this size within reach where N x K is vast.
    dtype = torch.float16 if n_rows * n_classes > HALF_ABOVE else torch.float32
    out = torch.empty(n_rows, n_classes, dtype=dtype)
    posterior = write_posterior(result, basis.log_prior, n_rows, out, tempering)
    rows = (prototype >= 0).nonzero()[:, 0]
    posterior[rows] = torch.nn.functional.one_hot(prototype[rows], n_classes).to(posterior)
    decision = decide(posterior, cost)
    return Inference(posterior, decision, decision.risk < threshold, result)


def fitted_answers(facts: Facts, crowd: CrowdSettings) -> Annotations:
    """The answers that the workers' confusions are fitted to."""
    return facts.annotations() if crowd.estimate == "gold" else facts.with_gold()


def fit_crowd(
    basis: Basis,
    crowd: CrowdSettings,
    oracle: Tensor | None = None,
    tempering: Tempering = PLAIN,
    shares: Shares = "none",
) -> EMResult:
    """The workers' confusions by EM under the prior that the settings name; arguments as in ``infer``.

    Experts have a prior of their own (crowd/priors.py). Gold answers are evidence like all others, about items whose class
    is certain; but where they make the prior (``estimate: gold``) they are in it already.
    """
    facts, log_prior, n_classes = basis.facts, basis.log_prior, basis.n_classes
    n_workers = max(1, len(facts.workers))
    annotations = fitted_answers(facts, crowd)
    expert = facts.is_expert() if facts.workers else torch.zeros(1, dtype=torch.bool)
    strength = 10.0 if crowd.strength is None else crowd.strength
    base = homogeneous_prior(n_classes, crowd.accuracy, strength)
    options: dict[str, Any] = {
        "m_step": crowd.m_step,
        "max_iterations": crowd.max_iterations,
        "tolerance": crowd.tolerance,
        "tempering": tempering,
    }
    if oracle is not None:
        if crowd.prior == "tiered":
            base = rescale_rows(oracle.mean(0).clamp(min=1e-4), strength)
        else:
            base = diagonal_prior(reduce_accuracy(oracle.diagonal(dim1=1, dim2=2), crowd.prior), strength)
    elif crowd.estimate == "gold" and crowd.prior != "tiered":
        gold = facts.gold(basis.prototype)
        base = diagonal_prior(gold_accuracy(gold, crowd.prior, n_workers, n_classes, crowd.accuracy), strength)
    elif len(annotations) and crowd.prior == "tiered":
        options |= {"strength": crowd.strength, "expert": expert, "shares": shares}
        return run_tiered_em(annotations, log_prior, base, n_workers, **options)
    elif len(annotations) and crowd.estimate == "em":
        ours = ~expert[annotations.worker]
        crowd_ = Annotations(annotations.item[ours], torch.zeros_like(annotations.worker[ours]), annotations.label[ours])
        pooled = run_em(crowd_, log_prior, base, 1, **options)
        base = diagonal_prior(reduce_accuracy(pooled.diagonal(), crowd.prior), strength)
    return run_em(annotations, log_prior, with_experts(base, expert), n_workers, expert=expert, **options)


def _with_prototypes(basis: Basis) -> Basis:
    """``basis`` with a prior that is certain where an item is a prototype (which imported answers may be about)."""
    floor = -30.0  # e^-30: certain, yet finite
    log_prior, prototype = basis.log_prior, basis.prototype

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

    return replace(basis, log_prior=prior)
