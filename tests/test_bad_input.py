"""Bad input through the command line: it says what came, what was allowed and what to do, and loses nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_runs import QUIET, Bank, answers, check_refused, fit, questions
from encoded import GREY, png
from PIL import Image

CLASSES = ("ant", "bee", "cow", "dog")
SIMULATED = "lightning_annot.workers.simulated.StructuredWorkers"

Change = dict[str, Any]
Maker = Callable[[Path, Bank], Change]


@pytest.fixture(scope="session")
def finished(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds, never to be changed."""
    return fit(bank.settings(), tmp_path_factory.mktemp("finished"), trainer__max_epochs=2)


def rewritten(path: Path, target: Path, old: str, new: str) -> Path:
    """A copy of a text file with its first ``old`` replaced."""
    text = path.read_text()
    assert old in text
    target.write_text(text.replace(old, new, 1))
    return target


def nan_features(folder: Path, bank: Bank) -> Change:
    features = np.load(bank.features)
    features[[7, 9], 3] = np.nan
    np.save(folder / "nan.npy", features)
    return {"data.features": folder / "nan.npy"}


def short_features(folder: Path, bank: Bank) -> Change:
    np.save(folder / "short.npy", np.load(bank.features)[:-1])
    return {"data.features": folder / "short.npy"}


def whole_numbers(folder: Path, bank: Bank) -> Change:
    np.save(folder / "int.npy", np.load(bank.features).astype(np.int64))
    return {"data.features": folder / "int.npy"}


def half_a_bank(folder: Path, bank: Bank) -> Change:
    (folder / "half.npy").write_bytes(bank.features.read_bytes()[:5000])
    return {"data.features": folder / "half.npy"}


def wide_extra(folder: Path, bank: Bank) -> Change:
    np.save(folder / "wide.npy", np.zeros((5, 99), np.float32))
    return {"data.unlabelled_extra": folder / "wide.npy"}


def doubled_id(folder: Path, bank: Bank) -> Change:
    return {"data.labels": rewritten(bank.labels, folder / "labels.csv", "item001,", "item000,")}


def doubled_item(folder: Path, bank: Bank) -> Change:
    items = rewritten(bank.labels, folder / "items.csv", "item001,", "item000,")
    return {"data.labels": None, "data.items": items, "data.prototypes": bank.prototypes}


def cut_labels(folder: Path, bank: Bank) -> Change:
    (folder / "labels.csv").write_text(bank.labels.read_text()[:-5])
    return {"data.labels": folder / "labels.csv"}


def no_label_column(folder: Path, bank: Bank) -> Change:
    return {"data.labels": rewritten(bank.labels, folder / "labels.csv", "task,label", "task,class")}


def foreign_prototype(folder: Path, bank: Bank) -> Change:
    return {"data.prototypes": rewritten(bank.prototypes, folder / "prototypes.csv", ",ant", ",elk"), "data.classes": names()}


def unknown_prototype(folder: Path, bank: Bank) -> Change:
    return {"data.prototypes": rewritten(bank.prototypes, folder / "prototypes.csv", "item000", "image_0.jpg")}


def no_prototype_of_a_class(folder: Path, bank: Bank) -> Change:
    table = pd.read_csv(bank.prototypes)
    table[table["label"] != "cow"].to_csv(folder / "prototypes.csv", index=False)
    return {"data.prototypes": folder / "prototypes.csv"}


def no_prototypes(folder: Path, bank: Bank) -> Change:
    return {"data.labels": None, "data.items": bank.labels, "data.classes": names()}


def recorded(path: Path) -> Change:
    return {"annotation.workers": "lightning_annot.workers.recorded.RecordedWorkers", "annotation.workers.answers": path}


def answer_for_nobody(folder: Path, bank: Bank) -> Change:
    return recorded(rewritten(bank.answers, folder / "answers.csv", "item000", "item999"))


def answer_outside_the_classes(folder: Path, bank: Bank) -> Change:
    return recorded(rewritten(bank.answers, folder / "answers.csv", "\nitem001,p0,", "\nitem001,p0,not a "))


def cut_answers(folder: Path, bank: Bank) -> Change:
    (folder / "answers.csv").write_text(bank.answers.read_text().rstrip().rpartition(",")[0])
    return recorded(folder / "answers.csv")


def imported_for_nobody(folder: Path, bank: Bank) -> Change:
    return {"annotation.import_answers": rewritten(bank.answers, folder / "answers.csv", "item000", "item999")}


def small_cost(folder: Path, bank: Bank) -> Change:
    (folder / "cost.csv").write_text("0,1\n1,0\n")
    return {"annotation.cost": folder / "cost.csv"}


