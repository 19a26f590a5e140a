"""The walk over a model's labels: its exact level by enumeration, its parts, and what it keeps on real files."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from cli_runs import ROOT, SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightning_annot.certificate.walk import WalkPlan, allowed_errors, plan_walk, walk_length, walk_rate
from lightning_annot.types import AnnotError

FILES = SHARED / "pac_labels"


def slow_length(audited: NDArray[np.bool_], wrong: NDArray[np.bool_], plan: WalkPlan) -> int:
    """``walk_length``, one label after the other."""
    passed = met = kept = 0
    for is_audited, is_wrong in zip(audited, wrong, strict=True):
        met += int(is_audited and is_wrong)
        kept += int(not is_audited)
        if met > plan.limit and kept > plan.allowed:
            break
        passed += 1
    return passed


@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(0, 6), st.integers(0, 6))
@settings(deadline=None)
def test_the_length_is_that_of_a_walk_step_by_step(seed: int, size: int, allowed: int, limit: int) -> None:
    rng, plan = np.random.default_rng(seed), WalkPlan(allowed, limit, 0.3)
    audited, wrong = rng.random(size) < plan.rate, rng.random(size) < 0.3
    assert walk_length(audited, wrong, plan) == slow_length(audited, wrong, plan)


@pytest.mark.parametrize(("allowed", "limit"), [(0, 0), (0, 3), (1, 2), (2, 1), (3, 0)])
@pytest.mark.parametrize("confidence", [0.6, 0.8, 0.95])
def test_the_walk_goes_too_far_as_seldom_as_stated_by_enumeration(allowed: int, limit: int, confidence: float) -> None:
    """All patterns of audits of errors in a row: with allowed + limit + 1 of them the level is met, with fewer it is kept."""
    plan = WalkPlan(allowed, limit, float(walk_rate(allowed, limit, confidence)))
    for n_errors in (allowed + 1, allowed + limit + 1, allowed + limit + 4):
        wrong = np.ones(n_errors, dtype=bool)
        too_far = 0.0
        for coins in itertools.product([False, True], repeat=n_errors):
            audited = np.array(coins)
            kept = int((~audited[: walk_length(audited, wrong, plan)]).sum())
            too_far += math.prod(plan.rate if coin else 1 - plan.rate for coin in coins) * (kept > allowed)
        assert too_far <= 1 - confidence + 1e-9
        assert n_errors <= allowed + limit or too_far == pytest.approx(1 - confidence)


def test_few_labels_pass_without_evidence() -> None:
    plan = WalkPlan(2, 0, 0.01)
    assert walk_length(np.array([True] + [False] * 9), np.ones(10, dtype=bool), plan) == 3
    assert allowed_errors(1000, 0.29) == 290
    with pytest.raises(AnnotError, match=r"confidence 95 given"):
        walk_rate(2, 1, 95)


@pytest.mark.parametrize("stated", [0.001, 0.05, 0.5])
def test_a_walk_over_labels_whose_risks_say_nothing_keeps_its_promise(stated: float) -> None:
    size, target = 2000, 0.05
    wrong = np.random.default_rng(0).random(size) < 0.3
    plan, failed = plan_walk(np.full(size, stated), target, 0.95), 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        order, audited = rng.permutation(size), rng.random(size) < plan.rate
        n = walk_length(audited, wrong[order], plan)
        failed += int((wrong[order][:n] & ~audited[:n]).sum()) > plan.allowed
    assert failed / 1000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_more_labels_need_a_lower_rate() -> None:
    rates = [plan_walk(np.linspace(0, 0.5, n), 0.05, 0.95).rate for n in (1000, 10_000, 100_000)]
    assert rates == sorted(rates, reverse=True)
    assert 0.005 < rates[-1] < rates[0] < 0.5


@pytest.mark.skipif(not FILES.is_dir(), reason="needs ../shared/data/pac_labels")
@pytest.mark.parametrize(
    ("name", "best", "repetitions"),
    [
        ("imagenetv2", 0.403, 50),
        pytest.param("imagenet", 0.605, 1000, marks=pytest.mark.slow),
        pytest.param("imagenetv2", 0.403, 1000, marks=pytest.mark.slow),
    ],
)
def test_the_walk_keeps_more_labels_than_uniform_audits(name: str, best: float, repetitions: int) -> None:
    words = [sys.executable, "scripts/bench_certificate.py", str(FILES / f"{name}.csv"), "--repetitions", str(repetitions)]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(told.stdout)[name]
    assert found["walk"]["saved"] > max(best, found["binomial"]["saved"], found["hypergeometric"]["saved"])
    assert found["walk"]["saved"] < found["truth"]["saved"]
    assert found["walk"]["audited"] <= 0.1
    for method in ("walk", "binomial", "hypergeometric"):
        assert found[method]["too_many"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repetitions)
