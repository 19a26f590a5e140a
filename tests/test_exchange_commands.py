"""import, export, unfinished and confusions through the real command line, on real runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cli_runs import Bank, answers, call, fit, questions
from PIL import Image

from lightning_annot import SoftLabels
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.exchange.formats import FORMATS
from lightning_annot.types import AnnotError, Answer, Question


@pytest.fixture(scope="module")
def made(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of recorded workers, who are asked gold questions too."""
    recorded = {
        "annotation.workers": "lightning_annot.workers.recorded.RecordedWorkers",
        "annotation.workers.answers": bank.answers,
        "annotation.workers.by_worker": True,
        "annotation.gold": 2,
    }
    return fit(bank.settings(**recorded), tmp_path_factory.mktemp("run") / "out")


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def said(command: str, *words: Any) -> str:
    result = call(command, {}, *map(str, words))
    assert result.status == 0, result.err
    return result.out


def refused(command: str, *words: Any) -> str:
    result = call(command, {}, *map(str, words))
    assert result.status == 2
    return result.err


ANSWER_FORMATS = [
    "crowd-kit",
    "cleanlab",
    "cleanlab-wide",
    "label-studio",
    "label-studio-csv",
    "mturk",
    "netease",
    "peerannot",
    "lean",
]


@pytest.mark.parametrize("name", ANSWER_FORMATS)
def test_what_a_run_gives_away_comes_back_and_changes_nothing(run: Path, tmp_path: Path, name: str) -> None:
    before = answers(run)
    said("export", run, tmp_path / "out", "--format", name)
    assert "0 new answers" in said("import", run, tmp_path / "out", "--format", name)
    pd.testing.assert_frame_equal(answers(run), before)


@pytest.mark.parametrize("name", ANSWER_FORMATS)
def test_answers_move_to_a_run_that_has_none(run: Path, tmp_path: Path, bank: Bank, name: str) -> None:
    said("export", run, tmp_path / "out", "--format", name)
    other = tmp_path / "other"
    assert f"--annotation.import_answers {other}" in said("import", other, tmp_path / "out", "--format", name)
    said("import", other, tmp_path / "out", "--format", name)
    kept = pd.read_csv(other / "answers_import.csv", dtype=str).fillna("")
    found = answers(run)
    if name != "label-studio":  # gold answers are ordinary ones there
        found = found[found["kind"] == "annotation"]
    assert set(zip(kept["task"], kept["worker"], kept["label"], strict=True)) == set(
        zip(found["item"], found["worker"], found["label"], strict=True)
    )
    if name == "lean":
        fit(bank.settings(), other, **{"annotation.import_answers": other / "answers_import.csv", "trainer.max_epochs": 1})
        assert len(answers(other)) == len(kept)


def test_nothing_is_left_out_without_a_word(run: Path, tmp_path: Path) -> None:
    with AnnotationLog(run / "annotations.db") as log:
        log.record([(Question("item001", "z"), Answer(0, "z", None)), (Question("item002", "z"), Answer(0, "z", "ant", 2.0))])
    found = answers(run)
    gold, timed = (found["kind"] == "gold").sum(), (found["seconds"].notna() & (found["kind"] == "annotation")).sum()
    left = {
        "crowd-kit": f"1 skips, {gold} gold answers",
        "cleanlab-wide": f"1 skips, {gold} gold answers, {timed} times",
        "mturk": f"{gold} gold answers",
        "group-workers": f"{len(found) - gold} ordinary answers, 1 skips",
        "label-studio": "",
    }
    for name, words in left.items():
        out = said("export", run, tmp_path / "out", "--format", name)
        line = f"left out, as the format has no place for them: {words}\n" if words else ""
        assert out == f"{tmp_path / 'out'}\n{line}"
        (tmp_path / "out").unlink()


def test_gold_answers_go_out_as_a_study(run: Path, tmp_path: Path) -> None:
    said("export", run, tmp_path / "study.json", "--format", "group-workers")
    said("import", tmp_path / "new", tmp_path / "study.json", "--format", "group-workers")
    kept = pd.read_csv(tmp_path / "new" / "answers_import.csv", dtype=str)
    gold = answers(run).query("kind == 'gold'")
    assert kept.groupby(["worker", "label"]).size().to_dict() == gold.groupby(["worker", "label"]).size().to_dict()
    assert "no row numbers" in refused("export", run, tmp_path / "a.pt", "--format", "cifar10n")
    assert "no row numbers" in refused("export", run, tmp_path / "a.csv", "--format", "cifar10h")
    with AnnotationLog(tmp_path / "none" / "annotations.db") as log:
        log.ask([Question("1", None)])
    shutil.copy(run / "labels.csv", tmp_path / "none")
    assert "no gold answers to count" in refused("export", tmp_path / "none", tmp_path / "b.json", "--format", "group-workers")


