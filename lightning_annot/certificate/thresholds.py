"""The largest risk threshold at which a set of labels is within a target, chosen by the same audits that certify it.

Looking for the threshold at which the bound happens to pass would be testing many times and telling of the best. Fixed-
sequence testing avoids the price of that: thresholds of a grid are tested in an order that was set before the answers, each
at the full level, and the first that fails ends it. If one set of labels that is worse than the target passes, so has the
first such in the order, whose test errs with probability 1 - confidence at most; hence the chance that any passes is no larger
(Angelopoulos, Bates, Candes, Jordan & Lei, Learn then Test, 2021, Section 4; Bauer 1991). Bonferroni would test each of G
thresholds at (1 - confidence) / G instead, and would take more audits for nothing.

The order is from small thresholds up. A set {risk < t} is a part of the audited one, and the audits that fall into it are a
simple random sample of it, since the order of a random permutation within a part is random too. How many these are depends on
the risks alone, not on the answers. So the grid may be made, and the sequence may begin, by looking at both: it begins with the
smallest set that has audits enough to pass with errors at a quarter of the target, as a start that few audits decide would end
many sequences at once, and a late one would miss what can be had. With an anytime bound all this holds at all looks together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_annot.certificate.bounds import Bound

STEPS = 20
_START = 0.25  # of the target; largest sets on the whole, among 0 to 0.65, over seven relations of risk and error


@dataclass(frozen=True)
class ThresholdChoice:
    """Labels with a risk below ``threshold``: ``size`` of them, ``audited``, ``wrong`` among these, and the ``bound``."""

    threshold: float
    size: int
    audited: int
    wrong: int
    bound: float


def threshold_grid(risk: NDArray[np.float64], top: float, steps: int = STEPS) -> NDArray[np.float64]:
    """Thresholds t, ascending, at which {risk < t} holds about 1/steps, 2/steps, ... of the items; the last is ``top``.

    ``risk`` (N,); ``top`` is above all of it, or stands for a set that holds all anyhow. Each threshold but the last is a
    risk that occurs, so that many equal risks make fewer thresholds than ``steps``.
    """
    ordered = np.sort(risk)
    inner = ordered[(np.arange(1, steps) * len(ordered)) // steps]
    inner = np.unique(inner[(inner > ordered[0]) & (inner < top)])
    return np.append(inner, top)


def choose_threshold(
    risk: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    target: float,
    confidence: float,
    bound: Bound,
    top: float,
) -> ThresholdChoice | None:
    """The largest threshold that fixed-sequence testing certifies at ``target``; None where not even the first passes.

    ``risk`` (N,) are those of the whole set in the order in which it is audited, ``wrong`` (n,) the verdicts on its first n;
    ``top`` is the threshold of the whole set. The set of the threshold chosen has an error above the target with probability
    1 - confidence at most.
    """
    grid = threshold_grid(risk, top)
    ordered, audited = np.sort(risk), np.sort(risk[: len(wrong)])
    failed = np.sort(risk[: len(wrong)][wrong])
    size, n, k = (np.searchsorted(values, grid) for values in (ordered, audited, failed))
    size[-1], n[-1], k[-1] = len(ordered), len(audited), len(failed)  # rounded risks may reach the threshold itself
    can_pass = bound(n, np.floor(n * target * _START).astype(np.int64), size, confidence) <= target
    can_pass[-1] = True  # with few audits the whole set alone is tested
    first = int(can_pass.argmax())
    bounds = bound(n, k, size, confidence)
    passed = bounds[first:] <= target
    g = first + (len(passed) if passed.all() else int(passed.argmin())) - 1
    if g < first:
        return None
    return ThresholdChoice(float(grid[g]), int(size[g]), int(n[g]), int(k[g]), float(bounds[g]))
