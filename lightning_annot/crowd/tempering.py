"""How far the learner and the workers may be believed: exponents learned from answers that nothing had yet learned from.

Learner and workers fail on the same hard items, so the product of their evidence is too sure of itself. With n answers, the
posterior here is

    q_i(y)  proportional to  p(y | x_i)^a_n  (prod_j w_j[y, z_ij])^b_n

Whatever a round asks comes back before any learner has seen it. With q_i from the n answers before it, the new answer z of
worker j has probability sum_y q_i(y) w_j[y, z]. The exponents maximise the likelihood of such answers (prequential, Dawid
1984). That takes no truth. The choice of items depends on what q_i is made of and on chance alone, so it makes no bias as
long as one pair of exponents fits all items with n answers; if the doubtful items that are asked need another pair, it
does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

LEAST, MOST_OF_MODEL, MOST_OF_PEOPLE = 0.05, 1.0, 1.0  # people who share errors say less than the product has it, never more
BOUNDS = ((LEAST, MOST_OF_MODEL), (LEAST, MOST_OF_PEOPLE))
PRIOR_SCALE = 0.3  # of log exponents: a level is within a third of the one below unless its answers say otherwise


@dataclass(frozen=True)
class Tempering:
    """Exponents ``model`` (L,) and ``people`` (L,) of items with 0, 1, ... L - 1 answers; with more, the last hold."""

    model: tuple[float, ...] = (1.0,)
    people: tuple[float, ...] = (1.0,)

    def of(self, n_answers: Tensor) -> tuple[Tensor, Tensor]:
        """Exponents (n, 1) of the learner and of the workers for items with ``n_answers`` (n,)."""
        level = n_answers.clamp(max=len(self.model) - 1)
        return tuple(torch.tensor(e, dtype=torch.float32)[level][:, None] for e in (self.model, self.people))  # type: ignore[return-value]

    @property
    def is_plain(self) -> bool:
        """Whether all exponents are 1, so that the posterior is the plain product."""
        return set(self.model) | set(self.people) == {1.0}


@dataclass(frozen=True)
class FreshAnswers:
    """Answers that no learner has seen, with what was believed before them.

    ``model`` (A, K): log p(y | x) of the item; ``people`` (A, K): log-likelihood of its earlier answers, of which there were
    ``earlier`` (A,); ``answer`` (A, K): log probability of the new answer by true class.
    ``machines`` (A, M, K): evidence of machine workers, None without any.
    """

    model: Tensor
    people: Tensor
    answer: Tensor
    earlier: Tensor
    machines: Tensor | None = None

    def __len__(self) -> int:
        return len(self.earlier)

    def rows(self, keep: Tensor) -> FreshAnswers:
        """Those of ``keep``."""
        return FreshAnswers(**{name: part[keep] for name, part in self.parts().items()})

    def parts(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name: part for name, part in self.__dict__.items() if part is not None}


def join(parts: Sequence[FreshAnswers]) -> FreshAnswers:
    """All of ``parts``, which are not none, in order."""
    return FreshAnswers(**{name: torch.cat([p.parts()[name] for p in parts]) for name in parts[0].parts()})


def log_predictive(fresh: FreshAnswers, model: float | Tensor, people: float | Tensor) -> Tensor:
    """log sum_y q(y) p(answer | y) of each answer (A,), where q has exponents ``model`` and ``people``, numbers or (A, 1)."""
    log_q = (model * fresh.model.double() + people * fresh.people.double()).log_softmax(1)
    return (log_q + fresh.answer.double()).logsumexp(1)


def foreseen(fresh: FreshAnswers, tempering: Tempering) -> float:
    """Nats an answer by which q says more of ``fresh``, which are not none, than a guess that takes all classes for equal.

    Mean of log sum_y q(y) p(answer | y) - log (1/K) sum_y p(answer | y). A q that is too sure of itself gains less, and may
    lose, so the mean rises both as a run becomes right and as it becomes honest.
    """
    model, people = tempering.of(fresh.earlier)
    guess = fresh.answer.double().logsumexp(1) - math.log(fresh.answer.shape[1])
    return float((log_predictive(fresh, model.double(), people.double()) - guess).mean())


def fit_tempering(fresh: FreshAnswers, levels: int, prior_scale: float = PRIOR_SCALE, most: int = 2000) -> Tempering:
    """Exponents for 0 .. ``levels`` - 1 answers, from the last ``most`` answers of each level.

    Level n maximises sum log p(answer) - ((log a - log a')^2 + (log b - log b')^2) / (2 ``prior_scale``^2), where a', b' are
    the exponents one level below, and 1 at the lowest: without answers nothing is tempered, with few little.
    """
    model, people = [], []
    a, b = 1.0, 1.0
    for level in range(levels):
        some = of_level(fresh, level, levels, most)
        if len(some):
            a, b = _fit_level(some, a, b, prior_scale)
        model.append(a)
        people.append(b)
    return Tempering(tuple(model), tuple(people))


def of_level(fresh: FreshAnswers, level: int, levels: int, most: int) -> FreshAnswers:
    """The last ``most`` answers of a level; the last of ``levels`` has all above it, too."""
    return fresh.rows((fresh.earlier.clamp(max=levels - 1) == level).nonzero()[-most:, 0])


def loss_of_level(fresh: FreshAnswers, log_ab: np.ndarray, centre: np.ndarray, prior_scale: float) -> float:
    """What ``fit_tempering`` minimises: penalty less log-likelihood of the answers of one level, at log exponents (2,)."""
    penalty = float(((log_ab - centre) ** 2).sum()) / (2.0 * prior_scale**2)
    return penalty - float(log_predictive(fresh, *np.exp(log_ab)).sum())


def _fit_level(fresh: FreshAnswers, a: float, b: float, prior_scale: float) -> tuple[float, float]:
    centre = np.log([a, b])
    found = minimize(lambda x: loss_of_level(fresh, x, centre, prior_scale), centre, method="L-BFGS-B", bounds=np.log(BOUNDS))
    return tuple(float(v) for v in np.exp(found.x))  # type: ignore[return-value]
