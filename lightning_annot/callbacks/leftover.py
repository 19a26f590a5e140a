"""Describe the items that a run leaves unfinished, and how to resume it."""

from __future__ import annotations

import sys

from rich.console import Console
from torch import Tensor

from lightning_annot.commandline.options import typed
from lightning_annot.data.items import ItemTable
from lightning_annot.report.terminal import print_lines
from lightning_annot.round.facts import Facts
from lightning_annot.round.settings import SamplingSettings
from lightning_annot.sampling.value import deserted
from lightning_annot.workers.base import Workers


def leftover(
    table: ItemTable, finished: Tensor, experts: Tensor, facts: Facts, workers: Workers, sampling: SamplingSettings
) -> dict[str, list[str]]:
    """Ids of the items that an ``expert`` labels for less, and of those that ``nobody`` is left to ask about.

    ``finished`` (N,) bool; ``experts`` (n,): rows of the former; ``facts``: all so far, open questions among them.
    """
    n = len(table)
    item, worker = facts.asked_pairs()
    alone = deserted(
        facts.asked(n), workers.capacity(), len(workers.names()), item, worker, workers.can_answer(), sampling.worker_cap
    )
    alone &= ~finished & ~table.is_prototype
    return {
        "expert": [table.ids[row] for row in experts.tolist()],
        "nobody": [table.ids[row] for row in alone.nonzero()[:, 0].tolist()],
    }


def tell_how_to_go_on(workers: Workers) -> None:
    """Print where people answer, if they do, and the command that resumes the run."""
    print_lines(Console(), [*workers.directions(), f"Then repeat:     {typed(sys.argv)}"])
