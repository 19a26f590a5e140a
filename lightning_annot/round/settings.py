"""Settings of a round: the model of the workers, and what is asked of whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_annot.crowd.skill import PRIORS, PriorKind
from lightning_annot.names import clean
from lightning_annot.sampling.assignment import ASSIGNMENTS, Assignment
from lightning_annot.sampling.items import ITEM_RULES, ItemRule
from lightning_annot.types import AnnotError


@dataclass(frozen=True)
class CrowdSettings:
    """The model of the workers.

    ``prior``: what their confusions are shrunk to. tiered: the full pooled confusion, estimated by a first EM. The others have
    even errors, and one accuracy (homogeneous), one a class, one a worker, or one for each worker and class (class_worker).
    ``estimate``: where these accuracies come from: fixed (``accuracy``), em (a pooled EM), or gold (answers to gold questions).
    ``oracle``: an .npz of the true confusions, as simulated workers export; relative paths start at the output folder. Results
    with it are no estimates, and are marked oracle-prior.
    ``temper``: learn from each round's new answers how far learner and workers may be believed (crowd/tempering.py).
    ``class_prior``: with the tiered prior, learn the shares of the classes from the answers, and use them where classes clearly
    differ in size and shares have not foretold new answers worse than equal classes did (crowd/pooled.py, recalibration.py).
    ``exclude``: whoever answers without looking, or against the truth, is not asked again, and does not count (crowd/spam.py).
    ``strength``: pseudo-counts of a worker's confusion row; None: 10, and with tiered learned by marginal likelihood.
    ``accuracy``: what is believed of a worker before any answer.
    ``experts``: names of workers who are hardly ever wrong, besides those whose answers were imported as an expert's.
    """

    prior: PriorKind = "tiered"
    accuracy: float = 0.7
    strength: float | None = None
    temper: bool = True
    class_prior: bool = True
    exclude: bool = True
    m_step: Literal["soft", "hard"] = "soft"
    max_iterations: int = 100
    tolerance: float = 1e-4
    estimate: Literal["fixed", "em", "gold"] = "fixed"
    oracle: str | None = None
    experts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", tuple(clean(name) for name in self.experts))
        if self.prior not in PRIORS:
            raise AnnotError(f"crowd.prior {self.prior!r} given; allowed are {', '.join(PRIORS)}.")
        if self.estimate not in ("fixed", "em", "gold"):
            raise AnnotError(f"crowd.estimate {self.estimate!r} given; allowed are fixed, em, gold.")
        if self.oracle is not None:
            return
        if self.prior in ("worker", "class_worker") and self.estimate != "gold":
            raise AnnotError(
                f"crowd.prior {self.prior} with crowd.estimate {self.estimate} given; what one worker can do is known before "
                "their answers only from gold questions: set crowd.estimate gold and annotation.gold, or give crowd.oracle."
            )
        if self.prior == "class" and self.estimate == "fixed":
            raise AnnotError("crowd.prior class needs accuracies of its own; set crowd.estimate to em or gold.")


@dataclass(frozen=True)
class TrustSettings:
    """Who is not asked any more, besides those whom ``crowd.exclude`` leaves out; what they said counts as before.

    ``least_accuracy``: share of right answers that is asked of everybody (None: nobody is paused). ``certainty``: a worker is
    paused where the chance of so much is below 1 - ``certainty`` (crowd/trust.py), and asked again where it is not any more.
    ``qualify``: gold questions that each worker answers before any other.
    """

    least_accuracy: float | None = None
    certainty: float = 0.95
    qualify: int = 0

    def __post_init__(self) -> None:
        if self.least_accuracy is not None and not 0.0 < self.least_accuracy < 1.0:
            raise AnnotError(f"trust.least_accuracy {self.least_accuracy} given; it must be above 0 and below 1, or null.")
        if not 0.5 <= self.certainty < 1.0:
            raise AnnotError(f"trust.certainty {self.certainty} given; it must be from 0.5 on and below 1.")
        if self.qualify < 0:
            raise AnnotError(f"trust.qualify {self.qualify} given; it must be 0 or more gold questions.")
        if self.qualify and self.least_accuracy is None:
            raise AnnotError(
                f"trust.qualify {self.qualify} given without trust.least_accuracy, so that nobody could fail; give that too."
            )


NO_CAP = 1 << 30  # answers an item that nobody gets


@dataclass(frozen=True)
class SamplingSettings:
    """``per_round``: questions a round. ``cap``: most answers an item; None: as many as are worth more than an expert's label,
    by ``stopping.expert_price``. ``items``: how items are drawn among the unfinished;
    expected_error_reduction draws them in proportion to its score to the power of ``sharpness``.

    ``workers``: how a worker is chosen, for each item or, with a ``hit_size`` above 1, for each HIT of so many items; greedy
    takes the worker who is most probably right, below ``worker_cap`` (Liao et al. 2021, Eq. 1), information the one whose
    answer lowers the item's risk most, by confusions drawn from what is known of them (``explore``), so that new workers are
    tried. ``worker_cap``: most questions a worker is asked in all (alpha there), gold questions apart; None: no limit.
    ``worker_share``: most of a round's questions that information gives to one worker; None: no limit. ``refill``: where a
    round would ask more than the unfinished items, it asks on about finished ones, riskiest first, as the released code does.
    """

    per_round: int = 200
    cap: int | None = 4
    items: ItemRule = "expected_error_reduction"
    sharpness: float = 3.0
    workers: Assignment = "information"
    worker_cap: int | None = None
    worker_share: float | None = 0.1
    explore: bool = True
    hit_size: int = 1
    refill: bool = False

    def __post_init__(self) -> None:
        if min(self.per_round, self.most, self.hit_size) < 1:
            raise AnnotError(
                f"sampling.per_round {self.per_round}, sampling.cap {self.cap}, sampling.hit_size {self.hit_size} given; all "
                "must be at least 1."
            )
        if self.items not in ITEM_RULES:
            raise AnnotError(f"sampling.items {self.items!r} given; allowed are {', '.join(ITEM_RULES)}.")
        if self.workers not in ASSIGNMENTS:
            raise AnnotError(f"sampling.workers {self.workers!r} given; allowed are {', '.join(ASSIGNMENTS)}.")
        if self.sharpness <= 0 or (self.worker_share is not None and not 0 < self.worker_share <= 1):
            raise AnnotError(
                f"sampling.sharpness {self.sharpness}, sampling.worker_share {self.worker_share} given; sharpness must be "
                "above 0, worker_share above 0 and at most 1, or null."
            )
        if self.worker_cap is not None and self.worker_cap < self.hit_size:
            raise AnnotError(
                f"sampling.worker_cap {self.worker_cap} given, with HITs of {self.hit_size}; a worker must be allowed one HIT "
                "at least: raise worker_cap or lower sampling.hit_size."
            )

    @property
    def most(self) -> int:
        """Most answers an item, as a number."""
        return NO_CAP if self.cap is None else self.cap
