"""Runs that are killed at random moments, and a comparison with the same run undisturbed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.annotations.formats import write_table
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import has_log
from lightning_annot.files import replacing
from lightning_annot.types import AnnotError

ITEMS, CLASSES, WIDTH = 300, 4, 16
PER_ROUND = 10
EARLY, WRITING = 0.2, 0.5  # shares of the kills in the time until a start's first checkpoint, and once one is being written
_DRAFT = ".last.ckpt."
_SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Small:
    """A run of few items and steps whose checkpoint is large: it holds a hidden layer, and Adam's moments of it.

    Args:
        folder: Where the bank and all runs go.
        seed: Of the data, the run and the kills.
        rounds: Of the whole run.
        hidden: Units of the hidden layer; a checkpoint holds about 2 KiB for each.
    """

    folder: Path
    seed: int
    rounds: int
    hidden: int

    def write_bank(self) -> None:
        """Items around one centre a class."""
        rng = np.random.default_rng(self.seed)
        truth = np.arange(ITEMS) % CLASSES
        centres = rng.normal(scale=1.2, size=(CLASSES, WIDTH))
        features = (centres[truth] + rng.normal(size=(ITEMS, WIDTH))).astype(np.float32)
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / "features.npy") as draft:
            np.save(draft, features)
        labels = pd.DataFrame({"task": [f"item{i:03d}" for i in range(ITEMS)], "label": np.array(list("abcd"))[truth]})
        write_table(self.folder / "labels.csv", labels)

    def command(self, output: Path) -> list[str]:
        """The one command that starts the run and goes on with it."""
        settings = {
            "seed_everything": self.seed,
            "trainer.accelerator": "cpu",
            "trainer.enable_progress_bar": "false",
            "trainer.max_epochs": self.rounds,
            "data.features": self.folder / "features.npy",
            "data.labels": self.folder / "labels.csv",
            "data.prototypes_per_class": 3,
            "data.batches.size": 64,
            "data.batches.steps": 2,
            "model.hidden": self.hidden,
            "annotation.sampling.per_round": PER_ROUND,
            "annotation.threshold": 1e-9,
            "annotation.output_dir": output,
        }
        return ["fit", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


@dataclass(frozen=True)
class Pace:
    """Seconds from the start of a run to its first checkpoint, of a round after that, and of the whole run."""

    first: float
    round: float
    whole: float


@dataclass
class Toll:
    """What a run that was killed again and again came to.

    Args:
        hits: Kills that met a living run.
        in_checkpoint: Those of them that met it while it wrote a checkpoint.
        in_file: Those that met it while it wrote another file.
        damaged: Checkpoints that were found damaged after a kill.
        lost: Answers that were in the log and then were not.
        twice: Questions and answers about one item and worker beyond the first.
        refused: Starts that failed.
        checkpoint_bytes: Size of the last checkpoint.
        equal: Whether labels, questions and answers are those of the undisturbed run.
    """

    hits: int = 0
    in_checkpoint: int = 0
    in_file: int = 0
    damaged: int = 0
    lost: int = 0
    twice: int = 0
    refused: int = 0
    checkpoint_bytes: int = 0
    equal: bool = False

    @property
    def survived(self) -> bool:
        """Whether the same command went on every time, and nothing is different from an undisturbed run."""
        return self.equal and not (self.damaged or self.lost or self.twice or self.refused)


def undisturbed(run: Small, output: Path) -> Pace:
    """Let the run go to its end; AnnotError if it fails."""
    warm_up = _process(int)
    warm_up.join()
    begun = time.monotonic()
    process, moments, seen = _start(run, output), [], None
    while process.is_alive():
        if (now := _version(output)) != seen:
            seen = now
            moments.append(time.monotonic())
        time.sleep(0.001)
    if process.exitcode != 0 or len(moments) < 2:
        raise AnnotError(f"the undisturbed run failed: {_log(output).read_text()[-2000:]}")
    a_round = (moments[-1] - moments[0]) / (len(moments) - 1)
    return Pace(moments[0] - begun, a_round, time.monotonic() - begun)


def disturbed(run: Small, output: Path, expected: Path, pace: Pace, kills: int) -> Toll:
    """Start the run, and kill it, until ``kills`` have met it alive; then let it go to its end and compare with ``expected``.

    It gets to its end earlier if kills are so rare that the run is over.
    """
    from lightning_annot.checkpoints import TRAINING, fault

    toll, rng = Toll(), random.Random(run.seed)
    committed = _answers(output)
    while toll.hits < kills:
        process = _start(run, output)
        _wait(process, output, rng, pace)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            toll.refused += process.exitcode != 0
            break
        toll.hits += 1
        drafts = [path.name for path in output.rglob(".*.tmp*")] if output.is_dir() else []
        toll.in_checkpoint += any(name.startswith(_DRAFT) for name in drafts)
        toll.in_file += any(not name.startswith(_DRAFT) for name in drafts)
        last = _last(output)
        toll.damaged += last.is_file() and fault(last, TRAINING) is not None
        committed, before = _answers(output), committed
        toll.lost += _lost(before, committed)
    process = _start(run, output)
    process.join()
    toll.refused += process.exitcode != 0
    toll.lost += _lost(committed, _answers(output))
    toll.checkpoint_bytes = _last(output).stat().st_size if _last(output).is_file() else 0
    return _compared(toll, output, expected)


def _compared(toll: Toll, output: Path, expected: Path) -> Toll:
    """``toll`` with what is different from the undisturbed run."""
    toll.twice = _pairs_twice(output)
    same_labels = (output / "labels.csv").read_bytes() == (expected / "labels.csv").read_bytes()
    same_log = _answers(output) == _answers(expected) and _questions(output) == _questions(expected)
    toll.equal = same_labels and same_log
    return toll


def _wait(process: BaseProcess, output: Path, rng: random.Random, pace: Pace) -> None:
    """Wait for a random moment of the run's life, or for its end."""
    kind, before = rng.random(), _version(output)
    longest = pace.first if kind < EARLY else 1.5 * pace.round
    if kind >= EARLY:
        while process.is_alive() and _version(output) == before:
            time.sleep(0.001)
    if kind > 1.0 - WRITING:
        longest = 0.02 * pace.round
        while process.is_alive() and not any(name.startswith(_DRAFT) for name in os.listdir(_last(output).parent)):
            time.sleep(0.001)
    process.join(rng.uniform(0.0, longest))


