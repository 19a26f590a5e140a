"""What an audit may claim: the set and its order, thresholds, the record of claims, and the coverage of all of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.peeking import peek_identity
from lightning_annot.certificate.bounds import Bound, anytime_upper, hypergeometric_upper
from lightning_annot.certificate.keeping import keep_stages, read_record, write_certificate
from lightning_annot.certificate.record import BOUND, THRESHOLDS, Record, Stage
from lightning_annot.certificate.sample import Audits, CertifiedSet, audits_of, certified_set, drawn_order
from lightning_annot.certificate.statement import describe, plan, state
from lightning_annot.certificate.thresholds import ThresholdChoice, choose_threshold, threshold_grid
from lightning_annot.types import AnnotError

REPETITIONS, ALPHA = 1000, 0.05
TOLERANCE = 3 * math.sqrt(ALPHA * (1 - ALPHA) / REPETITIONS)  # three standard errors


def labelled(n: int, label: str = "ant", top: float = 0.1) -> CertifiedSet:
    """n items with risks that rise evenly to ``top``."""
    task = pd.Series([f"item{i:04d}" for i in range(n)], dtype=object)
    return CertifiedSet(task, pd.Series([label] * n, dtype=object), pd.Series(np.arange(n) * top / n), top)


def slow_choice(
    risk: NDArray[np.float64], wrong: NDArray[np.bool_], target: float, confidence: float, bound: Bound, grid: list[float]
) -> ThresholdChoice | None:
    """``choose_threshold``, one threshold after the other."""
    best = None
    for t in grid:
        inside = risk < t
        n, k = int(inside[: len(wrong)].sum()), int(wrong[inside[: len(wrong)]].sum())
        found = float(bound(n, k, inside.sum(), 1 - (1 - confidence) / len(grid)))
        if found <= target:
            best = ThresholdChoice(t, int(inside.sum()), n, k, found)
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
    assert order[:8].tolist() == [391, 110, 378, 320, 443, 63, 67, 92]  # the same on every machine
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


def test_the_grid_rises_below_the_top() -> None:
    grid = threshold_grid(np.linspace(0, 0.1, 1000), 0.1)
    np.testing.assert_allclose(grid, np.arange(1, 10) * 0.1 / 10, atol=2e-4)
    assert threshold_grid(np.zeros(50), 0.1).tolist() == []
    assert threshold_grid(np.array([0.1] * 5 + [0.02]), 0.1).tolist() == []


@given(st.integers(0, 2**32), st.integers(1, 400), st.floats(0.01, 0.2), st.sampled_from([anytime_upper, hypergeometric_upper]))
@settings(deadline=None, max_examples=60)
def test_the_choice_is_that_of_the_slow_one(seed: int, size: int, target: float, bound: Bound) -> None:
    rng = np.random.default_rng(seed)
    risk = rng.uniform(0, 0.1, size).round(int(rng.integers(2, 5)))
    wrong = rng.random(int(rng.integers(0, size + 1))) < rng.uniform(0, target)
    grid = threshold_grid(risk, 0.1).tolist()
    fast = choose_threshold(risk, wrong, target, 0.9, bound, grid)
    assert fast == slow_choice(risk, wrong, target, 0.9, bound, grid)
    assert fast is None or fast.bound <= target


def failures(
    wrong: NDArray[np.bool_], target: float, looks: NDArray[np.int64], confidence: float, repetitions: int, seed: int
) -> float:
    """How often some look chooses a threshold whose true error is above the target."""
    rng, size = np.random.default_rng(seed), len(wrong)
    risk = (np.arange(size) + 0.5) / size
    grid = threshold_grid(risk, 1.0).tolist()
    failed = 0
    for _ in range(repetitions):
        order = rng.permutation(size)
        for n in looks:
            choice = choose_threshold(risk[order], wrong[order[:n]], target, confidence, anytime_upper, grid)
            if choice is not None and wrong[: choice.size].mean() > target:
                failed += 1
                break
    return failed / repetitions


def just_bad(size: int, target: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Verdicts by rising risk with one error more than the target allows in each twentieth, so that no threshold is within."""
    part = size // 20
    n_wrong = math.ceil(part * target) + 1
    return np.concatenate([rng.permutation(part) < n_wrong for _ in range(20)])


def stopped_at_will(repetitions: int, n_looks: int) -> float:
    rng = np.random.default_rng(0)
    looks = np.unique(np.geomspace(3, 1000, n_looks).astype(np.int64))
    return failures(just_bad(2000, 0.3, rng), 0.3, looks, 0.9, repetitions, seed=1)


def test_stopping_at_will_brings_no_more_false_thresholds_than_stated() -> None:
    """A start that follows the number of audits errs in .125 +- .017 of 400 such repetitions, at confidence .90."""
    assert stopped_at_will(repetitions=120, n_looks=15) <= 0.1


