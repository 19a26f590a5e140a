"""Workers who answer on the labelling page while the run goes on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.worker_names import worker_names
from lightning_annot.types import AnnotError, Answer, Finding, Question, Task
from lightning_annot.workers.base import Workers
from lightning_annot.workers.waiting import Waiting


class LiveWorkers(Workers):
    """People on the page that ``lightning-annot serve DIR`` shows; page and run are two processes on one log.

    The page reads open questions from the log and commits answers to it, so nothing is handed over here. A round waits until
    it is full enough. A late answer counts all the same, once, as one of the round that asked.

    Args:
        until: ``all``, or the share of a round's answers to wait for, such as 0.8; what is open then stays open, and the next
            round asks so much less.
        minutes: the most that a round waits, if at least one answer is there; null: for ever. A pause of all does not count.
        poll_seconds: how often the log is read while a round waits.
        workers: names to address questions to; without them questions go to anyone who was invited.
    """

    shows_examples = True

    def __init__(
        self,
        until: str | float = "all",
        minutes: float | None = None,
        poll_seconds: float = 2.0,
        workers: Sequence[str] | None = None,
    ) -> None:
        self._waiting = Waiting(until, minutes, poll_seconds)
        self._workers = worker_names(workers or ())

    def check(self, task: Task) -> Finding:
        """See whether the page can be served from here."""
        del task
        missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
        told = (
            f"the page needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed here: "
            "pip install 'lightning-annot[serve]', or serve it from another machine",
        )
        people = f"{len(self._workers)} people by name" if self._workers else "anyone who is invited"
        return Finding(f"questions to {people}, on the page of lightning-annot serve", told if missing else ())

    def bind(self, task: Task) -> None:
        """Open the desk where people are invited."""
        if task.log_url is None:
            raise AnnotError("live workers answer through the annotation log, and the task names none; set Task.log_url.")
        self._items = task.items
        shared = () if task.log_url.startswith("sqlite") else ("--url", task.log_url)
        self._page = shlex.join(["lightning-annot", "serve", task.output_dir, *shared, "--invite", "NAME"])
        self._desk = Desk(AnnotationLog(task.log_url))
        self._aside: dict[str, str] | None = None  # what the desk has of an earlier process is not known

    def names(self) -> Sequence[str]:
        """The workers given; empty when questions go to anyone."""
        return list(self._workers)

    def directions(self) -> Sequence[str]:
        """The command that shows the page."""
        return (f"People answer on the page: {self._page}",)

    def capacity(self) -> Tensor | None:
        """As many answers an item as there are people, if none are named: a second opinion needs a second person.

        A link that nobody has used does not count. People who left, or were set aside, count for the items they answered.
        """
        if self._workers:
            return None
        able, others = self._desk.answerers(self._items)
        return torch.from_numpy(others + able).clamp(min=1)

    def set_aside(self, reasons: Mapping[str, str]) -> None:
        """The page lends them nothing more, and shows them why; it gives their questions to others."""
        if reasons != self._aside:
            self._desk.set_aside(reasons)
            self._aside = dict(reasons)

    def submit(self, questions: Sequence[Question]) -> None:
        """Nothing: the page reads them from the log."""

    def collect(self) -> Sequence[Answer]:
        """Nothing: the page commits answers to the log."""
        return ()

    def patience(self, arrived: int, asked: int, seconds: float) -> float:
        """Wait until the share of the answers is there, or until the minutes are over and any is.

        What nobody who was invited can answer is not waited for.
        """
        asked -= self._desk.stuck() if arrived < asked else 0
        return self._waiting.patience(arrived, asked, seconds, paused=self._desk.paused() is not None)
