"""A run whose people answer in a real Label Studio server, killed and resumed; each annotation is an answer, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from cli_runs import CONFIGS, PIXELS, answers, questions, rounds
from label_studio_runs import (
    IMAGES,
    at_work,
    await_run,
    finish,
    fresh,
    kill,
    logged,
    needs_label_studio,
    on_server,
    said_by,
    start_fit,
)
from label_studio_server import TOKEN, Person, Server, question_of
from PIL import Image
from sklearn.datasets import load_digits

from lightning_annot.workers.label_studio import GROUND_TRUTH

pytestmark = needs_label_studio

TRUTH = load_digits().target.astype(str)


def opinion(item: str) -> tuple[str | None, float]:
    """Mostly the truth; every 17th digit is skipped, every 7th taken for the next one."""
    i = int(item)
    label = None if i % 17 == 0 else str((int(TRUTH[i]) + (i % 7 == 0)) % 10)
    return label, 1 + i % 50 / 10


def test_200_tasks_by_two_annotators_with_skips_and_gold_killed_and_resumed(label_studio: Server, tmp_path: Path) -> None:
    title, run = "two hundred digits", tmp_path / "run"
    ann, bob = fresh(label_studio.ann), fresh(label_studio.bob)
    names = f"[{ann.email},{bob.email}]"
    settings = {
        **on_server(label_studio, title, images=IMAGES, workers=names, poll_seconds=0.5),
        **PIXELS,
        "data.batches.steps": 20,
        "annotation.sampling.per_round": 95,
        "annotation.gold": 5,
        "annotation.stopping.budget": None,
    }
    config = f"--config={CONFIGS / 'digits.yaml'}"
    again = (config, "--ckpt_path=last")

    process = start_fit(run, settings, *again)
    await_run(lambda: ann.project(title), process)
    project = ann.project(title)
    await_run(lambda: ann.call("GET", "/api/tasks", params={"project": project, "page_size": 1})["total"], process)
    kill(process)  # pushed, and nobody was told

    process = start_fit(run, settings, *again)
    with at_work(project, opinion, ann, bob):
        await_run(lambda: len(answers(run)) >= 40 and answers(run)["label"].isna().any(), process)
        kill(process)
    before, asked = answers(run), questions(run)
    assert len(asked) == len(ann.tasks(project)) == 105
    assert (asked["kind"] == "gold").sum() == 10
    starred, doubled = disturb(ann, bob, project, before)

    process = start_fit(run, settings, *again)
    with at_work(project, opinion, ann, bob):
        finish(process)
    table = answers(run)
    pd.testing.assert_frame_equal(table[: len(before)], before)
    assert logged(run) == said_by(ann, bob)
    check_answers(table, starred, doubled, [ann.email, bob.email])
    check_tasks(ann, project, run)
    assert rounds(run)["annotations"].tolist() == [0, 95 + 2, 190 + 2]  # the star and the second opinion

    finish(start_fit(run, settings, *again))  # synchronised again
    (run / "checkpoints" / "last.ckpt").unlink()
    finish(start_fit(run, settings, config))  # and from the log alone
    pd.testing.assert_frame_equal(answers(run), table)
    assert len(ann.tasks(project)) == 200
    assert TOKEN not in (run / "config.yaml").read_text()


def check_answers(table: pd.DataFrame, starred: int, doubled: int, names: list[str]) -> None:
    """Each of 200 questions is answered, by nobody twice; the starred one by an expert too, the doubled one by both."""
    assert not table.duplicated(["item", "worker"]).any()
    assert {*table["question"]} == {*range(1, 201)}
    assert table["label"].isna().sum() > 5
    experts = table[table["source"] == "expert"]
    assert experts["worker"].tolist() == [GROUND_TRUTH]
    assert experts["question"].tolist() == [starred]
    assert sorted(table.loc[table["question"] == doubled, "worker"]) == sorted(names)


def check_tasks(ann: Person, project: int, run: Path) -> None:
    """Each question is one task, and gold looks like all others."""
    tasks, kinds = ann.tasks(project), questions(run).set_index("id")["kind"]
    assert len(tasks) == len(kinds) == 200
    assert sorted(map(question_of, tasks)) == list(range(1, 201))
    data = {kind: {tuple(t["data"]) for t in tasks if kinds[question_of(t)] == kind} for kind in ("gold", "annotation")}
    assert data["gold"] == data["annotation"] == {("image", "question", "task", "worker")}


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


def test_nobody_answers_an_item_twice_and_files_are_uploaded(label_studio: Server, tmp_path: Path) -> None:
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
        **on_server(label_studio, title, predictions=True, poll_seconds=0.2),
        "data.root": tmp_path / "images",
        "data.features": tmp_path / "features.npy",
        "data.items": tmp_path / "items.csv",
        "data.classes": tmp_path / "classes.csv",
        "data.prototypes": tmp_path / "prototypes.csv",
        "data.batches.steps": 8,
        "annotation.sampling.per_round": 12,
    }
    ann, bob = fresh(label_studio.ann), fresh(label_studio.bob)
    process = start_fit(run, settings)
    await_run(lambda: ann.project(title), process)
    project = ann.project(title)

    def tasks(n: int) -> bool:
        return len(ann.tasks(project)) == n

    def say(item: str) -> tuple[str | None, float]:
        return truth[item], 1.0

    await_run(lambda: tasks(12), process)
    assert bob.work(project, say, 1) == 1
    assert ann.work(project, say) == 11
    await_run(lambda: tasks(24), process)
    first = {*ann.given}
    assert ann.work(project, say) == 12  # she has answered 11 of these items before
    item = questions(run).set_index("id")["item"]
    seen = {item[question] for question in first}
    ann.given = {q: given for q, given in ann.given.items() if q in first or item[q] not in seen}
    await_run(lambda: bob.work(project, say) + len(bob.given) >= 12, process)
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
