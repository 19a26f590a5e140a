"""Class shares in the EM: what they cure, when they are left out, and that what comes next may veto them."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from slow_em import slow_pooled, slow_shares
from torch import Tensor

from lightning_annot.callbacks.belief import Belief
from lightning_annot.crowd.em import EMResult, run_em, with_class_prior, write_posterior
from lightning_annot.crowd.pooled import Rivals, fit_shares
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.risk import decide
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.crowd.tiers import Shares, fit_pooled, run_tiered_em
from lightning_annot.recalibration import FORGET, MOST_LOSS, Recalibration, gain_of_shares
from lightning_annot.round.facts import Facts
from lightning_annot.round.inference import Inference
from lightning_annot.round.settings import CrowdSettings, TrustSettings
from lightning_annot.types import Annotations

W = 20
NONE = torch.empty(0, dtype=torch.int64)


def answered(share: list[float], n: int, right: float, seed: int, per_item: int = 1) -> tuple[Tensor, Annotations]:
    """Classes (n,) with these shares, and answers of ``W`` workers who are all alike."""
    rng, k = np.random.default_rng(seed), len(share)
    truth = rng.choice(k, n, p=share)
    item = np.repeat(np.arange(n), per_item)
    worker = np.concatenate([rng.permutation(W)[:per_item] for _ in range(n)])
    wrong = (truth[item] + rng.integers(1, k, len(item))) % k
    label = np.where(rng.random(len(item)) < right, truth[item], wrong)
    return torch.from_numpy(truth), Annotations(*(torch.from_numpy(v) for v in (item, worker, label)))


def learner(truth: Tensor, k: int, seed: int, spread: float = 1.0) -> Tensor:
    """log p(y | x) of one who takes all classes for equally common: unit normal features, whose mean is 0 or ``spread``."""
    x = torch.from_numpy(np.random.default_rng(seed + 99).normal(size=(len(truth), k)))
    x[torch.arange(len(truth)), truth] += spread
    return (spread * x).log_softmax(1)


def tiered(answers: Annotations, log_prior: Tensor, shares: Shares, **options: object) -> EMResult:
    prior = homogeneous_prior(log_prior.shape[1], dtype=torch.float64)
    return run_tiered_em(answers, log_prior, prior, W, shares=shares, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
def test_labels_are_no_worse_than_what_people_said(seed: int) -> None:
    """Nine in ten are of one class, one answer an item, 95% right, and a learner that is right in three of four."""
    truth, answers = answered([0.9, 0.1], 4000, 0.95, seed)
    log_prior = learner(truth, 2, seed, 1.0 / math.sqrt(2.0))
    assert float((log_prior.argmax(1) == truth).double().mean()) == pytest.approx(norm.cdf(0.5), abs=0.02)
    right, claimed = {}, {}
    for shares in ("none", "used"):
        result = tiered(answers, log_prior, shares)
        q = write_posterior(result, log_prior, len(truth))
        right[shares], claimed[shares] = float((q.argmax(1) == truth).double().mean()), float(q.amax(1).mean())
    assert right["none"] < 0.8  # correct answers are explained away as confusion
    assert right["used"] > 0.94
    assert claimed["used"] == pytest.approx(right["used"], abs=0.015)


@pytest.mark.parametrize("share", [[0.9, 0.1], [0.6, 0.3, 0.08, 0.02]])
def test_shares_and_confusion_are_found_without_a_learner(share: list[float]) -> None:
    k, n = len(share), 4000
    _, answers = answered(share, n, 0.95, 0)
    result = tiered(answers, torch.full((n, k), 1.0 / k, dtype=torch.float64).log(), "used")
    assert result.log_share is not None
    torch.testing.assert_close(result.log_share.exp(), torch.tensor(share, dtype=torch.float64), rtol=0.0, atol=0.02)
    assert float(result.prior.mean().diagonal().min() / result.prior.mean().sum(1)[0]) > 0.9


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "per_item"), [(2, 1), (2, 3), (10, 1), (10, 2)])
def test_classes_that_are_alike_stay_so(k: int, per_item: int, seed: int) -> None:
    """The gate stays shut, so that nothing at all changes."""
    truth, answers = answered([1.0 / k] * k, 800, 0.85, seed, per_item)
    log_prior = learner(truth, k, seed)
    used, compared, none = (tiered(answers, log_prior, shares) for shares in ("used", "compared", "none"))
    assert used.rivals is not None
    assert not used.rivals.differ
    assert used.log_share is None
    assert torch.equal(used.counts, none.counts)
    assert torch.equal(compared.counts, none.counts)
    assert none.rivals is None


def test_what_is_compared_is_not_used() -> None:
    truth, answers = answered([0.9, 0.1], 500, 0.9, 0)
    log_prior = learner(truth, 2, 0)
    used, compared, none = (tiered(answers, log_prior, shares) for shares in ("used", "compared", "none"))
    assert compared.rivals is not None
    assert compared.rivals.differ
    assert compared.log_share is None
    assert torch.equal(compared.counts, none.counts)
    assert used.rivals is not None
    assert used.log_share is not None
    assert torch.equal(used.log_share, compared.rivals.log_share)
    posterior = write_posterior(used, log_prior, 500)
    shifted = with_class_prior(log_prior.__getitem__, used.log_share)(torch.arange(500))
    again = run_em(answers, shifted, used.prior, W)  # the second tier goes by the product of learner and shares
    torch.testing.assert_close(write_posterior(again, shifted, 500), posterior)


@pytest.mark.parametrize(("gain", "differ"), [(0.0, False), (math.log(400) - 0.01, False), (math.log(400) + 0.01, True)])
def test_the_gate_is_schwarzs_criterion(gain: float, differ: bool) -> None:
    even = torch.full((3,), 1.0 / 3).log()
    assert Rivals(even, torch.eye(3), torch.eye(3), gain, 400, 400).differ == differ


def test_the_gate_waits_for_a_hundred_items_a_class() -> None:
    """With fewer, workers who take one class for another make it look rare (Dog workers on a long tail)."""
    even = torch.full((3,), 1.0 / 3).log()
    assert not Rivals(even, torch.eye(3), torch.eye(3), 1000.0, 299, 299).differ
    assert Rivals(even, torch.eye(3), torch.eye(3), 1000.0, 200, 300).differ


def test_all_answered_items_tell_of_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a bank that is sorted by class, looked at in chunks, and of a sample."""
    truth, answers = answered([0.7, 0.3], 600, 0.9, 1, 3)
    place = truth.argsort(stable=True).argsort(stable=True)  # of each item in the sorted bank
    moved = Annotations(place[answers.item], answers.worker, answers.label)
    log_prior, prior = torch.full((600, 2), 0.5).log().double(), homogeneous_prior(2, 0.7, dtype=torch.float64)
    apart = torch.zeros(len(moved), dtype=torch.bool)
    whole, (share, _, n) = fit_pooled(moved, log_prior.__getitem__, prior, apart, True)
    parts, (again, _, same) = fit_pooled(moved, log_prior.__getitem__, prior, apart, True, chunk_elements=16)
    torch.testing.assert_close((parts, again), (whole, share), rtol=0.0, atol=1e-4)
    assert n == same == 600
    monkeypatch.setattr("lightning_annot.crowd.tiers.MOST_ELEMENTS", 400)
    _, (sampled, _, fewer) = fit_pooled(moved, log_prior.__getitem__, prior, apart, True, chunk_elements=50)
    assert fewer == 200
    torch.testing.assert_close(sampled.exp(), share.exp(), rtol=0.0, atol=0.08)


