from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.types import AnnotError, Answer, Question

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "annotations.db"


@pytest.fixture
def log(log_url: str):
    with AnnotationLog(log_url) as log:
        yield log


def test_questions_and_answers_come_back_as_they_went_in(log):
    asked = log.ask([Question("a", None), Question("b", "ann", "gold", 2), Question("NA", None, "audit", 3)])
    assert [question.id for question in asked] == [1, 2, 3]
    assert log.answer([Answer(2, "bob", "cat", 1.5, "file"), Answer(1, "ann", None)]) == 2

    questions = log.questions()
    assert list(questions) == ["id", "item", "worker", "kind", "round", "asked_at"]
    assert questions["worker"].tolist() == [None, "ann", None]
    assert [Question(*row) for row in questions[["item", "worker", "kind", "round", "id"]].itertuples(index=False)] == asked

    answers = log.answers()
    assert answers["id"].tolist() == [1, 2]
    assert answers["label"].tolist() == ["cat", None]
    assert answers["seconds"].iloc[0] == 1.5
    assert answers["seconds"].isna().tolist() == [False, True]
    assert answers["item"].tolist() == ["b", "a"]
    assert answers["kind"].tolist() == ["gold", "annotation"]
    assert answers["source"].tolist() == ["file", ""]
    assert answers["answered_at"].str.endswith("+00:00").all()


def test_filters(log):
    log.ask([Question("a", None, round=r, kind=k) for r in range(3) for k in ("annotation", "gold")])
    log.answer([Answer(i, "ann", "cat") for i in (1, 2, 5)])
    assert log.questions(before_round=1)["id"].tolist() == [1, 2]
    assert log.questions(round=1)["id"].tolist() == [3, 4]
    assert log.questions(kind="gold", open_only=True)["id"].tolist() == [4, 6]
    assert log.answers(before_round=2)["question"].tolist() == [1, 2]
    assert log.answers(after_id=1, kind="annotation")["question"].tolist() == [5]
    with pytest.raises(AnnotError, match="unknown kinds"):
        log.answers(kind="quiz")


def test_empty_frames_have_the_same_types(log):
    empty = log.answers().dtypes, log.questions().dtypes
    log.ask([Question("a", None)])
    log.answer([Answer(1, "ann", "cat")])
    assert (empty[0] == log.answers().dtypes).all()
    assert (empty[1] == log.questions().dtypes).all()


def test_a_skip_closes_its_question(log):
    log.ask([Question("a", None), Question("b", None)])
    log.answer([Answer(1, "ann", None)])
    assert log.questions(open_only=True)["id"].tolist() == [2]


def test_a_repeated_answer_is_left_out_and_the_first_counts(log, caplog):
    log.ask([Question("a", None)])
    assert log.answer([Answer(1, "ann", "cat"), Answer(1, "ann", "cat")]) == 1
    assert log.answer([Answer(1, "ann", "cat"), Answer(1, "bob", "dog")]) == 1
    assert not caplog.records
    assert log.answer([Answer(1, "ann", "dog")]) == 0
    assert "'cat' stays, 'dog' is dropped" in caplog.text
    assert log.answers()["label"].tolist() == ["cat", "dog"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Answer(3, "ann", "cat"), "unknown questions 3"),
        (Answer(0, "ann", "cat"), "unknown questions 0"),
        (Answer(2, "", "cat"), "no worker"),
        (Answer(2, "ann", ""), "empty label"),
        (Answer(2, "ann", "cat", -1.0), "impossible time"),
        (Answer(2, "ann", "cat", float("nan")), "impossible time"),
    ],
)
def test_a_bad_answer_stops_its_whole_batch(log, bad, message):
    log.ask([Question("a", None), Question("b", None)])
    with pytest.raises(AnnotError, match=message):
        log.answer([Answer(1, "ann", "cat"), bad])
    assert log.answers().empty


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Question("a", None, kind="quiz"), "unknown kinds of question quiz"),
        (Question("", None), "name no item"),
        (Question("a", ""), "empty worker"),
        (Question("a", None, id=7), "in a log already"),
    ],
)
def test_a_bad_question_stops_its_whole_batch(log, bad, message):
    with pytest.raises(AnnotError, match=message):
        log.ask([Question("ok", None), bad])
    assert log.questions().empty


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM answer",
        "UPDATE answer SET label = 'dog'",
        "DELETE FROM question",
        "UPDATE question SET round = 9",
    ],
)
def test_rows_can_be_neither_changed_nor_deleted(log, statement):
    log.ask([Question("a", None)])
    log.answer([Answer(1, "ann", "cat")])
    with pytest.raises(AnnotError, match="append-only"), log.writing() as connection:
        connection.exec_driver_sql(statement)
    assert log.answers()["label"].tolist() == ["cat"]


