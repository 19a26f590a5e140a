"""What happens once, before the first round: the log is claimed for the run, and the workers learn what it is about."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from lightning_annot.annotations.formats import import_answers
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import has_log
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.items import ItemTable
from lightning_annot.data.loading import DIGITS, Loaded
from lightning_annot.data.page_task import TASK_FILE, ImageSettings, PageTask, whole_path
from lightning_annot.files import write_text
from lightning_annot.ledger import Ledger
from lightning_annot.report.reading import ROUNDS, read_rounds
from lightning_annot.sampling.gold import examples
from lightning_annot.types import AnnotError, Task
from lightning_annot.workers.base import Workers
from lightning_annot.workers.live import LiveWorkers
from lightning_annot.workers.simulated import SimulatedWorkers

SIMULATED_FILE = "simulated_workers.npz"
MOST_EXAMPLES = 6  # of a class

logger = logging.getLogger(__name__)


def page_task(data: AnnotationDataModule, with_gold: bool) -> PageTask:
    """What the labelling page must know of the run over ``data``; ``with_gold``: examples leave room for gold questions."""
    table, loaded = data.table, data.loaded
    assert loaded is not None
    source = None
    if loaded.source is not None:
        numbered = loaded.n_listed if data.features is not None and data.labels is None and data.items is None else None
        labels, items = (None if path is None else whole_path(path) for path in (data.labels, data.items))
        source = ImageSettings(whole_path(data.root or DIGITS), labels, items, data.id_pattern, numbered, data.allow_outside)
    shown = examples(table.prototype) if with_gold else table.is_prototype
    by_class: dict[str, list[str]] = {name: [] for name in table.classes}
    for row in shown.nonzero()[:, 0].tolist():
        by_class[table.classes[int(table.prototype[row])]].append(table.ids[row])
    return PageTask(table.classes, table.names, {name: tuple(ids[:MOST_EXAMPLES]) for name, ids in by_class.items()}, source)


def run_task(table: ItemTable, found: Loaded, seed: int, folder: Path, log_url: str | None) -> Task:
    """What the workers of a run in ``folder`` may know of its items."""
    paths = None if found.source is None else dict(zip(table.ids, found.source.paths, strict=True))
    return Task(table.ids, table.classes, seed, str(folder), paths, found.labels, log_url, table.names)


def check_gold(gold: Mapping[str, float], table: ItemTable, named: bool) -> None:
    """Raise AnnotError where the settings ``gold`` ask gold questions that cannot be; ``named``: workers have names."""
    for name, value in gold.items():
        if not named and name != "gold_rate":
            raise AnnotError(
                f"annotation.{name} {value:g} given, and questions go to anyone; gold questions need workers with names: name "
                "them (annotation.workers.workers), or set annotation.workers.by_worker for recorded answers."
            )
        if not bool(table.is_prototype.any()):
            raise AnnotError(
                f"annotation.{name} {value:g} given without prototypes, which gold questions are about; set it to 0."
            )


def refuse_older(held: tuple[int, int], known: tuple[int, int], log: object, file: object, folder: Path) -> None:
    """Refuse to go on from a log that an older one has replaced, or that is another's.

    Args:
        held: How many questions and answers the ``log`` holds.
        known: How many of each ``file`` knows of; the log was ahead of it when it was written, and never shrinks.
        log: The name of the log.
        file: A checkpoint, or ``rounds.csv``.
        folder: The run's folder.

    Raises:
        AnnotError: The log holds less than that.
    """
    for there, wanted, word in zip(held, known, ("questions", "answers"), strict=True):
        if there < wanted:
            raise AnnotError(
                f"{log} holds {there} {word}, and {file} knows of {wanted}: the log is older than the run, or another one. Put "
                f"the newer log back; or, to go on from this one, remove {folder / 'checkpoints'} and {folder / ROUNDS}."
            )


def refuse_older_than_rounds(url: str | Path, folder: Path) -> None:
    """``refuse_older`` by the answers that ``rounds.csv`` in ``folder`` counts. Nothing is made; an unreadable file is none."""
    path = folder / ROUNDS
    try:
        rounds = read_rounds(folder)
    except AnnotError as error:
        logger.warning("%s", error)
        return
    known = max((int(n) for n in rounds.get("annotations", []) if math.isfinite(n)), default=0)
    if not known:
        return
    held, name = (0, 0), str(url)
    if has_log(url):
        with AnnotationLog(url, create=False) as log:
            held, name = log.size(), log.name
    refuse_older(held, (0, known), name, path, folder)


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
    log.claim(data.identity())
    if answers is not None:
        import_answers(log, answers, table.classes, table.ids)
    ledger = Ledger(log, run_task(table, loaded, data.seed, folder, log.url), workers, hold_back)
    check_gold(gold, table, named=bool(workers.names()))
    if isinstance(workers, LiveWorkers) or loaded.source is not None:  # an expert may see images on the page of any run
        write_text(folder / TASK_FILE, page_task(data, bool(gold)).to_json())
    if isinstance(workers, SimulatedWorkers):
        workers.export(folder / SIMULATED_FILE)
    return ledger
