"""``kill -9`` at any moment: every committed answer stays, nothing is asked twice, and the run ends as if undisturbed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from cli_runs import Bank, answers, assert_equal_runs, fit, questions, start

from lightning_annot.checkpoints import TRAINING, fault
from lightning_annot.experiments.kills import Small, disturbed, undisturbed

KILLS = 6


def counts(run: Path) -> tuple[int, int]:
    """How many questions and answers are committed, read from outside while the run writes."""
    if not (run / "annotations.db").is_file():
        return 0, 0
    with closing(sqlite3.connect(run / "annotations.db", timeout=30)) as log:
        tables = {name for (name,) in log.execute("SELECT name FROM sqlite_master")}
        if not {"question", "answer"} <= tables:
            return 0, 0
        (asked,), (answered,) = (log.execute(f"SELECT count(*) FROM {name}").fetchone() for name in ("question", "answer"))
    return asked, answered


def kill_when_it_moves(process: BaseProcess, run: Path, which: int, pause: float) -> bool:
    """SIGKILL ``pause`` seconds after the count of questions (0) or answers (1) has grown; whether it was still alive.

    It comes earlier if the count grows once more: on a machine that is quicker than it was, a run may not get away.
    """
    before = now = counts(run)[which]
    while process.is_alive() and now == before:
        time.sleep(0.0005)
        now = counts(run)[which]
    end = time.monotonic() + pause
    while process.is_alive() and time.monotonic() < end and counts(run)[which] == now:
        time.sleep(0.0005)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def kill_when_a_checkpoint_is_written(process: BaseProcess, run: Path) -> bool:
    """SIGKILL as soon as anything changes among the checkpoints; whether it was still alive."""
    folder = run / "checkpoints"
    before = now = sizes(folder)
    while process.is_alive() and now == before:
        now = sizes(folder)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of ``folder``."""
    found = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            found[path.name] = path.stat().st_size
    return found


def seconds_a_round(run: Path) -> float:
    """Mean time of a round after the first, so that kills fall anywhere in a round on any machine."""
    table = pd.read_csv(run / "rounds.csv")[1:]
    return float(table[[name for name in table if name.startswith("seconds_")]].sum(axis=1).mean())


def test_killed_again_and_again(bank: Bank, tmp_path: Path) -> None:
    settings = bank.settings(
        **{
            "trainer.max_epochs": 18,
            "data.batches.steps": 40,
            "annotation.sampling.per_round": 10,
            "annotation.threshold": 1e-9,
        }
    )
    whole, run = fit(settings, tmp_path / "whole"), tmp_path / "run"
    assert len(answers(whole)) == 170
    rng, one_round = random.Random(5), seconds_a_round(whole)
    committed, hits = None, 0
    for kill in range(KILLS):
        process = start("fit", settings | {"annotation.output_dir": run}, "--ckpt_path=last")
        # The first two die at once: with questions that nobody has answered yet, and with answers that nobody has used yet.
        hits += kill_when_it_moves(process, run, kill % 2, rng.uniform(0.0, one_round) if kill > 1 else 0.0)
        now = answers(run)
        if committed is not None:
            pd.testing.assert_frame_equal(now[: len(committed)], committed)
        committed = now
    assert committed is not None
    assert hits == KILLS
    assert 0 < len(committed) < len(answers(whole))

    fit(settings, run, "--ckpt_path=last")
    final, asked = answers(run), questions(run)
    pd.testing.assert_frame_equal(final[: len(committed)], committed)
    assert not asked.duplicated(["item", "worker"]).any()
    assert not final.duplicated(["item", "worker"]).any()
    assert_equal_runs(run, whole)


@pytest.fixture
def other_file_system() -> Iterator[Path]:
    """A folder that is not on the file system of temporary files, where there is such a one."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def test_killed_while_a_large_checkpoint_is_written(bank: Bank, other_file_system: Path) -> None:
    settings = bank.settings(**{"trainer.max_epochs": 2, "data.batches.steps": 2, "model.hidden": 2048})
    whole, run = fit(settings, other_file_system / "whole"), other_file_system / "run"
    fit(settings, run, trainer__max_epochs=1)
    assert kill_when_a_checkpoint_is_written(start("fit", settings | {"annotation.output_dir": run}), run)
    assert fault(run / "checkpoints" / "last.ckpt", TRAINING) is None
    fit(settings, run)
    assert os.listdir(run / "checkpoints") == ["last.ckpt"]
    assert_equal_runs(run, whole)


@pytest.mark.slow
def test_killed_at_random_moments(other_file_system: Path) -> None:
    """What ``scripts/kill_runs.py`` does 200 times."""
    run = Small(other_file_system, seed=3, rounds=20, hidden=2048)
    run.write_bank()
    pace = undisturbed(run, other_file_system / "undisturbed")
    toll = disturbed(run, other_file_system / "killed", other_file_system / "undisturbed", pace, kills=8)
    assert toll.hits
    assert toll.survived, toll
