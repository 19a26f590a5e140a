"""How often each worker was right: a posterior over labels and confusions together.

The labels of the items are uncertain, and so are the confusions that they are inferred by. A Gibbs sampler draws both, under
the model of crowd/em.py with the exponents of crowd/tempering.py. One sweep draws

    pooled rows     c[y, .]  ~  Dir(m[y, .] + counts of all workers)
    likeness              k  ~  its likelihood over all workers, out of a few values
    skills              t_j  ~  Beta(k r_j + right answers of worker j, k (1 - r_j) + wrong ones)
    confusions    w_j[y, .]  ~  Dir(s c_j[y, .] + counts of worker j)
    labels    y_i = y   with probability proportional to  p(y | x_i)^(a e) (prod_j w_j[y, z_ij])^(b f)

where s is the strength of the fit's prior, m its mean with ``POOLED`` pseudo-counts a row, and r_j the share of right answers
that c makes of worker j's questions. c_j is c with the odds of a right answer changed by one factor, so that it makes t_j of
them: a worker who is good at one class is probably good at the others. log e and log f are common to all items of a sweep,
since the exponents are estimates too; they are normal, with a standard deviation that falls from ``EXPONENT_SPREAD`` as answers
come in. The share of worker j's answers z_ij that equal the drawn y_i is one draw of the accuracy. Workers with priors of their
own, as experts have, keep these.

An accuracy is about the answers given, to the items that the worker saw; other items may be easier or harder. Its interval
assumes that the learner is calibrated up to the spread of the exponents, and that workers err independently given the class,
up to the exponents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta
from torch import Tensor

from lightning_annot.crowd.em import EMResult
from lightning_annot.crowd.incidence import Incidence
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.types import Annotations

BURN_IN, DRAWS = 30, 120  # sweeps; the sampler starts at the posterior of the fit
LIKENESS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)  # strengths, in answers, of the skills' common prior
POOLED = 10.0  # pseudo-counts a row of the fit's own prior mean in the pooled confusion
EXPONENT_SPREAD = 0.3  # standard deviation of the logarithm of each exponent before any answer, as in crowd/tempering.py
HALVING = 4000.0  # answers after which its variance is half of that
SHARED = 10.0  # answers of a sample that count as much as the other workers'
MOST_ELEMENTS = 1 << 17  # values of (answers, K) in a sweep; of more answers the items are a sample

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers (W,): ``mean``, and a central 90% interval from ``low`` to ``high``; nan without answers."""

    mean: Float64s
    low: Float64s
    high: Float64s


@dataclass(frozen=True)
class _Sample:
    """The answers of a sample of n items, and what is known besides.

    Args:
        whole: Whether these are all answers of the fit.
        known: Answers of the fit.
        rows: The items, (n,).
        item: Item of each answer as an index into ``rows``, (A,).
        pair: (worker, answer) pair of each answer, (A,).
        exponent: How much each answer counts in the label of its item, (A,).
        belief: log of the posterior, (n, K).
        log_prior: The same without the answers, (n, K).
        pair_worker: Worker of each pair, counted among the V workers of the sample, (P,).
        pair_label: Answer of each pair, (P,).
        outside: Expected answers about items outside the sample by pair and true class, (P, K).
        outside_totals: The same by worker, (V, K).
        prior: Pseudo-counts of the pairs, (P, K).
        prior_totals: The workers' sums of pseudo-counts, (V, K).
        pooled: Pseudo-counts of the pooled confusion, outside answers included, (K, K), row = answer.
        free: Workers whose prior is drawn, and not ``prior``, (V,) bool.
    """

    whole: bool
    known: int
    rows: Tensor
    item: Tensor
    pair: Tensor
    exponent: Tensor
    belief: Tensor
    log_prior: Tensor
    pair_worker: Tensor
    pair_label: Tensor
    outside: Tensor
    outside_totals: Tensor
    prior: Tensor
    prior_totals: Tensor
    pooled: Tensor
    free: Tensor


