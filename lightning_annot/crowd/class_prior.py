"""A class prior, if it is asked for, but only where answers that nobody has learned from are more likely with it.

The learner is trained with all classes alike, so that small ones are not lost. Where classes are of unequal size, its
p(y | x) lacks the factor pi_y. To multiply it by the mean posterior is known to make a loop collapse: what is believed
feeds itself. Here log pi is fitted to the likelihood of each round's new answers (crowd/tempering.py), to which the posterior
has contributed nothing but the choice of items. It is used only if it makes answers that it was not fitted to more likely, in
cross-validation. Being fitted to p(y | x) pi_y, it corrects any bias of the learner for a class, from unequal sizes or not.

While the workers' confusions are not known, a prior that explains which answers are frequent would stand in for them: equal
classes then seem unequal. So only those new answers count that came when the confusions had been learned from many. That is
not proof against workers who mostly take one class for another: the learner may follow the prior, and two classes swap names.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from lightning_annot.crowd.em import LogPrior
from lightning_annot.crowd.tempering import FreshAnswers, Tempering

LEAST_KNOWN = 100  # answers a class that the confusions are learned from before a new answer counts
LEAST_GAIN = 3.0  # nats of held-out likelihood, about 20 to 1
MOST_ELEMENTS = 1 << 20  # values of (answers, K) that are looked at: the latest ones
FOLDS = 5


def class_weights(fresh: FreshAnswers, tempering: Tempering, scale: float = 1.0) -> Tensor | None:
    """log pi (K,), centred, or None where held-out answers do not gain ``LEAST_GAIN`` nats by it.

    pi maximises sum log sum_y q(y) p(answer | y) - |log pi|^2 / (2 ``scale``^2), with q(y) proportional to
    (p(y | x) pi_y)^a likelihood(y)^b under the exponents of ``tempering``.
    """
    n_classes = fresh.model.shape[1]
    fresh = fresh.rows(fresh.known >= LEAST_KNOWN * n_classes)
    most = max(FOLDS, MOST_ELEMENTS // n_classes)
    if len(fresh) > most:
        fresh = fresh.rows(torch.arange(len(fresh) - most, len(fresh)))
    if len(fresh) < FOLDS:
        return None
    a, b = (e.double() for e in tempering.of(fresh.earlier))
    parts = (a * fresh.model.double() + b * fresh.people.double(), a, fresh.answer.double())
    fold = torch.arange(len(fresh)) % FOLDS
    gain = 0.0
    for f in range(FOLDS):
        kept, held = (tuple(part[rows] for part in parts) for rows in (fold != f, fold == f))
        weights = _fit(kept, scale)
        gain += float((_log_predictive(weights, *held) - _log_predictive(torch.zeros_like(weights), *held)).sum())
    return _fit(parts, scale) if gain > LEAST_GAIN else None


def with_class_prior(log_prior: LogPrior, weights: Tensor | None) -> LogPrior:
    """log of p(y | x) pi_y over its sum, for ``log_prior`` log p(y | x) and ``weights`` log pi (K,); None changes nothing."""
    if weights is None:
        return log_prior

    def prior(rows: Tensor) -> Tensor:
        out = log_prior(rows)
        return (out + weights.to(out)).log_softmax(1)

    return prior


def _log_predictive(weights: Tensor, joint: Tensor, share: Tensor, answer: Tensor) -> Tensor:
    return ((joint + share * weights).log_softmax(1) + answer).logsumexp(1)


def _fit(parts: tuple[Tensor, ...], scale: float) -> Tensor:
    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.from_numpy(values).requires_grad_()
        loss = weights.square().sum() / (2.0 * scale**2) - _log_predictive(weights, *parts).sum()
        (gradient,) = torch.autograd.grad(loss, weights)
        return loss.item(), gradient.numpy()

    found = minimize(objective, np.zeros(parts[0].shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 50})
    weights = torch.from_numpy(found.x)
    return weights - weights.mean()
