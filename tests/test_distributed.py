"""Two processes over gloo on the CPU do what one does, and only the first writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import Bank, answers, arguments, fit, questions, rounds, run


def test_two_processes_are_one_run(bank: Bank, tmp_path: Path) -> None:
    settings = bank.settings(**{"data.batches.steps": 40})  # fewer are rough, and each way in its own manner
    two, one = tmp_path / "two", tmp_path / "one"
    parallel = {"trainer.devices": 2, "trainer.strategy": "ddp", "annotation.output_dir": two}
    result = run("fit", *arguments({**settings, **parallel}), OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    assert "MEMBER: 2/2" in result.stderr
    assert result.stdout.count("Stopped: the last allowed round is done") == 1

    fit(settings, one)
    ours, theirs = rounds(two), rounds(one)
    assert ours[["round", "annotations"]].equals(theirs[["round", "annotations"]])
    assert abs(ours["accuracy"].iloc[-1] - theirs["accuracy"].iloc[-1]) < 0.05
    asked, given = questions(two), answers(two)
    assert len(asked) == len(given) == ours["annotations"].iloc[-1]
    assert not asked.duplicated(["item", "worker"]).any()
    alone = questions(one)
    first, same = (set(table["item"][table["round"] == 0]) for table in (asked, alone))
    assert len(first & same) >= 15  # of 20: sums of gradients are rounded otherwise, and that is all
    assert files(two) == files(one)


@pytest.mark.slow
def test_two_processes_without_a_learner(bank: Bank, tmp_path: Path) -> None:
    settings = {**bank.settings(), "trainer.devices": 2, "trainer.strategy": "ddp", "annotation.output_dir": tmp_path}
    result = run("fit", "--method", "online_ds", *arguments(settings), OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
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
