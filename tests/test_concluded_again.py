"""A round that is concluded again, after a kill or from the log alone, waits for no more than it did, and ends no run early."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cli_runs import Bank, answers, call, fit, rounds
from torch import Tensor

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.ledger import Ledger
from lightning_annot.types import Answer, Question, Task
from lightning_annot.workers.live import LiveWorkers

Plan = dict[int, list[tuple[int, int]]]
LATE: Plan = {0: [(0, 8)], 1: [(0, 2)], 2: [(2, 2)]}  # in round 1 come the last two answers to round 0 alone


class Scripted(LiveWorkers):
    """``plan``: while a round is the last, so many answers (n) to questions of which round, as (round, n); ``dies``: at that
    round, before it asks. What a wait has seen is in ``seen``.
    """

    plan: ClassVar[Plan] = {}
    dies: ClassVar[int | None] = None
    seen: ClassVar[list[tuple[int, int, int]]] = []

    def bind(self, task: Task) -> None:
        super().bind(task)
        assert task.log_url is not None
        self._mine = AnnotationLog(task.log_url)

    def capacity(self) -> Tensor | None:
        if self._mine.last_round() + 1 == self.dies:
            raise RuntimeError("killed")
        return None

    def collect(self) -> Sequence[Answer]:
        for round_, n in self.plan.pop(self._mine.last_round(), ()):
            open_ = self._mine.questions(round=round_, open_only=True)["id"].tolist()
            self._mine.answer([Answer(question, "ann", "ant", 1.0, "page") for question in open_[:n]])
        return ()

    def patience(self, arrived: int, asked: int, seconds: float) -> float:
        pause = super().patience(arrived, asked, seconds)
        self.seen.append((self._mine.last_round(), arrived, asked))
        if pause > 0 and self.seen[-50:] == self.seen[-1:] * 50:
            raise RuntimeError("waits for ever")
        return pause


@pytest.fixture
def scripted(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(Scripted, "seen", [])
    more = {
        "annotation.workers": "test_concluded_again.Scripted", "annotation.workers.poll_seconds": 0.02,
        "annotation.sampling.per_round": 10, "annotation.threshold": 1e-9, "trainer.max_epochs": 4,
    }  # fmt: skip
    return bank.settings(**more)


@pytest.mark.parametrize(
    ("enough", "plan", "seen"),
    [
        ({"annotation.workers.until": 0.8}, {0: [(0, 8)], 1: [(0, 2), (1, 6)]}, (1, 8, 10)),
        ({"annotation.workers.minutes": 0}, {0: [(0, 8)], 1: [(0, 2)]}, (1, 2, 10)),
    ],
    ids=["a share", "minutes"],
)
def test_resumed_it_waits_for_no_more(
    scripted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: dict[str, Any], plan: Plan,
    seen: tuple[int, int, int],
) -> None:  # fmt: skip
    run, settings = tmp_path / "run", scripted | enough
    monkeypatch.setattr(Scripted, "plan", dict(plan))
    monkeypatch.setattr(Scripted, "dies", 2)
    with pytest.raises(RuntimeError, match="killed"):
        call("fit", {**settings, "annotation.output_dir": run})
    assert Scripted.seen[-1] == seen
    monkeypatch.setattr(Scripted, "dies", None)
    Scripted.seen.clear()
    fit(settings, run, "--ckpt_path=last", trainer__max_epochs=3)
    assert Scripted.seen == [seen]
    assert len(rounds(run)) == 3


def test_from_the_log_alone_a_past_round_ends_nothing(
    scripted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "plan", dict(LATE))
    settings = scripted | {"annotation.workers.minutes": 0}
    whole, again = fit(settings, tmp_path / "whole"), tmp_path / "again"
    assert rounds(whole)["annotations"].tolist() == [0, 8, 10, 12]
    again.mkdir()
    for file in whole.glob("annotations.db*"):
        shutil.copy(file, again)
    fit(settings, again)
    assert len(rounds(again)) == len(rounds(whole))
    assert rounds(again)["annotations"].iloc[-1] == 12
    assert len(answers(again)) == len(answers(whole))


def test_a_question_with_two_answers_fills_a_round_once(tmp_path: Path) -> None:
    """Of ten questions seven are answered, each by two people whose loans overlapped: that is no share of eight in ten."""
    items = tuple(f"i{k}" for k in range(10))
    with AnnotationLog(tmp_path / "annotations.db") as log:
        ledger = Ledger(log, Task(items, ("ant", "bee"), 0, str(tmp_path), log_url=log.url), LiveWorkers())
        asked = log.ask([Question(item, None) for item in items])
        log.answer([Answer(question.id, who, "ant") for question in asked[:7] for who in ("ann", "bob")])
        assert ledger.awaited(0, 0) == (7, 10)
        assert ledger.facts(1).replies == 7