def worker_accuracy(
    answers: Annotations,
    posterior: Tensor,
    result: EMResult,
    tempering: Tempering,
    generator: torch.Generator,
    n_workers: int,
) -> Accuracy:
    """Accuracy of each worker among ``answers``.

    Where the answers are too many for ``MOST_ELEMENTS``, the sampler sees a sample of the items. Its difference from
    ``posterior``, drawn towards that of all workers together, then holds for the worker's other answers too, and the variance
    beyond that of independent labels is the mean of all workers.

    Args:
        answers: The answers that count, of any workers.
        posterior: What is believed of each item, (N, K).
        result: The fit that ``posterior`` comes from. Workers unknown to it are judged by the labels alone.
        tempering: The exponents of ``posterior``.
        generator: Source of the random numbers.
        n_workers: W.
    """
    chance = posterior[answers.item, answers.label].double()
    n = _per_worker(answers.worker, torch.ones_like(chance), n_workers)
    right = _per_worker(answers.worker, chance, n_workers)
    variance = _per_worker(answers.worker, chance * (1.0 - chance), n_workers)
    if len(result.incidence.items):
        sample = _take_sample(posterior, result, tempering, generator, MOST_ELEMENTS // posterior.shape[1])
        size, difference, excess = _departure(sample, answers, chance, n_workers, generator)
        scale = n / size.clamp(min=1.0)
        right = right + scale * difference
        variance = variance + (scale.square() * excess).clamp(min=0.0)
    return _interval((right / n).numpy(), (variance / n.square()).numpy(), n.numpy())


def _departure(
    sample: _Sample, answers: Annotations, chance: Tensor, n_workers: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each worker's answers in the ``sample`` (W,): their number, and mean and variance of the right ones beyond those of
    independent labels with ``chance`` (A,).
    """
    here = torch.isin(answers.item, sample.rows)
    item = torch.searchsorted(sample.rows, answers.item[here])
    worker, label, chance = answers.worker[here], answers.label[here], chance[here]
    size = _per_worker(worker, torch.ones_like(chance), n_workers)
    draws = [_per_worker(worker, (y[item] == label).double(), n_workers) for y in _sweeps(sample, generator)]
    right = torch.stack(draws)
    difference = right.mean(0) - _per_worker(worker, chance, n_workers)
    excess = right.var(0) - _per_worker(worker, chance * (1.0 - chance), n_workers)
    if not sample.whole:
        usual = difference.sum() / size.sum().clamp(min=1.0)
        difference = size * (difference + SHARED * usual) / (size + SHARED)
        excess = size.square() * excess.sum() / size.square().sum().clamp(min=1.0)
    return size, difference, excess


def _interval(mean: Float64s, variance: Float64s, n: Float64s) -> Accuracy:
    """The interval of a beta distribution with ``mean`` and ``variance``, (W,), of the share of ``n`` answers.

    An end that is less than half an answer from 0 or 1 is moved there.
    """
    mean = mean.clip(0.0, 1.0)
    centre = mean.clip(1e-6, 1.0 - 1e-6)
    size = centre * (1.0 - centre) / variance.clip(1e-12, 0.99 * centre * (1.0 - centre)) - 1.0
    a, b = centre * size, (1.0 - centre) * size
    low, high = beta.ppf(0.05, a, b), beta.ppf(0.95, a, b)
    low = np.where(low * n < 0.5, 0.0, low)
    high = np.where((1.0 - high) * n < 0.5, 1.0, high)
    return Accuracy(mean, np.minimum(low, mean), np.maximum(high, mean))


def _sweeps(sample: _Sample, generator: torch.Generator) -> Iterator[Tensor]:
    """Labels y (n,) of each sweep after the first ``BURN_IN``."""
    k = sample.belief.shape[1]
    rng = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
    spread = EXPONENT_SPREAD / math.sqrt(1.0 + sample.known / HALVING)
    y = _draw(sample.belief, generator)
    for sweep in range(BURN_IN + DRAWS):
        counts = torch.bincount(sample.pair * k + y[sample.item], minlength=sample.prior.numel()).view(-1, k).float()
        log_w = _draw_confusions(sample, counts, rng)
        model, people = np.exp(spread * rng.standard_normal(2))
        said = _add_rows(len(sample.rows), sample.item, sample.exponent[:, None] * log_w[sample.pair])
        y = _draw(float(model) * sample.log_prior + float(people) * said, generator)
        if sweep >= BURN_IN:
            yield y


def _draw_confusions(sample: _Sample, counts: Tensor, rng: np.random.Generator) -> Tensor:
    """log w_j[y, z] of each pair (P, K), given the answers ``counts`` (P, K) of the sample by pair and true class.

    All answers that a worker never gave are one cell of the Dirichlet.
    """
    given = _add_rows(len(sample.free), sample.pair_worker, counts) + sample.outside_totals
    mass = counts + sample.outside
    prior = torch.where(sample.free[sample.pair_worker][:, None], _draw_prior(sample, counts, mass, given, rng), sample.prior)
    mass = mass + prior
    rest = (given + sample.prior_totals - _add_rows(len(given), sample.pair_worker, mass)).clamp(min=1e-6)
    drawn = _gamma(mass, rng)
    total = _add_rows(len(given), sample.pair_worker, drawn) + _gamma(rest, rng)
    return drawn.log() - total.log()[sample.pair_worker]


def _draw_prior(sample: _Sample, counts: Tensor, mass: Tensor, given: Tensor, rng: np.random.Generator) -> Tensor:
    """Pseudo-counts of each pair (P, K) by a draw of the pooled confusion and of each worker's skill.

    ``counts`` (P, K) are the answers of the sample, ``mass`` (P, K) all answers, ``given`` (V, K) these by worker.
    """
    ours = sample.free[sample.pair_worker]
    mean = _gamma(sample.pooled.index_add(0, sample.pair_label[ours], counts[ours]), rng)
    mean = mean / mean.sum(0)
    usual = mean.diagonal().clamp(1e-6, 1.0 - 1e-6)
    pairs = torch.arange(len(mass))
    right = _add_rows(len(given), sample.pair_worker, mass[pairs, sample.pair_label][:, None])[:, 0]
    expected = (given @ usual / given.sum(1).clamp(min=1e-6)).clamp(1e-6, 1.0 - 1e-6)
    skill = _draw_skill(right, given.sum(1), expected, sample.free, rng)
    diagonal = (usual.logit() + (skill.logit() - expected.logit())[:, None]).sigmoid()
    prior = mean[sample.pair_label] * ((1.0 - diagonal) / (1.0 - usual))[sample.pair_worker]
    prior[pairs, sample.pair_label] = diagonal[sample.pair_worker, sample.pair_label]
    return prior * sample.prior_totals[sample.pair_worker]


def _draw_skill(right: Tensor, n: Tensor, expected: Tensor, free: Tensor, rng: np.random.Generator) -> Tensor:
    """Skill (V,) of workers with ``right`` of ``n`` answers (V,), who are ``expected`` to be right in such a share (V,).

    Skills ~ Beta with mean ``expected`` and a strength out of ``LIKENESS``, which is drawn by its marginal likelihood over the
    workers who are ``free`` (V,) bool.
    """
    right, n, expected = right.double().clamp(min=0.0), n.double(), expected.double()
    wrong = (n - right).clamp(min=0.0)
    strength = torch.tensor(LIKENESS, dtype=torch.float64)[:, None]
    a, b = strength * expected, strength * (1.0 - expected)
    evidence = torch.lgamma(a + right) - torch.lgamma(a) + torch.lgamma(b + wrong) - torch.lgamma(b)
    evidence += torch.lgamma(strength) - torch.lgamma(strength + right + wrong)
    chance = evidence[:, free].sum(1).softmax(0).numpy()
    at = int(rng.choice(len(LIKENESS), p=chance / chance.sum()))
    drawn = rng.beta((a[at] + right).numpy(), (b[at] + wrong).numpy())
    return torch.from_numpy(drawn).clamp(1e-4, 1.0 - 1e-4).float()


def _take_sample(posterior: Tensor, result: EMResult, tempering: Tempering, generator: torch.Generator, most: int) -> _Sample:
    """The answers of the fit, or those about a random sample of items, about ``most`` answers."""
    inc, prior, k = result.incidence, result.prior, posterior.shape[1]
    rows, n_answers, pair, weight, whole = _chosen_answers(inc, generator, most)
    item = torch.arange(len(rows)).repeat_interleave(n_answers)
    _, people = tempering.of(n_answers)
    exponent = people[item, 0] * weight
    worker, label = inc.pair_worker[pair], inc.pair_label[pair]
    belief = posterior[rows].float().clamp(min=1e-30)
    said = _add_rows(len(rows), item, exponent[:, None] * result.log_answer(worker, label).float())
    pairs, pair = torch.unique(pair, return_inverse=True)
    workers, pair_worker = torch.unique(inc.pair_worker[pairs], return_inverse=True)
    shared = prior.counts if prior.counts.ndim == 2 else prior.counts[0]
    alike = torch.full((inc.n_workers,), prior.counts.ndim == 2) if prior.group is None else prior.group == 0
    pooled = POOLED * (shared / shared.sum(1, keepdim=True)).T.float()
    prior_totals = prior.totals().expand(inc.n_workers, k)[workers].float()
    outside, outside_totals = torch.zeros(len(pairs), k), torch.zeros(len(workers), k)
    if not whole:
        inside = _add_rows(len(pairs), pair, weight[:, None] * belief[item])
        outside = (result.counts[pairs].float() - inside).clamp(min=0.0)
        inside = _add_rows(len(workers), pair_worker, inside)
        outside_totals = (result.row_totals()[workers].float() - prior_totals - inside).clamp(min=0.0)
        elsewhere = result.counts.float().index_copy(0, pairs, outside)
        ours = alike[inc.pair_worker]
        pooled = pooled.index_add(0, inc.pair_label[ours], elsewhere[ours])
    return _Sample(
        whole=whole,
        known=sum(len(chunk.pair) for chunk in inc.chunks),
        rows=rows,
        item=item,
        pair=pair,
        exponent=exponent,
        belief=belief.log(),
        log_prior=belief.log() - said,
        pair_worker=pair_worker,
        pair_label=inc.pair_label[pairs],
        outside=outside,
        outside_totals=outside_totals,
        prior=prior.rows(inc.pair_worker[pairs], inc.pair_label[pairs]).float(),
        prior_totals=prior_totals,
        pooled=pooled,
        free=alike[workers],
    )


def _chosen_answers(inc: Incidence, generator: torch.Generator, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    """Items (n,) of a random sample, their numbers of answers (n,), the pairs and weights of these (A,), and if it is all."""
    n_answers = torch.cat([chunk.n_answers for chunk in inc.chunks])
    pair = torch.cat([chunk.pair for chunk in inc.chunks])
    weight = torch.cat([torch.ones(len(c.pair)) if c.weight is None else c.weight.float() for c in inc.chunks])
    whole = len(pair) <= most
    if whole:
        return inc.items, n_answers, pair, weight, whole
    order = torch.randperm(len(n_answers), generator=generator)
    size = int((n_answers[order].cumsum(0) <= most).sum())
    chosen = torch.zeros(len(n_answers), dtype=torch.bool)
    chosen[order[: max(1, size)]] = True
    here = chosen.repeat_interleave(n_answers)
    return inc.items[chosen], n_answers[chosen], pair[here], weight[here], whole


def _draw(log_weight: Tensor, generator: torch.Generator) -> Tensor:
    """One class (n,) of each row of ``log_weight`` (n, K), in proportion to its exponential (Gumbel)."""
    noise = torch.empty_like(log_weight).exponential_(generator=generator).clamp_(min=1e-30)
    return (log_weight - noise.log_()).argmax(1)


def _gamma(shape: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_gamma(shape.numpy(), dtype=np.float32)).clamp_(min=1e-30)


def _add_rows(n: int, index: Tensor, rows: Tensor) -> Tensor:
    """Sum of the ``rows`` (m, K) of each ``index`` (m,), (n, K)."""
    return rows.new_zeros(n, rows.shape[1]).index_add_(0, index, rows)


def _per_worker(worker: Tensor, value: Tensor, n_workers: int) -> Tensor:
    return torch.bincount(worker, value, minlength=n_workers).double()
