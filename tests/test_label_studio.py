"""A run whose people answer in a real Label Studio server, killed and resumed; each annotation is an answer, once."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_runs import CONFIGS, PIXELS, QUIET, ROOT, answers, arguments, questions, rounds
from label_studio_server import TOKEN, Person, Server, command, free_port, line_to, question_of, running
from PIL import Image
from sklearn.datasets import load_digits

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.types import AnnotError, Answer, Question, Task
from lightning_annot.workers.label_studio import GROUND_TRUTH, LabelStudioWorkers
from lightning_annot.workers.label_studio_client import TOKEN_VARIABLE

pytestmark = [
    pytest.mark.label_studio,
    pytest.mark.skipif(
        command() is None, reason="no label-studio command: set LABEL_STUDIO to its path (pip install label-studio)"
    ),
]

WORKERS = "lightning_annot.workers.label_studio.LabelStudioWorkers"
TRUTH = load_digits().target.astype(str)
IMAGES = "/data/local-files/?d=files/{item}.png"
ITEMS, CLASSES = ["a", "b", "c"], ["cat", "dog&<cow>"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch, running(tmp_path_factory.mktemp("label-studio")) as server:
        patch.setenv(TOKEN_VARIABLE, TOKEN)
        yield server


def start_fit(run: Path, settings: dict[str, Any], *more: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    words = [sys.executable, "-m", "lightning_annot", "fit", *more, *arguments({**settings, "annotation.output_dir": run})]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed; it must have succeeded."""
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert TOKEN not in said
    return said


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def wait_for(what: Any, process: subprocess.Popen[str]) -> None:
    """Wait until ``what`` gives something true, as long as the command runs."""
    while not what():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def logged(run: Path) -> dict[tuple[int, str], tuple[str | None, float, str]]:
    """Label, seconds and source by question and worker."""
    table = answers(run)
    return {
        (row.question, row.worker): (row.label, row.seconds, row.source) for row in table.itertuples() if row.source != "expert"
    }


def said_by(*people: Person) -> dict[tuple[int, str], tuple[str | None, float, str]]:
    return {(q, p.email): (label, seconds, "label-studio") for p in people for q, (label, seconds) in p.given.items()}


def opinion(item: str) -> tuple[str | None, float]:
    """Mostly the truth; every 17th digit is skipped, every 7th taken for the next one."""
    i = int(item)
    label = None if i % 17 == 0 else str((int(TRUTH[i]) + (i % 7 == 0)) % 10)
    return label, 1 + i % 50 / 10


