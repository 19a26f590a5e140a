"""The oracle bound against plain loops; who is worth asking; and a learner that never sees what it is judged by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_annot.experiments.bound import (
    STRENGTH,
    Source,
    bound_rounds,
    oracle_log_probability,
    recorded_source,
    simulated_source,
    worker_gain,
)
from lightning_annot.types import AnnotError


def slow_rounds(
    prior: np.ndarray, truth: np.ndarray, keep: np.ndarray, source: Source, who: str, cap: int, per_round: int, seed: int
) -> list[tuple[float, float, float]]:
    """``bound_rounds`` in plain loops over probabilities: answers an item, accuracy and finished share of each round."""
    confusions, pooled = source.confusions.numpy(), source.pooled.numpy()
    generator = torch.Generator().manual_seed(seed)
    posterior, asked = prior.copy(), [set[int]() for _ in truth]
    k, rows = prior.shape[1], []
    while True:
        kept = [i for i in range(len(truth)) if keep[i]]
        right = [posterior[i].argmax() == truth[i] for i in kept]
        done = [1 - posterior[i].max() < 0.1 for i in kept]
        rows.append((sum(map(len, asked)) / len(kept), float(np.mean(right)), float(np.mean(done))))

        def gain(i: int, confusion: np.ndarray) -> float:
            best = sum(max(posterior[i, y] * confusion[y, z] for y in range(k)) for z in range(k))
            return best - posterior[i].max()

        def free(i: int) -> list[int]:
            return [s for s in range(source.worker.shape[1]) if source.worker[i, s] >= 0 and s not in asked[i]]

        among = [i for i, d in zip(kept, done, strict=True) if not d and len(asked[i]) < cap and free(i)]
        if not among:
            return rows
        among.sort(key=lambda i: (-round(max(0.0, gain(i, pooled)), 12), posterior[i].max()))
        chosen = among[:per_round]
        chance = torch.rand((len(chosen), source.worker.shape[1]), generator=generator, dtype=torch.float64).numpy()
        for i, luck in zip(chosen, chance, strict=True):
            score = {s: -s for s in free(i)} if who == "next" else {s: luck[s] for s in free(i)}
            if who == "best":
                score = {s: gain(i, confusions[source.worker[i, s]]) for s in free(i)}
            place = max(score, key=score.__getitem__)
            (label,) = source.answer(np.array([i]), np.array([place]))
            asked[i].add(place)
            posterior[i] = posterior[i] * confusions[source.worker[i, place], :, label]
            posterior[i] /= posterior[i].sum()


@pytest.mark.parametrize("who", ["random", "best"])
def test_bound_of_simulated_workers_is_that_of_plain_loops(who: str) -> None:
    rng = np.random.default_rng(3)
    n, k, n_workers = 40, 4, 5
    prior, truth = rng.dirichlet(np.full(k, 0.7), n), rng.integers(k, size=n)
    confusions = np.stack([rng.dirichlet(1 + 9 * np.eye(k)[y], n_workers) for y in range(k)], 1)
    said = np.array([[rng.choice(k, p=confusions[j, y]) for y in truth] for j in range(n_workers)])
    source = simulated_source(confusions, n, lambda worker, item: said[worker, item])
    check_bound(prior, truth, source, who)


@pytest.mark.parametrize("who", ["next", "best"])
def test_bound_of_recorded_people_is_that_of_plain_loops(who: str) -> None:
    rng = np.random.default_rng(4)
    n, k = 40, 4
    prior, truth = rng.dirichlet(np.full(k, 0.7), n), rng.integers(k, size=n)
    item = np.sort(rng.integers(n, size=90))
    worker = np.concatenate([rng.permutation(6)[: (item == i).sum()] if (item == i).any() else [] for i in range(n)])
    item = np.concatenate([np.full(min(6, (item == i).sum()), i) for i in range(n)])
    label = np.where(rng.random(len(item)) < 0.7, truth[item], rng.integers(k, size=len(item)))
    source = recorded_source(item, worker.astype(np.int64), label, truth, k)
    counts = np.zeros((k, k))
    for j, (i, z) in zip(worker, zip(item, label, strict=True), strict=True):
        counts[truth[i], z] += j == 2
    expected = counts + STRENGTH * source.pooled.numpy()
    np.testing.assert_allclose(source.confusions[2].numpy(), expected / expected.sum(1, keepdims=True))
    check_bound(prior, truth, source, who)


def check_bound(prior: np.ndarray, truth: np.ndarray, source: Source, who: Any) -> None:
    """Both versions give the same rounds, without ever asking about what is not kept."""
    keep = np.arange(len(truth)) >= 6
    tensors = torch.from_numpy(prior).log(), torch.from_numpy(truth), torch.from_numpy(keep)
    found = bound_rounds(*tensors, source, who, threshold=0.1, cap=3, per_round=7, seed=5)
    slow = slow_rounds(prior, truth, keep, source, who, 3, 7, 5)
    assert len(found) == len(slow) > 4
    np.testing.assert_allclose(found[["annotations_per_item", "accuracy", "finished_fraction"]].to_numpy(), slow)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_gain_of_a_worker_is_not_negative_and_nothing_for_who_says_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    posterior = torch.from_numpy(rng.dirichlet(np.ones(3), 5))
    silent = np.broadcast_to(rng.dirichlet(np.ones(3)), (3, 3))
    confusions = torch.from_numpy(np.stack([rng.dirichlet(np.ones(3), 3), silent, np.eye(3)]))
    gain = worker_gain(posterior, confusions, np.tile(np.arange(3), (5, 1)))
    assert bool((gain >= -1e-12).all())
    np.testing.assert_allclose(gain[:, 1], 0, atol=1e-12)
    np.testing.assert_allclose(gain[:, 2], 1 - posterior.amax(1))  # who is always right leaves no error


@pytest.mark.parametrize("n_classes", [2, 4])
def test_learner_of_the_bound_never_learns_from_the_item_itself(n_classes: int) -> None:
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(np.arange(200) % n_classes)
    features = torch.from_numpy(rng.normal(size=(200, 150)))  # says nothing, but is wide enough to learn by heart
    log_p = oracle_log_probability(features, truth, seed=1)
    np.testing.assert_allclose(log_p.logsumexp(1), 0, atol=1e-9)
    assert float((log_p.argmax(1) == truth).double().mean()) < 1 / n_classes + 0.15
    clear = torch.nn.functional.one_hot(truth, n_classes).double()
    assert bool((oracle_log_probability(clear, truth, seed=1).argmax(1) == truth).all())
    with pytest.raises(AnnotError, match="a class has 4 items"):
        oracle_log_probability(clear[: 5 * n_classes - 1], truth[: 5 * n_classes - 1], seed=1)
