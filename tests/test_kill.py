"""``kill -9`` at any moment: every committed answer stays, nothing is asked twice, and the run ends as if undisturbed."""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
from cli_runs import Bank, answers, assert_equal_runs, fit, questions, start

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
    undisturbed, run = fit(settings, tmp_path / "undisturbed"), tmp_path / "run"
    assert len(answers(undisturbed)) == 170
    rng, one_round = random.Random(5), seconds_a_round(undisturbed)
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
    assert 0 < len(committed) < len(answers(undisturbed))

    fit(settings, run, "--ckpt_path=last")
    final, asked = answers(run), questions(run)
    pd.testing.assert_frame_equal(final[: len(committed)], committed)
    assert not asked.duplicated(["item", "worker"]).any()
    assert not final.duplicated(["item", "worker"]).any()
    assert_equal_runs(run, undisturbed)
