"""Self-supervised adaptation through the real command line: methods, freezing, early stop, checkpoints, resume, refusals."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cli_runs import CONFIGS, arguments, assert_equal_weights, call, checkpoint, fit, start
from cli_runs import run as run_alone
from offline_wandb import go_offline, logger_settings, read_offline

from lightning_annot.backbones.adapt_settings import StartSettings
from lightning_annot.backbones.adaptation import SelfSupervisedModule
from lightning_annot.backbones.freezing import FreezeLayers
from lightning_annot.backbones.timm_models import BackboneSpec, build_backbone
from lightning_annot.backbones.unlabelled import UnlabelledDataModule
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.types import AnnotError

CONFIG = f"--config={CONFIGS / 'adapt.yaml'}"
STOP = "{class_path: EarlyStopping, init_args: {monitor: val_knn, mode: max, patience: 1, min_delta: 2}}"
FREEZE = "{class_path: lightning_annot.backbones.freezing.FreezeLayers, init_args: {layers: [stem, stages.0], until: 2}}"
TORCH_OWN = "{class_path: pytorch_lightning.callbacks.BackboneFinetuning, init_args: {unfreeze_backbone_at_epoch: 1}}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small adaptation to 120 digits."""
    items = tmp_path_factory.mktemp("few") / "items.csv"
    pd.DataFrame({"task": range(120)}).to_csv(items, index=False)
    return {
        "trainer.accelerator": "cpu", "trainer.enable_progress_bar": False, "trainer.max_epochs": 2,
        "model": "lightning_annot.backbones.adaptation.SelfSupervisedModule",
        "model.backbone.image_size": 8, "model.hidden": 32, "model.output": 16,
        "data": "lightning_annot.backbones.unlabelled.UnlabelledDataModule",
        "data.root": "digits", "data.items": items, "data.id_pattern": "%s", "data.prototypes_per_class": 3,
        "data.batch_size": 32, "data.views.flip": 0.0, "data.num_workers": 0,
    }  # fmt: skip


def metrics(run: Path) -> pd.DataFrame:
    """All that a run logged, one row an epoch."""
    written = [
        path for path in sorted(run.glob("logs/version_*/metrics.csv")) if path.stat().st_size
    ]  # a kill may leave one empty
    parts = [pd.read_csv(path) for path in written]
    return pd.concat(parts).groupby("epoch").first()


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The backbone's weights in a run's checkpoint."""
    state = checkpoint(run)["state_dict"]
    return {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}


@pytest.mark.parametrize("method", ["vicreg", "simclr", "byol"])
def test_methods_and_what_they_leave(settings: dict[str, Any], tmp_path: Path, method: str) -> None:
    run = fit(settings, tmp_path, model__method=method)
    logged = metrics(run)
    assert len(logged) == 2
    assert {"train_loss", "val_knn", "spread", "lr"} <= set(logged)
    assert logged["val_knn"].between(0, 1).all()
    assert logged["spread"].between(0, 1).all()
    assert "method: " + method in (run / "config.yaml").read_text()
    spec = BackboneSpec("small_resnet", str(run / "checkpoints" / "last.ckpt"), 8)
    loaded = build_backbone(spec)[0].state_dict()
    assert loaded.keys() == weights(run).keys()
    assert all(torch.equal(loaded[name], value) for name, value in weights(run).items())
    start = build_backbone(BackboneSpec("small_resnet", "random", 8))[0].state_dict()
    assert not torch.equal(loaded["stem.conv.weight"], start["stem.conv.weight"])


def test_records_are_those_of_the_csv(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hyper-parameters and curves in an offline run of Weights & Biases, by the shipped configuration."""
    shipped = {key: value for key, value in settings.items() if key not in ("model", "data")}
    logged = metrics(fit(shipped, tmp_path / "csv", CONFIG))
    go_offline(monkeypatch, tmp_path)
    fit({**shipped, **logger_settings(tmp_path)}, tmp_path / "wandb_run", CONFIG)
    told = read_offline(tmp_path)
    for name in ("train_loss", "spread", "lr", "val_knn"):
        assert told.curve(name) == pytest.approx(logged[name].tolist(), rel=1e-4), name
    assert (told.config["method"], told.config["hidden"]) == ("vicreg", 32)
    assert told.config["data"]["init_args"]["views"]["rotate"] == 10


