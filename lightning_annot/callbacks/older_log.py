"""A log that is older than the run which it belongs to is refused."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import has_log
from lightning_annot.report.reading import ROUNDS, read_rounds
from lightning_annot.types import AnnotError

logger = logging.getLogger(__name__)


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
        logger.warning("%s. fit goes on without it.", error)
        return
    known = max((int(n) for n in rounds.get("annotations", []) if math.isfinite(n)), default=0)
    if not known:
        return
    held, name = (0, 0), str(url)
    if has_log(url):
        with AnnotationLog(url, create=False) as log:
            held, name = log.size(), log.name
    refuse_older(held, (0, known), name, path, folder)
