"""Workers on a real Label Studio server, step by step: what is pushed, what is taken, and every error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from label_studio_runs import CLASSES, ITEMS, Bench, ask, needs_label_studio
from label_studio_server import TOKEN, Server, line_to, question_of
from PIL import Image
from ports import free_port

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.types import AnnotError, Answer
from lightning_annot.workers.label_studio import GROUND_TRUTH
from lightning_annot.workers.label_studio_client import TOKEN_VARIABLE

pytestmark = needs_label_studio


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AnnotationLog]:
    with AnnotationLog(tmp_path / "annotations.db") as log:
        yield log


def test_pushed_once_and_each_annotation_taken_once(label_studio: Server, log: AnnotationLog) -> None:
    title, ann, bob = "pushed once", label_studio.ann, label_studio.bob
    ask(log, *ITEMS)
    bench = Bench(log, label_studio.url, title)
    assert bench.step() == []
    project = ann.project(title)
    assert bench.step() == Bench(log, label_studio.url, title).step() == []
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
    assert bench.step() == Bench(log, label_studio.url, title).step() == []
    pd.testing.assert_frame_equal(log.answers(), before)
    assert len(ann.tasks(project)) == 3
    capacity = bench.workers.capacity()
    assert capacity.tolist() == [3, 2, 2]  # the star is an answer, and of nobody who can be asked
    assert Bench(log, label_studio.url, title).workers.capacity().tolist() == capacity.tolist()

    ask(log, "a", "c")  # both have answered a
    bench.step()
    fourth = ann.tasks(project)[3]
    ann.annotate(fourth, CLASSES[0], 1.0, remember=False)
    assert bench.step() == []
    assert not ann.tasks(project)[3]["is_labeled"]  # somebody else can have it


def test_images_at_an_address(label_studio: Server, log: AnnotationLog) -> None:
    for item in ITEMS:
        Image.new("L", (8, 8), ord(item)).save(label_studio.files / f"{item}.png")
    ask(log, *ITEMS)
    Bench(log, label_studio.url, "local files").step()
    project = label_studio.ann.project("local files")
    storage = {"project": project, "path": str(label_studio.files), "use_blob_urls": True}
    label_studio.ann.call("POST", "/api/storages/localfiles/", json=storage)
    for task in label_studio.bob.tasks(project):
        picture = label_studio.bob.http.get(task["data"]["image"])
        assert picture.content == (label_studio.files / f"{task['data']['task']}.png").read_bytes()


def test_two_runs_share_a_project(label_studio: Server, tmp_path: Path) -> None:
    title = "shared by two"
    with AnnotationLog(tmp_path / "one" / "annotations.db") as one, AnnotationLog(tmp_path / "two" / "annotations.db") as two:
        ask(one, "a", "b")
        ask(two, "a")
        benches = Bench(one, label_studio.url, title), Bench(two, label_studio.url, title)
        assert [bench.step() for bench in benches * 2] == [[]] * 4
        project = label_studio.ann.project(title)
        tasks = label_studio.ann.tasks(project)
        assert len(tasks) == 3
        label_studio.ann.annotate(tasks[2], CLASSES[0], 1.0, remember=False)
        assert [len(bench.step()) for bench in benches] == [0, 1]


def test_deleted_tasks_come_back(label_studio: Server, log: AnnotationLog, caplog: pytest.LogCaptureFixture) -> None:
    ask(log, *ITEMS)
    bench = Bench(log, label_studio.url, "deleted tasks")
    bench.step()
    project = label_studio.ann.project("deleted tasks")
    gone = label_studio.ann.tasks(project)[1]["id"]
    assert label_studio.ann.http.delete(f"/api/tasks/{gone}/").is_success
    bench.step()
    assert "1 tasks of open questions were deleted" in caplog.text
    assert sorted(map(question_of, label_studio.ann.tasks(project))) == [1, 2, 3]
    assert label_studio.ann.http.delete(f"/api/projects/{project}/").is_success
    with pytest.raises(AnnotError, match="was the project deleted"):
        bench.step()


def test_an_unknown_label_is_named_and_nothing_of_its_batch_is_taken(label_studio: Server, log: AnnotationLog) -> None:
    ask(log, *ITEMS)
    bench = Bench(log, label_studio.url, "unknown label")
    bench.step()
    tasks = label_studio.ann.tasks(label_studio.ann.project("unknown label"))
    label_studio.ann.annotate(tasks[0], CLASSES[0], 1.0, remember=False)
    odd = label_studio.ann.annotate(tasks[1], "cow", 1.0, remember=False)
    with pytest.raises(
        AnnotError, match=rf"task {tasks[1]['id']}, annotation {odd} .* the label 'cow', which is none of the 2 classes"
    ):
        bench.step()
    assert log.answers().empty
    result = [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [CLASSES[1]]}}]
    label_studio.ann.call("PATCH", f"/api/annotations/{odd}/", json={"result": result})
    assert len(Bench(log, label_studio.url, "unknown label").step()) == 2


def test_a_project_of_other_classes(label_studio: Server, log: AnnotationLog) -> None:
    config = '<View><Image name="image" value="$image"/><Choices name="c" toName="image"><Choice value="cow"/></Choices></View>'
    label_studio.ann.call("POST", "/api/projects", json={"title": "other classes", "label_config": config})
    with pytest.raises(
        AnnotError, match=r"'other classes' is about other classes: it has \['cow'\], this run has \['cat', 'dog"
    ):
        Bench(log, label_studio.url, "other classes")


def test_people_without_an_account(label_studio: Server, log: AnnotationLog) -> None:
    with pytest.raises(AnnotError, match=r"\['eve@example.org'\] have no account at .* knows \['ann@example.org', 'bob@"):
        Bench(log, label_studio.url, "strangers", workers=["eve@example.org", label_studio.ann.email])


def test_pre_annotations_do_not_tell_gold_questions(label_studio: Server, log: AnnotationLog, tmp_path: Path) -> None:
    rows = [("a", "cat", 1.0, "prototype"), ("b", CLASSES[1], 0.75, "open"), ("c", "cat", 0.5, "open")]
    pd.DataFrame(rows, columns=["task", "label", "confidence", "status"]).to_csv(tmp_path / "labels.csv", index=False)
    bench = Bench(log, label_studio.url, "pre-annotations", predictions=True)
    ask(log, "b", "c")
    bench.step()
    ask(log, "a", "b")
    bench.step()
    (tmp_path / "labels.csv").write_bytes(b"\xff\x00")  # damaged: the run writes it anew, and asks meanwhile
    ask(log, "c")
    bench.step()
    tasks = label_studio.ann.tasks(label_studio.ann.project("pre-annotations"))
    shown = [[(p["score"], p["result"][0]["value"]["choices"]) for p in task["predictions"]] for task in tasks]
    assert shown == [[(0.75, [CLASSES[1]])], [(0.5, ["cat"])], [], [], []]


def test_a_wrong_token(label_studio: Server, log: AnnotationLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "f" * 40)
    with pytest.raises(AnnotError, match="the token in LABEL_STUDIO_API_KEY is not accepted") as error:
        Bench(log, label_studio.url, "wrong token")
    assert "f" * 40 not in str(error.value)


def test_a_personal_token(label_studio: Server, log: AnnotationLog, monkeypatch: pytest.MonkeyPatch) -> None:
    personal = label_studio.bob.call("POST", "/api/token/", json={})["token"]
    monkeypatch.setenv(TOKEN_VARIABLE, personal)
    ask(log, "a")
    assert Bench(log, label_studio.url, "personal token").step() == []
    assert len(label_studio.bob.tasks(label_studio.bob.project("personal token"))) == 1
    monkeypatch.setenv(TOKEN_VARIABLE, personal[:-4] + "AAAA")
    with pytest.raises(AnnotError, match="is not accepted"):
        Bench(log, label_studio.url, "personal token")


def test_the_server_goes_away_and_comes_back(
    label_studio: Server, log: AnnotationLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    port, title = free_port(), "comes and goes"
    ask(log, *ITEMS)
    with pytest.raises(AnnotError, match=rf"http://localhost:{port} cannot be reached .* start it, or correct workers.url"):
        Bench(log, f"http://localhost:{port}", title)
    with line_to(label_studio.url, port):
        bench = Bench(log, f"http://localhost:{port}", title)
    assert bench.step() == bench.step() == []
    assert caplog.text.count("the run goes on once it is back") == 1
    with line_to(label_studio.url, port):
        assert bench.step() == []
        assert caplog.text.count("is back") == 2
        tasks = label_studio.ann.tasks(label_studio.ann.project(title))
        assert len(tasks) == 3
        label_studio.ann.annotate(tasks[0], CLASSES[0], 1.0, remember=False)
    assert bench.step() == []
    with line_to(label_studio.url, port):
        assert len(bench.step()) == 1
    assert TOKEN not in caplog.text
