"""Who is surely right less often than asked for: a likelihood ratio that may be looked at after every answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_annot.crowd.em import EMResult
from lightning_annot.crowd.spam import held_out
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.types import Annotations

GRID = 64  # accuracies tried on each side of the least one


def chance_of_accuracy(
    answers: Annotations, posterior: Tensor, result: EMResult, tempering: Tempering, known: Tensor, least: float
) -> Tensor:
    """How far each worker's answers leave it open that he is right in a share ``least`` or more, (W,) in (0, 1).

    Arguments as in ``judge_workers``; gold answers count like all others, about items whose class is certain. A worker with
    accuracy s answers z with s q(z) + (1 - s) (1 - q(z)) / (K - 1), where q is what learner and others say of the item. Let
    L(s) be the product over his answers. The chance is A / (A + B), with A the largest L(s) for s >= ``least``, and B the mean
    of L(s) for s below, evenly. For whoever is right in a share of ``least`` or more, B / A reaches 1 / a with probability a
    at most, however often one looks (Ville 1939): A is at least his own L(s), and B over that is a martingale of mean 1. A
    prior learned from others, as the confusions have, is not asked: it would excuse the one bad worker of a good crowd.
    """
    n_workers, k = len(known), posterior.shape[1]
    worker, label, q = held_out(answers, posterior, result, tempering, known)
    agrees = q.gather(1, label[:, None])[:, 0].double()
    below = (torch.arange(GRID, dtype=torch.float64) + 0.5) * (least / GRID)
    above = torch.linspace(least, 1.0, GRID, dtype=torch.float64)

    def log_likelihood(share: float) -> Tensor:
        chance = share * agrees + (1.0 - share) * (1.0 - agrees) / (k - 1)
        return torch.bincount(worker, chance.clamp(min=1e-30).log(), minlength=n_workers)

    best = torch.stack([log_likelihood(s) for s in above.tolist()]).amax(0)
    mean = torch.stack([log_likelihood(s) for s in below.tolist()]).logsumexp(0) - math.log(GRID)
    return (best - mean).sigmoid()
