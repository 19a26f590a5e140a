"""Files of a run that are cut, empty, garbage or of another shape: each command says which one, and the page shows the rest."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from run_folder import make_run

from lightning_annot.__main__ import main
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.callbacks.run_folder import load_cost, load_oracle, load_prices
from lightning_annot.data.page_task import TASK_FILE, PageTask
from lightning_annot.data.run_labels import read_run_labels
from lightning_annot.report.run_files import read_run
from lightning_annot.report.thumbnails import FILE, load_thumbnails
from lightning_annot.types import AnnotError, Answer, Question, Task
from lightning_annot.workers.amt import AMTWorkers
from lightning_annot.workers.difficulty import DifficultyWorkers

N, CLASSES = 60, ["cat", "dog", "owl"]
COMMANDS = {
    "report": ["report", "RUN"],
    "export": ["export", "RUN", "OUT.csv", "--format", "labels-csv"],
    "scorecards": ["scorecards", "RUN"],
    "unfinished": ["unfinished", "RUN", "OUT.csv"],
    "certify": ["certify", "RUN", "--draw", "3", "--out", "OUT.csv"],
    "import": ["import", "RUN", "answers.csv"],
    "confusions": ["confusions", "RUN", "--out", "OUT.json"],
}
ALL = frozenset(COMMANDS)
READ_BY = {
    "labels.csv": ALL,
    "rounds.csv": ALL,
    "workers.csv": ALL,
    "machines.csv": ALL,
    "summary.json": ALL,
    "config.yaml": ALL,
    "confusions.npz": ALL,
    "posterior.npz": {"scorecards", "unfinished"},
    "certificate.json": {"certify"},
    "task.json": {"confusions"},
    "thumbnails.json": set[str](),
}


def cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(500))


def other_shape(path: Path) -> None:
    """What belongs to another file, whole."""
    if path.suffix == ".npz":
        np.savez(path, pooled=np.zeros((2, 3)), classes=np.zeros(4), label=np.zeros(3), probability=np.zeros(2))
    elif path.suffix == ".csv":
        path.write_text("a,b\n1,2\n")
    else:
        path.write_text('["a", 1, null]\n')


def wrong_values(path: Path) -> None:
    if path.suffix in (".json", ".yaml"):
        found = json.loads(path.read_text()) if path.suffix == ".json" else {"data": 0, "annotation": 0}
        path.write_text(json.dumps({key: value if key == "format" else [[value]] for key, value in dict(found).items()}))
    elif path.suffix == ".csv":
        path.write_text(re.sub(r"\d+\.\d+|,\d+\b", ",x", path.read_text(), count=3))
    else:
        np.savez(path, pooled=np.full((3, 3), np.nan), classes=CLASSES, label=np.full((N, 3), 9), probability=np.ones((N, 3)))


DAMAGES = (cut, empty, garbage, other_shape, wrong_values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file that is read, never to be changed."""
    run = make_run(tmp_path_factory.mktemp("whole") / "run", n=N, w=4, rounds=3, classes=CLASSES)
    labels = pd.read_csv(run / "labels.csv", dtype={"task": str})
    prototypes = labels["status"] == "prototype"
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"n_items": int((~prototypes).sum()), "prototypes": int(prototypes.sum()), "leftover": {"nobody": []}}
    summary |= {"class_names": CLASSES, "prices": {"per_answer": 1.0, "workers": {}}}
    (run / "summary.json").write_text(json.dumps(summary))
    code = pd.Index(CLASSES).get_indexer(labels["label"])
    top = (code[:, None] + np.arange(3)) % 3
    np.savez(run / "posterior.npz", classes=CLASSES, label=top, probability=np.tile([0.8, 0.1, 0.1], (N, 1)))
    machines = {"machine": ["clip"], "weight": [0.5], "accuracy_mean": [0.9], "accuracy_low": [0.8], "accuracy_high": [0.95]}
    pd.DataFrame({**machines, "n_annotations": [1.5]}).to_csv(run / "machines.csv", index=False)
    (run / TASK_FILE).write_text(PageTask(tuple(CLASSES), tuple(CLASSES), {"cat": ("00000",)}, None).to_json())
    older = {"seed": 0, "stages": [], "claims": [], "lost": 0, "certificate": None}
    (run / "certificate.json").write_text(json.dumps(older))
    load_thumbnails(run, ["00000"], lambda _: None)
    (run / FILE).write_text(json.dumps({"00030": "aGVsbG8="}))
    with AnnotationLog(run / "annotations.db") as log:
        known = {task: label for task, label in zip(labels["task"], labels["label"], strict=True) if task < "00030"}
        log.record([(Question(task, "worker_00", "gold"), Answer(0, "worker_00", said, 2.0)) for task, said in known.items()])
        log.ask([Question("00059", None)])
    (run.parent / "answers.csv").write_text("task,worker,label\n00050,zoe,cat\n")
    return run


