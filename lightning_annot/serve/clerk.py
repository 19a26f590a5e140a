"""One hand for all writes of a page: what comes in at once is committed at once.

A commit waits for the disk. Fifty people who answer in the same moment share one such wait instead of queueing for fifty.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from lightning_annot.annotations.desk import Desk, Loan
from lightning_annot.types import Answer

_MOST = 200  # jobs in one commit


@dataclass(frozen=True)
class _Job:
    """An answer to commit, or a wish (worker, n) for questions; ``done`` gets the outcome."""

    what: Answer | tuple[str, int]
    done: asyncio.Future[Any]


class Clerk:
    """Writes to a desk from an event loop; ``work`` must run as a task of that loop."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()

    async def take(self, answer: Answer) -> bool | None:
        """``Desk.take`` of one answer; it is on disk when this returns."""
        outcome: bool | None = await self._ask(answer)
        return outcome

    async def lend(self, worker: str, n: int) -> Loan:
        """``Desk.lend`` for one worker."""
        outcome: Loan = await self._ask((worker, n))
        return outcome

    async def work(self) -> None:
        """Commit what comes, for ever."""
        while True:
            jobs = [await self._jobs.get()]
            while len(jobs) < _MOST and not self._jobs.empty():
                jobs.append(self._jobs.get_nowait())
            jobs.sort(key=lambda job: not isinstance(job.what, Answer))  # who asks for more has answered before
            try:
                outcomes = await asyncio.to_thread(self._write, [job.what for job in jobs])
            except Exception as error:  # whoever waits must hear of it, and tries again
                for job in jobs:
                    if not job.done.done():
                        job.done.set_exception(error)
                continue
            for job, outcome in zip(jobs, outcomes, strict=True):
                if not job.done.done():  # somebody who left meanwhile does not wait any more
                    job.done.set_result(outcome)

    def _write(self, what: list[Answer | tuple[str, int]]) -> list[Any]:
        answers = [entry for entry in what if isinstance(entry, Answer)]
        wishes = [entry for entry in what if not isinstance(entry, Answer)]
        outcomes, loans = self._desk.deal(answers, wishes)
        return [*outcomes, *loans]

    async def _ask(self, what: Answer | tuple[str, int]) -> Any:
        job = _Job(what, asyncio.get_running_loop().create_future())
        self._jobs.put_nowait(job)
        return await job.done
