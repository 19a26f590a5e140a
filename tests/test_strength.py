"""The strength of the workers' prior, against scipy and from simulated workers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import dirichlet_multinomial
from torch import Tensor

from lightning_annot.crowd.incidence import Incidence, build_incidence
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.strength import LEAST, MOST, SPREAD, TYPICAL, learn_strength
from lightning_annot.types import Annotations


def pairs_of(dense: np.ndarray) -> tuple[Incidence, Tensor]:
    """Whole counts (W, K, K) as an incidence and the counts (P, K) of its pairs."""
    n_workers, k, _ = dense.shape
    worker, _, label = (np.repeat(axis, dense.ravel()) for axis in (v.ravel() for v in np.indices(dense.shape)))
    answers = Annotations(torch.arange(len(worker)), torch.from_numpy(worker), torch.from_numpy(label))
    incidence = build_incidence(answers, n_workers, k)
    return incidence, torch.from_numpy(dense).double()[incidence.pair_worker, :, incidence.pair_label]


def simulate(strength: float, mean: np.ndarray, n_workers: int, each: int, seed: int) -> np.ndarray:
    """Counts (W, K, K) of workers with rows ~ Dir(strength x mean) and ``each`` answers a class."""
    rng = np.random.default_rng(seed)
    rows = [[rng.multinomial(each, rng.dirichlet(strength * row)) for row in mean] for _ in range(n_workers)]
    return np.array(rows)


def scipy_objective(dense: np.ndarray, mean: np.ndarray, strength: float) -> float:
    """Log marginal likelihood, less what does not depend on the strength, and the prior's log density."""
    total = sum(
        dirichlet_multinomial.logpmf(row, strength * mean[y], row.sum()) for worker in dense for y, row in enumerate(worker)
    )
    return float(total) - (math.log(strength) - math.log(TYPICAL)) ** 2 / (2.0 * SPREAD**2)


@pytest.mark.parametrize(("n_workers", "each", "true"), [(1, 3, 10.0), (5, 8, 3.0), (8, 20, 12.0), (3, 1, 1.0)])
def test_is_the_maximum_by_scipy(n_workers: int, each: int, true: float) -> None:
    mean = homogeneous_prior(4, 0.6, 1.0, torch.float64)
    dense = simulate(true, mean.numpy(), n_workers, each, seed=n_workers)
    found = learn_strength(*pairs_of(dense), mean)
    best = minimize_scalar(
        lambda log_s: -scipy_objective(dense, mean.numpy(), math.exp(log_s)), bounds=np.log([LEAST, MOST]), method="bounded"
    )
    assert math.log(found) == pytest.approx(best.x, abs=0.05)
    grid = [scipy_objective(dense, mean.numpy(), s) for s in np.geomspace(LEAST, MOST, 25)]
    assert scipy_objective(dense, mean.numpy(), found) >= max(grid) - 1e-3


@pytest.mark.parametrize(("true", "each"), [(3.0, 30), (10.0, 60), (20.0, 200)])
@pytest.mark.parametrize("seed", [0, 1])
def test_recovers_the_true_strength(true: float, each: int, seed: int) -> None:
    mean = homogeneous_prior(5, 0.7, 1.0, torch.float64)
    found = learn_strength(*pairs_of(simulate(true, mean.numpy(), 40, each, seed)), mean)
    assert true / 1.35 < found < true * 1.35


def test_stays_typical_without_answers() -> None:
    mean = homogeneous_prior(3, 0.7, 1.0)
    found = learn_strength(*pairs_of(np.zeros((4, 3, 3), dtype=np.int64)), mean)
    assert found == pytest.approx(TYPICAL, rel=0.02)


def test_one_answer_a_row_says_nothing() -> None:
    """The Dirichlet-multinomial of a single answer is its mean, whatever the strength."""
    mean = homogeneous_prior(3, 0.7, 1.0, torch.float64)
    dense = np.stack([np.eye(3, dtype=np.int64)] * 5)
    assert learn_strength(*pairs_of(dense), mean) == pytest.approx(TYPICAL, rel=0.02)


def test_stays_within_its_bounds() -> None:
    mean = homogeneous_prior(2, 0.7, 1.0, torch.float64)
    alike = np.tile(np.array([[70, 30], [30, 70]]), (300, 1, 1))
    different = np.stack([np.array([[50, 0], [0, 50]]), np.array([[0, 50], [50, 0]])] * 100)
    assert LEAST <= learn_strength(*pairs_of(different), mean) < 1.5
    assert 0.95 * MOST < learn_strength(*pairs_of(alike), mean) <= MOST
