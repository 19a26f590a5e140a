"""The desk: who is lent what, until when, and what becomes of an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.dialects import sqlite

from lightning_annot.annotations.desk import EVERYBODY, INVITE, Desk, Lending
from lightning_annot.annotations.lending import ADDRESSED, FIRST, LENT_BEFORE, NEW
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.types import AnnotError, Answer, Question


@pytest.fixture
def log(log_url: str) -> Iterator[AnnotationLog]:
    with AnnotationLog(log_url) as opened:
        yield opened


def ask(log: AnnotationLog, *whom: tuple[str, str | None], round_: int = 0) -> list[int]:
    return [question.id for question in log.ask([Question(item, worker, round=round_) for item, worker in whom])]


def give(desk: Desk, question: int, worker: str, label: str | None = "cat") -> bool | None:
    (outcome,) = desk.take([Answer(question, worker, label, 1.0, "page")])
    return outcome


def lend(desk: Desk, worker: str, n: int = 10) -> list[int]:
    (questions,) = desk.lend([(worker, n)])
    return questions


def test_a_question_is_lent_to_one_worker_at_a_time(log: AnnotationLog) -> None:
    desk = Desk(log)
    ask(log, *((f"i{i}", None) for i in range(5)))
    assert desk.lend([("ann", 2), ("bob", 2), ("eve", 2)]) == [[1, 2], [3, 4], [5]]
    assert lend(desk, "ann", 2) == [1, 2]  # a page that is loaded again goes on
    assert give(desk, 1, "ann") is True
    assert lend(desk, "ann", 2) == [2]
    assert lend(desk, "zoe") == []


def test_an_expired_question_returns_to_the_pool_and_a_late_answer_counts_once(log: AnnotationLog) -> None:
    desk, brief = Desk(log), Desk(log, Lending(seconds=0.05))
    ask(log, ("i", None))
    assert lend(desk, "ann") == [1]
    assert lend(desk, "bob") == []
    assert lend(brief, "ann") == [1]  # renewed, for as long as the desk lends that she asks now
    time.sleep(0.06)
    assert lend(desk, "bob") == [1]
    assert lend(desk, "ann") == []
    assert give(desk, 1, "bob", "cat") is True
    assert give(desk, 1, "ann", "dog") is True  # late; both are facts
    assert give(desk, 1, "ann", "cat") is False
    assert log.answers()[["worker", "label"]].to_numpy().tolist() == [["bob", "cat"], ["ann", "dog"]]


def test_who_let_a_question_lapse_gets_it_back_if_nobody_else_has_it(log: AnnotationLog) -> None:
    desk = Desk(log, Lending(seconds=0.05))
    ask(log, ("i", None))
    assert lend(desk, "ann") == [1]
    time.sleep(0.06)
    assert lend(desk, "ann") == [1]


def test_nobody_is_shown_an_item_twice(log: AnnotationLog) -> None:
    desk = Desk(log)
    ask(log, ("i", None), ("i", None), ("j", None))
    assert lend(desk, "ann") == [1, 3]
    assert give(desk, 1, "ann") is True
    assert lend(desk, "ann") == [3]
    assert lend(desk, "bob") == [2]
    (again,) = ask(log, ("i", "ann"))
    assert again not in lend(desk, "ann")


def test_questions_to_a_worker_go_to_others_only_when_they_are_given_back(log: AnnotationLog) -> None:
    ask(log, ("i", "ann"))
    assert lend(Desk(log), "bob") == []
    patient, quick = Desk(log, Lending(give_back=3600)), Desk(log, Lending(give_back=0))
    assert lend(patient, "bob") == []
    assert lend(quick, "bob") == [1]
    assert lend(quick, "ann") == []


def test_what_was_never_lent_is_refused(log: AnnotationLog) -> None:
    desk = Desk(log)
    ask(log, ("i", None), ("j", "bob"))
    assert give(desk, 1, "ann") is None
    assert give(desk, 99, "ann") is None
    assert lend(desk, "ann") == [1]
    assert give(desk, 2, "ann") is None
    assert desk.item_lent(1, "ann") == "i"
    assert desk.item_lent(1, "bob") is None
    assert desk.item_lent(2, "ann") is None
    assert log.answers().empty


def test_audits_are_not_for_workers(log: AnnotationLog) -> None:
    log.ask([Question("i", None, "audit"), Question("j", "ann", "gold")])
    desk = Desk(log)
    assert lend(desk, "ann") == [2]
    assert desk.lent() == 1
    assert desk.gold_items(["i", "j"]) == {"j"}


def test_pauses(log: AnnotationLog) -> None:
    desk = Desk(log)
    ask(log, ("i", None), ("j", None))
    assert lend(desk, "ann", 1) == [1]
    desk.pause("ann", "too quick")
    assert lend(desk, "ann") == []
    assert give(desk, 1, "ann") is True  # what is lent may be answered
    assert desk.paused("ann") == "too quick"
    assert lend(desk, "bob") == [2]
    desk.resume("ann")
    desk.pause()
    assert desk.paused("bob") == desk.paused(EVERYBODY) == "paused by the owner"
    assert lend(desk, "bob") == []
    desk.resume()
    assert lend(desk, "bob") == [2]


def test_who_is_set_aside_by_the_run_gets_nothing_and_others_take_over(log: AnnotationLog) -> None:
    desk = Desk(log)
    desk.invite("ann")
    ask(log, ("i", "ann"), ("j", "bob"), ("k", "ann"))
    assert lend(desk, "eve") == []
    assert lend(desk, "ann", 1) == [1]
    desk.set_aside({"ann": "too often wrong", "zoe": "answers at random"})
    assert lend(desk, "ann") == []
    assert give(desk, 1, "ann") is True  # what is lent may be answered
    assert lend(desk, "eve") == [3]
    desk.pause("ann", "on holiday")
    assert [(p.paused, p.set_aside) for p in desk.people()] == [("on holiday", "too often wrong")]
    desk.resume("ann")  # ends the owner's pause alone
    assert desk.paused("ann") == "too often wrong"
    desk.set_aside({"zoe": "answers at random"})
    assert desk.paused("ann") is None
    assert lend(desk, "ann") == []  # its question is lent to another


def test_an_experts_question_and_late_gold_are_for_nobody_else(log: AnnotationLog) -> None:
    desk = Desk(log, Lending(give_back=0.0))
    log.ask([Question("i", "eve", round=-1), Question("j", "bob", "gold"), Question("k", "bob")])
    desk.set_aside({"eve": "too often wrong"})
    assert lend(desk, "ann") == [3]
    desk.set_aside({"bob": "too often wrong"})
    assert lend(desk, "ann") == [3, 2]


def test_what_an_expert_has_seen_is_lent_to_nobody_else(log: AnnotationLog) -> None:
    desk = Desk(log)
    ask(log, ("i", None), ("j", "ann"), ("k", None))
    log.ask([Question("j", "ann", "gold"), Question("i", "eve", round=-1), Question("j", "eve", round=-1)])
    log.ask([Question("i", "zoe", round=-1), Question("k", "eve", "audit")])
    for name in ("ann", "bob", "eve", "zoe"):
        desk.invite(name)
    assert lend(desk, "ann", 1) == [2]
    log.answer([Answer(5, "eve", "cat", source="expert"), Answer(6, "eve", None, source="expert")])
    log.answer([Answer(8, "eve", "cat", source="expert")])  # an audit changes nothing
    assert desk.stuck() == 2
    assert [lend(desk, "bob", 4), lend(desk, "zoe", 4), lend(desk, "ann", 4)] == [[3], [7], [4]]
    assert give(desk, 2, "ann") is True  # what was lent before may be answered
    assert desk.stuck() == 2  # the other of them, and the gold question about what ann has answered now


def test_what_nobody_can_answer(log: AnnotationLog) -> None:
    desk = Desk(log)
    ask(log, ("i", None), ("j", "ann"), ("i", None), ("k", "zoe"))
    log.ask([Question("l", "eve", round=-1)])
    assert desk.stuck() == 0  # nobody is invited yet
    for name in ("ann", "bob"):
        desk.invite(name)
    assert desk.stuck() == 0
    assert [lend(desk, "ann", 2), lend(desk, "bob", 1)] == [[2, 1], [3]]
    give(desk, 1, "ann")
    assert desk.stuck() == 0  # bob can answer the other about i, and zoe may come
    desk.revoke("bob")
    assert desk.stuck() == 1
    desk.set_aside({"ann": "too often wrong"})
    assert desk.stuck() == 2
    desk.invite("kim")
    assert desk.stuck() == 0  # and takes over


def test_a_large_round_can_be_looked_at(log: AnnotationLog) -> None:
    """More items than a statement of SQLite or PostgreSQL takes as parameters."""
    desk = Desk(log)
    desk.invite("ann")
    ask(log, *((f"i{i}", None) for i in range(70_000)))
    assert desk.stuck() == 0
    desk.revoke("ann")
    assert desk.stuck() == 70_000


def test_runs_have_names_of_their_own(new_log_url: Callable[[], str]) -> None:
    with AnnotationLog(new_log_url()) as one, AnnotationLog(new_log_url()) as other:
        assert Desk(one).run == Desk(one).run != Desk(other).run


def test_invitations(log: AnnotationLog) -> None:
    desk = Desk(log)
    old, bob = desk.invite("ann"), desk.invite("bob")
    assert desk.who(old) == "ann"
    new = desk.invite("ann")
    assert (desk.who(old), desk.who(new), desk.who(bob)) == (None, "ann", "bob")
    desk.revoke("bob")
    assert desk.who(bob) is None
    assert [(p.worker, p.revoked) for p in desk.people()] == [("ann", False), ("bob", True)]
    assert len(new) == 22  # 128 bits
    with log.reading() as connection:
        assert new not in str(connection.execute(select(INVITE)).all())
    for name in ("", " ", "a\nb", "x" * 101):
        with pytest.raises(AnnotError, match="no name for a worker"):
            desk.invite(name)
    for name in ("zoë ", "a\u00a0b", "\u0645\u06cc\u200c\u062e"):  # padded, a no-break space, a joiner within
        assert desk.who(desk.invite(name)) == name.strip()


def test_a_desk_finds_what_another_left(log: AnnotationLog) -> None:
    ask(log, ("i", None), ("j", None))
    token = Desk(log).invite("ann")
    assert lend(Desk(log), "ann", 1) == [1]
    desk = Desk(log)
    assert desk.who(token) == "ann"
    assert give(desk, 1, "ann") is True
    assert desk.counts() == {"ann": 1}


@pytest.mark.parametrize("odd", [{"seconds": 0}, {"seconds": float("nan")}, {"give_back": -1}])
def test_odd_settings(odd: dict[str, float]) -> None:
    with pytest.raises(AnnotError, match="seconds"):
        Lending(**odd)


def test_lending_looks_nothing_up_by_reading_a_table(tmp_path: Path) -> None:
    """SQLite's plan: each table by an index, and what I have answered by the item, however much that is."""
    with AnnotationLog(tmp_path / "annotations.db") as log:
        Desk(log)
        for query in (FIRST, LENT_BEFORE, ADDRESSED, NEW):
            text = str(query.compile(dialect=sqlite.dialect()))
            with log.reading() as connection:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", (1,) * text.count("?")).all()
            steps = [step for *_, step in plan]
            assert not [step for step in steps if step.startswith("SCAN")]
            assert not [step for step in steps if "answer_of_worker" in step]


