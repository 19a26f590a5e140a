"""One command from images to labels by a backbone adapted on the way; killed, it ends in the same weights and labels."""

from __future__ import annotations

import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cli_runs import CONFIGS, arguments, assert_equal_runs, call, fit, start
from cli_runs import run as run_alone
from made_up_images import fill
from offline_wandb import go_offline, logger_settings, read_offline

from lightning_annot.backbones.adapt_run import adapt
from lightning_annot.backbones.adapt_settings import AdaptSettings, StartSettings
from lightning_annot.backbones.adaptation import SelfSupervisedModule
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.loading import BackboneSettings
from lightning_annot.data.sources import digits_source, folder_source
from lightning_annot.types import AnnotError

START = StartSettings("small_resnet", "random", 8)
SHORT = AdaptSettings(epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """120 digits, six epochs of adaptation, two rounds."""
    folder = tmp_path_factory.mktemp("few")
    pd.DataFrame({"task": range(120)}).to_csv(folder / "items.csv", index=False)
    return {
        "config": CONFIGS / "digits.yaml", "trainer.enable_progress_bar": False, "trainer.max_epochs": 2,
        "data.items": folder / "items.csv", "data.id_pattern": "%s", "data.prototypes_per_class": 3,
        "data.backbone.image_size": 8, "data.backbone.cache_dir": folder / "features",
        "data.adapt.epochs": 6, "data.adapt.batch_size": 32, "data.adapt.num_workers": 0,
        "data.projection": "{dim: null, neighbours: 2}", "data.batches.size": 64, "data.batches.steps": 8,
        "annotation.sampling.per_round": 20, "annotation.threshold": 1e-4,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(settings, tmp_path_factory.mktemp("whole"))


def adapted(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "adapted" / "backbone.pt", weights_only=True)["state_dict"]
    return state


def test_one_command_adapts_and_annotates(whole: Path) -> None:
    assert len(pd.read_csv(whole / "labels.csv")) == 120
    logged = pd.read_csv(whole / "adapted" / "logs" / "version_0" / "metrics.csv").groupby("epoch").first()
    assert len(logged) == 6
    assert logged["val_knn"].notna().all()
    assert "adapt:" in (whole / "config.yaml").read_text()


def test_killed_while_adapting(settings: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("fit", settings | {"annotation.output_dir": run})
    while process.is_alive() and not (run / "adapted" / "last.ckpt").is_file():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (run / "adapted" / "backbone.pt").exists()
    fit(settings, run)
    assert all(torch.equal(adapted(whole)[name], value) for name, value in adapted(run).items())
    assert_equal_runs(run, whole)


@pytest.mark.parametrize("name", ["last.ckpt", "backbone.pt"])
def test_damaged_files_are_made_anew(
    settings: dict[str, Any], whole: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    content = (run / "adapted" / name).read_bytes()
    (run / "adapted" / "backbone.pt").unlink()
    (run / "adapted" / name).write_bytes(content[: len(content) // 2])
    result = call("test", settings | {"annotation.output_dir": run})
    assert result.status == 2
    assert "backbone.pt" in result.err
    assert "un fit" in result.err
    fit(settings, run)
    (said,) = [record.message for record in caplog.records if "is damaged" in record.message]
    assert name in said
    assert all(torch.equal(adapted(whole)[name], value) for name, value in adapted(run).items())
    assert_equal_runs(run, whole)


def test_same_command_does_not_adapt_again(settings: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    before = (run / "adapted" / "backbone.pt").stat().st_mtime_ns
    fit(settings, run)
    assert (run / "adapted" / "backbone.pt").stat().st_mtime_ns == before
    assert_equal_runs(run, whole)


@pytest.mark.slow
def test_first_of_two_processes_adapts(settings: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    two = {"trainer.devices": 2, "trainer.strategy": "ddp", "annotation.output_dir": tmp_path}
    done = run_alone("fit", *arguments(settings | two), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert all(torch.equal(adapted(whole)[name], value) for name, value in adapted(tmp_path).items())
    assert len(pd.read_csv(tmp_path / "rounds.csv")) == 2


def test_adaptation_changes_nothing_else(settings: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """A run that is given the adapted weights equals the one that made them."""
    given = {key: value for key, value in settings.items() if not key.startswith("data.adapt")}
    weights = whole / "adapted" / "backbone.pt"
    run = fit(given | {"data.adapt": None, "data.backbone.weights": weights}, tmp_path)
    assert_equal_runs(run, whole)


def test_trained_learner_labels_other_images(settings: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    pd.DataFrame({"task": range(150, 190)}).to_csv(tmp_path / "others.csv", index=False)
    result = call("predict", settings | {"annotation.output_dir": run, "data.items": tmp_path / "others.csv"})
    assert result.status == 0, result.err
    assert len(pd.read_csv(run / "predictions.csv")) == 40
    assert call("test", settings | {"annotation.output_dir": run}).status == 0
    (run / "adapted" / "backbone.pt").unlink()
    result = call("test", settings | {"annotation.output_dir": run})
    assert "backbone.pt does not exist; run fit first" in result.err


def test_records_hold_all_stages(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hyper-parameters and curves of adaptation, extraction and annotation in one offline run of Weights & Biases."""
    go_offline(monkeypatch, tmp_path)
    cache = {"data.backbone.cache_dir": tmp_path / "features"}
    run = fit({**settings, **cache, "data.adapt.epochs": 2, **logger_settings(tmp_path)}, tmp_path / "run")
    told = read_offline(tmp_path)
    adapting = pd.read_csv(run / "adapted" / "logs" / "version_0" / "metrics.csv").groupby("epoch").first()
    for name in ("train_loss", "val_knn", "spread"):
        assert told.curve(name) == pytest.approx(adapting[name].tolist(), rel=1e-4), name
    assert (told.config["method"], told.config["lr"]) == ("vicreg", 3e-3)
    assert told.config["data"]["init_args"]["adapt"]["views"]["rotate"] == 10
    extraction = told.config["extraction"]
    assert extraction.pop("images_per_second") == pytest.approx(120 / extraction.pop("seconds"))
    assert extraction == {
        "backbone": "small_resnet", "weights": str(run / "adapted" / "backbone.pt"), "image_size": 8, "width": 128,
        "images": 120, "computed": 120, "unreadable": 0,
    }  # fmt: skip
    assert told.curve("mean_risk") == pytest.approx(pd.read_csv(run / "rounds.csv")["mean_risk"].tolist(), abs=1e-5)
    assert told.config["annotation"]["sampling"]["per_round"] == 20


def test_a_damaged_record_of_what_it_was_made_by_is_named(settings: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "adapted" / "made_by.json").write_bytes(b"\xff{")
    result = call("fit", settings | {"annotation.output_dir": run})
    assert result.status == 2
    assert "made_by.json is damaged" in result.err


def test_other_settings_or_images_are_refused(settings: dict[str, Any], whole: Path) -> None:
    result = call("fit", settings | {"annotation.output_dir": whole, "data.adapt.lr": 0.5})
    assert result.status == 2
    assert "holds a backbone adapted with other settings" in result.err
    assert "Delete it to adapt anew" in result.err


def test_mistake_can_be_mended(tmp_path: Path) -> None:
    source = digits_source().subset(range(20))
    with pytest.raises(AnnotError, match="fewer than one batch"):
        adapt(source, None, START, AdaptSettings(epochs=1, batch_size=21), tmp_path, device="cpu")
    assert adapt(source, None, START, SHORT, tmp_path, device="cpu").is_file()
    assert adapt(source, None, START, replace(SHORT, num_workers=1), tmp_path, device="cpu").is_file()
    with pytest.raises(AnnotError, match=r"other images: .*20 images.* there, .*19 images.* now"):
        adapt(source.subset(range(19)), None, START, SHORT, tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.adapt.batch_size": 121}, "120 images given, fewer than one batch"),
        ({"data.adapt.patience": 3, "data.prototypes_per_class": 0}, "there are none; leave it out"),
    ],
)
def test_refusals(settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    result = call("fit", settings | changes | {"annotation.output_dir": tmp_path})
    assert result.status == 2
    assert message in result.err


@pytest.mark.parametrize("given", [{}, {"backbone": BackboneSettings("small_resnet"), "features": "bank.npy"}])
def test_adaptation_needs_images_and_a_backbone(given: dict[str, Any]) -> None:
    with pytest.raises(AnnotError, match=r"data\.adapt given, which needs images and a backbone"):
        AnnotationDataModule(adapt=SHORT, **given)


def test_patience_and_frozen_layers(tmp_path: Path) -> None:
    source, label = digits_source().subset(range(60)), torch.full((60,), -1)
    label[:4] = torch.tensor([0, 0, 1, 1])
    settings = AdaptSettings(epochs=30, batch_size=30, patience=2, freeze=("stem",), num_workers=0)
    path = adapt(source, label, START, settings, tmp_path, device="cpu")
    logged = pd.read_csv(tmp_path / "logs" / "version_0" / "metrics.csv")
    assert logged["epoch"].max() < 29
    frozen = torch.load(path, weights_only=True)["state_dict"]["stem.conv.weight"]
    other = adapt(source, label, START, SHORT, tmp_path / "other", device="cpu")
    assert not torch.equal(torch.load(other, weights_only=True)["state_dict"]["stem.conv.weight"], frozen)


def test_views_get_a_core_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(SelfSupervisedModule, "on_train_start", lambda self: seen.append(torch.get_num_threads()))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for processes in (0, 1, 4):
            settings = replace(SHORT, num_workers=processes)
            adapt(digits_source().subset(range(40)), None, START, settings, tmp_path / str(processes), device="cpu")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert seen == [3, 2, 1]


def test_global_generators_are_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(4)
    want = torch.rand(3)
    torch.manual_seed(4)
    adapt(digits_source().subset(range(40)), None, START, SHORT, tmp_path, device="cpu")
    assert torch.equal(torch.rand(3), want)


def test_unreadable_images_are_skipped_or_told(tmp_path: Path) -> None:
    fill(tmp_path / "images", [f"{i:02d}.png" for i in range(20)])
    (tmp_path / "images" / "03.png").write_bytes(b"broken")
    source = folder_source(tmp_path / "images")
    with pytest.raises(AnnotError, match=r"03\.png cannot be read"):
        adapt(source, None, START, SHORT, tmp_path / "a", device="cpu")
    assert adapt(source, None, START, SHORT, tmp_path / "b", device="cpu", skip=True).is_file()
