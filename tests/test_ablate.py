"""Grids of runs: what cannot be is refused before anything runs; what has ended is not run again; a failure stops no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cli_runs import Bank
from test_scripts import load_script

from lightning_annot.experiments.grid import Cell, expand, read_value
from lightning_annot.types import AnnotError

ABLATE = load_script("ablate")


@pytest.fixture(scope="module")
def config(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of two short rounds over the tiny bank."""
    return write_config(bank, tmp_path_factory.mktemp("config") / "tiny.yaml")


def write_config(bank: Bank, path: Path) -> Path:
    """Two rounds over the tiny bank, answered by simulated workers."""
    data = {"features": str(bank.features), "labels": str(bank.labels), "prototypes_per_class": 3}
    workers = {"class_path": "lightning_annot.workers.simulated.StructuredWorkers", "init_args": {"n_workers": 6}}
    tree = {
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
        "data": {
            "class_path": "lightning_annot.data.datamodule.AnnotationDataModule",
            "init_args": {**data, "batches": {"size": 64, "steps": 8}},
        },
        "annotation": {"output_dir": "unused", "workers": workers, "sampling": {"per_round": 20}},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def test_grid_runs_is_skipped_and_names_the_failed(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = [str(tmp_path), "--config", str(config), "--seed", "1", "1001", "--jobs", "2"]
    assert ABLATE.main([*grid, "--threshold", "0.1"]) == 0
    assert "2 done, 0 skipped, 0 failed" in capsys.readouterr().out
    for about in tmp_path.glob("*/run.json"):
        told = json.loads(about.read_text())
        assert told["coordinates"] == {"method": "ours", "threshold": 0.1, "seed": told["coordinates"]["seed"]}
        assert (about.parent / "rounds.csv").read_text().count("\n") == 3
        assert "Stopped" in (about.parent / "run.log").read_text()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/summary.json")}
    cut = next(iter(before))
    cut.unlink()  # as if it had been killed before its end
    assert ABLATE.main([*grid, "--threshold", "0.1", "--features", "none", "absent.npy"]) == 1
    shown = capsys.readouterr()
    assert "1 done, 1 skipped, 2 failed" in shown.out
    assert shown.err.count("failed; the end of") == 2
    assert "absent.npy" in shown.err  # the run's own message
    assert all(path.stat().st_mtime_ns == then for path, then in before.items() if path != cut)
    assert cut.is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the grid is empty"),
        (["--seed"], "the grid is empty: seed has no value"),
        (["--method", "magic"], "method 'magic' given; allowed are majority_vote"),
        (["--group", "cats"], "group 'cats' given; allowed are dog"),
        (["--seed", "one"], "seed 'one' given; it must be a whole number"),
        (["--workers", "0"], "workers 0 given; it must be 1 or more"),
        (["--prior", "worker"], "takes gold questions or an oracle"),
        (["--prior", "worker", "--gold", "20", "--estimate", "em"], "takes gold questions or an oracle"),
        (["--prior", "class"], "prior class needs an accuracy for each class"),
        (["--method", "lean", "ours", "--faithful", "true"], "method ours has no released form"),
        (["--estimate", "gold"], "estimate gold needs gold questions"),
        (["--worker_cap", "10", "--hit_size", "40"], "worker_cap 10 is below hit_size 40"),
        (["--distractors", "0", "0.3"], "name those it keeps"),
        (["--seed", "1", "--set", "lr"], "--set 'lr' given; it must be key=value"),
        (["--seed", "1", "--jobs", "0"], "jobs 0 given"),
    ],
)
def test_impossible_grids_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert ABLATE.main([str(tmp_path / "runs"), *words]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not list(tmp_path.glob("runs/*"))


def test_settings_of_a_cell() -> None:
    axes = {"prior": ["worker"], "oracle": [True], "classes": ["a,b"], "seed": [1]}
    (lean,) = expand({"method": ["lean"], "faithful": [True], **axes}, "c.yaml", {"model.lr": "0.1"})
    (ours,) = expand({"method": ["ours"], "faithful": [False], **axes}, "c.yaml", {"model.lr": "0.1"})
    assert not {"method", "faithful"} & ours.settings.keys()
    assert lean.settings == {
        "config": "c.yaml",
        "method": "lean",
        "faithful": "true",
        "annotation.crowd.prior": "worker",
        "annotation.crowd.oracle": "simulated_workers.npz",
        "data.classes": "[a,b]",
        "seed_everything": "1",
        "model.lr": "0.1",
    }
    assert ours.name != lean.name


def test_none_leaves_a_setting_alone_and_equal_cells_are_one() -> None:
    assert read_value("strength", "none") is None
    cells = expand({"strength": [None, None], "method": [None, "ours"], "seed": [1]})
    assert cells == [Cell("configs/simulated.yaml", {"seed": 1})]
    with pytest.raises(AnnotError, match="unknown axis colour"):
        expand({"colour": ["red"]})
