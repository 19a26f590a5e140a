"""Machine workers: models that say of every item, for free, how probable they find each class.

A machine sees a class z in item i with probability s_i(z), calibrated on prototypes as far as it can be. As a person does, it
takes classes for each other: w[y, z] is the probability that it sees z where y is true. So an item's evidence is

    e_i(y) = log sum_z s_i(z) w[y, z]

w maximises the likelihood of what people answered and of the prototypes' classes, whatever any other machine says:

    sum_i log sum_y b_i(y) sum_z s_i(z) w[y, z] + sum_yz m[y, z] log w[y, z]

with b_i(y) the likelihood of the people's answers about item i, or of a prototype's class, and pseudo-counts m as a person has.
EM: the expected counts of (y, z) are b_i(y) s_i(z) w[y, z] over their sum; where a machine is certain, this is the M step of
a person's confusion.

Machines and the learner fail on the same items, so their evidence must not be multiplied as if each had looked for itself. The
prior of an item is

    log p_i(y) = v_0 log p(y | x_i) + sum_m v_m e_im(y) - log of the sum over y

and v maximises the likelihood of prototypes and of answers that no learner has seen (crowd/tempering.py), shrunk to the
geometric mean, v = 1 / (1 + M): of two machines that say the same, both together have the weight of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from lightning_annot.crowd.em import LogPrior
from lightning_annot.crowd.tempering import FreshAnswers, Tempering

MOST_WEIGHT = 2.0  # of the learner, and of each machine
SCALE = 0.3  # standard deviation of the weights around the geometric mean
ITERATIONS, TOLERANCE = 200, 1e-5


@dataclass(frozen=True)
class Machine:
    """``log_answer``: rows (n,) -> what it says, log s (n, K), rows sum to 1; expected ``counts`` (K, K), prior included."""

    name: str
    log_answer: LogPrior
    counts: Tensor

    @property
    def confusion(self) -> Tensor:
        """p(it sees z | y), (K, K), rows sum to 1."""
        return self.counts / self.counts.sum(1, keepdim=True)

    def evidence(self, rows: Tensor) -> Tensor:
        """log p(what it says | y) up to a constant, of items ``rows`` (n,), (n, K)."""
        return (self.log_answer(rows).exp() @ self.confusion.T).clamp(min=1e-30).log()


def fit_confusion(log_belief: Tensor, log_answer: Tensor, pseudo_counts: Tensor) -> Tensor:
    """Expected counts (K, K) of (true class, seen class), prior included, by EM.

    ``log_belief`` (n, K): log b, up to a constant a row; ``log_answer`` (n, K): log s; ``pseudo_counts`` (K, K).
    """
    belief, answer = log_belief.double().softmax(1), log_answer.double().exp()
    counts = prior = pseudo_counts.double()
    before = -np.inf
    for _ in range(ITERATIONS):
        confusion = counts / counts.sum(1, keepdim=True)
        share = (belief * (answer @ confusion.T)).sum(1, keepdim=True)
        objective = float(share.log().sum() + (prior * confusion.log()).sum())
        counts = prior + confusion * ((belief / share).T @ answer)
        if objective - before <= TOLERANCE * max(1, len(belief)):
            break
        before = objective
    return counts.to(pseudo_counts)


def leave_one_out(machine: Machine, rows: Tensor, label: Tensor) -> Tensor:
    """Evidence (P, K) about prototypes ``rows`` (P,) of classes ``label`` (P,), each by the confusion without it."""
    answer, confusion = machine.log_answer(rows).exp(), machine.confusion
    seen = answer * confusion[label]
    seen = seen / seen.sum(1, keepdim=True)  # what the prototype adds to the row of its class
    out = answer @ confusion.T
    rest = (machine.counts[label] - seen).clamp(min=1e-6)
    out[torch.arange(len(rows)), label] = (answer * rest).sum(1) / rest.sum(1)
    return out.clamp(min=1e-30).log()


def as_answers(machines: Sequence[Machine], rows: Tensor, label: Tensor, log_prior: LogPrior) -> FreshAnswers:
    """Prototypes ``rows`` (P,) of classes ``label`` (P,) as certain answers, with what learner and machines make of them."""
    model = log_prior(rows)
    said = torch.stack([leave_one_out(machine, rows, label) for machine in machines], dim=1)
    certain = torch.nn.functional.one_hot(label, model.shape[1]).to(model).clamp(min=1e-13).log()
    return FreshAnswers(model, torch.zeros_like(model).double(), certain, torch.zeros_like(rows), said)


def even_weights(n_machines: int) -> Tensor:
    """v (1 + M,) of the geometric mean: the learner first, then the machines."""
    return torch.full((1 + n_machines,), 1.0 / (1 + n_machines))


def combine(model: Tensor, machines: Tensor, weights: Tensor) -> Tensor:
    """log p (n, K) of the learner's log p ``model`` (n, K) and the ``machines``' evidence (n, M, K) by ``weights`` (1 + M,)."""
    weights = weights.to(model)
    return (weights[0] * model + torch.einsum("m,nmk->nk", weights[1:], machines.to(model))).log_softmax(1)


def with_machines(log_prior: LogPrior, machines: Sequence[Machine], weights: Tensor) -> LogPrior:
    """The learner's log p(y | x), ``log_prior``, with what the ``machines`` say; without any it stays as it is."""
    if not machines:
        return log_prior

    def prior(rows: Tensor) -> Tensor:
        model = log_prior(rows)
        return combine(model, torch.stack([machine.evidence(rows) for machine in machines], dim=1), weights)

    return prior


def fit_weights(fresh: FreshAnswers, tempering: Tempering) -> Tensor:
    """v (1 + M,) that maximises sum log sum_y q(y) p(answer | y) - |v - even|^2 / (2 ``SCALE``^2).

    q(y) is proportional to p(y)^a likelihood(y)^b, p of ``combine``, under the exponents of ``tempering``.
    """
    assert fresh.machines is not None
    a, b = (e.double() for e in tempering.of(fresh.earlier))
    parts = torch.cat([fresh.model[:, None], fresh.machines], dim=1).double()
    people, answer = b * fresh.people.double(), fresh.answer.double()
    centre = even_weights(fresh.machines.shape[1]).double()

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        away = torch.from_numpy(values) - centre
        log_q = (a * torch.einsum("m,nmk->nk", away + centre, parts) + people).log_softmax(1)
        gain = (log_q + answer).logsumexp(1)
        learned = (log_q + answer - gain[:, None]).exp() - log_q.exp()  # belief after the answer, less that before it
        slope = torch.einsum("nk,nmk->m", a * learned, parts)
        return float(away.square().sum() / (2.0 * SCALE**2) - gain.sum()), (away / SCALE**2 - slope).numpy()

    found = minimize(objective, centre.numpy(), jac=True, method="L-BFGS-B", bounds=[(0.0, MOST_WEIGHT)] * len(centre))
    return torch.from_numpy(found.x).float()
