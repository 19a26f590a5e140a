"""Find workers who are surely right less often than asked for: a likelihood ratio that may be looked at after every answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_annot.crowd.em import EMResult
from lightning_annot.crowd.spam import held_out, with_class_shares
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.types import Annotations

GRID = 64  # accuracies tried on each side of the least one


def chance_of_accuracy(
    answers: Annotations, posterior: Tensor, result: EMResult, tempering: Tempering, known: Tensor, least: float
) -> Tensor:
    """Chance that each worker is right in a share ``least`` or more, by the worker's answers, (W,) in (0, 1).

    Gold answers count like all others, about items whose class is certain. A worker with accuracy s answers z with probability
    s q(z) + (1 - s) (1 - q(z)) / (K - 1), where q is what learner and others say of the item, as ``posterior`` has it or with
    the class shares of ``with_class_shares``. Let L(s) be the product over the answers. The chance is A / (A + B), with A the
    largest L(s) for s >= ``least``, by either q, and B the mean of L(s) for s below, evenly, by the first. Where a worker is
    right in a share of ``least`` or more, B / A reaches 1 / a with probability a at most, however often one looks (Ville 1939):
    A is at least the worker's own L(s), and B over that is a martingale of mean 1. This assumes that q is calibrated in one of
    its two forms, and that errors are even over the wrong classes. A prior learned from others, as the confusions have, is not
    used: it would excuse the one bad worker of a good crowd.

    Args:
        answers: All answers, in the order of the log.
        posterior: As in ``judge_workers``, like ``result``, ``tempering`` and ``known``.
        least: The share of right answers that is asked for.
    """
    n_workers, k = len(known), posterior.shape[1]
    worker, label, q = held_out(answers, posterior, result, tempering, known)
    agrees = q.gather(1, label[:, None])[:, 0].double()
    shared = with_class_shares(q, worker, label, known).double()
    below = (torch.arange(GRID, dtype=torch.float64) + 0.5) * (least / GRID)
    above = torch.linspace(least, 1.0, GRID, dtype=torch.float64)

    def log_likelihood(share: float, true: Tensor) -> Tensor:
        chance = share * true + (1.0 - share) * (1.0 - true) / (k - 1)
        return torch.bincount(worker, chance.clamp(min=1e-30).log(), minlength=n_workers)

    best = torch.stack([log_likelihood(s, true) for s in above.tolist() for true in (agrees, shared)]).amax(0)
    mean = torch.stack([log_likelihood(s, agrees) for s in below.tolist()]).logsumexp(0) - math.log(GRID)
    return (best - mean).sigmoid()
