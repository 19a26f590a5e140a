"""Experts: near-perfect, still estimated, not tempered; what their answer gains, and how a run closes with them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import Bank, answers, call, fit, rounds
from hypothesis import given, settings
from hypothesis import strategies as st
from test_round import N, basis, make_facts
from torch import Tensor

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.callbacks.belief import Belief
from lightning_annot.crowd.em import EMResult, run_em, write_posterior
from lightning_annot.crowd.priors import DENSE_PRIORS, diagonal_prior, homogeneous_prior, with_experts
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.crowd.tiers import run_tiered_em
from lightning_annot.ledger import Ledger
from lightning_annot.report.unfinished import expert_gain
from lightning_annot.round.choice import Panel, choose, open_to_questions, round_generator
from lightning_annot.round.facts import Basis, Facts
from lightning_annot.round.inference import infer
from lightning_annot.round.settings import CrowdSettings, SamplingSettings, TrustSettings
from lightning_annot.sampling.items import expected_error_reduction
from lightning_annot.types import Annotations, AnnotError, Answer, Question, Task
from lightning_annot.workers.recorded import RecordedWorkers

TEMPERED = Tempering((1.2, 1.1, 0.8), (1.0, 0.8, 0.6))


def test_the_experts_prior_and_no_other() -> None:
    base = homogeneous_prior(4, 0.7, 10.0)
    assert with_experts(base, torch.zeros(3, dtype=torch.bool)).counts is base
    prior = with_experts(base, torch.tensor([False, True, False])).each(3)
    assert torch.equal(prior[0], base)
    assert torch.equal(prior[2], base)
    torch.testing.assert_close(prior[1], diagonal_prior(torch.full((4,), 0.98), 20.0))
    torch.testing.assert_close(with_experts(torch.stack([base, 2 * base]), torch.tensor([False, True])).counts[0], base)


@pytest.mark.parametrize("tempering", [Tempering(), TEMPERED])
def test_a_prior_by_group_is_that_of_a_table_of_all_workers(tempering: Tempering) -> None:
    answers_, log_prior, _ = crowd(5, 0.95)
    prior = with_experts(homogeneous_prior(4), EVE)
    assert prior.counts.shape == (2, 4, 4)
    by_group, by_table = (
        run_em(answers_, log_prior, p, 6, tempering=tempering, expert=EVE, max_iterations=8)
        for p in (prior, prior.each(6).clone())
    )
    assert by_group.objective_history == pytest.approx(by_table.objective_history, rel=1e-6)
    worker, label = torch.tensor([0, 5, 5, 9]), torch.tensor([1, 2, 0, 3])  # one whom the fit has not seen
    for ours, table in (
        (by_group.counts, by_table.counts), (by_group.row_totals(), by_table.row_totals()),
        (by_group.confusions(), by_table.confusions()), (by_group.diagonal(), by_table.diagonal()),
        (by_group.pooled_confusion(), by_table.pooled_confusion()),
        (by_group.pooled_confusion(EVE), by_table.pooled_confusion(EVE)),
        (by_group.log_answer(worker, label), by_table.log_answer(worker, label)),
    ):  # fmt: skip
        torch.testing.assert_close(ours, table)
    with pytest.raises(AnnotError, match="pseudo_counts of shape"):
        run_em(answers_, log_prior, prior, 7)


def test_an_expert_among_many_workers_and_classes_needs_no_table_of_all() -> None:
    """500 workers and 1,000 classes, of which a table would have 5 x 10^8 entries."""
    w, k, n = 500, 1000, 2000
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(k, (n,), generator=generator)
    answers_ = Annotations(torch.arange(n), torch.arange(n) % w, truth)
    expert = torch.arange(w) == 7
    found = run_tiered_em(
        answers_, torch.full((n, k), 1.0 / k).log(), 10 * homogeneous_prior(k), w, expert=expert, max_iterations=2
    )
    assert w * k * k > DENSE_PRIORS
    assert found.prior.counts.shape == (2, k, k)
    assert float(found.diagonal()[7].mean()) == pytest.approx(0.98, abs=0.01)
    assert float(found.diagonal()[8].mean()) < 0.9


def crowd(seed: int, accuracy: float, n: int = 400, k: int = 4, others: float = 0.6) -> tuple[Annotations, Tensor, Tensor]:
    """Three answers an item by five people who are right with probability ``others``, one by worker 5 with ``accuracy``."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(k, size=n)

    def said(right: float) -> np.ndarray:
        return np.where(rng.random(n) < right, truth, (truth + rng.integers(1, k, n)) % k)

    item = np.tile(np.arange(n), 4)
    worker = np.concatenate([(np.arange(n) + s) % 5 for s in range(3)] + [np.full(n, 5)])
    label = np.concatenate([said(others), said(others), said(others), said(accuracy)])
    prior = torch.full((n, k), 1.0 / k).log()
    return Annotations(*(torch.from_numpy(a) for a in (item, worker, label))), prior, torch.from_numpy(truth)


