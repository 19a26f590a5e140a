"""Runs and workers on a real Label Studio server, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli_runs import QUIET, ROOT, answers, arguments
from label_studio_server import TOKEN, Opinion, Person, Server, command
from waiting import meanwhile, wait_for

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.types import Answer, Question, Task
from lightning_annot.workers.label_studio import GROUND_TRUTH, LabelStudioWorkers

needs_label_studio = [
    pytest.mark.label_studio,
    pytest.mark.skipif(
        command() is None, reason="no label-studio command: set LABEL_STUDIO to its path (pip install label-studio)"
    ),
]

IMAGES = "/data/local-files/?d=files/{item}.png"
ITEMS, CLASSES = ["a", "b", "c"], ["cat", "dog&<cow>"]

Said = dict[tuple[int, str], tuple[str | None, float, str]]
"""Label, seconds and source by question and worker."""


def on_server(server: Server, title: str, **more: Any) -> dict[str, Any]:
    """Settings of a run of three rounds whose people answer in the project ``title``; ``more`` are those of the workers."""
    prefix = "annotation.workers"
    more = {"url": server.url, "project": title, **more}
    return {
        **QUIET,
        "trainer.max_epochs": 3,
        "annotation.threshold": 1e-9,
        prefix: "lightning_annot.workers.label_studio.LabelStudioWorkers",
        **{f"{prefix}.{name}": value for name, value in more.items()},
    }


def start_fit(run: Path, settings: dict[str, Any], *more: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    words = [sys.executable, "-m", "lightning_annot", "fit", *more, *arguments({**settings, "annotation.output_dir": run})]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed; it must have succeeded."""
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert TOKEN not in said
    return said


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, which must still have found it alive."""
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def await_run(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until ``what`` gives something true, as long as the command runs; else tell what it said."""
    try:
        wait_for(what, lambda: process.poll() is None)
    except AssertionError:
        process.kill()
        print(process.communicate()[0])
        raise


@contextmanager
def at_work(project: int, opinion: Opinion, *people: Person) -> Iterator[None]:
    """All of them answer meanwhile what is in the tabs of their own."""

    def work(person: Person, stop: threading.Event) -> None:
        while not stop.is_set():
            if not person.work(project, opinion, 1, by_tab=True):
                time.sleep(0.2)

    with meanwhile(*(partial(work, person) for person in people)):
        yield


def fresh(person: Person) -> Person:
    """The same account, with nothing said yet."""
    return Person(person.url, person.email, person.token)


def logged(run: Path) -> Said:
    """What is in a run's log, without the stars."""
    table = answers(run)
    return {
        (row.question, row.worker): (row.label, row.seconds, row.source) for row in table.itertuples() if row.source != "expert"
    }


def said_by(*people: Person) -> Said:
    """What they have said."""
    return {(q, p.email): (label, seconds, "label-studio") for p in people for q, (label, seconds) in p.given.items()}


class Bench:
    """Workers over three items, whose log is here; a new instance is like a new process."""

    def __init__(self, log: AnnotationLog, url: str, title: str, **settings: Any) -> None:
        self.log = log
        self.workers = LabelStudioWorkers(url, title, images=IMAGES, **settings)
        folder = str(Path(log.url.removeprefix("sqlite:///")).parent)
        self.workers.bind(Task(ITEMS, CLASSES, 0, folder, log_url=log.url, names=["a cat", "<b>$dog</b>"]))
        known = log.answers()
        self.workers.remember(zip(known["item"], known["worker"], strict=True), {*known["worker"]} - {GROUND_TRUTH})

    def step(self) -> list[Answer]:
        """What the ledger does while a round waits."""
        waiting = self.log.questions(open_only=True)
        self.workers.submit([Question(q.item, q.worker, round=q.round, id=q.id) for q in waiting.itertuples()])
        given = list(self.workers.collect())
        assert self.log.answer(given) == len(given)
        return given


def ask(log: AnnotationLog, *items: str) -> None:
    """A question for anyone about each item."""
    log.ask([Question(item, None) for item in items])
