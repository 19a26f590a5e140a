"""``certificate.json``: what has been claimed so far, since that is a part of what may be claimed.

A confidence of 95% leaves 5% for being wrong, once and for all that is ever claimed of a run. Each *claim* spends a share of
it: four fifths the first, four fifths of the rest the next, and so on. These sum to 1, so by the union bound all claims hold
together, however many come. A claim is the bound of a *stage* (one set of labels, audited under one plan), or the threshold
chosen in it for one target. Within a claim looks are free: an anytime bound covers all of them, and a plan of one look has one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lightning_annot.files import write_text
from lightning_annot.stored import read_object, reading
from lightning_annot.types import AnnotError

NAME = "certificate.json"
_FIRST_SHARE = 0.8

Claim = tuple[int, float | None]
"""A stage, and the target for which a threshold was chosen in it; None: the bound of the stage."""


@dataclass(frozen=True)
class Stage:
    """One set of labels under one plan: ``once`` is the number of audits of the only look, None: any number of looks.

    ``digest`` and ``size`` tell the set, ``below`` its risk threshold where it is not the finished set; ``looks`` are
    (audited, wrong), each as it was first seen.
    """

    digest: str
    size: int
    below: float | None
    once: int | None
    looks: tuple[tuple[int, int], ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether its one planned look was had."""
        return self.once is not None and bool(self.looks)


@dataclass(frozen=True)
class Record:
    """All stages and all claims so far, each in order; ``lost`` claims came before and are not known.

    ``certificate`` is the one stated last, as plain values.
    """

    seed: int
    stages: tuple[Stage, ...] = ()
    claims: tuple[Claim, ...] = ()
    lost: int = 0
    certificate: Mapping[str, Any] | None = None

    def find(self, digest: str) -> int | None:
        """The last stage of that set of labels."""
        return next((i for i in reversed(range(len(self.stages))) if self.stages[i].digest == digest), None)

    def planned(self, new: Stage) -> tuple[int, Record]:
        """The stage to which a draw under the set and plan of ``new`` belongs, and the record with it.

        It is the one that goes on, a new one where the labels are new or the one planned look is over, and ``new`` instead
        of a stage that nobody has looked at. Raises AnnotError for a plan that would be changed after the fact.
        """
        index = self.find(new.digest)
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
                return index, self._with_stage(index, new)
        return len(self.stages), self._with_stage(len(self.stages), new)

    def looked(self, index: int, audited: int, wrong: int) -> Record:
        """A look at a stage, which claims its bound; one that shows what the last one showed is none."""
        stage = self.stages[index]
        if stage.looks[-1:] == ((audited, wrong),):
            return self
        return self._with_stage(index, replace(stage, looks=(*stage.looks, (audited, wrong)))).claimed((index, None))

    def claimed(self, claim: Claim) -> Record:
        """A claim that is made; once is enough."""
        return self if claim in self.claims else replace(self, claims=(*self.claims, claim))

    def level(self, claim: Claim, confidence: float) -> float:
        """The confidence at which a claim, made or next, is stated, so that all hold together at ``confidence``."""
        index = self.claims.index(claim) if claim in self.claims else len(self.claims)
        return claim_level(self.lost + index, confidence)

    def _with_stage(self, index: int, stage: Stage) -> Record:
        return replace(self, stages=(*self.stages[:index], stage, *self.stages[index + 1 :]))


def claim_level(index: int, confidence: float) -> float:
    """1 - (1 - confidence) 0.8 0.2^index; what all indices leave for being wrong sums to 1 - confidence."""
    return 1 - (1 - confidence) * _FIRST_SHARE * (1 - _FIRST_SHARE) ** index


def read_record(directory: Path) -> Record | None:
    """The record of a run's folder, None if it has none. Raises AnnotError for a file that is no record."""
    path = directory / NAME
    if not path.is_file():
        return None
    cure = "take back the file as it was written, or delete it: then each draw so far counts as a claim"
    found = read_object(path, cure)
    with reading(path, cure):
        stages = [{**stage, "looks": tuple((int(n), int(k)) for n, k in stage["looks"])} for stage in found["stages"]]
        known = tuple(Stage(**stage) for stage in stages)
        for stage in known:
            _check(stage)
        claims = tuple((int(stage), None if target is None else float(target)) for stage, target in found["claims"])
        if not all(0 <= stage < len(known) for stage, _ in claims):
            raise ValueError("a claim about a stage that is not there")
        return Record(int(found["seed"]), known, claims, int(found["lost"]), found["certificate"])


def _check(stage: Stage) -> None:
    """Raises TypeError for a stage whose values are of other types."""
    numbers = (stage.size, 0 if stage.once is None else stage.once)
    if not isinstance(stage.digest, str) or not all(isinstance(number, int) for number in numbers):
        raise TypeError(f"{stage.digest!r}, {stage.size!r} and {stage.once!r} as digest, size and once")
    if stage.below is not None and not isinstance(stage.below, int | float):
        raise TypeError(f"{stage.below!r} as below")


def write_record(directory: Path, record: Record) -> None:
    """Replace ``certificate.json`` by the record."""
    write_text(directory / NAME, json.dumps(asdict(record), indent=1) + "\n")