EVE = torch.arange(6) == 5


def fitted(answers_: Annotations, log_prior: Tensor, tempering: Tempering = TEMPERED) -> EMResult:
    prior = with_experts(homogeneous_prior(4), EVE)
    return run_em(answers_, log_prior, prior, 6, tempering=tempering, expert=EVE, max_iterations=30)


@pytest.mark.parametrize("chunk_elements", [64, 1 << 21])
def test_tempered_posterior_and_counts_equal_loops(chunk_elements: int) -> None:
    answers_, log_prior, _ = crowd(0, 0.95, n=25)
    log_prior = (log_prior + torch.randn(log_prior.shape, generator=torch.Generator().manual_seed(0))).log_softmax(1)
    prior = with_experts(homogeneous_prior(4), EVE)
    options: dict[str, Any] = {"tempering": TEMPERED, "expert": EVE, "chunk_elements": chunk_elements, "tolerance": -1.0}
    before, after = (run_em(answers_, log_prior, prior, 6, max_iterations=n, **options) for n in (3, 4))
    found, counts = write_posterior(before, log_prior, 25, tempering=TEMPERED), torch.zeros(6, 4, 4)
    log_w = before.confusions().log()
    for i in range(25):
        rows = (answers_.item == i).nonzero()[:, 0].tolist()
        a, b = TEMPERED.model[min(2, len(rows))], TEMPERED.people[min(2, len(rows))]
        joint = a * log_prior[i]
        for r in rows:
            j, z = int(answers_.worker[r]), int(answers_.label[r])
            joint = joint + (1.0 if j == 5 else b) * log_w[j, :, z]
        torch.testing.assert_close(found[i], joint.softmax(0), rtol=1e-4, atol=1e-6)
        for r in rows:
            j, z = int(answers_.worker[r]), int(answers_.label[r])
            counts[j, :, z] += joint.softmax(0) * (1 / b if j == 5 else 1.0)
    torch.testing.assert_close(after.all_counts(), prior.each(6) + counts, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), accuracy=st.floats(0.2, 1.0))
def test_the_objective_never_falls(seed: int, accuracy: float) -> None:
    history = fitted(*crowd(seed, accuracy, n=40)[:2]).objective_history
    assert all(later >= earlier - 1e-3 for earlier, later in pairwise(history))


def test_without_exponents_an_expert_is_a_worker_with_a_prior() -> None:
    answers_, log_prior, _ = crowd(1, 0.9)
    prior = with_experts(homogeneous_prior(4), EVE)
    plain = run_em(answers_, log_prior, prior, 6)
    assert torch.equal(run_em(answers_, log_prior, prior, 6, expert=EVE).counts, plain.counts)


@pytest.mark.parametrize("accuracy", [0.98, 0.7])
def test_an_experts_accuracy_is_estimated(accuracy: float) -> None:
    """Where others say enough of the items, one who is no expert is found out, if not wholly."""
    answers_, log_prior, truth = crowd(2, accuracy, n=2000, others=0.85)
    result = run_tiered_em(answers_, log_prior, 10 * homogeneous_prior(4), 6, expert=EVE, tempering=TEMPERED)
    diagonal = result.diagonal().mean(1)
    assert float(diagonal[5]) == pytest.approx(accuracy, abs=0.1)
    assert diagonal[:5].tolist() == pytest.approx([0.85] * 5, abs=0.1)
    right = write_posterior(result, log_prior, 2000, tempering=TEMPERED).argmax(1) == truth
    assert float(right.double().mean()) > accuracy - 0.02