@pytest.mark.parametrize(("k", "share"), [(2, [0.9, 0.1]), (3, [0.6, 0.3, 0.1]), (4, [0.25] * 4)])
@pytest.mark.parametrize("m_step", ["soft", "hard"])
def test_equals_plain_loops(k: int, share: list[float], m_step: str) -> None:
    truth, answers = answered(share, 60, 0.85, 1, 2)
    log_prior = learner(truth, k, 1)
    prior, apart = homogeneous_prior(k, 0.7, dtype=torch.float64), torch.zeros(len(answers), dtype=torch.bool)
    for with_shares in (False, True):
        mean, (log_share, gain, n) = fit_pooled(answers, log_prior.__getitem__, prior, apart, with_shares, m_step=m_step)  # type: ignore[arg-type]
        triples = list(zip(answers.item.tolist(), answers.worker.tolist(), answers.label.tolist(), strict=True))
        slow = slow_pooled(triples, log_prior.tolist(), 0.7, with_shares, m_step)
        torch.testing.assert_close(mean, torch.tensor(slow[0], dtype=torch.float64), rtol=0.0, atol=3e-3)
        torch.testing.assert_close(log_share.exp(), torch.tensor(slow[1], dtype=torch.float64).exp(), rtol=0.0, atol=3e-3)
        assert gain == pytest.approx(slow[2], abs=0.05)
        assert n == 60 * with_shares


