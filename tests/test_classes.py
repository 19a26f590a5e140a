"""Classes from a file, and subsets of them with distractors."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_runs import Bank, answers, assert_equal_runs, call, check_refused, fit, rounds
from PIL import Image

from lightning_annot.data.classes import Subset, read_classes
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.types import OTHER, AnnotError


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# Class files


def test_classes_of_a_list_and_of_a_file(tmp_path: Path) -> None:
    assert read_classes(["b", "a"]).ids == read_classes(["b", "a"]).names == ("b", "a")
    bare = read_classes(write(tmp_path / "bare.csv", "class\nn2\nn1\n"))
    assert bare.ids == bare.names == ("n2", "n1")
    named = read_classes(write(tmp_path / "named.csv", "class,name,more\nn2,crane,x\nn1,,y\nn3,crane,z\n"))
    assert named.ids == ("n2", "n1", "n3")
    assert named.names == ("crane", "n1", "crane")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,name\nn1,cat\n", r"has columns \['id', 'name'\], without \['class'\]"),
        ("class,name\nn1,cat\nn2,dog\nn1,cow\n", r"1 rows give a class another name than a line above \(line 4: 'n1'\)"),
        ("class,name\nn1,cat\n,dog\n", r"1 rows have no class \(line 3"),
        ("class,name\nn1", "do not have the 2 cells of the header"),
    ],
)
def test_class_files_are_checked(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        read_classes(write(tmp_path / "classes.csv", text))


# Subsets

IDS = [f"i{j:03d}" for j in range(100)]
LABELS = {name: "abcde"[j * j % 7 % 5] for j, name in enumerate(IDS)}


@pytest.mark.parametrize("ratio", [0.0, 0.07, 0.5, 1.0])
@pytest.mark.parametrize("named", [("b", "a"), ("c",), ("e", "c", "b")])
def test_a_subset_has_all_named_items_and_a_share_of_others(named: tuple[str, ...], ratio: float) -> None:
    counts = Counter(LABELS.values())
    n_named = sum(counts[name] for name in named)
    if round(ratio * n_named) > len(IDS) - n_named:
        with pytest.raises(AnnotError, match=f"and there are {len(IDS) - n_named}"):
            Subset(named, ratio, 3).choose(IDS, LABELS)
        return
    rows, kept = Subset(named, ratio, 3).choose(IDS, LABELS)
    assert rows == sorted(set(rows))
    assert list(kept) == [IDS[row] for row in rows]
    for name in IDS:
        if LABELS[name] in named:
            assert kept[name] == LABELS[name]
        else:
            assert kept.get(name, OTHER) == OTHER
    assert Counter(kept.values())[OTHER] == round(ratio * n_named)


def test_distractors_are_drawn_by_the_seed() -> None:
    drawn = [Subset(("a",), 0.5, seed).choose(IDS, LABELS)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("named", "ratio", "labels", "message"),
    [
        (("a",), -0.5, LABELS, r"data.distractors -0.5 given; it must be 0 or more"),
        (("a",), float("nan"), LABELS, "data.distractors nan given"),
        (("a",), float("inf"), LABELS, "data.distractors inf given"),
        (("a", OTHER), 1.0, LABELS, "data.classes names 'other', which is the class of the distractors"),
        (("a",), 0.0, None, r"100 of 100 have none, such as \['i000', 'i001', 'i002'\]"),
        (("a",), 0.0, {name: LABELS[name] for name in IDS[:98]}, r"2 of 100 have none, such as \['i098', 'i099'\]"),
        (("a", "n9", "n8"), 0.0, LABELS, r"2 of the 3 classes of data.classes have no item: \['n8', 'n9'\]"),
        (("a",), 30.0, LABELS, r"data.distractors 30.0 asks for \d+ items of other classes .* and there are \d\d\."),
    ],
)
def test_subsets_are_checked(named: tuple[str, ...], ratio: float, labels: dict[str, str] | None, message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        Subset(named, ratio, 0).choose(IDS, labels)


def bank_of_images(folder: Path) -> dict[str, Any]:
    """A bank whose item j has j as its feature and as the shade of its image ``j.png``; class c is foreign."""
    (folder / "images").mkdir()
    for j in range(60):
        Image.new("RGB", (4, 4), (j, 0, 0)).save(folder / "images" / f"{j:03d}.png")
    np.save(folder / "bank.npy", np.arange(60, dtype=np.float32)[:, None])
    truth = pd.DataFrame({"task": range(60), "label": ["abc"[j % 3] for j in range(60)]})
    truth.to_csv(folder / "truth.csv", index=False)
    return {
        "root": str(folder / "images"), "features": str(folder / "bank.npy"), "labels": str(folder / "truth.csv"),
        "id_pattern": "%03d.png", "prototypes_per_class": 3, "classes": ["b", "a"],
    }  # fmt: skip


@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_a_banks_rows_ids_and_images_stay_together(tmp_path: Path, ratio: float) -> None:
    data = AnnotationDataModule(**bank_of_images(tmp_path), distractors=ratio, seed=1)
    data.setup("fit")
    loaded, table = data.loaded, data.table
    assert loaded is not None
    assert loaded.source is not None
    assert loaded.labels is not None
    assert table.truth is not None
    assert table.classes == (("b", "a", OTHER) if ratio else ("b", "a"))
    assert len(table) == 40 + round(40 * ratio)
    assert list(map(float, table.ids)) == loaded.features[:, 0].tolist()
    assert [np.asarray(loaded.source.open(row))[0, 0, 0] for row in range(len(table))] == list(map(int, table.ids))
    for row, name in enumerate(table.ids):
        label = "abc"[int(name) % 3]
        assert loaded.labels[name] == table.classes[int(table.truth[row])] == (OTHER if label == "c" else label)
    prototypes = Counter(table.prototype.tolist())
    assert all(prototypes[k] == 3 for k in range(len(table.classes)))


def test_identity_and_items_depend_on_distractors(tmp_path: Path) -> None:
    good = bank_of_images(tmp_path)
    tables = []
    for ratio, seed in ((0.0, 0), (0.3, 0), (0.3, 1)):
        data = AnnotationDataModule(**good, distractors=ratio, seed=seed)
        data.setup("fit")
        tables.append(data.table.identity(0)["items"])
    assert len(set(tables)) == 3


def test_given_prototypes_of_a_subset(tmp_path: Path) -> None:
    """Prototypes of the whole data serve its subset: those of left-out items go, those of distractors are of ``OTHER``."""
    good = bank_of_images(tmp_path)
    prototypes = write(tmp_path / "prototypes.csv", "task,label\n" + "".join(f"{j},{'abc'[j % 3]}\n" for j in range(45)))
    data = AnnotationDataModule(**good, prototypes=prototypes, distractors=0.3)
    data.setup("fit")
    for name, k in zip(data.table.ids, data.table.prototype.tolist(), strict=True):
        want = {"a": 1, "b": 0, "c": 2}["abc"[int(name) % 3]] if int(name) < 45 else -1
        assert k == want
    wrong = write(tmp_path / "wrong.csv", "task,label\n0,a\n1,d\n")
    with pytest.raises(AnnotError, match=r"data.prototypes has labels outside the classes: \['d'\]"):
        AnnotationDataModule(**good, prototypes=wrong, distractors=0.3).setup("fit")


def test_digits_of_some_classes() -> None:
    data = AnnotationDataModule(classes=["3", "8"], distractors=0.1)
    data.setup("fit")
    assert data.loaded is not None
    assert len(data.loaded.features) == len(data.table) == 357 + 36
    assert data.table.classes == ("3", "8", OTHER)


# The command line


@pytest.fixture(scope="module")
def settings(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two of the bank's classes by their names in a file, and some of the others."""
    names = write(tmp_path_factory.mktemp("classes") / "classes.csv", "class,name\ndog,a dog\nant,an ant\n")
    return bank.settings(**{"data.classes": names, "data.distractors": 0.2})


