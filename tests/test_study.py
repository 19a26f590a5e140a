"""A confusion study on the page: balanced questions by name, no run, and a file that simulated workers read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_runs import CONFIGS, PIXELS, QUIET, answers, call, fit, questions
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.page_task import TASK_FILE, PageTask, Study
from lightning_annot.exchange.confusions import write_group_workers
from lightning_annot.exchange.study import draw
from lightning_annot.experiments.served import ServedPage
from lightning_annot.types import AnnotError, Question
from lightning_annot.workers.amt import AMTWorkers

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

CLASSES = tuple("0123456789")
EACH, EXAMPLES = 4, 1
TRUTH = {str(row): str(label) for row, label in enumerate(load_digits().target)}


@pytest.fixture
def prototypes(tmp_path: Path) -> Path:
    """Six digits of each class."""
    table = pd.DataFrame({"task": list(TRUTH), "label": list(TRUTH.values())}).groupby("label").head(6)
    table.to_csv(tmp_path / "known.csv", index=False)
    return tmp_path / "known.csv"


def prepare(run: Path, prototypes: Path, *more: str) -> str:
    words = (str(run), "--root", "digits", "--prototypes", str(prototypes), "--each", str(EACH), *more)
    result = call("study", {}, *words)
    return result.out if result.status == 0 else result.err


@contextmanager
def enter(link: str) -> Iterator[httpx.Client]:
    """A client with the cookie of a link."""
    with httpx.Client(base_url=link.split("/w/")[0].split("/o/")[0], timeout=600) as client:
        assert client.get(link).status_code == 200
        yield client


def work(link: str, run: Path, name: str, confusion: np.ndarray, most: int = 1000) -> np.ndarray:
    """Answer by a known ``confusion`` up to ``most`` questions; returns what was answered to what (K, K)."""
    rng = np.random.default_rng([len(name), *name.encode()])
    given = np.zeros((10, 10), dtype=int)
    with enter(link) as client, AnnotationLog(run / "annotations.db") as log:
        while given.sum() < most:
            found = client.post("/api/next", json={"n": 10}).json()
            assert found["of"] == EACH * 10
            if not found["questions"]:
                assert found["done"] == EACH * 10
                break
            for question in found["questions"][: most - given.sum()]:
                true = int(TRUTH[str(Desk(log).item_lent(question, name))])
                said = int(rng.choice(10, p=confusion[true]))
                told = client.post("/api/answer", json={"question": question, "label": str(said), "seconds": 1.0})
                assert told.json() == {"new": True}  # and not whether it was right
                given[true, said] += 1
    return given


def test_a_study_becomes_workers(tmp_path: Path, prototypes: Path) -> None:
    run, out = tmp_path / "study", tmp_path / "study.json"
    assert "everybody is asked 40 questions, 4 about each of 10 classes" in prepare(run, prototypes)
    confusions = {name: np.eye(10) * (a - b) + b for name, a, b in (("ann", 0.91, 0.01), ("bob", 0.55, 0.05), ("eve", 1, 0))}
    counts = {}
    with ServedPage(run, ["ann", "bob"]) as served:
        counts["ann"] = work(served.links["ann"], run, "ann", confusions["ann"])
        early = work(served.links["bob"], run, "bob", confusions["bob"], most=15)
    task = PageTask.read(run / TASK_FILE)
    assert task.study is not None
    with (
        ServedPage(run, []) as served,  # started anew
        enter(served.links["owner"]) as owner,
        AnnotationLog(run / "annotations.db") as log,
    ):
        base = served.links["owner"].split("/o/")[0]
        counts["bob"] = early + work(f"{base}/w/{Desk(log).invite('bob')}", run, "bob", confusions["bob"])
        late = owner.post("/owner/act", json={"action": "invite", "worker": "eve"}).json()["path"]
        counts["eve"] = work(f"{base}{late}", run, "eve", confusions["eve"])
        html = owner.get("/owner").text
        assert "Confusion study" in html
        assert html.count("<td>40 of 40</td>") == 3
        assert '<td data-value="1.0">40 of 40</td>' in html  # eve was right each time
        for plot in ("confusion", "people", "pace"):
            assert "<svg" in owner.get(f"/owner/plot/{plot}").text
        served = owner.get("/owner/export/group-workers").json()
        with enter(f"{base}/w/{Desk(log).invite('ann')}") as ann:
            assert ann.get("/").text.count('data-examples="0"') == 10  # one of each class
            assert ann.get("/example/3/0").status_code == 200
            assert ann.get("/example/3/1").status_code == 404
    asked = questions(run)
    assert set(asked["kind"]) == {"gold"}
    for name, some in asked.groupby("worker"):
        assert some["item"].tolist() == task.study.items_for(name)
        assert Counter(TRUTH[item] for item in some["item"]) == dict.fromkeys(CLASSES, EACH)
    assert not {item for items in task.examples.values() for item in items} & set(asked["item"])
    assert call("confusions", {}, str(run), "--out", str(out)).status == 0
    data = json.loads(out.read_text())
    assert served == data
    assert data["workers"]["0"] == ["ann", "bob", "eve"]
    np.testing.assert_array_equal(data["group_workers"]["0"], [counts[name] for name in ("ann", "bob", "eve")])
    assert out.with_suffix(".png").stat().st_size > 1000
    assert (tmp_path / "study-people.png").stat().st_size > 1000
    assert AMTWorkers(str(out), n_workers=5).confusions(CLASSES, seed=0).shape == (5, 10, 10)


@pytest.mark.slow
def test_a_run_starts_with_the_workers_of_a_study(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).multinomial(EACH, np.full(10, 0.1), size=(3, 10))
    write_group_workers(tmp_path / "study.json", CLASSES, CLASSES, {"0": counts}, {"0": ["ann", "bob", "eve"]})
    options = {**QUIET, **PIXELS, "config": CONFIGS / "digits.yaml", "trainer.max_epochs": 2, "data.batches.steps": 5}
    options |= {"annotation.workers": "lightning_annot.workers.amt.AMTWorkers"}
    options |= {"annotation.workers.workers_file": tmp_path / "study.json"}
    assert len(answers(fit(options, tmp_path / "run"))) > 0


def test_the_same_again_changes_nothing_and_another_is_refused(tmp_path: Path, prototypes: Path) -> None:
    run = tmp_path / "study"
    prepare(run, prototypes)
    before = (run / TASK_FILE).read_text()
    prepare(run, prototypes)
    assert (run / TASK_FILE).read_text() == before
    assert "belongs to another run" in prepare(run, prototypes, "--seed", "3")
    assert (run / TASK_FILE).read_text() == before


@pytest.mark.parametrize("by_url", [False, True])
def test_a_run_in_its_folder_is_refused_before_anything_costs(tmp_path: Path, prototypes: Path, by_url: bool) -> None:
    run = tmp_path / "study"
    prepare(run, prototypes)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.suffix != ".db-shm"}
    settings = {**QUIET, "config": CONFIGS / "digits.yaml", "annotation.output_dir": run}  # which adapts a backbone first
    if by_url:
        settings |= {"annotation.output_dir": tmp_path / "run", "annotation.log_url": f"sqlite:///{run / 'annotations.db'}"}
    result = call("fit", settings)
    assert result.status == 2
    assert "annotations.db is the log of a confusion study; choose another annotation.output_dir" in result.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.suffix != ".db-shm"} == before
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--each", "6"), "'0' has 6 prototypes, and 7 are needed"),
        (("--each", "0"), "each is 1 or more"),
        (("--classes", "0"), "two or more"),
        (("--classes", "0", "cat"), "'cat' has 0 prototypes"),
        (("--root", "/nowhere"), "does not exist"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, prototypes: Path, more: tuple[str, ...], told: str) -> None:
    assert told in prepare(tmp_path / "study", prototypes, *more)
    assert not (tmp_path / "study" / TASK_FILE).exists()


def test_nobody_answers_for_another_in_a_study(tmp_path: Path, prototypes: Path) -> None:
    prepare(tmp_path / "study", prototypes)
    result = call("serve", {}, str(tmp_path / "study"), "--port", "0", "--give-back-hours", "1")
    assert result.status == 2
    assert "--give-back-hours given for a study" in result.err


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2), st.text(min_size=1))
def test_everybody_gets_as_many_of_each_class_and_no_example(k: int, each: int, spare: int, shown: int, name: str) -> None:
    n = each + spare + shown
    known = pd.DataFrame([(f"{label}/{i}", str(label)) for i in range(n) for label in range(k)], columns=["task", "label"])
    classes = [str(label) for label in range(k)]
    examples, study = draw(known, classes, each, shown, seed=5)
    items = study.items_for(name)
    assert Counter(item.split("/")[0] for item in items) == dict.fromkeys(classes, each)
    assert len(set(items)) == study.size == each * k
    assert not {item for some in examples.values() for item in some} & {*items}
    assert items == study.items_for(name)
    assert draw(known, classes, None, shown, seed=5)[1].each == n - shown


def test_orders_differ_between_workers_and_seeds() -> None:
    study = Study({name: tuple(f"{name}{i}" for i in range(9)) for name in "abc"}, 5, 0)
    orders = [study.items_for("ann"), study.items_for("bob"), Study(study.prototypes, 5, 1).items_for("ann")]
    assert len({tuple(order) for order in orders}) == 3


def test_a_newcomer_is_asked_once(tmp_path: Path) -> None:
    with AnnotationLog(tmp_path / "annotations.db") as log:
        assert log.ask_newcomer("ann", [Question("a", "ann", "gold")])
        assert not log.ask_newcomer("ann", [Question("b", "ann", "gold")])
        assert log.questions()["item"].tolist() == ["a"]
        with pytest.raises(AnnotError, match="name no item"):
            log.ask_newcomer("bob", [Question("", "bob", "gold")])
