"""The classifier over ready-made features, through the command line."""

from __future__ import annotations

import contextlib
import inspect
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from cli_runs import CONFIGS, Bank, Result, assert_equal_weights, call, checkpoint, fit, start
from offline_wandb import go_offline, logger_settings, read_offline
from test_scripts import load_script, told

from lightning_annot.backbones.classifier import ClassifierModule
from lightning_annot.backbones.classifier_data import ClassifierDataModule

CONFIG = f"--config={CONFIGS / 'classify.yaml'}"
QUICK = {
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": False,
    "trainer.max_epochs": 6,
    "data.root": None,
    "data.batch_size": 32,
    "model.backbone": None,
    "model.image_size": None,
    "model.lr": 0.02,
}


@pytest.fixture(scope="module")
def run(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An annotation run over the first 240 of the bank's items; 60 are left to test on."""
    folder = tmp_path_factory.mktemp("annotated")
    np.save(folder / "part.npy", np.load(bank.features)[:240])
    pd.read_csv(bank.labels)[:240].to_csv(folder / "part.csv", index=False)
    parts = {"data.features": folder / "part.npy", "data.labels": folder / "part.csv"}
    settings = bank.settings(**parts, **{"annotation.threshold": 0.1})
    return fit(settings, folder / "run")


@pytest.fixture(scope="module")
def settings(bank: Bank, run: Path) -> dict[str, Any]:
    pd.read_csv(bank.labels)[240:].to_csv(run.parent / "unseen.csv", index=False)
    more = {"data.run": run, "data.features": bank.features, "data.items": bank.labels}
    return QUICK | more | {"data.labels": run.parent / "unseen.csv"}


@pytest.fixture(scope="module")
def trained(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(settings, tmp_path_factory.mktemp("trained") / "classifier", CONFIG)


def refused(settings: dict[str, Any], output: Path, command: str = "fit", **changed: Any) -> Result:
    dotted = {key.replace("__", "."): value for key, value in changed.items()}
    result = call(command, {**settings, "annotation.output_dir": output, **dotted}, CONFIG)
    assert result.status == 2
    return result


def test_it_learns_the_labels_of_a_run(trained: Path) -> None:
    result = call("test", None, f"--config={trained / 'config.yaml'}")
    assert result.status == 0, result.err
    figures = {row[1]: float(row[3]) for row in (line.split() for line in result.out.splitlines()) if len(row) == 5}
    assert figures["test_accuracy"] > 0.9
    assert 0 <= figures["test_ece"] < 0.2
    table = pd.read_csv(trained / "logs" / "version_0" / "metrics.csv")
    assert {"train_loss", "lr", "val_loss", "val_accuracy", "val_ece"} <= set(table)
    assert table["train_loss"].dropna().iloc[-1] < table["train_loss"].dropna().iloc[0]


def test_records_are_those_of_the_csv(
    settings: dict[str, Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hyper-parameters and curves in an offline run of Weights & Biases."""
    go_offline(monkeypatch, tmp_path)
    fit({**settings, **logger_settings(tmp_path)}, tmp_path / "run", CONFIG)
    told = read_offline(tmp_path)
    table = pd.read_csv(trained / "logs" / "version_0" / "metrics.csv")
    for name in ("train_loss", "lr", "val_loss", "val_accuracy", "val_ece"):
        assert told.curve(name) == pytest.approx(table[name].dropna().tolist(), rel=1e-4), name
    assert told.config["model"]["class_path"].endswith("ClassifierModule")
    assert (told.config["model"]["init_args"]["lr"], told.config["data"]["init_args"]["batch_size"]) == (0.02, 32)


def test_prototypes_validate_and_are_not_learned(settings: dict[str, Any], run: Path, bank: Bank) -> None:
    data = ClassifierDataModule(run=str(run), features=str(bank.features), items=str(bank.labels))
    data.setup("fit")
    labels = pd.read_csv(run / "labels.csv")
    is_prototype = (labels["status"] == "prototype").to_numpy()
    assert data.validates.tolist() == is_prototype.tolist()
    assert data.learned.tolist() == (~is_prototype).tolist()
    seen = torch.cat([batch["row"] for batch in data.train_dataloader()])
    assert not bool(data.validates[seen].any())
    truth = np.load(bank.features)
    batch = next(iter(data.val_dataloader()))
    np.testing.assert_array_equal(batch["x"].numpy(), truth[:240][is_prototype])
    names = np.array(data.classes)[batch["label"].numpy()]
    assert names.tolist() == labels["label"][is_prototype].tolist()


def test_weights_follow_the_confidence(run: Path, bank: Bank) -> None:
    options = {"run": str(run), "features": str(bank.features), "items": str(bank.labels)}
    confidence = torch.tensor(pd.read_csv(run / "labels.csv")["confidence"].to_numpy(dtype="float32"))
    for power in (0.0, 1.0, 2.0):
        data = ClassifierDataModule(**options, confidence_power=power)
        data.setup("fit")
        weight = data.columns["weight"]
        assert float(weight[data.learned].mean()) == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(weight / weight[0], (confidence / confidence[0]) ** power, rtol=1e-3, atol=1e-4)
    hard = ClassifierDataModule(**options, targets="hard", finished_only=True)
    hard.setup("fit")
    assert hard.columns["top"][:, 0].tolist() == hard.known.label.tolist()
    assert set(hard.columns["probability"].flatten().tolist()) == {1.0}
    assert hard.learned.tolist() == hard.known.finished.tolist()
    assert 0 < int(hard.learned.sum()) < int(data.learned.sum())


def test_new_features_are_labelled(trained: Path, bank: Bank, tmp_path: Path) -> None:
    more = {"annotation.output_dir": trained}
    result = call("predict", more, f"--config={trained / 'config.yaml'}")
    assert result.status == 0, result.err
    assert f"300 predictions are in {trained / 'predictions.csv'}" in result.out
    table, truth = pd.read_csv(trained / "predictions.csv"), pd.read_csv(bank.labels)
    assert list(table) == ["task", "label", "confidence"]
    assert table["task"].tolist() == truth["task"].tolist()
    assert (table["label"] == truth["label"]).mean() > 0.9
    assert table["confidence"].between(0.25, 1).all()
    np.save(tmp_path / "new.npy", np.load(bank.features)[250:])
    settings = {"data.features": tmp_path / "new.npy", "data.items": None, **more}
    assert call("predict", settings, f"--config={trained / 'config.yaml'}").status == 0
    new = pd.read_csv(trained / "predictions.csv")
    assert new["task"].tolist() == list(range(50))
    assert new["label"].tolist() == table["label"][250:].tolist()


def test_killed_and_started_again_ends_in_the_same_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    settings = settings | {"trainer.max_epochs": 60, "model.dropout": 0.2}
    undisturbed, disturbed = fit(settings, tmp_path / "undisturbed", CONFIG), tmp_path / "run"
    process = start("fit", settings | {"annotation.output_dir": disturbed}, CONFIG)
    seen: set[int] = set()
    while process.is_alive() and len(seen) < 3:
        with contextlib.suppress(FileNotFoundError):  # there is none yet
            seen.add((disturbed / "checkpoints" / "last.ckpt").stat().st_mtime_ns)
        time.sleep(0.002)
    process.kill()
    process.join()
    assert 0 < checkpoint(disturbed)["epoch"] < 59
    fit(settings, disturbed, CONFIG)
    assert checkpoint(disturbed)["epoch"] == 59
    assert_equal_weights(disturbed, undisturbed)
    fit(settings, disturbed, CONFIG)  # once more changes nothing
    assert_equal_weights(disturbed, undisturbed)


def test_any_table_of_labels_will_do(bank: Bank, tmp_path: Path) -> None:
    more = {"data.run": bank.labels, "data.features": bank.features, "data.labels": bank.labels, "data.val_share": 0.2}
    output = fit(QUICK | more, tmp_path / "out", CONFIG)
    state = checkpoint(output)
    assert state["classifier"]["classes"] == ["ant", "bee", "cow", "dog"]
    assert "averaged.module.head.2.weight" in state["state_dict"]
    assert float(state["state_dict"]["temperature"]) != 1.0  # calibrated on the share that validates


def test_configured_defaults_are_those_of_the_classes(trained: Path) -> None:
    """Settings that are called alike in the annotation's model or data must not be taken over from there."""
    config = yaml.safe_load((trained / "config.yaml").read_text())
    for part, kind in (("model", ClassifierModule), ("data", ClassifierDataModule)):
        own, given = config[part]["init_args"], {key.split(".")[1] for key in QUICK}
        given |= {"run", "features", "items", "labels", "seed", "augment"}
        for name, parameter in inspect.signature(kind).parameters.items():
            assert name in given or own[name] == parameter.default, name


def test_what_cannot_work_is_refused(settings: dict[str, Any], run: Path, bank: Bank, tmp_path: Path) -> None:
    assert "no labels.csv" in refused(settings, tmp_path / "a", data__run=tmp_path).err
    before = (run / "config.yaml").read_text()
    assert "holds an annotation run" in refused(settings, run).err
    assert (run / "config.yaml").read_text() == before
    assert "needs one of them" in refused(settings, tmp_path / "a", data__features=None).err
    assert "images need a backbone" in refused(settings, tmp_path / "a", model__backbone="resnet10t").err
    assert "data.items" in refused(settings, tmp_path / "a", data__items=None).err
    assert "use mixup" in refused(settings, tmp_path / "a", model__cutmix=0.5).err
    assert "trainer.max_epochs" in refused(settings, tmp_path / "a", trainer__max_epochs=-1).err
    assert "ema_decay" in refused(settings, tmp_path / "a", model__ema_decay=1.5).err
    assert "batch_size 1" in refused(settings, tmp_path / "a", data__batch_size=1).err
    assert "backbone_lr 0" in refused(settings, tmp_path / "a", model__backbone_lr=0).err
    assert "outside the classes" in refused(settings, tmp_path / "a", data__classes="[ant,bee]").err
    assert "needs a trained learner" in refused(settings, tmp_path / "b", "predict").err
    foreign = bank.labels.with_name("foreign.csv")
    pd.read_csv(bank.labels).replace({"dog": "wolf"}).to_csv(foreign, index=False)
    other = QUICK | {"data.features": bank.features, "data.run": bank.labels}
    assert not list(tmp_path.glob("a/checkpoints/*"))
    output = fit(other, tmp_path / "c", CONFIG, trainer__max_epochs=1)
    assert "outside the classes" in refused(other, output, "test", data__labels=foreign).err
    assert "give it as data.labels" in refused(other, output, "test").err
    assert "another annotation.output_dir" in refused(other, output, data__run=foreign, trainer__max_epochs=2).err
    assert "ema_decay" in refused(other, output, model__ema_decay=0.5, trainer__max_epochs=2).err
    lost = bank.labels.with_name("lost.csv")
    pd.read_csv(bank.labels).replace({"item000": "nobody"}).to_csv(lost, index=False)
    assert "'nobody'" in refused(other, tmp_path / "d", data__run=lost, data__items=bank.labels).err


def test_labels_are_compared_with_the_truth(
    run: Path, bank: Bank, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run", str(run), "--features", str(bank.features), "--labels", str(bank.labels), "--epochs", "4"]
    monkeypatch.setattr("sys.argv", ["bench_classifier.py", *words])
    with warnings.catch_warnings():
        load_script("bench_classifier").main()
    (found,) = told(capsys.readouterr().out)["runs"]
    assert found["label_accuracy"] > 0.9
    assert found["true_accuracy"] > 0.8
    assert found["points_behind_ours"] == pytest.approx(100 * (found["true_accuracy"] - found["ours_accuracy"]), abs=0.1)
