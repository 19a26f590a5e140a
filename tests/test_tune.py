"""The search over hyper-parameters: scored by prototypes, goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import Bank
from test_ablate import write_config
from test_scripts import load_script

from lightning_annot.experiments.tuning import TABLE_1, Search, settings

TUNE = load_script("tune")


def test_search_goes_on_and_writes_the_best(bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    config = write_config(bank, tmp_path / "tiny.yaml")
    words = [str(tmp_path / "study"), "--config", str(config), "--per_round", "20", "--seeds", "1", "--jobs", "2"]
    assert TUNE.main([*words, "--trials", "2"]) == 0
    first = json.loads(capsys.readouterr().out)
    scores = [json.loads(path.read_text())["val_loss"] for path in (tmp_path / "study").glob("*/score.json")]
    assert first["val_loss"] == min(scores)
    assert first["settings"] == settings(first["values"])
    assert json.loads((tmp_path / "study" / "best.json").read_text()) == first
    assert TUNE.main([*words, "--trials", "2"]) == 0  # nothing is left to do
    shown = capsys.readouterr()
    assert json.loads(shown.out) == first
    assert "done" not in shown.err


def test_ranges_and_settings() -> None:
    mixmatch, lean = (Search(Path("x"), "c.yaml", {"method": name}, [1], {}) for name in ("mixmatch", "lean"))
    assert mixmatch.space == TABLE_1
    assert set(lean.space) == {"lambda", "weight_decay"}
    assert settings({"lambda": 1e-3, "weight_decay": 5e-4, "mu": 5, "gamma": 75}) == {
        "model.lr": "0.032",
        "model.weight_decay": "0.0005",
        "data.batches.size": "1024",
        "data.batches.ratio": "5",
        "model.mixed_weight": "75",
    }


@pytest.mark.parametrize(
    ("words", "message"), [(["--method", "magic"], "method 'magic' given"), (["--trials", "0"], "trials 0")]
)
def test_impossible_searches_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert TUNE.main([str(tmp_path / "study"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