def test_the_crowd_is_judged_without_the_expert() -> None:
    """Nobody's prior comes from the expert: a worker without answers is taken for one of the crowd."""
    answers_, log_prior, _ = crowd(3, 0.98, n=2000)
    answers_ = Annotations(answers_.item, torch.where(answers_.worker == 5, 6, answers_.worker), answers_.label)
    expert = torch.arange(7) == 6
    alike = run_tiered_em(answers_, log_prior, 10 * homogeneous_prior(4), 7)
    apart = run_tiered_em(answers_, log_prior, 10 * homogeneous_prior(4), 7, expert=expert)
    assert float(apart.diagonal()[5].mean()) == pytest.approx(0.6, abs=0.05)
    assert float(alike.diagonal()[5].mean()) > 0.65
    only = answers_.worker == 6
    alone = Annotations(answers_.item[only], answers_.worker[only], answers_.label[only])
    assert float(run_tiered_em(alone, log_prior, homogeneous_prior(4), 7, expert=expert).diagonal()[6].mean()) > 0.97


@given(n=st.integers(1, 6), k=st.integers(2, 5), seed=st.integers(0, 10**6), accuracy=st.floats(0.5, 0.999))
@settings(max_examples=80, deadline=None)
def test_gain_is_that_of_the_experts_confusion(n: int, k: int, seed: int, accuracy: float) -> None:
    p = torch.rand(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).pow(8) + 1e-9
    p = (p / p.sum(1, keepdim=True)).sort(1, descending=True).values
    confusion = torch.full((k, k), (1 - accuracy) / (k - 1), dtype=torch.float64).fill_diagonal_(accuracy)
    np.testing.assert_allclose(expert_gain(p.numpy(), k, accuracy), expected_error_reduction(p, confusion), atol=1e-12)


