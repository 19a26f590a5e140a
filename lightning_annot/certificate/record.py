"""The claims that were made of a run so far, since they limit what may still be claimed.

A confidence of 95% leaves a probability of 5% that *anything* ever claimed of a run is false. Each *stage* (one set of labels,
audited in one random order under one plan) may spend a fixed share of it: four fifths for the first stage, four fifths of the
rest for the next, and so on. The number of a stage fixes its share, so nothing that the audits show can change it, and the
order of a later stage is drawn independently of all earlier answers. By the union bound all claims hold together.

Within a stage ``BOUND`` of the share is for the bound of the whole set, and ``THRESHOLDS`` of it for the bounds of all smaller
sets at once, see certificate/thresholds.py; each serves every target. Looks are free: an anytime bound covers all of them
together, and a plan of one look has one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning_annot.types import AnnotError

_FIRST_SHARE = 0.8
BOUND, THRESHOLDS = 0.8, 0.2


@dataclass(frozen=True)
class Stage:
    """One set of labels under one plan.

    Args:
        digest: Which labels are in the set, see ``CertifiedSet.digest``.
        size: How many labels are in the set.
        below: Risk threshold of the set; None for the finished labels.
        once: Number of audits at the only look; None for any number of looks.
        grid: Risk thresholds that may be chosen, ascending, fixed when the audit was planned.
        error: The only claim of a stage that is drawn by importance: at most this share is wrong. None for a uniform draw.
        round: The round of the run that audits by importance.
        looks: (audited, wrong) at each look, where it differs from the look before.
    """

    digest: str
    size: int
    below: float | None
    once: int | None
    grid: tuple[float, ...] = ()
    error: float | None = None
    round: int | None = None
    looks: tuple[tuple[int, int], ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether the one planned look is past."""
        return self.once is not None and bool(self.looks)


@dataclass(frozen=True)
class Record:
    """All stages so far, in order.

    Args:
        seed: Seed of the random orders.
        stages: The stages.
        lost: Stages that came before and are not known any more.
        certificate: The certificate stated last, as plain values.
    """

    seed: int
    stages: tuple[Stage, ...] = ()
    lost: int = 0
    certificate: Mapping[str, Any] | None = None

    def find(self, digest: str, error: float | None = None) -> int | None:
        """Return the last stage of that set of labels, drawn uniformly, or by importance for the claim ``error``."""
        return self._last(lambda stage: (stage.digest, stage.error) == (digest, error))

    def find_weighted(self, digest: str) -> int | None:
        """Return the last stage of that set of labels that was drawn by importance."""
        return self._last(lambda stage: stage.digest == digest and stage.error is not None)

    def _last(self, fits: Callable[[Stage], bool]) -> int | None:
        return next((i for i in reversed(range(len(self.stages))) if fits(self.stages[i])), None)

    def planned(self, new: Stage) -> tuple[int, Record]:
        """Return the stage to which a draw under the set and plan of ``new`` belongs, and the record with it.

        An open stage of the same set and plan goes on as it was planned. Otherwise ``new`` is added, or takes the place of the
        last stage if nobody has looked at that yet.

        Raises:
            AnnotError: The plan would be changed after a look.
        """
        index = self.find(new.digest, new.error)
        if index is not None and not self.stages[index].is_over:
            stage = self.stages[index]
            if stage.once == new.once:
                return index, self
            if stage.once is not None:
                raise AnnotError(
                    f"the audit of these labels was planned as one look at {stage.once}; answer these first (--draw "
                    f"{stage.once} --once writes those that are left)."
                )
            if stage.looks:
                raise AnnotError("--once given, but the audit of these labels was looked at already; go on without --once.")
            if index == len(self.stages) - 1:
                return index, self.with_stage(index, new)
        return len(self.stages), self.with_stage(len(self.stages), new)

    def looked(self, index: int, audited: int, wrong: int) -> Record:
        """Note a look at a stage, unless it shows what the last one showed."""
        stage = self.stages[index]
        if stage.looks[-1:] == ((audited, wrong),):
            return self
        return self.with_stage(index, replace(stage, looks=(*stage.looks, (audited, wrong))))

    def bound_level(self, index: int, confidence: float) -> float:
        """Return the confidence of the whole set's bound, so that all claims hold together at ``confidence``."""
        return 1 - self._share(index, confidence) * BOUND

    def thresholds_level(self, index: int, confidence: float) -> float:
        """Return the confidence of the bounds of all smaller sets together."""
        return 1 - self._share(index, confidence) * THRESHOLDS

    def stage_level(self, index: int, confidence: float) -> float:
        """Return the confidence of a stage that makes a single claim."""
        return 1 - self._share(index, confidence)

    def with_stage(self, index: int, stage: Stage) -> Record:
        """Return the record with ``stage`` at ``index``."""
        return replace(self, stages=(*self.stages[:index], stage, *self.stages[index + 1 :]))

    def _share(self, index: int, confidence: float) -> float:
        return (1 - confidence) * _geometric(self.lost + index)


def _geometric(index: int) -> float:
    """Shares 0.8, 0.16, 0.032, ... of a whole, which sum to 1."""
    return _FIRST_SHARE * (1 - _FIRST_SHARE) ** index
