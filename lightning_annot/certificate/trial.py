"""The audit of one set of labels by importance, for one claim: at most a share ``error`` of it is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_annot.certificate.importance import Groups, grouped, log_wealth
from lightning_annot.certificate.record import Record, Stage
from lightning_annot.certificate.sample import CertifiedSet, weighted_order

_ENOUGH = 50  # audits from which on the estimate says whether to go on


@dataclass(frozen=True)
class Trial:
    """A set of labels whose audit is planned.

    Args:
        found: The labels.
        error: The claim: at most this share of them is wrong.
        index: Stage of the record.
        groups: Labels by risk, with their weights.
        order: Positions (N,) of the labels in the order in which they are audited.
    """

    found: CertifiedSet
    error: float
    index: int
    groups: Groups
    order: NDArray[np.int64]

    def tasks(self, n: int) -> list[str]:
        """Return the first n labels to audit."""
        return self.found.task.to_numpy()[self.order[:n]].tolist()

    def standing(self, answers: Mapping[str, str | None], n: int, level: float) -> Standing:
        """Return what the answers to the first n labels show, all of which must be there.

        Args:
            answers: Class by item; None, unsure, counts as wrong.
            n: Labels to count.
            level: Confidence of the claim.
        """
        drawn = self.order[:n]
        label = self.found.label.to_numpy()[drawn]
        wrong = np.array([answers[task] != said for task, said in zip(self.tasks(n), label, strict=True)], dtype=np.bool_)
        wealth = log_wealth(self.groups, drawn, wrong, self.error)
        certified = bool(n) and bool(wealth.max() >= -math.log(1 - level))
        return Standing(n, int(wrong.sum()), certified, self._is_hopeless(drawn, wrong))

    def _is_hopeless(self, drawn: NDArray[np.int64], wrong: NDArray[np.bool_]) -> bool:
        """Whether more labels seem to be wrong than the claim allows, by a standard error."""
        if len(drawn) < _ENOUGH:
            return False
        inverse = 1 / self.groups.weight[self.groups.of[drawn]]
        margin = math.sqrt(self.error / len(drawn))
        return bool(inverse[wrong].sum() >= (self.error + margin) * inverse.sum())


@dataclass(frozen=True)
class Standing:
    """``wrong`` of ``audited`` labels were wrong; whether the claim is ``certified``, or seems ``hopeless``."""

    audited: int
    wrong: int
    certified: bool
    hopeless: bool


def expected_audits(found: CertifiedSet, error: float, level: float, answers: Mapping[str, str | None]) -> float:
    """Return about how many audits it takes to certify ``error``; infinity where more seems to be wrong.

    With a share p wrong, the log wealth grows by (error - p)^2 / (2 p) an audit, and by no more than ``error``. The share is
    the stated risk, or what earlier audits say of the labels as they are now, less a standard error, whichever is more.

    Args:
        found: The labels.
        error: The claim.
        level: Confidence of the claim.
        answers: Class by item of all earlier audits.
    """
    known = [(said, answers[task]) for task, said in zip(found.task, found.label, strict=True) if task in answers]
    n, k = len(known), sum(said != true for said, true in known)
    seen = (k - math.sqrt(k)) / n if n >= _ENOUGH else 0.0
    wrong = max(float(found.risk.mean()), seen)
    if wrong >= error:
        return math.inf
    growth = min(error, (error - wrong) ** 2 / (2 * wrong)) if wrong > 0 else error
    return -math.log(1 - level) / growth


def begin(found: CertifiedSet, record: Record, error: float, round_: int | None = None) -> tuple[Trial, Record]:
    """Return the audit of ``found`` for the claim ``error``, and the record with its stage."""
    index, record = record.planned(Stage(found.digest, len(found), None, None, error=error, round=round_))
    return resume(found, record, index), record


def resume(found: CertifiedSet, record: Record, index: int) -> Trial:
    """Return the audit that stage ``index`` of the record has planned for ``found``."""
    error = record.stages[index].error
    if error is None:
        raise ValueError(f"stage {index} is drawn uniformly")
    groups = grouped(found.risk.to_numpy(), error)
    order = weighted_order(found, groups.weight[groups.of], record.seed, record.lost + index)
    return Trial(found, error, index, groups, order)


def describe_trial(standing: Standing, trial: Trial, confidence: float, whole: str = "finished labels") -> str:
    """Return what the audit has shown, in one sentence."""
    audits = f"{standing.audited:,} audits, {standing.wrong:,} wrong"
    share = f"{100 * trial.error:.10g}%"
    if standing.certified:
        return f"the {whole} are certified: at most {share} wrong at confidence {confidence:.10g} ({audits})"
    return f"the {whole} are not certified to have at most {share} wrong at confidence {confidence:.10g} ({audits})"
