"""Intervals of workers' accuracies: exact posteriors by enumeration, and their coverage over simulated crowds."""

from __future__ import annotations

from itertools import product
from math import exp, lgamma

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_annot.crowd import accuracy
from lightning_annot.crowd.accuracy import Accuracy, worker_accuracy
from lightning_annot.crowd.em import EMResult, run_em, write_posterior
from lightning_annot.crowd.priors import homogeneous_prior, with_experts
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.crowd.tiers import run_tiered_em
from lightning_annot.types import Annotations

WARMED = Tempering((1.0, 0.9, 0.8), (1.0, 1.0, 0.7))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def crowd(
    seed: int, n: int, n_answers: int, skill: Tensor, k: int = 10, scale: float = 1.5
) -> tuple[Annotations, Tensor, Tensor]:
    """Answers, a calibrated learner's log p(y | x), and the truth; workers are right with ``skill`` (W,), and err evenly."""
    g = generator(seed)
    log_prior = (scale * torch.randn(n, k, generator=g)).log_softmax(1)
    truth = torch.multinomial(log_prior.exp(), 1, generator=g)[:, 0]
    pair = torch.randperm(n * len(skill), generator=g)[:n_answers]
    item, worker = pair // len(skill), pair % len(skill)
    wrong = (truth[item] + torch.randint(1, k, (n_answers,), generator=g)) % k
    label = torch.where(torch.rand(n_answers, generator=g) < skill[worker], truth[item], wrong)
    return Annotations(item, worker, label), log_prior, truth


def fitted(answers: Annotations, log_prior: Tensor, n_workers: int) -> tuple[EMResult, Tensor]:
    result = run_tiered_em(answers, log_prior, homogeneous_prior(log_prior.shape[1]), n_workers)
    return result, write_posterior(result, log_prior, len(log_prior))


def true_share(answers: Annotations, truth: Tensor, n_workers: int) -> np.ndarray:
    right = (truth[answers.item] == answers.label).double()
    n = torch.bincount(answers.worker, minlength=n_workers)
    return (torch.bincount(answers.worker, right, minlength=n_workers) / n).numpy()


