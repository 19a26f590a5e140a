"""What mistakes cost decides what is asked: expected falls of the risk against plain loops, and against zero-one loss."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from cli_runs import Bank, fit, questions, rounds
from hypothesis import given, settings
from hypothesis import strategies as st
from test_round import N, W, basis, inference, log_prior, make_facts
from test_sampling import distributions, seeded
from torch import Tensor

from lightning_annot.crowd.risk import decide
from lightning_annot.round.choice import choose, open_to_questions, round_generator
from lightning_annot.round.settings import SamplingSettings
from lightning_annot.sampling.items import expected_error_reduction
from lightning_annot.sampling.matching import information
from lightning_annot.sampling.value import pair_error_reduction, worth_asking

Rows = list[list[float]]


def costs(k: int, seed: int) -> Tensor:
    """Some mistakes cost nothing, some ten."""
    cost = (10.0 * torch.rand(k, k, generator=seeded(seed), dtype=torch.float64) - 1.0).clamp(min=0.0)
    return cost.fill_diagonal_(0.0)


def slow_risk(weight: list[float], cost: Rows) -> float:
    k = range(len(weight))
    return min(sum(weight[y] * cost[y][d] for y in k) for d in k)


def slow_fall(p: list[float], says: Rows, cost: Rows) -> float:
    """Risk now less the risk after each answer; ``says`` has a row a class and a column an answer, or a series of answers."""
    after = [slow_risk([p[y] * says[y][a] for y in range(len(p))], cost) for a in range(len(says[0]))]
    return slow_risk(p, cost) - sum(after)


def slow_pairs(c: Rows) -> Rows:
    k = range(len(c))
    return [[c[y][z] * c[y][w] for z, w in product(k, k)] for y in k]


@given(n=st.integers(1, 6), k=st.integers(2, 6), w=st.integers(1, 3), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_falls_of_the_risk_equal_loops(n: int, k: int, w: int, seed: int) -> None:
    q, c, cost = distributions(n, k, seed=seed), distributions(w, k, k, seed=seed + 1), costs(k, seed + 2)
    rows, largest = torch.arange(n), cost.amax(1).tolist()
    one, two = expected_error_reduction(q, c[0], cost=cost), pair_error_reduction(q, c[0], rows, cost=cost)
    each = information(q, c, cost=cost)
    for i, p in enumerate(q.tolist()):
        assert float(one[i]) == pytest.approx(slow_fall(p, c[0].tolist(), cost.tolist()), abs=1e-12)
        assert float(two[i]) == pytest.approx(slow_fall(p, slow_pairs(c[0].tolist()), cost.tolist()), abs=1e-12)
        for j, says in enumerate(c.tolist()):
            right = sum(p[y] * says[y][y] * largest[y] for y in range(k))
            assert float(each[i, j]) == pytest.approx(slow_fall(p, says, cost.tolist()) + 1e-3 * right, abs=1e-12)
    assert bool((one <= decide(q, cost).risk + 1e-12).all())


@given(k=st.integers(2, 12), top=st.integers(1, 12), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_zero_one_costs_are_no_costs(k: int, top: int, seed: int) -> None:
    q, c, rows = distributions(5, k, seed=seed), distributions(3, k, k, seed=seed + 1), torch.arange(5)
    zero_one = 1.0 - torch.eye(k, dtype=torch.float64)
    for rule in (expected_error_reduction, pair_error_reduction):
        plain, with_cost = (rule(q, c[0], rows, top, cost) for cost in (None, zero_one))
        torch.testing.assert_close(plain, with_cost, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(information(q, c, k), information(q, c, k, zero_one), rtol=0.0, atol=1e-9)
    room, price = torch.tensor([1, 2, 3, 1, 2]), 10.0
    assert torch.equal(worth_asking(q, c[0], rows, room, price), worth_asking(q, c[0], rows, room, price, cost=zero_one))


def test_few_classes_and_decisions_hold_the_costly_ones() -> None:
    """Class 9 is improbable, and missing it costs a thousand; to decide for it at a guess costs 3."""
    q = torch.full((1, 10), 0.002)
    q[0, 0], q[0, 1], q[0, 9] = 0.5, 0.472, 0.012
    cost = 1.0 - torch.eye(10)
    cost[9, :9], cost[:9, 9] = 1000.0, 3.0
    confusion = torch.full((10, 10), 0.01).fill_diagonal_(0.91)
    exact = expected_error_reduction(q, confusion, cost=cost)
    assert float(expected_error_reduction(q, confusion, top=3, cost=cost)) == pytest.approx(float(exact), rel=0.05)
    assert float(information(q, confusion[None], 3, cost)) == pytest.approx(
        float(information(q, confusion[None], 10, cost)), rel=0.1
    )


def test_an_expert_is_bought_for_what_a_mistake_costs() -> None:
    """An item that an answer nearly settles is worth it; where classes that people confuse are dear, an expert is."""
    q, rows = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.55, 0.45]]), torch.arange(2)
    confusion = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.5, 0.45], [0.05, 0.45, 0.5]])
    cost = torch.tensor([[0.0, 20.0, 1.0], [20.0, 0.0, 0.01], [1.0, 0.01, 0.0]])
    room, price = torch.ones(2, dtype=torch.int64), 5.0
    found = worth_asking(q, confusion, rows, room, price, cost=cost).tolist()
    for i, p in enumerate(q.tolist()):
        fall, risk = slow_fall(p, confusion.tolist(), cost.tolist()), slow_risk(p, cost.tolist())
        assert found[i] == (fall * price >= risk)
    assert found == [True, False]


@pytest.mark.parametrize("explore", [False, True])
def test_a_round_asks_where_mistakes_are_dear(explore: bool) -> None:
    """To take class 0 for class 1 costs next to nothing, so a round asks less about doubt between these two."""
    facts = make_facts()
    said = log_prior().argmax(1)[facts.item]  # answers that depend on the item
    facts = replace(facts, label=torch.where(torch.arange(len(said)) % 5 == 0, facts.label, said))
    found = inference(facts)
    among = open_to_questions(basis(facts), found, 3, None)
    cost = torch.tensor([[0.0, 0.01, 1.0], [0.01, 0.0, 1.0], [1.0, 1.0, 0.0]])
    options = SamplingSettings(explore=explore)

    def doubt(cost: Tensor | None) -> float:
        """Mean probability of the less probable one of classes 0 and 1 among the items asked."""
        drawn = [choose(basis(facts), found, among, 3, options, round_generator(0, r), cost=cost)[0] for r in range(40)]
        return float(found.posterior[torch.cat(drawn), :2].amin(1).mean())

    assert doubt(cost) < doubt(None) - 0.05
    assert doubt(cost) == doubt(100.0 * cost)  # in any unit
    assert doubt(None) == doubt(1.0 - torch.eye(3))


def test_workers_are_matched_by_what_they_keep_from_being_lost() -> None:
    """Each of two workers tells one class from the others; the one who knows the dear class is asked."""
    q = torch.tensor([[0.34, 0.33, 0.33]])
    knows = torch.tensor(
        [[[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]], [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]]
    )
    dear = (1.0 - torch.eye(3)) * torch.tensor([1.0, 1.0, 9.0])[:, None]
    assert int(information(q, knows, cost=dear).argmax()) == 1
    assert int(information(q, knows, cost=dear.flip(0, 1)).argmax()) == 0


def test_greedy_is_equation_1() -> None:
    """Item after item, whoever is most probably right among those below the cap and not asked before, and no other limit."""
    facts = make_facts()
    facts = replace(facts, label=torch.where(facts.worker == 2, log_prior().argmax(1)[facts.item], facts.label))  # the best
    found = inference(facts)
    among = open_to_questions(basis(facts), found, 30, None)
    load = [int((facts.worker == j).sum() + (facts.open_worker == j).sum()) for j in range(W)]
    cap = load[2] + 25
    options = SamplingSettings(workers="greedy", worker_cap=cap)
    item, worker = choose(basis(facts), found, among, N, options, round_generator(0, 0))
    right = (found.posterior[item].double() @ found.crowd.diagonal().double().T).tolist()
    asked = set(zip(*(part.tolist() for part in facts.asked_pairs()), strict=True))
    for i, j, of_each in zip(item.tolist(), worker.tolist(), right, strict=True):
        free = [w for w in range(W) if (i, w) not in asked and load[w] < cap]
        assert of_each[j] == pytest.approx(max(of_each[w] for w in free), abs=1e-5)  # ties by chance
        load[j] += 1
    assert load[2] == cap
    assert 25 > 2 / W * len(item) > 0.1 * len(item)  # more than information would give to one worker


def test_a_run_asks_by_its_cost_matrix(bank: Bank, tmp_path: Path) -> None:
    """Where class 0 is dear to miss, other questions are asked."""
    cost = (1.0 - torch.eye(4)) * torch.tensor([20.0, 1.0, 1.0, 1.0])[:, None]
    path = tmp_path / "cost.csv"
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in cost.tolist()))
    plain, dear = fit(bank.settings(), tmp_path / "plain", trainer__max_epochs=2), tmp_path / "dear"
    fit(bank.settings(**{"annotation.cost": path}), dear, trainer__max_epochs=2)
    assert rounds(dear)["annotations"].tolist() == [0, 20]
    assert set(questions(dear)["item"]) != set(questions(plain)["item"])
