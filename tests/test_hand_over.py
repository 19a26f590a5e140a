"""The hand-over as a user does it, through the real command line: fit, unfinished, an expert's answers, fit, closed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_runs import CONFIGS, PIXELS, QUIET, answers, call, questions, rounds, start
from sklearn.datasets import load_digits

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.page_task import ImageSettings
from lightning_annot.report.unfinished import DOUBT

SETTINGS: dict[str, Any] = {
    **QUIET,
    **PIXELS,
    "trainer.max_epochs": 3,
    "data.batches.steps": 30,
    "annotation.stopping.budget": 0.05,
}
LEFT_BY = "the budget of 0.05 annotations per item is spent"


def fit(run: Path) -> str:
    """``fit`` with the shipped configuration; why it ended."""
    result = call("fit", {**SETTINGS, "annotation.output_dir": run}, "--config", str(CONFIGS / "digits.yaml"))
    assert result.status == 0, result.err
    reason: str = json.loads((run / "summary.json").read_text())["stop_reason"]
    return reason


def closed(reason: str) -> bool:
    """Whether a run has ended for good: nothing is left, or what experts have seen and others contradict."""
    return reason == "every item is finished" or reason.startswith("experts have seen all that is left: ")


def said(command: str, *words: Any) -> str:
    result = call(command, {}, *map(str, words))
    assert result.status == 0, result.err
    return result.out


@pytest.fixture(scope="module")
def truth() -> dict[str, str]:
    ids = ImageSettings("digits").open().ids
    return dict(zip(ids, load_digits().target.astype(str).tolist(), strict=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose budget is spent while many items are unfinished."""
    run = tmp_path_factory.mktemp("digits") / "run"
    assert fit(run) == LEFT_BY
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def fill(file: Path, truth: dict[str, str], rows: slice = slice(None), wrong: float = 0.0) -> pd.DataFrame:
    """Let somebody who is wrong with probability ``wrong`` fill in those ``rows`` of the table."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    said_ = table["task"].map(truth).astype(int)
    rng = np.random.default_rng(0)
    odd = (said_ + rng.integers(1, 10, len(table))) % 10
    label = said_.where(rng.random(len(table)) >= wrong, odd).astype(str)
    table.loc[table.index[rows], "expert_label"] = label[rows]
    table.to_csv(file, index=False)
    return table


def labels_of(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "labels.csv", dtype=str).set_index("task")


def test_the_expert_closes_the_run(run: Path, tmp_path: Path, truth: dict[str, str]) -> None:
    before, file = len(answers(run)), tmp_path / "left.csv"
    assert "items" in said("unfinished", run, file)
    table = fill(file, truth)
    assert len(table) == (labels_of(run)["status"] == "unfinished").sum() > 50
    gain = table["gain"].astype(float)
    assert gain.is_monotonic_decreasing
    assert (table["probable"].str.count(";") == 4).all()
    assert table["reason"].str.len().min() > 0
    assert f"{len(table)} new answers of {len(table)}" in said("import", run, file, "--expert", "eve")
    assert f"0 new answers of {len(table)}" in said("import", run, file, "--expert", "eve")
    assert closed(fit(run))
    labels = labels_of(run)
    assert (labels["status"][table["task"]] == "finished").mean() > 0.95
    assert (labels["label"][table["task"]].to_numpy() == table["expert_label"].to_numpy()).mean() > 0.98
    assert len(answers(run)) == before + len(table)
    assert pd.read_csv(run / "workers.csv").set_index("worker").loc["eve", "accuracy_mean"] > 0.95
    said("unfinished", run, file)
    assert set(pd.read_csv(file)["reason"]) <= {DOUBT}
    assert closed(fit(run))


def test_part_of_it_first_and_the_rest_later(run: Path, tmp_path: Path, truth: dict[str, str]) -> None:
    first, second, n = tmp_path / "first.csv", tmp_path / "second.csv", len(rounds(run))
    said("unfinished", run, first)
    fill(first, truth, slice(30))
    assert "30 new answers of 30" in said("import", run, first, "--expert", "eve")
    assert fit(run) == LEFT_BY
    said("unfinished", run, second)
    table = fill(second, truth)
    seen = table["task"].isin(pd.read_csv(first, dtype=str).dropna(subset="expert_label")["task"])
    assert seen.sum() < 5
    assert (seen == (table["reason"] == DOUBT)).all()
    new = len(table) - seen.sum()
    assert f"{new} new answers of {len(table)}" in said("import", run, second, "--expert", "eve")
    assert closed(fit(run))
    assert len(rounds(run)) == n


def test_a_skip_that_is_imported_again_contradicts_nothing(
    run: Path, tmp_path: Path, truth: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "left.csv"
    said("unfinished", run, file)
    table = fill(file, truth, slice(3))
    table.loc[table.index[1], "expert_label"] = "unsure"
    table.to_csv(file, index=False)
    assert "3 new answers of 3" in said("import", run, file, "--expert", "eve")
    assert "0 new answers of 3" in said("import", run, file, "--expert", "eve")
    assert "contradict" not in caplog.text
    given = answers(run)
    assert given[given["source"] == "expert"]["label"].isna().sum() == 1


def test_one_who_is_wrong_in_three_of_ten_is_found_out(run: Path, tmp_path: Path, truth: dict[str, str]) -> None:
    file = tmp_path / "left.csv"
    said("unfinished", run, file)
    table = fill(file, truth, wrong=0.3)
    said("import", run, file, "--expert", "eve")
    reason = fit(run)
    assert closed(reason) or reason == LEFT_BY  # items that she has not seen may be in doubt now
    estimate = pd.read_csv(run / "workers.csv").set_index("worker").loc["eve", "accuracy_mean"]
    right = (table["expert_label"] == table["task"].map(truth)).mean()
    assert right - 0.1 < estimate < 0.93
    labels = labels_of(run)["label"][table["task"]]
    assert (labels.to_numpy() == table["task"].map(truth).to_numpy()).mean() > right


def test_an_import_while_the_run_is_killed(tmp_path: Path, made: Path, truth: dict[str, str]) -> None:
    """The answers are facts: a run that dies beside them, or has none of its own files yet, goes on with all of them."""
    run, file = tmp_path / "run", tmp_path / "left.csv"
    shutil.copytree(made, run)
    said("unfinished", run, file)
    fill(file, truth)
    settings = {**SETTINGS, "annotation.output_dir": run}
    process = start("fit", settings, "--config", str(CONFIGS / "digits.yaml"))
    said("import", run, file, "--expert", "eve")
    process.kill()
    process.join()
    before = answers(run)
    assert closed(fit(run))
    pd.testing.assert_frame_equal(answers(run), before)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text.replace(",", ";"), "do not have the 11 cells"),
        (lambda text: text.replace(",", "\t"), "no answer found"),
        (lambda text: text.replace("expert_label", "eve"), "labels of a run, which nobody gave, and no column expert_label"),
    ],
)
def test_a_table_that_a_spreadsheet_has_changed(run: Path, tmp_path: Path, change: Any, why: str) -> None:
    file, before = tmp_path / "left.csv", answers(run)
    said("unfinished", run, file)
    file.write_text(change(file.read_text()))
    result = call("import", {}, str(run), str(file), "--expert", "eve")
    assert result.status == 2
    assert pd.Series([result.err]).str.contains(why).all(), result.err
    pd.testing.assert_frame_equal(answers(run), before)


def test_the_expert_answers_on_the_page(run: Path, tmp_path: Path, truth: dict[str, str]) -> None:
    client_of = pytest.importorskip("fastapi.testclient").TestClient
    from lightning_annot.annotations.desk import Desk
    from lightning_annot.serve.app import PageSettings, make_app
    from lightning_annot.serve.guard import Limits

    file = tmp_path / "left.csv"
    said("unfinished", run, file)
    tasks = pd.read_csv(file, dtype=str)["task"].tolist()
    assert f"eve: 40 new questions; lightning-annot serve {run} --invite eve" in said(
        "unfinished", run, "--ask", "eve", "--most", 40
    )
    assert f"eve: {len(tasks) - 40} new questions" in said("unfinished", run, "--ask", "eve")
    assert "eve: 0 new questions" in said("unfinished", run, "--ask", "eve")
    asked = questions(run).query("worker == 'eve'")
    assert asked["item"].tolist() == tasks
    assert fit(run) == LEFT_BY  # which does not wait for her
    with AnnotationLog(run / "annotations.db") as log:
        desk = Desk(log)
        app = make_app(run, log, "owner", PageSettings(limits=Limits(worker_rate=1e6, worker_burst=1e6)))
        with client_of(app, base_url="http://page.test") as eve:
            assert eve.get(f"/w/{desk.invite('eve')}").status_code == 200
            left = asked.set_index("id")["item"]
            while lent := eve.post("/api/next", json={"n": 20}).json()["questions"]:
                assert left.index[: len(lent)].tolist() == lent  # by gain
                if left.index[0] == lent[0] and len(left) == len(tasks):
                    assert eve.get(f"/image/{lent[0]}").headers["content-type"] == "image/png"
                for question in lent:
                    body = {"question": question, "label": truth[left[question]], "seconds": 1.0}
                    assert eve.post("/api/answer", json=body).json() == {"new": True}
                left = left.drop(lent)
        assert left.empty
    given = answers(run).query("worker == 'eve'")
    assert set(given["source"]) == {"expert"}
    assert "0 new answers" in said("import", run, _truths(tmp_path, tasks, truth), "--expert", "eve")
    assert closed(fit(run))
    assert pd.read_csv(run / "workers.csv").set_index("worker").loc["eve", "accuracy_mean"] > 0.95


def _truths(folder: Path, tasks: list[str], truth: dict[str, str]) -> Path:
    path = folder / "again.csv"
    pd.DataFrame({"task": tasks, "label": [truth[task] for task in tasks]}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ((), "neither a file nor an expert"),
        (("--ask", "e\nve"), "no name for a worker"),
        (("--ask", "eve", "--most", "0"), "--most 0"),
    ],
)
def test_asking_needs_something_to_ask(run: Path, words: tuple[str, ...], why: str) -> None:
    result = call("unfinished", {}, str(run), *words)
    assert result.status == 2
    assert why in result.err
    (run / "task.json").unlink()
    assert "no page" in call("unfinished", {}, str(run), "--ask", "eve").err
    assert "eve" not in set(questions(run)["worker"])


def test_what_an_expert_is_asked_goes_to_nobody_else(tmp_path: Path) -> None:
    from lightning_annot.annotations.desk import Desk, Lending
    from lightning_annot.types import Answer, Question

    with AnnotationLog(tmp_path / "annotations.db") as log:
        log.ask([Question("a", "eve", round=-1), Question("b", "eve"), Question("c", None)])
        desk = Desk(log, Lending(give_back=0.0))
        assert desk.lend([("bob", 10)]) == [[2, 3]]
        assert desk.take([Answer(1, "bob", "cat", source="page")]) == [None]
        assert desk.lend([("eve", 10)]) == [[1]]
        assert desk.take([Answer(1, "eve", "cat", source="page"), Answer(2, "bob", "cat", source="page")]) == [True, True]
        assert log.answers()["source"].tolist() == ["expert", "page"]


def test_images_are_found_by_their_path(run: Path, tmp_path: Path) -> None:
    tasks = labels_of(run).query("status == 'unfinished'").index
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / tasks[0]).write_text("")
    config = (run / "config.yaml").read_text()
    assert "root: digits" in config
    (run / "config.yaml").write_text(config.replace("root: digits", f"root: {tmp_path / 'photos'}"))
    said("unfinished", run, tmp_path / "left.csv")
    path = pd.read_csv(tmp_path / "left.csv", dtype=str, keep_default_na=False).set_index("task")["path"]
    assert path[tasks[0]] == str(tmp_path / "photos" / tasks[0])
    assert (path.drop(tasks[0]) == "").all()
