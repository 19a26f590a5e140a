"""Audits inside a run: it ends certified, goes on where it was cut off, and refuses what cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_runs import Bank, answers, assert_equal_runs, call, check_refused, fit, questions, rounds

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.plans import plans

FILES = "lightning_annot.workers.files.FileWorkers"
RECORDED = "lightning_annot.workers.recorded.RecordedWorkers"
LIVE = "lightning_annot.workers.live.LiveWorkers"


def audited(bank: Bank, **more: Any) -> dict[str, Any]:
    """Settings of a run that may be certified in its first rounds, by a simulated expert."""
    given = {"annotation.threshold": 0.2, "annotation.stopping.target_error": 0.1, "annotation.stopping.auditor": "eve"}
    return bank.settings(**{**given, "trainer.max_epochs": 8, **more})


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def certified(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(audited(bank), tmp_path_factory.mktemp("certified"))


def test_a_run_ends_when_its_finished_labels_are_certified(bank: Bank, certified: Path) -> None:
    reason = summary(certified)["stop_reason"]
    said = answers(certified)
    audits = said[said["kind"] == "audit"]
    assert reason.startswith("the finished labels are certified: at most 10% wrong at confidence 0.95 (")
    assert set(audits["worker"]) == {"eve"}
    assert not audits["item"].duplicated().any()
    labels = pd.read_csv(certified / "labels.csv", dtype=str).set_index("task")
    truth = pd.read_csv(bank.labels, dtype=str).set_index("task")["label"]
    assert (truth[audits["item"]].to_numpy() == audits["label"].to_numpy()).all()
    finished = labels[labels["status"] == "finished"]
    assert set(audits["item"]) <= set(finished.index)
    assert (finished["label"] != truth[finished.index]).mean() <= 0.1
    wrong = int((labels["label"][audits["item"]].to_numpy() != audits["label"].to_numpy()).sum())
    assert f"({len(audits)} audits, {wrong} wrong)" in reason
    last = rounds(certified).iloc[-1]
    n_items = (labels["status"] != "prototype").sum()
    assert last["paid_per_item"] * n_items == pytest.approx(len(said))
    assert last["annotations_per_item"] * n_items == pytest.approx((said["kind"] == "annotation").sum())


def test_certify_restates_the_certificate_of_the_run_and_counts_it(bank: Bank, certified: Path, tmp_path: Path) -> None:
    run = shutil.copytree(certified, tmp_path / "run")
    reason = summary(run)["stop_reason"]
    assert reason in call("certify", {}, str(run)).out
    (run / "certificate.json").unlink()
    assert reason in call("certify", {}, str(run)).out
    result = call("certify", {}, str(run), "--draw", "60", "--expert", str(bank.labels))
    assert result.status == 0, result.err
    found = json.loads((run / "certificate.json").read_text())
    assert [stage["error"] for stage in found["stages"]] == [0.1, None]
    assert found["certificate"]["level"] == pytest.approx(1 - 0.05 * 0.16 * 0.8)


def test_a_run_that_ends_otherwise_is_audited_at_its_end(bank: Bank, tmp_path: Path) -> None:
    """The budget is spent before nine tenths of the items are finished."""
    more = {"annotation.stopping.budget": 0.05, "annotation.stopping.audit_from": 1.0}
    run = fit(audited(bank, **more), tmp_path / "run")
    reason = summary(run)["stop_reason"]
    assert reason.startswith("the budget of 0.05 annotations per item is spent; the finished labels are certified")
    assert f" {(answers(run)['kind'] == 'audit').sum()} audits" in reason.replace("(", " ")


@pytest.mark.parametrize("from_log", [False, True])
def test_a_run_that_was_cut_off_is_audited_as_if_it_had_not_been(
    bank: Bank, certified: Path, tmp_path: Path, from_log: bool
) -> None:
    n_rounds = len(rounds(certified))
    parts = fit(audited(bank), tmp_path / "parts", trainer__max_epochs=max(1, n_rounds - 1))
    if from_log:
        shutil.rmtree(parts / "checkpoints")
    fit(audited(bank), parts, "--ckpt_path=last")
    assert_equal_runs(parts, certified)
    assert summary(parts)["stop_reason"] == summary(certified)["stop_reason"]


def test_an_audit_that_was_cut_off_goes_on(bank: Bank, certified: Path, tmp_path: Path) -> None:
    """The questions of the audit are there, and some of its answers; nothing is asked twice."""
    parts = shutil.copytree(certified, tmp_path / "parts")
    shutil.rmtree(parts / "checkpoints")
    (parts / "annotations.db").unlink()
    with AnnotationLog(certified / "annotations.db") as old, AnnotationLog(parts / "annotations.db") as log:
        copy_up_to(old, log, n_answers=len(old.answers()) - 10)
    fit(audited(bank), parts, "--ckpt_path=last")
    assert_equal_runs(parts, certified)


def copy_up_to(old: AnnotationLog, log: AnnotationLog, n_answers: int) -> None:
    """What a log held when it had so many answers."""
    from lightning_annot.annotations.plans import add_plan
    from lightning_annot.types import Answer, Question

    log.claim(old.identity())
    asked, said = old.questions(), old.answers()[:n_answers]
    log.ask([Question(q.item, q.worker, q.kind, q.round) for q in asked.itertuples()])
    log.answer([Answer(a.question, a.worker, a.label, source=a.source) for a in said.itertuples()])
    add_plan(log, plans(old)[0])


def test_a_person_audits_through_files(bank: Bank, tmp_path: Path) -> None:
    """The run waits for the auditor, who gets the questions among the others, and ends once they are answered."""
    settings = audited(
        bank, **{"annotation.workers": FILES, "annotation.threshold": 0.5, "annotation.stopping.audit_from": 0.0}
    )
    run, truth = tmp_path / "run", pd.read_csv(bank.labels, dtype=str).set_index("task")["label"]
    for _ in range(12):
        fit(settings, run, *(["--ckpt_path=last"] if run.exists() else []))
        reason = summary(run)["stop_reason"]
        if not reason.startswith("waiting"):
            break
        asked = pd.read_csv(run / "questions.csv", dtype=str, keep_default_na=False)
        asked["label"] = truth[asked["task"]].to_numpy()
        asked["worker"] = asked["worker"].replace("", "anna").mask(asked.index % 2 == 1, "")  # half of them unsigned
        before = pd.read_csv(run / "answers.csv", dtype=str) if (run / "answers.csv").exists() else None
        pd.concat([before, asked[["task", "worker", "label"]]]).to_csv(run / "answers.csv", index=False)
    assert reason.startswith("the finished labels are certified")
    audits = questions(run).query("kind == 'audit'")
    assert set(audits["worker"]) == {"eve"}
    assert not audits["item"].duplicated().any()


def test_recorded_people_have_a_simulated_auditor(bank: Bank, tmp_path: Path) -> None:
    recorded = {"annotation.workers": RECORDED, "annotation.workers.answers": bank.answers}
    run = fit(audited(bank, **recorded), tmp_path / "run")
    assert "certified" in summary(run)["stop_reason"]


def test_an_audit_that_fails_lets_the_run_go_on(bank: Bank, tmp_path: Path) -> None:
    """The auditor contradicts everything: no certificate, no more audits than allowed, and a rest before the next ones."""
    crowd = {"annotation.workers": "lightning_annot.workers.simulated.UniformNoiseWorkers", "annotation.workers.accuracy": 0.3}
    stopping = {"auditor": "w000", "audits": 40, "target_error": 0.15}
    settings = audited(bank, **crowd, **{f"annotation.stopping.{name}": value for name, value in stopping.items()})
    run = fit(settings, tmp_path / "run", trainer__max_epochs=4)
    assert "certified" not in summary(run)["stop_reason"]
    with AnnotationLog(run / "annotations.db") as log:
        n_stages = len({json.loads(text)["index"] for text in plans(log)})
    audits = questions(run).query("kind == 'audit'")
    assert n_stages == 1
    assert 0 < len(audits) <= 40
    assert audits["round"].nunique() == 1


def test_audits_cost_money(bank: Bank, tmp_path: Path) -> None:
    money = {"annotation.stopping.money": 120, "annotation.prices.per_answer": 2.0, "annotation.stopping.target_error": 0.15}
    run = fit(audited(bank, **money), tmp_path / "run")
    said = answers(run)
    assert said["kind"].value_counts().to_dict() == {"annotation": 20, "audit": 40}
    assert rounds(run)["money"].iloc[-1] == pytest.approx(120)
    assert summary(run)["stop_reason"].startswith("the finished labels are certified: at most 15% wrong")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"auditor": None}, ["nobody is trusted to audit", "annotation.stopping.auditor", "annotation.crowd.experts"]),
        ({"auditor": "expert"}, ["keeps that name"]),
        ({"target_error": 1.5}, ["stopping.target_error 1.5 given"]),
        ({"confidence": 95}, ["stopping.confidence 95", "such as 0.95"]),
        ({"audits": 0}, ["stopping.audits 0 given"]),
        ({"audit_from": 2}, ["stopping.audit_from 2"]),
    ],
)
def test_audits_that_cannot_be_are_refused(bank: Bank, tmp_path: Path, changes: dict[str, Any], told: list[str]) -> None:
    more = {f"annotation.stopping.{key}": value for key, value in changes.items()}
    check_refused(audited(bank, **more, **{"annotation.output_dir": tmp_path / "run"}), *told)
    assert not (tmp_path / "run").exists()


def test_workers_who_cannot_hand_out_audits_say_so(bank: Bank, tmp_path: Path) -> None:
    settings = audited(bank, **{"annotation.workers": LIVE, "annotation.output_dir": tmp_path / "run"})
    check_refused(settings, "LiveWorkers cannot hand audits to one person", "lightning-annot certify")


def test_experts_of_the_crowd_audit(bank: Bank, tmp_path: Path) -> None:
    more = {"annotation.stopping.auditor": None, "annotation.crowd.experts": '["zoe"]'}
    run = fit(audited(bank, **more), tmp_path / "run")
    assert set(questions(run).query("kind == 'audit'")["worker"]) == {"zoe"}