def _start(run: Small, output: Path) -> BaseProcess:
    """The command in a process of its own."""
    return _process(_run, run.command(output), _log(output))


def _process(target: Callable[..., object], *args: object) -> BaseProcess:
    """A process that a server forks which has the imports done."""
    _SERVER.set_forkserver_preload(["lightning_annot.cli", "lightning_annot.report.plots", "lightning_annot.experiments.kills"])
    process = _SERVER.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def _run(words: list[str], log: Path) -> None:
    import torch

    from lightning_annot.__main__ import main

    torch.set_num_threads(1)
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.exit(main(words))


def _log(output: Path) -> Path:
    return output.with_name(f"{output.name}.txt")


def _last(output: Path) -> Path:
    return output / "checkpoints" / "last.ckpt"


def _version(output: Path) -> tuple[int, int] | None:
    """What changes whenever the checkpoint is replaced."""
    try:
        status = os.stat(_last(output))
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _lost(before: list[str], now: list[str]) -> int:
    """Answers of ``before`` that are not at their place in ``now``."""
    return len(before) - sum(old == new for old, new in zip(before, now, strict=False))


def _answers(output: Path) -> list[str]:
    """Committed answers in order, without times."""
    if not has_log(output / "annotations.db"):
        return []
    with AnnotationLog(output / "annotations.db", create=False) as log:
        return _lines(log.answers().drop(columns="answered_at"))


def _questions(output: Path) -> list[str]:
    """Committed questions in order, without times."""
    with AnnotationLog(output / "annotations.db") as log:
        return _lines(log.questions().drop(columns="asked_at"))


def _pairs_twice(output: Path) -> int:
    """Questions and answers about one item and worker beyond the first."""
    with AnnotationLog(output / "annotations.db") as log:
        return sum(int(part.duplicated(["item", "worker"]).sum()) for part in (log.questions(), log.answers()))


def _lines(table: pd.DataFrame) -> list[str]:
    return str(table.to_csv(index=False)).splitlines()[1:]
