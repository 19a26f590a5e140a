"""``lightning-annot certify`` through the command line: what it draws, takes in, states, keeps and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_runs import Bank, Result, answers, call, fit, questions, rounds
from PIL import Image
from run_folder import CLASSES, make_run

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.ledger import Ledger
from lightning_annot.types import Answer, Question, Task
from lightning_annot.workers.files import FileWorkers


def certify(folder: Path, *words: str) -> Result:
    return call("certify", {}, str(folder), *words)


def said(folder: Path, *words: str) -> str:
    """What the command prints, which must succeed."""
    result = certify(folder, *words)
    assert result.status == 0, result.err
    return result.out


def record(folder: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((folder / "certificate.json").read_text())


def labels(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "labels.csv", dtype={"task": str, "label": str})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A made-up run of 1,400 items to label, whose log is empty."""
    made = make_run(tmp_path / "run", n=1500)
    AnnotationLog(made / "annotations.db").close()
    return made


@pytest.fixture
def truth(folder: Path) -> Path:
    """The run's labels, but for one of thirty items."""
    table = labels(folder)[["task", "label"]]
    other = table["label"].map(dict(zip(CLASSES, [*CLASSES[1:], CLASSES[0]], strict=True)))
    table["label"] = table["label"].where(np.arange(len(table)) % 30 > 0, other)
    table.to_csv(folder.parent / "truth.csv", index=False)
    return folder.parent / "truth.csv"


def fill(audit: Path, truth: Path, first: int | None = None) -> pd.DataFrame:
    """What an expert does: the first lines of an audit get their label."""
    table = pd.read_csv(audit, dtype=str, keep_default_na=False)
    known = pd.read_csv(truth, dtype=str).set_index("task")["label"]
    table.loc[: first and first - 1, "label"] = known[table["task"]].to_numpy()[:first]
    table.to_csv(audit, index=False)
    return table


def test_an_audit_goes_out_comes_in_by_parts_and_is_stated(folder: Path, truth: Path) -> None:
    audit = folder.parent / "audit.csv"
    assert said(folder, "--draw", "200", "--out", str(audit)) == f"{audit}: 200 labels to audit\n"
    drawn = pd.read_csv(audit, dtype=str, keep_default_na=False)
    assert list(drawn) == ["task", "label"]
    assert set(drawn["label"]) == {""}  # blind
    table = labels(folder)
    finished = set(table.loc[table["status"] == "finished", "task"])
    assert set(drawn["task"]) <= finished
    log = questions(folder)
    assert log["item"].tolist() == drawn["task"].tolist()
    assert set(log["kind"]) == {"audit"}
    assert set(log["round"]) == {24}
    before = audit.read_bytes()
    said(folder, "--draw", "200", "--out", str(audit))  # as nothing was answered, the same once more
    assert audit.read_bytes() == before
    assert len(questions(folder)) == 200
    fill(audit, truth, 50)
    out = said(folder, "--answers", str(audit))
    assert "50 new answers" in out
    assert f"audited: 50 of {len(finished):,} finished labels" in out
    wrong = fill(audit, truth)
    out = said(folder, "--answers", str(audit), "--target", "0.05")
    assert "150 new answers" in out
    merged = wrong.merge(table, on="task")
    k = int((merged["label_x"] != merged["label_y"]).sum())
    stated = record(folder)["certificate"]
    assert (stated["audited"], stated["wrong"]) == (200, k)
    believed = 1 - table.loc[table["status"] == "finished", "confidence"].mean()
    assert stated["believed"] == pytest.approx(believed)
    assert f"believed: the run expected {100 * believed:.2f}% of the finished labels to be wrong, " in out
    assert f", {200 * believed:.1f} of the 200 audited; the audit found {k}\n" in out
    assert stated["bound"] == stated["anytime"] > stated["hypergeometric"] > k / 200
    assert f"certified: at most {np.ceil(stated['bound'] * 1e4) / 100:.2f}%" in out
    assert len(record(folder)["stages"][0]["looks"]) == 2