def test_200_tasks_by_two_annotators_with_skips_and_gold_killed_and_resumed(server: Server, tmp_path: Path) -> None:
    title, run = "two hundred digits", tmp_path / "run"
    ann, bob = Person(server.url, server.ann.email, TOKEN), Person(server.url, server.bob.email, server.bob.token)
    settings = {
        **QUIET,
        **PIXELS,
        "trainer.max_epochs": 3,
        "data.batches.steps": 20,
        "annotation.workers": WORKERS,
        "annotation.workers.url": server.url,
        "annotation.workers.project": title,
        "annotation.workers.images": IMAGES,
        "annotation.workers.workers": f"[{ann.email},{bob.email}]",
        "annotation.workers.poll_seconds": 0.5,
        "annotation.sampling.per_round": 95,
        "annotation.gold": 5,
        "annotation.threshold": 1e-9,
        "annotation.stopping.budget": None,
    }
    again = ("--config", str(CONFIGS / "digits.yaml"), "--ckpt_path=last")

    process = start_fit(run, settings, *again)
    wait_for(lambda: ann.project(title), process)
    project = ann.project(title)
    wait_for(lambda: ann.call("GET", "/api/tasks", params={"project": project, "page_size": 1})["total"], process)
    kill(process)  # pushed, and nobody was told

    process, stop = start_fit(run, settings, *again), threading.Event()

    def work(person: Person) -> None:
        while not stop.is_set():
            if not person.work(project, opinion, 1, by_tab=True):
                time.sleep(0.2)

    def together() -> list[threading.Thread]:
        threads = [threading.Thread(target=work, args=(person,)) for person in (ann, bob)]
        for thread in threads:
            thread.start()
        return threads

    threads = together()
    try:
        wait_for(
            lambda: (run / "annotations.db").is_file() and len(answers(run)) >= 40 and answers(run)["label"].isna().any(),
            process,
        )
        kill(process)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    before, asked = answers(run), questions(run)
    assert len(asked) == len(ann.tasks(project)) == 105
    assert (asked["kind"] == "gold").sum() == 10
    starred, doubled = disturb(ann, bob, project, before)

    process, stop = start_fit(run, settings, *again), threading.Event()
    threads = together()
    try:
        finish(process)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    table, tasks = answers(run), ann.tasks(project)
    pd.testing.assert_frame_equal(table[: len(before)], before)
    assert logged(run) == said_by(ann, bob)
    assert len(tasks) == len(questions(run)) == 200
    assert sorted(map(question_of, tasks)) == list(range(1, 201))
    assert not table.duplicated(["item", "worker"]).any()
    assert {*table["question"]} == {*range(1, 201)}
    assert table["label"].isna().sum() > 5
    experts = table[table["source"] == "expert"]
    assert experts["worker"].tolist() == [GROUND_TRUTH]
    assert experts["question"].tolist() == [starred]
    assert sorted(table.loc[table["question"] == doubled, "worker"]) == sorted([ann.email, bob.email])
    kinds = questions(run).set_index("id")["kind"]
    data = {kind: {tuple(t["data"]) for t in tasks if kinds[question_of(t)] == kind} for kind in ("gold", "annotation")}
    assert data["gold"] == data["annotation"] == {("image", "question", "task", "worker")}  # gold looks like all others
    assert rounds(run)["annotations"].tolist() == [0, 95 + 2, 190 + 2]  # the star and the second opinion

    finish(start_fit(run, settings, *again))  # synchronised again
    (run / "checkpoints" / "last.ckpt").unlink()
    finish(start_fit(run, settings, "--config", str(CONFIGS / "digits.yaml")))  # and from the log alone
    pd.testing.assert_frame_equal(answers(run), table)
    assert len(ann.tasks(project)) == 200
    assert TOKEN not in (run / "config.yaml").read_text()


def disturb(ann: Person, bob: Person, project: int, log: pd.DataFrame) -> tuple[int, int]:
    """While no run looks: edit, star, and give second opinions; which question was starred, and which answered twice."""
    tasks = {question_of(task): task for task in ann.tasks(project)}
    given = [row for row in log.itertuples() if row.label is not None and row.kind == "annotation"]
    edited, starred = (tasks[row.question]["annotations"][0] for row in given[:2])
    skipped = next(a for task in tasks.values() for a in task["annotations"] if a["was_cancelled"])
    other = [{**edited["result"][0], "value": {"choices": ["0" if given[0].label != "0" else "1"]}}]
    ann.call("PATCH", f"/api/annotations/{edited['id']}/", json={"result": other})
    for annotation in (starred, skipped):
        ann.call("PATCH", f"/api/annotations/{annotation['id']}/", json={"ground_truth": True})
    doubled = next(row for row in given[2:] if row.worker == ann.email and row.kind == "annotation")
    bob.annotate(tasks[doubled.question], "3", 2.5)
    return given[1].question, doubled.question


