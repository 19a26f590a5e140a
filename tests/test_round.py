from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from lightning_annot.callbacks.belief import Belief
from lightning_annot.crowd.em import run_em, write_posterior
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.crowd.tiers import run_tiered_em
from lightning_annot.round.choice import Panel, choose, open_to_questions, refilled, round_generator
from lightning_annot.round.facts import Basis, Facts
from lightning_annot.round.inference import Inference, infer
from lightning_annot.round.settings import CrowdSettings, SamplingSettings, TrustSettings
from lightning_annot.types import AnnotError

N, K, W = 60, 3, 5
TEMPERED = Tempering((1.2, 1.1, 0.8), (1.0, 0.8, 0.6))


def make_facts(n_answers: int = 80, skips: bool = False, seed: int = 0) -> Facts:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randperm(N * W, generator=generator)[: n_answers + 10]
    label = torch.randint(0, K, (n_answers,), generator=generator)
    if skips:
        label[::4] = -1
    item, worker = pair // W, pair % W
    names = tuple(f"w{j}" for j in range(W))
    return Facts(names, item[:n_answers], worker[:n_answers], label, item[n_answers:], worker[n_answers:])


def log_prior(rows: int = N, seed: int = 1) -> Tensor:
    return torch.randn(rows, K, generator=torch.Generator().manual_seed(seed)).log_softmax(1)


def some_prototypes() -> Tensor:
    prototype = torch.full((N,), -1)
    prototype[[3, 10, 20]] = torch.tensor([0, 1, 2])
    return prototype


NO_PROTOTYPES = torch.full((N,), -1)


def basis(facts: Facts, p: Tensor | None = None, prototype: Tensor | None = None) -> Basis:
    """Facts with the learner's word ``p`` (rows, K) and some prototypes, unless others are given."""
    p = log_prior() if p is None else p
    return Basis(facts, p.__getitem__, some_prototypes() if prototype is None else prototype, len(p), K)


@pytest.mark.parametrize("prior", ["homogeneous", "tiered"])
def test_infer_is_the_em_with_its_settings(prior: str) -> None:
    facts, p = make_facts(), log_prior()
    settings = CrowdSettings(prior=prior, accuracy=0.6, strength=4.0, m_step="hard", max_iterations=7)  # type: ignore[arg-type]
    found = infer(basis(facts, p, NO_PROTOTYPES), settings, threshold=0.2)
    base = homogeneous_prior(K, 0.6, 4.0)
    if prior == "tiered":
        em = run_tiered_em(facts.annotations(), p, base, W, strength=4.0, m_step="hard", max_iterations=7)
    else:
        em = run_em(facts.annotations(), p, base, W, m_step="hard", max_iterations=7)
    assert torch.equal(found.crowd.counts, em.counts)
    assert torch.equal(found.posterior, write_posterior(em, p, N))
    assert torch.equal(found.decision.label, found.posterior.argmax(1))
    assert torch.equal(found.finished, 1.0 - found.posterior.amax(1) < 0.2)
    assert 0 < int(found.finished.sum()) < N


def test_prototypes_are_certain_and_their_answers_tell_of_the_workers() -> None:
    """Worker 0 is wrong on every prototype, worker 1 right: their word about item 40 counts accordingly."""
    prototype = torch.full((N,), -1)
    prototype[:30] = torch.arange(30) % 2
    about = torch.arange(30)
    item = torch.cat([about, about, torch.tensor([40, 41])])
    worker = torch.tensor([0] * 30 + [1] * 30 + [0, 1])
    label = torch.cat([1 - prototype[:30], prototype[:30], torch.tensor([0, 0])])
    none = torch.empty(0, dtype=torch.int64)
    facts = Facts(("bad", "good"), item, worker, label, none, none)
    flat = torch.full((N, 2), 0.5).log()
    found = infer(Basis(facts, flat.__getitem__, prototype, N, 2), CrowdSettings(prior="homogeneous"), threshold=0.1)
    assert torch.equal(found.posterior[:30], torch.eye(2)[prototype[:30]])
    assert bool(found.finished[:30].all())
    assert float(found.posterior[40, 1]) > 0.7
    assert float(found.posterior[41, 0]) > 0.85
    assert flat.unique().numel() == 1  # the learner's table was not written to


