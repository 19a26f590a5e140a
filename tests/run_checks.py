"""What every run of a shipped configuration must leave, whatever its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_runs import CONFIGS, QUIET, SHARED, Settings, answers, fit, questions

from lightning_annot.report.tables import ROUND_COLUMNS, TRUTH_COLUMNS

FILES = {
    "labels.csv", "workers.csv", "confusions.npz", "rounds.csv", "annotations.db", "report.html", "config.yaml",
    "summary.json", "checkpoints", "logs", "posterior.npz", "scorecards.csv", "scorecards.html",
}  # fmt: skip
LABEL_COLUMNS = ["task", "label", "confidence", "risk", "n_annotations", "status"]
WORKER_COLUMNS = ["worker", "n_annotations", "accuracy_mean", "accuracy_low", "accuracy_high", "state", "reason"]
QUICK = {**QUIET, "trainer.max_epochs": 3, "data.batches.steps": 30}
TINY_BACKBONE = {
    "data.backbone.name": "test_resnet.r160_in1k",
    "data.backbone.weights": "random",
    "data.backbone.image_size": 32,
    "data.backbone.num_workers": 0,
}
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the project")


def check_run(run: Path, n_classes: int, n_prototypes: int, *, truth: bool) -> pd.DataFrame:
    """What a run leaves, and how it counts; returns ``rounds.csv``."""
    assert {path.name for path in run.iterdir()} >= FILES
    assert (run / "checkpoints" / "last.ckpt").is_file()
    table = pd.read_csv(run / "rounds.csv")
    assert list(table) == [*ROUND_COLUMNS, *(TRUTH_COLUMNS if truth else ())]
    check_counts(run, table, n_prototypes)
    check_people(run, n_classes)
    assert "<html" in (run / "report.html").read_text()
    return table


def check_counts(run: Path, table: pd.DataFrame, n_prototypes: int) -> None:
    """``labels.csv`` and ``rounds.csv`` agree with the log."""
    labels, log = pd.read_csv(run / "labels.csv", dtype={"task": str}), answers(run)
    assert list(labels) == LABEL_COLUMNS
    assert set(labels["status"]) <= {"finished", "unfinished", "prototype"}
    of_prototypes = labels["status"] == "prototype"
    assert of_prototypes.sum() == n_prototypes
    assert not set(questions(run)["item"]) & set(labels["task"][of_prototypes])
    given = log.dropna(subset=["label"])["item"].value_counts().reindex(labels["task"], fill_value=0)
    assert labels["n_annotations"].tolist() == given.tolist()
    n = len(labels) - n_prototypes
    assert table["round"].tolist() == list(range(len(table)))
    assert table["annotations"].iloc[0] == 0
    assert table["annotations"].iloc[-1] == len(log)
    assert table["annotations_per_item"].tolist() == pytest.approx((table["annotations"] / n).tolist())
    finished = (labels["status"] == "finished").sum()
    assert table["finished_fraction"].iloc[-1] == pytest.approx(finished / n)
    assert table["mean_risk"].iloc[-1] == pytest.approx(labels["risk"][~of_prototypes].mean(), abs=1e-5)
    stated = labels["risk"][labels["status"] == "finished"].mean()
    assert table["finished_risk"].iloc[-1] == pytest.approx(stated, abs=1e-5, nan_ok=True)
    assert (labels["confidence"] + labels["risk"]).to_numpy() == pytest.approx(1.0, abs=2e-6)


def check_people(run: Path, n_classes: int) -> None:
    """``workers.csv`` and ``confusions.npz`` agree with the log and with each other."""
    workers, log = pd.read_csv(run / "workers.csv"), answers(run)
    assert list(workers) == WORKER_COLUMNS
    given = log["worker"].value_counts().reindex(workers["worker"], fill_value=0)
    assert workers["n_annotations"].tolist() == given.tolist()
    assert given.sum() == len(log)
    assert (workers["accuracy_low"] <= workers["accuracy_mean"]).all()
    assert (workers["accuracy_mean"] <= workers["accuracy_high"]).all()
    with np.load(run / "confusions.npz") as arrays:
        assert arrays["workers"].tolist() == workers["worker"].tolist()
        assert arrays["confusions"].shape == (len(workers), n_classes, n_classes)
        assert arrays["confusions"].sum(2) == pytest.approx(1.0, abs=1e-5)
        assert arrays["pooled"].sum(1) == pytest.approx(1.0, abs=1e-5)


def run_config(name: str, settings: Settings, output: Path) -> Path:
    """One shipped configuration."""
    return fit(settings, output, f"--config={CONFIGS / name}")
