"""How many of a model's labels may be kept: a walk from the safest label on, with audits on the way.

Labels are ordered by stated risk. The walk passes them one after the other and audits each with the same probability ``rate``,
independently of everything else; the expert's answer replaces an audited label. It stops before it has met too many audited
errors. The labels that it passed without an audit are kept, and the expert labels all others, so that the error of the whole
set is the number of *unaudited* errors passed, over N.

The test is exact. The errors come in an order that is fixed though unknown, and each is audited or not by its own coin. Let the
walk be allowed E = floor(target N) unaudited errors. At the moment at which it passes unaudited error number E + 1, the number
of audited errors so far is negative binomial: failures before success number E + 1, with probability 1 - rate of success. So if
it stops before audited error number k + 1, where P(NB <= k) <= 1 - confidence, it goes too far with probability 1 - confidence
at most. This needs no model, no replacement, no grid and no normal approximation; ties and a useless order of the risks cost
labels and no validity; and a walk that ends earlier, as when money runs out, is covered too.

It is fixed-sequence testing (Angelopoulos et al., Learn then Test, 2021) of the nested hypotheses of Candes, Ilyas & Zrnic
(Probably approximately correct labels, 2025), as they call a threshold on the uncertainty below which a model's labels are
kept, with three differences: labels behind the stop are not audited, the audited errors count as mended, and the bound is exact.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import nbinom, norm

from lightning_annot.certificate.bounds import check_confidence

_RATES = np.geomspace(0.002, 0.5, 60)


def allowed_errors(size: int, target: float) -> int:
    """Return the most errors that ``size`` labels may have at a share of ``target``; a rounding error must not cost one."""
    return math.floor(size * target * (1 + 1e-12))


def walk_limit(allowed: int, rate: float, confidence: float) -> int:
    """Return the most audited errors that a walk may pass; -1 where not even a walk that meets none shows enough.

    Args:
        allowed: Unaudited errors that may be passed.
        rate: Probability with which each label is audited, in (0, 1).
        confidence: Probability with which no more than ``allowed`` unaudited errors are passed.
    """
    check_confidence(confidence)
    k = int(nbinom.ppf(1 - confidence, allowed + 1, 1 - rate))  # the smallest k with a cdf of 1 - confidence or more
    return k if nbinom.cdf(k, allowed + 1, 1 - rate) <= 1 - confidence else k - 1


def walk_length(audited: NDArray[np.bool_], wrong: NDArray[np.bool_], allowed: int, limit: int) -> int:
    """Return how many labels the walk passes.

    Args:
        audited: Which labels are audited (N,), in the order of the walk.
        wrong: Which are wrong (N,); read only where ``audited``.
        allowed: Unaudited errors that may be passed; so many labels pass whatever the audits say.
        limit: Most audited errors that may be passed, see ``walk_limit``.
    """
    met = np.cumsum(audited & wrong)
    by_audits = int(np.searchsorted(met, limit, side="right")) if limit >= 0 else 0
    by_number = int(np.searchsorted(np.cumsum(~audited), allowed, side="right"))
    return max(by_audits, by_number)


def walk_rate(risk: NDArray[np.float64], target: float, confidence: float) -> float:
    """Return the rate of audits at which a walk keeps most labels in five runs of six, if ``risk`` is the truth.

    An audit costs a label that would be kept, less what it mends; fewer audits cost a margin, since the number of unaudited
    errors is then known less well: the standard deviation of its estimate is sqrt(E / rate). Both are weighed along the stated
    risks by the normal approximation, for a walk that stops one standard deviation early. Risks that are wrong cost labels and
    no validity, and the optimum is flat: half or twice the rate costs about .01 of the labels.

    Args:
        risk: Stated risks (N,), ascending.
        target: Largest share of wrong labels in the whole set.
        confidence: Confidence of the walk.
    """
    allowed, errors = allowed_errors(len(risk), target), np.cumsum(risk)
    margin = (norm.ppf(confidence) + 1) * np.sqrt(errors * ((1 - _RATES) / _RATES)[:, None])
    passed = (errors * (1 - _RATES)[:, None] + margin <= allowed).sum(1)
    return float(_RATES[np.argmax(passed * (1 - _RATES))])