@pytest.fixture(scope="module")
def finished(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds with distractors."""
    return fit(settings, tmp_path_factory.mktemp("finished"))


def test_a_run_with_distractors(bank: Bank, finished: Path) -> None:
    labels = pd.read_csv(finished / "labels.csv")
    truth = pd.read_csv(bank.labels).set_index("task")["label"][labels["task"]]
    assert len(labels) == 180
    assert Counter(truth)["ant"] == Counter(truth)["dog"] == 75
    assert Counter(labels["label"][labels["status"] == "prototype"]) == {"ant": 3, "dog": 3, OTHER: 3}
    assert set(answers(finished)["label"]) == {"ant", "dog", OTHER}
    right = truth.where(truth.isin(["ant", "dog"]), OTHER).to_numpy() == labels["label"]
    keep = labels["status"] != "prototype"
    assert rounds(finished)["accuracy"].iloc[-1] == pytest.approx(right[keep].mean())


def test_names_are_for_people_alone(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["classes"] == ["dog", "ant", OTHER]
    assert summary["class_names"] == ["a dog", "an ant", OTHER]
    assert (finished / "report.html").read_text().count(">a dog<") > 2
    assert not set(pd.read_csv(finished / "labels.csv")["label"]) & {"a dog", "an ant"}


def test_a_run_with_distractors_goes_on(settings: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    run = fit(settings, tmp_path, trainer__max_epochs=2)
    again = call("fit", {"trainer.max_epochs": 3}, f"--config={run / 'config.yaml'}")
    assert again.status == 0, again.err
    assert_equal_runs(run, finished)


def test_predict_labels_everything(settings: dict[str, Any], finished: Path) -> None:
    result = call("predict", {**settings, "annotation.output_dir": finished})
    assert result.status == 0, result.err
    predictions = pd.read_csv(finished / "predictions.csv")
    assert len(predictions) == 300
    assert set(predictions["label"]) == {"ant", "dog", OTHER}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("id,name\nant,x\n", ["classes.csv has columns ['id', 'name'], without ['class']"]),
        ("class,name\nant,A\nbee,B\nant,C\n", ["1 rows give a class another name than a line above (line 4: 'ant')"]),
        ("class\nant\nbee\n", ["data.labels has labels outside the classes: ['cow', 'dog']", "data.distractors"]),
    ],
)
def test_bad_class_files(bank: Bank, tmp_path: Path, text: str, wanted: list[str]) -> None:
    check_nothing_recorded(bank.settings(**{"data.classes": write(tmp_path / "classes.csv", text)}), tmp_path / "run", wanted)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"data.distractors": 0.5}, ["data.distractors 0.5 given without data.classes", "name the classes"]),
        ({"data.distractors": -1, "data.classes": "[ant,bee]"}, ["data.distractors -1.0 given", "0 or more"]),
        ({"data.distractors": 9, "data.classes": "[ant,bee]"}, ["asks for 1350 items", "and there are 150", "Lower"]),
        ({"data.distractors": 0, "data.classes": "[ant,elk]"}, ["1 of the 2 classes of data.classes have no item: ['elk']"]),
        ({"data.distractors": 0, "data.classes": "[ant]"}, ["classes ['ant'] given; a task needs at least 2"]),
        ({"data.classes": "[ant,bee,cow,dog,elk]"}, ["without a prototype: ['elk']", "correct data.classes"]),
        ({"data.classes": "nowhere.csv"}, ["data.classes is 'nowhere.csv', and there is no such file", "class,name"]),
    ],
)
def test_bad_subsets(bank: Bank, tmp_path: Path, change: dict[str, Any], wanted: list[str]) -> None:
    check_nothing_recorded(bank.settings(**change), tmp_path / "run", wanted)


def check_nothing_recorded(settings: dict[str, Any], run: Path, wanted: list[str]) -> None:
    """Refused, before there is a log."""
    check_refused({**settings, "annotation.output_dir": run}, *wanted)
    assert not (run / "annotations.db").exists()
