"""What every kind of worker must do, whoever answers. A new kind joins by one function in ``KINDS``."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch

from lightning_annot.types import Answer, Question, Task
from lightning_annot.workers.base import Workers
from lightning_annot.workers.files import FileWorkers
from lightning_annot.workers.recorded import RecordedWorkers

ITEMS = [f"i{i}" for i in range(6)]
CLASSES = ["cat", "dog"]
PEOPLE = ["ann", "bob"]


def _write_answers(path: Path) -> str:
    rows = [f"{item},{person},{CLASSES[i % 2]}" for i, (item, person) in enumerate(product(ITEMS, PEOPLE))]
    path.write_text("\n".join(["task,worker,label", *rows]) + "\n")
    return str(path)


def files(folder: Path) -> Workers:
    _write_answers(folder / "answers.csv")
    return FileWorkers()


def named_files(folder: Path) -> Workers:
    _write_answers(folder / "answers.csv")
    return FileWorkers(workers=PEOPLE)


def recorded(folder: Path) -> Workers:
    return RecordedWorkers(_write_answers(folder / "recorded.csv"))


def named_recorded(folder: Path) -> Workers:
    return RecordedWorkers(_write_answers(folder / "recorded.csv"), by_worker=True)


KINDS: list[Callable[[Path], Workers]] = [files, named_files, recorded, named_recorded]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def make(request, tmp_path: Path) -> Callable[[], Workers]:
    """Makes bound workers, like a new process would."""

    def make() -> Workers:
        workers = request.param(tmp_path)
        workers.bind(Task(ITEMS, CLASSES, seed=3, output_dir=str(tmp_path), truth=dict.fromkeys(ITEMS, "cat")))
        return workers

    return make


def _ask(workers: Workers, items: list[str], first: int = 1) -> list[Question]:
    names = list(workers.names()) or [None]
    return [Question(item, names[i % len(names)], id=first + i) for i, item in enumerate(items)]


def _by_question(answers: list[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: answer.question)


def test_nothing_comes_before_it_is_asked(make):
    assert list(make().collect()) == []


def test_answers_belong_to_submitted_questions_and_have_known_labels(make):
    workers = make()
    questions = _ask(workers, ITEMS[:4], first=11)
    workers.submit(questions)
    answers = list(workers.collect())
    assert sorted(answer.question for answer in answers) == [11, 12, 13, 14]
    assert all(answer.label is None or answer.label in CLASSES for answer in answers)
    assert all(answer.worker and answer.source for answer in answers)
    assert list(workers.collect()) == []


def test_submitting_again_changes_nothing(make):
    workers, once = make(), make()
    questions = _ask(workers, ITEMS)
    once.submit(questions)
    workers.submit(questions)
    workers.submit(questions)
    answers = list(workers.collect())
    assert _by_question(answers) == _by_question(list(once.collect()))
    workers.submit(questions)
    assert list(workers.collect()) == []


def test_a_new_process_answers_open_questions_alike(make):
    workers = make()
    questions = _ask(workers, ITEMS)
    workers.submit(questions[:3])
    early = list(workers.collect())
    workers.submit(questions[3:])
    late = list(workers.collect())

    resumed = make()
    item_of = {question.id: question.item for question in questions}
    resumed.remember([(item_of[answer.question], answer.worker) for answer in early])
    resumed.submit(questions[3:])
    assert _by_question(list(resumed.collect())) == _by_question(late)


def test_no_questions_are_fine(make):
    workers = make()
    workers.submit([])
    assert list(workers.collect()) == []


def test_names_capacity_and_pairs_have_their_shapes(make):
    workers = make()
    assert len(set(workers.names())) == len(workers.names())
    capacity = workers.capacity()
    assert capacity is None or (capacity.shape == (len(ITEMS),) and capacity.dtype == torch.int64)
    pairs = workers.can_answer()
    if pairs is not None:
        item, worker = pairs
        assert item.dtype == worker.dtype == torch.int64
        assert item.shape == worker.shape
        assert set(item.tolist()) <= set(range(len(ITEMS)))
        assert set(worker.tolist()) <= set(range(len(workers.names())))
