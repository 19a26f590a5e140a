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

from lightning_annot.certificate.walk import allowed_errors, walk_length, walk_limit, walk_rate
from lightning_annot.types import AnnotError

FILES = SHARED / "pac_labels"


def slow_length(audited: NDArray[np.bool_], wrong: NDArray[np.bool_], allowed: int, limit: int) -> int:
    """``walk_length``, one label after the other."""
    passed = met = kept = 0
    for is_audited, is_wrong in zip(audited, wrong, strict=True):
        met += int(is_audited and is_wrong)
        kept += int(not is_audited)
        if met > limit and kept > allowed:
            break
        passed += 1
    return passed


@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(0, 6), st.integers(-1, 6))
@settings(deadline=None)
def test_the_length_is_that_of_a_walk_step_by_step(seed: int, size: int, allowed: int, limit: int) -> None:
    rng = np.random.default_rng(seed)
    audited, wrong = rng.random(size) < 0.3, rng.random(size) < 0.3
    assert walk_length(audited, wrong, allowed, limit) == slow_length(audited, wrong, allowed, limit)


@pytest.mark.parametrize(("allowed", "rate"), [(0, 0.5), (1, 0.4), (2, 0.3), (3, 0.6)])
def test_the_walk_goes_too_far_as_seldom_as_stated_by_enumeration(allowed: int, rate: float) -> None:
    """All patterns of audits of twelve errors in a row, the worst arrangement, at several levels."""
    coins = np.array(list(itertools.product([False, True], repeat=12)))
    probability = np.prod(np.where(coins, rate, 1 - rate), axis=1)
    wrong = np.ones(12, dtype=bool)
    for confidence in (0.6, 0.8, 0.95):
        limit = walk_limit(allowed, rate, confidence)
        passed = np.array([walk_length(audited, wrong, allowed, limit) for audited in coins])
        kept = np.array([int((~audited[:n]).sum()) for audited, n in zip(coins, passed, strict=True)])
        too_far = float(probability[kept > allowed].sum())
        assert too_far <= 1 - confidence + 1e-12
        looser = np.array([walk_length(audited, wrong, allowed, limit + 1) for audited in coins])
        kept = np.array([int((~audited[:n]).sum()) for audited, n in zip(coins, looser, strict=True)])
        assert float(probability[kept > allowed].sum()) > 1 - confidence  # the limit is the largest possible


def test_few_labels_pass_without_evidence() -> None:
    assert walk_limit(2, 0.01, 0.95) == -1
    assert walk_length(np.zeros(10, dtype=bool), np.ones(10, dtype=bool), 2, -1) == 2
    assert allowed_errors(1000, 0.29) == 290
    with pytest.raises(AnnotError, match="confidence 95 given"):
        walk_limit(2, 0.01, 95)


def test_a_walk_over_labels_whose_risks_say_nothing_keeps_its_promise() -> None:
    size, target = 2000, 0.05
    wrong = np.random.default_rng(0).random(size) < 0.3
    allowed = allowed_errors(size, target)
    rate = walk_rate(np.full(size, 0.01), target, 0.95)
    limit, failed = walk_limit(allowed, rate, 0.95), 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        order, audited = rng.permutation(size), rng.random(size) < rate
        n = walk_length(audited, wrong[order], allowed, limit)
        failed += int((wrong[order][:n] & ~audited[:n]).sum()) > allowed
    assert failed / 1000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_more_labels_need_a_lower_rate() -> None:
    rates = [walk_rate(np.linspace(0, 0.5, n), 0.05, 0.95) for n in (500, 5000, 50_000)]
    assert rates == sorted(rates, reverse=True)
    assert 0.005 < rates[-1] < rates[0] < 0.3


def bench(repetitions: int) -> dict[str, dict[str, dict[str, float]]]:
    words = [sys.executable, "scripts/bench_certificate.py", FILES / "imagenet.csv", FILES / "imagenetv2.csv"]
    told = subprocess.run([*words, "--repetitions", str(repetitions)], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(told.stdout)  # type: ignore[no-any-return]


@pytest.mark.skipif(not FILES.is_dir(), reason="needs ../shared/data/pac_labels")
@pytest.mark.parametrize("repetitions", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_walk_keeps_more_labels_than_uniform_audits(repetitions: int) -> None:
    tolerance = 3 * math.sqrt(0.05 * 0.95 / repetitions)
    results = bench(repetitions)
    for name, best in (("imagenet", 0.605), ("imagenetv2", 0.403)):
        found = results[name]
        assert found["walk"]["saved"] > max(best, found["binomial"]["saved"], found["hypergeometric"]["saved"])
        assert found["walk"]["audited"] <= 0.1
        for method in ("walk", "binomial", "hypergeometric"):
            assert found[method]["too_many"] <= 0.05 + tolerance
        assert found["walk"]["saved"] < found["truth"]["saved"]