@pytest.mark.parametrize("name", ["cifar10n", "cifar10h"])
def test_answers_about_cifar10_go_out_and_come_back(tmp_path: Path, name: str) -> None:
    rows = [
        (Question(str(i), w), Answer(0, w, ("cat", "dog")[(i + len(w)) % 2], 1.5))
        for w in ("a", "bb", "ccc")
        for i in range(20)
    ]
    with AnnotationLog(tmp_path / "annotations.db") as log:
        log.record(rows)
    said("export", tmp_path, tmp_path / "out", "--format", name)
    said("import", tmp_path / "new", tmp_path / "out", "--format", name)
    kept = pd.read_csv(tmp_path / "new" / "answers_import.csv", dtype=str)
    wanted = [(q.item, a.worker, a.label, "1.5") for q, a in rows]
    assert kept[["task", "worker", "label", "seconds"]].to_records(index=False).tolist() == wanted


def test_gold_is_gold_only_about_prototypes(run: Path, tmp_path: Path) -> None:
    labels = pd.read_csv(run / "labels.csv", dtype=str)
    given = labels[labels["status"] == "prototype"]["task"].iloc[0]
    other = labels[labels["status"] != "prototype"]["task"].iloc[0]
    studio = [
        {"data": {"image": f"https://host/{task}?x=1"}, "annotations": [
            {"completed_by": 12, "ground_truth": True, "result": [{"type": "choices", "value": {"choices": ["Ant"]}}]}
        ]}
        for task in (given, other)
    ]  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(studio))
    (tmp_path / "words.csv").write_text("from,to\nAnt,ant\n")
    words = ("import", run, tmp_path / "a.json", "--format", "label-studio", "--basename", "--labels", tmp_path / "words.csv")
    assert "2 new answers of 2" in said(*words, "--truth", tmp_path / "truth.csv")
    new = answers(run).iloc[-2:]
    assert new["kind"].tolist() == ["gold", "annotation"]
    assert new[["worker", "label", "round", "source"]].to_numpy().tolist() == [["12", "ant", -1, "import"]] * 2
    assert "0 new answers" in said(*words)
    assert (tmp_path / "truth.csv").read_text() == f"task,label\n{given},ant\n{other},ant\n"


@pytest.mark.parametrize(
    ("text", "words", "why"),
    [
        ("task,worker,label\nitem000,a,cow\nnothing,a,cow\n", (), "outside the items .*line 3: 'nothing'"),
        ("task,worker,label\nitem000,a,cow\nitem001,a,cat\n", (), "outside the classes .*line 3: 'cat'"),
        ("task,worker,label\nitem000,a,cow\nitem001,a", (), "line 3"),
        ("task,worker,label\nitem000,a,cow\n", ("--format", "lean"), "line 1"),
        ("task,worker,label\nitem000,a,cow\n", ("--format", "nothing"), "--format nothing given"),
        ("task,worker,label\nitem000,a,cow\n", ("--map", "label"), "--map label given"),
        ("task,worker,label\nitem000,a,cow\n", ("--map", "who=worker"), "--map who=worker given"),
        ("task,worker,label\nx/item000,a,cow\ny/item000,a,ant\n", ("--basename",), "answered in another way above"),
        ("task,worker,label\n", (), "no answer found in "),
        ("task,worker,label\nother,a,cow\n", ("--ignore-unknown",), "none of 1 is about an item"),
        (f"task,worker,label\nitem000,{'a' * 101},cow\n", (), "no name for one .line 2"),
        ("task,label\nitem000,cow\n", ("--worker", " "), "no name for a worker"),
    ],
)
def test_a_refused_file_changes_nothing(run: Path, tmp_path: Path, text: str, words: tuple[str, ...], why: str) -> None:
    before = answers(run)
    (tmp_path / "a.csv").write_text(text)
    assert pd.Series([refused("import", run, tmp_path / "a.csv", *words)]).str.contains(why).all()
    refused("import", tmp_path / "new", tmp_path / "a.csv", "--format", "lean")
    assert not (tmp_path / "new").exists()
    pd.testing.assert_frame_equal(answers(run), before)


