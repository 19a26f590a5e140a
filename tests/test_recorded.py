from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_annot.annotations.formats import read_answers, read_labels
from lightning_annot.types import AnnotError, Question, Task
from lightning_annot.workers.recorded import RecordedWorkers

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "cifar10n"
real = pytest.mark.skipif(not (DATA / "annotations.csv").exists(), reason=f"no real answers at {DATA}")

ANSWERS = """task,worker,label,seconds,slot
b,eve,dog,3,3
b,ann,cat,1,1
a,bob,dog,,2
b,bob,cat,2,2
a,eve,cat,4,1
"""
TASK = Task(["a", "b", "c"], ["cat", "dog"], seed=0, output_dir="")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "recorded.csv"
    path.write_text(ANSWERS)
    return path


def bound(path: Path, task: Task = TASK, **options: bool) -> RecordedWorkers:
    workers = RecordedWorkers(str(path), **options)
    workers.bind(task)
    return workers


def replay(workers: RecordedWorkers, questions: list[Question]) -> list[tuple[int, str, str | None, float | None]]:
    workers.submit(questions)
    return [(answer.question, answer.worker, answer.label, answer.seconds) for answer in workers.collect()]


def test_answers_come_by_slot(path):
    workers = bound(path)
    assert list(workers.names()) == []
    assert workers.can_answer() is None
    assert workers.capacity().tolist() == [2, 3, 0]
    questions = [Question("b", None, id=3), Question("a", None, id=2), Question("b", None, id=1)]
    assert replay(workers, questions) == [(1, "ann", "cat", 1.0), (2, "eve", "cat", 4.0), (3, "bob", "cat", 2.0)]
    assert replay(workers, [Question("a", None, id=4)]) == [(4, "bob", "dog", None)]


def test_answers_come_in_the_order_of_the_file_without_slots(path):
    pd.read_csv(path).drop(columns=["slot", "seconds"]).to_csv(path, index=False)
    questions = [Question("b", None, id=i) for i in (1, 2, 3)]
    assert [worker for _, worker, _, _ in replay(bound(path), questions)] == ["eve", "ann", "bob"]


def test_what_is_remembered_is_not_replayed(path):
    workers = bound(path)
    workers.remember([("b", "ann"), ("b", "stranger"), ("elsewhere", "ann"), ("c", "ann")])
    assert replay(workers, [Question("b", None, id=9)]) == [(9, "bob", "cat", 2.0)]


def test_a_question_to_a_worker_gets_that_workers_answer(path):
    workers = bound(path, by_worker=True)
    assert workers.names() == ["ann", "bob", "eve"]
    item, worker = workers.can_answer()
    assert set(zip(item.tolist(), worker.tolist(), strict=True)) == {(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)}
    questions = [Question("b", None, id=1), Question("b", "ann", id=2), Question("a", "eve", id=3)]
    assert replay(workers, questions) == [(1, "bob", "cat", 2.0), (2, "ann", "cat", 1.0), (3, "eve", "cat", 4.0)]


@pytest.mark.parametrize(
    "question",
    [Question("c", None, id=9), Question("a", "ann", id=9), Question("z", None, id=9), Question("a", "x", id=9)],
)
def test_a_question_without_a_recorded_answer_is_an_error_that_takes_nothing(path, question):
    workers = bound(path)
    with pytest.raises(AnnotError, match="1 questions have no recorded answer left"):
        workers.submit([Question("a", None, id=1), question])
    assert replay(workers, [Question("a", None, id=1)]) == [(1, "eve", "cat", 4.0)]


def test_more_questions_than_answers_are_an_error(path):
    with pytest.raises(AnnotError, match=r"1 questions .*'a' to anyone"):
        bound(path).submit([Question("a", None, id=i) for i in (1, 2, 3)])


def test_unknown_items_are_an_error_unless_ignored(path):
    task = Task(["b"], ["cat", "dog"], seed=0, output_dir="")
    with pytest.raises(AnnotError, match=r"outside the items .*'a'"):
        bound(path, task)
    assert bound(path, task, ignore_unknown=True).capacity().tolist() == [3]
    with pytest.raises(AnnotError, match="holds no answers"):
        bound(path, Task(["x"], ["cat", "dog"], seed=0, output_dir=""), ignore_unknown=True)


def test_a_bad_file_is_an_error(path):
    with pytest.raises(AnnotError, match="outside the classes"):
        bound(path, Task(["a", "b"], ["cat"], seed=0, output_dir=""))
    path.write_text(ANSWERS + "a,eve,dog,1,3\n")
    with pytest.raises(AnnotError, match="same worker answered in another way above"):
        bound(path)


def slow_replay(table: pd.DataFrame, items: list[str]) -> list[str]:
    """Workers who answer questions to anyone about ``items``, one question after the other."""
    waiting = {item: list(rows["worker"]) for item, rows in table.groupby("task")}
    return [waiting[item].pop(0) for item in items]


@pytest.mark.parametrize("seed", range(5))
def test_batches_and_restarts_equal_one_question_after_the_other(tmp_path, seed):
    generator = np.random.default_rng(seed)
    pairs = [(f"i{i}", f"w{j}", "cat") for i in range(20) for j in range(7) if generator.random() < 0.5]
    order = generator.permutation(len(pairs))
    table = pd.DataFrame([pairs[i] for i in order], columns=["task", "worker", "label"])
    table.to_csv(tmp_path / "recorded.csv", index=False)
    task = Task([f"i{i}" for i in range(20)], ["cat"], seed=0, output_dir="")
    asked = [pairs[i][0] for i in generator.permutation(len(pairs))]

    answered: list[tuple[str, str]] = []
    while len(answered) < len(asked):
        workers = bound(tmp_path / "recorded.csv", task)
        workers.remember(answered)
        for size in generator.integers(1, 9, size=2):
            done = len(answered)
            batch = [Question(item, None, id=done + i + 1) for i, item in enumerate(asked[done : done + size])]
            found = replay(workers, batch)
            answered += [(question.item, answer[1]) for question, answer in zip(batch, found, strict=True)]
    assert [worker for _, worker in answered] == slow_replay(table, asked)


@real
def test_the_real_answers_replay_whole_and_by_slot():
    items = read_labels(DATA / "true_labels.csv")["task"].tolist()
    table = read_answers(DATA / "annotations.csv").sort_values("slot", kind="stable")
    workers = bound(DATA / "annotations.csv", Task(items, sorted(set(table["label"])), seed=0, output_dir=""))
    assert set(workers.capacity().tolist()) == {3}
    questions = [Question(item, None, id=i + 1) for i, item in enumerate(items * 3)]
    began = time.process_time()  # of this process: others may be busy
    answers = [answer for at in range(0, 30_000, 2000) for answer in replay(workers, questions[at : at + 2000])]
    assert time.process_time() - began < 5
    key = {(task, worker): label for task, worker, label in zip(table.task, table.worker, table.label, strict=True)}
    slot = {(task, worker): slot for task, worker, slot in zip(table.task, table.worker, table.slot, strict=True)}
    for (_, worker, label, _), question in zip(answers, questions, strict=True):
        assert key[question.item, worker] == label
        assert slot[question.item, worker] == (question.id - 1) // len(items) + 1
