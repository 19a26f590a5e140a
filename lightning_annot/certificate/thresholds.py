"""The largest risk threshold at which a set of labels is within a target, chosen by the same audits that certify it.

Telling of the threshold at which a bound happens to pass is testing many sets and telling of the best. Here the bounds of all G
sets of a grid hold together, each at (1 - confidence) / G, so that any of them may be picked, for any target, and after any
look at the answers. The grid is a function of the risks alone and is fixed when the audit is planned.

A set {risk < t} is a part of the audited one, and the audits that fall into it are a simple random sample of it, since the
order of a random permutation within a part is random too.

Fixed-sequence testing (Angelopoulos, Bates, Candes, Jordan & Lei, Learn then Test, 2021, Section 4) would test one set after
the other at the full level until one fails. It needs a start and a target that no answer has suggested: a start that follows
the number of audits tests another sequence at each look, each with a first bad set of its own, and whoever chooses when to stop
then errs more often than stated. With a start that is planned, few audits decide whether the sequence goes on at all, and over
seven relations of risk and error it chose no larger sets than this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_annot.certificate.bounds import Bound

STEPS = 10


@dataclass(frozen=True)
class ThresholdChoice:
    """Labels with a risk below ``threshold``: ``size`` of them, ``audited``, ``wrong`` among these, and the ``bound``."""

    threshold: float
    size: int
    audited: int
    wrong: int
    bound: float


def threshold_grid(risk: NDArray[np.float64], top: float, steps: int = STEPS) -> NDArray[np.float64]:
    """Return thresholds t below ``top``, ascending, at which {risk < t} holds about 1/steps, 2/steps, ... of ``risk`` (N,).

    Each is a risk that occurs, so that many equal risks make fewer thresholds than ``steps`` - 1.
    """
    ordered = np.sort(risk)
    inner = ordered[(np.arange(1, steps) * len(ordered)) // steps]
    return np.unique(inner[(inner > ordered[0]) & (inner < top)])


def choose_threshold(
    risk: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    target: float,
    confidence: float,
    bound: Bound,
    grid: Sequence[float],
) -> ThresholdChoice | None:
    """Return the largest threshold of ``grid`` whose set is certified at ``target``; None where there is none.

    Args:
        risk: Risks (N,) of the whole set, in the order in which it is audited.
        wrong: Verdicts (n,) on its first n labels.
        target: Largest share of wrong labels.
        confidence: The bounds of all sets of the grid hold together with this probability at least.
        bound: Upper bound of the share of wrong labels.
        grid: Thresholds, ascending, fixed before any answer.
    """
    if not len(grid):
        return None
    audited = risk[: len(wrong)]
    n, k, size = (_below(values, grid) for values in (audited, audited[wrong], risk))
    bounds = bound(n, k, size, 1 - (1 - confidence) / len(grid))
    passed = np.flatnonzero(bounds <= target)
    if not len(passed):
        return None
    g = int(passed[-1])
    return ThresholdChoice(float(grid[g]), int(size[g]), int(n[g]), int(k[g]), float(bounds[g]))


def _below(risk: NDArray[np.float64], grid: ArrayLike) -> NDArray[np.int64]:
    """How many of ``risk`` are below each threshold."""
    return np.searchsorted(np.sort(risk), np.asarray(grid)).astype(np.int64)
