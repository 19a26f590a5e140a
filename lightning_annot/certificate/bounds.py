"""Upper bounds of the share of wrong labels in a set of N, after n labels drawn at random were audited and k were wrong.

``binomial_upper`` and ``hypergeometric_upper`` are for one look that was planned before any answer was seen (fixed n);
``anytime_upper`` holds at all looks together. All are exact: none rests on a normal approximation.
Arguments broadcast; counts are whole numbers with 0 <= k <= n <= N, and confidence is between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln
from scipy.stats import beta

from lightning_annot.types import AnnotError

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]
Bound = Callable[[ArrayLike, ArrayLike, ArrayLike, float], Shares]
"""(n, k, size, confidence) -> upper bound of the share of wrong labels."""


def binomial_upper(n: ArrayLike, k: ArrayLike, confidence: float) -> Shares:
    """Clopper-Pearson: the share p at which at most k of n wrong would have probability 1 - confidence.

    Solves P(Bin(n, p) <= k) = 1 - confidence, by the beta quantile (Clopper & Pearson, Biometrika 1934). Right for a set
    without end, and a little wide for a finite one.
    """
    n, k, _ = _counts(n, k, np.iinfo(np.int64).max, confidence)
    inner = beta.ppf(confidence, k + 1, np.maximum(n - k, 1))  # a beta needs n > k; where n = k the bound is 1
    return np.where(k < n, inner, 1.0)


def hypergeometric_upper(n: ArrayLike, k: ArrayLike, size: ArrayLike, confidence: float) -> Shares:
    """Clopper-Pearson for n drawn without replacement from N = ``size``: the largest M / N that is not refuted.

    M wrong labels in all are refuted where P(Hypergeometric(N, M, n) <= k) <= 1 - confidence, which falls in M.
    """
    n, k, size = _counts(n, k, size, confidence)

    def kept(total: Counts) -> NDArray[np.bool_]:
        return _hypergeometric_cdf(k, size, total, n) > 1 - confidence

    return _largest(kept, k, size - (n - k)) / size


def anytime_upper(n: ArrayLike, k: ArrayLike, size: ArrayLike, confidence: float) -> Shares:
    """A bound that holds for all n at once, hence however often, and whenever, somebody looks and stops.

    Under the true number M of wrong labels, the likelihood ratio of the answers so far

        R_n(M) = 1 / (M + 1) sum_{m <= M} L_n(m) / L_n(M),     L_n(m) = C(N - n, m - k) / C(N, m)

    is a nonnegative supermartingale that starts at 1: each term is one, as L_n(m) is the probability of the answers, in their
    order, if m of N were wrong. By Ville's inequality P(some n has R_n(M) >= 1 / alpha) <= alpha, so that all M with
    R_n(M) < 1 / alpha form a confidence sequence; the largest of them, by N, is the bound. This is the
    prior-posterior-ratio martingale of Waudby-Smith & Ramdas (Confidence sequences for sampling without replacement,
    NeurIPS 2020), with a prior for each M that is even over all smaller numbers, since an upper bound gains nothing from
    bets on larger ones; the method of mixtures as in Howard, Ramdas, McAuliffe & Sekhon (Annals of Statistics 2021).

    The sum has a closed form, because with an even prior the posterior of m is negative hypergeometric:

        R_n(M) = (N + 1) / (M + 1) B(k + 1, n - k + 1) / L_n(M) P(Hypergeometric(N + 1, M + 1, n + 1) > k)

    From M = (k + 1)(N + 2) / (n + 1) - 2 on R_n does not fall in M: there L_n(M + 1) / L_n(M) <= (M + 1) / (M + 2). The search
    begins there, and counts what is below as not refuted.
    """
    n, k, size = _counts(n, k, size, confidence)
    most = size - (n - k)

    def kept(total: Counts) -> NDArray[np.bool_]:
        log_likelihood = _log_choose(size - n, total - k) - _log_choose(size, total)
        below = np.log1p(-np.minimum(_hypergeometric_cdf(k, size + 1, total + 1, n + 1), 1 - 1e-16))
        log_ratio = np.log((size + 1) / (total + 1)) + betaln(k + 1, n - k + 1) - log_likelihood + below
        return log_ratio < -math.log(1 - confidence)

    start = -(-(k + 1) * (size + 2) // (n + 1)) - 2  # rounded up
    return _largest(kept, np.minimum(start, most), most) / size


def audits_needed(target: float, rate: float, size: int, confidence: float, bound: Bound, n: int = 0, k: int = 0) -> int | None:
    """How many more audits bring ``bound`` to ``target``, if a share ``rate`` of them, to the nearest whole, is wrong too.

    ``n`` were audited already, ``k`` of them wrong. None where even auditing all N = ``size`` would not do. With that many
    the bound is within the target; since wrong labels come whole, it may dip below it somewhat earlier.
    """

    def enough(more: int) -> bool:
        return bool(bound(n + more, k + math.floor(rate * more + 0.5), size, confidence) <= target)

    low, high = 0, size - n
    if enough(low):
        return 0
    if not enough(high):
        return None
    while high - low > 1:  # enough(high), not enough(low)
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def check_confidence(confidence: float) -> None:
    """Raise AnnotError unless ``confidence`` is a probability between 0.5 and 1."""
    if not 0.5 <= confidence < 1:
        raise AnnotError(f"confidence {confidence} given; it must be 0.5 or more and below 1, such as 0.95.")


def _counts(n: ArrayLike, k: ArrayLike, size: ArrayLike, confidence: float) -> tuple[Counts, Counts, Counts]:
    check_confidence(confidence)
    n, k, size = np.broadcast_arrays(*(np.asarray(values, dtype=np.int64) for values in (n, k, size)))
    if not ((k >= 0) & (k <= n) & (n <= size) & (size > 0)).all():
        raise AnnotError(
            "audits given with counts that cannot be; needed are 0 <= wrong <= audited <= size of the set, above 0."
        )
    return n, k, size


def _largest(kept: Callable[[Counts], NDArray[np.bool_]], low: Counts, high: Counts) -> Counts:
    """The largest whole number in [low, high] that is kept, where all up to it are; ``low`` counts as kept."""
    while (low < high).any():
        middle = (low + high + 1) // 2
        is_kept = kept(middle)
        low, high = np.where(is_kept, middle, low), np.where(is_kept, high, np.maximum(middle - 1, low))
    return low


def _hypergeometric_cdf(k: Counts, size: Counts, total: Counts, n: Counts) -> Shares:
    """P(at most k of n drawn are among the ``total`` marked of ``size``); a sum over k + 1 terms, for all elements at once."""
    j = np.arange(int(k.max(initial=0)) + 1).reshape(-1, *[1] * k.ndim)
    possible = (j <= k) & (j <= total) & (n - j <= size - total)
    x = np.where(possible, j, np.maximum(0, n - (size - total)))  # any possible value; masked below
    log_p = _log_choose(total, x) + _log_choose(size - total, n - x) - _log_choose(size, n)
    return np.where(possible, np.exp(log_p), 0.0).sum(0)


def _log_choose(n: Counts, k: Counts) -> Shares:
    return -betaln(n - k + 1, k + 1) - np.log(n + 1.0)
