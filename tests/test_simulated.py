"""Simulated workers: answers by seed, worker and item; confusions; spammers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest

from lightning_annot.types import AnnotError, Question, Task
from lightning_annot.workers.amt import AMTWorkers
from lightning_annot.workers.simulated import (
    PerfectWorkers,
    SimulatedWorkers,
    StructuredWorkers,
    UniformNoiseWorkers,
    _draw_spammers,
    hashed_uniform,
    spread_evenly,
)

CLASSES = ["ant", "bee", "cat", "dog"]


def make_task(n: int = 200, seed: int = 0, classes: Sequence[str] = CLASSES) -> Task:
    items = [f"i{j}" for j in range(n)]
    truth = {name: classes[j % len(classes)] for j, name in enumerate(items)}
    return Task(items, classes, seed, "", truth=truth)


def bound(workers: SimulatedWorkers, task: Task) -> SimulatedWorkers:
    workers.bind(task)
    return workers


def answers(workers: SimulatedWorkers, questions: list[Question], size: int) -> dict[tuple[str, str], str | None]:
    found = {}
    by_id = {q.id: q for q in questions}
    for start in range(0, len(questions), size):
        workers.submit(questions[start : start + size])
        for answer in workers.collect():
            assert by_id[answer.question].worker == answer.worker
            found[by_id[answer.question].item, answer.worker] = answer.label
    return found


def test_answers_are_a_function_of_seed_worker_and_item() -> None:
    task = make_task()
    pairs = [(item, f"w{j:03d}") for item in task.items for j in range(5)]
    questions = [Question(item, worker, id=i + 1) for i, (item, worker) in enumerate(pairs)]
    shuffled = [questions[i] for i in np.random.default_rng(0).permutation(len(questions))]
    renumbered = [Question(q.item, q.worker, round=7, id=q.id + 5000) for q in questions]
    one = answers(bound(StructuredWorkers(5), task), questions, len(questions))
    assert len(one) == 1000
    assert one == answers(bound(StructuredWorkers(5), task), shuffled, 37)
    assert one == answers(bound(StructuredWorkers(5), task), renumbered, 999)
    assert one == answers(bound(StructuredWorkers(9), task), questions, 100)  # more workers change nobody
    assert one != answers(bound(StructuredWorkers(5), make_task(seed=1)), questions, 1000)


def test_submitting_again_changes_nothing() -> None:
    workers = bound(UniformNoiseWorkers(3), make_task())
    question = Question("i3", "w001", id=4)
    workers.submit([question])
    workers.submit([question])
    assert [answer.question for answer in workers.collect()] == [4]
    assert workers.collect() == []


@pytest.mark.parametrize("workers", [UniformNoiseWorkers(2, 0.6), StructuredWorkers(2, 0.7), PerfectWorkers(2)])
def test_answers_approach_the_confusion_matrix(workers: SimulatedWorkers) -> None:
    n = 40_000
    workers.bind(make_task(n))
    truth, item = np.arange(n) % 4, np.arange(n)
    for j, matrix in enumerate(workers.confusions(CLASSES, 0)):
        label = workers.answer(np.full(n, j), item)
        found = np.zeros((4, 4))
        np.add.at(found, (truth, label), 4 / n)
        np.testing.assert_allclose(found, matrix, atol=5 * np.sqrt(0.25 / (n / 4)))


@pytest.mark.parametrize("n_classes", [2, 4, 30])
@pytest.mark.parametrize("workers", [PerfectWorkers(3), UniformNoiseWorkers(3), StructuredWorkers(3)])
def test_confusions_are_distributions(workers: SimulatedWorkers, n_classes: int) -> None:
    confusions = workers.confusions([str(k) for k in range(n_classes)], 5)
    assert confusions.shape == (3, n_classes, n_classes)
    assert (confusions >= 0).all()
    np.testing.assert_allclose(confusions.sum(2), 1.0)


def test_structured_workers_differ_but_share_their_errors() -> None:
    confusions = StructuredWorkers(300, accuracy=0.8).confusions([str(k) for k in range(10)], 3)
    accuracy = confusions.diagonal(axis1=1, axis2=2).mean(1)
    assert accuracy.mean() == pytest.approx(0.8, abs=0.02)
    assert 0.05 < accuracy.std() < 0.11
    off = confusions[:, ~np.eye(10, dtype=bool)]
    assert np.corrcoef(off)[np.triu_indices(300, 1)].mean() > 0.5


@pytest.mark.parametrize("make", [UniformNoiseWorkers, StructuredWorkers])
def test_spammers_answer_evenly_whatever_the_class_and_change_nobody_else(make: type, tmp_path: Path) -> None:
    n, task = 8000, make_task(8000)
    plain, mixed = bound(make(10), task), bound(make(10, spammers=0.3), task)
    mixed.export(tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz") as arrays:
        spammer, true = arrays["spammer"], arrays["confusions"]
    assert spammer.dtype == bool
    assert spammer.sum() == 3
    np.testing.assert_array_equal(true[spammer], 0.25)
    np.testing.assert_array_equal(true[~spammer], make(10).confusions(CLASSES, 0).astype(np.float32)[~spammer])
    truth, item = np.arange(n) % 4, np.arange(n)
    for j in range(10):
        label = mixed.answer(np.full(n, j), item)
        if spammer[j]:
            found = np.zeros((4, 4))
            np.add.at(found, (truth, label), 4 / n)
            np.testing.assert_allclose(found, 0.25, atol=5 * np.sqrt(0.19 / (n / 4)))
        else:
            np.testing.assert_array_equal(label, plain.answer(np.full(n, j), item))


def test_the_seed_chooses_the_spammers() -> None:
    chosen = np.stack([_draw_spammers(20, 0.2, seed) for seed in range(500)])
    assert (chosen.sum(1) == 4).all()
    assert np.abs(chosen.mean(0) - 0.2).max() < 5 * np.sqrt(0.16 / 500)
    assert not _draw_spammers(20, 0.02, 3).any()
    assert _draw_spammers(20, 1.0, 3).all()


@pytest.mark.parametrize("make", [UniformNoiseWorkers, StructuredWorkers])
def test_without_spammers_answers_are_those_of_the_confusions(make: type) -> None:
    """A recorded run is continued by the same answers, so they may never change."""
    workers = bound(make(4), make_task())
    worker, item = (part.ravel() for part in np.meshgrid(np.arange(4), np.arange(200)))
    confusions = make(4).confusions(CLASSES, 0)
    want = []
    for j, i in zip(worker.tolist(), item.tolist(), strict=True):
        row = np.cumsum(confusions[j, i % 4])
        want.append(sum(slow_hash(0, j, i) >= row[k] for k in range(3)))
    np.testing.assert_array_equal(workers.answer(worker, item), want)


def test_hashed_uniform_is_uniform_and_independent() -> None:
    item = np.arange(20_000)
    draws = np.stack([hashed_uniform(seed, np.full_like(item, j), item) for seed in (0, 1) for j in range(6)])
    assert ((draws >= 0) & (draws < 1)).all()
    assert min(kstest(row, "uniform").pvalue for row in draws) > 1e-3
    assert np.abs(np.corrcoef(draws)[np.triu_indices(12, 1)]).max() < 5 / np.sqrt(len(item))
    neighbours = [np.corrcoef(row[:-1], row[1:])[0, 1] for row in draws]
    assert np.abs(neighbours).max() < 5 / np.sqrt(len(item))
    by_worker = hashed_uniform(0, item, np.full_like(item, 3))
    assert kstest(by_worker, "uniform").pvalue > 1e-3
    assert len(np.unique(draws)) == draws.size


def test_hashed_uniform_values_stay() -> None:
    """A recorded run is continued by the same answers, so the hash may never change."""
    got = hashed_uniform(7, np.array([0, 1, 2]), np.array([5, 5, 6]))
    np.testing.assert_array_equal(got, [slow_hash(7, 0, 5), slow_hash(7, 1, 5), slow_hash(7, 2, 6)])


def slow_hash(*parts: int) -> float:
    """The same in Python's integers."""
    most, state = (1 << 64) - 1, 0
    for part in parts:
        state = ((state ^ part) + 0x9E3779B97F4A7C15) & most
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & most
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & most
        state ^= state >> 31
    return (state >> 11) / 2.0**53


