"""A run that waits or is stopped says where people answer and which command goes on."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cli_runs import Bank, Result, arguments, call

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.commandline.options import typed

FILES = {"annotation.workers": "lightning_annot.workers.files.FileWorkers"}
LIVE = {"annotation.workers": "lightning_annot.workers.live.LiveWorkers", "annotation.workers.poll_seconds": 0.05}


@contextmanager
def ctrl_c(when: Callable[[], bool]) -> Iterator[None]:
    """Send SIGINT to this process once ``when()`` is true."""
    before, over = signal.getsignal(signal.SIGINT), threading.Event()

    def work() -> None:
        while not when() and not over.is_set():
            time.sleep(0.05)
        time.sleep(0.3)
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored


def said(result: Result, settings: dict[str, object]) -> list[str]:
    """The lines of ``result``, the last of which is the command."""
    lines = result.out.splitlines()
    assert "Traceback" not in result.err
    command = shlex.join(["lightning-annot", "fit", *arguments(settings)])
    assert lines[-1] == f"Then repeat:     {command}"
    return lines


def test_a_run_that_waits_for_files_names_them(bank: Bank, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    settings = bank.settings(**FILES) | {"annotation.output_dir": run}
    result = call("fit", settings)
    assert result.status == 0, result.err
    lines = said(result, settings)
    assert "Stopped: waiting for the answers to 20 questions" in lines
    assert lines[-3:-1] == [
        f"Questions are in {run / 'questions.csv'}",
        f"Answers go to    {run / 'answers.csv'}, with the columns task,worker,label",
    ]


def test_ctrl_c_while_people_are_waited_for_names_the_page(bank: Bank, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    settings = bank.settings(**LIVE) | {"annotation.output_dir": run}
    with ctrl_c(lambda: asked(run) > 0):
        result = call("fit", settings)
    assert result.status == 0, result.err
    assert said(result, settings)[-2] == f"People answer on the page: lightning-annot serve '{run}' --invite NAME"


def test_ctrl_c_while_it_trains_says_the_same(bank: Bank, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = bank.settings(**FILES) | {"annotation.output_dir": run, "data.batches.steps": 1_000_000}
    with ctrl_c((run / "annotations.db").is_file):
        result = call("fit", settings)
    assert result.status == 130
    assert said(result, settings)[-2].startswith(f"Answers go to    {run / 'answers.csv'}")


def asked(run: Path) -> int:
    """Questions in the run's log."""
    if not (run / "annotations.db").is_file():
        return 0
    with AnnotationLog(run / "annotations.db") as log:
        return len(log.questions())


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/opt/venv/bin/lightning-annot", "fit", "--data.classes", "[a,b]"], "lightning-annot fit --data.classes '[a,b]'"),
        (["/x/lightning_annot/__main__.py", "fit", "--x", "a b"], "python -m lightning_annot fit --x 'a b'"),
        (["scripts/run.py", "--seed=1"], "python scripts/run.py --seed=1"),
    ],
)
def test_the_command_is_what_was_typed(argv: list[str], command: str) -> None:
    assert typed(argv) == command
    assert shlex.split(command)[-1] == argv[-1]


def test_ctrl_c_before_a_run_begins_ends_without_a_traceback(tmp_path: Path) -> None:
    fifo = tmp_path / "answers.csv"
    os.mkfifo(fifo)  # a reader of it waits
    with ctrl_c(lambda: True):
        result = call("import", None, str(tmp_path), str(fifo), "--format", "crowd-kit")
    assert result.status == 130
    command = shlex.join(["lightning-annot", "import", str(tmp_path), str(fifo), "--format", "crowd-kit"])
    assert result.err == f"lightning-annot: interrupted; the same command goes on: {command}\n"
