"""When an expert is the better buy, and what becomes of the items that are left."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import Bank, answers, assert_equal_runs, call, fit, questions, rounds
from hypothesis import given, settings
from hypothesis import strategies as st
from test_live import Live, live  # noqa: F401
from test_sampling import distributions, seeded, slow_gain

from lightning_annot.report.unfinished import COLUMNS, Belief, unfinished_items
from lightning_annot.sampling.items import expected_error_reduction
from lightning_annot.sampling.value import deserted, pair_error_reduction, worth_asking


def slow_pair(row: list[float], c: list[list[float]]) -> float:
    k = range(len(row))
    return max(0.0, sum(max(row[y] * c[y][z] * c[y][w] for y in k) for z, w in product(k, k)) - max(row))


@given(n=st.integers(1, 8), k=st.integers(2, 6), seed=st.integers(0, 10**6), price=st.floats(0.5, 50))
@settings(max_examples=50, deadline=None)
def test_worth_equals_loops(n: int, k: int, seed: int, price: float) -> None:
    q, c = distributions(n, k, seed=seed), distributions(k, k, seed=seed + 1)
    rows = torch.randperm(n, generator=seeded(seed))
    room = torch.randint(1, 4, (n,), generator=seeded(seed + 2))
    pair = pair_error_reduction(q, c, rows)
    found = worth_asking(q, c, rows, room, price, 0.5)
    for at, row in enumerate(rows.tolist()):
        p = q[row].tolist()
        assert float(pair[at]) == pytest.approx(slow_pair(p, c.tolist()), abs=1e-12)
        gain = max(0.0, slow_gain(p, c.tolist()))
        if room[at] >= 2:
            gain = max(gain, slow_pair(p, c.tolist()) / 2)
        balance = gain / 0.5 - (1 - max(p)) / price
        assert bool(found[at]) == (balance >= 0) or abs(balance) < 1e-12


@given(k=st.integers(2, 10), seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_two_answers_gain_at_least_as_much_as_one_and_truncation_is_a_lower_bound(k: int, seed: int) -> None:
    q, c, rows = distributions(8, k, seed=seed), distributions(k, k, seed=seed + 1), torch.arange(8)
    exact = pair_error_reduction(q, c, rows, top=k)
    assert bool((exact >= expected_error_reduction(q, c) - 1e-12).all())
    assert bool((pair_error_reduction(q, c, rows, top=2) <= exact + 1e-12).all())
    assert bool((exact <= 1 - q.amax(1) + 1e-12).all())


def test_two_answers_are_seen_where_one_changes_nothing() -> None:
    q = torch.tensor([[0.85, 0.15]])
    c = torch.tensor([[0.8, 0.2], [0.2, 0.8]])
    rows = torch.zeros(1, dtype=torch.int64)
    assert float(expected_error_reduction(q, c)) == 0.0
    assert float(pair_error_reduction(q, c, rows)) == pytest.approx(0.15 * 0.64 - 0.85 * 0.04)
    assert worth_asking(q, c, rows, torch.tensor([2]), 10.0).tolist() == [True]
    assert worth_asking(q, c, rows, torch.tensor([1]), 10.0).tolist() == [False]
    assert worth_asking(q, c, rows, torch.tensor([2]), 4.0).tolist() == [False]  # .15 / 4 is more than .062 / 2


def test_ignorant_workers_are_never_worth_asking() -> None:
    q, rows = distributions(9, 4, seed=0), torch.arange(9)
    guess = torch.full((4, 4), 0.25, dtype=torch.float64)
    assert not bool(worth_asking(q, guess, rows, torch.full((9,), 3), 1000.0).any())


@given(seed=st.integers(0, 10**6), with_pairs=st.booleans(), worker_cap=st.sampled_from([None, 1, 2, 4]), w=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_deserted_equals_loops(seed: int, with_pairs: bool, worker_cap: int | None, w: int) -> None:
    n, workers, generator = 5, 4, seeded(seed)  # of the workers, the first w can be asked
    pairs = [(i, j) for i in range(n) for j in range(-1, workers)]
    asked = [pairs[r] for r in torch.randperm(len(pairs), generator=generator)[:9].tolist()]
    can = [pair for pair in product(range(n), range(w)) if float(torch.rand((), generator=generator)) < 0.6]
    capacity = torch.randint(0, 5, (n,), generator=generator)
    item, worker = (torch.tensor([pair[side] for pair in asked]) for side in (0, 1))
    possible = tuple(torch.tensor([pair[side] for pair in can], dtype=torch.int64) for side in (0, 1)) if with_pairs else None
    n_asked = torch.bincount(item, minlength=n)
    found = deserted(n_asked, capacity, w, item, worker, possible, worker_cap)  # type: ignore[arg-type]
    for i in range(n):
        free = [
            j
            for j in range(w)
            if (i, j) not in asked
            and (not with_pairs or (i, j) in can)
            and (worker_cap is None or sum(b == j for _, b in asked) < worker_cap)
        ]
        assert bool(found[i]) == (int(n_asked[i]) >= int(capacity[i]) or (w > 0 and not free))


def test_reasons_in_their_order() -> None:
    tasks = ["waits", "capped", "nobody", "expert", "never", "ended", "done", "given"]
    labels = pd.DataFrame({"task": tasks, "label": "x", "confidence": 0.5, "n_annotations": 1})
    labels["risk"] = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.0, 0.9]
    right = 1.0 - labels["risk"].to_numpy()
    belief = Belief(["x", "y"], np.array([[0, 1]] * 8), np.stack([right, 1 - right], axis=1))
    labels["status"] = ["unfinished"] * 6 + ["finished", "prototype"]
    asked = pd.DataFrame({"item": [*["waits"] * 3, *["capped"] * 3, *["nobody"] * 2, "expert", "ended", "done"]})
    summary = {
        "cap": 3,
        "stop_reason": "no money",
        "leftover": {"nobody": ["capped", "waits", "nobody"], "expert": ["nobody", "expert"]},
    }
    found = unfinished_items(labels, belief, pd.DataFrame({"item": ["waits"]}), asked, summary)
    assert found["task"].tolist() == ["ended", "never", "expert", "nobody", "capped", "waits"]
    assert found["reason"].tolist() == [
        "the run ended first: no money",
        "never asked",
        "an expert is cheaper",
        "nobody is left to ask",
        "asked as often as allowed",
        "waits for an answer",
    ]
    going_on = unfinished_items(labels, belief, pd.DataFrame({"item": ["waits"]}), asked, {}).set_index("task")["reason"]
    assert going_on["ended"] == going_on["capped"] == "the run has not ended"
    assert going_on["waits"] == "waits for an answer"
    nothing = unfinished_items(
        labels[6:], Belief(["x", "y"], belief.top[6:], belief.probability[6:]), pd.DataFrame({"item": []}), asked, summary
    )
    assert nothing.empty
    assert list(nothing) == list(COLUMNS)


def reasons(run: Path, file: Path) -> pd.Series:
    """Reason by task, as the command writes it."""
    result = call("unfinished", {}, str(run), str(file))
    assert result.status == 0, result.err
    return pd.read_csv(file, dtype=str).set_index("task")["reason"]


@pytest.fixture
def dear(bank: Bank) -> dict[str, Any]:
    """Poor workers and strict risk: many answers an item would be needed, and are not worth it beside an expert."""
    return bank.settings() | {
        "trainer.max_epochs": 40,
        "annotation.workers": "lightning_annot.workers.simulated.UniformNoiseWorkers",
        "annotation.workers.n_workers": 6,
        "annotation.workers.accuracy": 0.5,
        "annotation.sampling.per_round": 60,
        "annotation.sampling.cap": 3,
        "annotation.sampling.workers": "random",
        "annotation.sampling.sharpness": 1.0,
        "annotation.threshold": 0.02,
        "annotation.stopping.expert_price": 3,
        "annotation.stopping.patience": None,
    }


def test_a_run_leaves_to_experts_what_is_theirs(dear: dict[str, Any], tmp_path: Path) -> None:
    run = fit(dear, tmp_path / "run")
    stopped = json.loads((run / "summary.json").read_text())["stop_reason"]
    assert stopped.startswith("an expert is the better buy for the ")
    found = reasons(run, tmp_path / "left.csv")
    assert set(found) <= {"an expert is cheaper", "asked as often as allowed"}
    n_asked = answers(run)["item"].value_counts()
    cheaper = found.index[found == "an expert is cheaper"]
    assert f" {len(cheaper)} items " in stopped
    assert len(cheaper) > 10
    assert (n_asked.reindex(cheaper).fillna(0) < 3).all()
    assert (n_asked[found.index[found == "asked as often as allowed"]] == 3).all()
    without = fit(dear, tmp_path / "without", annotation__stopping__expert_price=None)
    assert len(answers(without)) > 1.2 * len(answers(run))


def test_without_a_cap_the_value_of_an_answer_decides(dear: dict[str, Any], tmp_path: Path) -> None:
    """Some items get more answers than a cap would allow; nothing is left but what an expert should see."""
    run = fit(dear, tmp_path / "run", annotation__sampling__cap=None, annotation__stopping__expert_price=20)
    n_asked = answers(run)["item"].value_counts()
    assert n_asked.max() > 3
    assert n_asked.min() == 1
    assert set(reasons(run, tmp_path / "left.csv")) <= {"an expert is cheaper", "nobody is left to ask"}
    capped = fit(dear, tmp_path / "capped", annotation__stopping__expert_price=20)
    assert rounds(run)["finished_fraction"].iloc[-1] > rounds(capped)["finished_fraction"].iloc[-1]


def test_no_cap_needs_a_price(bank: Bank, tmp_path: Path) -> None:
    result = call("fit", bank.settings() | {"annotation.output_dir": tmp_path / "run", "annotation.sampling.cap": None})
    assert result.status == 2
    assert "sampling.cap null given without stopping.expert_price" in result.err
    assert not (tmp_path / "run").exists()


def test_dear_experts_change_nothing_and_cheap_ones_end_the_run(dear: dict[str, Any], tmp_path: Path) -> None:
    cheap = fit(dear, tmp_path / "cheap", annotation__stopping__expert_price=0.5)
    assert len(answers(cheap)) == 0
    assert set(reasons(cheap, tmp_path / "left.csv")) == {"an expert is cheaper"}
    few = {"trainer__max_epochs": 3, "annotation__workers__accuracy": 0.9, "annotation__threshold": 0.3}
    never = fit(dear, tmp_path / "never", annotation__stopping__expert_price=1e9, **few)
    assert_equal_runs(never, fit(dear, tmp_path / "without", annotation__stopping__expert_price=None, **few))


def test_the_price_of_an_expert_is_money_where_answers_have_a_price(dear: dict[str, Any], tmp_path: Path) -> None:
    in_answers = fit(dear, tmp_path / "answers")
    in_money = fit(dear, tmp_path / "money", annotation__stopping__expert_price=30, annotation__prices__per_answer=10)
    pd.testing.assert_frame_equal(questions(in_answers), questions(in_money))
    assert rounds(in_money)["money"].tolist() == [10 * n for n in rounds(in_answers)["annotations"]]


def test_a_run_with_experts_resumes(dear: dict[str, Any], tmp_path: Path) -> None:
    whole = fit(dear, tmp_path / "whole")
    part = fit(dear, tmp_path / "part", trainer__max_epochs=2)
    fit(dear, part)
    assert_equal_runs(part, whole)


def test_reasons_of_a_run_that_waits_for_people(live: Live, tmp_path: Path) -> None:  # noqa: F811
    assert live.go_on().startswith("waiting")
    asked = live.asked()
    found = reasons(live.run, tmp_path / "left.csv")
    assert set(found[found == "waits for an answer"].index) == set(asked) & set(found.index)
    assert set(found) == {"waits for an answer", "never asked"}
    live.say(*((task, "ann", "cow") for task in asked))
    live.go_on()
    found = reasons(live.run, tmp_path / "left.csv")
    alone = set(found[found == "nobody is left to ask"].index)
    assert alone == set(asked) & set(found.index)  # ann is the only one there is
    assert alone
    assert (found == "waits for an answer").sum() > 0
