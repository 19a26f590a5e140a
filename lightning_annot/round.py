"""One annotation round, free of Lightning: infer from the facts, then choose what to ask whom.

Everything here is a pure function of the facts, of the learner's probabilities, and of (seed, round).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_annot.crowd.em import PLAIN, EMResult, LogPrior, run_em, run_tiered_em, write_posterior
from lightning_annot.crowd.priors import diagonal_prior, homogeneous_prior, rescale_rows
from lightning_annot.crowd.risk import Decision, decide
from lightning_annot.crowd.skill import PRIORS, Gold, PriorKind, gold_accuracy, reduce_accuracy
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.sampling.activelab import activelab, best_first
from lightning_annot.sampling.assignment import ASSIGNMENTS, SCORED, Assignment, allowed_workers, assign, assign_hits
from lightning_annot.sampling.items import ITEM_RULES, ItemRule, candidates, expected_error_reduction, gumbel_top
from lightning_annot.sampling.matching import DRAWABLE, draw_confusions, information
from lightning_annot.sampling.price import per_price
from lightning_annot.types import Annotations, AnnotError

DRAWS = 8  # of the workers' confusions in a round that explores
ANCHOR = 10.0  # times the prior's strength is how much it counts for all workers together: rare classes keep their names by it
HALF_ABOVE = 1 << 29  # values of (N, K); above it the posterior is kept as float16


@dataclass(frozen=True)
class CrowdSettings:
    """The model of the workers.

    ``prior``: what their confusions are shrunk to. tiered: the full pooled confusion, estimated by a first EM. The others have
    even errors, and one accuracy (homogeneous), one a class, one a worker, or one for each worker and class (class_worker).
    ``estimate``: where these accuracies come from: fixed (``accuracy``), em (a pooled EM), or gold (answers to gold questions).
    ``oracle``: an .npz of the true confusions, as simulated workers export; relative paths start at the output folder. Results
    with it are no estimates, and are marked oracle-prior.
    ``temper``: learn from each round's new answers how far learner and workers may be believed (crowd/tempering.py).
    ``class_prior``: with ``temper``, weigh the classes unequally where held-out answers gain by it (crowd/class_prior.py).
    ``exclude``: whoever answers without looking, or against the truth, is not asked again, and does not count (crowd/spam.py).
    ``strength``: pseudo-counts of a worker's confusion row; None: 10, and with tiered learned by marginal likelihood.
    ``accuracy``: what is believed of a worker before any answer.
    """

    prior: PriorKind = "tiered"
    accuracy: float = 0.7
    strength: float | None = None
    temper: bool = True
    class_prior: bool = True
    exclude: bool = True
    m_step: Literal["soft", "hard"] = "soft"
    max_iterations: int = 100
    tolerance: float = 1e-4
    estimate: Literal["fixed", "em", "gold"] = "fixed"
    oracle: str | None = None

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise AnnotError(f"crowd.prior {self.prior!r} given; allowed are {', '.join(PRIORS)}.")
        if self.estimate not in ("fixed", "em", "gold"):
            raise AnnotError(f"crowd.estimate {self.estimate!r} given; allowed are fixed, em, gold.")
        if self.oracle is not None:
            return
        if self.prior in ("worker", "class_worker") and self.estimate != "gold":
            raise AnnotError(
                f"crowd.prior {self.prior} with crowd.estimate {self.estimate} given; what one worker can do is known before "
                "their answers only from gold questions: set crowd.estimate gold and annotation.gold, or give crowd.oracle."
            )
        if self.prior == "class" and self.estimate == "fixed":
            raise AnnotError("crowd.prior class needs accuracies of its own; set crowd.estimate to em or gold.")


@dataclass(frozen=True)
class SamplingSettings:
    """``per_round``: questions a round. ``cap``: most answers an item. ``items``: how items are drawn among the unfinished;
    expected_error_reduction draws them in proportion to its score to the power of ``sharpness``.

    ``workers``: how a worker is chosen, for each item or, with a ``hit_size`` above 1, for each HIT of so many items; greedy
    takes the worker who is most probably right (Liao et al. 2021, Eq. 1), information the one whose answer lowers the item's
    error most, by confusions drawn from what is known of them (``explore``), so that new workers are tried. ``worker_share``:
    most of a round's questions that these two give to one worker; None: no limit. ``worker_cap``: most questions a worker is
    asked in all (alpha there), gold questions apart; None: no limit. ``refill``: where a round would ask more than the
    unfinished items, it asks on about finished ones, riskiest first, as the released code does.
    """

    per_round: int = 200
    cap: int = 4
    items: ItemRule = "expected_error_reduction"
    sharpness: float = 3.0
    workers: Assignment = "information"
    worker_cap: int | None = None
    worker_share: float | None = 0.1
    explore: bool = True
    hit_size: int = 1
    refill: bool = False

    def __post_init__(self) -> None:
        if self.per_round < 1 or self.cap < 1 or self.hit_size < 1:
            raise AnnotError(
                f"sampling.per_round {self.per_round}, sampling.cap {self.cap}, sampling.hit_size {self.hit_size} given; all "
                "must be at least 1."
            )
        if self.items not in ITEM_RULES:
            raise AnnotError(f"sampling.items {self.items!r} given; allowed are {', '.join(ITEM_RULES)}.")
        if self.workers not in ASSIGNMENTS:
            raise AnnotError(f"sampling.workers {self.workers!r} given; allowed are {', '.join(ASSIGNMENTS)}.")
        if self.sharpness <= 0 or (self.worker_share is not None and not 0 < self.worker_share <= 1):
            raise AnnotError(
                f"sampling.sharpness {self.sharpness}, sampling.worker_share {self.worker_share} given; sharpness must be "
                "above 0, worker_share above 0 and at most 1, or null."
            )
        if self.worker_cap is not None and self.worker_cap < self.hit_size:
            raise AnnotError(
                f"sampling.worker_cap {self.worker_cap} given, with HITs of {self.hit_size}; a worker must be allowed one HIT "
                "at least: raise worker_cap or lower sampling.hit_size."
            )


def _no_rows() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Facts:
    """What the log says, as indices. Answers (A,): ``item``, ``worker``, ``label`` (-1 for a skip), ``round``; open questions
    (Q,): ``open_item``, ``open_worker`` (-1 for anyone). Answers to gold questions, about prototypes (G,): ``gold_item``,
    ``gold_worker``, ``gold_label`` (-1 for a skip). ``extra_paid`` counts gold and audit answers.

    Of all kinds together: who gave the paid answers (P,), ``paid_worker``, in how many seconds, ``paid_seconds`` (0 where
    unknown); and who is asked the open questions, ``owed_worker`` (-1 for anyone).
    """

    workers: tuple[str, ...]
    item: Tensor
    worker: Tensor
    label: Tensor
    open_item: Tensor
    open_worker: Tensor
    round: Tensor = field(default_factory=_no_rows)
    gold_item: Tensor = field(default_factory=_no_rows)
    gold_worker: Tensor = field(default_factory=_no_rows)
    gold_label: Tensor = field(default_factory=_no_rows)
    extra_paid: int = 0
    paid_worker: Tensor = field(default_factory=_no_rows)
    paid_seconds: Tensor = field(default_factory=_no_rows)
    owed_worker: Tensor = field(default_factory=_no_rows)

    def annotations(self) -> Annotations:
        """The labels given, without skips."""
        given = self.label >= 0
        return Annotations(self.item[given], self.worker[given], self.label[given])

    def gold(self, prototype: Tensor) -> Gold:
        """Answers to gold questions, against the clean classes ``prototype`` (N,)."""
        given = self.gold_label >= 0
        truth = prototype[self.gold_item[given]]
        return Gold(self.gold_worker[given], truth, self.gold_label[given] == truth)

    def with_gold(self) -> Annotations:
        """The labels given, those to gold questions among them."""
        own, given = self.annotations(), self.gold_label >= 0
        return Annotations(
            torch.cat([own.item, self.gold_item[given]]),
            torch.cat([own.worker, self.gold_worker[given]]),
            torch.cat([own.label, self.gold_label[given]]),
        )

    def asked_pairs(self) -> tuple[Tensor, Tensor]:
        """Items and workers (-1 for anyone) of all answers, skips and open questions, both (A + Q,)."""
        return torch.cat([self.item, self.open_item]), torch.cat([self.worker, self.open_worker])

    def without(self, barred: Tensor) -> Facts:
        """The facts less all answers of workers who are ``barred`` (W,) bool; what was paid for them stays paid."""
        if not bool(barred.any()):
            return self
        own, gold = ~barred[self.worker], ~barred[self.gold_worker]
        kept = {name: getattr(self, name)[own] for name in ("item", "worker", "label", "round")}
        return replace(self, **kept, **{name: getattr(self, name)[gold] for name in ("gold_item", "gold_worker", "gold_label")})

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
    oracle: Tensor | None = None,
    tempering: Tempering = PLAIN,
) -> Inference:
    """Joint EM over the facts; ``log_prior`` gives the learner's log p(y | x) by row.

    ``prototype`` (N,) is the clean class of a prototype, else -1: their labels are certain. ``threshold`` is C: an item is
    finished if its risk is below it. ``oracle`` (W, K, K): true confusions, where the settings name them.
    """
    prior = _with_prototypes(log_prior, prototype, n_classes)
    result = fit_crowd(facts, prior, prototype, n_classes, crowd, oracle, tempering)
    # Half precision is exact to 5e-4, and keeps the one array of this size within reach where N x K is vast.
    dtype = torch.float16 if n_rows * n_classes > HALF_ABOVE else torch.float32
    posterior = write_posterior(result, prior, n_rows, torch.empty(n_rows, n_classes, dtype=dtype), tempering)
    rows = (prototype >= 0).nonzero()[:, 0]
    posterior[rows] = torch.nn.functional.one_hot(prototype[rows], n_classes).to(posterior)
    decision = decide(posterior, cost)
    return Inference(posterior, decision, decision.risk < threshold, result)


def fit_crowd(
    facts: Facts,
    log_prior: LogPrior,
    prototype: Tensor,
    n_classes: int,
    crowd: CrowdSettings,
    oracle: Tensor | None = None,
    tempering: Tempering = PLAIN,
) -> EMResult:
    """The workers' confusions by EM under the prior that the settings name; arguments as in ``infer``.

    Gold answers are evidence like all others, about items whose class is certain; but where they make the prior
    (``estimate: gold``) they are in it already.
    """
    n_workers = max(1, len(facts.workers))
    annotations = facts.annotations() if crowd.estimate == "gold" else facts.with_gold()
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
        gold = facts.gold(prototype)
        base = diagonal_prior(gold_accuracy(gold, crowd.prior, n_workers, n_classes, crowd.accuracy), strength)
    elif len(annotations) and crowd.prior == "tiered":
        return run_tiered_em(annotations, log_prior, ANCHOR * base, n_workers, strength=crowd.strength, **options)
    elif len(annotations) and crowd.estimate == "em":
        everybody = Annotations(annotations.item, torch.zeros_like(annotations.worker), annotations.label)
        pooled = run_em(everybody, log_prior, base, 1, **options)
        base = diagonal_prior(reduce_accuracy(pooled.diagonal(), crowd.prior), strength)
    return run_em(annotations, log_prior, base, n_workers, **options)


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


def refilled(inference: Inference, facts: Facts, prototype: Tensor, among: Tensor, settings: SamplingSettings) -> Tensor:
    """The items ``among``; where they are fewer than a round asks, but not none, finished ones too, riskiest first."""
    lacking = settings.per_round - len(among)
    if not settings.refill or lacking <= 0 or not len(among):
        return among
    n = len(prototype)
    spare = inference.finished[:n] & (prototype < 0) & (facts.asked(n) < settings.cap)
    spare[facts.open_item] = False
    rows = spare.nonzero()[:, 0]
    riskiest = inference.decision.risk[rows].argsort(descending=True, stable=True)
    return torch.cat([among, rows[riskiest[:lacking]]])


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
    price: Tensor | None = None,
    barred: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """At most ``n`` of the items ``among`` and the worker (n,) to ask about each.

    The first ``askable`` workers (None: all) can be asked by name, others have only answered; with 0 it is -1, anyone.
    ``log_prior``: the learner's log p(y | x) by row, which activelab needs. ``price`` (W,): what an answer of each worker
    costs, where greedy and information are to mind it.
    """
    # A HIT is filled with what its worker has not seen, so there is more to choose from than will be asked.
    order = _order(inference, facts, among, n if settings.hit_size == 1 else 2 * n, n_items, settings, generator, log_prior)
    n_workers = len(facts.workers) if askable is None else askable
    if not n_workers:
        return order[:n], torch.full_like(order[:n], -1)
    asked_item, asked_worker = facts.asked_pairs()
    by_name = (asked_worker >= 0) & (asked_worker < n_workers)
    asked_item, asked_worker = asked_item[by_name], asked_worker[by_name]
    allowed = allowed_workers(order, n_items, n_workers, asked_item, asked_worker, possible)
    if barred is not None:
        allowed &= ~barred[:n_workers]
    load = torch.bincount(asked_worker, minlength=n_workers)
    reliability = None
    if settings.workers in SCORED:
        reliability, chance = _worker_score(inference, order, n_workers, settings, generator)
        if price is not None:
            reliability = per_price(reliability, price[:n_workers], chance)
    if settings.hit_size > 1:
        return assign_hits(
            order, allowed, load, generator, settings.hit_size, n, settings.workers, reliability, settings.worker_cap
        )
    return assign(order, allowed, load, generator, settings.workers, reliability, settings.worker_cap, settings.worker_share)


def _worker_score(
    inference: Inference, order: Tensor, n_workers: int, settings: SamplingSettings, generator: torch.Generator
) -> tuple[Tensor, float]:
    """What each of ``n_workers`` is worth for each item of ``order``, (n, W), and what a guess is worth."""
    posterior, crowd = inference.posterior[order].float(), inference.crowd
    n_classes = posterior.shape[1]
    if settings.workers == "greedy" or n_workers * n_classes**2 > DRAWABLE:
        return posterior @ crowd.diagonal()[:n_workers].float().T, 1.0 / n_classes
    counts = crowd.all_counts()[:n_workers].float()
    if not settings.explore:
        return information(posterior, counts / counts.sum(2, keepdim=True)), 0.0
    parts = posterior.tensor_split(max(1, min(DRAWS, len(order))))
    return torch.cat([information(part, draw_confusions(counts, generator)) for part in parts]), 0.0


def _order(
    inference: Inference,
    facts: Facts,
    among: Tensor,
    n: int,
    n_items: int,
    settings: SamplingSettings,
    generator: torch.Generator,
    log_prior: LogPrior | None,
) -> Tensor:
    """At most ``n`` of the items ``among``, first those to ask first."""
    if settings.items == "activelab":
        if log_prior is None:
            raise AnnotError("sampling.items activelab needs the learner's log p(y | x); give it as log_prior.")
        score = activelab(facts.annotations(), log_prior(torch.arange(n_items)))[among]
        return among[best_first(score, n, generator)]
    weight = torch.zeros(len(among))
    if settings.items == "expected_error_reduction":
        confusion = inference.crowd.pooled_confusion()
        weight = settings.sharpness * expected_error_reduction(inference.posterior, confusion, among).clamp(min=1e-30).log()
    return among[gumbel_top(weight, n, generator)]