@given(k=st.integers(6, 30), seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_classes_that_are_not_kept_share_the_rest(k: int, seed: int) -> None:
    top = np.sort(np.random.default_rng(seed).dirichlet(np.full(6, 0.5)))[::-1][:5]
    rest = (1 - top.sum()) / (k - 5)
    whole = torch.from_numpy(np.append(top, np.full(k - 5, rest)))[None]
    confusion = torch.full((k, k), 0.02 / (k - 1), dtype=torch.float64).fill_diagonal_(0.98)
    slow = expected_error_reduction(whole, confusion, top=k)
    np.testing.assert_allclose(expert_gain(top[None], k), (slow + whole[:, 0] - whole.amax(1)).clamp(min=0), atol=1e-12)
    sure, unsure = expert_gain(np.array([[1.0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0]]), k)
    assert sure == pytest.approx(0.0, abs=1e-12)
    assert unsure == pytest.approx(0.98 - 0.5, abs=0.02)


def test_what_an_answer_is_worth_does_not_grow_with_an_experts_answers() -> None:
    """Five people are right in six of ten cases. An expert labels 300 other items: the five stay what they were."""
    answers_, log_prior, _ = crowd(1, 0.6)
    ours, k = answers_.worker != 5, 4
    people = Annotations(answers_.item[ours], answers_.worker[ours], answers_.label[ours])
    more = torch.randn(300, k, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    log_prior = torch.cat([log_prior, more])
    about, nothing = torch.arange(400, 700), torch.empty(0, dtype=torch.int64)
    item = torch.cat([people.item, about])
    worker = torch.cat([people.worker, torch.full((300,), 5)])
    label = torch.cat([people.label, more.argmax(1)])
    names = tuple("abcdef")
    crowd_settings, none = CrowdSettings(prior="homogeneous", max_iterations=5), torch.full((700,), -1)
    with_, without = (
        Basis(replace(Facts(names, i, w, z, nothing, nothing), experts=frozenset({names[5]})),
              log_prior.__getitem__, none, 700, k)
        for i, w, z in ((item, worker, label), (people.item, people.worker, people.label))
    )  # fmt: skip
    found, before = (infer(b, crowd_settings, 1e-3) for b in (with_, without))
    apart = with_.facts.is_expert()
    of_people, known = found.crowd.pooled_confusion(apart), before.crowd.pooled_confusion(apart)
    torch.testing.assert_close(of_people, known)
    among = torch.arange(400)
    gains = [expected_error_reduction(before.posterior, c, among).sum() for c in (of_people, found.crowd.pooled_confusion())]
    assert gains[0] < 0.9 * gains[1]  # with the expert among them, an answer seemed worth more than it is
    chosen = [choose(b, i, among, 50, SamplingSettings(), round_generator(0, 1), Panel(0)) for b, i in
              ((with_, replace(found, posterior=before.posterior)), (without, before))]  # fmt: skip
    assert torch.equal(chosen[0][0], chosen[1][0])
    everybody = torch.ones(6, dtype=torch.bool)
    for nobody_apart in (None, torch.zeros(6, dtype=torch.bool), everybody):
        assert torch.equal(found.crowd.pooled_confusion(nobody_apart), found.crowd.pooled_confusion())


def test_items_that_an_expert_saw_are_not_asked_again() -> None:
    facts = make_facts()
    found = infer(basis(facts), CrowdSettings(temper=False), 1e-9)
    everything = open_to_questions(basis(facts), found, 1 << 20, None).tolist()
    name = facts.workers[int(facts.worker[0])]
    seen = {int(i) for i, j in zip(facts.item, facts.worker, strict=True) if facts.workers[int(j)] == name}
    known = replace(facts, experts=frozenset([name]))
    assert set(open_to_questions(basis(known), found, 1 << 20, None).tolist()) == set(everything) - seen
    assert 0 < len(seen) < N


def test_an_expert_is_neither_barred_nor_paused() -> None:
    """Somebody who contradicts everybody is barred, or paused, unless an expert."""
    answers_, log_prior, truth = crowd(4, 0.9, n=300)
    wrong = torch.where(answers_.worker == 5, (truth[answers_.item] + 1) % 4, truth[answers_.item])
    nothing = torch.empty(0, dtype=torch.int64)
    facts = Facts(tuple("abcdef"), answers_.item, answers_.worker, wrong, nothing, nothing, torch.zeros_like(wrong))
    for experts, found_out in ((frozenset[str](), {"f"}), (frozenset("f"), set())):
        some = replace(facts, experts=experts)
        found = infer(Basis(some, log_prior.__getitem__, torch.full((300,), -1), 300, 4), CrowdSettings(), 0.1)
        belief = Belief(CrowdSettings(), TrustSettings())
        belief.judge(some, found)
        assert set(belief.barred) == found_out
        belief = Belief(CrowdSettings(exclude=False), TrustSettings(least_accuracy=0.6))
        belief.judge(some, found)
        assert set(belief.paused) == found_out


def test_the_log_knows_who_is_an_expert(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("task,worker,label\n1,a,x\n")
    with AnnotationLog(tmp_path / "a.db") as log:
        log.record([(Question("1", w, round=-1), Answer(0, w, "x", source=s)) for w, s in (("a", "import"), ("e", "expert"))])
        task = Task(["1", "2"], ["x", "y"], 0, str(tmp_path))
        facts = Ledger(log, task, RecordedWorkers(str(tmp_path / "a.csv"))).facts(0)
    assert facts.experts == {"e"}
    assert facts.is_expert().tolist() == [name == "e" for name in facts.workers]
    assert facts.expert_items().tolist() == [0]


@pytest.fixture
def left(bank: Bank) -> dict[str, Any]:
    """Settings of a run that leaves much unfinished."""
    return bank.settings() | {
        "trainer.max_epochs": 6,
        "annotation.workers": "lightning_annot.workers.simulated.UniformNoiseWorkers",
        "annotation.workers.n_workers": 6,
        "annotation.workers.accuracy": 0.5,
        "annotation.sampling.per_round": 40,
        "annotation.sampling.cap": 1,
        "annotation.threshold": 0.05,
    }


def hand_over(run: Path, bank: Bank, file: Path, share: float = 1.0, wrong: bool = False) -> pd.DataFrame:
    """Let an expert, who knows the truth, fill in the first ``share`` of what is left, and take it in."""
    assert call("unfinished", {}, str(run), str(file)).status == 0
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    truth = pd.read_csv(bank.labels, dtype=str).set_index("task")["label"]
    n = math.ceil(share * len(table))
    table["expert_label"] = truth[table["task"]].to_numpy()
    if wrong:
        table["expert_label"] = table["expert_label"].map({"ant": "bee", "bee": "cow", "cow": "dog", "dog": "ant"})
    table.loc[table.index[n:], "expert_label"] = ""
    table.to_csv(file, index=False)
    for new in (n, 0):
        result = call("import", {}, str(run), str(file), "--expert", "eve")
        assert f"{new} new answers of {n}" in result.out, result.err
    return table


def stopped(run: Path) -> str:
    reason: str = json.loads((run / "summary.json").read_text())["stop_reason"]
    return reason


def test_a_run_closes_when_the_experts_answers_are_in(left: dict[str, Any], bank: Bank, tmp_path: Path) -> None:
    left |= {"annotation.threshold": 0.08}  # what is finished does not change with what the expert says of others
    run = fit(left, tmp_path / "run")
    before, n = rounds(run), len(answers(run))
    table = hand_over(run, bank, tmp_path / "left.csv")
    assert len(table) > 20
    fit(left, run)
    assert stopped(run) == "every item is finished"
    labels = pd.read_csv(run / "labels.csv", dtype=str).set_index("task")
    assert set(labels["status"]) == {"finished", "prototype"}
    assert (labels["label"][table["task"]].to_numpy() == table["expert_label"].to_numpy()).all()
    after = rounds(run)
    assert len(after) == len(before)
    assert after["annotations"].iloc[-1] == n + len(table)
    assert after["finished_fraction"].iloc[-1] == 1.0
    pd.testing.assert_frame_equal(after.iloc[:-1], before.iloc[:-1])
    workers = pd.read_csv(run / "workers.csv").set_index("worker")
    assert workers.loc["eve", "accuracy_mean"] > 0.96
    assert len(answers(run)) == n + len(table)
    assert call("unfinished", {}, str(run), str(tmp_path / "none.csv")).out.endswith(": 0 items\n")
    assert answers(run)["source"].iloc[-1] == "expert"


def test_answers_that_remain_in_doubt_close_it_too(left: dict[str, Any], bank: Bank, tmp_path: Path) -> None:
    run = fit(left, tmp_path / "run", annotation__threshold=1e-4)
    table = hand_over(run, bank, tmp_path / "left.csv", wrong=True)
    fit(left, run, annotation__threshold=1e-4)
    assert stopped(run).startswith("experts have seen all that is left: ")
    assert call("unfinished", {}, str(run), str(tmp_path / "again.csv")).status == 0
    again = pd.read_csv(tmp_path / "again.csv", dtype=str, keep_default_na=False)
    assert 0 < len(again) <= len(table)
    assert set(again["reason"]) == {"an expert has seen it, and doubt remains"}
    assert again["answers"].str.contains("eve: ").all()


def test_experts_may_be_named_by_the_settings(left: dict[str, Any], tmp_path: Path) -> None:
    run = fit(left, tmp_path / "run", annotation__crowd__experts="[w001]", annotation__threshold=1e-6)
    workers = pd.read_csv(run / "workers.csv").set_index("worker")
    others = workers.drop(index="w001")["accuracy_mean"]
    assert workers.loc["w001", "accuracy_mean"] > others.max() + 0.1


def test_an_expert_needs_a_run(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("task,label\n1,cat\n")
    result = call("import", {}, str(tmp_path / "run"), str(tmp_path / "a.csv"), "--expert", "eve")
    assert result.status == 2
    assert """--annotation.crowd.experts '["eve"]'""" in result.err
    assert not (tmp_path / "run").exists()
