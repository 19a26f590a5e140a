"""Who answers without looking: a likelihood ratio of "answers do not depend on the class" for each worker."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_annot.crowd.em import EMResult
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.types import Annotations

MOST_ELEMENTS = 1 << 25  # values of (answers, K) looked at; of more answers the latest count
PSEUDO = 2.0  # answers' worth of an even habit that every worker starts with
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

    ``posterior`` (N, K) of the items holds the answers of those who are ``known`` (W,) bool, whom ``result`` was fitted to. For
    each answer the item's class is taken from the other answers and the learner. By class: an answer is that class in one of
    ``SHARES`` of the cases, whichever explains the worker's answers best, and otherwise by habit or even. By habit: an answer
    has the share of the worker's other answers that are the same, or all are alike, with equal chances. No fitted confusion is
    asked here: it holds the answer itself, and where spammers are many it is theirs. An honest worker, for whom a model of the
    first kind is true, reaches a ratio of W / ``CERTAINTY`` with a probability of about ``CERTAINTY`` / W at most (Markov).
    Whoever's own confusion, from all his other answers, explains an answer as surely better than habit is no spammer; if he is
    also right less often than chance, he is an adversary.
    """
    n_workers, k = len(known), posterior.shape[1]
    worker, label, q = held_out(answers, posterior, result, tempering, known)
    chance = _habit(worker, label, n_workers, k), torch.full((len(label),), 1.0 / k)
    habit, even = (_sums(worker, p.log(), n_workers) for p in chance)
    agrees = q.gather(1, label[:, None])[:, 0]
    honest = [_sums(worker, (share * agrees + (1.0 - share) * p).log(), n_workers) for share in SHARES for p in chance]
    by_habit = torch.logaddexp(habit, even) - math.log(2.0)
    log_ratio = by_habit - torch.stack(honest).amax(0)
    counted = posterior[answers.item[len(answers) - len(worker) :]].float() * known[worker][:, None]
    alone = (q * _without(result, worker, label, counted)).sum(1)
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


def _without(result: EMResult, worker: Tensor, label: Tensor, own: Tensor) -> Tensor:
    """p(answer | class) of each answer (A, K) by the worker's confusion without it, which counts ``own`` (A, K) in the fit."""
    totals = result.row_totals()[worker]
    mass = result.log_answer(worker, label).exp() * totals
    return (mass - own).clamp(min=1e-6) / (totals - own).clamp(min=1e-6)


def _habit(worker: Tensor, label: Tensor, n_workers: int, k: int) -> Tensor:
    """Share of each answer's label among the worker's other answers, (A,), with ``PSEUDO`` even ones."""
    cell = worker * k + label
    same = torch.bincount(cell, minlength=n_workers * k)[cell] - 1
    return (same + PSEUDO / k) / (torch.bincount(worker, minlength=n_workers)[worker] - 1 + PSEUDO)


def _sums(worker: Tensor, value: Tensor, n_workers: int) -> Tensor:
    return torch.bincount(worker, value.double(), minlength=n_workers).double()  # of nothing torch counts in whole numbers