@pytest.mark.slow
def test_stopping_at_will_brings_no_more_false_thresholds_than_stated_at_length() -> None:
    assert stopped_at_will(repetitions=1000, n_looks=60) <= 0.1


@pytest.mark.parametrize("shape", ["flat", "rising", "falling"])
def test_a_threshold_is_wrong_as_seldom_as_stated(shape: str) -> None:
    """Errors just above the target everywhere, from below it to far above, and where trust in small risks is misplaced."""
    x = np.linspace(0, 1, 4000)
    error = {"flat": np.full(4000, 0.052), "rising": 0.15 * x, "falling": 0.12 * (1 - x)}[shape]
    wrong = np.random.default_rng(3).random(4000) < error
    assert failures(wrong, 0.05, np.array([200, 500]), 1 - ALPHA, REPETITIONS, seed=3) <= ALPHA + TOLERANCE


def test_a_threshold_is_found_where_risks_tell_errors() -> None:
    rng = np.random.default_rng(4)
    risk = rng.uniform(0, 0.5, 4000)
    wrong = rng.random(4000) < 0.2 * risk
    grid = threshold_grid(risk, 0.5).tolist()
    choice = choose_threshold(risk, wrong[:1200], 0.05, 0.95, anytime_upper, grid)
    assert choice is not None
    assert 0.1 < choice.threshold < 0.5
    assert wrong[risk < choice.threshold].mean() <= 0.05
    assert choose_threshold(risk, wrong[:10], 0.05, 0.95, anytime_upper, grid) is None
    assert choose_threshold(risk, wrong[:1200], 0.05, 0.95, anytime_upper, []) is None


def open_stage(digest: str = "a") -> Stage:
    return Stage(digest, 100, None, None, grid=(0.05, 0.1))


@given(st.floats(0.5, 0.999))
def test_all_claims_together_spend_what_the_confidence_leaves(confidence: float) -> None:
    record = Record(0)
    bounds = [1 - record.bound_level(i, confidence) for i in range(20)]
    thresholds = [1 - record.thresholds_level(i, confidence) for i in range(20)]
    assert sum(bounds + thresholds) == pytest.approx(1 - confidence)
    assert sum(1 - record.stage_level(i, confidence) for i in range(20)) == pytest.approx(1 - confidence)
    assert bounds == sorted(bounds, reverse=True)
    assert BOUND + THRESHOLDS == 1


def test_the_number_of_a_stage_alone_says_what_it_may_spend() -> None:
    index, record = Record(0).planned(open_stage())
    assert record.bound_level(index, 0.95) == pytest.approx(0.968)
    assert record.thresholds_level(index, 0.95) == pytest.approx(0.992)
    record = record.looked(index, 10, 1)
    assert record.looked(index, 10, 1) == record
    assert record.looked(index, 20, 1).bound_level(index, 0.95) == pytest.approx(0.968)
    index, record = record.planned(open_stage("b"))
    assert record.bound_level(index, 0.95) == pytest.approx(1 - 0.05 * 0.16 * 0.8)
    assert replace(record, lost=1).bound_level(0, 0.95) == pytest.approx(1 - 0.05 * 0.16 * 0.8)


def test_plans_cannot_be_changed_after_the_fact() -> None:
    once, open_ = replace(open_stage(), once=30), open_stage()
    _, record = Record(0).planned(open_)
    assert record.planned(replace(open_, grid=(0.02,))) == (0, record)  # the grid stays as it was planned
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


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AnnotationLog]:
    with AnnotationLog(tmp_path / "annotations.db") as opened:
        yield opened


def test_the_record_is_in_the_log(log: AnnotationLog, tmp_path: Path) -> None:
    assert read_record(log, tmp_path, 7) == Record(7)
    index, planned = Record(7).planned(replace(open_stage(), below=0.3))
    keep_stages(log, Record(7), planned)
    looked = planned.looked(index, 30, 2)
    keep_stages(log, planned, looked)
    _, second = looked.planned(open_stage("b"))
    keep_stages(log, looked, second)
    write_certificate(tmp_path, second)
    assert read_record(log, tmp_path) == second
    (tmp_path / "certificate.json").unlink()
    assert read_record(log, tmp_path) == second
    with pytest.raises(AnnotError, match="drawn by seed 7"):
        read_record(log, tmp_path, 8)


def test_plans_are_no_part_of_the_identity_of_a_run(log: AnnotationLog) -> None:
    log.claim({"data": "a"})
    keep_stages(log, Record(0), Record(0).planned(open_stage())[1])
    log.claim({"data": "a"})
    assert log.identity() == {"data": "a"}
    assert peek_identity(log.url)[1] == {"data": "a"}


def test_claims_of_an_older_version_count_as_spent(log: AnnotationLog, tmp_path: Path) -> None:
    old = '{"seed": 0, "stages": [{}, {}], "claims": [[0, null], [0, 0.02], [1, null]], "lost": 2, "certificate": null}'
    (tmp_path / "certificate.json").write_text(old)
    assert read_record(log, tmp_path) == Record(0, lost=5)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"stages": 3, "lost": 0}'])
