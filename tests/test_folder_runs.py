"""Runs over images of one's own: a folder with people behind two files, new images, a zip."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_runs import CONFIGS, QUIET, SHARED, answers, call, fit
from offline_wandb import go_offline, logger_settings, read_offline
from PIL import Image
from run_checks import QUICK, TINY_BACKBONE, check_run, needs_shared_data, run_config


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``photos/`` and ``new/`` with JPEGs that are red or green, ``prototypes.csv`` of the first six of ``photos/``."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, n in (("photos", 40), ("new", 6)):
        (folder / name).mkdir()
        for i in range(n):
            pixels = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[..., i % 2] += 160
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.jpg")
    rows = [f"{i:02d}.jpg,{colour(f'{i:02d}.jpg')}\n" for i in range(6)]
    (folder / "prototypes.csv").write_text("task,label\n" + "".join(rows))
    return folder


def colour(task: str) -> str:
    """The class of an image of ``photos``."""
    return "green" if int(Path(task).stem) % 2 else "red"


@pytest.fixture(scope="module")
def folder_settings(photos: Path) -> dict[str, Any]:
    """The README's command for one's own images, with a tiny backbone."""
    return {
        **QUIET,
        **TINY_BACKBONE,
        "data.root": photos / "photos",
        "data.classes": "[red,green]",
        "data.prototypes": photos / "prototypes.csv",
        "data.backbone.cache_dir": photos / "cache",
        "data.batches.steps": 8,
        "annotation.sampling.per_round": 5,
        "annotation.threshold": 0.001,
    }


@pytest.fixture(scope="module")
def folder_run(folder_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder configuration after two rounds of answers; the same command each time."""
    run = tmp_path_factory.mktemp("folder")
    for who in ("anna", "bert", None):
        run_config("folder.yaml", folder_settings, run)
        if who is not None:
            asked = pd.read_csv(run / "questions.csv", dtype=str, keep_default_na=False)
            rows = "".join(f"{task},{who},{colour(task)}\n" for task in asked["task"])
            with open(run / "answers.csv", "a") as file:
                file.write(("" if file.tell() else "task,worker,label\n") + rows)
    return run


def test_folder_config(folder_run: Path, photos: Path) -> None:
    table = check_run(folder_run, n_classes=2, n_prototypes=6, truth=False)
    assert table["annotations"].tolist() == [0, 5, 10]
    assert set(answers(folder_run)["worker"]) == {"anna", "bert"}
    assert json.loads((folder_run / "summary.json").read_text())["stop_reason"].startswith("waiting for the answers to 5")
    labels = pd.read_csv(folder_run / "labels.csv")
    assert (labels["label"] == labels["task"].map(colour))[labels["n_annotations"] > 0].all()
    asked = pd.read_csv(folder_run / "questions.csv")
    assert [Path(path).resolve() for path in asked["path"]] == [photos / "photos" / task for task in asked["task"]]


def test_records_tell_what_was_extracted(
    folder_settings: dict[str, Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_offline(monkeypatch, tmp_path)
    shutil.copytree(photos / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "39.jpg").write_bytes(b"broken")
    more = {"data.root": tmp_path / "photos", "data.backbone.on_error": "skip", "data.backbone.cache_dir": tmp_path / "cache"}
    run_config("folder.yaml", {**folder_settings, **more, **logger_settings(tmp_path)}, tmp_path / "run")
    extraction = read_offline(tmp_path).config["extraction"]
    assert extraction.pop("images_per_second") == pytest.approx(39 / extraction.pop("seconds"))
    assert extraction == {
        "backbone": "test_resnet.r160_in1k", "weights": "random", "image_size": 32, "width": 96,
        "images": 39, "computed": 39, "unreadable": 1,
    }  # fmt: skip


def test_new_images_get_labels(folder_run: Path, folder_settings: dict[str, Any], photos: Path) -> None:
    unknown = {key: value for key, value in folder_settings.items() if key not in ("data.classes", "data.prototypes")}
    settings = {**unknown, "data.root": photos / "new", "annotation.output_dir": folder_run}
    result = call("predict", settings, f"--config={CONFIGS / 'folder.yaml'}")
    assert result.status == 0, result.err
    table = pd.read_csv(folder_run / "predictions.csv")
    assert list(table) == ["task", "label", "confidence"]
    assert table["task"].tolist() == [f"{i:02d}.jpg" for i in range(6)]
    assert table["label"].tolist() == ["red", "green"] * 3


@needs_shared_data
def test_zip_of_photographs_goes_through_to_labels(tmp_path: Path) -> None:
    n = 1000  # of its 10,000: the others are left out because the labels do not name them
    truth = pd.read_csv(SHARED / "cifar10n" / "true_labels.csv", dtype=str)[:n]
    truth.to_csv(tmp_path / "truth.csv", index=False)
    settings = {
        **QUICK,
        **TINY_BACKBONE,
        "data.root": SHARED / "cifar10n" / "images.zip",
        "data.labels": tmp_path / "truth.csv",
        "data.id_pattern": "%05d.jpg",
        "data.backbone.cache_dir": tmp_path / "cache",
        "annotation.sampling.per_round": 50,
    }
    run = fit(settings, tmp_path / "run")
    table = check_run(run, n_classes=10, n_prototypes=100, truth=True)
    assert pd.read_csv(run / "labels.csv", dtype=str)["task"].tolist() == truth["task"].tolist()
    assert table["accuracy"].iloc[-1] > 0.15  # random weights know little, yet more than chance
    assert json.loads((run / "thumbnails.json").read_text())
