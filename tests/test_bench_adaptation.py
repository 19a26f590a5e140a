"""The script that measures what adaptation saves runs each kind of features through the real command line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from test_scripts import load_script, told


@pytest.mark.slow
def test_kinds_of_features_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--features pixels random adapted --seeds 1 --set trainer.max_epochs=2 data.batches.steps=5 data.adapt.epochs=1"
    monkeypatch.setattr("sys.argv", ["bench_adaptation.py", *words.split(), "--csv", str(tmp_path / "runs.csv")])
    load_script("bench_adaptation").main()
    figures = told(capsys.readouterr().out)
    runs = {run["features"]: run for run in figures["runs"]}
    assert runs.keys() == figures["summary"].keys() == {"pixels", "random", "adapted"}
    assert runs["random"]["val_knn"] is None
    assert 0 < runs["adapted"]["val_knn"] < 1
    assert runs["random"]["to_98"] is None
    assert runs["pixels"]["first_accuracy"] > runs["random"]["first_accuracy"]
    assert all(run["cpu_seconds"] > 1 for run in runs.values())
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 3


def test_pixels_are_of_digits_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench_adaptation.py", "--data", "cifar10n", "--features", "pixels"])
    with pytest.raises(SystemExit):
        load_script("bench_adaptation").main()
    assert "of the digits alone" in capsys.readouterr().err