def test_prototypes_without_answers_change_nothing_else() -> None:
    facts, p, prototype = make_facts(), log_prior(), some_prototypes()
    untouched = ~torch.isin(facts.item, prototype.ge(0).nonzero()[:, 0])
    facts = replace(facts, item=facts.item[untouched], worker=facts.worker[untouched], label=facts.label[untouched])
    with_, without = (infer(basis(facts, p, t), CrowdSettings(), 0.1) for t in (prototype, NO_PROTOTYPES))
    rest = prototype < 0
    assert torch.equal(with_.posterior[rest], without.posterior[rest])
    assert torch.equal(with_.posterior[~rest], torch.eye(K))


def test_extra_rows_keep_the_learners_word() -> None:
    p = log_prior(N + 15)
    found = infer(basis(make_facts(), p), CrowdSettings(), 0.3)
    assert found.posterior.shape == (N + 15, K)
    torch.testing.assert_close(found.posterior[N:], p[N:].exp())


@pytest.mark.parametrize("prior", ["homogeneous", "tiered"])
def test_first_round_has_no_answers(prior: str) -> None:
    none = torch.empty(0, dtype=torch.int64)
    facts, p = Facts((), none, none, none, none, none), log_prior()
    found = infer(basis(facts, p), CrowdSettings(prior=prior), 0.1)  # type: ignore[arg-type]
    rest = some_prototypes() < 0
    torch.testing.assert_close(found.posterior[rest], p[rest].exp())
    assert found.crowd.converged


def test_skips_count_as_asked_but_not_as_answers() -> None:
    facts = make_facts(skips=True)
    assert len(facts.annotations()) == 60
    assert bool((facts.annotations().label >= 0).all())
    asked = facts.asked(N)
    assert int(asked.sum()) == 80 + 10
    for i in range(N):
        assert int(asked[i]) == int((facts.item == i).sum() + (facts.open_item == i).sum())
    said = replace(facts, item=facts.item[facts.label >= 0], worker=facts.worker[facts.label >= 0])
    said = replace(said, label=facts.label[facts.label >= 0])
    a, b = (infer(basis(f, prototype=NO_PROTOTYPES), CrowdSettings(), 0.1) for f in (facts, said))
    assert torch.equal(a.posterior, b.posterior)


def test_cost_matrix_decides() -> None:
    cost = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [50.0, 50.0, 0.0]])
    found = infer(basis(make_facts(), prototype=NO_PROTOTYPES), CrowdSettings(), 0.4, cost)
    expected = found.posterior @ cost
    torch.testing.assert_close(found.decision.risk, expected.amin(1))
    assert torch.equal(found.decision.label, expected.argmin(1))
    assert torch.equal(found.finished, found.decision.risk < 0.4)


def inference(facts: Facts, threshold: float = 0.02) -> Inference:
    return infer(basis(facts), CrowdSettings(), threshold)


def test_open_to_questions() -> None:
    facts = make_facts(skips=True)
    found = inference(facts, threshold=0.3)
    capacity = torch.randint(0, 4, (N,), generator=torch.Generator().manual_seed(2))
    for limit in (None, capacity):
        got = open_to_questions(basis(facts), found, 2, limit).tolist()
        asked, prototype = facts.asked(N).tolist(), some_prototypes().tolist()
        most = [2] * N if limit is None else [min(2, c) for c in limit.tolist()]
        waiting = set(facts.open_item.tolist())
        free = [i for i in range(N) if i not in waiting and not found.finished[i] and prototype[i] < 0]
        assert got == [i for i in free if asked[i] < most[i]]
        assert got


