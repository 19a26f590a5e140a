from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from offline_wandb import go_offline, last_records, riskiest_table, staged_files
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from run_folder import make_run, picture

from lightning_annot.callbacks import wandb_records
from lightning_annot.callbacks.wandb_records import CURVES, X_AXIS, WandbRecords
from lightning_annot.report.plots import plot_confusion
from lightning_annot.report.run_files import read_run


def fit(callback: WandbRecords, logger: WandbLogger | CSVLogger, root: Path) -> None:
    Trainer(
        callbacks=[callback],
        logger=logger,
        default_root_dir=root,
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        accelerator="cpu",
    ).fit(BoringModel())


@pytest.fixture
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_offline(monkeypatch, tmp_path)


@pytest.mark.usefixtures("_offline")
def test_offline_run_has_pictures_table_and_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=150)
    (run / "report.html").write_text("<!doctype html>")
    logger = WandbLogger(project="annotation", save_dir=tmp_path, offline=True)
    callback = WandbRecords(str(run))
    callback.thumbnails = picture
    fit(callback, logger, tmp_path)
    told = last_records(tmp_path)

    risks = [row[4] for row in riskiest_table(tmp_path)]
    assert len(risks) == 24
    assert risks == sorted(risks, reverse=True)

    staged = staged_files(tmp_path, run)
    assert sum(content.startswith(b"\x89PNG") for content in staged) == 24  # pictures of the table
    axes = {record.metric.name: record.metric.step_metric for record in told if record.HasField("metric")}
    assert axes.items() >= {X_AXIS: "", **dict.fromkeys(CURVES, X_AXIS)}.items()


def test_confusion_picture_has_readable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = make_run(tmp_path / "run", n=150), []
    summary = json.loads((run / "summary.json").read_text())
    names = [f"a {name}" for name in summary["classes"]]
    (run / "summary.json").write_text(json.dumps(summary | {"class_names": names}))
    monkeypatch.setattr(
        wandb_records, "plot_confusion", lambda pooled, shown: seen.append(shown) or plot_confusion(pooled, shown)
    )
    assert "confusion" in wandb_records._confusion(read_run(run))
    assert seen == [names]


@pytest.mark.usefixtures("_offline")
def test_run_without_labels_logs_nothing(tmp_path: Path) -> None:
    logger = WandbLogger(project="annotation", save_dir=tmp_path, offline=True)
    fit(WandbRecords(str(tmp_path / "nowhere")), logger, tmp_path)
    logger.experiment.finish()
    assert not list(tmp_path.glob("wandb/offline-run-*/files/media/**/*.png"))


def test_other_loggers_are_left_alone_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # from here on ``import wandb`` is an error
    make_run(tmp_path / "run", n=150)
    fit(WandbRecords(str(tmp_path / "run")), CSVLogger(tmp_path), tmp_path)
    assert not (tmp_path / "wandb").exists()
