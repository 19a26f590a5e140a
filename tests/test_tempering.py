"""Exponents of learner and workers: the fit against a grid, what it recovers, and the tempered EM against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_em import Matrix
from torch import Tensor

from lightning_annot.crowd.em import run_em, write_posterior
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.tempering import (
    LEAST,
    MOST_OF_MODEL,
    MOST_OF_PEOPLE,
    FreshAnswers,
    Tempering,
    fit_tempering,
    foreseen,
    join,
    log_predictive,
)
from lightning_annot.types import Annotations

EXACT = {"rtol": 0.0, "atol": 1e-10}


def drawn(rng: np.random.Generator, p: np.ndarray) -> np.ndarray:
    """One class of each row of probabilities (n, K)."""
    return (rng.random(len(p))[:, None] > p.cumsum(1)).sum(1).clip(max=p.shape[1] - 1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def fresh(
    n: int = 3000, k: int = 5, seed: int = 0, model_times: float = 1.0, copies: int = 0, earlier: int = 1, shared: float = 0.0
) -> FreshAnswers:
    """Answers about classes drawn from the model; its logs are then multiplied by ``model_times``.

    Workers are right in 70%. Their earlier answer, if any, counts 1 + ``copies`` times. In ``shared`` of the items
    the model names the class of the earlier answer, whatever it is: both fail together.
    """
    rng = np.random.default_rng(seed)
    p = softmax(1.5 * rng.normal(size=(n, k)))
    confusion = np.full((k, k), 0.3 / (k - 1))
    np.fill_diagonal(confusion, 0.7)
    truth = drawn(rng, p)
    before, new = (drawn(rng, confusion[truth]) for _ in range(2))
    same = rng.random(n) < shared
    p[same] = 0.1 / (k - 1)
    p[same, before[same]] = 0.9
    people = (1 + copies) * np.log(confusion.T[before]) if earlier else np.zeros((n, k))
    parts = (model_times * np.log(p), people, np.log(confusion.T[new]))
    return FreshAnswers(*(torch.from_numpy(v) for v in parts), torch.full((n,), earlier))


def slow_objective(f: FreshAnswers, a: float, b: float, centre: tuple[float, float], scale: float) -> float:
    """The stated objective of one level, answer by answer."""
    total = 0.0
    for model, people, answer in zip(f.model.tolist(), f.people.tolist(), f.answer.tolist(), strict=True):
        weight = [math.exp(a * m + b * p) for m, p in zip(model, people, strict=True)]
        total += math.log(sum(w * math.exp(z) for w, z in zip(weight, answer, strict=True)) / sum(weight))
    off = (math.log(a) - math.log(centre[0])) ** 2 + (math.log(b) - math.log(centre[1])) ** 2
    return total - off / (2.0 * scale**2)


@pytest.mark.parametrize(("options", "scale"), [({}, 0.3), ({"model_times": 2.0}, 0.3), ({"copies": 2, "shared": 0.3}, 1.0)])
def test_is_the_best_of_a_grid(options: dict[str, float], scale: float) -> None:
    f = fresh(n=60, k=3, **options)  # type: ignore[arg-type]
    found = fit_tempering(f, 2, prior_scale=scale)
    assert (found.model[0], found.people[0]) == (1.0, 1.0)  # nothing at level 0
    reached = slow_objective(f, found.model[1], found.people[1], (1.0, 1.0), scale)
    grid = [(a, b) for a in np.geomspace(LEAST, MOST_OF_MODEL, 25) for b in np.geomspace(LEAST, MOST_OF_PEOPLE, 25)]
    values = {ab: slow_objective(f, *ab, (1.0, 1.0), scale) for ab in grid}
    best = max(values, key=values.__getitem__)
    assert reached >= values[best] - 1e-4
    step = math.log(MOST_OF_MODEL / LEAST) / 24
    assert np.abs(np.log((found.model[1], found.people[1])) - np.log(best)).max() <= 1.5 * step


def test_log_predictive_equals_plain_loops() -> None:
    f = fresh(n=20, k=4)
    each = [slow_objective(f.rows(torch.tensor([i])), 0.7, 0.4, (0.7, 0.4), 1.0) for i in range(20)]
    torch.testing.assert_close(log_predictive(f, 0.7, 0.4), torch.tensor(each, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_right_stays(seed: int) -> None:
    found = fit_tempering(fresh(seed=seed), 2)
    assert found.model[1] == pytest.approx(1.0, abs=0.15)
    assert found.people[1] > 0.85


@pytest.mark.parametrize("earlier", [0, 1])
@pytest.mark.parametrize("times", [0.7, 1.5, 2.0])
def test_an_overconfident_learner_is_believed_less(times: float, earlier: int) -> None:
    """One who is too timid is taken at their word: the temperature is for that."""
    found = fit_tempering(fresh(model_times=times, earlier=earlier), 2)
    if times < 1.0:
        assert found.model[earlier] == pytest.approx(MOST_OF_MODEL, abs=1e-6)
    else:
        assert found.model[earlier] == pytest.approx(1.0 / times, rel=0.15)


def test_answers_that_count_twice_are_halved() -> None:
    found = fit_tempering(fresh(copies=1, n=6000), 2, most=6000)
    assert found.people[1] == pytest.approx(0.5, abs=0.1)
    assert found.model[1] == pytest.approx(1.0, abs=0.15)


def test_shared_errors_lower_the_exponents() -> None:
    alone, together = fit_tempering(fresh(), 2), fit_tempering(fresh(shared=0.4), 2)
    assert together.model[1] * together.people[1] < 0.8 * alone.model[1] * alone.people[1]


def test_people_are_never_more_than_independent() -> None:
    f = fresh()
    timid = replace(f, people=0.4 * f.people)
    assert fit_tempering(timid, 2).people[1] == pytest.approx(MOST_OF_PEOPLE, abs=1e-6)


@given(n=st.integers(0, 12), k=st.integers(2, 4), levels=st.integers(1, 4), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_exponents_stay_within_bounds(n: int, k: int, levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model, people, answer = (3.0 * torch.randn(n, k, generator=generator) for _ in range(3))
    earlier = torch.randint(0, levels, (n,), generator=generator)
    logs = FreshAnswers(model.log_softmax(1), people, answer.log_softmax(1), earlier)
    found = fit_tempering(logs, levels, prior_scale=2.0)
    assert len(found.model) == len(found.people) == levels
    assert all(LEAST - 1e-9 <= a <= MOST_OF_MODEL + 1e-9 for a in found.model)
    assert all(LEAST - 1e-9 <= b <= MOST_OF_PEOPLE + 1e-9 for b in found.people)


def test_without_answers_nothing_is_tempered() -> None:
    none = fresh(n=5).rows(torch.empty(0, dtype=torch.int64))
    assert fit_tempering(none, 3) == Tempering((1.0,) * 3, (1.0,) * 3)
    assert fit_tempering(none, 3).is_plain
    assert not Tempering((1.0, 0.9), (1.0, 1.0)).is_plain


def test_each_level_starts_from_the_one_below() -> None:
    low = fresh(model_times=2.0, earlier=0)
    found = fit_tempering(low, 3)
    assert found.model == (found.model[0],) * 3
    assert found.people == (found.people[0],) * 3
    few = fresh(n=40, earlier=1, seed=1)
    centre = found.model[0], found.people[0]
    both = fit_tempering(join([low, few]), 2)
    reached = slow_objective(few, both.model[1], both.people[1], centre, 0.3)
    grid = [(a, b) for a in np.geomspace(LEAST, MOST_OF_MODEL, 20) for b in np.geomspace(LEAST, MOST_OF_PEOPLE, 20)]
    assert reached >= max(slow_objective(few, a, b, centre, 0.3) for a, b in [*grid, centre]) - 1e-4


def test_only_the_latest_answers_count() -> None:
    old, new = fresh(n=500, model_times=3.0), fresh(n=300, seed=1)
    assert fit_tempering(join([old, new]), 2, most=300) == fit_tempering(new, 2, most=300)


def test_exponents_of_items() -> None:
    model, people = Tempering((0.5, 0.6), (0.7, 0.8)).of(torch.tensor([0, 1, 5]))
    torch.testing.assert_close(model, torch.tensor([[0.5], [0.6], [0.6]]))
    torch.testing.assert_close(people, torch.tensor([[0.7], [0.8], [0.8]]))


def problem(n: int, k: int, w: int, a: int, seed: int) -> tuple[Annotations, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    pair = rng.choice(n * w, min(a, n * w), replace=False)
    truth = rng.integers(k, size=n)
    label = np.where(rng.random(len(pair)) < 0.7, truth[pair // w], rng.integers(k, size=len(pair)))
    answers = Annotations(*(torch.from_numpy(v.astype(np.int64)) for v in (pair // w, pair % w, label)))
    return (
        answers,
        torch.from_numpy(1.5 * rng.normal(size=(n, k))).log_softmax(1),
        homogeneous_prior(k, 0.7, 5.0, torch.float64),
    )


def slow_tempered(answers: Annotations, log_prior: Matrix, confusions: list[Matrix], t: Tempering) -> tuple[Matrix, float]:
    """q ~ p^a (prod w)^b of all items by plain products, and sum (1/b) log of its sum over the answered ones."""
    triples = list(zip(answers.item.tolist(), answers.worker.tolist(), answers.label.tolist(), strict=True))
    posterior, evidence = [], 0.0
    for i, row in enumerate(log_prior):
        own = [(j, z) for item, j, z in triples if item == i]
        level = min(len(own), len(t.model) - 1)
        a, b = t.model[level], t.people[level]
        joint = [math.exp(v) ** a * math.prod(confusions[j][y][z] for j, z in own) ** b for y, v in enumerate(row)]
        posterior.append([v / sum(joint) for v in joint])
        evidence += math.log(sum(joint)) / b if own else 0.0
    return posterior, evidence


def test_plain_exponents_change_nothing() -> None:
    answers, log_prior, pseudo = problem(30, 4, 5, 70, seed=0)
    plain = run_em(answers, log_prior, pseudo, 5)
    for tempering in (Tempering(), Tempering((1.0,) * 3, (1.0,) * 3)):
        same = run_em(answers, log_prior, pseudo, 5, tempering=tempering)
        assert torch.equal(same.counts, plain.counts)
        assert same.objective_history == plain.objective_history
        assert torch.equal(write_posterior(same, log_prior, 30, tempering=tempering), write_posterior(plain, log_prior, 30))


@pytest.mark.parametrize("chunk_elements", [1, 29, 1 << 21])
@pytest.mark.parametrize("tempering", [Tempering((0.5, 0.75, 1.5), (1.0, 0.5, 0.25)), Tempering((1.0,), (0.5,))])
def test_posterior_and_objective_equal_the_formula(tempering: Tempering, chunk_elements: int) -> None:
    answers, log_prior, pseudo = problem(25, 3, 4, 50, seed=1)  # exponents that float32 holds exactly
    options = {"tempering": tempering, "tolerance": -1.0, "chunk_elements": chunk_elements}
    before = run_em(answers, log_prior, pseudo, 4, max_iterations=3, **options)  # type: ignore[arg-type]
    after = run_em(answers, log_prior, pseudo, 4, max_iterations=4, **options)  # type: ignore[arg-type]
    confusions = before.confusions()
    posterior, evidence = slow_tempered(answers, log_prior.tolist(), confusions.tolist(), tempering)
    got = write_posterior(before, log_prior, 25, tempering=tempering)
    torch.testing.assert_close(got, torch.tensor(posterior, dtype=torch.float64), **EXACT)
    assert after.objective_history[3] == pytest.approx(evidence + float((pseudo * confusions.log()).sum()), abs=1e-9)
    counts = pseudo.expand(4, 3, 3).clone()
    for i, j, z in zip(answers.item.tolist(), answers.worker.tolist(), answers.label.tolist(), strict=True):
        counts[j, :, z] += torch.tensor(posterior[i], dtype=torch.float64)
    torch.testing.assert_close(after.confusions(), counts / counts.sum(2, keepdim=True), **EXACT)


exponents = st.floats(0.0625, 1.0, width=32)


@given(
    n=st.integers(1, 20), k=st.integers(2, 5), w=st.integers(1, 6), a=st.integers(1, 60), seed=st.integers(0, 10**6),
    model=st.tuples(exponents, exponents, exponents), people=st.tuples(exponents, exponents, exponents),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_soft_objective_never_falls(
    n: int, k: int, w: int, a: int, seed: int, model: tuple[float, ...], people: tuple[float, ...]
) -> None:
    answers, log_prior, pseudo = problem(n, k, w, a, seed)
    tempering = Tempering(model, people)
    result = run_em(answers, log_prior, pseudo, w, tempering=tempering, tolerance=-1.0, max_iterations=10)
    history = np.array(result.objective_history)
    assert (np.diff(history) >= -1e-7 * (1.0 + np.abs(history[1:]))).all()  # the exponents are float32
    posterior = write_posterior(result, log_prior, n, tempering=tempering)
    torch.testing.assert_close(posterior.sum(1), torch.ones(n, dtype=torch.float64), **EXACT)


def test_foreseen_by_hand_and_less_by_the_overconfident() -> None:
    """Two classes, workers right in 80%. The model says .9 for the class of three answers in four."""
    says = torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64).log()
    answer = says[:, torch.tensor([0, 0, 0, 1])].T
    model = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log().expand(4, 2)
    none = torch.zeros(4, 2, dtype=torch.float64)
    fresh = FreshAnswers(model, none, answer, torch.zeros(4, dtype=torch.int64))
    right, wrong = math.log(0.9 * 0.8 + 0.1 * 0.2), math.log(0.9 * 0.2 + 0.1 * 0.8)
    assert foreseen(fresh, Tempering()) == pytest.approx((3 * right + wrong) / 4 - math.log(0.5))
    assert foreseen(fresh, Tempering()) > foreseen(fresh, Tempering((2.0,), (1.0,)))  # .98, which three in four is not
    assert foreseen(replace(fresh, model=none), Tempering()) == pytest.approx(0.0)