def test_answers_that_are_not_believed_take_their_place_in_the_capacity() -> None:
    """The cap is of answers that count; an item has no more answers than were recorded, whoever gave them."""
    facts, barred = make_facts(160), torch.tensor([True, False, False, True, False])
    facts = replace(facts, round=torch.zeros_like(facts.item))
    found = inference(facts, threshold=0.001)
    capacity = torch.randint(1, 6, (N,), generator=torch.Generator().manual_seed(2))
    got = open_to_questions(basis(facts), found, 2, capacity, barred).tolist()
    n_all = torch.bincount(torch.cat([facts.item, facts.open_item]), minlength=N).tolist()
    n_believed = torch.bincount(torch.cat([facts.item[~barred[facts.worker]], facts.open_item]), minlength=N).tolist()
    prototype, waiting = some_prototypes().tolist(), set(facts.open_item.tolist())
    free = [i for i in range(N) if i not in waiting and not found.finished[i] and prototype[i] < 0]
    assert got == [i for i in free if n_all[i] < capacity[i] and n_believed[i] < 2]
    assert any(n_believed[i] < 2 <= n_all[i] for i in got)
    assert any(n_believed[i] < min(2, capacity[i]) and n_all[i] >= capacity[i] for i in free)


@pytest.mark.parametrize("items", ["expected_error_reduction", "uniform", "activelab"])
@pytest.mark.parametrize("workers", ["random", "least_loaded"])
@pytest.mark.parametrize("n", [0, 7, 1000])
def test_choose(items: str, workers: str, n: int) -> None:
    if items == "activelab":
        pytest.importorskip("cleanlab")
    facts = make_facts(skips=True)
    found, settings = inference(facts), SamplingSettings(items=items, workers=workers)  # type: ignore[arg-type]
    among = open_to_questions(basis(facts), found, 3, None)
    item, worker = choose(basis(facts), found, among, n, settings, round_generator(0, 4))
    again = choose(basis(facts), found, among, n, settings, round_generator(0, 4))
    assert torch.equal(item, again[0])
    assert torch.equal(worker, again[1])
    assert len(item) == min(n, len(among))
    assert len(set(item.tolist())) == len(item)
    assert set(item.tolist()) <= set(among.tolist())
    asked = set(zip(facts.item.tolist(), facts.worker.tolist(), strict=True))
    asked |= set(zip(facts.open_item.tolist(), facts.open_worker.tolist(), strict=True))
    assert not asked & set(zip(item.tolist(), worker.tolist(), strict=True))


def test_choose_keeps_to_the_possible_pairs() -> None:
    facts = make_facts()
    found, settings = inference(facts), SamplingSettings()
    among = open_to_questions(basis(facts), found, 3, None)
    possible = (torch.arange(0, N, 2), torch.arange(0, N, 2) % W)
    item, worker = choose(basis(facts), found, among, N, settings, round_generator(0, 0), Panel(possible=possible))
    assert len(item) > 0
    assert bool((item % 2 == 0).all())
    assert torch.equal(worker, item % W)


def test_questions_to_anyone() -> None:
    facts = make_facts()
    found = inference(facts)
    among = open_to_questions(basis(facts), found, 3, None)
    item, worker = choose(basis(facts), found, among, 9, SamplingSettings(), round_generator(0, 0), Panel(0))
    assert worker.tolist() == [-1] * 9
    assert set(item.tolist()) <= set(among.tolist())


def test_uniform_is_uniform_and_the_gain_prefers_doubt() -> None:
    facts = make_facts(0)
    found = inference(facts)
    among = open_to_questions(basis(facts), found, 3, None)
    hits = {}
    for rule in ("uniform", "expected_error_reduction"):
        settings = SamplingSettings(items=rule)  # type: ignore[arg-type]
        draws = [
            choose(basis(facts), found, among, 1, settings, round_generator(0, r), Panel(0))[0] for r in range(20 * len(among))
        ]
        hits[rule] = torch.bincount(torch.cat(draws), minlength=N)[among]
    assert chisquare(hits["uniform"].numpy()).pvalue > 1e-3
    risk = found.decision.risk[among]
    doubtful = risk > risk.median()
    chosen = hits["expected_error_reduction"].double()
    assert float(chosen[doubtful].sum() / chosen.sum()) > 0.7


