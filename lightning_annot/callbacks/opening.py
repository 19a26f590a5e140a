"""What happens once, before the first round: the log is claimed for the run, and the workers learn what it is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_annot.annotations.formats import import_answers
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.ledger import Ledger
from lightning_annot.types import AnnotError, Task
from lightning_annot.workers.base import Workers
from lightning_annot.workers.simulated import SimulatedWorkers


def open_ledger(
    log: AnnotationLog,
    data: AnnotationDataModule,
    workers: Workers,
    folder: Path,
    answers: str | None,
    gold: Mapping[str, float],
    hold_back: bool,
) -> Ledger:
    """The ledger of a run over ``data`` whose files are in ``folder``; ``answers``: CSV of those that are known already.

    ``hold_back``: part of them waits for the first learner, see ``Ledger``.
    Raises AnnotError where the ``log`` is of other data, and where the settings ``gold`` ask gold questions that cannot be.
    """
    table, loaded = data.table, data.loaded
    assert loaded is not None
    log.claim(table.identity(data.seed))
    if answers is not None:
        import_answers(log, answers, table.classes, table.ids)
    paths = None if loaded.source is None else dict(zip(table.ids, loaded.source.paths, strict=True))
    task = Task(table.ids, table.classes, data.seed, str(folder), paths, loaded.labels)
    ledger = Ledger(log, task, workers, hold_back)
    for name, value in gold.items():
        if not workers.names():
            raise AnnotError(
                f"annotation.{name} {value:g} given, and questions go to anyone; gold questions need workers with names: name "
                "them (annotation.workers.workers), or set annotation.workers.by_worker for recorded answers."
            )
        if not bool(table.is_prototype.any()):
            raise AnnotError(
                f"annotation.{name} {value:g} given without prototypes, which gold questions are about; set it to 0."
            )
    if isinstance(workers, SimulatedWorkers):
        workers.export(folder / "simulated_workers.npz")
    return ledger
