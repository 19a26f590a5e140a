from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_em import slow_em, slow_objective, slow_pooled, slow_posterior
from torch import Tensor

from lightning_annot.crowd.em import EMResult, run_em, write_posterior
from lightning_annot.crowd.priors import homogeneous_prior, rescale_rows
from lightning_annot.crowd.tiers import run_tiered_em
from lightning_annot.types import Annotations, AnnotError

EXACT = {"rtol": 0.0, "atol": 1e-10}


@dataclass(frozen=True)
class Problem:
    annotations: Annotations
    log_prior: Tensor
    pseudo: Tensor
    n_workers: int

    @property
    def triples(self) -> list[tuple[int, int, int]]:
        a = self.annotations
        return list(zip(a.item.tolist(), a.worker.tolist(), a.label.tolist(), strict=True))

    def em(self, **options: object) -> EMResult:
        return run_em(self.annotations, self.log_prior, self.pseudo, self.n_workers, **options)  # type: ignore[arg-type]


def problem(
    n: int = 40, k: int = 4, w: int = 6, a: int = 90, seed: int = 0, learner: bool = True, skewed: bool = False
) -> Problem:
    """Distinct (item, worker) pairs, labels mostly right. ``skewed``: a few items and workers have most of the answers."""
    rng = np.random.default_rng(seed)
    p_item = rng.dirichlet(np.full(n, 0.2)) + 1e-6 if skewed else np.ones(n)
    p_worker = rng.dirichlet(np.full(w, 0.2)) + 1e-6 if skewed else np.ones(w)
    p = np.outer(p_item, p_worker).ravel()
    pair = rng.choice(n * w, min(a, n * w), replace=False, p=p / p.sum())
    truth = rng.integers(k, size=n)
    label = np.where(rng.random(len(pair)) < 0.7, truth[pair // w], rng.integers(k, size=len(pair)))
    logits = 1.5 * rng.normal(size=(n, k)) if learner else np.zeros((n, k))
    pseudo = homogeneous_prior(k, 0.7, 5.0, torch.float64) * torch.from_numpy(rng.uniform(0.5, 1.5, (k, k)))
    annotations = Annotations(*(torch.from_numpy(v.astype(np.int64)) for v in (pair // w, pair % w, label)))
    return Problem(annotations, torch.from_numpy(logits).log_softmax(1), pseudo, w)


PROBLEMS = {
    "learner": problem(),
    "no_learner": problem(seed=1, learner=False),
    "skewed": problem(n=60, w=9, a=150, seed=2, skewed=True),
    "idle_workers": problem(w=30, a=12, seed=3),
    "two_classes": problem(k=2, seed=4),
    "more_classes_than_items": problem(n=5, k=11, a=14, seed=5),
    "one_annotation": problem(a=1, seed=6),
    "none": problem(a=0, seed=7),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("m_step", ["soft", "hard"])
@pytest.mark.parametrize("chunk_elements", [1, 29, 1 << 21])
def test_equals_plain_loops(name: str, m_step: str, chunk_elements: int) -> None:
    p = PROBLEMS[name]
    fast = p.em(m_step=m_step, chunk_elements=chunk_elements)
    slow = slow_em(p.triples, p.log_prior.tolist(), p.pseudo.tolist(), p.n_workers, m_step)
    posterior, _ = slow_posterior(p.triples, p.log_prior.tolist(), slow.confusions)
    torch.testing.assert_close(fast.confusions(), torch.tensor(slow.confusions, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(fast.pooled_confusion(), torch.tensor(slow.pooled, dtype=torch.float64), **EXACT)
    got = write_posterior(fast, p.log_prior, len(p.log_prior))
    torch.testing.assert_close(got, torch.tensor(posterior, dtype=torch.float64), **EXACT)
    assert fast.objective_history == pytest.approx(slow.history, abs=1e-9)
    assert fast.n_iterations == len(slow.history)
    assert fast.converged == slow.converged


@pytest.mark.parametrize("name", ["learner", "skewed", "idle_workers", "none"])
@pytest.mark.parametrize("m_step", ["soft", "hard"])
@pytest.mark.parametrize("chunk_elements", [29, 1 << 21])
def test_own_priors_equal_plain_loops(name: str, m_step: str, chunk_elements: int) -> None:
    p = PROBLEMS[name]
    own = p.pseudo * torch.linspace(0.2, 3.0, p.n_workers, dtype=torch.float64)[:, None, None] + 0.1
    fast = run_em(
        p.annotations,
        p.log_prior,
        own,
        p.n_workers,
        m_step=m_step,
        chunk_elements=chunk_elements,  # type: ignore[arg-type]
    )
    slow = slow_em(p.triples, p.log_prior.tolist(), own.tolist(), p.n_workers, m_step)
    torch.testing.assert_close(fast.confusions(), torch.tensor(slow.confusions, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(fast.pooled_confusion(), torch.tensor(slow.pooled, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(fast.diagonal(), fast.confusions().diagonal(dim1=1, dim2=2), **EXACT)
    assert fast.objective_history == pytest.approx(slow.history, abs=1e-9)


@pytest.mark.parametrize("name", ["learner", "no_learner", "skewed", "idle_workers"])
@pytest.mark.parametrize("m_step", ["soft", "hard"])
def test_tiered_equals_plain_loops(name: str, m_step: str) -> None:
    """The second tier exactly, given the first; the first as far as two searches for its maximum agree."""
    p = PROBLEMS[name]
    fast = run_tiered_em(p.annotations, p.log_prior, p.pseudo, p.n_workers, strength=8.0, m_step=m_step)
    slow = slow_em(p.triples, p.log_prior.tolist(), fast.prior.counts.tolist(), p.n_workers, m_step)
    torch.testing.assert_close(fast.confusions(), torch.tensor(slow.confusions, dtype=torch.float64), **EXACT)
    assert fast.objective_history == pytest.approx(slow.history, abs=1e-9)
    torch.testing.assert_close(fast.prior.counts.sum(1), torch.full((len(p.pseudo),), 8.0, dtype=torch.float64), **EXACT)
    accuracy = float(rescale_rows(p.pseudo, 1.0).diagonal().mean())
    even = homogeneous_prior(len(p.pseudo), accuracy, 1.0, torch.float64)
    fast = run_tiered_em(p.annotations, p.log_prior, even, p.n_workers, strength=8.0, m_step=m_step)
    pooled, _, _ = slow_pooled(p.triples, p.log_prior.tolist(), accuracy, m_step=m_step)
    torch.testing.assert_close(fast.prior.counts / 8.0, torch.tensor(pooled, dtype=torch.float64), rtol=0.0, atol=2e-3)


def test_crowd_kit_stays_where_it_converged() -> None:
    aggregation = pytest.importorskip("crowdkit.aggregation", reason="crowd-kit is not installed")
    p = problem(n=150, k=3, w=5, a=700, seed=9)
    frame = pd.DataFrame(p.triples, columns=["task", "worker", "label"])
    model = aggregation.DawidSkene(n_iter=150, tol=-1.0).fit(frame)  # its loss is no bound: it may fall before the end
    classes = [0, 1, 2]
    posterior = torch.tensor(model.probas_.loc[range(150), classes].to_numpy())
    prior = torch.tensor(model.priors_[classes].to_numpy()).log().expand(150, 3)
    # They keep (answer, true class). As pseudo-counts their confusions are where our EM starts, and move no fixed point.
    theirs = torch.stack([torch.tensor(model.errors_.loc[j].loc[classes, classes].to_numpy()).T for j in range(p.n_workers)])
    result = run_em(p.annotations, prior, theirs.clamp(min=1e-12), p.n_workers, tolerance=-1.0, max_iterations=20)
    torch.testing.assert_close(write_posterior(result, prior, 150), posterior, rtol=0.0, atol=1e-8)
    torch.testing.assert_close(result.confusions(), theirs, rtol=0.0, atol=1e-8)


sizes = st.fixed_dictionaries(
    {
        "n": st.integers(1, 25),
        "k": st.integers(2, 6),
        "w": st.integers(1, 8),
        "a": st.integers(0, 80),
        "seed": st.integers(0, 10**6),
        "learner": st.booleans(),
        "skewed": st.booleans(),
    }
)


@given(size=sizes)
@settings(max_examples=60, deadline=None)
def test_soft_objective_never_falls(size: dict[str, int]) -> None:
    p = problem(**size)  # type: ignore[arg-type]
    history = np.array(p.em(tolerance=-1.0, max_iterations=12).objective_history)
    assert len(history) == (12 if len(p.annotations) else 2)
    assert (np.diff(history) >= -1e-10 * (1.0 + np.abs(history[1:]))).all()


@given(size=sizes, seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_names_and_order_mean_nothing(size: dict[str, int], seed: int) -> None:
    p = problem(**size)  # type: ignore[arg-type]
    n, k = p.log_prior.shape
    generator = torch.Generator().manual_seed(seed)
    order, item, worker, label = (torch.randperm(size, generator=generator) for size in (len(p.annotations), n, p.n_workers, k))
    a = p.annotations
    moved = Annotations(item[a.item[order]], worker[a.worker[order]], label[a.label[order]])
    log_prior, pseudo = torch.empty_like(p.log_prior), torch.empty_like(p.pseudo)
    log_prior[item[:, None], label[None, :]] = p.log_prior
    pseudo[label[:, None], label[None, :]] = p.pseudo
    ours = p.em(max_iterations=6, tolerance=-1.0)
    theirs = run_em(moved, log_prior, pseudo, p.n_workers, max_iterations=6, tolerance=-1.0)
    posterior, other = write_posterior(ours, p.log_prior, n), write_posterior(theirs, log_prior, n)
    torch.testing.assert_close(other[item[:, None], label[None, :]], posterior, **EXACT)
    confusions = theirs.confusions()[worker[:, None, None], label[None, :, None], label[None, None, :]]
    torch.testing.assert_close(confusions, ours.confusions(), **EXACT)
    assert theirs.objective_history == pytest.approx(ours.objective_history, abs=1e-8)


@given(size=sizes)
@settings(max_examples=40, deadline=None)
def test_distributions_and_summaries(size: dict[str, int]) -> None:
    p = problem(**size)  # type: ignore[arg-type]
    n, k = p.log_prior.shape
    result = p.em()
    posterior, confusions = write_posterior(result, p.log_prior, n), result.confusions()
    torch.testing.assert_close(posterior.sum(1), torch.ones(n, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(confusions.sum(2), torch.ones(p.n_workers, k, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(result.diagonal(), confusions.diagonal(dim1=1, dim2=2), **EXACT)
    silent = torch.bincount(p.annotations.item, minlength=n) == 0
    torch.testing.assert_close(posterior[silent], p.log_prior[silent].exp(), **EXACT)
    idle = torch.bincount(p.annotations.worker, minlength=p.n_workers) == 0
    torch.testing.assert_close(confusions[idle], rescale_rows(p.pseudo, 1.0).expand(int(idle.sum()), k, k), **EXACT)
    asked = torch.bincount(p.annotations.worker, minlength=p.n_workers).double()
    torch.testing.assert_close(result.row_totals().sum(1), asked + p.pseudo.sum(), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("k", [2, 3])
def test_posterior_by_enumeration(k: int) -> None:
    """Every labelling of all items, weighed by its joint probability."""
    p = problem(n=4, k=k, w=3, a=8, seed=10 + k)
    result = p.em(max_iterations=5)
    w = result.confusions()
    total, marginal = 0.0, torch.zeros(4, k, dtype=torch.float64)
    for labels in itertools.product(range(k), repeat=4):
        joint = math.prod(float(p.log_prior[i, y].exp()) for i, y in enumerate(labels))
        joint *= math.prod(float(w[j, labels[i], z]) for i, j, z in p.triples)
        total += joint
        for i, y in enumerate(labels):
            marginal[i, y] += joint
    torch.testing.assert_close(write_posterior(result, p.log_prior, 4), marginal / total, **EXACT)


def test_objective_is_evidence_plus_dirichlet_density() -> None:
    p = problem(seed=12)
    w = p.em(max_iterations=4, tolerance=-1.0).confusions()
    value = p.em(max_iterations=5, tolerance=-1.0).objective_history[4]
    assert value == pytest.approx(slow_objective(p.triples, p.log_prior.tolist(), w.tolist(), p.pseudo.tolist()), abs=1e-9)
    row = torch.distributions.Dirichlet(1.0 + p.pseudo)
    constant = torch.lgamma(1.0 + p.pseudo).sum() - torch.lgamma((1.0 + p.pseudo).sum(1)).sum()
    density = float(row.log_prob(w).sum() + p.n_workers * constant)
    _, evidence = slow_posterior(p.triples, p.log_prior.tolist(), w.tolist())
    assert value == pytest.approx(sum(evidence.values()) + density, abs=1e-8)


def test_soft_mode_ends_at_a_maximum() -> None:
    """No small change of the confusions raises the objective."""
    p = problem(seed=13)
    w = p.em(max_iterations=3000, tolerance=1e-14).confusions()
    a = p.annotations

    def objective(logits: Tensor) -> Tensor:
        log_w = logits.log_softmax(2)
        joint = p.log_prior.index_add(0, a.item, log_w[a.worker, :, a.label])
        answered = torch.bincount(a.item, minlength=len(joint)) > 0
        return joint[answered].logsumexp(1).sum() + (p.pseudo * log_w).sum()

    gradient = torch.func.grad(objective)(w.log())
    assert float(gradient.abs().max()) < 1e-4


def test_callable_log_prior_is_asked_in_chunks() -> None:
    p = problem(seed=14)
    asked: list[int] = []

    def log_prior(rows: Tensor) -> Tensor:
        asked.append(len(rows))
        return p.log_prior[rows]

    by_call = run_em(p.annotations, log_prior, p.pseudo, p.n_workers, chunk_elements=16)
    by_tensor = p.em(chunk_elements=16)
    assert torch.equal(by_call.counts, by_tensor.counts)
    assert by_call.objective_history == by_tensor.objective_history
    assert max(asked) == 4  # 16 values, 4 classes
    out = torch.empty_like(p.log_prior)
    assert write_posterior(by_call, log_prior, len(out), out) is out
    assert torch.equal(out, write_posterior(by_tensor, p.log_prior, len(out)))


def test_inputs_are_left_alone() -> None:
    p = problem(seed=15)
    before = p.log_prior.clone(), p.pseudo.clone()
    write_posterior(p.em(m_step="hard"), p.log_prior, len(p.log_prior))
    assert torch.equal(p.log_prior, before[0])
    assert torch.equal(p.pseudo, before[1])


def test_float32_agrees_with_float64() -> None:
    p = problem(n=500, k=10, w=20, a=2500, seed=16)
    wide = write_posterior(p.em(max_iterations=8, tolerance=-1.0), p.log_prior, 500)
    narrow = run_em(p.annotations, p.log_prior.float(), p.pseudo.float(), 20, max_iterations=8, tolerance=-1.0)
    assert narrow.counts.dtype == torch.float32
    torch.testing.assert_close(write_posterior(narrow, p.log_prior.float(), 500).double(), wide, rtol=0.0, atol=1e-4)


def test_memory_follows_the_annotations() -> None:
    """5,000 workers and 1000 classes would need 20 GB as a dense table."""
    annotations = Annotations(torch.tensor([5, 5, 900]), torch.tensor([0, 4999, 7]), torch.tensor([1, 1, 999]))
    prior = torch.full((1000, 1000), -math.log(1000))
    result = run_em(annotations, prior, homogeneous_prior(1000), 5000, max_iterations=2)
    assert result.counts.shape == (3, 1000)
    assert int(write_posterior(result, prior, 1000)[5].argmax()) == 1


def test_homogeneous_prior() -> None:
    prior = homogeneous_prior(5, 0.6, 20.0, torch.float64)
    torch.testing.assert_close(prior.sum(1), torch.full((5,), 20.0, dtype=torch.float64))
    torch.testing.assert_close(prior.diagonal(), torch.full((5,), 12.0, dtype=torch.float64))
    torch.testing.assert_close(prior[0, 1:], torch.full((4,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1,), "at least 2"), ((3, 0.0), "between 0 and 1"), ((3, 1.0), "between 0 and 1"), ((3, 0.7, 0.0), "above 0")],
)
def test_homogeneous_prior_errors(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        homogeneous_prior(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pseudo_counts": torch.ones(4, 3)}, r"shape \(4, 3\)"),
        ({"pseudo_counts": torch.zeros(4, 4)}, "above 0"),
        ({"m_step": "firm"}, "'firm' given"),
        ({"max_iterations": 0}, "max_iterations 0"),
        ({"n_workers": 2}, r"worker indices 0\.\.5 given; allowed are 0\.\.1"),
        ({"pseudo_counts": torch.ones(3, 3)}, r"label indices 0\.\.3 given; allowed are 0\.\.2"),
    ],
)
def test_errors(change: dict[str, object], message: str) -> None:
    p = PROBLEMS["learner"]
    good: dict[str, object] = {"pseudo_counts": p.pseudo, "n_workers": p.n_workers}
    with pytest.raises(AnnotError, match=message):
        run_em(p.annotations, p.log_prior, **(good | change))  # type: ignore[arg-type]
