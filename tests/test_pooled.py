"""The pooled confusion: its shrinkage against a second search, its invariants, and that good workers are not held down."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_em import slow_shrunk
from torch import Tensor

from lightning_annot.crowd.pooled import shrunk_confusion
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.tiers import run_tiered_em
from lightning_annot.types import Annotations


def counted(k: int, n: int, right: float, seed: int = 0) -> Tensor:
    """Answers of ``n`` items a class."""
    rng = np.random.default_rng(seed)
    each = np.full((k, k), (1.0 - right) / (k - 1))
    np.fill_diagonal(each, right)
    return torch.from_numpy(np.stack([rng.multinomial(n, row) for row in each])).double()


@pytest.mark.parametrize(
    ("k", "n", "right"), [(2, 40, 0.8), (3, 0, 0.7), (4, 15, 0.9), (5, 400, 0.6), (7, 3, 1.0), (3, 100, 0.2)]
)
@pytest.mark.parametrize("accuracy", [0.55, 0.7])
def test_equals_a_second_search(k: int, n: int, right: float, accuracy: float) -> None:
    counts = counted(k, n, right) * torch.linspace(0.3, 1.7, k, dtype=torch.float64)[:, None]
    found = shrunk_confusion(counts, accuracy)
    want = torch.tensor(slow_shrunk(counts.tolist(), accuracy), dtype=torch.float64)
    torch.testing.assert_close(found, want, rtol=0.0, atol=1e-3)


@given(
    k=st.integers(1, 6),
    scale=st.sampled_from([0.0, 1e-12, 0.1, 3.0, 1e4]),
    seed=st.integers(0, 10**6),
    accuracy=st.floats(0.01, 0.99),
)
@settings(max_examples=80, deadline=None)
def test_rows_are_distributions_and_names_mean_nothing(k: int, scale: float, seed: int, accuracy: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = scale * torch.rand(k, k, generator=generator, dtype=torch.float64) ** 4
    before = counts.clone()
    found = shrunk_confusion(counts, accuracy)
    assert torch.equal(counts, before)
    torch.testing.assert_close(found.sum(1), torch.ones(k, dtype=torch.float64))
    assert bool((found > 0).all())
    order = torch.randperm(k, generator=generator)
    again = shrunk_confusion(counts[order][:, order], accuracy)
    torch.testing.assert_close(again, found[order][:, order], rtol=0.0, atol=2e-3)


def test_one_and_two_classes() -> None:
    assert shrunk_confusion(torch.tensor([[5.0]]), 0.7).tolist() == [[1.0]]
    found = shrunk_confusion(torch.tensor([[90.0, 10.0], [30.0, 70.0]]), 0.7)
    assert found.dtype == torch.float32
    assert 0.8 < float(found[0, 0]) < 0.9
    assert 0.7 < float(found[1, 1]) < 0.8  # towards each other
    assert bool((found.sum(1) == 1.0).all())


@pytest.mark.parametrize("accuracy", [0.55, 0.7, 0.9])
@pytest.mark.parametrize("k", [2, 10])
def test_without_answers_it_is_what_was_believed(k: int, accuracy: float) -> None:
    found = shrunk_confusion(torch.zeros(k, k), accuracy)
    want = homogeneous_prior(k, accuracy, 1.0)
    torch.testing.assert_close(found, want, rtol=0.0, atol=1e-4)


def test_many_answers_speak_for_themselves() -> None:
    counts = counted(4, 20_000, 0.8) * torch.tensor([0.1, 1.0, 1.0, 3.0])[:, None]
    counts[2] = torch.tensor([9_000, 0, 10_000, 1_000])  # a class whose errors have a pattern of their own
    torch.testing.assert_close(shrunk_confusion(counts, 0.7), counts / counts.sum(1, keepdim=True), rtol=0.0, atol=0.01)


@pytest.mark.parametrize(("k", "least"), [(100, 0.97), (1000, 0.97)])
def test_answers_about_other_classes_tell_of_a_class_with_few(k: int, least: float) -> None:
    """Two right answers a class: with 100 pseudo-counts a row it would be .71."""
    found = shrunk_confusion(torch.eye(k) * 2.0, 0.7)
    assert float(found.diagonal().min()) > least
    assert float(shrunk_confusion(torch.eye(k) * 2.0 * 0.5 + torch.eye(k).roll(1, 1), 0.7).diagonal().mean()) < 0.55


@pytest.mark.parametrize("k", [100, 1000])
def test_perfect_workers_with_two_answers_each_are_not_held_down(k: int) -> None:
    """Each item has two answers; the learner knows nothing."""
    rng, n = np.random.default_rng(0), k
    truth = np.arange(n) % k
    item = torch.from_numpy(np.concatenate([rng.permutation(n), rng.permutation(n)]))
    worker = torch.arange(2 * n) // 2
    answers = Annotations(item, worker, torch.from_numpy(truth)[item])
    prior = torch.full((n, k), 1.0 / k).log()
    found = run_tiered_em(answers, prior, homogeneous_prior(k), n)
    diagonal = found.diagonal()[worker[:, None], torch.from_numpy(truth)[item][:, None]]
    assert float(diagonal.mean()) > 0.95
