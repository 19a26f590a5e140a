"""Interval of the error that a run states for its finished items.

Two things are uncertain. Given the posterior, each label is wrong with a probability of its own, independently of the others:
their share varies by sum_i r_i (1 - r_i) / n^2. And the posterior depends on the exponents (crowd/tempering.py), which were
fitted to few answers at first. They are drawn from the Laplace approximation of their posterior, truncated to their bounds; an
optimum at a bound has a slope there, which the approximation keeps. Where no answer was fitted, the penalty of the fit is the
prior that they are drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm, truncnorm
from torch import Tensor

from lightning_annot.crowd.em import EMResult
from lightning_annot.crowd.tempering import BOUNDS, PRIOR_SCALE, FreshAnswers, Tempering, loss_of_level, of_level

DRAWS = 64  # of the exponents
MOST_ITEMS = 5_000  # sampled for what a draw changes; the mean of a change varies by a seventieth of its spread over items
MOST_ELEMENTS = 1 << 19  # values of (items, K): fewer items are sampled of many classes
LEVEL = 0.90  # of the interval
_STEP = 0.05  # of log exponents, in finite differences
_SWEEPS = 8  # of the Gibbs sampler of two variables, begun at the optimum
_NORMALS = 15  # points of the normal distribution within each draw


@dataclass(frozen=True)
class Curvature:
    """How sharply fresh answers tell the exponents, at each of L levels.

    Attributes:
        answers: (L,) int64, answers that the level was fitted to.
        gradient: (L, 2) of the fit's loss by (log model, log people) at its optimum; zero but at a bound.
        hessian: (L, 2, 2) of the same, positive definite.
    """

    answers: Tensor
    gradient: Tensor
    hessian: Tensor

    def parts(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return dict(self.__dict__)


def curvature(fresh: FreshAnswers, tempering: Tempering, most: int) -> Curvature:
    """Measure the loss of ``fit_tempering`` around its optimum.

    Args:
        fresh: What ``tempering`` was fitted to.
        tempering: The exponents of L levels.
        most: Answers of each level that the fit looked at.

    Returns:
        Gradient and Hessian of each level, by finite differences within the bounds. Curvatures below the penalty's are
        raised to it: the likelihood adds evidence, or none.
    """
    levels = len(tempering.model)
    answers, gradients, hessians, centre = [], [], [], np.zeros(2)
    for level in range(levels):
        some = of_level(fresh, level, levels, most)
        at = np.log([tempering.model[level], tempering.people[level]])
        gradient, hessian = _differences(some, at, centre)
        answers.append(len(some))
        gradients.append(gradient)
        hessians.append(hessian)
        centre = at
    parts = torch.from_numpy(np.array(gradients)), torch.from_numpy(np.array(hessians))
    return Curvature(torch.tensor(answers), *parts)


def draw_exponents(
    found: Curvature | None, tempering: Tempering, generator: torch.Generator, n: int = DRAWS
) -> tuple[Tensor, Tensor]:
    """Draw exponents that the evidence allows.

    A level's centre is the level below, so that its draws follow the draws of that one.

    Args:
        found: The curvature at ``tempering``; None where nothing was fitted, which leaves the prior.
        tempering: The exponents of L levels.
        generator: Source of all randomness.
        n: Number of draws.

    Returns:
        Exponents of the learner and of people, (n, L) each, within their bounds.
    """
    low, high = np.log(BOUNDS).T
    precision = PRIOR_SCALE**-2
    below, drawn = np.zeros((n, 2)), []
    for level in range(len(tempering.model)):
        at = np.log([tempering.model[level], tempering.people[level]])
        h = np.eye(2) * precision if found is None else found.hessian[level].numpy()
        g = np.zeros(2) if found is None else found.gradient[level].numpy()
        mean = at - np.linalg.solve(h, (g - precision * below).T).T
        x = np.tile(np.clip(at, low, high), (n, 1))
        chance = torch.rand(_SWEEPS, 2, n, generator=generator, dtype=torch.float64).numpy()
        for sweep in range(_SWEEPS):
            for i, other in ((0, 1), (1, 0)):
                centre = mean[:, i] - h[i, other] / h[i, i] * (x[:, other] - mean[:, other])
                scale = h[i, i] ** -0.5
                ends = (low[i] - centre) / scale, (high[i] - centre) / scale
                x[:, i] = np.clip(truncnorm.ppf(chance[sweep, i], *ends, loc=centre, scale=scale), low[i], high[i])
        drawn.append(x)
        below = x - at
    exponents = torch.from_numpy(np.exp(np.stack(drawn, 1)))
    return exponents[:, :, 0], exponents[:, :, 1]


def sample_rows(rows: Tensor, n_classes: int, generator: torch.Generator) -> Tensor:
    """Draw at most 5,000 of ``rows`` (n,), fewer of many classes; rising."""
    most = max(1, min(MOST_ITEMS, MOST_ELEMENTS // n_classes))
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:most]].sort().values


def people_evidence(result: EMResult, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What workers say of items.

    Args:
        result: The fitted crowd.
        rows: (n,) items, rising.

    Returns:
        Log-likelihood of each item's answers by class, (n, K), and their number, (n,); zero where there is none.
    """
    inc = result.incidence
    people = result.prior.counts.new_zeros(len(rows), inc.n_classes)
    count = torch.zeros(len(rows), dtype=torch.int64)
    for chunk in inc.chunks:
        items = inc.items[chunk.start : chunk.stop]
        here = torch.isin(rows, items)
        if bool(here.any()):
            at = torch.searchsorted(items, rows[here])
            people[here] = result.log_likelihood(chunk, chunk.weight)[at]
            count[here] = chunk.n_answers[at]
    return people, count


