"""Gold questions at a rate: how many, about what, where they stand, and that nobody can tell them from others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import Bank, answers, assert_equal_runs, call, fit, questions, rounds
from hypothesis import given
from hypothesis import strategies as st

from lightning_annot.sampling.gold import examples, gold_questions, gold_share, gold_to_anyone, interleaved
from lightning_annot.types import Answer, Question, Task
from lightning_annot.workers.base import Workers

NAMES = ["anna", "ben", "cleo"]


class CuriousWorkers(Workers):
    """Three people who write down all that they are told, and always say the first class."""

    def bind(self, task: Task) -> None:
        self.task, self.told, self.waiting = task, Path(task.output_dir) / "told.csv", {}

    def names(self) -> Sequence[str]:
        return NAMES

    def submit(self, questions: Sequence[Question]) -> None:
        self.waiting = {question.id: question for question in questions}
        seen = pd.DataFrame([vars(question) for question in questions])
        seen.to_csv(self.told, mode="a", index=False, header=not self.told.exists())

    def collect(self) -> Sequence[Answer]:
        now, self.waiting = self.waiting.values(), {}
        return [Answer(q.id, str(q.worker), self.task.classes[0], source="curious") for q in now]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nobody_is_asked_about_a_prototype_twice() -> None:
    prototypes, seen = torch.arange(10, 20), (torch.empty(0, dtype=torch.int64),) * 2
    for seed in range(8):
        new = gold_questions(torch.tensor([3, 0, 1]), prototypes, 3, seeded(seed), None, seen)
        assert torch.bincount(new[1], minlength=3).tolist() == [min(3, 10 - 3 * seed) if seed < 4 else 0, 0, 1]
        seen = torch.cat([seen[0], new[0]]), torch.cat([seen[1], new[1]])
        assert len(torch.unique(seen[0] * 3 + seen[1])) == len(seen[0])


def test_what_was_seen_of_others_and_elsewhere_does_not_matter() -> None:
    seen = torch.tensor([3, 10, 11, 500]), torch.tensor([0, 7, -1, 0])  # no prototype, nobody we ask, anyone, no item
    items, _ = gold_questions(2, torch.tensor([10, 11]), 1, seeded(0), None, seen)
    assert sorted(items.tolist()) == [10, 11]


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_the_share_is_right_on_average(rate: float) -> None:
    worker, generator = torch.repeat_interleave(torch.arange(3), torch.tensor([7, 0, 2])), seeded(1)
    drawn = torch.stack([gold_share(worker, 3, rate, generator) for _ in range(4000)])
    expected = torch.tensor([7.0, 0.0, 2.0]) * rate / (1 - rate)
    assert drawn.double().mean(0).tolist() == pytest.approx(expected.tolist(), abs=0.04)
    assert bool(((drawn - expected).abs() < 1).all())
    assert not gold_share(worker, 3, 0.0, generator).any()


@given(
    st.lists(st.integers(0, 4), max_size=40), st.lists(st.integers(0, 5), max_size=12), st.integers(0, 99)
)  # fmt: skip
def test_gold_stands_among_the_workers_own(worker: list[int], gold: list[int], seed: int) -> None:
    order = interleaved(torch.tensor(worker, dtype=torch.int64), torch.tensor(gold, dtype=torch.int64), seeded(seed)).tolist()
    n = len(worker)
    assert sorted(order) == list(range(n + len(gold)))
    assert [row for row in order if row < n] == list(range(n))  # ordinary ones keep their order
    whose = [(worker + gold)[row] for row in order]
    for place, row in enumerate(order):
        if row >= n and whose[place] in worker:  # next to it, gold apart, is one of the same worker
            before = next((whose[p] for p in range(place - 1, -1, -1) if order[p] < n), None)
            after = next((whose[p] for p in range(place + 1, len(order)) if order[p] < n), None)
            assert whose[place] in (before, after)


def test_gold_may_stand_anywhere() -> None:
    """In a worker's list of nine ordinary questions a gold one is as often at the ends as in the middle."""
    worker, places = torch.tensor([0, 1] * 9), np.zeros(10)
    for seed in range(3000):
        order = interleaved(worker, torch.tensor([1]), seeded(seed))
        mine = [row for row in order.tolist() if row == 18 or row % 2]
        places[mine.index(18)] += 1
    assert places[1:-1].min() > 0.8 * 3000 / 9
    assert places[[0, -1]].min() > 0.8 * 3000 / 18  # the two ends share a neighbour's draw


def rated(bank: Bank, **more: Any) -> dict[str, Any]:
    people = "lightning_annot.workers.simulated.StructuredWorkers"
    workers = {
        "annotation.workers": people,
        "annotation.workers.n_workers": 6,
        "data.prototypes_per_class": 8,
        "trainer.max_epochs": 5,
    }
    return {**bank.settings(), **workers, "annotation.sampling.per_round": 40, "annotation.gold_rate": 0.2, **more}


def test_gold_at_a_rate_is_paid_counted_and_spread(bank: Bank, tmp_path: Path) -> None:
    run = fit(rated(bank), tmp_path / "run")
    asked, given_, table = questions(run), answers(run), rounds(run)
    gold = asked[asked["kind"] == "gold"]
    assert sorted(set(gold["round"])) == [0, 1, 2, 3]
    assert 0.15 < len(gold) / len(asked) < 0.25
    labels = pd.read_csv(run / "labels.csv", dtype=str).set_index("task")
    assert set(labels.loc[gold["item"], "status"]) == {"prototype"}
    assert not gold.duplicated(["item", "worker"]).any()
    paid = ((table["paid_per_item"] - table["annotations_per_item"]) * (300 - 32)).round()
    assert paid.tolist() == [(gold["round"] < r).sum() for r in range(5)]
    assert len(given_) == len(asked)
    for _, together in asked.groupby("round"):  # gold is neither first nor last
        at = (together["kind"] == "gold").to_numpy().nonzero()[0]
        assert at.max() > len(at)
        assert at.min() < len(together) - len(at)
    cards = pd.read_csv(run / "scorecards.csv").set_index("worker")
    assert cards["gold"].to_dict() == gold["worker"].value_counts().to_dict()


