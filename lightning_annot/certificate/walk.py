"""How many of a model's labels may be kept: a walk from the safest label on, with audits on the way.

Labels are ordered by stated risk. The walk passes them one after the other and audits each with the same probability ``rate``,
independently of everything else; the expert's answer replaces an audited label. It stops before audited error number
``limit`` + 1. The labels that it passed without an audit are kept, and the expert labels all others, so that the error of the
whole set is the number of *unaudited* errors passed, over N.

The test is exact. The errors come in an order that is fixed though unknown, and each is audited or not by its own coin. Let the
walk be allowed E = floor(target N) unaudited errors. At the moment at which it passes unaudited error number E + 1, the number
of audited errors so far is negative binomial, with

    P(at most k of them) = I(1 - rate; E + 1, k + 1),

the distribution function of a beta. The rate that makes this 1 - confidence for k = ``limit`` is a beta quantile, as in
Clopper & Pearson (1934); then the walk goes too far with probability 1 - confidence at most. This needs no model, no
replacement, no grid and no normal approximation; ties and a useless order of the risks cost labels and no validity; and a walk
that ends earlier, as when money runs out, is covered too.

It is fixed-sequence testing (Angelopoulos et al., Learn then Test, 2021) of the nested hypotheses of Candes, Ilyas & Zrnic
(Probably approximately correct labels, 2025), who keep a model's labels below a threshold on its uncertainty. Three things
differ: labels behind the stop are not audited, audited errors count as mended, and the bound is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from lightning_annot.certificate.bounds import check_confidence


@dataclass(frozen=True)
class WalkPlan:
    """The plan of a walk, made before any audit.

    Args:
        allowed: Unaudited errors that it may pass.
        limit: Most audited errors that it passes.
        rate: Probability with which each label is audited.
    """

    allowed: int
    limit: int
    rate: float


def allowed_errors(size: int, target: float) -> int:
    """Return the most errors that ``size`` labels may have at a share of ``target``; a rounding error must not cost one."""
    return math.floor(size * target * (1 + 1e-12))


def walk_rate(allowed: int, limit: ArrayLike, confidence: float) -> NDArray[np.float64]:
    """Return the least rate of audits at which a walk up to ``limit`` audited errors holds.

    Args:
        allowed: Unaudited errors that may be passed.
        limit: Most audited errors that are passed; broadcasts.
        confidence: Probability with which no more than ``allowed`` unaudited errors are passed.
    """
    check_confidence(confidence)
    return np.asarray(1 - betaincinv(allowed + 1, np.asarray(limit) + 1, 1 - confidence))


def plan_walk(risk: NDArray[np.float64], target: float, confidence: float) -> WalkPlan:
    """Return the walk that keeps most labels in five runs of six, if ``risk`` is the truth.

    A walk up to k audited errors passes about (k + 1) / rate errors, with a standard deviation of sqrt(k + 1) / rate. A large k
    costs audits, and a small one leaves much to chance. The optimum is flat, and risks that are wrong cost labels and no
    validity: half or twice the rate costs about .01 of the labels.

    Args:
        risk: Stated risks (N,), ascending.
        target: Largest share of wrong labels in the whole set.
        confidence: Confidence of the walk.
    """
    allowed = allowed_errors(len(risk), target)
    limits = np.unique(np.geomspace(1, max(2, len(risk)), 200).astype(np.int64))
    rates = walk_rate(allowed, limits, confidence)
    errors = (limits + 1 - np.sqrt(limits + 1)) / rates
    kept = np.searchsorted(np.cumsum(risk), errors) * (1 - rates)
    best = int(np.argmax(kept))
    return WalkPlan(allowed, int(limits[best]), float(rates[best]))


def walk_length(audited: NDArray[np.bool_], wrong: NDArray[np.bool_], plan: WalkPlan) -> int:
    """Return how many labels the walk passes.

    Args:
        audited: Which labels are audited (N,), in the order of the walk, each at ``plan.rate``.
        wrong: Which are wrong (N,); read only where ``audited``.
        plan: The walk; as many unaudited labels as it allows errors pass whatever the audits say.
    """
    by_audits = int(np.searchsorted(np.cumsum(audited & wrong), plan.limit, side="right"))
    by_number = int(np.searchsorted(np.cumsum(~audited), plan.allowed, side="right"))
    return max(by_audits, by_number)
