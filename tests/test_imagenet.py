"""The ImageNet sandbox: its class lists and its configuration, on a tiny fake of the data set."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_runs import CONFIGS, QUIET, ROOT, SHARED, answers, call, fit, questions
from PIL import Image

from lightning_annot.types import OTHER

CONFIG = f"--config={CONFIGS / 'imagenet.yaml'}"
LISTS = CONFIGS / "imagenet"
BROKEN = "n00000001"
STRUCTURED = "lightning_annot.workers.simulated.StructuredWorkers"
TINY = {
    **QUIET,
    "trainer.max_epochs": 3,
    "data.prototypes_per_class": 2,
    "data.batches.steps": 4,
    "data.backbone.name": "resnet10t",
    "data.backbone.weights": "random",
    "data.backbone.image_size": 32,
    "data.backbone.num_workers": 0,
    "annotation.sampling.per_round": 15,
}


def test_shipped_class_lists() -> None:
    tables = {path.stem: pd.read_csv(path, dtype=str) for path in LISTS.glob("*.csv")}
    sizes = {
        "imagenet20": 20, "imagenet100": 100, "dog": 19, "vertebrate": 18, "insect+fungus": 13, "objects": 19,
        "commodity": 16, "things": 15,
    }  # fmt: skip
    assert {name: len(table) for name, table in tables.items()} == sizes
    every = tables["imagenet100"].set_index("class")["name"]
    for table in tables.values():
        assert list(table) == ["class", "name"]
        assert table["class"].is_unique
        assert table["name"].is_unique
        assert table["class"].str.fullmatch(r"n\d{8}").all()
        assert not table["name"].str.contains("[_,]").any()
        assert (every[table["class"]].to_numpy() == table["name"]).all()
    groups = [name for name in sizes if not name.startswith("imagenet")]
    assert sorted(c for name in groups for c in tables[name]["class"]) == sorted(every.index)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of each of the 20 classes, and ten of a foreign one, which are no images at all."""
    folder, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for name in pd.read_csv(LISTS / "imagenet20.csv")["class"]:
        (folder / "train" / name).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "train" / name / f"{name}_{i}.JPEG")
    (folder / "train" / BROKEN).mkdir()
    for i in range(10):
        (folder / "train" / BROKEN / f"{BROKEN}_{i}.JPEG").write_bytes(b"no image")
    return folder


@pytest.fixture
def sandbox(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a small run of the configuration; people of the AMT study where it is there."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("IMAGENET_ROOT", str(imagenet / "train"))
    monkeypatch.setenv("ANNOT_DATA", str(SHARED))
    workers = {} if (SHARED / "amt_imagenet100").is_dir() else {"annotation.workers": STRUCTURED}
    return {**TINY, **workers, "data.backbone.cache_dir": imagenet / "cache"}


def test_imagenet_config(sandbox: dict[str, Any], tmp_path: Path) -> None:
    run = fit(sandbox, tmp_path / "run", CONFIG)  # a foreign image that is looked at would be an error
    labels, wanted = pd.read_csv(run / "labels.csv"), pd.read_csv(LISTS / "imagenet20.csv")
    assert len(labels) == 100
    assert set(labels["label"]) <= set(wanted["class"])
    assert not labels["task"].str.startswith(BROKEN).any()
    assert pd.read_csv(run / "rounds.csv")["annotations"].tolist() == [0, 15, 30]
    assert set(questions(run)["item"]) <= set(labels["task"])
    assert set(answers(run)["label"]) <= set(wanted["class"])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["classes"] == wanted["class"].tolist()
    assert summary["class_names"] == wanted["name"].tolist()
    assert "hognose snake" in (run / "report.html").read_text()


def test_imagenet_distractors(imagenet: Path, sandbox: dict[str, Any], tmp_path: Path) -> None:
    """Four classes of ImageNet20 against its others."""
    wanted = pd.read_csv(LISTS / "imagenet20.csv")[:4]
    wanted.to_csv(tmp_path / "four.csv", index=False)
    (tmp_path / "readable").mkdir()
    for folder in (imagenet / "train").iterdir():
        if folder.name != BROKEN:
            (tmp_path / "readable" / folder.name).symlink_to(folder)
    changed = {
        "data.root": tmp_path / "readable",
        "data.classes": tmp_path / "four.csv",
        "data.distractors": 0.5,
        "data.allow_outside": True,
    }
    run = fit({**sandbox, **changed}, tmp_path / "run", CONFIG)
    labels = pd.read_csv(run / "labels.csv")
    folders = Counter(labels["task"].str.split("/").str[0])
    assert [folders.pop(name) for name in wanted["class"]] == [5] * 4
    assert sum(folders.values()) == 10
    assert (labels["label"][labels["status"] == "prototype"] == OTHER).sum() == 2
    assert json.loads((run / "summary.json").read_text())["classes"] == [*wanted["class"], OTHER]


def test_imagenet_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("IMAGENET_ROOT", str(tmp_path / "absent"))
    result = call("fit", {**QUIET, "annotation.output_dir": tmp_path / "run"}, CONFIG)
    assert result.status == 2
    assert "Traceback" not in result.err
    (said,) = (line for line in result.err.splitlines() if line.startswith("lightning-annot:"))
    assert f"{tmp_path / 'absent'}' does not exist; data.root names where images come from" in said


def test_a_class_that_no_folder_has(sandbox: dict[str, Any], tmp_path: Path) -> None:
    result = call("fit", {**sandbox, "data.classes": LISTS / "dog.csv", "annotation.output_dir": tmp_path / "run"}, CONFIG)
    assert result.status == 2
    assert "of the 19 classes of data.classes have no item: ['n02091831'" in result.err
