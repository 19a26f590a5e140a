"""Every command and every shipped configuration through the real command line, and what a run leaves behind."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from cli_runs import CONFIGS, QUIET, ROOT, SHARED, SMALL, Bank, answers, call, fit, rounds, run
from run_checks import (
    FILES,
    QUICK,
    check_run,
    needs_shared_data,
    run_config,
)

from lightning_annot.report.unfinished import COLUMNS as UNFINISHED_COLUMNS


@pytest.fixture(scope="module")
def finished(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds over the tiny bank."""
    return fit(bank.settings(), tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def people(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A bank whose truth nobody knows: ids, prototypes and recorded answers."""
    items = tmp_path_factory.mktemp("people") / "items.csv"
    pd.read_csv(bank.labels)[["task"]].to_csv(items, index=False)
    known = {"data.labels": None, "data.items": items, "data.prototypes": bank.prototypes}
    workers = "lightning_annot.workers.recorded.RecordedWorkers"
    return bank.settings(**known, **{"annotation.workers": workers, "annotation.workers.answers": bank.answers})


def test_digits_config(tmp_path: Path) -> None:
    short = {"trainer.max_epochs": 3, "data.batches.steps": 30, "data.adapt.epochs": 1}
    cache = {"data.backbone.cache_dir": tmp_path / "features"}
    run = tmp_path / "run"
    result = call("fit", {**short, **cache, "annotation.output_dir": run}, f"--config={CONFIGS / 'digits.yaml'}")
    assert result.status == 0, result.err
    table = check_run(run, n_classes=10, n_prototypes=100, truth=True)
    assert table["annotations"].tolist() == [0, 50, 100]
    assert table["accuracy"].min() > 0.5  # one epoch of thirty
    assert {path.name for path in run.iterdir()} - {".lock"} == {
        *FILES,
        *("task.json", "thumbnails.json", "simulated_workers.npz", "adapted"),
    }
    said = result.out + result.err
    assert "the last allowed round is done" in said
    assert "report.html" in said


@needs_shared_data
@pytest.mark.parametrize(("name", "by"), [("simulated.yaml", "simulated"), ("recorded.yaml", "recorded")])
def test_config_of_the_shared_bank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, by: str) -> None:
    monkeypatch.setenv("ANNOT_DATA", str(SHARED))
    run = run_config(name, QUICK, tmp_path)
    table = check_run(run, n_classes=10, n_prototypes=100, truth=True)
    assert table["annotations"].tolist() == [0, 200, 400]
    assert set(answers(run)["source"]) == {by}
    assert table["accuracy"].iloc[-1] > 0.6


def test_without_truth_there_are_no_figures_of_it(people: dict[str, Any], tmp_path: Path) -> None:
    run = fit(people, tmp_path)
    table = check_run(run, n_classes=4, n_prototypes=12, truth=False)
    assert table["annotations"].tolist() == [0, 20, 40]
    result = call("test", {**people, "annotation.output_dir": run})
    assert result.status == 2
    assert "this data has none; give it as data.labels" in result.err
    assert "Traceback" not in result.err


def test_a_run_leaves_what_the_design_says(finished: Path) -> None:
    table = check_run(finished, n_classes=4, n_prototypes=12, truth=True)
    assert {path.name for path in finished.iterdir()} - {".lock"} == {*FILES, "simulated_workers.npz"}
    assert table["annotations"].tolist() == [0, 20, 40]
    assert (table["paid_per_item"] == table["annotations_per_item"]).all()
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["n_items"] == 288
    assert summary["prototypes_drawn"] is True
    assert summary["unreadable_images"] == []


def test_accuracy_counts_what_is_no_prototype(finished: Path, bank: Bank) -> None:
    labels = pd.read_csv(finished / "labels.csv").merge(pd.read_csv(bank.labels), on="task", suffixes=("", "_true"))
    right = (labels["label"] == labels["label_true"])[labels["status"] != "prototype"]
    assert rounds(finished)["accuracy"].iloc[-1] == pytest.approx(right.mean())


def test_a_run_goes_on_by_its_own_config(bank: Bank, finished: Path, tmp_path: Path) -> None:
    first = fit(bank.settings(), tmp_path)
    again = call("fit", {"trainer.max_epochs": 4}, f"--config={first / 'config.yaml'}")
    assert again.status == 0, again.err
    before, after = rounds(finished), rounds(first)[:3]
    assert math.isnan(before["fresh_gain"][2])  # the last round asked nothing
    assert not math.isnan(after["fresh_gain"][2])
    pd.testing.assert_frame_equal(after.drop(columns="fresh_gain"), before.drop(columns="fresh_gain"), check_exact=True)
    assert after["fresh_gain"][:2].equals(before["fresh_gain"][:2])
    assert rounds(first)["annotations"].tolist() == [0, 20, 40, 60]
    assert yaml.safe_load((first / "config.yaml").read_text())["trainer"]["max_epochs"] == 4


def test_validate_and_test_say_how_good_the_run_is(finished: Path, bank: Bank) -> None:
    settings = bank.settings(**{"annotation.output_dir": finished})
    validated, tested = call("validate", settings), call("test", settings)
    assert (validated.status, tested.status) == (0, 0), validated.err + tested.err
    for name in ("val_loss", "val_ece", "val_accuracy"):
        assert name in validated.out
    last = rounds(finished).iloc[-1]
    assert printed_number(tested.out, "label_accuracy") == pytest.approx(last["accuracy"], abs=1e-6)
    assert printed_number(tested.out, "test_accuracy") == pytest.approx(last["learner_accuracy"], abs=1e-6)


def printed_number(text: str, name: str) -> float:
    """The number in the row ``name`` of Lightning's table of results."""
    (line,) = (line for line in text.splitlines() if f" {name} " in line)
    return float(line.split()[-2])


def test_predict_labels_another_bank(finished: Path, bank: Bank, tmp_path: Path) -> None:
    features = np.load(bank.features)[::-1]
    np.save(tmp_path / "other.npy", features.astype(np.float16))
    settings = {**QUIET, "data.features": tmp_path / "other.npy", "annotation.output_dir": finished}
    result = call("predict", settings)
    assert result.status == 0, result.err
    table = pd.read_csv(finished / "predictions.csv")
    (finished / "predictions.csv").unlink()
    assert list(table) == ["task", "label", "confidence"]
    assert table["task"].tolist() == list(range(len(features)))
    truth = pd.read_csv(bank.labels)["label"][::-1].to_numpy()
    assert (table["label"].to_numpy() == truth).mean() > 0.85
    assert table["confidence"].between(0.25, 1.0).all()


def test_predict_refuses_other_features(finished: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "narrow.npy", np.zeros((5, 7), dtype=np.float32))
    settings = {**QUIET, "data.features": tmp_path / "narrow.npy", "annotation.output_dir": finished}
    result = call("predict", settings)
    assert result.status == 2
    assert "features of width 7 given; this run's learner takes 16" in result.err


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_commands_that_need_a_learner_say_so(bank: Bank, tmp_path: Path, command: str) -> None:
    result = call(command, bank.settings(**{"annotation.output_dir": tmp_path / "empty"}))
    assert result.status == 2
    assert f"{command} needs a trained learner" in result.err
    assert "Run fit first" in result.err
    assert not (tmp_path / "empty").exists()


def test_report_is_written_anew(finished: Path) -> None:
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    result = call("report", {}, str(finished))
    assert (result.status, result.out.strip()) == (0, str(finished / "report.html"))
    assert (finished / "report.html").read_text() == before


def test_export_writes_every_answer(finished: Path, tmp_path: Path) -> None:
    result = call("export", {}, str(finished), str(tmp_path / "all.csv"))
    assert result.status == 0, result.err
    table = pd.read_csv(tmp_path / "all.csv")
    assert list(table) == ["task", "worker", "label", "seconds"]
    columns = ["item", "worker", "label"]
    assert table[["task", "worker", "label"]].to_numpy().tolist() == answers(finished)[columns].to_numpy().tolist()


def test_the_unfinished_are_left_for_experts(finished: Path, tmp_path: Path) -> None:
    result = call("unfinished", {}, str(finished), str(tmp_path / "left.csv"))
    assert result.status == 0, result.err
    table, labels = (
        pd.read_csv(tmp_path / "left.csv", dtype={"task": str}),
        pd.read_csv(finished / "labels.csv", dtype={"task": str}),
    )
    assert list(table) == list(UNFINISHED_COLUMNS)
    ended = "the run ended first: the last allowed round is done (trainer.max_epochs)"
    assert set(table["reason"]) <= {"never asked", ended}
    assert ((table["reason"] == ended) == table["task"].isin(answers(finished)["item"])).all()
    assert set(table["task"]) == set(labels.query("status == 'unfinished'")["task"])
    assert len(table) > 0
    assert table["gain"].is_monotonic_decreasing
    assert table["expert_label"].isna().all()
    assert all(cell.startswith(f"{label} ") for cell, label in zip(table["probable"], table["label"], strict=True))
    assert table["risk"].min() >= SMALL["annotation.threshold"]


@pytest.mark.parametrize(
    ("command", "words"),
    [("report", "labels.csv"), ("export", "annotations.db"), ("unfinished", "annotations.db"), ("certify", "labels.csv")],
)
def test_a_folder_without_a_run_is_an_error(tmp_path: Path, command: str, words: str) -> None:
    result = call(command, {}, str(tmp_path), *([str(tmp_path / "all.csv")] if command in ("export", "unfinished") else []))
    assert result.status == 2
    assert words in result.err
    assert not list(tmp_path.iterdir())


def test_other_models_train_without_rounds(tmp_path: Path) -> None:
    demos = "pytorch_lightning.demos.boring_classes"
    settings = {**QUIET, "model": f"{demos}.BoringModel", "data": f"{demos}.BoringDataModule", "trainer.max_epochs": 1}
    run = fit(settings, tmp_path)
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert not (run / "annotations.db").exists()
    assert not (run / "labels.csv").exists()


def test_help_loads_nothing_heavy() -> None:
    shown = run("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(
        f"lightning-annot {name} " in shown.stdout
        for name in ("fit", "validate", "test", "predict", "report", "export", "unfinished", "certify")
    )
    check = "import sys; from lightning_annot.__main__ import main; main(['--help']); print([*sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not [name for name in ("torch", "pandas", "pytorch_lightning", "timm", "sklearn") if f"'{name}'" in loaded]


def test_help_of_fit_names_the_settings() -> None:
    shown = run("fit", "--help")
    assert shown.returncode == 0, shown.stderr
    for key in ("--annotation.output_dir", "--annotation.sampling.per_round", "--seed_everything", "--trainer.max_epochs"):
        assert key in shown.stdout


@pytest.mark.parametrize(
    ("words", "named"), [(["anotate"], "anotate"), (["fit", "--data.batch", "3"], "did you mean --data.batches?")]
)
def test_unknown_commands_and_settings_are_refused(words: list[str], named: str) -> None:
    result = call(words[0], {}, *words[1:])
    assert result.status == 2
    assert named in result.err
