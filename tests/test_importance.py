"""Audits by importance: wealth by enumeration, coverage whatever the risks, and the audits that good risks save."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from lightning_annot.certificate.bounds import anytime_upper
from lightning_annot.certificate.importance import audit_weights, grouped, log_wealth
from lightning_annot.certificate.record import Record
from lightning_annot.certificate.sample import CertifiedSet, weighted_order
from lightning_annot.certificate.trial import begin, describe_trial, expected_audits, resume

ALPHA = 0.05


def draw(weight: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    return np.argsort(rng.exponential(size=len(weight)) / weight)


@pytest.mark.parametrize("risk", [[0.1] * 5, [0.01, 0.01, 0.3, 0.02, 0.9], [0.9, 0.9, 0.0, 0.0, 0.5]])
@pytest.mark.parametrize("n_wrong", [2, 3])
def test_the_wealth_is_fair_under_the_hypothesis_by_enumeration(risk: list[float], n_wrong: int) -> None:
    """All orders of five labels with their probabilities: with 2 wrong, one more than 20% allow, and with 3."""
    groups = grouped(np.array(risk), 0.2)
    weight = groups.weight[groups.of]
    for wrong_ones in itertools.combinations(range(5), n_wrong):
        wrong = np.isin(np.arange(5), wrong_ones)
        expected, highest = np.zeros(5), 0.0
        for order in itertools.permutations(range(5)):
            drawn = np.array(order)
            left = np.cumsum(weight[drawn][::-1])[::-1]
            probability = float(np.prod(weight[drawn] / left))
            wealth = np.exp(log_wealth(groups, drawn, wrong[drawn], 0.2))
            expected += probability * wealth
            highest += probability * (wealth.max() >= 3)
        assert (expected <= 1 + 1e-9).all()
        assert highest <= 1 / 3


def test_labels_that_cannot_refute_any_more_certify() -> None:
    groups = grouped(np.linspace(0, 0.1, 20), 0.1)
    order = np.arange(20)
    wealth = log_wealth(groups, order, np.zeros(20, dtype=bool), 0.1)
    assert wealth[17] == math.inf  # two labels are left, and two may be wrong
    assert wealth[16] < math.inf
    assert log_wealth(groups, order, np.arange(20) < 3, 0.1)[2:].max() == -math.inf


def certified(seed: int, wrong: NDArray[np.bool_], stated: NDArray[np.float64], error: float, most: int) -> int | None:
    """The number of audits at which the set is certified, with a look after each of at most ``most``."""
    groups = grouped(stated, error)
    drawn = draw(groups.weight[groups.of], np.random.default_rng(seed))[:most]
    hit = np.flatnonzero(log_wealth(groups, drawn, wrong[drawn], error) >= math.log(1 / ALPHA))
    return int(hit[0]) + 1 if len(hit) else None


def population(name: str, size: int, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Just too many wrong labels, and risks that are right, useless, upside down or all zero."""
    risk = np.clip(rng.beta(0.4, 8, size), 0, 1)
    order = np.argsort(rng.exponential(size=size) / np.maximum(risk, 1e-6))
    wrong = np.isin(np.arange(size), order[: size // 20 + 1])
    stated = {"right": risk, "useless": rng.permutation(risk), "upside down": 0.2 - np.minimum(risk, 0.2), "none": 0 * risk}
    return wrong, stated[name]


@pytest.mark.parametrize("name", ["right", "useless", "upside down", "none"])
@pytest.mark.parametrize("repetitions", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_false_claims_are_as_rare_as_stated(name: str, repetitions: int) -> None:
    wrong, stated = population(name, 2000, np.random.default_rng(0))
    most = 400 if repetitions < 100 else 1000
    false = sum(certified(seed, wrong, stated, 0.05, most) is not None for seed in range(repetitions))
    assert false / repetitions <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / repetitions)


def test_risks_that_tell_errors_save_audits() -> None:
    rng, needed, uniform = np.random.default_rng(1), [], []
    risk = np.clip(rng.beta(0.3, 14.7, 4000), 1e-4, 0.1)
    for seed in range(20):
        wrong = np.random.default_rng(seed).random(4000) < risk
        needed.append(certified(seed, wrong, risk, 0.05, 1000) or 1000)
        k = np.cumsum(wrong[np.random.default_rng(seed).permutation(4000)])
        n = np.arange(10, 1001, 10)
        within = np.flatnonzero(anytime_upper(n, k[n - 1], 4000, 1 - ALPHA) <= 0.05)
        uniform.append(n[within[0]] if len(within) else 1000)
    assert np.mean(needed) < 0.92 * np.mean(uniform)


def test_weights_rise_with_risk_from_a_floor() -> None:
    risk = np.array([0.001, 0.01, 0.1])
    weight = audit_weights(risk, np.ones(3), 0.05)
    assert (np.diff(weight) > 0).all()
    assert weight.min() > 1


def test_labels_of_more_weight_come_first_as_often_as_they_should() -> None:
    task = pd.Series(list("abc"), dtype=object)
    found = CertifiedSet(task, task, pd.Series([0.0, 0.0, 0.0]), 0.1)
    first = [int(weighted_order(found, np.array([1.0, 2.0, 3.0]), seed, 0)[0]) for seed in range(3000)]
    np.testing.assert_allclose(np.bincount(first) / 3000, [1 / 6, 2 / 6, 3 / 6], atol=0.03)


@pytest.mark.parametrize("repetitions", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_stage_of_a_run_certifies_labels_that_are_too_bad_more_often_than_stated(repetitions: int) -> None:
    """Three versions of the labels, one after the other, each with one wrong label too many and audited 400 times."""
    size, false = 1000, 0
    task = pd.Series([f"item{i}" for i in range(size)], dtype=object)
    for seed in range(repetitions):
        rng, record = np.random.default_rng(seed), Record(seed)
        for version in ("ant", "bee", "fly"):
            risk = pd.Series(np.sort(rng.beta(0.4, 20, size)).round(6))
            wrong = rng.permutation(size) < size // 20 + 1
            found = CertifiedSet(task, pd.Series([version] * size, dtype=object), risk, 1.0)
            answers = {item: "other" if bad else version for item, bad in zip(task, wrong, strict=True)}
            trial, record = begin(found, record, 0.05)
            standing = trial.standing(answers, 400, record.stage_level(trial.index, 1 - ALPHA))
            false += standing.certified
    assert false / repetitions <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / repetitions)


def test_an_audit_says_when_it_certifies_and_when_it_seems_hopeless() -> None:
    size = 2000
    task = pd.Series([f"item{i}" for i in range(size)], dtype=object)
    found = CertifiedSet(task, pd.Series(["ant"] * size, dtype=object), pd.Series([0.01] * size), 0.1)
    trial, record = begin(found, Record(0), 0.05, round_=3)
    assert record.stages[0].round == 3
    right, bad = dict.fromkeys(task, "ant"), {item: "bee" if i % 5 == 0 else "ant" for i, item in enumerate(task)}
    level = record.stage_level(0, 0.95)
    assert not trial.standing(right, 25, level).certified
    good = trial.standing(right, 150, level)
    assert (good.audited, good.wrong, good.certified, good.hopeless) == (150, 0, True, False)
    assert describe_trial(good, trial, 0.95).endswith("at most 5% wrong at confidence 0.95 (150 audits, 0 wrong)")
    poor = trial.standing(bad, 150, level)
    assert not poor.certified
    assert poor.hopeless
    assert "are not certified" in describe_trial(poor, trial, 0.95)
    again = resume(found, record, 0)
    assert (again.order == trial.order).all()
    unsure = trial.standing(right | dict.fromkeys(trial.tasks(1)), 150, level)
    assert unsure.wrong == 1


def test_more_audits_are_expected_for_more_errors() -> None:
    task = pd.Series([f"item{i}" for i in range(400)], dtype=object)
    found = CertifiedSet(task, pd.Series(["ant"] * 400, dtype=object), pd.Series([0.01] * 400), 0.1)
    known = {item: "bee" if i % 25 == 0 else "ant" for i, item in enumerate(task[:100])}
    by_risk, by_audits = (expected_audits(found, 0.05, 0.95, answers) for answers in ({}, known))
    assert by_risk == pytest.approx(math.log(20) / 0.05)
    assert by_audits == pytest.approx(math.log(20) * 2 * 0.02 / 0.03**2)  # 4 of 100, less 2
    assert expected_audits(found, 0.05, 0.95, dict.fromkeys(list(known)[:40], "bee")) == by_risk  # too few to tell
    assert expected_audits(found, 0.02, 0.95, known) == math.inf