def test_claim(log_url):
    with AnnotationLog(log_url) as log:
        log.claim({"seed": "1", "classes": "abc"})
        log.claim({"classes": "abc", "seed": "1"})
    with AnnotationLog(log_url) as log, pytest.raises(AnnotError) as error:
        log.claim({"seed": "2", "data": "x", "classes": "abc"})
    assert "data: absent -> x; seed: 1 -> 2" in str(error.value)
    assert "classes:" not in str(error.value)
    assert "output_dir" in str(error.value)


def test_what_is_no_log_is_refused(tmp_path):
    text = tmp_path / "annotations.db"
    text.write_text("task,worker,label\n" * 100)
    with pytest.raises(AnnotError, match="cannot be opened"):
        AnnotationLog(text)
    assert text.read_text().startswith("task,worker")
    with pytest.raises(AnnotError, match="SQLAlchemy URL"):
        AnnotationLog("nosuchdatabase://user@host/db")
    with pytest.raises(AnnotError, match="cannot be opened"):
        AnnotationLog(text / "below" / "annotations.db")


def test_another_log_format_is_refused(path):
    AnnotationLog(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE identity SET value = '99'")
    with pytest.raises(AnnotError, match="log format 99"):
        AnnotationLog(path)


def test_a_url_is_the_same_log(path):
    with AnnotationLog(path) as log:
        log.ask([Question("a", None)])
    with AnnotationLog(f"sqlite:///{path}") as log:
        assert len(log.questions()) == 1


def test_record_commits_both_or_leaves_out(log):
    pair = (Question("a", "ann", round=-1), Answer(0, "ann", "cat"))
    other = (Question("a", "bob", round=-1), Answer(0, "bob", "dog"))
    assert log.record([pair, pair]) == 1
    assert log.record([pair, other]) == 1
    assert log.questions()["worker"].tolist() == ["ann", "bob"]
    assert log.answers()["question"].tolist() == [1, 2]


def test_two_writers_share_one_log(log_url):
    def write(name: str) -> list[int]:
        with AnnotationLog(log_url) as log:
            asked = [log.ask([Question(name, None)] * 3) for _ in range(10)]
        return [question.id for batch in asked for question in batch]

    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(write, "abcd"))
    assert sorted(i for own in ids for i in own) == list(range(1, 121))
    with AnnotationLog(log_url) as log:
        assert log.questions()["item"].value_counts().to_dict() == dict.fromkeys("abcd", 30)


WRITER = textwrap.dedent(
    """
    import os, sys
    from lightning_annot.annotations.log import AnnotationLog
    from lightning_annot.types import Answer, Question

    def tell(what, last):  # in one write: a killed process leaves whole lines
        os.write(1, f"{what} {last}\\n".encode())

    log = AnnotationLog(sys.argv[1])
    while True:
        asked = log.ask([Question(str(i), None) for i in range(50)])
        tell("asked", asked[-1].id)
        log.answer([Answer(question.id, "ann", "cat") for question in asked])
        tell("answered", asked[-1].id)
    """
)


def test_kill_9_loses_nothing_committed_and_leaves_no_part_of_a_batch(log_url):
    generator = random.Random(0)
    committed: dict[str, set[int]] = {"asked": set(), "answered": set()}
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, log_url]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        first = writer.stdout.readline()
        time.sleep(generator.uniform(0.0, 0.15))
        writer.send_signal(signal.SIGKILL)
        for line in (first, *writer.stdout):
            what, last = line.split()
            committed[what] |= set(range(int(last) - 49, int(last) + 1))
        writer.wait()
        with AnnotationLog(log_url) as log:
            found = {"asked": log.questions()["id"], "answered": log.answers()["question"]}
        for what, ids in found.items():
            assert committed[what] <= set(ids)
            assert ((ids - 1) // 50).value_counts().isin([50]).all()
        assert found["asked"].tolist() == list(range(1, len(found["asked"]) + 1))


def test_many_open_a_new_log_at_once(new_log_url):
    for _ in range(20):
        url, ready = new_log_url(), threading.Barrier(8)

        def opened(_: int, url: str = url, ready: threading.Barrier = ready) -> dict[str, str]:
            ready.wait()
            with AnnotationLog(url) as log:
                return log.identity()

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(opened, range(8))) == [{}] * 8