def test_nobody_answers_an_item_twice_and_files_are_uploaded(server: Server, tmp_path: Path) -> None:
    """Two answers for each of 12 items, from whoever comes; the eager one takes all tasks first, each time."""
    title, run = "zeros and ones", tmp_path / "run"
    rows = [*np.flatnonzero(TRUTH == "0")[:10], *np.flatnonzero(TRUTH == "1")[:10]]
    truth = {f"{row:04d}.png": "null" if TRUTH[row] == "0" else 'o"ne' for row in rows}
    (tmp_path / "images").mkdir()
    for row, name in zip(rows, truth, strict=True):
        Image.fromarray((load_digits().images[row] * 15).astype("uint8")).save(tmp_path / "images" / name)
    np.save(tmp_path / "features.npy", load_digits().data[rows].astype(np.float32))
    labels = pd.DataFrame({"task": truth.keys(), "label": truth.values()})
    labels.to_csv(tmp_path / "items.csv", index=False)
    labels.groupby("label").head(4).to_csv(tmp_path / "prototypes.csv", index=False)
    (tmp_path / "classes.csv").write_text('class,name\nnull,the <empty> ring\n"o""ne",one\n')
    settings = {
        **QUIET,
        "trainer.max_epochs": 3,
        "data.root": tmp_path / "images",
        "data.features": tmp_path / "features.npy",
        "data.items": tmp_path / "items.csv",
        "data.classes": tmp_path / "classes.csv",
        "data.prototypes": tmp_path / "prototypes.csv",
        "data.batches.steps": 8,
        "annotation.workers": WORKERS,
        "annotation.workers.url": server.url,
        "annotation.workers.project": title,
        "annotation.workers.predictions": True,
        "annotation.workers.poll_seconds": 0.2,
        "annotation.sampling.per_round": 12,
        "annotation.threshold": 1e-9,
    }
    ann, bob = Person(server.url, server.ann.email, TOKEN), Person(server.url, server.bob.email, server.bob.token)
    process = start_fit(run, settings)
    wait_for(lambda: ann.project(title), process)
    project = ann.project(title)

    def tasks(n: int) -> bool:
        return len(ann.tasks(project)) == n

    def say(item: str) -> tuple[str | None, float]:
        return truth[item], 1.0

    wait_for(lambda: tasks(12), process)
    assert bob.work(project, say, 1) == 1
    assert ann.work(project, say) == 11
    wait_for(lambda: tasks(24), process)
    first = {*ann.given}
    assert ann.work(project, say) == 12  # she has answered 11 of these items before
    item = questions(run).set_index("id")["item"]
    seen = {item[question] for question in first}
    ann.given = {q: given for q, given in ann.given.items() if q in first or item[q] not in seen}
    wait_for(lambda: bob.work(project, say) + len(bob.given) >= 12, process)
    finish(process)
    assert logged(run) == said_by(ann, bob)
    table, found = answers(run), ann.tasks(project)
    assert (table.groupby("item")["worker"].nunique() == 2).all()
    assert {t["data"]["image"] for t in found if question_of(t) <= 12} == {
        t["data"]["image"] for t in found if question_of(t) > 12
    }
    for task in found:
        picture = ann.http.get(task["data"]["image"])
        assert picture.content == (tmp_path / "images" / task["data"]["task"]).read_bytes()
        guesses = task["predictions"]
        assert len(guesses) == (question_of(task) > 12)
        assert all(g["result"][0]["value"]["choices"][0] in ("null", 'o"ne') and 0 <= g["score"] <= 1 for g in guesses)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AnnotationLog]:
    with AnnotationLog(tmp_path / "annotations.db") as log:
        yield log


class Bench:
    """Workers over three items, whose log is here; a new instance is like a new process."""

    def __init__(self, log: AnnotationLog, url: str, title: str, **settings: Any) -> None:
        self.log = log
        self.workers = LabelStudioWorkers(url, title, images=IMAGES, **settings)
        folder = str(Path(log.url.removeprefix("sqlite:///")).parent)
        self.workers.bind(Task(ITEMS, CLASSES, 0, folder, log_url=log.url, names=["a cat", "<b>$dog</b>"]))
        known = log.answers()
        self.workers.remember(zip(known["item"], known["worker"], strict=True), {*known["worker"]} - {GROUND_TRUTH})

    def step(self) -> list[Answer]:
        """What the ledger does while a round waits."""
        waiting = self.log.questions(open_only=True)
        self.workers.submit([Question(q.item, q.worker, round=q.round, id=q.id) for q in waiting.itertuples()])
        given = list(self.workers.collect())
        assert self.log.answer(given) == len(given)
        return given


def ask(log: AnnotationLog, *items: str) -> None:
    log.ask([Question(item, None) for item in items])


