"""Whether a worker gets better or worse over time, beyond what the images' difficulty and chance explain."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

PARTS = 3
LEAST = 12  # answers below which nothing is tested
LEVEL = 0.05  # chance, over all workers of a run, that one who stays the same is called better or worse
_SWEEPS = 30


def drift(worker: np.ndarray, group: np.ndarray, right: np.ndarray, n_workers: int) -> dict[str, np.ndarray]:
    """Accuracy in thirds of each worker's answers, and a test of a trend; answers in the order in which they were given.

    ``worker`` (A,); ``group`` (A,): the round and kind of each answer's question; ``right`` (A,): how probably it is right.
    Images get harder from round to round, as the easy ones finish, and workers come and go; so the trend is that of what is
    left of ``right`` after a mean for each worker and one for each group, by least squares. It is the correlation r of that
    rest with the answer's place; for answers in any order alike, r has mean 0 and variance 1 / (n - 1).

    Columns (W,): ``accuracy_first``, ``accuracy_second``, ``accuracy_third``; ``drift_z``, ``drift_p`` (two-sided, nan below
    ``LEAST`` answers); ``drift``: "better" or "worse" where the p-value times the workers tested is below ``LEVEL``.
    """
    n = np.bincount(worker, minlength=n_workers)
    place = _places(worker, n)
    part = (PARTS * place) // np.maximum(n, 1)[worker]
    cell, size = worker * PARTS + part, n_workers * PARTS
    with np.errstate(invalid="ignore"):
        thirds = (np.bincount(cell, right, minlength=size) / np.bincount(cell, minlength=size)).reshape(n_workers, PARTS)
    z = _trend(worker, place, _rest(worker, group, right, n_workers), n)
    p = 2.0 * norm.sf(np.abs(z))
    found = p * np.count_nonzero(~np.isnan(z)) < LEVEL
    word = np.where(found, np.where(z > 0, "better", "worse"), "")
    names = ("accuracy_first", "accuracy_second", "accuracy_third")
    return dict(zip(names, thirds.T, strict=True)) | {"drift_z": z, "drift_p": p, "drift": word}


def _places(worker: np.ndarray, n: np.ndarray) -> np.ndarray:
    """How many answers each worker gave before each one, (A,)."""
    order = np.argsort(worker, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order)) - (np.cumsum(n) - n)[worker[order]]
    return place


def _rest(worker: np.ndarray, group: np.ndarray, right: np.ndarray, n_workers: int) -> np.ndarray:
    """``right`` less an effect of the worker and one of the group: least squares by alternating means."""
    names, at = np.unique(group, return_inverse=True)
    rest = right.astype(np.float64)
    for _ in range(_SWEEPS):
        for index, size in ((at, len(names)), (worker, n_workers)):
            count = np.maximum(np.bincount(index, minlength=size), 1)
            rest = rest - (np.bincount(index, rest, minlength=size) / count)[index]
    return rest


def _trend(worker: np.ndarray, place: np.ndarray, rest: np.ndarray, n: np.ndarray) -> np.ndarray:
    """r sqrt(n - 1) of each worker's ``rest`` and ``place``, (W,); nan where there is too little to tell."""
    centred = place - (n[worker] - 1) / 2.0
    product, spread, time = (np.bincount(worker, v, minlength=len(n)) for v in (centred * rest, rest**2, centred**2))
    enough = (n >= LEAST) & (spread > 1e-9 * n)
    return np.where(enough, product * np.sqrt(np.maximum(n - 1, 0) / np.where(enough, spread * time, 1.0)), np.nan)