WORKERS = ("ann", "bob", "eve")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 3), st.sampled_from([None, *WORKERS])),
        st.tuples(st.just("lend"), st.sampled_from(WORKERS), st.integers(1, 3)),
        st.tuples(st.just("answer"), st.sampled_from(WORKERS), st.integers(1, 8)),
        st.tuples(st.just("expire"), st.none(), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_it_does_what_a_plain_list_would(new_log_url: Callable[[], str], steps: list[tuple]) -> None:
    """Against the rules, written over lists: (item, worker) of questions, lent and live leases, answers."""
    asked: list[tuple[str, str | None]] = []
    lent: set[tuple[int, str]] = set()
    live: set[tuple[int, str]] = set()
    answered: list[tuple[int, str]] = []
    with AnnotationLog(new_log_url()) as log:
        desk = Desk(log)

        def item(question: int) -> str:
            return asked[question - 1][0]

        for what, first, second in steps:
            if what == "ask":
                ask(log, (f"i{first}", second))
                asked.append((f"i{first}", second))
            elif what == "expire":
                with log.writing() as connection:
                    connection.exec_driver_sql("UPDATE lease SET expires = 0")
                live.clear()
            elif what == "answer":
                known = {(item(question), worker) for question, worker in answered}
                allowed = (second, first) in lent
                expected = None if not allowed else (item(second), first) not in known
                assert give(desk, second, first) is expected
                if expected:
                    answered.append((second, first))
            else:
                mine: dict[str, int] = {}
                done = {item(question) for question, worker in answered if worker == first}
                taken = {question for question, _ in answered} | {question for question, worker in live if worker != first}
                free = [q for q in range(1, len(asked) + 1) if q not in taken and item(q) not in done]
                before = [q for q in free if (q, first) in lent]
                fresh = [q for q in free if q not in before]
                for q in before + [q for whom in (first, None) for q in fresh if asked[q - 1][1] == whom]:
                    if len(mine) < second:
                        mine.setdefault(item(q), q)
                assert lend(desk, first, second) == list(mine.values())
                lent |= {(q, first) for q in mine.values()}
                live |= {(q, first) for q in mine.values()}
        assert log.answers()[["question", "worker"]].to_numpy().tolist() == [list(pair) for pair in answered]