def test_stating_again_changes_nothing(folder: Path, truth: Path) -> None:
    first = said(folder, "--draw", "300", "--expert", str(truth), "--target", "0.06")
    kept, facts = (folder / "certificate.json").read_bytes(), answers(folder)
    assert said(folder, "--target", "0.06") == first
    audit = facts.rename(columns={"item": "task"})[["task", "label"]]
    audit.to_csv(folder.parent / "audit.csv", index=False)
    assert said(folder, "--answers", str(folder.parent / "audit.csv"), "--target", "0.06").endswith(first)
    assert (folder / "certificate.json").read_bytes() == kept
    pd.testing.assert_frame_equal(answers(folder), facts)


def test_more_audits_make_it_tighter_and_a_full_one_exact(folder: Path, truth: Path) -> None:
    bounds = []
    for n in (100, 300, 700, 10_000):
        said(folder, "--draw", str(n), "--expert", str(truth))
        bounds.append(record(folder)["certificate"]["bound"])
    table = labels(folder).merge(pd.read_csv(truth, dtype=str), on="task").query("status == 'finished'")
    error = (table["label_x"] != table["label_y"]).mean()
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(error)
    assert min(bounds) >= error
    assert set(answers(folder)["item"]) == set(table["task"])
    assert record(folder)["stages"][0]["looks"][-1] == [len(table), round(error * len(table))]


def test_one_planned_look_waits_for_all_answers(folder: Path, truth: Path) -> None:
    audit = folder.parent / "audit.csv"
    said(folder, "--draw", "150", "--once", "--out", str(audit))
    fill(audit, truth, 100)
    assert "waiting: 100 answers so far; one look was planned, at 150 audits" in said(folder, "--answers", str(audit))
    assert record(folder)["certificate"] is None
    refused = certify(folder, "--draw", "10", "--out", str(audit))
    assert refused.status == 2
    assert "planned as one look at 150" in refused.err
    said(folder, "--draw", "150", "--once", "--out", str(audit))
    assert len(fill(audit, truth)) == 50
    assert "one planned look" in said(folder, "--answers", str(audit))
    stated = record(folder)["certificate"]
    assert stated["bound"] == stated["hypergeometric"] < stated["anytime"]
    assert said(folder) == said(folder)
    said(folder, "--draw", "150", "--expert", str(truth))  # the look is over: a new audit, at a higher level
    assert len(record(folder)["stages"]) == 2
    assert record(folder)["certificate"]["level"] == pytest.approx(0.9936)


def test_labels_that_change_need_an_audit_of_their_own(folder: Path, truth: Path) -> None:
    said(folder, "--draw", "300", "--expert", str(truth))
    table = labels(folder)
    table.loc[table.index[-1], ["label", "status"]] = ["ship", "finished"]
    table.loc[table.index[-2], ["label", "status"]] = ["frog", "finished"]
    table.to_csv(folder / "labels.csv", index=False)
    facts = answers(folder)
    refused = certify(folder)
    assert refused.status == 2
    assert "no audit was drawn for these labels as they are now" in refused.err
    said(folder, "--draw", "300", "--expert", str(truth))
    again = answers(folder)
    assert len(again) == 600
    assert not again["item"].duplicated().any()
    pd.testing.assert_frame_equal(again[: len(facts)], facts)
    stated = record(folder)["certificate"]
    assert 300 < stated["audited"] < 600  # items that came up again count, and were not asked again
    assert stated["level"] == pytest.approx(0.9936)


def test_a_risk_below_takes_the_place_of_finished(folder: Path, truth: Path) -> None:
    said(folder, "--draw", "400", "--below", "0.3", "--expert", str(truth), "--target", "0.08")
    stated, table = record(folder)["certificate"], labels(folder)
    assert stated["size"] == ((table["risk"] < 0.3) & (table["status"] != "prototype")).sum()
    assert stated["choice"]["threshold"] == 0.3
    assert "labels with a risk below 0.3" in said(folder)  # remembered


def test_unsure_counts_as_wrong(folder: Path) -> None:
    audit = folder.parent / "audit.csv"
    said(folder, "--draw", "20", "--out", str(audit))
    table = pd.read_csv(audit, dtype=str, keep_default_na=False)
    run = labels(folder).set_index("task")["label"]
    table["label"] = [" Unsure", "skip", *run[table["task"][2:]]]
    table.to_csv(audit, index=False)
    assert "unsure: 2 of these, counted as wrong" in said(folder, "--answers", str(audit))
    assert record(folder)["certificate"]["wrong"] == 2


