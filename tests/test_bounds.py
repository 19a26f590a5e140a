"""Bounds of the error of audited labels: against enumeration, as invariants, and their coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, hypergeom

from lightning_annot.certificate.bounds import anytime_upper, audits_needed, binomial_upper, hypergeometric_upper
from lightning_annot.types import AnnotError

REPETITIONS = 1000
ALPHA = 0.05
# Three standard errors of a share of ALPHA in so many repetitions: a bound that is right fails the test once in 700 seeds.
TOLERANCE = 3 * math.sqrt(ALPHA * (1 - ALPHA) / REPETITIONS)

Counts = tuple[int, int, int]


@st.composite
def counts(draw: st.DrawFn) -> Counts:
    """(audited, wrong, size)."""
    size = draw(st.integers(1, 400))
    n = draw(st.integers(0, size))
    return n, draw(st.integers(0, n)), size


def slow_ratio(n: int, k: int, size: int, total: int) -> float:
    """R_n(M) of ``anytime_upper`` term by term, in whole numbers."""

    def likelihood(m: int) -> float:
        return math.comb(size - n, m - k) / math.comb(size, m) if k <= m <= size - (n - k) else 0.0

    return math.inf if not likelihood(total) else sum(map(likelihood, range(total + 1))) / (total + 1) / likelihood(total)


def test_the_binomial_bound_solves_its_equation() -> None:
    n, k = (a.ravel() for a in np.meshgrid(np.arange(1, 60), np.arange(0, 60)))
    n, k = n[k < n], k[k < n]
    np.testing.assert_allclose(binom.cdf(k, n, binomial_upper(n, k, 0.95)), 0.05, rtol=1e-6)
    assert binomial_upper([0, 3], [0, 3], 0.9).tolist() == [1.0, 1.0]
    assert float(binomial_upper(59, 0, 0.95)) == pytest.approx(1 - 0.05 ** (1 / 59))


@pytest.mark.parametrize("size", [1, 2, 7, 30])
@pytest.mark.parametrize("confidence", [0.61, 0.953])  # no ties with the probabilities of small sets
def test_the_hypergeometric_bound_is_that_of_enumeration(size: int, confidence: float) -> None:
    for n in range(size + 1):
        for k in range(n + 1):
            kept = [m for m in range(k, size - (n - k) + 1) if hypergeom.cdf(k, size, m, n) > 1 - confidence + 1e-12]
            assert float(hypergeometric_upper(n, k, size, confidence)) == max(kept) / size


@pytest.mark.parametrize("size", [1, 2, 7, 30])
@pytest.mark.parametrize("confidence", [0.61, 0.953])  # no ties with the probabilities of small sets
def test_the_anytime_bound_is_that_of_enumeration(size: int, confidence: float) -> None:
    for n in range(size + 1):
        for k in range(n + 1):
            kept = [m for m in range(size + 1) if slow_ratio(n, k, size, m) < 1 / (1 - confidence) - 1e-9]
            assert float(anytime_upper(n, k, size, confidence)) == max(kept) / size


def test_the_ratio_is_a_supermartingale() -> None:
    """Given the past and M, the mean of the next ratio is no larger than this one: equal while both answers are possible."""
    size, total = 12, 5
    for n in range(size):
        for k in range(max(0, n - (size - total)), min(n, total) + 1):
            p = (total - k) / (size - n)
            after = sum(q * slow_ratio(n + 1, k + w, size, total) for w, q in ((1, p), (0, 1 - p)) if q)
            now = slow_ratio(n, k, size, total)
            assert after == pytest.approx(now) if 0 < p < 1 else after <= now + 1e-9


@given(counts(), st.floats(0.5, 0.999))
@settings(deadline=None)
def test_bounds_are_in_order(given_: Counts, confidence: float) -> None:
    n, k, size = given_
    anytime, single = float(anytime_upper(n, k, size, confidence)), float(hypergeometric_upper(n, k, size, confidence))
    most = (size - n + k) / size
    assert k / size <= single <= most
    assert max(k / size, k / n - 1 / size if n else 0) <= anytime + 1e-12  # shares are whole items: of 11, not a tenth
    assert anytime <= most
    if n == size:
        assert anytime == single == k / size
    assert float(binomial_upper(n, k, confidence)) <= 1


@pytest.mark.parametrize("upper", [anytime_upper, hypergeometric_upper, lambda n, k, size, c: binomial_upper(n, k, c)])
@given(given_=counts(), confidence=st.floats(0.5, 0.99))
@settings(deadline=None)
def test_bounds_rise_with_errors_and_confidence_and_fall_with_audits(upper, given_: Counts, confidence: float) -> None:  # type: ignore[no-untyped-def]
    n, k, size = given_
    bound = float(upper(n, k, size, confidence)) - 1e-12
    assert bound <= float(upper(n, k, size, confidence + 0.009))
    if k < n:
        assert bound <= float(upper(n, k + 1, size, confidence))
    if n < size:
        assert bound + 2e-12 >= float(upper(n + 1, k, size, confidence))


def test_a_large_set_is_bounded_as_one_without_end() -> None:
    n, k = np.array([59, 160, 340, 1000]), np.array([0, 3, 10, 30])
    finite = hypergeometric_upper(n, k, 10**7, 0.95)
    np.testing.assert_allclose(finite, binomial_upper(n, k, 0.95), rtol=1e-4)
    assert (anytime_upper(n, k, 10**7, 0.95) > finite).all()


@pytest.mark.parametrize(("n", "k", "size"), [(5, 6, 10), (5, -1, 10), (11, 0, 10), (0, 0, 0)])
def test_impossible_counts_are_refused(n: int, k: int, size: int) -> None:
    with pytest.raises(AnnotError, match="0 <= wrong <= audited <= size"):
        anytime_upper(n, k, size, 0.95)


@pytest.mark.parametrize("confidence", [0.0, 0.3, 1.0, 95.0])
def test_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(AnnotError, match=r"such as 0\.95"):
        binomial_upper(10, 1, confidence)


@pytest.mark.parametrize("upper", [anytime_upper, hypergeometric_upper])
@pytest.mark.parametrize(("target", "rate"), [(0.05, 0.03), (0.05, 0.02), (0.02, 0.0), (0.03, 0.03)])
def test_as_many_audits_as_are_told_reach_the_target(upper, target: float, rate: float) -> None:  # type: ignore[no-untyped-def]
    more = audits_needed(target, rate, 5000, 0.95, upper, 100, 3)
    assert more is not None
    assert float(upper(100 + more, 3 + math.floor(rate * more + 0.5), 5000, 0.95)) <= target
    assert float(upper(100, 3, 5000, 0.95)) > target


def test_audits_that_cannot_help_are_told() -> None:
    assert audits_needed(0.02, 0.03, 5000, 0.95, anytime_upper) is None
    assert audits_needed(0.5, 0.0, 5000, 0.95, anytime_upper, 100, 3) == 0


def sequences(size: int, total: int, n: int, seed: int) -> NDArray[np.int64]:
    """Wrong labels among the first 1 ... n audited (REPETITIONS, n), of sets that have ``total`` wrong among ``size``."""
    labels = np.tile(np.arange(size) < total, (REPETITIONS, 1))
    return np.random.default_rng(seed).permuted(labels, axis=1)[:, :n].cumsum(1)


def bounds_of(wrong: NDArray[np.int64], size: int, upper) -> NDArray[np.float64]:  # type: ignore[no-untyped-def]
    """``upper`` at every look (REPETITIONS, n); each pair of counts is computed once."""
    n = np.broadcast_to(np.arange(1, wrong.shape[1] + 1), wrong.shape)
    pairs, inverse = np.unique(n * (size + 1) + wrong, return_inverse=True)
    return upper(pairs // (size + 1), pairs % (size + 1), size, 1 - ALPHA)[inverse].reshape(wrong.shape)


SETS = [(3000, 90), (3000, 30), (500, 25), (20000, 1000)]


@pytest.mark.parametrize(("size", "total"), SETS)
def test_one_look_is_wrong_as_seldom_as_stated(size: int, total: int) -> None:
    wrong = sequences(size, total, 300, seed=1)[:, -1:]
    n = np.full_like(wrong, 300)
    for bound in (hypergeometric_upper(n, wrong, size, 1 - ALPHA), binomial_upper(n, wrong, 1 - ALPHA)):
        assert (bound < total / size).mean() <= ALPHA + TOLERANCE


@pytest.mark.parametrize(("size", "total"), SETS)
def test_the_worst_of_all_looks_is_wrong_as_seldom_as_stated(size: int, total: int) -> None:
    """An adversary looks after each audit and claims the lowest bound that ever was, or stops once a target is reached."""
    bound = bounds_of(sequences(size, total, 400, seed=2), size, anytime_upper)
    assert (bound.min(1) < total / size).mean() <= ALPHA + TOLERANCE
    target = 0.8 * total / size
    reached = bound <= target
    claimed = np.where(reached.any(1), bound[np.arange(REPETITIONS), reached.argmax(1)], bound[:, -1])
    assert (claimed < total / size).mean() <= ALPHA + TOLERANCE


def test_the_bound_of_one_look_fails_under_many() -> None:
    """Why the other one is needed: the adversary beats the bound of one look far more often than one time in twenty."""
    size, total = 3000, 90
    bound = bounds_of(sequences(size, total, 400, seed=2), size, hypergeometric_upper)
    assert (bound.min(1) < total / size).mean() > 2 * ALPHA