def exact(answers: Annotations, log_prior: Tensor, prior: Tensor, n_workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each worker's share of right answers, by all label vectors; confusions are integrated out."""
    n, k = log_prior.shape
    triples = list(zip(answers.item.tolist(), answers.worker.tolist(), answers.label.tolist(), strict=True))
    weight, shares = [], []
    for y in product(range(k), repeat=n):
        log_p = sum(float(log_prior[i, c]) for i, c in enumerate(y))
        for j, c in product(range(n_workers), range(k)):
            alpha = prior[j, c].tolist()
            counts = [sum(w == j and y[i] == c and z == label for i, w, z in triples) for label in range(k)]
            log_p += lgamma(sum(alpha)) - lgamma(sum(alpha) + sum(counts))
            log_p += sum(lgamma(a + m) - lgamma(a) for a, m in zip(alpha, counts, strict=True))
        weight.append(exp(log_p))
        shares.append([np.mean([y[i] == z for i, w, z in triples if w == j]) for j in range(n_workers)])
    mean = np.average(shares, axis=0, weights=weight)
    return mean, np.average((np.array(shares) - mean) ** 2, axis=0, weights=weight)


def test_the_sampler_has_the_exact_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers with priors of their own, so that nothing is pooled."""
    monkeypatch.setattr(accuracy, "EXPONENT_SPREAD", 0.0)
    monkeypatch.setattr(accuracy, "DRAWS", 4000)
    answers, log_prior, _ = crowd(3, 6, 14, torch.tensor([0.8, 0.6, 0.7]), k=2, scale=1.0)
    prior = torch.stack([homogeneous_prior(2, a, s) for a, s in ((0.8, 5.0), (0.6, 2.0), (0.7, 10.0))])
    result = run_em(answers, log_prior, prior, 3)
    posterior = write_posterior(result, log_prior, 6)
    sample = accuracy._take_sample(posterior, result, Tempering(), generator(), 1000)
    shares = []
    for y in accuracy._sweeps(sample, generator()):
        right = (y[torch.searchsorted(sample.rows, answers.item)] == answers.label).double()
        shares.append((torch.bincount(answers.worker, right) / torch.bincount(answers.worker)).numpy())
    mean, variance = exact(answers, log_prior, prior, 3)
    np.testing.assert_allclose(np.mean(shares, axis=0), mean, atol=0.015)
    np.testing.assert_allclose(np.var(shares, axis=0), variance, rtol=0.1)


@pytest.mark.parametrize("tempering", [Tempering(), WARMED])
def test_the_items_prior_is_what_the_fit_was_given(tempering: Tempering) -> None:
    """It is recovered from the posterior, up to a constant a row."""
    answers, log_prior, _ = crowd(0, 40, 120, torch.full((6,), 0.8), k=4)
    expert = torch.tensor([False] * 5 + [True])
    prior = with_experts(homogeneous_prior(4), expert)
    result = run_em(answers, log_prior, prior, 6, tempering=tempering, expert=expert)
    posterior = write_posterior(result, log_prior, 40, tempering=tempering)
    sample = accuracy._take_sample(posterior, result, tempering, generator(), 1000)
    n_answers = torch.bincount(answers.item, minlength=40)[sample.rows]
    expected = (tempering.of(n_answers)[0] * log_prior[sample.rows]).log_softmax(1)
    torch.testing.assert_close(sample.log_prior.log_softmax(1), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("k", [2, 10])
def test_intervals_cover_the_true_share(k: int) -> None:
    """Workers who are right in 50 to 100%, with 25 to 150 answers each, after few and many answers an item."""
    inside = []
    for (n, n_answers, n_workers), seed in product([(300, 300, 12), (2000, 1500, 40), (2000, 6000, 40)], range(4)):
        skill = 0.5 + 0.5 * torch.rand(n_workers, generator=generator(seed))
        answers, log_prior, truth = crowd(seed, n, n_answers, skill, k)
        found = worker_accuracy(answers, *fitted(answers, log_prior, n_workers)[::-1], Tempering(), generator(), n_workers)
        share = true_share(answers, truth, n_workers)
        inside.append((found.low <= share) & (share <= found.high))
    assert 0.85 <= np.concatenate(inside).mean() <= 0.97


def test_a_sample_of_the_items_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    skill = 0.5 + 0.5 * torch.rand(20, generator=generator())
    answers, log_prior, truth = crowd(0, 2000, 4000, skill)
    result, posterior = fitted(answers, log_prior, 20)
    whole = worker_accuracy(answers, posterior, result, Tempering(), generator(), 20)
    monkeypatch.setattr(accuracy, "MOST_ELEMENTS", 10 * 800)
    part = worker_accuracy(answers, posterior, result, Tempering(), generator(), 20)
    share = true_share(answers, truth, 20)
    assert np.mean((part.low <= share) & (share <= part.high)) >= 0.85
    assert np.abs(part.mean - share).mean() <= 0.03
    assert np.abs(whole.mean - share).mean() <= 0.03
    width = (part.high - part.low).mean() / (whole.high - whole.low).mean()
    assert 0.8 < width < 2.0


def certain(hits: list[int], misses: list[int]) -> Accuracy:
    """Of workers with so many right and wrong answers to items of certain class."""
    worker = np.repeat(np.arange(len(hits)), np.add(hits, misses))
    label = np.concatenate([np.repeat([0, 1], [h, m]) for h, m in zip(hits, misses, strict=True)])
    answers = Annotations(torch.arange(len(worker)), torch.from_numpy(worker), torch.from_numpy(label))
    log_prior = torch.full((len(worker), 3), -30.0)
    log_prior[:, 0] = 0.0
    result = run_em(answers, log_prior, homogeneous_prior(3), len(hits))
    posterior = write_posterior(result, log_prior, len(worker))
    return worker_accuracy(answers, posterior, result, Tempering(), generator(), len(hits))


def test_certain_labels_leave_nothing_open() -> None:
    found = certain([30, 0, 45, 1], [0, 30, 15, 0])
    assert found.mean == pytest.approx([1.0, 0.0, 0.75, 1.0])
    assert found.high[0] == 1.0
    assert found.low[1] == 0.0
    assert (found.low[2], found.high[2]) == pytest.approx((0.75, 0.75), abs=1e-4)
    assert (found.low <= found.mean).all()
    assert (found.mean <= found.high).all()


def test_few_answers_to_uncertain_items_make_a_wide_interval() -> None:
    answers, log_prior, _ = crowd(0, 400, 404, torch.tensor([0.8] * 10), scale=0.5)
    few = Annotations(torch.cat([answers.item, torch.tensor([1, 2])]), torch.cat([answers.worker, torch.tensor([10, 10])]),
                      torch.cat([answers.label, torch.tensor([3, 4])]))  # fmt: skip
    found = worker_accuracy(few, *fitted(few, log_prior, 11)[::-1], Tempering(), generator(), 11)
    width = found.high - found.low
    assert width[10] > 0.7
    assert width[10] > 2 * width[:10].max()


def test_workers_who_are_left_out_are_judged_by_the_labels() -> None:
    """The last worker has no part in the fit; half of that worker's items have no other answer."""
    answers, log_prior, truth = crowd(0, 200, 600, torch.tensor([0.9] * 5))
    result, posterior = fitted(answers, log_prior, 6)
    own = torch.arange(100)
    everything = Annotations(
        torch.cat([answers.item, own]),
        torch.cat([answers.worker, torch.full((100,), 5)]),
        torch.cat([answers.label, torch.where(own % 10 == 0, truth[own], (truth[own] + 1) % 10)]),
    )
    found = worker_accuracy(everything, posterior, result, Tempering(), generator(), 6)
    assert found.low[5] <= 0.1 <= found.high[5]
    assert found.mean[5] < 0.25


def test_random_numbers_come_from_the_generator_alone() -> None:
    answers, log_prior, _ = crowd(0, 100, 200, torch.tensor([0.8] * 5))
    result, posterior = fitted(answers, log_prior, 6)
    torch.manual_seed(1)
    first = worker_accuracy(answers, posterior, result, WARMED, generator(), 6)
    torch.manual_seed(2)
    again = worker_accuracy(answers, posterior, result, WARMED, generator(), 6)
    other = worker_accuracy(answers, posterior, result, WARMED, generator(1), 6)
    for name in ("mean", "low", "high"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (first.mean != other.mean)[:5].any()
    assert np.isnan(first.mean[5])  # no answers


def test_nobody_has_answered() -> None:
    none = Annotations(*(torch.empty(0, dtype=torch.int64) for _ in range(3)))
    log_prior = torch.zeros(5, 3).log_softmax(1)
    result = run_em(none, log_prior, homogeneous_prior(3), 2)
    found = worker_accuracy(none, log_prior.exp(), result, Tempering(), generator(), 2)
    assert np.isnan([found.mean, found.low, found.high]).all()
