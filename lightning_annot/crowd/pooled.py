"""The first tier of the crowd model: one confusion for all workers, learned together with the shares of the classes.

Row y of the confusion is right with probability r_y, and errs to class z with probability (1 - r_y) e_yz:

    r_y ~ Beta(s rho, s (1 - rho)),     e_y ~ Dir(t / (K - 1), ...),     rho ~ Beta(10 a, 10 (1 - a))

``a`` is what is believed of a worker before any answer. rho and the strengths s and t make the expected counts most probable
(empirical Bayes, Minka 2000): classes that are alike share what is known of them, and no fixed number of pseudo-counts holds
good workers down.

Class shares. The learner is trained with all classes alike, so p(y | x) lacks the factor pi_y where they are not. pi maximises
the likelihood of the answers, given which items were asked,

    sum_i log (sum_y pi_y p_i(y) L_i(y) / sum_y pi_y p_i(y)) + sum_y 2 log pi_y

with L_i the likelihood of item i's answers. Without shares EM explains correct answers for a large class away as confusion. One
answer an item hardly tells "the class is rare" from "workers do not see it": both fit. EM stays near where it begins, so with
shares it begins where people are mostly right and classes have the shares of what was said; the learner and second answers
then tell. Shares by which p of all items agrees with itself (label shift: Saerens, Latinne & Decaestecker 2002) are no help:
with few prototypes p is biased, and they run to 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import betaln, gammaln
from torch import Tensor

from lightning_annot.crowd.incidence import Incidence

PRIOR_ANSWERS = 10.0  # answers' worth of the accuracy that is believed beforehand
TYPICAL, SPREAD = 30.0, 1.0  # log-normal prior of s and t: median, and standard deviation of the logarithm
BOUNDS = (1.0, 1000.0)  # of s and t
PSEUDO_ITEMS = 2.0  # of each class, in the shares
START = 0.95  # accuracy that the fit with shares begins with
ITEMS_A_CLASS = 100  # answered, before shares are used: with fewer, poor workers make a class look rare
MOST_ELEMENTS = 1 << 19  # values of (items, K) that the shares are fitted to
_TELLING = 1e-3  # expected errors that tell of t


@dataclass(frozen=True)
class Rivals:
    """Two accounts of the same answers, to be compared by what comes next.

    Attributes:
        log_share: (K,) log class shares of the first account; the second has all classes alike.
        with_shares: (K, K) pooled confusion of the first.
        without: (K, K) that of the second.
        gain: nats by which the shares explain answers better than even ones do, given the first confusion.
        n: answered items that these are of, a sample where there are many.
        answered: all answered items.
    """

    log_share: Tensor
    with_shares: Tensor
    without: Tensor
    gain: float
    n: int
    answered: int

    @property
    def differ(self) -> bool:
        """Whether classes are of unequal size, by Schwarz's criterion (BIC, 1978): K - 1 more parameters.

        Until 100 items a class are answered, they are taken as equal.
        """
        k = len(self.log_share)
        return self.answered >= ITEMS_A_CLASS * k and self.gain > 0.5 * (k - 1) * float(np.log(self.n))


def shrunk_confusion(counts: Tensor, accuracy: float) -> Tensor:
    """Posterior mean of the confusion.

    Args:
        counts: (K, K) expected answers, row = true class, column = answer.
        accuracy: what is believed of a worker beforehand.

    Returns:
        (K, K), rows sum to 1, all above 0.
    """
    n = counts.double().numpy()
    k = len(n)
    if k < 2:
        return torch.ones_like(counts)
    right, total = n.diagonal(), n.sum(1)
    rho, s = _diagonal(right, total, accuracy)
    off = n * (1.0 - np.eye(k))
    wrong = off.sum(1)
    t = _strength_of_errors(off, wrong) if k > 2 else TYPICAL
    r = (s * rho + right) / (s + total)
    out = (1.0 - r)[:, None] * (t / (k - 1) + off) / (t + wrong)[:, None]
    np.fill_diagonal(out, r)
    return torch.from_numpy(out).to(counts)


def _diagonal(right: np.ndarray, total: np.ndarray, accuracy: float) -> tuple[float, float]:
    """Return rho and s."""
    wrong = total - right

    def loss(x: np.ndarray) -> float:
        rho, s = 1.0 / (1.0 + np.exp(-x[0])), np.exp(x[1])
        a, b = s * rho, s * (1.0 - rho)
        prior = PRIOR_ANSWERS * (accuracy * np.log(rho) + (1.0 - accuracy) * np.log1p(-rho))
        return float(
            (x[1] - np.log(TYPICAL)) ** 2 / (2 * SPREAD**2) - prior - (betaln(a + right, b + wrong) - betaln(a, b)).sum()
        )

    start = np.array([np.log(accuracy / (1.0 - accuracy)), np.log(TYPICAL)])
    found = minimize(loss, start, method="L-BFGS-B", bounds=[(-7.0, 7.0), tuple(np.log(BOUNDS))])
    return 1.0 / (1.0 + float(np.exp(-found.x[0]))), float(np.exp(found.x[1]))


def _strength_of_errors(off: np.ndarray, wrong: np.ndarray) -> float:
    """Return t; errors that are not expected to occur do not change it."""
    k, some = len(off), off[off > _TELLING]

    def loss(log_t: float) -> float:
        t = np.exp(log_t)
        even = t / (k - 1)
        gain = (gammaln(even + some) - gammaln(even)).sum() - (gammaln(t + wrong) - gammaln(t)).sum()
        return float((log_t - np.log(TYPICAL)) ** 2 / (2 * SPREAD**2) - gain)

    found = minimize_scalar(loss, bounds=tuple(np.log(BOUNDS)), method="bounded", options={"xatol": 0.02})
    return float(np.exp(found.x))


def pair_counts(inc: Incidence, counts: Tensor, worker: int) -> Tensor:
    """Expected ``counts`` (P, K) of one worker as (K, K), row = true class."""
    ours = inc.pair_worker == worker
    out = counts.new_zeros(inc.n_classes, inc.n_classes)
    out[inc.pair_label[ours]] = counts[ours]
    return out.T


def fit_shares(model: Tensor, people: Tensor, exponent: Tensor, start: Tensor) -> tuple[Tensor, float, int]:
    """Fit the class shares to answers, given the confusions.

    Args:
        model: (n, K) log p(y | x) of answered items.
        people: (n, K) log-likelihood of their answers, tempered.
        exponent: (n, 1) power of p(y | x) pi_y of each.
        start: (K,) log shares to begin with.

    Returns:
        (K,) log shares, whose exponentials sum to 1; the nats that they gain on even ones; the number of items, n.
    """
    model, people, exponent = (t.double() for t in (model, people, exponent))

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        log_share = torch.from_numpy(values).log_softmax(0)
        joint = exponent * (model + log_share)
        answers = ((joint + people).logsumexp(1) - joint.logsumexp(1)).sum()
        loss = -(answers + PSEUDO_ITEMS * log_share.sum())
        # By hand, as Lightning tests under inference mode, where autograd has nothing to go by.
        slope = -(exponent * ((joint + people).softmax(1) - joint.softmax(1))).sum(0) - PSEUDO_ITEMS
        return loss.item(), (slope - log_share.exp() * slope.sum()).numpy()

    found = minimize(objective, start.double().numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 25})
    even, _ = objective(np.zeros(len(start)))
    return torch.from_numpy(found.x).log_softmax(0), even - float(found.fun), len(model)
