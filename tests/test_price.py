"""Money: what was spent, what can still be bought, who is worth the price; by itself and through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cli_runs import Bank, answers, assert_equal_runs, call, fit, questions, rounds
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_annot.callbacks.run_folder import load_prices
from lightning_annot.sampling.price import PriceSettings, affordable, per_price, settle
from lightning_annot.sampling.stopping import StopSettings
from lightning_annot.types import AnnotError

NAMES = ("ann", "bob", "cat")
EIGHTHS = st.integers(0, 40).map(lambda n: n / 8)  # sums without rounding


@given(
    paid=st.lists(st.tuples(st.integers(0, 2), EIGHTHS), max_size=8),
    owed=st.lists(st.integers(-1, 2), max_size=5),
    listed=st.dictionaries(st.sampled_from([*NAMES, "dan"]), EIGHTHS, max_size=3),
    per_answer=EIGHTHS,
    per_second=EIGHTHS,
)
@settings(max_examples=100, deadline=None)
def test_the_account_equals_loops(
    paid: list[tuple[int, float]], owed: list[int], listed: dict[str, float], per_answer: float, per_second: float
) -> None:
    worker = torch.tensor([w for w, _ in paid], dtype=torch.int64)
    seconds = torch.tensor([s for _, s in paid], dtype=torch.float64)
    prices = PriceSettings(per_answer, per_second)
    found = settle(prices, listed, NAMES, worker, seconds, torch.tensor(owed, dtype=torch.int64))
    price = [listed.get(name, per_answer) for name in NAMES]
    mean_seconds = sum(s for _, s in paid) / len(paid) if paid else 0.0
    expected = [p + per_second * mean_seconds for p in price]
    typical = [price[w] for w, _ in paid] or price
    anyone = sum(typical) / len(typical) + per_second * mean_seconds
    assert found.spent == pytest.approx(sum(price[w] + per_second * s for w, s in paid))
    assert found.expected.tolist() == pytest.approx(expected)
    assert found.anyone == pytest.approx(anyone)
    assert found.owed == pytest.approx(sum(expected[w] if w >= 0 else anyone for w in owed))
    assert found.price(torch.tensor([0, -1, 2])).tolist() == pytest.approx([expected[0], anyone, expected[2]])
    assert (found.cheapest(2), found.cheapest(0)) == pytest.approx((min(expected[:2]), anyone))


def test_nobody_is_known_yet() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert settle(PriceSettings(3.0), {}, (), none, none, none).anyone == 3.0
    assert settle(PriceSettings(3.0), {"ann": 1.0, "bob": 5.0, "cat": 0.0}, (), none, none, torch.tensor([-1])).owed == 2.0


@given(price=st.lists(EIGHTHS, max_size=12), left=EIGHTHS)
@settings(max_examples=200, deadline=None)
def test_affordable_equals_a_loop(price: list[float], left: float) -> None:
    want, rest = [], left
    for p in price:
        want.append(p <= rest)
        rest -= p if p <= rest else 0.0
    assert affordable(torch.tensor(price, dtype=torch.float64), left).tolist() == want


def test_a_rounding_error_does_not_cost_an_answer() -> None:
    left = StopSettings(money=0.3).money_left(0.1 + 0.1)
    assert left is not None
    assert affordable(torch.tensor([0.1], dtype=torch.float64), left).tolist() == [True]


def test_gain_per_price() -> None:
    reliability = torch.tensor([[0.9, 0.6, 0.25, 0.2]])
    even = per_price(reliability, torch.full((4,), 7.0, dtype=torch.float64), 1 / 4)
    assert even.tolist()[0] == pytest.approx([0.65, 0.35, 0.0, 0.0])
    dear = per_price(reliability, torch.tensor([3.0, 1.0, 0.1, 0.0], dtype=torch.float64), 1 / 4)
    assert dear.argmax(1).tolist() == [1]  # .35 / 1 against .65 / 3; who guesses is worth nothing, even for nothing
    assert bool(torch.isfinite(dear).all())
    assert bool((per_price(reliability, torch.zeros(4, dtype=torch.float64), 1 / 4) == even).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PriceSettings(per_answer=-1), "prices.per_answer -1"),
        (lambda: PriceSettings(per_second=float("nan")), "prices.per_second nan"),
        (lambda: StopSettings(money=-0.5), r"stopping.money -0\.5"),
        (lambda: StopSettings(expert_price=0.0), r"stopping.expert_price 0\.0"),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker,cost\nann,1\n", "without \\['price'\\]"),
        ("worker,price\nann,cheap\n", "line 2: 'cheap'"),
        ("worker,price\nann,1\nbob,-1\n", "line 3: '-1'"),
        ("worker,price\nann,1\nann,2\n", "line 3: 'ann'"),
        ("worker,price\nann,\n", "have no price"),
    ],
)
def test_price_lists_are_checked(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(AnnotError, match=message):
        load_prices(str(tmp_path / "p.csv"))


@pytest.fixture
def priced(bank: Bank, tmp_path: Path) -> dict[str, Any]:
    """Six simulated workers, two of them dear, and money for about three rounds."""
    (tmp_path / "prices.csv").write_text("worker,price\nw000,3\nw003,2.5\nsomebody,9\n")
    return bank.settings() | {
        "trainer.max_epochs": 20,
        "annotation.workers": "lightning_annot.workers.simulated.StructuredWorkers",
        "annotation.workers.n_workers": 6,
        "annotation.prices.per_answer": 0.5,
        "annotation.prices.workers": tmp_path / "prices.csv",
        "annotation.stopping.money": 60,
        "annotation.threshold": 0.001,
    }


PRICE = {"w000": 3.0, "w003": 2.5}


def slow_money(run: Path) -> list[float]:
    """Money at each round, from the log."""
    given = answers(run)
    cost = given["worker"].map(lambda name: PRICE.get(name, 0.5))
    return [cost[given["round"] < r].sum() for r in rounds(run)["round"]]


def test_a_run_spends_its_money_and_no_more(priced: dict[str, Any], tmp_path: Path) -> None:
    run = fit(priced, tmp_path / "run")
    table, summary = rounds(run), json.loads((run / "summary.json").read_text())
    assert table["money"].tolist() == pytest.approx(slow_money(run))
    assert len(table) > 2
    assert 60 - 0.5 < table["money"].iloc[-1] <= 60  # what is left pays for no answer
    assert summary["money"] == table["money"].iloc[-1]
    assert summary["stop_reason"] == f"the money is spent: {summary['money']:g} of 60, where an answer costs 0.5 or more"
    assert questions(run).groupby("round").size().iloc[:-1].eq(20).all()


def test_gold_questions_cost_money_too(priced: dict[str, Any], tmp_path: Path) -> None:
    run = fit(priced, tmp_path / "run", annotation__gold=3)
    assert (answers(run)["kind"] == "gold").sum() == 18
    assert rounds(run)["money"].tolist() == pytest.approx(slow_money(run))
    assert rounds(run)["money"].iloc[-1] <= 60
    few = fit(priced, tmp_path / "few", annotation__gold=3, annotation__stopping__money=10)
    assert set(answers(few)["kind"]) == {"gold", "annotation"}  # the money pays for both alike
    summary = json.loads((few / "summary.json").read_text())
    assert 9.5 < summary["money"] <= 10
    assert summary["stop_reason"].startswith(f"the money is spent: {summary['money']:g} of 10")


def test_a_run_with_prices_resumes(priced: dict[str, Any], tmp_path: Path) -> None:
    whole = fit(priced, tmp_path / "whole")
    part = fit(priced, tmp_path / "part", trainer__max_epochs=2)
    fit(priced, part)
    assert_equal_runs(part, whole)


@pytest.mark.parametrize(("rule", "most"), [("greedy", 0.1), ("information", 0.25)])
def test_matching_minds_the_price(priced: dict[str, Any], tmp_path: Path, rule: str, most: float) -> None:
    """Two of six workers are as good as the others, and five times as dear; information draws what it does not know."""
    free = {"annotation__stopping__money": None, "annotation__sampling__workers": rule}
    free |= {"annotation__sampling__worker_share": None, "trainer__max_epochs": 6}

    def share(run: Path) -> float:
        return float(questions(run)["worker"].isin(["w000", "w003"]).mean())

    run = fit(priced, tmp_path / "run", **free)
    even = fit(priced, tmp_path / "even", **free, annotation__prices__workers=None)
    assert share(run) < min(most, share(even))
    assert "money" in rounds(run)


def test_without_prices_there_is_no_money(bank: Bank, tmp_path: Path) -> None:
    assert "money" not in rounds(fit(bank.settings(), tmp_path / "plain"))
    run = fit(bank.settings(), tmp_path / "one", annotation__stopping__money=33)  # one an answer
    assert rounds(run)["money"].tolist() == rounds(run)["annotations"].tolist() == [0, 20, 33]


def test_bad_prices_cost_nothing(bank: Bank, tmp_path: Path) -> None:
    result = call("fit", bank.settings() | {"annotation.output_dir": tmp_path / "run", "annotation.prices.per_answer": -1})
    assert result.status == 2
    assert "prices.per_answer -1" in result.err
    assert not (tmp_path / "run").exists()


def test_seconds_cost_money(bank: Bank, tmp_path: Path) -> None:
    """Recorded answers of 2 seconds, where known; questions go to anyone."""
    table = pd.read_csv(bank.answers).assign(seconds=2.0)
    table.loc[::2, "seconds"] = float("nan")
    table.to_csv(tmp_path / "answers.csv", index=False)
    changes = {
        "annotation.workers": "lightning_annot.workers.recorded.RecordedWorkers",
        "annotation.workers.answers": tmp_path / "answers.csv",
        "annotation.prices.per_answer": 0.0,
        "annotation.prices.per_second": 0.25,
        "annotation.stopping.money": 14,
        "annotation.threshold": 0.001,
        "annotation.sampling.items": "uniform",
        "trainer.max_epochs": 20,
    }
    run = fit(bank.settings() | changes, tmp_path / "run")
    given, table = answers(run), rounds(run)
    spent = [0.25 * given["seconds"][given["round"] < r].sum() for r in table["round"]]
    assert table["money"].tolist() == pytest.approx(spent)
    assert 12 <= spent[-1] <= 16  # the mean of all times so far stands for that of the next answers
    assert "money" in json.loads((run / "summary.json").read_text())["stop_reason"]
