"""Two processes over gloo on the CPU do what one does, and only the first writes."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pandas as pd
import pytest
from cli_runs import Bank, answers, arguments, checkpoint, fit, questions, rounds, run


def together(settings: dict[str, Any], output: Path) -> CompletedProcess[str]:
    """``fit`` by two processes over gloo."""
    parallel = {"trainer.devices": 2, "trainer.strategy": "ddp", "annotation.output_dir": output}
    result = run("fit", *arguments({**settings, **parallel}), OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    assert "MEMBER: 2/2" in result.stderr
    return result


def check_same_run(two: Path, one: Path) -> None:
    """Same questions, answers and files, and the same weights but for how their sums are rounded."""
    assert questions(two).equals(questions(one))
    assert answers(two).equals(answers(one))
    pd.testing.assert_frame_equal(rounds(two), rounds(one), rtol=1e-4)
    assert files(two) == files(one)
    ours, theirs = checkpoint(two)["state_dict"], checkpoint(one)["state_dict"]
    for name, weights in theirs.items():
        assert float((ours[name] - weights).norm()) <= 1e-5 * float(weights.norm()), name


def test_two_processes_are_one_run(bank: Bank, tmp_path: Path) -> None:
    """A batch of 65 rows, of which the first process has one more than the second."""
    settings = bank.settings(**{"data.batches.size": 65})
    result = together(settings, tmp_path / "two")
    assert result.stdout.count("Stopped: the last allowed round is done") == 1
    assert len(answers(tmp_path / "two")) == 40
    check_same_run(tmp_path / "two", fit(settings, tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mixmatch", "consistency"])
def test_two_processes_have_the_second_set_of_one(bank: Bank, tmp_path: Path, objective: str) -> None:
    settings = bank.settings(
        **{"data.batches.size": 65, "data.batches.objective": objective, "data.batches.ratio": 1.5, "model.hidden": 8}
    )
    together(settings, tmp_path / "two")
    check_same_run(tmp_path / "two", fit(settings, tmp_path / "one"))


@pytest.mark.slow
def test_two_processes_without_a_learner(bank: Bank, tmp_path: Path) -> None:
    together({**bank.settings(), "method": "online_ds"}, tmp_path)
    assert rounds(tmp_path)["annotations"].tolist() == [0, 20, 40]


@pytest.mark.slow
def test_two_processes_end_with_one_certificate(bank: Bank, tmp_path: Path) -> None:
    """Rank 0 audits, and both stop by what it found."""
    audited = {"annotation.threshold": 0.2, "annotation.stopping.target_error": 0.1, "annotation.stopping.auditor": "eve"}
    parallel = {"trainer.devices": 2, "trainer.strategy": "ddp", "annotation.output_dir": tmp_path, "trainer.max_epochs": 8}
    result = run("fit", *arguments({**bank.settings(**audited), **parallel}), OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Stopped: the finished labels are certified: at most 10% wrong") == 1
    audits = questions(tmp_path).query("kind == 'audit'")
    assert len(audits) > 0
    assert not audits["item"].duplicated().any()


def files(folder: Path) -> set[str]:
    """All files below a run, by name."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
