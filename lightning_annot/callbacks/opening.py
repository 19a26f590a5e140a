"""What happens once, before the first round: the log is claimed for the run, and the workers learn what it is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_annot.annotations.formats import import_answers
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.loading import DIGITS
from lightning_annot.data.page_task import TASK_FILE, ImageSettings, PageTask, whole_path
from lightning_annot.ledger import Ledger
from lightning_annot.report.atomic import write_text
from lightning_annot.types import AnnotError, Task
from lightning_annot.workers.base import Workers
from lightning_annot.workers.live import LiveWorkers
from lightning_annot.workers.simulated import SimulatedWorkers

MOST_EXAMPLES = 6  # of a class


def page_task(data: AnnotationDataModule, gold: bool) -> PageTask:
    """What the labelling page must know of the run over ``data``.

    With ``gold`` questions, which are about prototypes, the first prototype of each class that has two or more is its only
    example; it is never asked about.
    """
    table, loaded = data.table, data.loaded
    assert loaded is not None
    source = None
    if loaded.source is not None:
        numbered = loaded.n_listed if data.features is not None and data.labels is None and data.items is None else None
        labels, items = (None if path is None else whole_path(path) for path in (data.labels, data.items))
        source = ImageSettings(whole_path(data.root or DIGITS), labels, items, data.id_pattern, numbered)
    examples: dict[str, list[str]] = {name: [] for name in table.classes}
    for row in table.is_prototype.nonzero()[:, 0].tolist():
        examples[table.classes[int(table.prototype[row])]].append(table.ids[row])
    shown = {name: tuple(ids[: (len(ids) > 1) if gold else MOST_EXAMPLES]) for name, ids in examples.items()}
    return PageTask(table.classes, table.names, shown, source)


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
    task = Task(table.ids, table.classes, data.seed, str(folder), paths, loaded.labels, log.url)
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
    if isinstance(workers, LiveWorkers):
        write_text(folder / TASK_FILE, page_task(data, gold=bool(gold)).to_json())
    if isinstance(workers, SimulatedWorkers):
        workers.export(folder / "simulated_workers.npz")
    return ledger
