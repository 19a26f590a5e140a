"""Workers who answer on the labelling page while the run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.types import AnnotError, Answer, Question, Task
from lightning_annot.workers.base import Workers


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
        self._share = 1.0 if until == "all" else _number(until)
        if not 0 < self._share <= 1:
            raise AnnotError(f"workers.until {until} given; it must be 'all', or a share above 0 and up to 1, such as 0.8.")
        if minutes is not None and not minutes >= 0:
            raise AnnotError(f"workers.minutes {minutes} given; it must be 0 or more, or null to wait for ever.")
        if not poll_seconds > 0:
            raise AnnotError(f"workers.poll_seconds {poll_seconds} given; it must be above 0.")
        self._minutes, self._poll = minutes, poll_seconds
        self._workers = list(workers or ())
        odd = [name for name in self._workers if not name or name != name.strip()]
        if odd or len(set(self._workers)) < len(self._workers):
            raise AnnotError(f"workers are {self._workers}; give names that differ, without spaces around them")
        self._people: set[str] = set()
        self._paused_for = self._looked_at = 0.0

    def bind(self, task: Task) -> None:
        """Open the desk where people are invited."""
        if task.log_url is None:
            raise AnnotError("live workers answer through the annotation log, and the task names none; set Task.log_url.")
        self._items = len(task.items)
        self._desk = Desk(AnnotationLog(task.log_url))
        self._aside: dict[str, str] | None = None  # what the desk has of an earlier process is not known

    def remember(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Who has answered so far."""
        self._people = {worker for _, worker in pairs}

    def names(self) -> Sequence[str]:
        """The workers given; empty when questions go to anyone."""
        return list(self._workers)

    def capacity(self) -> Tensor | None:
        """As many answers an item as there are people, if none are named: a second opinion needs a second person."""
        if self._workers:
            return None
        invited = {person.worker for person in self._desk.people() if not person.revoked}
        return torch.full((self._items,), max(1, len(invited | self._people)), dtype=torch.int64)

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
        """Wait until the share of the answers is there, or until the minutes are over and any is."""
        if seconds < self._looked_at:  # another round's wait has begun
            self._paused_for = self._looked_at = 0.0
        if self._desk.paused() is not None:
            self._paused_for += seconds - self._looked_at
        self._looked_at = seconds
        full = arrived >= self._share * asked and (arrived > 0 or not asked)
        over = self._minutes is not None and arrived > 0 and seconds - self._paused_for >= 60 * self._minutes
        return 0.0 if full or over else self._poll


def _number(value: str | float) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise AnnotError(f"workers.until {value!r} given; it must be 'all', or a share such as 0.8.") from error