def test_pushed_once_and_each_annotation_taken_once(server: Server, log: AnnotationLog) -> None:
    title, ann, bob = "pushed once", server.ann, server.bob
    ask(log, *ITEMS)
    bench = Bench(log, server.url, title)
    assert bench.step() == []
    project = ann.project(title)
    assert bench.step() == Bench(log, server.url, title).step() == []
    first, second, third = ann.tasks(project)
    assert [task["data"]["task"] for task in (first, second, third)] == ITEMS
    ann.annotate(first, CLASSES[1], 2.5, remember=False)
    star = bob.annotate(first, CLASSES[0], 1.5, remember=False)
    bob.annotate(second, None, 0.5, remember=False)
    given = [Answer(1, ann.email, CLASSES[1], 2.5, "label-studio"), Answer(1, bob.email, CLASSES[0], 1.5, "label-studio")]
    assert bench.step() == [*given, Answer(2, bob.email, None, 0.5, "label-studio")]
    assert bench.step() == []
    ann.call("PATCH", f"/api/annotations/{star}/", json={"ground_truth": True})
    assert bench.step() == [Answer(1, GROUND_TRUTH, CLASSES[0], None, "expert")]
    before = log.answers()
    odd = [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["cow"]}}]
    ann.call("PATCH", f"/api/annotations/{star}/", json={"result": odd})  # the first answer counts
    assert bench.step() == Bench(log, server.url, title).step() == []
    pd.testing.assert_frame_equal(log.answers(), before)
    assert len(ann.tasks(project)) == 3
    capacity = bench.workers.capacity()
    assert capacity.tolist() == [3, 2, 2]  # the star is an answer, and of nobody who can be asked
    assert Bench(log, server.url, title).workers.capacity().tolist() == capacity.tolist()

    ask(log, "a", "c")  # both have answered a
    bench.step()
    fourth = ann.tasks(project)[3]
    ann.annotate(fourth, CLASSES[0], 1.0, remember=False)
    assert bench.step() == []
    assert not ann.tasks(project)[3]["is_labeled"]  # somebody else can have it


def test_images_at_an_address(server: Server, log: AnnotationLog) -> None:
    for item in ITEMS:
        Image.new("L", (8, 8), ord(item)).save(server.files / f"{item}.png")
    ask(log, *ITEMS)
    Bench(log, server.url, "local files").step()
    project = server.ann.project("local files")
    storage = {"project": project, "path": str(server.files), "use_blob_urls": True}
    server.ann.call("POST", "/api/storages/localfiles/", json=storage)
    for task in server.bob.tasks(project):
        picture = server.bob.http.get(task["data"]["image"])
        assert picture.content == (server.files / f"{task['data']['task']}.png").read_bytes()


def test_two_runs_share_a_project(server: Server, tmp_path: Path) -> None:
    title = "shared by two"
    with AnnotationLog(tmp_path / "one" / "annotations.db") as one, AnnotationLog(tmp_path / "two" / "annotations.db") as two:
        ask(one, "a", "b")
        ask(two, "a")
        benches = Bench(one, server.url, title), Bench(two, server.url, title)
        assert [bench.step() for bench in benches * 2] == [[]] * 4
        project = server.ann.project(title)
        tasks = server.ann.tasks(project)
        assert len(tasks) == 3
        server.ann.annotate(tasks[2], CLASSES[0], 1.0, remember=False)
        assert [len(bench.step()) for bench in benches] == [0, 1]


def test_deleted_tasks_come_back(server: Server, log: AnnotationLog, caplog: pytest.LogCaptureFixture) -> None:
    ask(log, *ITEMS)
    bench = Bench(log, server.url, "deleted tasks")
    bench.step()
    project = server.ann.project("deleted tasks")
    gone = server.ann.tasks(project)[1]["id"]
    assert server.ann.http.delete(f"/api/tasks/{gone}/").is_success
    bench.step()
    assert "1 tasks of open questions were deleted" in caplog.text
    assert sorted(map(question_of, server.ann.tasks(project))) == [1, 2, 3]
    assert server.ann.http.delete(f"/api/projects/{project}/").is_success
    with pytest.raises(AnnotError, match="was the project deleted"):
        bench.step()