def test_plain_lines_count_epochs(settings: dict[str, Any], tmp_path: Path) -> None:
    result = call("fit", {**settings, "annotation.output_dir": tmp_path, "trainer.enable_progress_bar": True})
    assert result.status == 0
    lines = [line for line in result.out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert "train_loss" in lines[1]
    assert "val_knn" in lines[1]


def test_learning_rate_rises_then_falls(settings: dict[str, Any], tmp_path: Path) -> None:
    run = fit(settings, tmp_path, trainer__max_epochs=10, model__lr=0.01, model__warmup=0.3)
    rate = metrics(run)["lr"]
    assert rate.idxmax() == 3
    assert rate.max() < 0.0101
    assert rate[:4].is_monotonic_increasing
    assert rate[3:].is_monotonic_decreasing
    assert rate.iloc[-1] < 0.0005


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="vicreg"),
        pytest.param({"model.method": "byol"}, id="byol", marks=pytest.mark.slow),
        pytest.param({"trainer.callbacks": f"[{FREEZE}]"}, id="freezing", marks=pytest.mark.slow),
        pytest.param({"trainer.precision": "bf16-mixed"}, id="mixed precision", marks=pytest.mark.slow),
    ],
)
def test_killed_and_started_again(settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = {**settings, "trainer.max_epochs": 6, **changes}
    whole, run = fit(settings, tmp_path / "whole"), tmp_path / "run"
    for kill in range(2):
        last = run / "checkpoints" / "last.ckpt"
        before = last.stat().st_mtime_ns if last.is_file() else 0
        process = start("fit", settings | {"annotation.output_dir": run})
        while process.is_alive() and (not last.is_file() or last.stat().st_mtime_ns == before):
            time.sleep(0.001)
        time.sleep(0.02 * kill)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert checkpoint(run)["epoch"] < 5
    fit(settings, run)
    assert checkpoint(run)["epoch"] == 5
    assert_equal_weights(run, whole)
    assert metrics(run)["val_knn"].iloc[-1] == metrics(whole)["val_knn"].iloc[-1]


def test_early_stop_stays_stopped(settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {**settings, "trainer.max_epochs": 9, "trainer.callbacks": f"[{STOP}]"}
    run = fit(settings, tmp_path)
    assert checkpoint(run)["epoch"] == 1
    before = weights(run)
    fit(settings, run)
    assert checkpoint(run)["epoch"] == 1
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())


def test_longer_run_goes_on(settings: dict[str, Any], tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    run = fit(settings, tmp_path)
    fit(settings, run, trainer__max_epochs=4)
    assert checkpoint(run)["epoch"] == 3
    assert not [w for w in recwarn if "exceeds max_steps" in str(w.message)]


def test_frozen_layers(settings: dict[str, Any], tmp_path: Path) -> None:
    start_weights = build_backbone(BackboneSpec("small_resnet", "random", 8))[0].state_dict()
    frozen, free = "stages.0.0.conv1_kxk.conv.weight", "stages.1.0.conv1_kxk.conv.weight"
    callbacks = {"trainer.callbacks": f"[{FREEZE}]"}
    run = fit({**settings, **callbacks}, tmp_path / "frozen")
    assert torch.equal(weights(run)[frozen], start_weights[frozen])
    assert not torch.equal(weights(run)[free], start_weights[free])
    run = fit({**settings, **callbacks}, tmp_path / "unfrozen", trainer__max_epochs=4)
    assert not torch.equal(weights(run)[frozen], start_weights[frozen])


def test_lightnings_own_finetuning_callback(settings: dict[str, Any], tmp_path: Path) -> None:
    run = fit({**settings, "trainer.callbacks": f"[{TORCH_OWN}]"}, tmp_path, trainer__max_epochs=3)
    assert len(checkpoint(run)["optimizer_states"][0]["param_groups"]) == 2


def test_prototypes_are_those_of_the_annotation_run() -> None:
    ours = UnlabelledDataModule(seed=3).items.images()[1]
    theirs = AnnotationDataModule(seed=3)
    theirs.setup("fit")
    assert ours is not None
    assert torch.equal(ours, theirs.table.prototype)


def test_images_that_nobody_has_labelled(tmp_path: Path, settings: dict[str, Any]) -> None:
    run = fit({**settings, "data.prototypes_per_class": 0}, tmp_path)
    assert "val_knn" not in metrics(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.batch_size": 1}, "batch_size 1 given"),
        ({"data.batch_size": 500}, "120 images given, fewer than one batch of 500"),
        ({"model.backbone.name": "test_vit", "model.backbone.image_size": 50}, "cannot take images of 50 pixels"),
        ({"model.backbone.weights": "pretrained"}, "no pretrained weights for 'small_resnet'"),
        ({"model.lr": 0}, "lr must be above 0"),
        ({"model.temperature": 0}, "temperature above 0"),
        ({"trainer.max_epochs": -1}, r"set trainer.max_epochs"),
        ({"model": "lightning_annot.learner.module.MixMatchModule"}, "UnlabelledDataModule is for SelfSupervisedModule"),
        ({"trainer.callbacks": f"[{FREEZE.replace('stem', 'trunk')}]"}, "has no layers trunk; it has stem, stem.conv"),
    ],
)
def test_refusals(settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if changes.get("model", "").endswith("MixMatchModule"):
        settings = {key: value for key, value in settings.items() if not key.startswith("model.")}
    result = call("fit", {**settings, **changes, "annotation.output_dir": tmp_path})
    assert result.status == 2
    assert message in result.err


def test_image_too_small_for_the_backbone() -> None:
    with pytest.raises(AnnotError, match=r"timm's inception_v3 cannot take images of 20 pixels"):
        SelfSupervisedModule(StartSettings("inception_v3", "random", 20))


@pytest.mark.slow
def test_two_processes(settings: dict[str, Any], tmp_path: Path) -> None:
    two = {"trainer.devices": 2, "trainer.strategy": "ddp", "annotation.output_dir": tmp_path}
    done = run_alone("fit", *arguments({**settings, **two, "model.method": "simclr"}), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    logged = metrics(tmp_path)
    assert len(logged) == 2
    assert logged["val_knn"].between(0, 1).all()  # of 30 prototypes, which both processes have seen
    assert ((logged["val_knn"] * 30) % 1).abs().max() < 1e-4
    assert checkpoint(tmp_path)["global_step"] == 2  # of 120 images, 32 a process


def test_thawing_on_several_devices_is_refused() -> None:
    class Two:
        world_size = 2

    with pytest.raises(AnnotError, match=r"FreezeLayers\.until given on several devices"):
        FreezeLayers(["stem"], until=1).setup(Two(), SelfSupervisedModule(), "fit")  # type: ignore[arg-type]
