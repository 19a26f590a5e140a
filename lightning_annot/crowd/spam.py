"""Find workers who answer without looking: a likelihood ratio of "the answers do not depend on the class" for each worker."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_annot.crowd.em import EMResult
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.types import Annotations

MOST_ELEMENTS = 1 << 24  # values of (answers, K) looked at; of more answers the latest count
PSEUDO = 1.0  # answers' worth of an even habit that every worker starts with
LAPSE = 0.05  # share of answers that even an honest worker gives by chance
SHARES = (0.4, 0.6, 0.8, 0.95)  # of an honest worker's answers that are the item's class; the rest come at random
CERTAINTY = 1e-3  # chance, over all workers, that an honest one is called a spammer


@dataclass(frozen=True)
class Conduct:
    """``log_ratio`` (W,): log p(answers | by habit) - log p(answers | by class); ``spammer``, ``adversary`` (W,) bool."""

    log_ratio: Tensor
    spammer: Tensor
    adversary: Tensor


def judge_workers(answers: Annotations, posterior: Tensor, result: EMResult, tempering: Tempering, known: Tensor) -> Conduct:
    """Compare, for each worker, answers by habit with answers by class.

    For each answer, the item's class is taken from the other answers and the learner.

    - By habit: the answer depends on the worker's earlier answers alone, or all classes are equally likely; both have equal
      chances. This is a probability: over all sequences of answers it sums to 1.
    - By class: the answer is the item's class in one of ``SHARES`` of the cases, and otherwise by habit or even. The item's
      class is believed as ``posterior`` has it, or with the class shares of ``with_class_shares`` as well. The best of these
      explanations counts.

    An honest worker, for whom an explanation by class is true, therefore reaches a ratio of W / ``CERTAINTY`` with a
    probability of at most ``CERTAINTY`` / W (Markov). Fitted confusions are not used here: they contain the answer itself, and
    where spammers are many they are theirs.

    A worker whose own confusion, learned from the earlier answers, explains the answers surely better than habit is no
    spammer; if this worker is also right less often than chance, it is an adversary.

    Args:
        answers: All answers, in the order of the log.
        posterior: What is believed of each item, (N, K), class shares included; from the answers of ``known`` workers.
        result: The EM that was fitted to those answers.
        tempering: The exponents of ``posterior``.
        known: Workers whose answers are believed, (W,) bool.

    Returns:
        The log ratio and the verdicts, each (W,).
    """
    n_workers, k = len(known), posterior.shape[1]
    worker, label, q = held_out(answers, posterior, result, tempering, known)
    chance = habit(worker, label, k), torch.full((len(label),), 1.0 / k)
    by_habit = torch.logaddexp(*(_sums(worker, p.log(), n_workers) for p in chance)) - math.log(2.0)
    agrees = q.gather(1, label[:, None])[:, 0], with_class_shares(q, worker, label, known)
    honest = [
        _sums(worker, (share * true + (1.0 - share) * p).log(), n_workers)
        for share in SHARES
        for true in agrees
        for p in chance
    ]
    log_ratio = by_habit - torch.stack(honest).amax(0)
    alone = (q * own_confusion(result, worker, label, q)).sum(1)
    own = _sums(worker, ((1.0 - LAPSE) * alone + LAPSE / k).log(), n_workers) - by_habit
    certain = math.log(max(1, n_workers) / CERTAINTY)
    poor = result.diagonal().mean(1) < 1.0 / k
    return Conduct(log_ratio, (log_ratio > certain) & (own <= certain), (own > certain) & poor & known)


def held_out(
    answers: Annotations, posterior: Tensor, result: EMResult, tempering: Tempering, known: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Worker (A,), label (A,) and, by all but this answer, the class of its item, (A, K), of the latest answers.

    Arguments as in ``judge_workers``; the answers looked at are the last A, as many as ``MOST_ELEMENTS`` allow.
    """
    n_answers = torch.bincount(answers.item, known[answers.worker].double(), minlength=len(posterior)).long()
    latest = slice(max(0, len(answers) - MOST_ELEMENTS // posterior.shape[1]), None)
    item, worker, label = answers.item[latest], answers.worker[latest], answers.label[latest]
    _, people = tempering.of(n_answers[item])
    log_q = posterior[item].float().clamp(min=1e-30).log()
    log_q -= torch.where(known[worker][:, None], people * result.log_answer(worker, label), 0.0)
    return worker, label, log_q.softmax(1)


def with_class_shares(q: Tensor, worker: Tensor, label: Tensor, known: Tensor) -> Tensor:
    """Probability that each answer is its item's class (A,), by ``q`` times the class shares that other workers report.

    A learner that is trained with all classes alike does not know that one of them dominates. As long as the run has not
    learned the class shares, ``q`` lacks them, and a worker who rightly gives the common answer seems to follow a habit. The
    share of a class is that of the answers of all other workers who are ``known`` (W,) bool, with one more of each class.

    Args:
        q: The class of each answer's item by all but this answer, (A, K), rows sum to 1.
        worker: Worker of each answer, (A,).
        label: Class of each answer, (A,).
        known: Workers whose answers are believed, (W,) bool.
    """
    k = q.shape[1]
    own = torch.bincount(worker * k + label, minlength=len(known) * k).view(-1, k) * known[:, None]
    weight = q * (own.sum(0) - own + 1).to(q)[worker]
    return weight.gather(1, label[:, None])[:, 0] / weight.sum(1)


def own_confusion(result: EMResult, worker: Tensor, label: Tensor, q: Tensor) -> Tensor:
    """p(answer | class) of each answer (A, K) by the worker's prior and the expected counts of the worker's earlier answers.

    ``q`` (A, K): the class of each answer's item by all but this answer.
    """
    totals = result.prior.totals()
    prior = totals if totals.ndim == 1 else totals[worker]
    mass = result.prior.rows(worker, label) + _earlier(q, worker * q.shape[1] + label)
    return mass / (prior + _earlier(q, worker))


def habit(worker: Tensor, label: Tensor, k: int) -> Tensor:
    """Probability of each answer's label (A,) by the same worker's earlier answers, with ``PSEUDO`` even ones.

    A symmetric Dirichlet prior; with two classes, the estimator of Krichevsky and Trofimov (1981).
    """
    one = torch.ones(len(label), 1)
    same, given = _earlier(one, worker * k + label)[:, 0], _earlier(one, worker)[:, 0]
    return (same + PSEUDO / k) / (given + PSEUDO)


def _earlier(value: Tensor, group: Tensor) -> Tensor:
    """Sum of ``value`` (A, C) over the earlier rows of the same ``group`` (A,), (A, C)."""
    order = torch.argsort(group, stable=True)
    value_of = value[order]
    total = value_of.cumsum(0, dtype=torch.float64).sub_(value_of)
    _, size = torch.unique_consecutive(group[order], return_counts=True)
    first = (size.cumsum(0) - size).repeat_interleave(size)
    return torch.empty_like(value).index_copy_(0, order, (total - total[first]).to(value))


def _sums(worker: Tensor, value: Tensor, n_workers: int) -> Tensor:
    return torch.bincount(worker, value.double(), minlength=n_workers).double()  # torch counts an empty tensor in whole numbers
