"""Methods by name, through the real command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_runs import Bank, answers, assert_equal_runs, call, fit, questions, rounds

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.presets import METHODS, RELEASED, expand, preset
from lightning_annot.types import AnnotError

FAITHFUL = ["online_ds", "lean", "improved_lean", "efficient_annotation", "mixmatch"]
SIX = {"annotation.workers": "lightning_annot.workers.simulated.StructuredWorkers", "annotation.workers.n_workers": 6}
QUICK = {"data.batches.steps": 10, "annotation.sampling.per_round": 40}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(method: str, bank: Bank, tmp_path: Path) -> None:
    run = fit({**bank.settings(), **QUICK}, tmp_path, "--method", method)
    table = rounds(run)
    assert len(table) == 3
    assert table["annotations"].tolist() == [0, 40, 80]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["method"] == method
    assert summary["oracle_prior"] is False
    assert len(summary["learner_class_accuracy"]) == 4
    if method in ("majority_vote", "online_ds"):
        assert table["learner_accuracy"].max() < 0.5
    else:
        assert table["learner_accuracy"].iloc[-1] > 0.5
    assert table["accuracy"].iloc[-1] > table["accuracy"].iloc[0] - 0.05


@pytest.mark.parametrize("method", FAITHFUL)
def test_faithful_methods_run_in_hits_with_an_oracle(method: str, bank: Bank, tmp_path: Path) -> None:
    run = fit({**bank.settings(), **QUICK}, tmp_path, "--method", method, "--faithful", "true")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["method"] == f"{method}-released"
    assert summary["oracle_prior"] is True
    assert questions(run).groupby("round")["worker"].nunique().tolist() == [1, 1]  # HITs of 40 for one worker each
    with np.load(run / "simulated_workers.npz") as arrays:
        assert arrays["confusions"].shape == (50, 4, 4)
        assert arrays["confusions"].sum(2) == pytest.approx(1.0)


def test_a_faithful_run_resumes(bank: Bank, tmp_path: Path) -> None:
    """The best model of all rounds is part of the checkpoint."""
    settings = {**bank.settings(), **QUICK, "trainer.max_epochs": 5}
    whole = fit(settings, tmp_path / "whole", "--method", "efficient_annotation", "--faithful", "true")
    part = fit(settings, tmp_path / "part", "--method", "efficient_annotation", "--faithful", "true", trainer__max_epochs=2)
    fit(settings, part, "--method", "efficient_annotation", "--faithful", "true")
    assert_equal_runs(part, whole)


def test_majority_vote_is_the_majority(bank: Bank, tmp_path: Path) -> None:
    settings = {**bank.settings(), "trainer.max_epochs": 40, "annotation.sampling.per_round": 200, "annotation.threshold": 1e-6}
    run = fit(settings, tmp_path, "--method", "majority_vote", annotation__stopping__patience=None)
    votes = answers(run).groupby(["item", "label"]).size().unstack(fill_value=0)
    clear = votes[votes.max(axis=1) >= 2]
    labels = pd.read_csv(run / "labels.csv", dtype=str).set_index("task")["label"]
    assert len(clear) > 200
    assert (labels[clear.index] == clear.idxmax(axis=1)).all()


@pytest.mark.parametrize("prior", ["homogeneous", "class", "worker", "class_worker", "tiered"])
def test_gold_questions_are_asked_first_paid_and_about_prototypes(prior: str, bank: Bank, tmp_path: Path) -> None:
    settings = {**bank.settings(), "annotation.gold": 5, "annotation.crowd.prior": prior, "annotation.crowd.estimate": "gold"}
    run = fit({**settings, **SIX}, tmp_path)
    with AnnotationLog(run / "annotations.db") as log:
        gold = log.questions(kind="gold")
        asked = log.answers(kind="gold")
    assert gold["worker"].value_counts().tolist() == [5] * 6
    assert set(gold["round"]) == {0}
    assert len(asked) == 30
    prototypes = set(pd.read_csv(run / "labels.csv", dtype=str).query("status == 'prototype'")["task"])
    assert set(gold["item"]) <= prototypes
    table, n = rounds(run), 300 - len(prototypes)
    paid = (table["paid_per_item"] - table["annotations_per_item"]) * n
    assert paid.round().tolist() == [0, 30, 30]
    assert table["annotations"].tolist() == [0, 20, 40]
    assert int(pd.read_csv(run / "workers.csv")["n_annotations"].sum()) == 40  # gold apart


def test_a_run_with_gold_resumes(bank: Bank, tmp_path: Path) -> None:
    settings = {**bank.settings(), "annotation.gold": 5, "trainer.max_epochs": 4}
    whole = fit(settings, tmp_path / "whole")
    part = fit(settings, tmp_path / "part", trainer__max_epochs=2)
    assert_equal_runs(fit(settings, part), whole)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "best"), "method 'best' given.*; allowed are majority_vote, online_ds"),
        (("--method", "ours", "--faithful", "true"), "no released form"),
        (("--faithful", "true"), "--faithful given without --method"),
        (("--method", "lean", "--faithful", "perhaps"), "allowed are true, false"),
        (("--annotation.crowd.prior", "worker"), "known before their answers only from gold questions"),
        (("--annotation.crowd.prior", "worker", "--annotation.crowd.estimate", "gold"), "set annotation.gold"),
        (("--annotation.gold", "-1"), "annotation.gold -1"),
        (
            ("--annotation.sampling.worker_cap", "5", "--annotation.sampling.hit_size", "40"),
            "worker_cap 5 given, with HITs of 40",
        ),
        (("--annotation.crowd.oracle", "nothing.npz"), "crowd.oracle .*nothing.npz', and there is no such file"),
        (("--data.holdout", "classes"), "holdout"),
        (("--data.folds", "1"), "data.folds 1 given"),
    ],
)
def test_impossible_settings(words: tuple[str, ...], message: str, bank: Bank, tmp_path: Path) -> None:
    result = call("fit", {**bank.settings(), "annotation.output_dir": tmp_path / "run"}, *words)
    assert result.status != 0
    assert re.search(message, result.err), result.err


def test_gold_needs_names(bank: Bank, tmp_path: Path) -> None:
    settings = {**bank.settings(), "annotation.output_dir": tmp_path / "run", "annotation.gold": 5}
    recorded = "lightning_annot.workers.recorded.RecordedWorkers"
    result = call("fit", {**settings, "annotation.workers": recorded, "annotation.workers.answers": bank.answers})
    assert result.status == 2
    assert "gold questions need workers with names" in result.err


def test_oracles_of_other_people_are_refused(bank: Bank, tmp_path: Path) -> None:
    few = fit({**bank.settings(), **SIX}, tmp_path / "few")
    settings = {**bank.settings(), "annotation.output_dir": tmp_path / "run"}
    result = call("fit", {**settings, "annotation.crowd.oracle": (few / "simulated_workers.npz").resolve()})
    assert result.status == 2
    assert "knows nothing of the workers ['w006'" in result.err


def test_presets_stand_between_files_and_what_follows() -> None:
    words = expand(["fit", "--config", "a.yaml", "--method=lean", "--config=b.yaml", "--data.folds", "4"])
    assert words[:4] == ["fit", "--config", "a.yaml", "--config=b.yaml"]
    assert words[-2:] == ["--data.folds", "4"]
    assert "--data.folds=3" in words[4:-2]
    assert expand(["fit", "--config", "a.yaml"]) == ["fit", "--config", "a.yaml"]
    assert expand(["fit", "--method", "ours"]) == ["fit", "--annotation.method=ours"]


def test_faithful_presets_hold_what_was_released() -> None:
    for method in FAITHFUL:
        settings = preset(method, faithful=True)
        assert RELEASED.items() <= settings.items()
    assert preset("lean", faithful=True)["model.average_folds"] is True
    with pytest.raises(AnnotError, match="majority_vote"):
        preset("majority_vote", faithful=True)
