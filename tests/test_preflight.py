"""A mistake is told before anything is downloaded, adapted or extracted, in one sentence, by ``fit`` as by ``check``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import QUIET, Result, call, check_refused
from PIL import Image

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.peeking import peek_identity
from lightning_annot.data.classes import read_classes
from lightning_annot.types import AnnotError

Settings = dict[str, Any]
Maker = Callable[[Path], Settings]

N = 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, ``0.png`` to ``11.png``."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def settings(photos: Path, tmp_path: Path) -> Settings:
    """What ``fit`` over the images through a real backbone needs; two rounds, and two people through files."""
    prototypes = "".join(f"{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(4))
    (tmp_path / "prototypes.csv").write_text(f"task,label\n{prototypes}")
    return {
        **QUIET,
        "trainer.max_epochs": 1,
        "data.root": photos,
        "data.classes": "[cat,dog]",
        "data.prototypes": tmp_path / "prototypes.csv",
        "data.batches.steps": 2,
        "data.backbone.name": "test_resnet.r160_in1k",
        "data.backbone.weights": "random",
        "data.backbone.image_size": 32,
        "data.backbone.num_workers": 0,
        "data.backbone.cache_dir": tmp_path / "cache",
        "annotation.workers": "lightning_annot.workers.files.FileWorkers",
        "annotation.output_dir": tmp_path / "run",
    }


def unknown_item(folder: Path) -> Settings:
    return {"data.prototypes": write(folder / "p.csv", "task,label\n0.png,cat\n1.png,dog\n99.png,dog\n")}


def unknown_class(folder: Path) -> Settings:
    return {"data.prototypes": write(folder / "p.csv", "task,label\n0.png,cat\n1.png,dog\n2.png,elk\n")}


def class_without_prototype(folder: Path) -> Settings:
    return {"data.classes": "[cat,dog,elk]"}


def class_twice(folder: Path) -> Settings:
    return {"data.classes": "[cat,dog,cat]"}


def labels_of_other_images(folder: Path) -> Settings:
    rows = "".join(f"{i}.jpg,{'cat' if i % 2 else 'dog'}\n" for i in range(N))
    return {"data.labels": write(folder / "labels.csv", f"task,label\n{rows}")}


def imported_for_nobody(folder: Path) -> Settings:
    return {"annotation.import_answers": write(folder / "old.csv", "task,worker,label\n99.png,anna,cat\n")}


def no_import(folder: Path) -> Settings:
    return {"annotation.import_answers": folder / "nowhere.csv"}


def small_cost(folder: Path) -> Settings:
    return {"annotation.cost": write(folder / "cost.csv", "0\n")}


def answers_of_another_class(folder: Path) -> Settings:
    (folder / "run").mkdir()
    write(folder / "run" / "answers.csv", "task,worker,label\n5.png,anna,elk\n")
    return {}


def recorded_for_nobody(folder: Path) -> Settings:
    answers = write(folder / "recorded.csv", "task,worker,label\n99.png,anna,cat\n")
    return {"annotation.workers": "lightning_annot.workers.recorded.RecordedWorkers", "annotation.workers.answers": answers}


def simulated_without_truth(folder: Path) -> Settings:
    return {"annotation.workers": "lightning_annot.workers.simulated.StructuredWorkers"}


def nobody_at_label_studio(folder: Path) -> Settings:
    workers = "lightning_annot.workers.label_studio.LabelStudioWorkers"
    return {"annotation.workers": workers, "annotation.workers.url": "http://127.0.0.1:9"}


def gold_to_anyone(folder: Path) -> Settings:
    return {"annotation.gold": 3}


def another_run(folder: Path) -> Settings:
    with AnnotationLog(folder / "run" / "annotations.db") as log:
        log.claim({"items": "7 items, abc", "seed": "0"})
    return {}


def no_held_out_prototypes(folder: Path) -> Settings:
    return {"model.keep_best": "round"}


def short_bank(folder: Path) -> Settings:
    np.save(folder / "short.npy", np.zeros((N - 1, 4), np.float32))
    return {"data.banks": f"[{{features: {folder / 'short.npy'}}}]"}


def unknown_second_backbone(folder: Path) -> Settings:
    return {"data.banks": "[{backbone: {name: resnet500}}]"}


def second_backbone_without_network(folder: Path) -> Settings:
    return {"data.banks": "[{backbone: {name: resnet50}}]"}


def missing_extra(folder: Path) -> Settings:
    return {"data.unlabelled_extra": folder / "nowhere"}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


FAULTS = [
    (unknown_item, "1 ids only in data.prototypes, such as ['99.png']"),
    (unknown_class, "data.prototypes has labels outside the classes: ['elk']"),
    (class_without_prototype, "1 classes without a prototype: ['elk']"),
    (class_twice, "data.classes names a class twice"),
    (labels_of_other_images, "0.jpg"),
    (imported_for_nobody, "1 rows have a task outside the items (line 2: '99.png')"),
    (no_import, "annotation.import_answers is"),
    (small_cost, "cost matrix of shape (1, 1) given; 2 classes need 2 x 2"),
    (answers_of_another_class, "have a label outside the classes (line 2: 'elk')"),
    (recorded_for_nobody, "have a task outside the items (line 2: '99.png')"),
    (simulated_without_truth, "answers from the truth, and this data has none"),
    (nobody_at_label_studio, "127.0.0.1:9 cannot be reached"),
    (gold_to_anyone, "questions go to anyone; gold questions need workers with names"),
    (another_run, "belongs to another run (old -> new: "),
    (no_held_out_prototypes, "model.keep_best round given"),
    (short_bank, "short.npy has 11 rows, and there are 12 items"),
    (unknown_second_backbone, "timm has no model 'resnet500'"),
    (second_backbone_without_network, "the weights of resnet50 could not be downloaded (no network: "),
    (missing_extra, "does not exist; data.root names where images come from"),
]


@pytest.mark.parametrize(("make", "wanted"), FAULTS, ids=[make.__name__ for make, _ in FAULTS])
def test_nothing_is_extracted_before_a_mistake_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Maker, wanted: str
) -> None:
    no_network(monkeypatch, tmp_path)
    changed = {**settings, **make(tmp_path)}
    check_refused(changed, wanted)
    assert not list(tmp_path.rglob("*.f16"))
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run" / "rounds.csv").exists()


def test_nothing_is_adapted_before_a_mistake_is_told(settings: Settings, tmp_path: Path) -> None:
    check_refused({**settings, "data.adapt.epochs": 1, **unknown_class(tmp_path)}, "labels outside the classes: ['elk']")
    assert not (tmp_path / "run" / "adapted").exists()


def no_network(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A hub that nothing answers at, an empty cache of it, and a token for Label Studio."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "token")
