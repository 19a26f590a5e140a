"""What a round goes by: the log as indices, and what is known beside it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_annot.crowd.em import LogPrior
from lightning_annot.crowd.skill import Gold
from lightning_annot.types import Annotations


def _no_rows() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Facts:
    """What the log says, as indices. Answers (A,): ``item``, ``worker``, ``label`` (-1 for a skip or a repeat), ``round``; open
    questions (Q,): ``open_item``, ``open_worker`` (-1 for anyone). Answers to gold questions, about prototypes (G,):
    ``gold_item``, ``gold_worker``, ``gold_label`` (-1 likewise); open gold questions: ``open_gold_item``, ``open_gold_worker``.
    ``extra_paid`` counts gold and audit answers, ``replies`` questions of rounds that have an answer, gold too: none imported.

    ``experts``: names of workers who are hardly ever wrong. Of all kinds together: who gave the paid answers
    (P,), ``paid_worker``, in how many seconds, ``paid_seconds`` (0 where unknown); and who is asked the open questions,
    ``owed_worker`` (-1 for anyone).
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
    replies: int = 0
    paid_worker: Tensor = field(default_factory=_no_rows)
    paid_seconds: Tensor = field(default_factory=_no_rows)
    owed_worker: Tensor = field(default_factory=_no_rows)
    experts: frozenset[str] = frozenset()
    open_gold_item: Tensor = field(default_factory=_no_rows)
    open_gold_worker: Tensor = field(default_factory=_no_rows)

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

    def is_expert(self) -> Tensor:
        """Which workers are experts, (W,) bool."""
        return torch.tensor([name in self.experts for name in self.workers], dtype=torch.bool)

    def expert_items(self) -> Tensor:
        """Items (n,) that an expert answered or skipped; some may come more than once."""
        return self.item[self.is_expert()[self.worker]]

    def asked_pairs(self) -> tuple[Tensor, Tensor]:
        """Items and workers (-1 for anyone) of all answers, skips and open questions, both (A + Q,)."""
        return torch.cat([self.item, self.open_item]), torch.cat([self.worker, self.open_worker])

    def seen_pairs(self) -> tuple[Tensor, Tensor]:
        """The same with gold questions, open ones too."""
        item, worker = self.asked_pairs()
        return (
            torch.cat([item, self.gold_item, self.open_gold_item]),
            torch.cat([worker, self.gold_worker, self.open_gold_worker]),
        )

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
class Basis:
    """All that a round is a function of, but for its settings and its random numbers.

    ``log_prior`` gives the learner's log p(y | x) by row, of which there are ``n_rows``: N items, then extra ones.
    ``prototype`` (N,) is the clean class of a prototype, else -1: their labels are certain. ``n_classes`` is K.
    """

    facts: Facts
    log_prior: LogPrior
    prototype: Tensor
    n_rows: int
    n_classes: int

    def of_answered(self) -> Basis:
        """The same of those items alone that somebody has answered, in their order; without extra rows and open questions."""
        facts, none = self.facts, _no_rows()
        items = torch.unique(torch.cat([facts.item, facts.gold_item]))
        about = replace(
            facts, item=torch.searchsorted(items, facts.item), gold_item=torch.searchsorted(items, facts.gold_item),
            open_item=none, open_worker=none, open_gold_item=none, open_gold_worker=none, owed_worker=none,
        )  # fmt: skip

        def log_prior(rows: Tensor) -> Tensor:
            return self.log_prior(items[rows])

        return Basis(about, log_prior, self.prototype[items], len(items), self.n_classes)


def with_payments(facts: Facts, later: Facts) -> Facts:
    """Return ``facts`` with all that was paid until ``later``: money counts these answers, and no estimate does."""
    return replace(facts, extra_paid=later.extra_paid, paid_worker=later.paid_worker, paid_seconds=later.paid_seconds)