def error_interval(
    model: Tensor,
    people: Tensor,
    count: Tensor,
    loss: Tensor,
    tempering: Tempering,
    draws: tuple[Tensor, Tensor],
    stated: float,
    size: int,
) -> tuple[float, float]:
    """Central 90% interval of the mean loss of labels.

    Args:
        model: (n, K) log p(y | x) of a sample of the labelled items.
        people: (n, K) log-likelihood of their answers.
        count: (n,) number of their answers.
        loss: (n, K) loss of each label by true class; 0 or 1 where labels are right or wrong.
        tempering: The exponents that the labels were made with.
        draws: Exponents of the learner and of people, (D, L) each.
        stated: Mean loss that is stated of all labels.
        size: Number of labels, of which the n are a sample.

    Returns:
        The ends, from 0 up, with ``stated`` between them. The mean under a draw is ``stated`` plus the change that the
        draw makes in the sample.
    """
    level = count.clamp(max=draws[0].shape[1] - 1)
    by_class = model.T.contiguous(), people.T.contiguous(), loss.T.contiguous()  # sums over the first axis are far faster
    now, _ = _mean_and_variance(*by_class, *(e[:, 0] for e in tempering.of(count)))
    points = norm.ppf((np.arange(_NORMALS) + 0.5) / _NORMALS)
    values = []
    for a, b in zip(*draws, strict=True):
        mean, variance = _mean_and_variance(*by_class, a[level], b[level])
        values.append(stated + mean - now + (variance / size) ** 0.5 * points)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(values), [tail, 1 - tail])
    return max(0.0, min(float(low), stated)), min(float(loss.max()), max(float(high), stated))


def loss_by_class(label: Tensor, n_classes: int, cost: Tensor | None = None) -> Tensor:
    """Loss of labels by true class.

    Args:
        label: (n,) decided classes.
        n_classes: Number of classes K.
        cost: (K, K), row = true class, column = decided class; None: being wrong costs 1.

    Returns:
        (n, K), 0 where the label is right.
    """
    wrong = 1.0 - torch.eye(n_classes) if cost is None else cost.float()
    return wrong.T[label]


def _mean_and_variance(model: Tensor, people: Tensor, loss: Tensor, a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean over items of the expected loss, and of its variance given the posterior with exponents ``a``, ``b`` (n,).

    ``model``, ``people`` and ``loss`` are (K, n).
    """
    weighted = (a.to(model) * model).add_(b.to(model) * people).softmax(0).mul_(loss)
    risk = weighted.sum(0)
    variance = weighted.mul_(loss).sum(0) - risk.square()
    return float(risk.double().mean()), float(variance.clamp(min=0).double().mean())


def _differences(fresh: FreshAnswers, at: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (2,) and Hessian (2, 2) of one level's loss at ``at``, from a quadratic through 3 x 3 points within bounds."""
    if not len(fresh):
        return (at - centre) / PRIOR_SCALE**2, np.eye(2) / PRIOR_SCALE**2
    low, high = np.log(BOUNDS).T
    steps = [
        _STEP * (np.arange(3) - (2 if x + _STEP > up else 0 if x - _STEP < least else 1))
        for x, least, up in zip(at, low, high, strict=True)
    ]
    points = np.array([(x, y) for x in steps[0] for y in steps[1]])
    values = np.array([loss_of_level(fresh, at + point, centre, PRIOR_SCALE) for point in points])
    x, y = points.T
    design = np.stack([np.ones(len(x)), x, y, x * x / 2, x * y, y * y / 2], 1)
    _, gx, gy, hxx, hxy, hyy = np.linalg.lstsq(design, values - values.mean(), rcond=None)[0]
    size, axes = np.linalg.eigh(np.array([[hxx, hxy], [hxy, hyy]]))
    hessian = axes @ np.diag(np.maximum(size, PRIOR_SCALE**-2)) @ axes.T
    inside = (at > low + 1e-6) & (at < high - 1e-6)  # an optimum within has no slope but that of its rounding
    return np.where(inside, 0.0, np.array([gx, gy])), hessian
