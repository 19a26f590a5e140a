"""From gold answers to a confusion file that simulated workers read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_runs import Bank, answers, call, fit
from PIL import Image

from lightning_annot.exchange.confusions import write_group_workers
from lightning_annot.report.study_plots import MOST_PEOPLE, plot_people, shares
from lightning_annot.types import AnnotError
from lightning_annot.workers.amt import AMTWorkers

CLASSES = ["ant", "bee", "cow", "dog"]


@pytest.fixture(scope="module")
def run(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which ten simulated workers answer all 12 prototypes."""
    settings = bank.settings(**{"annotation.gold": 12, "trainer.max_epochs": 2})
    settings |= {"annotation.workers": "lightning_annot.workers.simulated.StructuredWorkers"}
    settings |= {"annotation.workers.n_workers": 10, "annotation.workers.accuracy": 0.6}
    return fit(settings, tmp_path_factory.mktemp("run") / "out")


def test_gold_answers_become_workers(run: Path, bank: Bank, tmp_path: Path) -> None:
    out = tmp_path / "study.json"
    result = call("confusions", {}, str(run), "--out", str(out))
    assert "120 gold answers of 10 workers about 4 classes" in result.out, result.err
    data = json.loads(out.read_text())
    assert data["imagenet100"] == data["imagenet100_name"] == CLASSES
    assert len(data["workers"]["0"]) == 10
    counts = np.array(data["group_workers"]["0"])
    assert counts.shape == (10, 4, 4)
    assert (counts.sum(2) == 3).all()
    assert np.array(data["total_cm"]).sum() == 120
    gold = answers(run).query("kind == 'gold'")
    for name, matrix in zip(data["workers"]["0"], counts, strict=True):  # the slow way
        said = gold[gold["worker"] == name]
        slow = np.zeros((4, 4), dtype=int)
        for item, label in zip(said["item"], said["label"], strict=True):
            slow[int(item.removeprefix("item")) % 4, CLASSES.index(label)] += 1
        np.testing.assert_array_equal(matrix, slow)
    for name in ("study.png", "study-people.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100
    workers = AMTWorkers(str(out), n_workers=6)
    confusions = workers.confusions(CLASSES, seed=0)
    np.testing.assert_allclose(confusions.sum(2), 1.0)
    np.testing.assert_allclose(confusions.mean(0), shares(counts.sum(0)), atol=0.35)
    settings = bank.settings(**{"annotation.workers": "lightning_annot.workers.amt.AMTWorkers", "trainer.max_epochs": 2})
    fit(settings | {"annotation.workers.workers_file": out}, tmp_path / "simulated")
    assert call("import", {}, str(tmp_path / "new"), str(out), "--format", "group-workers").status == 0


def test_a_class_without_gold_is_told(run: Path, bank: Bank, tmp_path: Path) -> None:
    without = fit(bank.settings(**{"trainer.max_epochs": 1}), tmp_path / "run")
    result = call("confusions", {}, str(without), "--out", str(tmp_path / "study.json"))
    assert result.status == 2
    assert "no gold answer is about ['ant', 'bee', 'cow', 'dog']" in result.err
    shutil.rmtree(without)
    assert not list(tmp_path.iterdir())


def test_a_file_that_lacks_a_class_makes_no_workers(tmp_path: Path) -> None:
    write_group_workers(tmp_path / "a.json", ["x", "y"], ["x", "y"], {"0": np.array([[[1, 0], [0, 0]]])})
    with pytest.raises(AnnotError, match=r"no answer about \['y'\]"):
        AMTWorkers(str(tmp_path / "a.json")).confusions(["x", "y"], seed=0)


def test_many_people_are_cut_to_those_with_most_answers() -> None:
    counts = np.zeros((60, 2, 2), dtype=int)
    counts[:, 0, 0] = np.arange(60)
    shown = plot_people(counts, [f"w{j}" for j in range(60)])
    titles = [axes.get_title().split("\n")[0] for axes in shown.axes]
    assert titles == [f"w{j}" for j in range(60 - MOST_PEOPLE, 60)]