@given(n=st.integers(1, 30), k=st.integers(2, 4), seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_shares_are_the_most_probable(n: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model, people = (2.0 * torch.randn(n, k, generator=generator, dtype=torch.float64) for _ in range(2))
    exponent = torch.rand(n, 1, generator=generator, dtype=torch.float64) + 0.2
    start = torch.randn(k, generator=generator, dtype=torch.float64).log_softmax(0)
    log_share, gain, number = fit_shares(model.log_softmax(1), people, torch.ones(n, 1), start)
    want, most = slow_shares(model.log_softmax(1).tolist(), people.tolist(), start.tolist())
    assert number == n
    assert gain == pytest.approx(most, abs=1e-3)
    assert float(log_share.exp().sum()) == pytest.approx(1.0)
    assert log_share.exp().tolist() == pytest.approx(np.exp(want).tolist(), abs=5e-3)
    tempered, gained, _ = fit_shares(model, people, exponent, start)
    for other in (start, torch.full((k,), 1.0 / k).double().log(), want_near(tempered, generator)):
        assert gained >= gain_of(model, people, exponent, other) - 1e-3


def test_shares_are_learned_under_inference_mode() -> None:
    """Lightning tests a model in it."""
    truth, answers = answered([0.8, 0.2], 300, 0.9, 0)
    log_prior = learner(truth, 2, 0)
    outside = tiered(answers, log_prior, "used")
    with torch.inference_mode():
        inside = tiered(answers, log_prior, "used")
    assert outside.log_share is not None
    assert inside.log_share is not None
    assert torch.equal(inside.log_share, outside.log_share)


def want_near(log_share: Tensor, generator: torch.Generator) -> Tensor:
    return (log_share + 0.1 * torch.randn(len(log_share), generator=generator, dtype=torch.float64)).log_softmax(0)


def gain_of(model: Tensor, people: Tensor, exponent: Tensor, log_share: Tensor) -> float:
    """What ``fit_shares`` says these shares gain on even ones, item by item."""
    k, value = len(log_share), 0.0
    for share, sign in ((log_share, 1.0), (torch.full((k,), 1.0 / k).double().log(), -1.0)):
        value += sign * 2.0 * float(share.sum())
        for m, p, a in zip(model, people, exponent, strict=True):
            joint = (a * (m + share)).softmax(0)
            value += sign * math.log(float((joint * p.exp()).sum()))
    return value


DEGENERATE = {
    "nobody answered": Annotations(NONE, NONE, NONE),
    "one answer": Annotations(torch.tensor([3]), torch.tensor([0]), torch.tensor([1])),
    "a class that nobody named": Annotations(torch.arange(40), torch.arange(40) % W, torch.arange(40) % 2),
    "one class alone": Annotations(torch.arange(40), torch.arange(40) % W, torch.zeros(40, dtype=torch.int64)),
    "one worker": Annotations(torch.arange(40), torch.zeros(40, dtype=torch.int64), torch.arange(40) % 7 // 3),
    "one item": Annotations(torch.zeros(W, dtype=torch.int64), torch.arange(W), torch.arange(W) % 3),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("tempering", [Tempering(), Tempering((0.5, 0.6), (0.7, 0.3))])
def test_degenerate_answers(name: str, experts: bool, tempering: Tempering) -> None:
    answers, log_prior = DEGENERATE[name], learner(torch.arange(50) % 3, 3, 0)
    expert = torch.full((W,), experts)
    result = tiered(answers, log_prior, "used", expert=expert, tempering=tempering)
    posterior = write_posterior(result, log_prior, 50, tempering=tempering)
    torch.testing.assert_close(posterior.sum(1), torch.ones(50, dtype=torch.float64))
    assert (result.rivals is None) == (not len(answers))
    if result.rivals is None:
        assert result.log_share is None
    else:
        assert (result.log_share is not None) == result.rivals.differ
        assert not (result.rivals.differ and result.rivals.n == 1)  # one item tells of no shares
        assert bool(result.rivals.log_share.isfinite().all())
        assert float(result.rivals.log_share.exp().min()) > 1e-4
        assert result.rivals.n == len(torch.unique(answers.item))


def test_wide_tasks_fit_shares_to_some_of_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, answers = answered([0.8, 0.2], 2000, 0.9, 0)
    log_prior = learner(truth, 2, 0)
    whole = tiered(answers, log_prior, "used").rivals
    monkeypatch.setattr("lightning_annot.crowd.tiers.MOST_ELEMENTS", 1000)
    some = tiered(answers, log_prior, "used").rivals
    assert whole is not None
    assert some is not None
    assert (whole.n, some.n) == (2000, 500)
    torch.testing.assert_close(some.log_share.exp(), whole.log_share.exp(), rtol=0.0, atol=0.06)


def rivals(share: float = 0.8) -> Rivals:
    log_share = torch.tensor([share, 1.0 - share], dtype=torch.float64).log()
    first, second = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double(), torch.tensor([[0.95, 0.05], [0.6, 0.4]]).double()
    return Rivals(log_share, first, second, 100.0, 1000, 1000)


def log_of(n: int, w: int, a: int, rounds: int, seed: int) -> Facts:
    """``a`` answers and skips of distinct (item, worker) pairs; rounds rise with the log, from imported answers on."""
    rng = np.random.default_rng(seed)
    pair = torch.from_numpy(rng.choice(n * w, min(a, n * w), replace=False))
    label, round_ = rng.integers(-1, 2, size=len(pair)), np.sort(rng.integers(-1, rounds, size=len(pair)))
    names = tuple(f"w{j}" for j in range(w))
    return Facts(names, pair // w, pair % w, torch.from_numpy(label), NONE, NONE, round=torch.from_numpy(round_))


@given(
    n=st.integers(1, 12), w=st.integers(1, 4), a=st.integers(0, 40), seed=st.integers(0, 10**6), exponent=st.floats(0.1, 1.0)
)
@settings(max_examples=40, deadline=None)
def test_gain_is_by_first_answers_to_items(n: int, w: int, a: int, seed: int, exponent: float) -> None:
    facts, two = log_of(n, w, a, 3, seed), rivals()
    p = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    p /= p.sum(1, keepdim=True)
    log = list(zip(facts.item.tolist(), facts.label.tolist(), facts.round.tolist(), strict=True))
    for round_ in range(3):
        want = 0.0
        for item, label, when in log:
            known = any(i == item and z >= 0 and r < round_ for i, z, r in log)
            if when != round_ or label < 0 or known:
                continue
            for share, confusion, sign in ((two.log_share.exp(), two.with_shares, 1), (torch.ones(2), two.without, -1)):
                q = [(float(p[item, y]) * float(share[y])) ** exponent for y in range(2)]
                want += sign * math.log(sum(q[y] / sum(q) * float(confusion[y, label]) for y in range(2)))
        assert gain_of_shares(facts, round_, two, p.log().__getitem__, exponent) == pytest.approx(want, abs=1e-9)


def test_shares_that_foretell_worse_are_vetoed_and_may_come_back() -> None:
    recalibration = Recalibration()
    assert recalibration.uses_shares
    recalibration.compare(0, -MOST_LOSS + 0.1)
    assert recalibration.uses_shares
    recalibration.compare(1, -MOST_LOSS)
    assert not recalibration.uses_shares
    resumed = Recalibration()
    file = io.BytesIO()
    torch.save(recalibration.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for one in (recalibration, resumed):
        assert not one.uses_shares
        one.compare(1, -MOST_LOSS)  # a round that is concluded again counts once
        one.compare(2, 0.0)
        assert one.uses_shares == (FORGET * (-MOST_LOSS) + FORGET**2 * (0.1 - MOST_LOSS) > -MOST_LOSS)
        one.compare(3, 4.0)
        assert one.uses_shares
        one.compare(3, -4.0)
        assert not one.uses_shares


def test_a_state_of_before_knows_no_gain() -> None:
    state = Recalibration().state_dict()
    del state["share_gain"]
    resumed = Recalibration()
    resumed.load_state_dict(state)
    assert resumed.uses_shares


@pytest.mark.parametrize("temper", [False, True])
def test_belief_goes_by_what_a_rounds_answers_say(temper: bool) -> None:
    """Shares by which one class is common do not outlive answers that name the other alone."""
    _, answers = answered([0.97, 0.03], 300, 0.9, 0)
    log_prior = torch.full((600, 2), 0.5, dtype=torch.float64).log()
    crowd = replace(tiered(answers, log_prior, "used"), rivals=rivals(0.95))
    posterior = log_prior.exp()
    inference = Inference(posterior, decide(posterior), torch.zeros(600, dtype=torch.bool), crowd)
    names = tuple(f"w{j}" for j in range(W))
    for label, used in ((0, True), (1, False)):
        belief, new = Belief(CrowdSettings(temper=temper), TrustSettings()), torch.arange(300, 360)
        item, worker = torch.cat([answers.item, new]), torch.cat([answers.worker, new % W])
        labels = torch.cat([answers.label, torch.full((60,), label)])
        round_ = (item >= 300).long()
        facts = Facts(names, item, worker, labels, NONE, NONE, round=round_)
        belief.recalibrate(1, facts, inference, log_prior.__getitem__)
        assert belief.uses_shares == used
        resumed = Belief(CrowdSettings(temper=temper), TrustSettings())
        resumed.load_state_dict(belief.state_dict())
        assert resumed.uses_shares == used