def cost_of_words(folder: Path, bank: Bank) -> Change:
    (folder / "cost.csv").write_text("a,b,c,d\n" * 4)
    return {"annotation.cost": folder / "cost.csv"}


def dear_truth(folder: Path, bank: Bank) -> Change:
    (folder / "cost.csv").write_text("1,1,1,1\n" * 4)
    return {"annotation.cost": folder / "cost.csv"}


def names(*more: str) -> str:
    return f"[{','.join((*CLASSES, *more))}]"


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (nan_features, ["nan.npy has NaN or inf in 2 of 300 rows (7, 9", "compute these rows again"]),
        (short_features, ["short.npy has 299 rows", "names 300 items"]),
        (whole_numbers, ["holds int64 of shape (300, 16)", "float16 or float32"]),
        (half_a_bank, ["half.npy cannot be read as .npy", "numpy.save"]),
        (wide_extra, ["data.unlabelled_extra has features of width 99, the items of 16", "same backbone"]),
        (doubled_id, ["1 rows label a task that has another label above (line 3: 'item000')", "keep one row of each task"]),
        (doubled_item, ["1 duplicate item ids, such as ['item000']", "must be unique"]),
        (cut_labels, ["1 rows do not have the 2 cells of the header (line 301: ", "the file may be cut"]),
        (no_label_column, ["has columns ['task', 'class'], without ['label']", "must name ['task', 'label']"]),
        (foreign_prototype, ["data.prototypes has labels outside the classes: ['elk']", "the classes are ['ant', 'bee'"]),
        (unknown_prototype, ["1 ids only in data.prototypes, such as ['image_0.jpg']", "data.id_pattern"]),
        (no_prototype_of_a_class, ["1 classes without a prototype: ['cow']", "at least one in data.prototypes"]),
        (no_prototypes, ["no prototypes given", "give it as data.prototypes"]),
        (answer_for_nobody, ["1 rows have a task outside the items (line 2: 'item999')", "correct or remove"]),
        (answer_outside_the_classes, ["have a label outside the classes", "the 4 classes are 'ant', 'bee', 'cow', 'dog'"]),
        (cut_answers, ["1 rows do not have the 3 cells of the header (line 901: ", "the file may be cut"]),
        (imported_for_nobody, ["1 rows have a task outside the items (line 2: 'item999')", "correct or remove"]),
        (small_cost, ["cost matrix of shape (2, 2) given; 4 classes need 4 x 4"]),
        (cost_of_words, ["cost.csv could not be read", "it needs 4 rows of numbers"]),
        (dear_truth, ["non-zero diagonal", "being right costs 0"]),
    ],
)
def test_bad_data(bank: Bank, tmp_path: Path, make: Maker, wanted: list[str]) -> None:
    settings = {**bank.settings(), "annotation.workers": SIMULATED, **make(tmp_path, bank)}
    if settings["data.labels"] is None:
        settings.pop("data.prototypes_per_class")
    check_refused({**settings, "annotation.output_dir": tmp_path / "run"}, *wanted)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"annotation.sampling.per_rounds": 5}, ["annotation.sampling.per_rounds"]),
        ({"data.root_folder": "x"}, ["root_folder"]),
        ({"trainer.rounds": 5}, ["rounds"]),
        ({"annotation.sampling.per_round": 0}, ["sampling.per_round 0", "must be at least 1"]),
        ({"annotation.sampling.cap": -1}, ["sampling.cap -1", "must be at least 1"]),
        ({"annotation.sampling.items": "best"}, ["best", "expected_error_reduction"]),
        ({"annotation.sampling.workers": "ann"}, ["ann", "least_loaded"]),
        ({"annotation.stopping.budget": -0.5}, ["stopping.budget -0.5", "0 or more"]),
        ({"annotation.stopping.patience": 0}, ["stopping.patience 0", "1 round or more"]),
        ({"annotation.threshold": 0}, ["annotation.threshold 0", "must be above 0"]),
        ({"annotation.crowd.prior": "flat"}, ["flat", "homogeneous"]),
        ({"annotation.crowd.strength": -1}, ["strength", "above 0"]),
        ({"annotation.crowd.accuracy": 1.5}, ["accuracy", "1.5"]),
        ({"model.lr": -1}, ["lr -1", "above 0"]),
        ({"model.ema": 2}, ["ema 2", "between 0 and 1"]),
        ({"data.folds": 1}, ["data.folds 1", "at least 2"]),
        ({"data.prototypes_per_class": -1}, ["data.prototypes_per_class -1", "0 or more"]),
        ({"data.prototypes_per_class": 100}, ["take all 300 items", "lower data.prototypes_per_class"]),
        ({"data.batches.size": 0}, ["size", "above 0"]),
        ({"data.batches.objective": "all"}, ["all", "mixmatch"]),
        ({"data.projection.dim": 0}, ["dim", "above 0"]),
        ({"data.classes": "[ant,bee,cow]"}, ["labels outside the classes: ['dog']", "['ant', 'bee', 'cow']"]),
        ({"data.classes": "[ant,ant]"}, ["names a class twice"]),
        ({"data.features": "nowhere.npy"}, ["nowhere.npy cannot be read"]),
        ({"data.labels": "nowhere.csv"}, ["nowhere.csv cannot be read"]),
        ({"data.features": None}, ["item000"]),
    ],
)
def test_bad_settings(bank: Bank, tmp_path: Path, change: Change, wanted: list[str]) -> None:
    check_refused({**bank.settings(), **change, "annotation.output_dir": tmp_path / "run"}, *wanted)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"seed_everything": 9}, ["seed: 0 -> 9"]),
        ({"data.classes": names("elk")}, ["classes without a prototype: ['elk']"]),
        ({"data.classes": "[dog,cow,bee,ant]"}, ["classes: 4 classes, "]),
        ({"data.prototypes_per_class": 4}, ["prototypes: 12 prototypes, ", " -> 16 prototypes, "]),
        ({"data.labels": "other.csv"}, ["items: 300 items, "]),
    ],
)
def test_the_folder_of_another_run(bank: Bank, finished: Path, tmp_path: Path, change: Change, wanted: list[str]) -> None:
    if "data.labels" in change:
        (tmp_path / "other.csv").write_text(bank.labels.read_text().replace("item", "thing"))
        change = {"data.labels": tmp_path / "other.csv"}
    check_kept_by_an_error(bank, finished, tmp_path, change, wanted)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [(nan_features, ["NaN or inf in 2"]), (cut_answers, ["may be cut"]), (small_cost, ["(2, 2) given"])],
)
def test_an_error_on_the_way_loses_nothing(bank: Bank, finished: Path, tmp_path: Path, make: Maker, wanted: list[str]) -> None:
    check_kept_by_an_error(bank, finished, tmp_path, {"annotation.workers": SIMULATED, **make(tmp_path, bank)}, wanted)