def call(command: str, run: Path, folder: Path) -> int:
    words = {"RUN": str(run), "answers.csv": str(run.parent / "answers.csv")}
    return main([words.get(word, word.replace("OUT", str(folder / "out"))) for word in COMMANDS[command]])


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole.parent, tmp_path / "copy")
    return tmp_path / "copy" / "run"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_whole_run_is_read(run: Path, tmp_path: Path, command: str) -> None:
    assert call(command, run, tmp_path) == 0


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READ_BY)
def test_a_damaged_file_is_named(
    run: Path, tmp_path: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / name)
    for command in sorted(READ_BY[name]):
        assert call(command, run, tmp_path) == 2, f"{command} took a damaged {name} for a whole one"
        told = capsys.readouterr().err
        assert told.startswith("lightning-annot: ")
        assert name in told
        assert not list(tmp_path.glob("out*"))
    for command in sorted({"export", "certify"} - READ_BY[name]):
        assert call(command, run, tmp_path) == 0


def test_a_damaged_cache_of_pictures_is_made_anew(run: Path) -> None:
    text = (run / FILE).read_text()
    for damage in DAMAGES:
        (run / FILE).write_text(text)
        damage(run / FILE)
        assert load_thumbnails(run, ["00030"]) == {}


def test_settings_cut_between_two_lines_are_damaged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = "seed_everything: 1\ntrainer:\n  max_epochs: 3\n"
    (run / "config.yaml").write_text(f"{groups}ckpt_path: null\n")
    assert call("export", run, tmp_path) == 0
    (run / "config.yaml").write_text(groups)
    assert call("report", run, tmp_path) == 2
    assert "config.yaml is damaged" in capsys.readouterr().err


def test_labels_cut_between_two_lines_are_not_half_the_items(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (run / "labels.csv").read_text().splitlines(keepends=True)
    (run / "labels.csv").write_text("".join(lines[:31]))
    for command in COMMANDS:
        assert call(command, run, tmp_path) == 2
        assert f"labels.csv is damaged (it has 30 rows, and the run {N} items)" in capsys.readouterr().err
    for without in ("summary.json", "posterior.npz"):
        with pytest.raises(AnnotError, match="30"):
            read_run_labels(run)
        (run / without).unlink()
        if without == "summary.json":
            assert call("export", run, tmp_path) == 2  # by posterior.npz
    with AnnotationLog(run / "annotations.db") as log:
        log.claim({"items": f"{N} items, 0123"})
    for command in ("export", "certify", "import", "unfinished"):
        assert call(command, run, tmp_path) == 2, command  # by the log
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("damage", [garbage, *(pytest.param(one, marks=pytest.mark.slow) for one in DAMAGES if one != garbage)])
@pytest.mark.parametrize("name", READ_BY)
def test_the_owners_page_shows_what_it_can(whole: Path, run: Path, name: str, damage: Callable[[Path], None]) -> None:
    client = pytest.importorskip("fastapi.testclient").TestClient
    from lightning_annot.serve.app import make_app

    damage(run / name)
    with AnnotationLog(run / "annotations.db") as log:
        app = make_app(run, log, "secret")
        with client(app, base_url="http://page.test", raise_server_exceptions=False) as owner:
            owner.get("/o/secret")
            page = owner.get("/owner")
            assert page.status_code == 200
            assert "Answers an hour" in page.text
            if name not in ("posterior.npz", "certificate.json", "thumbnails.json"):
                assert f"{name} is damaged" in page.text
            paths = [
                "/owner/gallery",
                "/owner/scorecards",
                "/owner/answers.csv",
                "/owner/export/labels",
                "/owner/export/parquet",
            ]
            for path in paths:
                assert owner.get(path).status_code in (200, 404, 503), path
            assert owner.get("/owner/answers.csv").status_code == 200
            shutil.copy(whole / name, run / name)
            assert "is damaged" not in owner.get("/owner").text


def test_other_files_that_a_run_is_given(tmp_path: Path) -> None:
    task = Task(("a", "b"), ("cat", "dog"), 0, str(tmp_path), truth={"a": "cat", "b": "dog"})
    readers: dict[str, Callable[[Path], object]] = {
        "oracle.npz": lambda path: load_oracle(path, ["ann"], ["cat", "dog"]),
        "hard.npz": lambda path: DifficultyWorkers(str(path)).bind(task),
        "study.json": lambda path: AMTWorkers(workers_file=str(path)).bind(task),
        "cost.csv": lambda path: load_cost(str(path), 2),
        "prices.csv": lambda path: load_prices(str(path)),
        "settings.json": PageTask.read,
    }
    for name, read in readers.items():
        path = tmp_path / name
        for damage in (cut, empty, garbage, other_shape, lambda path: path.unlink()):
            path.write_bytes(b"PK\x03\x04" + bytes(200) if path.suffix == ".npz" else b'{"imagenet100": ["cat"], "format": 1')
            damage(path)
            with pytest.raises(AnnotError, match=name):
                read(path)


def test_a_damaged_run_is_not_shown_as_another(run: Path) -> None:
    told: list[str] = []
    garbage(run / "workers.csv")
    found = read_run(run, told)
    assert found.workers.empty
    assert len(found.labels) == N
    assert len(told) == 1
