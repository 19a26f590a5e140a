"""What a run leaves beside its labels: Weights & Biases, curves; and answers and items that come from elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import QUIET, SMALL, Bank, answers, assert_equal_weights, checkpoint, fit, questions, rounds
from offline_wandb import go_offline, logger_settings, read_offline, riskiest_table, staged_files

from lightning_annot.callbacks.wandb_records import CURVES


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_offline(monkeypatch, tmp_path)
    log = {"annotation.log_url": f"sqlite:///{tmp_path}/secret.db"}
    run = fit({**QUIET, **SMALL, "data.root": "digits", **log, **logger_settings(tmp_path)}, tmp_path / "run")
    told = read_offline(tmp_path)
    shown = riskiest_table(tmp_path)
    assert shown
    labels = pd.read_csv(run / "labels.csv", dtype=str).set_index("task")
    for task, _, label, _, risk, n_answers in shown:
        row = labels.loc[task]
        assert (row["label"], int(row["n_annotations"])) == (str(label), n_answers)
        assert float(row["risk"]) == pytest.approx(risk, abs=1e-6)
    staged = staged_files(tmp_path, run)
    assert sum(part.startswith(b"\x89PNG") for part in staged) == len(shown)  # pictures of the table
    table = rounds(run)
    for name in CURVES:
        assert told.curve(name) == pytest.approx(table[name].tolist(), abs=1e-5, nan_ok=True), name
    assert len(told.curve("val_loss")) == len(table)
    assert told.config["annotation"]["sampling"]["per_round"] == SMALL["annotation.sampling.per_round"]
    assert told.config["model"]["class_path"].endswith("MixMatchModule")
    assert "secret" not in str(told.config)  # the address of a log may hold a password
    assert "extraction" not in told.config


def test_curves_are_in_a_csv_by_default(bank: Bank, tmp_path: Path) -> None:
    run = fit(bank.settings(), tmp_path / "run")
    curves = pd.read_csv(run / "logs" / "version_0" / "metrics.csv").groupby("step").last()
    table = rounds(run)
    for name in ("annotations_per_item", "finished_fraction", "mean_risk", "accuracy", "learner_accuracy", "ece"):
        logged = curves[name].dropna()
        np.testing.assert_allclose(logged.loc[table["round"]], table[name], atol=1e-5, err_msg=name)
    assert curves["val_loss"].notna().any()


def test_extra_items_teach_but_are_never_asked(bank: Bank, tmp_path: Path) -> None:
    features = np.load(bank.features)
    np.save(tmp_path / "extra.npy", np.concatenate([features, features + 0.1]).astype(np.float32))
    extra = {"data__unlabelled_extra": tmp_path / "extra.npy"}
    settings = bank.settings(**{"model.optimizer": "adam"})  # momentum steps by the curvature of all features, theirs too
    runs = {}
    for objective in ("labelled", "pseudo"):
        chosen = {"data__batches__objective": objective, "annotation__threshold": 0.5}
        runs[objective] = fit(settings, tmp_path / objective, **chosen)
        runs[objective + " extra"] = fit(settings, tmp_path / f"{objective}_extra", **chosen, **extra)
    items = set(pd.read_csv(bank.labels)["task"])
    for run in runs.values():
        assert set(pd.read_csv(run / "labels.csv")["task"]) == items
        assert set(questions(run)["item"]) <= items
        assert (rounds(run)["annotations_per_item"] == rounds(run)["annotations"] / 288).all()
    assert_equal_weights(runs["labelled"], runs["labelled extra"])  # the labelled pool has none of them
    own, taught = (checkpoint(runs[name])["state_dict"]["learners.0.heads.weights.0"] for name in ("pseudo", "pseudo extra"))
    assert own.shape == taught.shape
    assert not torch.equal(own, taught)


def test_imported_answers_are_known_before_round_0(bank: Bank, tmp_path: Path) -> None:
    given = pd.read_csv(bank.answers)[100:160]
    given.to_csv(tmp_path / "known.csv", index=False)
    settings = bank.settings(**{"data.prototypes": bank.prototypes, "annotation.import_answers": tmp_path / "known.csv"})
    run = fit(settings, tmp_path / "run", trainer__max_epochs=1)
    columns = ["item", "worker", "label"]
    known = given.rename(columns={"task": "item"})[columns].reset_index(drop=True)
    log = answers(run)
    pd.testing.assert_frame_equal(log[columns], known, check_dtype=False)
    assert set(log["source"]) == {"import"}
    assert rounds(run)["annotations"].tolist() == [60]
    assert rounds(run)["annotations_per_item"].tolist() == pytest.approx([60 / 288])
    labels = pd.read_csv(run / "labels.csv").set_index("task")
    assert (labels.loc[known["item"], "n_annotations"] == 1).all()
    workers = pd.read_csv(run / "workers.csv").set_index("worker")["n_annotations"]
    assert workers[workers > 0].to_dict() == known["worker"].value_counts().to_dict()

    fit(settings, run, "--ckpt_path=last", trainer__max_epochs=3)  # the file is imported once
    log = answers(run)
    pd.testing.assert_frame_equal(log[columns][:60], known, check_dtype=False)
    assert set(log["source"][60:]) == {"simulated"}
    assert rounds(run)["annotations"].iloc[-1] == len(log)


def test_part_of_the_imported_answers_waits_for_the_first_learner(bank: Bank, tmp_path: Path) -> None:
    """A third of the items comes in after round 0, in which nothing is asked, and tells how far all may be believed."""
    settings = bank.settings(**{"annotation.import_answers": bank.answers, "annotation.threshold": 0.01})
    run = fit(settings, tmp_path / "run", trainer__max_epochs=3)
    n, given = rounds(run)["annotations"].tolist(), len(pd.read_csv(bank.answers))
    assert n[0] == pytest.approx(2 / 3 * given, abs=3)  # three answers an item
    assert n[1] == given < n[2]
    assert set(questions(run)["round"][given:]) == {1}
    exponents = checkpoint(run)["callbacks"]["AnnotationRound"]["recalibration"]
    assert set(exponents["fresh"]) == {0, 1}
    assert exponents["fresh"][0]["earlier"].bincount().tolist() == [100, 100, 100]
    assert exponents["model"][2] <= 1.0
    assert (exponents["model"], exponents["people"]) != ([1.0] * 3, [1.0] * 3)

    stopped = fit(settings, tmp_path / "stopped", trainer__max_epochs=2)
    fit(settings, stopped, "--ckpt_path=last", trainer__max_epochs=3)
    assert_equal_weights(run, stopped)
    for name in ("labels.csv", "workers.csv"):
        assert (run / name).read_bytes() == (stopped / name).read_bytes()


def test_nothing_waits_where_nothing_is_tempered(bank: Bank, tmp_path: Path) -> None:
    settings = bank.settings(**{"annotation.import_answers": bank.answers, "annotation.crowd.temper": "false"})
    run = fit(settings, tmp_path, trainer__max_epochs=2)
    assert rounds(run)["annotations"].iloc[0] == len(pd.read_csv(bank.answers))
