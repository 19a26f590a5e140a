"""Which of the chosen questions the money pays for; these are committed, the others are not asked."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_annot.data.items import ItemTable
from lightning_annot.ledger import Ledger
from lightning_annot.round.choice import round_generator
from lightning_annot.sampling.gold import gold_questions
from lightning_annot.sampling.price import Account, affordable
from lightning_annot.workers.base import Workers

Questions = tuple[Tensor, Tensor]
"""Items (n,) and workers (n,), -1 for anyone."""

GOLD_DRAW = 1 << 20  # stands for a round in the draw of the gold questions, beyond all real ones


def first_gold(round_: int, n: int, table: ItemTable, workers: Workers, seed: int) -> Questions:
    """``n`` gold questions a worker, all of them in a run's first round, so that skill is known from the start."""
    if round_ or not n:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    prototypes = table.is_prototype.nonzero()[:, 0]
    generator = round_generator(seed, GOLD_DRAW)
    return gold_questions(n, prototypes, len(workers.names()), generator, workers.can_answer())


def commit(ledger: Ledger, round_: int, chosen: Questions, gold: Questions, account: Account, left: float | None) -> int:
    """Commit ``gold`` questions, unless that was done before, and the ``chosen`` ones, in this order, while the money ``left``
    lasts (None: no limit); returns how many it does not pay for.
    """
    n_gold, worker = len(gold[0]), torch.cat([gold[1], chosen[1]])
    bought = torch.ones(len(worker), dtype=torch.bool) if left is None else affordable(account.price(worker), left)
    if n_gold and not ledger.has_asked(round_, "gold"):
        ledger.ask(round_, gold[0][bought[:n_gold]], gold[1][bought[:n_gold]], "gold")
    ledger.ask(round_, chosen[0][bought[n_gold:]], chosen[1][bought[n_gold:]])
    return int((~bought).sum())
