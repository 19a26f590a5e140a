"""Check a run's folder, log and worker files before features are extracted; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_annot.annotations.formats import read_answers
from lightning_annot.annotations.peeking import another_run, peek_identity
from lightning_annot.annotations.schema import STUDY
from lightning_annot.callbacks.older_log import refuse_older_than_rounds
from lightning_annot.callbacks.opening import SIMULATED_FILE, check_gold, run_task
from lightning_annot.callbacks.run_folder import load_cost
from lightning_annot.data.items import ItemTable
from lightning_annot.data.loading import Loaded
from lightning_annot.types import AnnotError, Finding
from lightning_annot.workers.base import Workers

Check = Callable[[], "Finding | None"]


@dataclass(frozen=True)
class Opening:
    """What ``open_ledger`` will read and claim.

    Args:
        log: Path or URL of the annotation log.
        folder: Of the run.
        answers: CSV of answers that are known already, or None.
        cost: CSV of the cost matrix, or None.
        oracle: File of true confusions, relative to the folder, or None.
        gold: Settings that ask gold questions.
        auditor: Who audits finished labels while the run goes on, or None.
    """

    log: str | Path
    folder: Path
    workers: Workers
    answers: str | None
    cost: str | None
    oracle: str | None
    gold: Mapping[str, float]
    auditor: str | None = None

    def checks(self, table: ItemTable, listed: Loaded, seed: int, may_shrink: bool) -> Mapping[str, Check]:
        """The checks by what they are about, in order; each raises AnnotError, or says what it found, None: nothing to tell.

        Args:
            table: Items, unreadable images among them.
            listed: Their images.
            seed: Of the run.
            may_shrink: Whether unreadable images will be left out, so that the run's items may be fewer than these.
        """
        return {
            "run folder": lambda: self._folder(table, seed, may_shrink),
            "imported answers": lambda: self._answers(table),
            "costs": lambda: self._cost(table),
            "workers": lambda: self._workers(table, listed, seed),
        }

    def files(self) -> None:
        """Raise AnnotError for a file that is not there, before the items are known."""
        for key, path in (("import_answers", self.answers), ("cost", self.cost)):
            if path is not None and not Path(path).is_file():
                raise AnnotError(f"annotation.{key} is {path!r}, and there is no such file; correct the path, or leave it out.")
        if self.oracle is not None:
            oracle = self.folder / self.oracle
            if oracle != self.folder / SIMULATED_FILE and not oracle.is_file():  # the run itself writes that one
                raise AnnotError(
                    f"crowd.oracle is {str(oracle)!r}, and there is no such file; correct the path, or leave it out."
                )
        refuse_study(self.log)

    def _folder(self, table: ItemTable, seed: int, may_shrink: bool) -> Finding:
        name, stored = peek_identity(self.log)
        identity = table.identity(seed)
        keys = {"seed"} if may_shrink else {*identity}  # features come later, see ``open_ledger``
        if (error := another_run(name, stored, identity, keys & {*stored})) is not None:
            raise error
        refuse_older_than_rounds(self.log, self.folder)
        return Finding(f"the run in {self.folder} goes on" if stored else f"a new run in {self.folder}")

    def _answers(self, table: ItemTable) -> Finding | None:
        if self.answers is None:
            return None
        found = read_answers(self.answers, table.classes, table.ids)
        return Finding(f"{len(found):,} answers of {found['worker'].nunique():,} people in {self.answers}")

    def _cost(self, table: ItemTable) -> Finding | None:
        if self.cost is None:
            return None
        load_cost(self.cost, len(table.classes))
        return Finding(f"the cost matrix of {self.cost} fits the classes")

    def _workers(self, table: ItemTable, listed: Loaded, seed: int) -> Finding | None:
        url = self.log if isinstance(self.log, str) else f"sqlite:///{self.log}"
        found = self.workers.check(run_task(table, listed, seed, self.folder, url))
        if found is not None:  # others need not know their names before they are bound
            check_gold(self.gold, table, named=bool(self.workers.names()))
            if self.auditor is not None:
                self.workers.trust(self.auditor)
        return found


def refuse_study(log: str | Path) -> None:
    """Raise AnnotError where the ``log``, if it is there, is a confusion study's, which no run can go on with."""
    name, stored = peek_identity(log)
    if STUDY in stored:
        raise AnnotError(
            f"{name} is the log of a confusion study; choose another annotation.output_dir for the run. What the study "
            "found is written by lightning-annot confusions."
        )
