"""What a round's answers say of the exponents: gathered against plain loops, remembered, forgotten and saved."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_annot.callbacks.belief import Belief
from lightning_annot.crowd.em import EMResult, run_em
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.risk import decide
from lightning_annot.crowd.tempering import FreshAnswers, Tempering, fit_tempering, foreseen, join
from lightning_annot.recalibration import LEVELS, MOST, Recalibration, fresh_answers
from lightning_annot.round.facts import Facts
from lightning_annot.round.inference import Inference
from lightning_annot.round.settings import CrowdSettings, TrustSettings
from lightning_annot.types import Annotations

NAMES = ("model", "people", "answer", "earlier")


def log_of(n: int, k: int, w: int, a: int, rounds: int, seed: int) -> Facts:
    """``a`` answers and skips of distinct (item, worker) pairs; rounds rise with the log."""
    rng = np.random.default_rng(seed)
    pair = torch.from_numpy(rng.choice(n * w, min(a, n * w), replace=False))
    label = torch.from_numpy(rng.integers(-1, k, size=len(pair)))
    round_ = torch.from_numpy(np.sort(rng.integers(0, rounds, size=len(pair))))
    none = torch.empty(0, dtype=torch.int64)
    return Facts(tuple(f"w{j}" for j in range(w)), pair // w, pair % w, label, none, none, round=round_)


def fit_before(facts: Facts, round_: int, log_prior: Tensor, known: int) -> EMResult:
    """The crowd of the first ``known`` workers' answers before ``round_``."""
    kept = (facts.label >= 0) & (facts.round < round_) & (facts.worker < known)
    answers = Annotations(facts.item[kept], facts.worker[kept], facts.label[kept])
    return run_em(answers, log_prior, homogeneous_prior(log_prior.shape[1], dtype=torch.float64), known, max_iterations=3)


def slow_fresh(facts: Facts, round_: int, crowd: EMResult, log_prior: Tensor) -> set[tuple[float, ...]]:
    """Row by row of the log: what was believed before each new answer, rounded, in no order."""
    confusions = crowd.confusions().tolist()
    prior = crowd.prior.counts / crowd.prior.counts.sum(1, keepdim=True)
    log = list(zip(*(getattr(facts, name).tolist() for name in ("item", "worker", "label", "round")), strict=True))
    k, rows = log_prior.shape[1], set()

    def says(worker: int, label: int) -> list[float]:
        rows_ = confusions[worker] if worker < len(confusions) else prior.tolist()
        return [math.log(rows_[y][label]) for y in range(k)]

    for at, (item, worker, label, when) in enumerate(log):
        if label < 0 or when != round_:
            continue
        before = [(w, z) for i, w, z, r in log[:at] if i == item and z >= 0 and r <= round_]
        people = [sum(says(w, z)[y] for w, z in before) for y in range(k)]
        values = [*log_prior[item].tolist(), *people, *says(worker, label), len(before)]
        rows.add(tuple(round(v, 5) + 0.0 for v in values))
    return rows