def check_kept_by_an_error(bank: Bank, finished: Path, folder: Path, change: Change, wanted: list[str]) -> None:
    """Going on with ``change`` is refused, and everything the run has recorded is as it was."""
    run = folder / "run"
    shutil.copytree(finished, run)
    check_refused({**bank.settings(), "ckpt_path": "last", **change, "annotation.output_dir": run}, *wanted)
    pd.testing.assert_frame_equal(questions(run), questions(finished))
    pd.testing.assert_frame_equal(answers(run), answers(finished))
    for name in ("labels.csv", "rounds.csv", "workers.csv", "confusions.npz", "config.yaml", "checkpoints/last.ckpt"):
        assert (run / name).read_bytes() == (finished / name).read_bytes(), name


def test_an_unreadable_image_is_named_and_skipped_on_request(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8) + np.uint8(120 * (name == "dog"))
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.jpg")
    broken = tmp_path / "photos" / "cat" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    (tmp_path / "photos" / "dog" / "bomb.png").write_bytes(png([b"\0"], (20_000, 20_000), 8, GREY))
    (tmp_path / "photos" / "dog" / "7.jpg_large").write_bytes(b"")
    (tmp_path / "photos" / "bird").mkdir()
    settings = {
        **QUIET,
        "trainer.max_epochs": 2,
        "data.root": tmp_path / "photos",
        "data.prototypes_per_class": 2,
        "data.batches.steps": 2,
        "data.backbone.name": "test_resnet.r160_in1k",
        "data.backbone.weights": "random",
        "data.backbone.cache_dir": tmp_path / "cache",
        "data.backbone.num_workers": 0,
    }
    check_refused({**settings, "annotation.output_dir": tmp_path / "run"}, "cat/3.jpg", "skip")
    run = fit(settings, tmp_path / "run", data__backbone__on_error="skip")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["unreadable_images"] == ["cat/3.jpg", "dog/bomb.png"]
    assert summary["passed_over"] == {".jpg_large": 1, "folders without images": 1}
    assert summary["n_items"] == 11 - 4
    assert "cat/3.jpg" not in (run / "labels.csv").read_text()
    assert "cat/3.jpg" not in set(questions(run)["item"])
