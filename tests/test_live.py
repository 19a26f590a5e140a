"""People who answer through two files: the same command asks, ends, and goes on once answers are there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_runs import QUIET, SMALL, Bank, answers, call, fit, questions, rounds, start
from test_kill import kill_when_it_moves

PER_ROUND = 12


@dataclass(frozen=True)
class Live:
    """One run that real people could answer."""

    settings: dict[str, Any]
    run: Path
    truth: dict[str, str]

    def go_on(self, **changed: Any) -> str:
        """The same command once more; why it ended."""
        fit(self.settings, self.run, **changed)
        return json.loads((self.run / "summary.json").read_text())["stop_reason"]

    def asked(self) -> list[str]:
        """Tasks in the file of questions."""
        table = pd.read_csv(self.run / "questions.csv", dtype=str, keep_default_na=False)
        assert list(table) == ["task", "worker", "path"]
        return table["task"].tolist()

    def say(self, *rows: tuple[str, str, str]) -> None:
        """Append lines (task, worker, label) to the file of answers."""
        path = self.run / "answers.csv"
        header = "" if path.exists() else "task,worker,label\n"
        with open(path, "a") as file:
            file.write(header + "".join(",".join(row) + "\n" for row in rows))

    def say_truth(self, tasks: list[str], worker: str) -> None:
        """Right answers of one worker."""
        self.say(*((task, worker, self.truth[task]) for task in tasks))


@pytest.fixture
def live(bank: Bank, tmp_path: Path) -> Live:
    small = {key: value for key, value in SMALL.items() if key != "data.prototypes_per_class"}
    settings = {
        **QUIET,
        **small,
        "trainer.max_epochs": 1000,
        "data.features": bank.features,
        "data.items": bank.labels,
        "data.prototypes": bank.prototypes,
        "annotation.workers": "lightning_annot.workers.files.FileWorkers",
        "annotation.sampling.per_round": PER_ROUND,
        "ckpt_path": "last",
    }
    truth = pd.read_csv(bank.labels, dtype=str).set_index("task")["label"].to_dict()
    return Live(settings, tmp_path / "run", truth)


def test_the_first_call_asks_and_the_next_ones_wait(live: Live) -> None:
    assert live.go_on() == f"waiting for the answers to {PER_ROUND} questions"
    asked, log = live.asked(), questions(live.run)
    assert asked == log["item"].tolist()
    assert len(set(asked)) == PER_ROUND
    before = {name: (live.run / name).read_bytes() for name in ("questions.csv", "labels.csv", "workers.csv", "confusions.npz")}
    assert live.go_on() == f"waiting for the answers to {PER_ROUND} questions"
    assert before == {name: (live.run / name).read_bytes() for name in before}
    pd.testing.assert_frame_equal(questions(live.run), log)
    assert rounds(live.run)["annotations"].tolist() == [0]
    assert_no_truth(live.run)
    live.settings.pop("ckpt_path")  # without the checkpoint, the log alone says where the run stands
    assert live.go_on() == f"waiting for the answers to {PER_ROUND} questions"
    pd.testing.assert_frame_equal(questions(live.run), log)


def test_partial_late_and_skipped_answers(live: Live) -> None:
    live.go_on()
    first = live.asked()
    late, skipped, early = first[:4], first[4], first[5:]
    live.say_truth(early[::-1], "ann")  # out of order
    live.say((skipped, "ann", "unsure"))
    assert live.go_on() == f"waiting for the answers to {PER_ROUND} questions"
    second = live.asked()
    assert second[:4] == late  # still open, with as many new ones as were answered
    assert len(second) == PER_ROUND
    given = answers(live.run).set_index("item")
    assert given.loc[skipped, "label"] is None
    assert {item: given.loc[item, "label"] for item in early} == {item: live.truth[item] for item in early}
    assert rounds(live.run)["annotations"].tolist() == [0, len(early) + 1]

    live.say_truth(late, "bob")  # answers to older questions alone
    assert live.go_on() == f"waiting for the answers to {PER_ROUND} questions"
    assert rounds(live.run)["annotations"].tolist() == [0, len(early) + 1, PER_ROUND]
    workers = pd.read_csv(live.run / "workers.csv").set_index("worker")["n_annotations"]
    assert workers.to_dict() == {"ann": len(early), "bob": len(late)}
    labels = pd.read_csv(live.run / "labels.csv").set_index("task")
    assert labels.loc[skipped, "n_annotations"] == 0
    assert (labels.loc[late + early, "n_annotations"] == 1).all()


@pytest.mark.parametrize(
    ("threshold", "cap", "end"),
    [(0.1, 3, "every item is finished"), (1e-9, 1, "every unfinished item has had as many answers as it may get")],
)
def test_people_bring_a_run_to_its_end(live: Live, threshold: float, cap: int, end: str) -> None:
    changed = {
        "annotation__threshold": threshold,
        "annotation__sampling__cap": cap,
        "annotation__sampling__per_round": 300,
        "annotation__stopping__patience": None,
    }
    reason = live.go_on(**changed)
    for call_number in range(12):
        if not reason.startswith("waiting"):
            break
        live.say_truth(live.asked(), f"person{call_number}")
        reason = live.go_on(**changed)
    assert reason == end
    assert live.asked() == []
    given = answers(live.run)
    assert not given.duplicated(["item", "worker"]).any()
    assert not given.duplicated("question").any()
    assert set(given["question"]) == set(questions(live.run)["id"])
    assert given.groupby("item").size().max() <= cap
    labels = pd.read_csv(live.run / "labels.csv").set_index("task")["label"]
    assert (labels == pd.Series(live.truth)).mean() > 0.97
    log = answers(live.run)
    assert live.go_on(**changed) == end
    pd.testing.assert_frame_equal(answers(live.run), log)


def test_named_people_get_their_own_questions(live: Live) -> None:
    live.settings["annotation.workers.workers"] = "[ann,bob]"
    # Of workers who were never wrong, one answer is soon beyond doubt, and one of the two may be asked more than the other.
    changed = {
        "annotation__threshold": 1e-100,
        "annotation__crowd__strength": 10,
        "annotation__sampling__workers": "least_loaded",
        "annotation__sampling__per_round": 300,
    }
    while (reason := live.go_on(**changed)).startswith("waiting"):
        table = pd.read_csv(live.run / "questions.csv", dtype=str)
        assert set(table["worker"]) == {"ann", "bob"}
        live.say(*((task, worker, live.truth[task]) for task, worker in zip(table["task"], table["worker"], strict=True)))
    assert reason == "no worker can answer any of the unfinished items once more"
    given = answers(live.run)
    assert not given.duplicated(["item", "worker"]).any()
    assert (given.groupby("item").size() == 2).all()  # each has answered each item, and the cap of 4 is out of reach


def test_a_wrong_line_ends_the_call_and_loses_nothing(live: Live) -> None:
    live.go_on()
    asked = live.asked()
    live.say_truth(asked[:3], "ann")
    live.say((asked[3], "ann", "cat"))
    result = call("fit", {**live.settings, "annotation.output_dir": live.run})
    assert result.status == 2
    assert "answers.csv: 1 rows have a label outside the classes (line 5: 'cat')" in result.err
    assert "'ant', 'bee', 'cow', 'dog'" in result.err
    assert answers(live.run).empty
    text = (live.run / "answers.csv").read_text()
    (live.run / "answers.csv").write_text(text.replace(",cat\n", f",{live.truth[asked[3]]}\n"))
    assert live.go_on() == f"waiting for the answers to {PER_ROUND} questions"
    assert sorted(answers(live.run)["item"]) == sorted(asked[:4])


def test_a_killed_call_is_taken_up_by_the_next(live: Live) -> None:
    kill_when_written(live, 0)
    log = questions(live.run)
    assert live.go_on() == f"waiting for the answers to {PER_ROUND} questions"
    pd.testing.assert_frame_equal(questions(live.run), log)
    assert live.asked() == log["item"].tolist()
    live.say_truth(live.asked(), "ann")
    kill_when_written(live, 1)
    log = answers(live.run)
    assert log["label"].tolist() == [live.truth[item] for item in log["item"]]
    assert live.go_on() == f"waiting for the answers to {PER_ROUND} questions"
    pd.testing.assert_frame_equal(answers(live.run), log)
    assert rounds(live.run)["annotations"].tolist() == [0, PER_ROUND]


def kill_when_written(live: Live, which: int) -> None:
    """Start the command, and kill it as soon as a question (0) or an answer (1) is committed."""
    process = start("fit", {**live.settings, "annotation.output_dir": live.run})
    assert kill_when_it_moves(process, live.run, which, pause=0.0)


def assert_no_truth(run: Path) -> None:
    """The tables have every column that can be known without the truth, and no other."""
    figures = ["annotations", "annotations_per_item", "paid_per_item", "finished_fraction", "mean_risk"]
    figures += ["finished_risk", "finished_risk_low", "finished_risk_high", "fresh_answers"]
    seconds = [f"seconds_{stage}" for stage in ("train", "predict", "infer", "sample", "ask", "wait", "save")]
    assert list(pd.read_csv(run / "rounds.csv")) == ["round", *figures, *seconds]
    labels = pd.read_csv(run / "labels.csv")
    assert list(labels) == ["task", "label", "confidence", "risk", "n_annotations", "status"]
    assert labels["status"].value_counts()["prototype"] == 12