def test_a_broken_record_of_an_older_version_is_refused(log: AnnotationLog, tmp_path: Path, text: str) -> None:
    (tmp_path / "certificate.json").write_text(text)
    with pytest.raises(AnnotError, match=r"certificate\.json is damaged .*each draw so far counts as a stage"):
        read_record(log, tmp_path)


def audits(found: CertifiedSet, wrong: NDArray[np.bool_]) -> Audits:
    """The first of a set in its own order, all answered."""
    return Audits(found.risk.to_numpy(), wrong, np.zeros(len(wrong), dtype=bool), 0)


def planned(found: CertifiedSet, once: int | None = None) -> Record:
    """The record with one stage of ``found``."""
    return Record(0).planned(plan(found, once, None))[1]


def test_one_planned_look_claims_the_bound_of_one_look() -> None:
    found, wrong = labelled(1000), np.arange(200) < 2
    for once, upper in ((200, hypergeometric_upper), (None, anytime_upper)):
        certificate, record = state(found, audits(found, wrong), planned(found, once), 0, 0.95, None, 0.01)
        assert certificate.bound == float(upper(200, 2, 1000, certificate.level))
        assert certificate.hypergeometric <= certificate.binomial <= certificate.anytime
        assert record.stages[0].looks == ((200, 2),)
        assert certificate.more is not None
        assert "however often" in "\n".join(describe(certificate, "labels")) or once


def test_a_bound_within_the_target_serves_it() -> None:
    found = labelled(1000)
    begun = planned(found)
    certificate, _ = state(found, audits(found, np.zeros(300, dtype=bool)), begun, 0, 0.95, 0.02, 0.01)
    assert certificate.choice == ThresholdChoice(0.1, 1000, 300, 0, certificate.bound)
    assert certificate.believed == 0.01
    certificate, _ = state(found, audits(found, np.arange(300) % 30 == 29), begun, 0, 0.95, 0.02, 0.01)
    assert certificate.bound > 0.02
    assert "no number of audits certifies 2.00%" in describe(certificate, "labels")[-1]


def test_a_smaller_threshold_is_chosen_at_the_level_of_thresholds() -> None:
    found, rng = labelled(4000), np.random.default_rng(0)
    order = rng.permutation(4000)
    risk = found.risk.to_numpy()[order]
    wrong = rng.random(1500) < 0.8 * risk[:1500]
    record = planned(found)
    certificate, _ = state(found, Audits(risk, wrong, np.zeros(1500, dtype=bool), 0), record, 0, 0.95, 0.03, 0.01)
    grid, level = record.stages[0].grid, record.thresholds_level(0, 0.95)
    assert certificate.choice == choose_threshold(risk, wrong, 0.03, level, anytime_upper, grid)
    assert certificate.choice is not None
    assert 1000 < certificate.choice.size < 4000


def test_nothing_audited_claims_nothing() -> None:
    found = labelled(1000)
    begun = planned(found)
    certificate, record = state(found, audits(found, np.zeros(0, dtype=bool)), begun, 0, 0.95, 0.05, 0.01)
    assert record == begun
    assert certificate.bound == 1
    assert certificate.choice is None
    assert certificate.more == 92


def test_everything_audited_is_known() -> None:
    found = labelled(50)
    certificate, _ = state(found, audits(found, np.arange(50) < 3), planned(found), 0, 0.95, None, 0.01)
    assert certificate.bound == 3 / 50
    assert certificate.more is None
    assert certificate.goal is None


def test_no_claim_of_a_whole_run_is_wrong_more_often_than_stated() -> None:
    """Two versions of the labels, each looked at with several targets: how often anything claimed is wrong."""
    rng, size, repetitions = np.random.default_rng(5), 2000, 120
    versions = [labelled(size, "ant", top=1.0), labelled(size, "bee", top=1.0)]
    truth = [rng.permutation(size) < n for n in (82, 90)]  # above the targets throughout: hard to claim anything right
    failed = 0
    for _ in range(repetitions):
        record, wrong_claim = Record(0), False
        for found, wrong in zip(versions, truth, strict=True):
            order = rng.permutation(size)
            index, record = record.planned(plan(found, None, None))
            for n, target in ((150, 0.04), (400, 0.035), (400, 0.04)):
                seen = Audits(found.risk.to_numpy()[order], wrong[order[:n]], np.zeros(n, dtype=bool), 0)
                stated, record = state(found, seen, record, index, 1 - ALPHA, target, 0.01)
                wrong_claim |= stated.bound < wrong.mean()
                wrong_claim |= stated.choice is not None and wrong[: stated.choice.size].mean() > target
        failed += wrong_claim
    assert failed / repetitions <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / repetitions)
