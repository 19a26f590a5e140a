"""Runs of the real command line, for tests: in this process where that will do, in another where a process matters."""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from ports import free_port

from lightning_annot.__main__ import main
from lightning_annot.annotations.log import AnnotationLog

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared" / "data"

QUIET = {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": False}
SMALL = {
    "trainer.max_epochs": 3,
    "data.prototypes_per_class": 3,
    "data.batches.size": 64,
    "data.batches.steps": 8,
    "annotation.sampling.per_round": 20,
    "annotation.threshold": 1e-4,  # else the learner finishes most items before there are questions for three rounds
}

PIXELS = {"data.adapt": None, "data.backbone": "{name: null}"}  # configs/digits.yaml without what takes its time

Settings = Mapping[str, Any]

_SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Bank:
    """Files of a tiny bank: 300 items of 4 classes that are easy to tell apart, and three recorded answers for each."""

    features: Path
    labels: Path
    prototypes: Path
    answers: Path

    def settings(self, **more: Any) -> dict[str, Any]:
        """What a small and quiet ``fit`` over this bank, by simulated workers, needs."""
        return {**QUIET, **SMALL, "data.features": self.features, "data.labels": self.labels, **more}


@dataclass(frozen=True)
class Result:
    """Exit status and what was printed."""

    status: int
    out: str
    err: str


def arguments(settings: Settings) -> list[str]:
    """``--key value`` for each setting; None is null."""
    return [word for key, value in settings.items() for word in (f"--{key}", _text(value))]


def call(command: str, settings: Settings | None = None, *more: str) -> Result:
    """Run one command in this process."""
    out, err = io.StringIO(), io.StringIO()
    words = ["lightning-annot", command, *more, *arguments(settings or {})]
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", words):
        try:
            status = main()
        except SystemExit as stop:
            status = int(stop.code or 0)
    return Result(status, out.getvalue(), err.getvalue())


def fit(settings: Settings, output: Path, *more: str, **changed: Any) -> Path:
    """``fit`` into ``output``, which must succeed; ``changed`` has ``__`` for each dot."""
    dotted = {key.replace("__", "."): value for key, value in changed.items()}
    result = call("fit", {**settings, "annotation.output_dir": output, **dotted}, *more)
    assert result.status == 0, result.err
    return output


def check_refused(settings: Settings, *wanted: str) -> None:
    """``fit`` ends with status 2, says all of ``wanted`` and shows no traceback."""
    result = call("fit", settings)
    assert result.status == 2
    assert "Traceback" not in result.err
    assert not [text for text in wanted if text not in result.err], result.err


def start(command: str, settings: Settings, *more: str) -> BaseProcess:
    """Start one command in a process of its own, which can be killed. A server that has the imports done forks it."""
    _SERVER.set_forkserver_preload(["lightning_annot.cli", "lightning_annot.report.plots", "sklearn.kernel_approximation"])
    process = _SERVER.Process(target=_call_alone, args=(command, dict(settings), *more))
    process.start()
    atexit.register(process.kill)  # else a test that fails leaves a run that waits for people, and the tests would not end
    return process


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``lightning-annot`` as a shell would, from the project's folder."""
    command = [str(Path(sys.executable).with_name("lightning-annot")), *words]
    meeting = {"MASTER_PORT": str(free_port())}  # of several processes: Lightning's own choice may be taken meanwhile
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | meeting | environment, text=True, capture_output=True, check=False
    )


def _call_alone(command: str, settings: Settings, *more: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background ignores Ctrl-C
    torch.set_num_threads(1)
    sys.exit(call(command, settings, *more).status)


def questions(run: Path) -> pd.DataFrame:
    """The questions of a run's log, without times."""
    with AnnotationLog(run / "annotations.db") as log:
        return log.questions().drop(columns="asked_at")


def answers(run: Path) -> pd.DataFrame:
    """The answers in a run's log, without times."""
    with AnnotationLog(run / "annotations.db") as log:
        return log.answers().drop(columns="answered_at")


def rounds(run: Path) -> pd.DataFrame:
    """``rounds.csv`` less the seconds."""
    frame = pd.read_csv(run / "rounds.csv")
    return frame.drop(columns=[name for name in frame if name.startswith("seconds_")])


def checkpoint(run: Path) -> dict[str, Any]:
    """The last checkpoint of a run."""
    state: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return state


def assert_equal_runs(run: Path, other: Path) -> None:
    """Same log, rounds, labels, workers, confusions and weights, to the last bit; times apart."""
    pd.testing.assert_frame_equal(questions(run), questions(other))
    pd.testing.assert_frame_equal(answers(run), answers(other))
    pd.testing.assert_frame_equal(rounds(run), rounds(other), check_exact=True)
    for name in ("labels.csv", "workers.csv"):
        assert (run / name).read_text() == (other / name).read_text(), name
    with np.load(run / "confusions.npz") as ours, np.load(other / "confusions.npz") as theirs:
        assert ours.files == theirs.files
        for name in ours.files:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert_equal_weights(run, other)


def assert_equal_weights(run: Path, other: Path) -> None:
    """The learners of both last checkpoints are the same, to the last bit."""
    ours, theirs = checkpoint(run)["state_dict"], checkpoint(other)["state_dict"]
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
