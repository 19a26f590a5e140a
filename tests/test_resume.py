"""A run that stopped and went on equals one that was never interrupted, to the last bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_runs import Bank, answers, assert_equal_runs, checkpoint, fit, questions, rounds

RECORDED = "lightning_annot.workers.recorded.RecordedWorkers"
LEARNERS: dict[str, dict[str, Any]] = {
    "pseudo labels, linear head": {},
    "mixmatch, uniform items, least loaded workers, homogeneous prior": {
        "data.batches.objective": "mixmatch",
        "annotation.sampling.items": "uniform",
        "annotation.sampling.workers": "least_loaded",
        "annotation.crowd.prior": "homogeneous",
    },
    "consistency, neighbours": {
        "data.batches.objective": "consistency",
        "data.projection.neighbours": 3,
        "annotation.threshold": 0.01,  # else the items are finished before their questions are asked
    },
    "labelled alone, hidden layer, moving average, fresh weights every round": {
        "data.batches.objective": "labelled",
        "model.hidden": 8,
        "model.ema": 0.9,
        "model.restart": True,
        "model.lr": 0.02,
    },
    "hidden layer that goes on": {"model.hidden": 8, "model.ema": 0.9, "model.lr": 0.02},
}


@pytest.fixture(scope="module")
def whole(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rounds at one go."""
    return fit(bank.settings(), tmp_path_factory.mktemp("whole"), trainer__max_epochs=5)


@pytest.fixture(scope="module")
def recorded(bank: Bank) -> dict[str, Any]:
    return bank.settings(**{"annotation.workers": RECORDED, "annotation.workers.answers": bank.answers})


@pytest.mark.parametrize("changes", LEARNERS.values(), ids=LEARNERS)
def test_two_rounds_then_three_more_are_five(bank: Bank, tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = bank.settings(**changes)
    whole = fit(settings, tmp_path / "whole", trainer__max_epochs=5)
    parts = fit(settings, tmp_path / "parts", trainer__max_epochs=2)
    assert len(answers(parts)) == 20
    fit(settings, parts, "--ckpt_path=last", trainer__max_epochs=5)
    assert len(answers(parts)) == 80
    assert_equal_runs(parts, whole)
    assert rounds(whole)["fresh_gain"].notna().tolist() == [True, True, True, True, False]  # the last asks nothing


@pytest.mark.parametrize("by_worker", [False, True])
def test_recorded_people_are_resumed(recorded: dict[str, Any], tmp_path: Path, by_worker: bool) -> None:
    settings = recorded | {"annotation.workers.by_worker": by_worker}
    whole = fit(settings, tmp_path / "whole", trainer__max_epochs=4)
    parts = fit(settings, tmp_path / "parts", trainer__max_epochs=2)
    from_log = shutil.copytree(parts, tmp_path / "from_log")
    fit(settings, parts, "--ckpt_path=last", trainer__max_epochs=4)
    fit(settings, from_log, trainer__max_epochs=4)  # without the checkpoint: the rounds are computed again
    assert set(answers(whole)["source"]) == {"recorded"}
    assert_equal_runs(parts, whole)
    assert_equal_runs(from_log, whole)


def test_run_goes_on_from_its_log_alone(bank: Bank, whole: Path, tmp_path: Path) -> None:
    parts = fit(bank.settings(), tmp_path / "parts")
    shutil.rmtree(parts / "checkpoints")
    fit(bank.settings(), parts, "--ckpt_path=last", trainer__max_epochs=5)
    assert_equal_runs(parts, whole)


@pytest.mark.parametrize("more", [(), ("--ckpt_path=last",)], ids=["from the log", "from the checkpoint"])
def test_same_command_on_a_finished_run_changes_nothing(bank: Bank, whole: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    fit(bank.settings(), run, *more, trainer__max_epochs=5)
    assert_equal_runs(run, whole)
    assert (run / "summary.json").read_text() == (whole / "summary.json").read_text()


def test_run_that_spent_its_budget_stays_ended(bank: Bank, tmp_path: Path) -> None:
    settings = bank.settings(**{"annotation.stopping.budget": 0.1, "trainer.max_epochs": 9})
    run = fit(settings, tmp_path / "run")
    assert len(answers(run)) == 29  # 0.1 of the 288 items that are not prototypes
    before = shutil.copytree(run, tmp_path / "before")
    fit(settings, run, "--ckpt_path=last")
    assert_equal_runs(run, before)


def test_larger_budget_lets_an_ended_run_go_on(bank: Bank, tmp_path: Path) -> None:
    settings = bank.settings(**{"trainer.max_epochs": 9})
    run = fit(settings | {"annotation.stopping.budget": 0.1}, tmp_path / "run")
    first = answers(run)
    fit(settings | {"annotation.stopping.budget": 0.2}, run, "--ckpt_path=last")
    assert len(answers(run)) == 58
    pd.testing.assert_frame_equal(answers(run)[:29], first)
    assert rounds(run)["annotations"].is_monotonic_increasing
    assert not questions(run).duplicated(["item", "worker"]).any()


def test_seed_alone_decides(bank: Bank, whole: Path, tmp_path: Path) -> None:
    again = fit(bank.settings(seed_everything=0), tmp_path / "again", trainer__max_epochs=5)
    other = fit(bank.settings(seed_everything=4), tmp_path / "other", trainer__max_epochs=5)
    assert_equal_runs(again, whole)
    assert not answers(other).equals(answers(whole))
    assert other.joinpath("labels.csv").read_text() != whole.joinpath("labels.csv").read_text()


def test_checkpoint_counts_its_rounds(whole: Path) -> None:
    state = next(value for key, value in checkpoint(whole)["callbacks"].items() if key.startswith("AnnotationRound"))
    assert state["next_round"] == 5
    assert [row["annotations"] for row in state["rows"]] == [0, 20, 40, 60, 80]
