"""Workers who confuse what a model confuses: against a slow second version, by their rates, and through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_runs import Bank, fit, rounds
from test_scripts import load_script
from test_simulated import slow_hash

from lightning_annot.types import AnnotError, Question, Task
from lightning_annot.workers.difficulty import DifficultyWorkers
from lightning_annot.workers.simulated import PerfectWorkers, StructuredWorkers, UniformNoiseWorkers

CLASSES = ["ant", "bee", "cat", "dog"]
N = 400
ITEMS = [f"i{j}" for j in range(N)]
TRUTH = np.arange(N) % 4
TASK = Task(ITEMS, CLASSES, 5, "", truth={name: CLASSES[k] for name, k in zip(ITEMS, TRUTH, strict=True)})


def probabilities(n: int = N) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(4, 0.4), n)


def save(path: Path, **changes: object) -> str:
    arrays: dict[str, object] = {"items": ITEMS, "classes": CLASSES, "probabilities": probabilities()}
    np.savez(path, **(arrays | changes))
    return str(path)


@pytest.fixture
def table(tmp_path: Path) -> str:
    return save(tmp_path / "p.npz")


def slow_answer(
    p: np.ndarray, own: np.ndarray, worker: int, item: int, share: float, together: float, alike: float, t: float
) -> int:
    """One answer in plain steps; ``own`` (K,) is the worker's confusion row of the image's class."""
    when, which, coin_when, coin_which = (
        int(s) >> 1 for s in np.random.SeedSequence((TASK.seed, 3)).generate_state(4, np.uint64)
    )
    everybody = (1 << 64) - 1
    truth = item % 4
    whose = everybody if slow_hash(coin_when, worker, item) < together else worker
    if slow_hash(when, whose, item) < share * (1 - p[truth]):
        weight = [0.0 if k == truth else p[k] ** (1 / t) for k in range(4)]
        row = [value / sum(weight) for value in weight]
        whose = everybody if slow_hash(coin_which, worker, item) < alike else worker
        draw = slow_hash(which, whose, item)
    else:
        row, draw = list(own), slow_hash(TASK.seed, worker, item)
    return sum(draw >= sum(row[: k + 1]) for k in range(3))


def test_answers_equal_the_slow_version_in_any_order(table: str) -> None:
    workers = DifficultyWorkers(table, StructuredWorkers(6), share=0.7, together=0.5, alike=0.4, temperature=1.7)
    workers.bind(TASK)
    worker, item = (part.ravel() for part in np.meshgrid(np.arange(6), np.arange(N)))
    confusions, p = StructuredWorkers(6).confusions(CLASSES, TASK.seed), probabilities()
    want = [
        slow_answer(p[i], confusions[j, i % 4], j, i, 0.7, 0.5, 0.4, 1.7)
        for j, i in zip(worker.tolist(), item.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(workers.answer(worker, item), want)
    order = np.random.default_rng(1).permutation(len(worker))
    np.testing.assert_array_equal(workers.answer(worker[order], item[order]), np.array(want)[order])
    workers.submit([Question("i7", "w003", id=1)])
    assert [answer.label for answer in workers.collect()] == [CLASSES[want[7 * 6 + 3]]]


def test_without_a_share_the_base_answers(table: str) -> None:
    worker, item = (part.ravel() for part in np.meshgrid(np.arange(5), np.arange(N)))
    mixed, base = DifficultyWorkers(table, StructuredWorkers(5), share=0.0), StructuredWorkers(5)
    mixed.bind(TASK)
    base.bind(TASK)
    np.testing.assert_array_equal(mixed.answer(worker, item), base.answer(worker, item))


def test_all_are_wrong_together_and_alike_at_the_extreme(table: str) -> None:
    workers = DifficultyWorkers(table, PerfectWorkers(9), share=1.0, together=1.0, alike=1.0)
    workers.bind(TASK)
    worker, item = np.meshgrid(np.arange(9), np.arange(N))
    label = workers.answer(worker.ravel(), item.ravel()).reshape(N, 9)
    assert (label == label[:, :1]).all()
    wrong = label[:, 0] != TRUTH
    assert wrong.mean() == pytest.approx((1 - probabilities()[np.arange(N), TRUTH]).mean(), abs=0.1)


@pytest.mark.parametrize("spammers", [0.0, 0.5])
def test_exported_confusions_are_what_the_answers_amount_to(table: str, tmp_path: Path, spammers: float) -> None:
    n_workers = 2000
    workers = DifficultyWorkers(table, UniformNoiseWorkers(n_workers, 0.8, spammers), share=0.6, together=0.0, alike=0.0)
    workers.bind(TASK)
    workers.export(tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz") as arrays:
        true, spammer = arrays["confusions"], arrays["spammer"]
    assert spammer.sum() == spammers * n_workers
    np.testing.assert_allclose(true.sum(2), 1.0, atol=1e-6)
    worker, item = (part.ravel() for part in np.meshgrid(np.arange(n_workers), np.arange(N)))
    label = workers.answer(worker, item)
    for who in (spammer, ~spammer):
        found = np.zeros((4, 4))
        here = who[worker]
        np.add.at(found, (TRUTH[item[here]], label[here]), 1.0)
        if who.any():
            np.testing.assert_allclose(found / found.sum(1, keepdims=True), true[who].mean(0), atol=0.01)


def test_items_may_stand_in_another_order_and_certain_images_are_easy(tmp_path: Path) -> None:
    order = np.random.default_rng(2).permutation(N)
    sure = np.eye(4)[TRUTH]
    plain = save(tmp_path / "a.npz")
    moved = save(tmp_path / "b.npz", items=np.array(ITEMS)[order], probabilities=probabilities()[order])
    easy = save(tmp_path / "c.npz", probabilities=sure)
    worker, item = (part.ravel() for part in np.meshgrid(np.arange(3), np.arange(N)))
    labels = []
    for path in (plain, moved, easy):
        workers = DifficultyWorkers(path, PerfectWorkers(3), share=1.0)
        workers.bind(TASK)
        labels.append(workers.answer(worker, item))
    np.testing.assert_array_equal(labels[0], labels[1])
    np.testing.assert_array_equal(labels[2], TRUTH[item])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": CLASSES[::-1]}, r"has the classes \['dog', 'cat'"),
        ({"items": [*ITEMS[:-1], "new"]}, r"lacks 1 of the 400 items, such as \['i399'\]"),
        ({"probabilities": probabilities(N - 1)}, r"shape \(399, 4\) for 400 items and 4 classes"),
        ({"probabilities": 2 * probabilities()}, "rows that sum to 1"),
        ({"probabilities": np.full((N, 4), np.nan)}, "rows that sum to 1"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        DifficultyWorkers(save(tmp_path / "p.npz", **changes)).bind(TASK)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DifficultyWorkers("a", share=1.5), r"share 1\.5"),
        (lambda: DifficultyWorkers("a", together=-0.1), r"together -0\.1"),
        (lambda: DifficultyWorkers("a", alike=2.0), r"alike 2\.0"),
        (lambda: DifficultyWorkers("a", temperature=0.0), r"temperature 0\.0"),
        (lambda: DifficultyWorkers("a").bind(TASK), r"a cannot be read .*probabilities needs items"),
    ],
)
def test_settings_are_checked(make: Callable[[], object], message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        make()


def test_the_script_makes_the_table_and_the_command_line_takes_it(bank: Bank, tmp_path: Path) -> None:
    script, table = load_script("make_difficulty"), tmp_path / "p.npz"
    words = ["--features", str(bank.features), "--labels", str(bank.labels), "--dim", "4", "--folds", "3"]
    assert script.main([*words, "--out", str(table)]) == 0
    with np.load(table) as arrays:
        assert arrays["probabilities"].shape == (len(arrays["items"]), 4)
        np.testing.assert_allclose(arrays["probabilities"].sum(1), 1.0, atol=1e-5)
    assert script.main([*words, "--out", str(tmp_path / "p.npy")]) == 2
    assert script.main([*words, "--out", str(table), "--folds", "1000"]) == 2
    workers = {
        "annotation.workers": "lightning_annot.workers.difficulty.DifficultyWorkers",
        "annotation.workers.probabilities": table,
        "annotation.workers.base": "lightning_annot.workers.simulated.StructuredWorkers",
        "annotation.workers.base.n_workers": 7,
    }
    run = fit(bank.settings() | workers, tmp_path / "run")
    assert len(rounds(run)) == 3
    with np.load(run / "simulated_workers.npz") as arrays:
        assert arrays["confusions"].shape == (7, 4, 4)


def test_the_script_refuses_what_does_not_fit(bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("make_difficulty")
    few = tmp_path / "few.csv"
    few.write_text("\n".join(bank.labels.read_text().splitlines()[:200]) + "\n")
    words = ["--features", str(bank.features), "--out", str(tmp_path / "p.npz")]
    assert script.main([*words, "--labels", str(few)]) == 2
    assert "row i is item i" in capsys.readouterr().err