def test_round_generator_is_a_function_of_seed_and_round() -> None:
    states = {(s, r): int(round_generator(s, r).initial_seed()) for s in range(20) for r in range(20)}
    assert len(set(states.values())) == 400
    assert int(round_generator(3, 5).initial_seed()) == states[3, 5]


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (CrowdSettings, {"prior": "flat"}, "'flat' given; allowed are tiered, homogeneous"),
        (SamplingSettings, {"per_round": 0}, "per_round 0"),
        (SamplingSettings, {"cap": 0}, "cap 0"),
        (SamplingSettings, {"items": "best"}, "'best' given"),
        (SamplingSettings, {"workers": "best"}, "'best' given"),
    ],
)
def test_settings_are_checked(settings: type, change: dict[str, object], message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        settings(**change)


def test_half_precision_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = make_facts()
    whole = inference(facts)
    monkeypatch.setattr("lightning_annot.round.inference.HALF_ABOVE", 0)
    half = inference(facts)
    assert half.posterior.dtype == torch.float16
    assert half.decision.risk.dtype == torch.float32
    torch.testing.assert_close(half.posterior.float(), whole.posterior.float(), atol=1e-3, rtol=0)
    among = open_to_questions(basis(facts), half, 3, None)
    items, _ = choose(basis(facts), half, among, 5, SamplingSettings(), round_generator(0, 1))
    assert set(items.tolist()) <= set(among.tolist())


def test_refill_asks_on_about_the_riskiest_of_the_finished() -> None:
    facts, prototype = make_facts(30), some_prototypes()
    found = infer(basis(facts), CrowdSettings(), threshold=0.3)
    among = open_to_questions(basis(facts), found, 3, None)
    settings = SamplingSettings(per_round=len(among) + 5, refill=True)
    more = refilled(basis(facts), found, among, settings)
    assert torch.equal(more[: len(among)], among)
    added, asked = more[len(among) :], facts.asked(N)
    assert len(added) == 5
    spare = [
        i for i in range(N) if found.finished[i] and prototype[i] < 0 and asked[i] < 3 and i not in facts.open_item.tolist()
    ]
    assert set(added.tolist()) <= set(spare)
    left = sorted(set(spare) - set(added.tolist()))
    assert float(found.decision.risk[added].min()) >= float(found.decision.risk[left].max())
    assert torch.equal(refilled(basis(facts), found, among, replace(settings, refill=False)), among)
    assert torch.equal(refilled(basis(facts), found, among, replace(settings, per_round=1)), among)
    full = torch.full((N,), 3)
    full[added[:2]] = asked[added[:2]]  # nobody is left to ask about them
    again = refilled(basis(facts), found, among, settings, full)
    assert not set(again.tolist()) & set(added[:2].tolist())
    assert len(again) == len(more)
    assert not len(refilled(basis(facts), found, among[:0], settings))  # nothing unfinished: the run is over


@pytest.mark.parametrize(
    "crowd", [CrowdSettings(), CrowdSettings(exclude=False), CrowdSettings(prior="class_worker", estimate="gold")]
)
def test_a_look_at_the_answered_items_finds_what_all_items_say(crowd: CrowdSettings) -> None:
    """Same confusions, posterior and verdicts, to the last bit; with gold, skips, an expert, and somebody who is barred."""
    facts = make_facts(60, skips=True)
    gold = torch.tensor([3, 10, 20, 3, 10, 20])
    who, said = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 1, 2, -1])
    facts = replace(facts, gold_item=gold, gold_worker=who, gold_label=said, experts=frozenset({"w4"}))
    spam = replace(facts, label=torch.where(facts.worker == 2, 0, facts.label), round=torch.zeros_like(facts.item))
    whole = basis(spam, 3 * log_prior(N + 15))
    part = whole.of_answered()
    items = torch.cat([spam.item, gold]).unique()
    assert part.n_rows == len(items) < N
    assert torch.equal(items[part.facts.item], spam.item)
    believed = torch.tensor([True, True, False, True, True])
    trusted = [replace(b, facts=b.facts.without(~believed)) for b in (whole, part)]
    everything, answered = (infer(b, crowd, 0.1, tempering=TEMPERED) for b in trusted)
    assert torch.equal(answered.crowd.counts, everything.crowd.counts)
    assert torch.equal(answered.crowd.prior.counts, everything.crowd.prior.counts)
    assert torch.equal(answered.posterior, everything.posterior[items])
    found = []
    for b, inference in ((whole, everything), (part, answered)):
        belief = Belief(crowd, TrustSettings(least_accuracy=0.9, certainty=0.6))
        belief.load_state_dict(belief.state_dict() | {"barred": {"w2": "spammer"}})
        found.append(belief.verdicts(b.facts, inference))
    assert found[0] == found[1]
    assert found[0]
