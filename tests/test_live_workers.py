"""A run waits for people who answer through the log, takes what policy says is enough, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_runs import Bank, answers, assert_equal_runs, call, fit, questions, rounds, start
from test_kill import counts
from waiting import meanwhile, wait_for

from lightning_annot import locks
from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.page_task import TASK_FILE, PageTask
from lightning_annot.types import AnnotError, Answer, Question, Task
from lightning_annot.workers.live import LiveWorkers

Opinion = Callable[[str], str | None]
PER_ROUND = 12


def answer_next(desk: Desk, name: str, opinion: Opinion) -> bool:
    """Answer what is lent next; whether anything was."""
    (lent,) = desk.lend([(name, 1)])
    for question in lent:
        item = desk.item_lent(question, name)
        assert item is not None
        desk.take([Answer(question, name, opinion(item), 1.0, "page")])
    return bool(lent)


@contextmanager
def people(run: Path, opinion: Opinion, *names: str, most: int | None = None) -> Iterator[None]:
    """People who answer in threads of their own what they are lent, up to ``most`` answers each."""

    def work(name: str, stop: threading.Event) -> None:
        with AnnotationLog(run / "annotations.db") as log:
            desk, given = Desk(log), 0
            if name not in {person.worker for person in desk.people()}:
                desk.invite(name)
            while not stop.is_set() and (most is None or given < most):
                if answer_next(desk, name, opinion):
                    given += 1
                else:
                    time.sleep(0.02)

    with meanwhile(*(partial(work, name) for name in names)):
        yield


class ToldWorkers(LiveWorkers):
    """Live workers that leave in a file how many answers a round that waits has seen."""

    FILE = "seen.txt"

    def bind(self, task: Task) -> None:
        super().bind(task)
        self._file = Path(task.output_dir) / self.FILE

    def patience(self, arrived: int, asked: int, seconds: float) -> float:
        self._file.write_text(str(arrived))
        return super().patience(arrived, asked, seconds)

    @classmethod
    def has_seen(cls, run: Path) -> str:
        file = run / cls.FILE
        return file.read_text() if file.is_file() else ""


@pytest.fixture
def truth(bank: Bank) -> dict[str, str]:
    return pd.read_csv(bank.labels, dtype=str).set_index("task")["label"].to_dict()


@pytest.fixture
def live(bank: Bank) -> dict[str, Any]:
    more = {
        "trainer.max_epochs": 4,
        "annotation.workers": "lightning_annot.workers.live.LiveWorkers",
        "annotation.workers.poll_seconds": 0.05,
        "annotation.sampling.per_round": PER_ROUND,
        "annotation.threshold": 1e-9,
    }
    return bank.settings(**more)


def reason(run: Path) -> str:
    return json.loads((run / "summary.json").read_text())["stop_reason"]


def test_the_run_waits_for_people_and_ends_by_itself(live: dict[str, Any], tmp_path: Path, truth: dict[str, str]) -> None:
    run = tmp_path / "run"
    with people(run, truth.get, "ann", "bob"):
        fit(live, run)
    assert reason(run) == "the last allowed round is done (trainer.max_epochs)"
    assert rounds(run)["annotations"].tolist() == [0, PER_ROUND, 2 * PER_ROUND, 3 * PER_ROUND]
    given = answers(run)
    assert sorted(given["question"]) == questions(run)["id"].tolist()
    assert given["label"].tolist() == [truth[item] for item in given["item"]]
    assert pd.read_csv(run / "rounds.csv")["seconds_wait"].iloc[-1] == 0.0  # the last asks nothing
    task = PageTask.read(run / TASK_FILE)
    assert task.classes == ("ant", "bee", "cow", "dog")
    assert all(truth[item] == name for name, items in task.examples.items() for item in items)
    assert task.images is None  # a bank alone has none


def test_a_share_is_enough_and_a_late_answer_counts_in_its_own_round(
    live: dict[str, Any], tmp_path: Path, truth: dict[str, str]
) -> None:
    run = tmp_path / "run"
    with people(run, truth.get, "ann", most=9):
        fit({**live, "trainer.max_epochs": 2, "annotation.workers.until": 0.75}, run)
    assert rounds(run)["annotations"].tolist() == [0, 9]
    with people(run, truth.get, "ann", most=3):  # what was left open
        wait_for(lambda: counts(run)[1] == PER_ROUND)
    assert answers(run)["round"].tolist() == [0] * PER_ROUND
    with people(run, truth.get, "ann"):
        fit({**live, "trainer.max_epochs": 3}, run)
    assert rounds(run)["annotations"].tolist() == [0, 9, 2 * PER_ROUND]
    assert not answers(run).duplicated("question").any()


def test_the_wait_is_no_part_of_any_other_seconds(live: dict[str, Any], tmp_path: Path, truth: dict[str, str]) -> None:
    run = tmp_path / "run"

    def slowly(item: str) -> str:
        time.sleep(0.5)
        return truth[item]

    with people(run, slowly, "ann"):
        fit({**live, "trainer.max_epochs": 2, "annotation.sampling.per_round": 8}, run)
    row = pd.read_csv(run / "rounds.csv").iloc[0]
    assert row["seconds_wait"] > 3
    assert row["seconds_ask"] < 2


def test_minutes_end_a_wait_once_there_is_any_answer(live: dict[str, Any], tmp_path: Path, truth: dict[str, str]) -> None:
    run = tmp_path / "run"
    with people(run, truth.get, "ann", most=3):
        fit({**live, "trainer.max_epochs": 2, "annotation.workers.minutes": 0.02}, run)
    assert 1 <= rounds(run)["annotations"].tolist()[1] <= 3


def test_a_skip_is_an_answer(live: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with people(run, lambda item: None, "ann"):
        fit({**live, "trainer.max_epochs": 2}, run)
    assert rounds(run)["annotations"].tolist() == [0, PER_ROUND]
    assert answers(run)["label"].isna().all()


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_and_the_same_command_goes_on(
    live: dict[str, Any], tmp_path: Path, truth: dict[str, str], told: signal.Signals
) -> None:
    """By Ctrl-C, which leaves a report, and by what a machine sends before it goes down, which gets a quick end."""
    run = tmp_path / "run"
    settings = {**live, "annotation.workers": "test_live_workers.ToldWorkers"}
    process = start("fit", {**settings, "annotation.output_dir": run})
    with people(run, truth.get, "ann", most=PER_ROUND + 5):
        wait_for(lambda: counts(run)[1] == PER_ROUND + 5, process.is_alive)
        (run / ToldWorkers.FILE).unlink()
        wait_for(lambda: ToldWorkers.has_seen(run) == "5", process.is_alive)
    assert process.pid is not None
    os.kill(process.pid, told)
    process.join(600)
    assert process.exitcode == 0
    if told == signal.SIGINT:
        what = f"5 of {PER_ROUND} answers are there; the same command goes on"
        assert reason(run) == f"interrupted while waiting for people: {what}"
        assert (run / "report.html").is_file()
    with AnnotationLog(run / "annotations.db") as log:
        desk = Desk(log)
        desk.set_aside({"zoe": "until the run begins to ask"})

        def late(item: str) -> str:
            if counts(run)[1] == PER_ROUND + 5:
                wait_for(lambda: desk.paused("zoe") is None)
                time.sleep(1.0)
            return truth[item]

        with people(run, late, "ann"):
            result = call("fit", {**settings, "annotation.output_dir": run, "trainer.enable_progress_bar": True})
    assert "round 1: waiting for people: " in result.out, result.err
    assert "round 0: " not in result.out
    assert rounds(run)["annotations"].tolist() == [0, PER_ROUND, 2 * PER_ROUND, 3 * PER_ROUND]
    assert not answers(run).duplicated("question").any()


def test_two_runs_never_share_a_folder(
    live: dict[str, Any], tmp_path: Path, truth: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "GRACE", 0.1)
    run = tmp_path / "run"
    settings = {**live, "annotation.output_dir": run, "trainer.max_epochs": 2}
    process = start("fit", settings)
    wait_for(lambda: (run / "annotations.db").is_file() and counts(run)[0], process.is_alive)
    second = call("fit", settings)
    assert second.status == 2
    assert f"another fit is running in {run}; wait for its end or stop it" in second.err
    process.kill()
    process.join(600)
    with people(run, truth.get, "ann"):
        fit(settings, run)
    assert rounds(run)["annotations"].tolist() == [0, PER_ROUND]


def test_an_experts_answers_fill_no_round(live: dict[str, Any], tmp_path: Path, truth: dict[str, str]) -> None:
    """Five of twelve questions are answered, and half would do; eight answers that nobody was asked for change neither."""
    run = tmp_path / "run"
    settings = {**live, "annotation.workers": "test_live_workers.ToldWorkers"}
    process = start("fit", {**settings, "annotation.output_dir": run, "annotation.workers.until": 0.5})
    with people(run, truth.get, "ann", most=5):
        wait_for(lambda: ToldWorkers.has_seen(run) == "5", process.is_alive)
    others = [item for item in truth if item not in {*questions(run)["item"]}][:8]
    with AnnotationLog(run / "annotations.db") as log:
        eve = [(Question(item, "eve", round=-1), Answer(0, "eve", truth[item], source="expert")) for item in others]
        assert log.record(eve) == 8
        time.sleep(0.5)  # ten looks
        assert log.last_round() == 0
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(600)
    assert reason(run) == (
        f"interrupted while waiting for people: 5 of {PER_ROUND} answers are there; the same command goes on"
    )
    with people(run, truth.get, "ann"):
        fit({**settings, "trainer.max_epochs": 2}, run)
    assert rounds(run)["annotations"].tolist() == [0, PER_ROUND + 8]


@pytest.mark.slow
def test_killed_and_taken_up_it_equals_an_undisturbed_run(live: dict[str, Any], tmp_path: Path, truth: dict[str, str]) -> None:
    """Where the answers depend on the questions alone, so does the run, whenever they come and however often it dies."""
    undisturbed, run, rng = tmp_path / "undisturbed", tmp_path / "run", random.Random(0)
    with people(undisturbed, truth.get, "ann"):
        fit(live, undisturbed)
    with people(run, truth.get, "ann"):
        for _ in range(4):
            process = start("fit", {**live, "annotation.output_dir": run})
            process.join(rng.uniform(1.0, 4.0))
            process.kill()
            process.join()
        fit(live, run)
    assert_equal_runs(run, undisturbed)
    again = tmp_path / "again"  # from the log alone, which has later rounds: nothing is waited for
    again.mkdir()
    for name in ("annotations.db", "annotations.db-wal"):
        if (run / name).is_file():
            (again / name).write_bytes((run / name).read_bytes())
    fit(live, again)
    assert_equal_runs(again, undisturbed)


def test_who_answers_without_looking_is_set_aside_in_the_middle_of_a_round(
    live: dict[str, Any], tmp_path: Path, truth: dict[str, str]
) -> None:
    """One round of 120 questions: the page stops lending to the spammer long before it is full, and knows why."""
    run = tmp_path / "run"
    settings = {**live, "trainer.max_epochs": 2, "annotation.sampling.per_round": 120, "annotation.gold_rate": 0.1}
    settings |= {"annotation.trust.least_accuracy": 0.5, "data.prototypes_per_class": 9}
    settings |= {"annotation.workers": "test_live_workers.ToldWorkers"}
    process = start("fit", {**settings, "annotation.output_dir": run})
    with AnnotationLog(run / "annotations.db") as log:
        desk = Desk(log)
        for _ in range(25):  # so that the run looks at each ten, however busy the machine is
            for who, says in (("ann", truth.get), ("spam", lambda item: "ant")):
                wait_for(lambda who=who, says=says: answer_next(desk, who, says) or desk.paused(who), process.is_alive)
            wait_for(lambda: ToldWorkers.has_seen(run) == str(len(log.answers())), process.is_alive)
            if desk.paused("spam"):
                break
        wait_for(lambda: desk.paused("spam"), process.is_alive)
        assert process.is_alive()  # it waits: not nearly all is answered
        with people(run, truth.get, "ann"), people(run, lambda item: "ant", "spam"):
            process.join()
        assert process.exitcode == 0
        why = {person.worker: person.set_aside for person in desk.people()}
        assert why["ann"] == ""
        assert "chance of" in why["spam"] or "do not depend" in why["spam"]
    given = answers(run)
    assert len(given) == len(questions(run)) > 120
    assert (given["worker"] == "spam").sum() <= 25
    gold = {*given.query("kind == 'gold'")["item"]}
    shown = {item for items in PageTask.read(run / TASK_FILE).examples.values() for item in items}
    assert gold
    assert not gold & shown


def test_what_nobody_can_answer_is_not_waited_for(live: dict[str, Any], tmp_path: Path, truth: dict[str, str]) -> None:
    """A team of two, of whom one leaves: what only she could have answered stays open, and the run goes on, and ends."""
    run = tmp_path / "run"
    settings = {**live, "annotation.sampling.cap": 2, "annotation.sampling.per_round": 290, "trainer.max_epochs": 3}
    process = start("fit", {**settings, "annotation.output_dir": run})
    with AnnotationLog(run / "annotations.db") as log:
        desk = Desk(log)
        with people(run, truth.get, "ann"), people(run, truth.get, "bob", most=20):
            wait_for(lambda: len(log.answers()) >= 280 and len(log.questions(round=1)), process.is_alive)
            desk.revoke("bob")
            process.join()
    assert process.exitcode == 0
    given, asked = answers(run), questions(run)
    assert not given.duplicated(["item", "worker"]).any()
    left = asked[~asked["id"].isin(given["question"])]
    assert set(left["item"]) <= set(given["item"])  # each has ann's answer


def bound(tmp_path: Path, **options: Any) -> LiveWorkers:
    workers = LiveWorkers(**options)
    url = str(tmp_path / "annotations.db")
    workers.bind(Task(["a", "b"], ["cat", "dog"], seed=0, output_dir=str(tmp_path), log_url=f"sqlite:///{url}"))
    return workers


@pytest.mark.parametrize(
    ("until", "arrived", "asked", "waits"),
    [("all", 0, 0, False), ("all", 0, 10, True), ("all", 9, 10, True), ("all", 10, 10, False),
     (0.8, 7, 10, True), (0.8, 8, 10, False), (0.01, 0, 10, True), (0.01, 1, 10, False), ("0.5", 5, 10, False)],
)  # fmt: skip
def test_how_full_is_enough(tmp_path: Path, until: str | float, arrived: int, asked: int, waits: bool) -> None:
    assert bound(tmp_path, until=until, poll_seconds=3).patience(arrived, asked, 1e9) == 3 * waits


def test_minutes_do_not_run_while_all_are_paused(tmp_path: Path) -> None:
    workers = bound(tmp_path, minutes=1)
    with AnnotationLog(tmp_path / "annotations.db") as log:
        desk = Desk(log)
        assert workers.patience(0, 10, 500) > 0  # nothing is there
        assert workers.patience(1, 10, 500) == 0
        desk.pause()
        assert workers.patience(1, 10, 0) > 0  # another round
        assert workers.patience(1, 10, 100) > 0
        desk.resume()
        assert workers.patience(1, 10, 130) > 0
        assert workers.patience(1, 10, 160) == 0


def test_an_item_gets_as_many_answers_as_there_are_people(tmp_path: Path) -> None:
    workers = bound(tmp_path)
    with AnnotationLog(tmp_path / "annotations.db") as log:
        desk = Desk(log)
        assert workers.capacity().tolist() == [1, 1]
        log.ask([Question(item, None) for item in "aabbb"])
        for name in ("ann", "bob", "eve", "zoe"):
            desk.invite(name)
        assert workers.capacity().tolist() == [1, 1]  # nobody has come
        for name in ("ann", "bob", "eve"):
            desk.lend([(name, 1)])
        assert workers.capacity().tolist() == [3, 3]  # zoe has not come
        lent = {name: desk.lend([(name, 1)])[0][0] for name in ("bob", "eve")}
        assert desk.item_lent(lent["eve"], "eve") == "b"
        desk.take([Answer(question, name, "cat", 1.0, "page") for name, question in lent.items()])
        desk.revoke("eve")
        assert workers.capacity().tolist() == [2, 3]  # she has answered b
        workers.set_aside({"bob": "too often wrong"})
        assert workers.capacity().tolist() == [2, 2]  # he has answered a, and ann may
    assert workers.names() == []
    named = bound(tmp_path, workers=["ann", "bob"])
    assert named.capacity() is None
    assert named.names() == ["ann", "bob"]


@pytest.mark.parametrize(
    ("odd", "message"),
    [({"until": 0}, "until 0"), ({"until": 1.5}, "until 1.5"), ({"until": "most"}, "until 'most'"),
     ({"minutes": -1}, "minutes"), ({"poll_seconds": 0}, "poll_seconds"), ({"workers": ["ann", "ann"]}, "differ")],
)  # fmt: skip
def test_odd_settings(odd: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        LiveWorkers(**odd)


def test_a_task_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(AnnotError, match="log_url"):
        LiveWorkers().bind(Task(["a"], ["cat", "dog"], seed=0, output_dir=str(tmp_path)))