def test_answers_behind_a_gap_wait(folder: Path, truth: Path) -> None:
    audit = folder.parent / "audit.csv"
    said(folder, "--draw", "20", "--out", str(audit))
    table = fill(audit, truth)
    table.loc[4, "label"] = ""
    table.to_csv(audit, index=False)
    assert "waiting: 15 answers" in said(folder, "--answers", str(audit))
    assert record(folder)["certificate"]["audited"] == 4


def test_the_paths_of_images_are_shown(folder: Path) -> None:
    images = folder.parent / "images"
    images.mkdir()
    for task in labels(folder)["task"]:
        Image.new("L", (1, 1)).save(images / task, format="png")
    (folder / "config.yaml").write_text(f"data:\n  class_path: x.Y\n  init_args:\n    root: {images}\n")
    said(folder, "--draw", "5", "--out", str(folder.parent / "audit.csv"))
    table = pd.read_csv(folder.parent / "audit.csv", dtype=str, keep_default_na=False)
    assert list(table) == ["task", "path", "label"]
    assert all(Path(path).name == task for path, task in zip(table["path"], table["task"], strict=True))


def test_seeds_draw_differently_and_stay(folder: Path) -> None:
    said(folder, "--draw", "30", "--seed", "3", "--out", str(folder.parent / "a.csv"))
    refused = certify(folder, "--draw", "30", "--seed", "4", "--out", str(folder.parent / "b.csv"))
    assert refused.status == 2
    assert "drawn by seed 3" in refused.err
    drawn = pd.read_csv(folder.parent / "a.csv", dtype=str)["task"].tolist()
    other = make_run(folder.parent / "other", n=1500)
    AnnotationLog(other / "annotations.db").close()
    said(other, "--draw", "30", "--out", str(folder.parent / "b.csv"))
    assert drawn != pd.read_csv(folder.parent / "b.csv", dtype=str)["task"].tolist()


def test_a_lost_file_forgets_nothing(folder: Path, truth: Path) -> None:
    first = said(folder, "--draw", "100", "--expert", str(truth))
    kept = (folder / "certificate.json").read_bytes()
    for damage in ("{", None):
        (folder / "certificate.json").unlink() if damage is None else (folder / "certificate.json").write_text(damage)
        assert said(folder) == first
        assert (folder / "certificate.json").read_bytes() == kept
    change = labels(folder)
    change.loc[change["status"] == "finished", "label"] = "cat"
    change.to_csv(folder / "labels.csv", index=False)
    (folder / "certificate.json").unlink()
    said(folder, "--draw", "100", "--expert", str(truth))
    assert len(record(folder)["stages"]) == 2
    assert record(folder)["certificate"]["level"] == pytest.approx(0.9936)


def test_a_stage_that_asks_nothing_new_counts(folder: Path, truth: Path) -> None:
    said(folder, "--draw", "10000", "--expert", str(truth))
    change = labels(folder)
    change.loc[change["status"] == "finished", "label"] = "cat"
    change.to_csv(folder / "labels.csv", index=False)
    n_questions = len(questions(folder))
    for level in (0.9936, 1 - 0.05 * 0.032 * 0.8):
        (folder / "certificate.json").unlink()
        said(folder, "--draw", "100", "--expert", str(truth))
        assert record(folder)["certificate"]["level"] == pytest.approx(level)
        change["label"] = change["label"].replace("cat", "dog")
        change.to_csv(folder / "labels.csv", index=False)
    assert len(questions(folder)) == n_questions


