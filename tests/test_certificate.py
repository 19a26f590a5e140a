"""What an audit may claim: the set and its order, thresholds, the record of claims, and the coverage of all of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightning_annot.certificate.bounds import Bound, anytime_upper, hypergeometric_upper
from lightning_annot.certificate.record import Record, Stage, claim_level, read_record, write_record
from lightning_annot.certificate.sample import Audits, CertifiedSet, audits_of, certified_set, drawn_order
from lightning_annot.certificate.statement import describe, state
from lightning_annot.certificate.thresholds import ThresholdChoice, choose_threshold, threshold_grid
from lightning_annot.types import AnnotError

REPETITIONS, ALPHA = 1000, 0.05
TOLERANCE = 3 * math.sqrt(ALPHA * (1 - ALPHA) / REPETITIONS)  # three standard errors


def labelled(n: int, label: str = "ant", top: float = 0.1) -> CertifiedSet:
    """n items with risks that rise evenly to ``top``."""
    task = pd.Series([f"item{i:04d}" for i in range(n)], dtype=object)
    return CertifiedSet(task, pd.Series([label] * n, dtype=object), pd.Series(np.arange(n) * top / n), top)


def slow_choice(
    risk: NDArray[np.float64], wrong: NDArray[np.bool_], target: float, confidence: float, bound: Bound, top: float
) -> ThresholdChoice | None:
    """``choose_threshold``, one threshold after the other."""
    best, begun = None, False
    grid = threshold_grid(risk, top)
    for t in grid:
        inside = risk < t if t < top else np.ones(len(risk), dtype=bool)
        n, k = int(inside[: len(wrong)].sum()), int(wrong[inside[: len(wrong)]].sum())
        begun = begun or t == top or float(bound(n, math.floor(n * target / 4), inside.sum(), confidence)) <= target
        if begun:
            found = float(bound(n, k, inside.sum(), confidence))
            if found > target:
                break
            best = ThresholdChoice(float(t), int(inside.sum()), n, k, found)
    return best


def test_the_set_is_what_is_finished_or_below_a_risk() -> None:
    labels = pd.DataFrame(
        {
            "task": list("abcd"),
            "label": ["x"] * 4,
            "risk": [0.0, 0.05, 0.2, 0.4],
            "status": ["prototype", "finished", "unfinished", "unfinished"],
        }
    )
    assert certified_set(labels, 0.1, None).task.tolist() == ["b"]
    wider = certified_set(labels, 0.1, 0.3)
    assert (wider.task.tolist(), wider.top) == (["b", "c"], 0.3)
    assert 0.05 < certified_set(labels, None, None).top < 0.0500001
    with pytest.raises(AnnotError, match=r"no item has a risk below 0\.01"):
        certified_set(labels, 0.1, 0.01)
    with pytest.raises(AnnotError, match="no item is finished"):
        certified_set(labels[2:], 0.1, None)


def test_the_order_is_a_function_of_seed_set_and_stage_alone() -> None:
    found = labelled(500)
    order = drawn_order(found, 0, 0)
    assert sorted(order) == list(range(500))
    assert (order == drawn_order(labelled(500), 0, 0)).all()
    assert order[:8].tolist() == [371, 246, 187, 31, 414, 59, 219, 297]  # the same on every machine
    others = [drawn_order(found, 1, 0), drawn_order(found, 0, 1), drawn_order(labelled(500, "bee"), 0, 0)]
    assert all((order != other).mean() > 0.9 for other in others)


def test_every_item_comes_first_equally_often() -> None:
    found = labelled(10)
    first = [int(drawn_order(found, seed, 0)[0]) for seed in range(5000)]
    assert np.bincount(first, minlength=10).min() > 500 - 5 * math.sqrt(450)
    assert np.bincount(first, minlength=10).max() < 500 + 5 * math.sqrt(450)


def test_answers_count_up_to_the_first_gap() -> None:
    found, order = labelled(6), np.array([5, 3, 1, 0, 2, 4])
    answers = {"item0005": "ant", "item0003": None, "item0001": "bee", "item0002": "ant", "elsewhere": "bee"}
    audits = audits_of(found, order, answers)
    assert audits.wrong.tolist() == [False, True, True]
    assert audits.unsure.tolist() == [False, True, False]
    assert audits.waiting == 1
    np.testing.assert_array_equal(audits.risk, found.risk.to_numpy()[order])
    assert audits_of(found, order, {}).wrong.shape == (0,)
    assert audits_of(found, order, dict.fromkeys(found.task, "ant")).wrong.tolist() == [False] * 6


def test_the_grid_rises_to_the_top() -> None:
    grid = threshold_grid(np.linspace(0, 0.1, 1000), 0.1)
    np.testing.assert_allclose(grid, np.arange(1, 21) * 0.1 / 20, atol=2e-4)
    assert threshold_grid(np.zeros(50), 0.1).tolist() == [0.1]
    assert threshold_grid(np.array([0.1] * 5 + [0.02]), 0.1).tolist() == [0.1]


@given(st.integers(0, 2**32), st.integers(1, 400), st.floats(0.01, 0.2), st.sampled_from([anytime_upper, hypergeometric_upper]))
@settings(deadline=None, max_examples=60)
def test_the_choice_is_that_of_the_slow_one(seed: int, size: int, target: float, bound: Bound) -> None:
    rng = np.random.default_rng(seed)
    risk = rng.uniform(0, 0.1, size).round(int(rng.integers(2, 5)))
    wrong = rng.random(int(rng.integers(0, size + 1))) < rng.uniform(0, target)
    fast = choose_threshold(risk, wrong, target, 0.9, bound, 0.1)
    assert fast == slow_choice(risk, wrong, target, 0.9, bound, 0.1)
    assert fast is None or fast.bound <= target


def failures(error: NDArray[np.float64], target: float, looks: tuple[int, ...], seed: int) -> float:
    """How often any look at a set with these errors by risk chooses a threshold whose true error is above the target."""
    rng, size = np.random.default_rng(seed), len(error)
    risk = (np.arange(size) + 0.5) / size
    wrong = rng.random(size) < error
    failed = 0
    for _ in range(REPETITIONS):
        order = rng.permutation(size)
        found = [choose_threshold(risk[order], wrong[order[:n]], target, 1 - ALPHA, anytime_upper, 1.0) for n in looks]
        failed += any(choice is not None and wrong[: choice.size].mean() > target for choice in found)
    return failed / REPETITIONS


@pytest.mark.parametrize("shape", ["flat", "rising", "falling"])
def test_a_threshold_is_wrong_as_seldom_as_stated(shape: str) -> None:
    """Errors just above the target everywhere, from below it to far above, and where trust in small risks is misplaced."""
    x = np.linspace(0, 1, 4000)
    error = {"flat": np.full(4000, 0.052), "rising": 0.15 * x, "falling": 0.12 * (1 - x)}[shape]
    assert failures(error, 0.05, (200, 500), seed=3) <= ALPHA + TOLERANCE


def test_a_threshold_is_found_where_risks_tell_errors() -> None:
    rng = np.random.default_rng(4)
    risk = rng.uniform(0, 0.5, 4000)
    wrong = rng.random(4000) < 0.2 * risk
    choice = choose_threshold(risk, wrong[:1200], 0.05, 0.95, anytime_upper, 0.5)
    assert choice is not None
    assert 0.1 < choice.threshold < 0.5
    assert wrong[risk < choice.threshold].mean() <= 0.05
    assert choose_threshold(risk, wrong[:1200], 0.2, 0.95, anytime_upper, 0.5).threshold == 0.5  # type: ignore[union-attr]
    assert choose_threshold(risk, wrong[:10], 0.05, 0.95, anytime_upper, 0.5) is None


@given(st.floats(0.5, 0.999))
def test_all_claims_together_spend_what_the_confidence_leaves(confidence: float) -> None:
    left = [1 - claim_level(i, confidence) for i in range(20)]
    assert sum(left) == pytest.approx(1 - confidence)
    assert left == sorted(left, reverse=True)


def test_looks_and_targets_claim_once() -> None:
    index, record = Record(0).planned(Stage("a", 100, None, None))
    assert record.level((index, None), 0.95) == pytest.approx(0.96)
    record = record.looked(index, 10, 1)
    assert record.looked(index, 10, 1) == record
    assert record.looked(index, 20, 1).claims == ((0, None),)
    record = record.claimed((index, 0.02)).claimed((index, 0.02))
    assert record.claims == ((0, None), (0, 0.02))
    assert record.level((index, 0.02), 0.95) == pytest.approx(0.992)
    assert replace(record, lost=1).level((index, 0.02), 0.95) == pytest.approx(0.9984)


def test_plans_cannot_be_changed_after_the_fact() -> None:
    once, open_ = Stage("a", 100, None, 30), Stage("a", 100, None, None)
    _, record = Record(0).planned(open_)
    assert record.planned(open_) == (0, record)
    assert record.planned(once)[1].stages == (once,)  # nobody has looked yet
    with pytest.raises(AnnotError, match="looked at already"):
        record.looked(0, 10, 0).planned(once)
    _, record = Record(0).planned(once)
    with pytest.raises(AnnotError, match="planned as one look at 30"):
        record.planned(open_)
    assert record.looked(0, 30, 0).planned(open_)[0] == 1  # the look is over: another audit
    assert record.planned(replace(open_, digest="b"))[0] == 1  # other labels
    back = record.planned(replace(open_, digest="b"))[1]
    assert back.planned(once) == (0, back)


def test_the_record_survives_its_file(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    _, record = Record(7, lost=2, certificate={"bound": 0.1}).planned(Stage("a", 100, 0.3, 30))
    record = record.looked(0, 30, 2).claimed((0, 0.05))
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"seed": 0, "stages": [{}], "claims": [], "lost": 0, "certificate": null}'])
def test_a_broken_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "certificate.json").write_text(text)
    with pytest.raises(AnnotError, match=r"certificate\.json is damaged .*each draw so far counts as a claim"):
        read_record(tmp_path)


def audits(found: CertifiedSet, wrong: NDArray[np.bool_]) -> Audits:
    """The first of a set in its own order, all answered."""
    return Audits(found.risk.to_numpy(), wrong, np.zeros(len(wrong), dtype=bool), 0)


def test_one_planned_look_claims_the_bound_of_one_look() -> None:
    found, wrong = labelled(1000), np.arange(200) < 2
    for once, upper in ((200, hypergeometric_upper), (None, anytime_upper)):
        _, record = Record(0).planned(Stage(found.digest, 1000, None, once))
        certificate, record = state(found, audits(found, wrong), record, 0, 0.95, None)
        assert certificate.bound == float(upper(200, 2, 1000, certificate.level))
        assert certificate.hypergeometric <= certificate.binomial <= certificate.anytime
        assert record.stages[0].looks == ((200, 2),)
        assert certificate.more is not None
        assert "however often" in "\n".join(describe(certificate, "labels")) or once


def test_a_bound_within_the_target_claims_nothing_more() -> None:
    found = labelled(1000)
    _, begun = Record(0).planned(Stage(found.digest, 1000, None, None))
    certificate, record = state(found, audits(found, np.zeros(300, dtype=bool)), begun, 0, 0.95, 0.02)
    assert certificate.choice == ThresholdChoice(0.1, 1000, 300, 0, certificate.bound)
    assert record.claims == ((0, None),)
    certificate, record = state(found, audits(found, np.arange(300) % 30 == 29), begun, 0, 0.95, 0.02)
    assert certificate.bound > 0.02
    assert record.claims == ((0, None), (0, 0.02))
    assert "no number of audits certifies 2.00%" in describe(certificate, "labels")[-1]


def test_nothing_audited_claims_nothing() -> None:
    found = labelled(1000)
    _, begun = Record(0).planned(Stage(found.digest, 1000, None, None))
    certificate, record = state(found, audits(found, np.zeros(0, dtype=bool)), begun, 0, 0.95, 0.05)
    assert record == begun
    assert certificate.bound == 1
    assert certificate.choice is None
    assert certificate.more == 87


def test_everything_audited_is_known() -> None:
    found = labelled(50)
    _, begun = Record(0).planned(Stage(found.digest, 50, None, None))
    certificate, _ = state(found, audits(found, np.arange(50) < 3), begun, 0, 0.95, None)
    assert certificate.bound == 3 / 50
    assert certificate.more is None
    assert certificate.goal is None


def test_no_claim_of_a_whole_run_is_wrong_more_often_than_stated() -> None:
    """Two versions of the labels, each looked at twice with a target: the chance that anything claimed is wrong."""
    rng, size, target, repetitions = np.random.default_rng(5), 2000, 0.04, 400
    versions = [labelled(size, "ant", top=1.0), labelled(size, "bee", top=1.0)]
    truth = [rng.permutation(size) < n for n in (82, 90)]  # above the target throughout: hard to claim anything right
    failed = 0
    for _ in range(repetitions):
        record, wrong_claim = Record(0), False
        for found, wrong in zip(versions, truth, strict=True):
            order = rng.permutation(size)
            index, record = record.planned(Stage(found.digest, size, None, None))
            for n in (150, 400):
                seen = Audits(found.risk.to_numpy()[order], wrong[order[:n]], np.zeros(n, dtype=bool), 0)
                stated, record = state(found, seen, record, index, 1 - ALPHA, target)
                wrong_claim |= stated.bound < wrong.mean()
                wrong_claim |= stated.choice is not None and wrong[: stated.choice.size].mean() > target
        failed += wrong_claim
    assert failed / repetitions <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / repetitions)
