"""Certify one share of wrong labels by audits that are drawn by importance, and looked at after each.

A set of N labels is to have at most E = floor(error N) wrong ones. Labels are drawn without replacement, label i next with
probability w_i / W, where W sums the weights of those left. If k were wrong so far, and M are wrong in all, then

    y = e W / w - c (p W / w - P)

has the mean M - k, the number of wrong labels left: e is 1 if the label is wrong, p its stated risk, P the sum of p over those
left, and c scales the *control variate*, which takes out what the risk foretold. Under the hypothesis that more than E are
wrong the mean is at least mu = E + 1 - k, so that for any bet b >= 0 that is fixed before the draw the wealth

    K = product over draws of 1 + b (mu - y),     1 + b (mu - y) >= 0 always,

is a nonnegative supermartingale that starts at 1. By Ville's inequality it ever reaches 1 / alpha with probability alpha at
most. The set is certified once it does, however often, and whenever, somebody looks. This is betting without replacement by
weights, with control variates (Waudby-Smith & Ramdas, JRSS B 2023; Shekhar, Xu, Lipton, Liang & Ramdas, Risk-limiting
financial audits via weighted sampling without replacement, UAI 2023). It holds for *any* risks, weights, bets and c that no
later verdict has touched. The risks only decide how many audits it takes:

- weights rise with the root of the risk, as the variance of y then is least, from a floor, since wrong labels that are hardly
  ever drawn would have to be feared (``audit_weights``);
- the bet is Kelly's, the one of greatest expected log wealth, as if each risk were the stated one times a factor. The factor
  starts above 1, half way (on a log scale) from what is stated to what is to be certified, and follows the verdicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_annot.certificate.walk import allowed_errors

Floats = NDArray[np.float64]
_GROUPS = 32
_PRIOR = 4.0  # audits, in wrong labels foretold, that the first factor of the risks is worth
_BETS = np.linspace(0.0, 0.98, 50)  # of the largest bet that cannot ruin
_STEEPNESS = np.geomspace(0.1, 100.0, 40)


@dataclass(frozen=True)
class Groups:
    """Labels of about equal risk, which are drawn and bet upon alike.

    Args:
        of: Group (N,) of each label.
        size: Labels (G,) in each group.
        risk: Stated risk (G,) of each group: the mean over its labels.
        weight: Weight (G,) with which a label of each group is drawn.
    """

    of: NDArray[np.int64]
    size: Floats
    risk: Floats
    weight: Floats


def grouped(risk: Floats, error: float) -> Groups:
    """Return labels of stated ``risk`` (N,) in groups by its quantiles, weighted to certify a share ``error`` of wrong ones."""
    cuts = np.unique(np.quantile(risk, np.arange(1, _GROUPS) / _GROUPS))
    of = np.searchsorted(cuts, risk, side="left")
    _, of = np.unique(of, return_inverse=True)
    size = np.bincount(of).astype(np.float64)
    mean = np.clip(np.bincount(of, risk) / size, 0.0, 1.0)
    return Groups(of.astype(np.int64), size, mean, audit_weights(mean, size, error))


def audit_weights(risk: Floats, size: Floats, error: float) -> Floats:
    """Return weights (G,) that promise most log wealth for an audit.

    With weights w and small bets the wealth grows by error - mean(p f(w)) for mean(w) audits, where f(w) = -w log(1 - 1 / w)
    is the loss of a wrong label that is drawn at weight w. Weights 1 + s sqrt(p) are near the best ones; s is searched for. A
    risk counts half, and the mean risk half, as a stated risk may be wrong where it is small.

    Args:
        risk: Stated risks (G,) of groups.
        size: Labels (G,) in each.
        error: Share of wrong labels to be certified.
    """
    share = size / size.sum()
    hedged = (risk + share @ risk) / 2
    weight = 1 + _STEEPNESS[:, None] * np.sqrt(hedged + 1e-9)
    loss = -weight * np.log1p(-1 / weight)
    growth = (error - (hedged * loss) @ share) / (weight @ share)
    best: Floats = weight[np.argmax(growth)]
    return best


def log_wealth(groups: Groups, drawn: NDArray[np.int64], wrong: NDArray[np.bool_], error: float) -> Floats:
    """Return the log wealth (n,) after each audit, against the hypothesis that more than a share ``error`` is wrong.

    Args:
        groups: All labels of the set.
        drawn: Labels (n,) in the order in which they were drawn.
        wrong: Verdicts (n,) on them.
        error: Share of wrong labels to be certified.

    Returns:
        Log wealth; minus infinity from the audit on that refutes the claim, infinity once the labels left cannot refute it.
    """
    most, left = allowed_errors(len(groups.of), error), groups.size.copy()
    out, total, k, foretold = np.empty(len(drawn)), 0.0, 0, 0.0
    stated = float(groups.size @ groups.risk) / len(groups.of)
    first = max(1.0, error / max(stated, 1e-9)) ** 0.5
    for t, (g, is_wrong) in enumerate(zip(groups.of[drawn], wrong, strict=True)):
        mean = most + 1 - k
        if mean > 0:
            factor = (k + _PRIOR * first) / (foretold + _PRIOR)
            gain = _gain(groups, left, mean, factor, int(g), bool(is_wrong))
            total += gain
        k, foretold, left[g] = k + int(is_wrong), foretold + groups.risk[g], left[g] - 1
        out[t] = -math.inf if k > most else math.inf if left.sum() <= most - k else total
    return out


def _gain(groups: Groups, left: Floats, mean: int, factor: float, g: int, is_wrong: bool) -> float:
    """The log wealth gained by a draw of group ``g``, with the bet that looked best before it."""
    total = float(left @ groups.weight)
    scale = total / groups.weight
    risk = np.clip(groups.risk * factor, 0.0, 0.95)
    foreseen = risk * scale - float(left @ risk)
    lose, win = mean - (scale - foreseen), mean + foreseen  # mu - y for a wrong and for a right label
    there = left > 0
    worst = min(float(lose[there].min()), float(win[there].min()))
    if worst >= 0:
        return 0.0  # so few labels are left that no verdict is bad news
    bets = _BETS / -worst
    chance = left * groups.weight / total
    expected = (np.log1p(np.multiply.outer(bets, lose[there])) @ (chance * risk)[there]) + (
        np.log1p(np.multiply.outer(bets, win[there])) @ (chance * (1 - risk))[there]
    )
    bet = bets[np.argmax(expected)]
    return math.log1p(bet * float(lose[g] if is_wrong else win[g]))