def test_unknown_tasks_may_be_left_out(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,label\np/item000,cow\np/nothing,cow\n")
    words = ("--map", "task=file", "--worker", "zoe", "--prefix", "p/", "--ignore-unknown")
    assert "1 new answers of 1" in said("import", run, tmp_path / "a.csv", *words)
    assert answers(run).iloc[-1][["item", "worker"]].tolist() == ["item000", "zoe"]


def test_labels_go_out(run: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    labels = pd.read_csv(run / "labels.csv", dtype={"task": str, "label": str})
    said("export", run, tmp_path / "l.parquet")
    table = pq.read_table(tmp_path / "l.parquet").to_pandas()
    assert table["task"].tolist() == labels["task"].tolist()
    assert [top[0] for top in table["top_label"]] == labels["label"].tolist()
    assert table["top_probability"].map(sum).between(0.99, 1.01).all()
    said("export", run, tmp_path / "l.csv", "--format", "labels-csv", "--finished")
    kept = pd.read_csv(tmp_path / "l.csv", dtype=str)
    assert set(kept["status"]) == {"finished", "prototype"} & set(labels["status"])
    said("export", run, tmp_path / "m.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == labels["label"].tolist()
    said("export", run, tmp_path / "s.json", "--format", "label-studio", "--prefix", "/data/local-files/?d=")
    tasks = json.loads((tmp_path / "s.json").read_text())
    assert {task["data"]["task"] for task in tasks} == set(labels["task"])
    assert all(task["data"]["image"] == f"/data/local-files/?d={task['data']['task']}" for task in tasks)
    assert all(len(task["predictions"]) == 1 for task in tasks)


def test_class_folders_need_the_images(run: Path, tmp_path: Path) -> None:
    assert "--images" in refused("export", run, tmp_path / "out", "--format", "class-folders")
    images = tmp_path / "images"
    images.mkdir()
    labels = pd.read_csv(run / "labels.csv", dtype=str)
    for task in labels["task"]:
        Image.new("RGB", (2, 2)).save(images / task, format="png")
    said("export", run, tmp_path / "out", "--format", "class-folders", "--images", images)
    assert {(path.parent.name, path.name) for path in (tmp_path / "out").rglob("item*")} == set(
        zip(labels["label"], labels["task"], strict=True)
    )


def test_open_questions_become_a_batch(run: Path, tmp_path: Path) -> None:
    words = ("export", run, tmp_path / "hits.csv", "--format", "mturk-input", "--prefix", "https://host/")
    assert "no open questions" in refused(*words)
    with AnnotationLog(run / "annotations.db") as log:
        log.ask([Question("item001", None), Question("item001", "b"), Question("item002", None)])
    said(*words)
    assert (tmp_path / "hits.csv").read_text() == "image_url,task\nhttps://host/item001,item001\nhttps://host/item002,item002\n"


def test_help_lists_the_formats() -> None:
    for command, direction in (("import", "read"), ("export", "write")):
        shown = call(command, {}, "--help").out
        assert all((f"  {name} " in shown) == bool(getattr(form, direction)) for name, form in FORMATS.items())


def test_soft_labels_are_a_data_set(run: Path, tmp_path: Path) -> None:
    labels = pd.read_csv(run / "labels.csv", dtype=str)
    soft = SoftLabels(run)
    ids, targets = next(iter(torch.utils.data.DataLoader(soft, batch_size=len(soft))))
    assert list(ids) == labels["task"].tolist()
    torch.testing.assert_close(targets.sum(1), torch.ones(len(soft)))
    assert [soft.classes[k] for k in targets.argmax(1)] == labels["label"].tolist()
    assert len(SoftLabels(run, finished=True)) == int((labels["status"] != "unfinished").sum())
    for task in labels["task"][:2]:
        Image.new("L", (3, 2)).save(tmp_path / task, format="png")
    image, target = SoftLabels(run, tmp_path, transform=lambda image: image.size)[1]
    assert image == (3, 2)
    torch.testing.assert_close(target, targets[1])
    assert SoftLabels(run, tmp_path)[0][0].mode == "RGB"
    with pytest.raises(AnnotError, match="without images"):
        SoftLabels(run, transform=lambda image: image)


def test_a_run_without_a_first_round_is_told_apart(tmp_path: Path) -> None:
    with AnnotationLog(tmp_path / "annotations.db") as log:
        log.ask([Question("1", None)])
        log.answer([Answer(1, "a", "cat")])
    (tmp_path / "a.csv").write_text("task,worker,label\n1,b,cat\n")
    assert "labels.csv" in refused("import", tmp_path, tmp_path / "a.csv")
    said("export", tmp_path, tmp_path / "out.json", "--format", "label-studio")
    assert len(questions(tmp_path)) == 1
