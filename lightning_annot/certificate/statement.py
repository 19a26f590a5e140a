"""What may be said of a set of labels after its audits, as numbers and as words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_annot.certificate.bounds import anytime_upper, audits_needed, binomial_upper, hypergeometric_upper
from lightning_annot.certificate.record import Record, Stage
from lightning_annot.certificate.sample import Audits, CertifiedSet
from lightning_annot.certificate.thresholds import (
    ThresholdChoice,
    choose_threshold,
    threshold_grid,
)


@dataclass(frozen=True)
class Certificate:
    """At most ``bound`` of the ``size`` labels of the set ``digest`` are wrong, at ``confidence``.

    Of these ``audited`` were audited, and ``wrong`` were wrong, among them ``unsure`` that the expert could not tell;
    ``believed`` is the share of wrong labels that the run itself expected in the set.
    ``waiting`` answers are behind a gap. ``below`` is the risk threshold of the set. ``bound`` is ``anytime`` or, where one
    look was planned (``once``), ``hypergeometric``; these and ``binomial`` are at ``level``. ``choice`` is the largest
    threshold within ``target``. ``more`` audits would bring the bound to ``goal``, None where no number would; where the one
    planned look is over, they are those of a new audit.
    """

    digest: str
    size: int
    below: float
    audited: int
    wrong: int
    unsure: int
    believed: float
    waiting: int
    confidence: float
    level: float
    once: bool
    bound: float
    anytime: float
    hypergeometric: float
    binomial: float
    target: float | None
    choice: ThresholdChoice | None
    goal: float | None
    more: int | None


def plan(found: CertifiedSet, once: int | None, below: float | None) -> Stage:
    """Plan the stage of a uniform audit of ``found``, with its grid, before any answer."""
    grid = threshold_grid(found.risk.to_numpy(), found.top)
    return Stage(found.digest, len(found), below, once, grid=tuple(grid.tolist()))


def state(
    found: CertifiedSet,
    audits: Audits,
    record: Record,
    index: int,
    confidence: float,
    target: float | None,
    believed: float,
) -> tuple[Certificate, Record]:
    """Return the certificate of ``found``, which is stage ``index``, and the record with this look.

    If the bound is within ``target``, so is the whole set; else a smaller threshold is looked for.
    """
    n, k, size = len(audits.wrong), int(audits.wrong.sum()), len(found)
    if n:
        record = record.looked(index, n, k)
    once = record.stages[index].once is not None
    level = record.bound_level(index, confidence)
    anytime, single = (float(upper(n, k, size, level)) for upper in (anytime_upper, hypergeometric_upper))
    bound, choice = single if once else anytime, None
    if target is not None and bound <= target:
        choice = ThresholdChoice(found.top, size, n, k, bound)
    elif target is not None and n:
        level_below = record.thresholds_level(index, confidence)
        upper = hypergeometric_upper if once else anytime_upper
        choice = choose_threshold(audits.risk, audits.wrong, target, level_below, upper, record.stages[index].grid)
    goal = _goal(n, k, bound, target)
    next_level = record.bound_level(len(record.stages), confidence) if once else level
    begin = (0, 0) if once else (n, k)
    certificate = Certificate(
        digest=found.digest,
        size=size,
        below=found.top,
        audited=n,
        wrong=k,
        unsure=int(audits.unsure.sum()),
        believed=believed,
        waiting=audits.waiting,
        confidence=confidence,
        level=level,
        once=once,
        bound=bound,
        anytime=anytime,
        hypergeometric=single,
        binomial=float(binomial_upper(n, k, level)),
        target=target,
        choice=choice,
        goal=goal,
        more=None if goal is None else audits_needed(goal, k / max(n, 1), size, next_level, anytime_upper, *begin),
    )
    return certificate, record


def describe(found: Certificate, whole: str) -> list[str]:
    """The certificate in words, a line a fact; ``whole`` names the set, such as ``finished labels``."""
    share = f" ({_percent(found.wrong / found.audited)})" if found.audited else ""
    lines = [f"audited: {found.audited:,} of {found.size:,} {whole}, wrong: {found.wrong:,}{share}"]
    lines.append(f"believed: {_believed(found, whole)}")
    if found.unsure:
        lines.append(f"unsure: {found.unsure:,} of these, counted as wrong")
    if found.waiting:
        lines.append(f"waiting: {found.waiting:,} answers stand behind a task without one in the order of the draw; fill it")
    plan = "one planned look" if found.once else "however often it is looked at"
    sure = f"confidence {found.confidence:.10g}"
    lines.append(f"certified: at most {_percent(found.bound, up=True)} of the {whole} are wrong ({sure}, {plan})")
    single = f"{_percent(found.hypergeometric, up=True)} (binomial {_percent(found.binomial, up=True)})"
    level = f"each at {found.level:.10g}"
    lines.append(f"bounds: {_percent(found.anytime, up=True)} at any look, {single} at one planned look; {level}")
    if found.target is not None:
        lines.append(f"threshold: {_threshold(found, _percent(found.target))} ({sure})")
    if found.goal is not None:
        lines.append(f"more: {_more(found, _percent(found.goal))}")
    return lines


def _believed(found: Certificate, whole: str) -> str:
    """The run's own expectation beside what the audit found."""
    expected = f"the run expected {_percent(found.believed)} of the {whole} to be wrong"
    if not found.audited:
        return f"{expected}; nothing is audited yet"
    return f"{expected}, {found.believed * found.audited:.1f} of the {found.audited:,} audited; the audit found {found.wrong:,}"


def _goal(n: int, k: int, bound: float, target: float | None) -> float | None:
    """The tighter claim to count audits for: the target until it is reached, then half of the way to what was observed."""
    if target is not None and bound > target:
        return target
    return (bound + k / n) / 2 if n and bound > k / n else None


def _threshold(found: Certificate, target: str) -> str:
    choice = found.choice
    if choice is None:
        return f"none is certified to have at most {target} wrong"
    if choice.size == found.size:
        return f"{choice.threshold:g}, that of all these labels, has at most {target} wrong"
    counts = f"{choice.size:,} labels, audited {choice.audited:,}, wrong {choice.wrong:,}"
    return f"{choice.threshold:g} is the largest that is certified to have at most {target} wrong: {counts}"


def _more(found: Certificate, goal: str) -> str:
    rate = "as many are wrong as of these" if found.audited else "none is wrong"
    if found.more is None:
        return f"no number of audits certifies {goal}, if {rate}"
    return f"about {found.more:,} {'audits of a new draw' if found.once else 'more audits'} would certify {goal}, if {rate}"


def _percent(share: float, up: bool = False) -> str:
    """``0.0123`` as ``1.23%``; ``up`` rounds upwards, as a bound must."""
    hundredths = math.ceil(share * 1e4 - 1e-9) if up else round(share * 1e4)
    return f"{hundredths / 100:.2f}%"