def test_an_unknown_label_is_named_and_nothing_of_its_batch_is_taken(server: Server, log: AnnotationLog) -> None:
    ask(log, *ITEMS)
    bench = Bench(log, server.url, "unknown label")
    bench.step()
    tasks = server.ann.tasks(server.ann.project("unknown label"))
    server.ann.annotate(tasks[0], CLASSES[0], 1.0, remember=False)
    odd = server.ann.annotate(tasks[1], "cow", 1.0, remember=False)
    with pytest.raises(
        AnnotError, match=rf"task {tasks[1]['id']}, annotation {odd} .* the label 'cow', which is none of the 2 classes"
    ):
        bench.step()
    assert log.answers().empty
    result = [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [CLASSES[1]]}}]
    server.ann.call("PATCH", f"/api/annotations/{odd}/", json={"result": result})
    assert len(Bench(log, server.url, "unknown label").step()) == 2


def test_a_project_of_other_classes(server: Server, log: AnnotationLog) -> None:
    config = '<View><Image name="image" value="$image"/><Choices name="c" toName="image"><Choice value="cow"/></Choices></View>'
    server.ann.call("POST", "/api/projects", json={"title": "other classes", "label_config": config})
    with pytest.raises(
        AnnotError, match=r"'other classes' is about other classes: it has \['cow'\], this run has \['cat', 'dog"
    ):
        Bench(log, server.url, "other classes")


def test_people_without_an_account(server: Server, log: AnnotationLog) -> None:
    with pytest.raises(AnnotError, match=r"\['eve@example.org'\] have no account at .* knows \['ann@example.org', 'bob@"):
        Bench(log, server.url, "strangers", workers=["eve@example.org", server.ann.email])


def test_pre_annotations_do_not_tell_gold_questions(server: Server, log: AnnotationLog, tmp_path: Path) -> None:
    rows = [("a", "cat", 1.0, "prototype"), ("b", CLASSES[1], 0.75, "open"), ("c", "cat", 0.5, "open")]
    pd.DataFrame(rows, columns=["task", "label", "confidence", "status"]).to_csv(tmp_path / "labels.csv", index=False)
    bench = Bench(log, server.url, "pre-annotations", predictions=True)
    ask(log, "b", "c")
    bench.step()
    ask(log, "a", "b")
    bench.step()
    tasks = server.ann.tasks(server.ann.project("pre-annotations"))
    shown = [[(p["score"], p["result"][0]["value"]["choices"]) for p in task["predictions"]] for task in tasks]
    assert shown == [[(0.75, [CLASSES[1]])], [(0.5, ["cat"])], [], []]


def test_a_wrong_token(server: Server, log: AnnotationLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "f" * 40)
    with pytest.raises(AnnotError, match="the token in LABEL_STUDIO_API_KEY is not accepted") as error:
        Bench(log, server.url, "wrong token")
    assert "f" * 40 not in str(error.value)


def test_a_personal_token(server: Server, log: AnnotationLog, monkeypatch: pytest.MonkeyPatch) -> None:
    personal = server.bob.call("POST", "/api/token/", json={})["token"]
    monkeypatch.setenv(TOKEN_VARIABLE, personal)
    ask(log, "a")
    assert Bench(log, server.url, "personal token").step() == []
    assert len(server.bob.tasks(server.bob.project("personal token"))) == 1
    monkeypatch.setenv(TOKEN_VARIABLE, personal[:-4] + "AAAA")
    with pytest.raises(AnnotError, match="is not accepted"):
        Bench(log, server.url, "personal token")


def test_the_server_goes_away_and_comes_back(server: Server, log: AnnotationLog, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    port, title = free_port(), "comes and goes"
    ask(log, *ITEMS)
    with pytest.raises(AnnotError, match=rf"http://localhost:{port} cannot be reached .* start it, or correct workers.url"):
        Bench(log, f"http://localhost:{port}", title)
    with line_to(server.url, port):
        bench = Bench(log, f"http://localhost:{port}", title)
    assert bench.step() == bench.step() == []
    assert caplog.text.count("the run goes on once it is back") == 1
    with line_to(server.url, port):
        assert bench.step() == []
        assert caplog.text.count("is back") == 2
        tasks = server.ann.tasks(server.ann.project(title))
        assert len(tasks) == 3
        server.ann.annotate(tasks[0], CLASSES[0], 1.0, remember=False)
    assert bench.step() == []
    with line_to(server.url, port):
        assert len(bench.step()) == 1
    assert TOKEN not in caplog.text
