"""A class prior from new answers: the fit against a grid, what it recovers, and that nothing is used which gains nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_annot.crowd.class_prior import LEAST_KNOWN, class_weights, with_class_prior

from lightning_annot.crowd.tempering import FreshAnswers, Tempering, log_predictive


def drawn(rng: np.random.Generator, p: np.ndarray) -> np.ndarray:
    return (rng.random(len(p))[:, None] > p.cumsum(1)).sum(1).clip(max=p.shape[1] - 1)


def new_answers(share: list[float], n: int = 3000, seed: int = 0, spread: float = 1.5) -> FreshAnswers:
    """Answers of workers who are right in 70%, about classes of these shares, and p(y | x) of a learner that has them alike."""
    rng, k = np.random.default_rng(seed), len(share)
    confusion = np.full((k, k), 0.3 / (k - 1))
    np.fill_diagonal(confusion, 0.7)
    truth = drawn(rng, np.tile(share, (n, 1)))
    evidence = rng.normal(size=(n, k))
    evidence[np.arange(n), truth] += spread  # log p(x | y) of unit normal features is spread * x_y
    log_p = torch.from_numpy(spread * evidence).log_softmax(1)
    logs = np.log(confusion.T[drawn(rng, confusion[truth])])
    none, known = torch.zeros(n, dtype=torch.int64), torch.full((n,), LEAST_KNOWN * k)
    return FreshAnswers(log_p, torch.zeros(n, k).double(), torch.from_numpy(logs), none, known)


@pytest.mark.parametrize("share", [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.9, 0.05, 0.03, 0.02]])
def test_recovers_the_shares_of_the_classes(share: list[float]) -> None:
    weights = class_weights(new_answers(share), Tempering(), scale=10.0)
    assert weights is not None
    assert float(weights.mean()) == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(weights.softmax(0), torch.tensor(share).double(), atol=0.03, rtol=0.0)


@pytest.mark.parametrize("n", [60, 3000])
@pytest.mark.parametrize("seed", range(8))
def test_equal_classes_need_none(seed: int, n: int) -> None:
    """A fit always raises the likelihood of what it is fitted to; held-out answers have a say."""
    assert class_weights(new_answers([0.25] * 4, n=n, seed=seed), Tempering()) is None


def test_few_answers_prove_nothing() -> None:
    everything = new_answers([0.7, 0.2, 0.1])
    assert class_weights(everything.rows(torch.arange(3)), Tempering()) is None
    assert class_weights(everything.rows(torch.arange(20)), Tempering()) is None


def test_answers_count_once_the_confusions_are_known() -> None:
    fresh = new_answers([0.7, 0.2, 0.1])
    soon = fresh.known - torch.arange(3000) % 2  # of every second one, the confusions knew one answer less
    assert class_weights(replace(fresh, known=fresh.known - 1), Tempering()) is None
    half = class_weights(replace(fresh, known=soon), Tempering())
    wanted = class_weights(fresh.rows(torch.arange(0, 3000, 2)), Tempering())
    assert half is not None
    assert wanted is not None
    torch.testing.assert_close(half, wanted)


def test_two_classes_equal_a_grid() -> None:
    """With K = 2 the centred weights are (c, -c): the penalised likelihood is highest there among all c."""
    fresh, tempering = new_answers([0.9, 0.1], n=1000), Tempering((0.8,), (0.5,))
    weights = class_weights(fresh, tempering, scale=0.7)
    assert weights is not None

    def value(c: float) -> float:
        shifted = replace(fresh, model=fresh.model + torch.tensor([c, -c]).double())
        return float(log_predictive(shifted, 0.8, 0.5).sum()) - 2 * c**2 / (2 * 0.7**2)

    grid = np.arange(-2.0, 2.0, 0.005)
    assert float(weights[0]) == pytest.approx(grid[np.argmax([value(c) for c in grid])], abs=0.01)


def test_what_was_believed_before_does_not_make_it() -> None:
    """A learner that is sure of the wrong share, but whose answers speak against it, is corrected, not followed."""
    fresh = new_answers([0.25] * 4)
    biased = replace(fresh, model=(fresh.model + torch.tensor([2.0, 0.0, 0.0, 0.0])).log_softmax(1))
    weights = class_weights(biased, Tempering(), scale=10.0)
    assert weights is not None
    assert float(weights[0] - weights[1:].mean()) == pytest.approx(-2.0, abs=0.2)


def test_wide_tasks_look_at_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_annot.crowd.class_prior.MOST_ELEMENTS", 3 * 1000)
    fresh = new_answers([0.7, 0.2, 0.1])
    latest = fresh.rows(torch.arange(2000, 3000))
    weights, expected = class_weights(fresh, Tempering()), class_weights(latest, Tempering())
    assert weights is not None
    assert expected is not None
    torch.testing.assert_close(weights, expected)


@given(n=st.integers(1, 20), k=st.integers(2, 5), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_posterior_is_the_product(n: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, weights = torch.rand(n, k, generator=generator).softmax(1), torch.randn(k, generator=generator)
    prior = with_class_prior(p.log().__getitem__, weights)
    rows = torch.randperm(n, generator=generator)
    product = p[rows] * weights.exp()
    torch.testing.assert_close(prior(rows).exp(), product / product.sum(1, keepdim=True))
    assert with_class_prior(prior, None) is prior
