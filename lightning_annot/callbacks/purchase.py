"""Gold questions beside the chosen ones, and which of all the money pays for; these are committed, the others are not asked."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_annot.data.items import ItemTable
from lightning_annot.ledger import Ledger
from lightning_annot.round.choice import round_generator
from lightning_annot.round.facts import Facts
from lightning_annot.sampling.gold import examples, gold_questions, gold_share, gold_to_anyone, interleaved
from lightning_annot.sampling.price import Account, affordable
from lightning_annot.workers.base import Workers

Questions = tuple[Tensor, Tensor]
"""Items (n,) and workers (n,), -1 for anyone."""

GOLD_DRAW = 1 << 20  # plus the round: stands for a round in the draw of its gold questions, beyond all real ones


class Gold:
    """The gold questions of ``round_``, a function of (seed, round) and of the ``facts`` before it; nobody who is ``idle`` (W,)
    bool gets any, and nobody is asked about a prototype twice, nor about one that is shown as an example.

    ``first`` for each worker in a run's first round; ``qualify`` for each before any ordinary question. Where questions go to
    anyone, so do gold ones, about the prototypes that were asked about least.
    """

    def __init__(
        self, round_: int, first: int, qualify: int, facts: Facts, table: ItemTable, workers: Workers, seed: int, idle: Tensor
    ) -> None:
        n = len(workers.names())
        self.generator = round_generator(seed, GOLD_DRAW + round_)
        blind = table.is_prototype
        if workers.shows_examples:
            blind = blind & ~examples(table.prototype)
        self._prototypes, self._possible, self._capacity = blind.nonzero()[:, 0], workers.can_answer(), workers.capacity()
        self._seen, self._idle = facts.seen_pairs(), idle[:n]
        gold = facts.gold_worker, facts.open_gold_worker
        answered, waiting = (torch.bincount(of[(of >= 0) & (of < n)], minlength=n) for of in gold)
        wanted = (qualify - answered - waiting).clamp(min=0 if round_ else first)
        self.questions = self._draw(wanted)
        granted = torch.bincount(self.questions[1], minlength=n)
        self.before_others = (answered < qualify) & (waiting + granted > 0)

    def add(self, chosen: Questions, rate: float) -> None:
        """Let gold questions be a share ``rate`` of each worker's, beside those ``chosen``."""
        if len(self._idle):
            more = self._draw(gold_share(chosen[1], len(self._idle), rate, self.generator))
        else:
            n = int(gold_share(torch.zeros_like(chosen[1]), 1, rate, self.generator))
            room = None if self._capacity is None else self._capacity[self._prototypes]
            items = gold_to_anyone(n, self._prototypes, self._seen[0], self.generator, room)
            more = items, torch.full_like(items, -1)
        self.questions = _joined(self.questions, more)

    def _draw(self, n: Tensor) -> Questions:
        n = n.masked_fill(self._idle, 0)
        if not bool(n.any()):
            return self._prototypes[:0], self._prototypes[:0]
        drawn = gold_questions(n, self._prototypes, len(n), self.generator, self._possible, self._seen)
        self._seen = _joined(self._seen, drawn)
        return drawn


def commit(ledger: Ledger, round_: int, chosen: Questions, gold: Gold, account: Account, left: float | None) -> int:
    """Commit the ``chosen`` questions and the ``gold`` ones, in an order that does not tell them apart, while the money
    ``left`` lasts (None: no limit); returns how many it does not pay for.
    """
    n, n_gold = len(chosen[0]), len(gold.questions[0])
    order = interleaved(chosen[1], gold.questions[1], gold.generator) if n_gold else torch.arange(n)
    items, workers = (rows[order] for rows in _joined(chosen, gold.questions))
    bought = torch.ones(len(order), dtype=torch.bool) if left is None else affordable(account.price(workers), left)
    ledger.ask(round_, items[bought], workers[bought], (order >= n)[bought])
    return int((~bought).sum())


def _joined(some: Questions, more: Questions) -> Questions:
    return torch.cat([some[0], more[0]]), torch.cat([some[1], more[1]])