def test_a_run_with_gold_at_a_rate_resumes(bank: Bank, tmp_path: Path) -> None:
    whole = fit(rated(bank), tmp_path / "whole", annotation__gold=2)
    part = fit(rated(bank), tmp_path / "part", annotation__gold=2, trainer__max_epochs=2)
    assert_equal_runs(fit(rated(bank), part, annotation__gold=2), whole)
    again = fit(rated(bank), tmp_path / "again", annotation__gold=2, trainer__max_epochs=3)
    (again / "checkpoints" / "last.ckpt").unlink()
    assert_equal_runs(fit(rated(bank), again, annotation__gold=2), whole)


def test_workers_cannot_tell_gold_from_others(bank: Bank, tmp_path: Path) -> None:
    settings = rated(bank) | {"annotation.workers": "test_gold.CuriousWorkers", "annotation.crowd.exclude": False}
    del settings["annotation.workers.n_workers"]
    run = fit(settings, tmp_path / "run")
    told = pd.read_csv(run / "told.csv")
    assert set(told["kind"]) == {"annotation"}
    asked = questions(run)
    assert (asked["kind"] == "gold").sum() > 10
    assert sorted(told["id"]) == sorted(asked["id"])
    assert told.set_index("id")["item"].to_dict() == asked.set_index("id")["item"].to_dict()


def test_files_show_gold_like_others(bank: Bank, tmp_path: Path) -> None:
    files = {"annotation.workers": "lightning_annot.workers.files.FileWorkers", "annotation.workers.workers": "[anna,ben]"}
    settings = rated(bank) | files
    del settings["annotation.workers.n_workers"]
    run = fit(settings, tmp_path / "run")
    shown, asked = pd.read_csv(run / "questions.csv", dtype=str, keep_default_na=False), questions(run)
    assert list(shown) == ["task", "worker", "path"]
    assert shown["task"].tolist() == asked["item"].tolist()
    assert 5 <= (asked["kind"] == "gold").sum() <= 15


def test_what_gold_needs(bank: Bank, tmp_path: Path) -> None:
    recorded = {"annotation.workers": "lightning_annot.workers.recorded.RecordedWorkers", "annotation.gold_rate": 0.1}
    settings = {**bank.settings(), **recorded, "annotation.workers.answers": bank.answers}
    result = call("fit", {**settings, "annotation.gold": 5, "annotation.output_dir": tmp_path / "run"})
    assert result.status == 2
    assert "annotation.gold 5 given, and questions go to anyone" in result.err
    named = {"annotation.output_dir": tmp_path / "few", "annotation.workers.by_worker": True, "trainer.max_epochs": 3}
    assert call("fit", settings | named).status == 0  # who can be asked about few prototypes is asked about few
    none = {"annotation.output_dir": tmp_path / "none", "data.prototypes_per_class": 0, "annotation.workers.by_worker": True}
    result = call("fit", settings | none)
    assert result.status == 2
    assert "annotation.gold_rate 0.1 given without prototypes" in result.err


def test_gold_to_anyone_goes_round_the_prototypes(bank: Bank, tmp_path: Path) -> None:
    recorded = {"annotation.workers": "lightning_annot.workers.recorded.RecordedWorkers", "annotation.gold_rate": 0.25}
    settings = {**bank.settings(), **recorded, "annotation.workers.answers": bank.answers, "trainer.max_epochs": 6}
    settings |= {"data.prototypes_per_class": 8}
    whole = fit(settings, tmp_path / "whole", annotation__sampling__per_round=30)
    asked = questions(whole)
    gold = asked[asked["kind"] == "gold"]
    assert len(gold) == pytest.approx(len(asked) / 4, abs=5)
    assert gold["worker"].isna().all()
    table = pd.read_csv(whole / "labels.csv", dtype=str)
    times = gold["item"].value_counts().reindex(table["task"][table["status"] == "prototype"], fill_value=0)
    assert times.sum() == len(gold)
    assert times.max() - times.min() <= 1
    part = fit(settings, tmp_path / "part", annotation__sampling__per_round=30, trainer__max_epochs=3)
    assert_equal_runs(fit(settings, part, annotation__sampling__per_round=30), whole)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 12), st.integers(0, 3), st.integers(0, 100))
def test_gold_to_anyone_asks_what_was_asked_least(asked: list[int], n: int, most: int, seed: int) -> None:
    prototypes = torch.tensor([1, 4, 5, 8])
    before = [asked.count(p) for p in prototypes.tolist()]
    drawn = gold_to_anyone(n, prototypes, torch.tensor(asked, dtype=torch.int64), seeded(seed), torch.full((4,), most)).tolist()
    free = sorted(count for count in before if count < most)
    assert sorted(before[prototypes.tolist().index(p)] for p in drawn) == free[:n]
    assert len({*drawn}) == len(drawn)


@given(st.lists(st.integers(-1, 4), max_size=60))
def test_examples_are_a_third_of_each_class(prototype: list[int]) -> None:
    shown = examples(torch.tensor(prototype, dtype=torch.int64)).tolist()
    for k in range(-1, 5):
        of_class = [s for s, p in zip(shown, prototype, strict=True) if p == k]
        wanted = 0 if k < 0 or not of_class else max(1, len(of_class) // 3)
        assert of_class == [True] * wanted + [False] * (len(of_class) - wanted)