@given(
    n=st.integers(1, 8), k=st.integers(2, 4), w=st.integers(1, 6), a=st.integers(1, 40), rounds=st.integers(1, 4),
    unknown=st.integers(0, 3), seed=st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_fresh_answers_equal_plain_loops(n: int, k: int, w: int, a: int, rounds: int, unknown: int, seed: int) -> None:
    facts = log_of(n, k, w, a, rounds, seed)
    log_prior = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(1)
    for round_ in range(rounds):
        crowd = fit_before(facts, round_, log_prior, max(1, w - unknown))
        got = fresh_answers(facts, round_, crowd, log_prior.__getitem__)
        slow = slow_fresh(facts, round_, crowd, log_prior)
        if got is None:
            assert not slow
            continue
        table = torch.cat([got.model, got.people, got.answer, got.earlier[:, None].double()], 1).tolist()
        fast = {tuple(round(v, 5) + 0.0 for v in row) for row in table}
        assert len(table) == int(((facts.label >= 0) & (facts.round == round_)).sum())
        near = sorted(fast), sorted(slow)
        assert len(near[0]) == len(near[1])
        for ours, theirs in zip(*near, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


def test_by_hand() -> None:
    """Item 0: an answer in round 0, two in round 1 with a skip between. Item 1: one in round 1. Worker 2 is new."""
    none = torch.empty(0, dtype=torch.int64)
    columns = [[0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 2, 1], [1, 0, -1, 1, 1, 0], [0, 1, 1, 1, 1, 2]]
    item, worker, label, round_ = (torch.tensor(c) for c in columns)
    facts = Facts(("a", "b", "c"), item, worker, label, none, none, round=round_)
    log_prior = torch.tensor([[0.3, 0.7], [0.9, 0.1]], dtype=torch.float64).log()
    crowd = fit_before(facts, 1, log_prior, 2)
    got = fresh_answers(facts, 1, crowd, log_prior.__getitem__)
    assert got is not None
    assert got.earlier.tolist() == [1, 2, 0]
    w = crowd.confusions().log()
    torch.testing.assert_close(got.people, torch.stack([w[0, :, 1], w[0, :, 1] + w[1, :, 0], torch.zeros(2).double()]))
    new = homogeneous_prior(2, dtype=torch.float64)[:, 1] / 10.0
    torch.testing.assert_close(got.answer, torch.stack([w[1, :, 0], new.log(), w[0, :, 1]]))
    torch.testing.assert_close(got.model, log_prior[[0, 0, 1]])


def test_skips_and_other_rounds_bring_nothing() -> None:
    none = torch.empty(0, dtype=torch.int64)
    facts = Facts(
        ("a",), torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([1, -1]), none, none, round=torch.tensor([0, 1])
    )
    log_prior = torch.full((2, 2), 0.5, dtype=torch.float64).log()
    assert fresh_answers(facts, 1, fit_before(facts, 1, log_prior, 1), log_prior.__getitem__) is None


def fresh(counts: list[int], seed: int) -> FreshAnswers:
    """``counts[l]`` answers of each level l, in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    earlier = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    earlier = earlier[torch.randperm(len(earlier), generator=generator)]
    logs = (torch.randn(len(earlier), 3, generator=generator).log_softmax(1) for _ in range(3))
    return FreshAnswers(*logs, earlier)


def remembered(recalibration: Recalibration) -> dict[int, FreshAnswers]:
    return {r: FreshAnswers(**parts) for r, parts in recalibration.state_dict()["fresh"].items()}


def test_nothing_learned_nothing_tempered() -> None:
    recalibration = Recalibration()
    recalibration.learn(0, None)
    assert recalibration.tempering == Tempering()
    assert recalibration.tempering.is_plain


def test_learns_from_all_that_is_remembered() -> None:
    recalibration, rounds = Recalibration(), [fresh([30, 20, 10], seed) for seed in range(3)]
    for r, answers in enumerate(rounds):
        recalibration.learn(r, answers)
    assert recalibration.tempering == fit_tempering(join(rounds), LEVELS, most=MOST)
    before = recalibration.tempering
    recalibration.learn(3, None)  # a round without answers says nothing new
    assert recalibration.tempering == before


def test_learning_a_round_again_changes_nothing() -> None:
    recalibration, rounds = Recalibration(), [fresh([30, 20, 10], seed) for seed in range(2)]
    for r, answers in enumerate(rounds):
        recalibration.learn(r, answers)
    before = recalibration.tempering
    for r, answers in enumerate(rounds):
        recalibration.learn(r, answers)
        assert recalibration.tempering == before
    assert {r: len(f) for r, f in remembered(recalibration).items()} == {0: 60, 1: 60}


@pytest.mark.parametrize(
    "per_round", [[400, 300, 200], [600, 0, 0], [0, 500, 30], [1500, 1200, 1100], [350, 350, 350, 200], [1000, 1000, 100, 900]]
)  # the last: items with a cap above 3
def test_forgetting_keeps_what_the_fit_looks_at(per_round: list[int]) -> None:
    recalibration, everything = Recalibration(), []
    for r in range(12):
        mixed = [n * (1 + (r + level) % 3) // 2 for level, n in enumerate(per_round)]
        everything.append(fresh(mixed, seed=r))
        recalibration.learn(r, everything[-1])
        assert recalibration.tempering == fit_tempering(join(everything), LEVELS, most=MOST)
    kept = join(list(remembered(recalibration).values()))
    for level, n in enumerate(torch.bincount(join(everything).earlier.clamp(max=LEVELS - 1)).tolist()):
        assert int((kept.earlier.clamp(max=LEVELS - 1) == level).sum()) >= min(n, MOST)
    if min(per_round) > 200:
        assert len(remembered(recalibration)) < 12


def test_rare_levels_are_not_forgotten_with_common_ones() -> None:
    recalibration = Recalibration()
    recalibration.learn(0, fresh([10, 10, 7], 0))
    for r in range(1, 6):
        recalibration.learn(r, fresh([MOST, 5, 0], r))
    kept = remembered(recalibration)
    assert 0 in kept
    assert int((join(list(kept.values())).earlier == 2).sum()) == 7


def test_state_survives_a_file() -> None:
    recalibration = Recalibration()
    for r in (0, 2, 5):
        recalibration.learn(r, fresh([25, 15, 5], r))
    file = io.BytesIO()
    torch.save(recalibration.state_dict(), file)
    file.seek(0)
    resumed = Recalibration()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.tempering == recalibration.tempering
    assert recalibration.curvature is not None
    assert resumed.curvature is not None
    assert all(torch.equal(part, resumed.curvature.parts()[name]) for name, part in recalibration.curvature.parts().items())
    assert recalibration.curvature.answers.tolist() == [75, 45, 15]
    ours, theirs = remembered(recalibration), remembered(resumed)
    assert list(ours) == list(theirs) == [0, 2, 5]
    assert all(torch.equal(getattr(ours[r], name), getattr(theirs[r], name)) for r in ours for name in NAMES)
    for one in (recalibration, resumed):
        one.learn(6, fresh([25, 15, 5], 6))
    assert resumed.tempering == recalibration.tempering


def test_a_run_that_tempers_nothing_knows_what_it_foresaw() -> None:
    """The gain of a round's answers counts for patience, whether or not exponents are learned from them."""
    facts = log_of(n=12, k=3, w=4, a=40, rounds=2, seed=0)
    log_prior = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    crowd = fit_before(facts, 1, log_prior.double(), 4)
    fresh_ = fresh_answers(facts, 1, crowd, log_prior.__getitem__)
    assert fresh_ is not None
    posterior = log_prior.exp()
    inference = Inference(posterior, decide(posterior), torch.zeros(12, dtype=torch.bool), crowd)
    for temper in (False, True):
        belief = Belief(CrowdSettings(temper=temper), TrustSettings())
        assert belief.recalibrate(1, facts, inference, log_prior.__getitem__) == foreseen(fresh_, Tempering())
        assert (belief.tempering == Tempering()) != temper
        assert belief.recalibrate(5, facts, inference, log_prior.__getitem__) is None  # nothing new