def test_draws_of_an_older_version_count_as_stages(folder: Path, truth: Path) -> None:
    with AnnotationLog(folder / "annotations.db") as log:
        for task in labels(folder)["task"][-2:]:
            log.ask([Question(task, "expert", "audit")])
    said(folder, "--draw", "100", "--expert", str(truth))
    assert record(folder)["certificate"]["level"] == pytest.approx(1 - 0.05 * 0.032 * 0.8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.assign(task=["nothing", *t["task"][1:]]),
            ["have a task outside the items that were drawn", "line 2"],
        ),
        (lambda t: t.assign(label=["zebra", *t["label"][1:]]), ["outside the classes", "'zebra'", "airplane"]),
        (lambda t: pd.concat([t, t[:1].assign(label="unsure")]), ["answered in another way above", "line 32"]),
        (lambda t: t.assign(label=["unsure", *t["label"][1:]]), ["contradict the answer that the log has", "line 2"]),
        (lambda t: t.drop(columns="label"), ["without ['label']"]),
    ],
    ids=["unknown task", "unknown class", "contradiction", "contradicts the log", "no column"],
)
def test_bad_answers_are_refused_and_change_nothing(folder: Path, truth: Path, change, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    audit = folder.parent / "audit.csv"
    said(folder, "--draw", "30", "--out", str(audit))
    table = fill(audit, truth, 1)
    said(folder, "--answers", str(audit))
    table = fill(audit, truth)
    change(table).to_csv(audit, index=False)
    facts, kept = answers(folder), (folder / "certificate.json").read_bytes()
    refused = certify(folder, "--answers", str(audit))
    assert refused.status == 2
    assert "Traceback" not in refused.err
    assert not [text for text in words if text not in refused.err], refused.err
    pd.testing.assert_frame_equal(answers(folder), facts)
    assert (folder / "certificate.json").read_bytes() == kept


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "draw it with --draw 300"),
        (["--draw", "0", "--out", "x.csv"], "--draw 0 given"),
        (["--draw", "10"], "--expert labels.csv to simulate one"),
        (["--once"], "--once given without --draw"),
        (["--target", "2"], "--target 2.0 given"),
        (["--confidence", "95"], "confidence 95.0 given"),
        (["--answers", "nowhere.csv"], "cannot be read"),
        (["--draw", "10", "--expert", "nowhere.csv"], "cannot be read"),
        (["--draw", "10", "--out", "nowhere/audit.csv"], "cannot be written"),
        (["--below", "0", "--draw", "10", "--out", "x.csv"], "no item has a risk below 0"),
    ],
)
def test_impossible_wishes_are_refused(folder: Path, words: list[str], told: str) -> None:
    refused = certify(folder, *words)
    assert refused.status == 2
    assert told in refused.err
    assert "Traceback" not in refused.err


def test_an_expert_who_lacks_a_task_is_refused(folder: Path, truth: Path) -> None:
    pd.read_csv(truth, dtype=str)[:700].to_csv(truth, index=False)
    refused = certify(folder, "--draw", "50", "--expert", str(truth))
    assert refused.status == 2
    assert "has no label for" in refused.err
    assert questions(folder).empty
    assert not (folder / "certificate.json").exists()


def test_a_run_goes_on_as_if_it_had_not_been_audited(bank: Bank, tmp_path: Path) -> None:
    settings = bank.settings(**{"annotation.threshold": 0.05})  # some items are finished, and some open
    audited, other = (fit(settings, tmp_path / name, trainer__max_epochs=2) for name in ("audited", "other"))
    said(audited, "--draw", "40", "--expert", str(bank.labels))
    for run in (audited, other):
        fit(settings, run, trainer__max_epochs=4)
    for name in ("labels.csv", "workers.csv"):
        assert (audited / name).read_text() == (other / name).read_text(), name
    ours, theirs = rounds(audited), rounds(other)
    pd.testing.assert_frame_equal(ours.drop(columns="paid_per_item"), theirs.drop(columns="paid_per_item"), check_exact=True)
    more = (ours["paid_per_item"] - theirs["paid_per_item"]) * (300 - 12)
    assert more.round().tolist() == [0, 0, 40, 40]
    assert set(answers(audited).query("kind == 'audit'")["worker"]) == {"expert"}


def test_workers_are_not_asked_what_the_expert_is(tmp_path: Path) -> None:
    with AnnotationLog(tmp_path / "annotations.db") as log:
        asked = log.ask([Question("a", "expert", "audit"), Question("b", "expert", "audit"), Question("a", None)])
        log.answer([Answer(asked[0].id, "expert", "cat")])
        workers = FileWorkers()
        ledger = Ledger(log, Task(["a", "b"], ["cat", "dog"], 0, str(tmp_path)), workers)
        ledger.collect()
        facts = ledger.facts(1)
    assert pd.read_csv(tmp_path / "questions.csv")["task"].tolist() == ["a"]
    assert ledger.workers == ()
    assert facts.extra_paid == 1
    assert len(facts.item) == 0
    assert len(facts.open_item) == 1
