"""When to stop asking, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from lightning_annot.types import AnnotError

NOISE = 0.5  # standard errors that a mean must rise by: more ends runs that improve, less keeps runs that do not
LAST_ROUND = "the last allowed round is done (trainer.max_epochs)"


@dataclass(frozen=True)
class StopSettings:
    """``budget``: most ordinary annotations per item (None: no limit). The number of rounds is the Trainer's ``max_epochs``.

    ``patience``: rounds over which a run must make progress (None: need not). It stops when over so many rounds, compared with
    as many before, three means have not risen: the number of finished items, the expected number of correct labels (beyond
    noise), and what was known of fresh answers before they came (beyond noise). The last counts because a run that was too
    sure of itself finishes fewer items while it gets better. Means, because one overconfident round must not set a mark that
    honest ones fail to reach. The rule begins once some item is finished, and is the same at any annotation rate.

    ``money``: what all answers together may cost, gold questions and audits among them (None: no limit); see the prices.
    ``expert_price``: price of an expert's label, in ordinary answers, or in money where prices are given (None: there are no
    experts). An item is no longer asked where an expert takes away more risk for the price than answers do.

    ``target_error``: audit finished labels, and end the run once at most this share of them is certified to be wrong (None: do
    not), at ``confidence``. ``auditor`` audits, by default the first of ``crowd.experts``; ``audits`` are the most in a round,
    and none are made before a share ``audit_from`` of the items is finished.
    """

    budget: float | None = None
    patience: int | None = 20
    money: float | None = None
    expert_price: float | None = None
    target_error: float | None = None
    confidence: float = 0.95
    auditor: str | None = None
    audits: int = 500
    audit_from: float = 0.9

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 0:
            raise AnnotError(f"stopping.budget {self.budget} given; it must be 0 or more annotations per item, or null.")
        if self.patience is not None and self.patience < 1:
            raise AnnotError(f"stopping.patience {self.patience} given; it must be 1 round or more, or null.")
        if self.money is not None and not self.money >= 0:
            raise AnnotError(f"stopping.money {self.money} given; it must be 0 or more, or null.")
        if self.expert_price is not None and not self.expert_price > 0:
            raise AnnotError(f"stopping.expert_price {self.expert_price} given; it must be above 0, or null.")
        if self.target_error is not None and not 0 < self.target_error < 1:
            raise AnnotError(
                f"stopping.target_error {self.target_error} given; it must be between 0 and 1, such as 0.05, or null."
            )
        if not 0.5 <= self.confidence < 1:
            raise AnnotError(f"stopping.confidence {self.confidence} given; it must be 0.5 or more and below 1, such as 0.95.")
        if self.audits < 1:
            raise AnnotError(f"stopping.audits {self.audits} given; it must be 1 audit a round or more.")
        if not 0 <= self.audit_from <= 1:
            raise AnnotError(f"stopping.audit_from {self.audit_from} given; it must be a share of the items, from 0 to 1.")

    def left(self, n_annotations: int, n_items: int) -> int | None:
        """Annotations the budget still allows; None without a budget."""
        return None if self.budget is None else max(0, round(self.budget * n_items) - n_annotations)

    def money_left(self, spent: float) -> float | None:
        """Money that may still be spent; None without a limit. A rounding error must not cost the last answer."""
        return None if self.money is None else self.money * (1.0 + 1e-9) - spent


def stop_reason(
    settings: StopSettings,
    *,
    finished_history: Sequence[int],
    risk_history: Sequence[float] = (),
    fresh_history: Sequence[float] = (),
    n_annotations: int,
    n_items: int,
    n_candidates: int,
    n_open: int,
    last_round: bool,
    hit_size: int = 1,
    n_withdrawn: int = 0,
    n_in_doubt: int = 0,
    spent: float = 0.0,
    cheapest: float = 0.0,
) -> str | None:
    """Why the run ends after this round, or None to go on.

    ``finished_history``: finished items of each round so far; ``risk_history``: mean risk of each; ``fresh_history``: nats by
    which the answers of each round that brought some were foreseen (``crowd/tempering.py``); ``n_candidates``: items that may
    still be asked; ``n_open``: questions that wait for an answer; ``hit_size``: items of one HIT; ``n_withdrawn``: items that
    could be asked, but are better left to experts; ``n_in_doubt``: unfinished items, if experts have seen them all;
    ``spent``: money so far; ``cheapest``: least price of one more answer.
    """
    if n_items == 0:
        return "nothing left to label: every item is a prototype"
    if finished_history[-1] == n_items:
        return "every item is finished"
    if n_in_doubt:
        return (
            f"experts have seen all that is left: {n_in_doubt} items are in doubt, where others contradict them or they skipped"
        )
    if n_candidates == 0 and n_open == 0 and n_withdrawn:
        return f"an expert is the better buy for the {n_withdrawn} items that could still be asked (stopping.expert_price)"
    if n_candidates == 0 and n_open == 0:
        return "every unfinished item has had as many answers as it may get"
    if n_candidates < hit_size and n_open == 0:
        return f"fewer items may be asked than one HIT of {hit_size} holds"
    if settings.left(n_annotations, n_items) == 0:
        return f"the budget of {settings.budget:g} annotations per item is spent"
    money = settings.money_left(spent)
    if money is not None and money < cheapest:
        return f"the money is spent: {spent:g} of {settings.money:g}, where an answer costs {cheapest:g} or more"
    if last_round:
        return LAST_ROUND
    n = settings.patience
    if n is not None and is_stalled(n, finished_history, risk_history, fresh_history):
        return f"no progress for {n} rounds in finished items, expected correct labels or fresh answers (stopping.patience)"
    return None


def is_stalled(n: int, finished: Sequence[int], risk: Sequence[float], fresh: Sequence[float]) -> bool:
    """Whether a run has made no progress over its last ``n`` rounds, compared with the ``n`` before.

    Histories as in ``stop_reason``. Expected correct labels are items times 1 - mean risk, so they rise as the risk falls.
    """
    if len(finished) < 2 * n:
        return False
    before, now = sum(finished[-2 * n : -n]), sum(finished[-n:])
    if before == 0 or now > before:
        return False
    return not has_risen([-value for value in risk], n) and not has_risen(fresh, n)


def has_risen(history: Sequence[float], n: int) -> bool:
    """Whether the mean of the last ``n`` values is above that of the ``n`` before by more than ``NOISE`` standard errors.

    Fewer values before are compared as they are. A single value may be the first of a rise.
    """
    before, now = history[-2 * n : -n], history[-n:]
    if not before:
        return len(now) == 1
    error = sum(variance(part) / len(part) for part in (before, now) if len(part) > 1) ** 0.5
    return fmean(now) - fmean(before) > NOISE * error