def test_spread_evenly() -> None:
    np.testing.assert_allclose(spread_evenly(np.array([0.8, 0.5, 1.0])), [[0.8, 0.1, 0.1], [0.25, 0.5, 0.25], [0, 0, 1]])


def test_bad_tasks_and_questions() -> None:
    task = make_task()
    with pytest.raises(AnnotError, match="answers from the truth"):
        PerfectWorkers().bind(Task(task.items, CLASSES, 0, ""))
    with pytest.raises(AnnotError, match=r"1 items without a true label, such as \['new'\]"):
        PerfectWorkers().bind(Task([*task.items, "new"], CLASSES, 0, "", truth=task.truth))
    with pytest.raises(AnnotError, match="worker 'w009'"):
        bound(PerfectWorkers(), task).submit([Question("i0", "w009", id=1)])
    with pytest.raises(AnnotError, match="worker None"):
        bound(PerfectWorkers(), task).submit([Question("i0", None, id=1)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerfectWorkers(0), "n_workers 0"),
        (lambda: UniformNoiseWorkers(5, 1.2), r"accuracy 1\.2"),
        (lambda: UniformNoiseWorkers(5, spammers=1.1), r"spammers 1\.1"),
        (lambda: StructuredWorkers(5, spammers=-0.1), r"spammers -0\.1"),
        (lambda: AMTWorkers("a", "b", spammers=2.0), r"spammers 2\.0"),
        (lambda: StructuredWorkers(5, -0.1), r"accuracy -0\.1"),
        (lambda: StructuredWorkers(5, spread=-1.0), r"spread -1\.0"),
        (lambda: StructuredWorkers(5, concentration=0.0), r"concentration 0\.0"),
        (lambda: AMTWorkers("a", "b", group="cats"), "'cats' given; allowed are dog, vertebrate"),
        (lambda: AMTWorkers("a", "b", smooth=0.0), r"smooth 0\.0"),
        (lambda: AMTWorkers("a", "b", outside=1.0), r"outside 1\.0"),
        (lambda: AMTWorkers("a", "b").confusions(CLASSES, 0), "a does not exist"),
    ],
)
def test_settings_are_checked(make: object, message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        make()  # type: ignore[operator]
