"""A confusion study hands each worker all questions at once, when the worker first comes."""

from __future__ import annotations

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.page_task import Study
from lightning_annot.types import Question


class HandOut:
    """Asks newcomers; questions are gold ones, by name. Several pages over one log ask nobody twice."""

    def __init__(self, log: AnnotationLog) -> None:
        self._log = log
        self._known: set[str] = set()

    def to(self, worker: str, study: Study) -> None:
        """Commit the questions of ``worker``, unless they are there."""
        if worker not in self._known:
            self._log.ask_newcomer(worker, [Question(item, worker, "gold") for item in study.items_for(worker)])
            self._known.add(worker)
