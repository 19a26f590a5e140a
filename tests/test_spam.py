"""Simulated workers who answer without looking, and the log ratio in plain loops."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_annot.crowd.em import run_em, write_posterior
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.spam import CERTAINTY, PSEUDO, SHARES, Conduct, habit, judge_workers, own_confusion
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.crowd.tiers import run_tiered_em
from lightning_annot.types import Annotations


def right(k: int, accuracy: float) -> np.ndarray:
    """Confusion (K, K) with even errors."""
    confusion = np.full((k, k), (1.0 - accuracy) / (k - 1))
    np.fill_diagonal(confusion, accuracy)
    return confusion


def simulate(
    confusions: list[np.ndarray],
    seed: int,
    n: int = 400,
    each: int = 100,
    logit: float = 3.0,
    share: np.ndarray | None = None,
) -> tuple[Annotations, Tensor]:
    """``each`` answers of every worker in mixed order, and a learner's log p(y | x) that knows the truth by ``logit``.

    Items are drawn by the class ``share`` (K,), even by default, of which the learner knows nothing.
    """
    rng, k = np.random.default_rng(seed), len(confusions[0])
    truth = rng.integers(k, size=n) if share is None else rng.choice(k, size=n, p=share)
    logits = rng.normal(size=(n, k))
    logits[np.arange(n), truth] += logit
    item = np.concatenate([rng.choice(n, each, replace=False) for _ in confusions])
    worker = np.repeat(np.arange(len(confusions)), each)
    order = rng.permutation(len(item))
    item, worker = item[order], worker[order]
    label = (rng.random(len(item))[:, None] > np.array(confusions).cumsum(2)[worker, truth[item]]).sum(1).clip(max=k - 1)
    return Annotations(*map(torch.from_numpy, (item, worker, label))), torch.from_numpy(logits).log_softmax(1)


def judge(answers: Annotations, log_prior: Tensor, known: Tensor) -> Conduct:
    """As a round does it: the crowd is fitted to those who are known."""
    kept, k = known[answers.worker], log_prior.shape[1]
    own = Annotations(answers.item[kept], answers.worker[kept], answers.label[kept])
    result = run_tiered_em(own, log_prior, homogeneous_prior(k, dtype=torch.float64), len(known))
    return judge_workers(answers, write_posterior(result, log_prior, len(log_prior)), result, Tempering(), known)


def answers_until_flagged(confusions: list[np.ndarray], seed: int, step: int = 100, **options: float) -> np.ndarray:
    """Answers each worker had given when first called a spammer or an adversary, (W,); infinite for the others."""
    answers, log_prior = simulate(confusions, seed, **options)  # type: ignore[arg-type]
    first, known = np.full(len(confusions), np.inf), torch.ones(len(confusions), dtype=torch.bool)
    for upto in range(step, len(answers) + 1, step):
        seen = Annotations(answers.item[:upto], answers.worker[:upto], answers.label[:upto])
        conduct = judge(seen, log_prior, known)
        bad = (conduct.spammer | conduct.adversary).numpy()
        given = np.bincount(seen.worker.numpy(), minlength=len(confusions))
        first = np.where(bad, np.minimum(first, given), first)
        known = torch.from_numpy(~bad)
    return first


@pytest.mark.parametrize(("k", "most"), [(10, 60.0), (20, 60.0)])
def test_spammers_are_found_and_honest_workers_are_not(k: int, most: float) -> None:
    """Half of the workers are spammers; of the others one is right in 35% only, the rest in 70%. Over 20 seeds."""
    crowd = [right(k, 1.0 / k)] * 10 + [right(k, 0.7)] * 9 + [right(k, 0.35)]
    first = np.stack([answers_until_flagged(crowd, seed) for seed in range(20)])
    spammers, honest = first[:, :10], first[:, 10:]
    assert np.isinf(honest).all()
    assert np.isinf(spammers).mean() <= 0.02
    assert spammers[np.isfinite(spammers)].mean() <= most


def test_honest_workers_alone_stay() -> None:
    crowd = [right(6, accuracy) for accuracy in (0.9, 0.8, 0.7, 0.7, 0.6, 0.6, 0.5, 0.5)]
    assert all(np.isinf(answers_until_flagged(crowd, seed, logit=1.5)).all() for seed in range(10))


def test_half_spammers_and_no_learner_condemn_nobody_honest() -> None:
    """Nothing but the answers says who is right."""
    crowd = [right(10, 0.1)] * 10 + [right(10, 0.7)] * 10
    for seed in range(5):
        answers, log_prior = simulate(crowd, seed)
        conduct = judge(answers, torch.full_like(log_prior, -math.log(10)), torch.ones(20, dtype=torch.bool))
        assert not bool((conduct.spammer | conduct.adversary)[10:].any())


@pytest.mark.parametrize("k", [4, 10])
def test_always_the_same_class_is_spam(k: int) -> None:
    constant = np.zeros((k, k))
    constant[:, 2] = 1.0
    for seed in range(5):
        answers, log_prior = simulate([right(k, 0.7)] * 9 + [constant], seed)
        conduct = judge(answers, log_prior, torch.ones(10, dtype=torch.bool))
        assert conduct.spammer.nonzero()[:, 0].tolist() == [9]
        assert not bool(conduct.adversary.any())


def test_shifted_labels_are_an_adversary() -> None:
    shifted = np.roll(right(4, 0.9), 1, axis=1)
    for seed in range(5):
        answers, log_prior = simulate([right(4, 0.7)] * 9 + [shifted], seed, each=150)
        conduct = judge(answers, log_prior, torch.ones(10, dtype=torch.bool))
        assert conduct.adversary.nonzero()[:, 0].tolist() == [9]
        assert not bool(conduct.spammer.any())


def test_one_class_nearly_always_true_makes_no_spammers() -> None:
    """Who says the common class nearly always, since it is true, still follows the class."""
    rng, k = np.random.default_rng(0), 4
    truth = np.where(rng.random(300) < 0.9, 0, rng.integers(k, size=300))
    logits = rng.normal(size=(300, k))
    logits[np.arange(300), truth] += 2.0
    item, worker = np.tile(np.arange(300), 5), np.repeat(np.arange(5), 300)
    label = np.where(rng.random(1500) < 0.8, truth[item], rng.integers(k, size=1500))
    answers = Annotations(*map(torch.from_numpy, (item, worker, label)))
    conduct = judge(answers, torch.from_numpy(logits).log_softmax(1), torch.ones(5, dtype=torch.bool))
    assert not bool((conduct.spammer | conduct.adversary).any())


def shares(k: int, largest: float) -> np.ndarray:
    """Class shares (K,): the first class has ``largest``, the others share the rest evenly."""
    return np.array([largest, *[(1.0 - largest) / (k - 1)] * (k - 1)])


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("largest", [0.9, 0.97])
@pytest.mark.parametrize("k", [2, 10])
def test_honest_workers_stay_where_one_class_dominates(k: int, largest: float, told: bool) -> None:
    """Ten workers, right in 85 or 95%; the learner tells classes apart, or knows nothing but the class shares."""
    crowd, share = [right(k, 0.95)] * 5 + [right(k, 0.85)] * 5, shares(k, largest)
    for seed, logit, each in product(range(4), (0.0, 2.0) if told else (2.0,), (100, 200)):
        answers, log_prior = simulate(crowd, seed, n=20 * each // 2, each=each, logit=logit, share=share)
        if told:
            log_prior = (log_prior + torch.from_numpy(share).log()).log_softmax(1)
        conduct = judge(answers, log_prior, torch.ones(10, dtype=torch.bool))
        assert not bool((conduct.spammer | conduct.adversary).any())


@pytest.mark.parametrize("k", [2, 10])
def test_spammers_are_found_where_one_class_dominates(k: int) -> None:
    """Three of ten answer at random; nine items in ten are of one class."""
    crowd, share = [right(k, 0.85)] * 7 + [right(k, 1.0 / k)] * 3, shares(k, 0.9)
    found = torch.zeros(10, dtype=torch.int64)
    for seed in range(3):
        answers, log_prior = simulate(crowd, seed, n=1000, each=250, share=share)
        log_prior = (log_prior + torch.from_numpy(share).log()).log_softmax(1)
        conduct = judge(answers, log_prior, torch.ones(10, dtype=torch.bool))
        found += conduct.spammer
    assert found[:7].tolist() == [0] * 7
    assert int(found[7:].sum()) >= 8  # of nine


@pytest.mark.parametrize(("k", "n"), [(2, 1), (2, 10), (3, 6), (5, 4)])
def test_habit_and_own_confusion_are_probabilities(k: int, n: int) -> None:
    """Over all sequences of n answers, each sums to 1."""
    label = torch.tensor(list(product(range(k), repeat=n)))
    worker = torch.arange(len(label))[:, None].expand_as(label)
    by_habit = habit(worker.flatten(), label.flatten(), k).double().view(label.shape).prod(1)
    assert float(by_habit.sum()) == pytest.approx(1.0, abs=1e-5)
    none = Annotations(*(torch.empty(0, dtype=torch.int64) for _ in range(3)))
    fit = run_em(none, torch.zeros(1, k, dtype=torch.float64), homogeneous_prior(k, dtype=torch.float64), len(label))
    q = torch.randn(n, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)
    own = own_confusion(fit, worker.flatten(), label.flatten(), q.repeat(len(label), 1)).view(*label.shape, k)
    assert float((own * q).sum(2).prod(1).sum()) == pytest.approx(1.0, abs=1e-9)


def test_the_habit_of_two_classes_is_that_of_krichevsky_and_trofimov() -> None:
    label = torch.tensor([1, 1, 0, 1])
    expected = [0.5, 1.5 / 2, 0.5 / 3, 2.5 / 4]
    assert habit(torch.zeros(4, dtype=torch.int64), label, 2).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("excluded", [None, 2])
@pytest.mark.parametrize("tempering", [Tempering(), Tempering((0.8, 0.7, 0.6), (1.0, 0.9, 0.5))])
def test_log_ratio_equals_plain_loops(excluded: int | None, tempering: Tempering) -> None:
    k, n, n_workers = 3, 12, 4
    answers, log_prior = simulate([right(k, 0.7)] * n_workers, 3, n=n, each=8, logit=1.0)
    known = torch.ones(n_workers, dtype=torch.bool)
    if excluded is not None:
        known[excluded] = False
    kept = known[answers.worker]
    own = Annotations(answers.item[kept], answers.worker[kept], answers.label[kept])
    result = run_em(own, log_prior, homogeneous_prior(k, dtype=torch.float64), n_workers, tempering=tempering)
    posterior = write_posterior(result, log_prior, n, tempering=tempering)
    conduct = judge_workers(answers, posterior, result, tempering, known)
    triples = list(zip(answers.item.tolist(), answers.worker.tolist(), answers.label.tolist(), strict=True))
    confusions = result.confusions().tolist()
    for j in range(n_workers):
        mine = [(i, z) for i, worker, z in triples if worker == j]
        by_habit, even, honest = 0.0, 0.0, [0.0] * (4 * len(SHARES))
        told = [1.0] * k
        for _, w, label in triples:
            told[label] += w != j and bool(known[w])
        for at, (i, z) in enumerate(mine):
            trusted = [(w, label) for item, w, label in triples if item == i and bool(known[w])]
            level = min(len(trusted), len(tempering.model) - 1)
            a, b = tempering.model[level], tempering.people[level]
            others = [(w, label) for w, label in trusted if w != j]
            log_q = [a * float(log_prior[i, y]) + b * sum(math.log(confusions[w][y][c]) for w, c in others) for y in range(k)]
            q = math.exp(log_q[z]) / sum(math.exp(v) for v in log_q)
            common = told[z] * math.exp(log_q[z]) / sum(t * math.exp(v) for t, v in zip(told, log_q, strict=True))
            same = sum(label == z for _, label in mine[:at])
            share = (same + PSEUDO / k) / (at + PSEUDO)
            by_habit, even = by_habit + math.log(share), even - math.log(k)
            chances = [(s, true, p) for s in SHARES for true in (q, common) for p in (share, 1.0 / k)]
            honest = [h + math.log(s * true + (1.0 - s) * p) for h, (s, true, p) in zip(honest, chances, strict=True)]
        ratio = math.log(0.5 * math.exp(by_habit) + 0.5 * math.exp(even)) - max(honest)
        assert float(conduct.log_ratio[j]) == pytest.approx(ratio, abs=2e-4)
        assert bool(conduct.spammer[j]) <= (ratio > math.log(n_workers / CERTAINTY))


def test_silent_workers_are_neither() -> None:
    answers, log_prior = simulate([right(4, 0.7)] * 3, 0, n=30, each=10)
    conduct = judge(answers, log_prior, torch.ones(5, dtype=torch.bool))
    assert conduct.log_ratio[3:].tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert not bool((conduct.spammer | conduct.adversary)[3:].any())
