"""``lightning-annot unfinished``: what is left, for experts: as a table that they fill, or as questions on their page."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_annot.commandline.options import OptionParser
from lightning_annot.exchange.command import open_log
from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    import pandas as pd

    from lightning_annot.annotations.log import AnnotationLog


def unfinished_command(args: list[str]) -> int:
    """Write the table, or ask; returns 0, or raises AnnotError."""
    given = _parser().parse_args(args)
    if given.file is None and given.ask is None:
        raise AnnotError("neither a file nor an expert given; name a CSV to write, or the expert by --ask NAME.")
    if given.most is not None and given.most < 1:
        raise AnnotError(f"--most {given.most} given; it must be 1 or more items.")
    from lightning_annot.annotations.formats import write_table
    from lightning_annot.annotations.worker_names import worker_name

    with open_log(given.dir, given.url) as log:
        left = _left(given.dir, log)
        if given.file is not None:
            some = left[: given.most]
            write_table(given.file, some)
            print(f"{given.file}: {len(some)} items")
        if given.ask is not None:
            expert = worker_name(given.ask)
            asked = ask_expert(given.dir, log, left["task"].tolist(), expert, given.most)
            command = shlex.join(["lightning-annot", "serve", str(given.dir), "--invite", expert])
            print(f"{expert}: {asked} new questions; {command}")
    return 0


def ask_expert(directory: Path, log: AnnotationLog, tasks: list[str], expert: str, most: int | None = None) -> int:
    """Commit questions about the first ``most`` new ones of ``tasks`` to ``expert``, in their order, as known before round 0;
    returns how many they are.

    The desk lends them to nobody else, and marks the answers as an expert's. The run does not wait for them.
    """
    from lightning_annot.annotations.schema import EXPERT, IMPORT_ROUND
    from lightning_annot.data.page_task import TASK_FILE
    from lightning_annot.types import Question

    if not (directory / TASK_FILE).is_file():
        raise AnnotError(
            f"{directory} has no {TASK_FILE}, and so no page; run fit again, which writes it, or let a file be filled."
        )
    answers, questions = log.answers(), log.questions(open_only=True)
    own = answers[answers["worker"] == expert]
    if len(own) and not (own["source"] == EXPERT).any():
        raise AnnotError(
            f"{expert} has answered {len(own)} questions of this run, and these would all count as an expert's; ask the expert "
            "by another name."
        )
    known = {*own["item"], *questions.loc[questions["worker"] == expert, "item"]}
    new = [task for task in tasks if task not in known]
    return len(log.ask([Question(task, expert, round=IMPORT_ROUND) for task in new[:most]]))


def _left(directory: Path, log: AnnotationLog) -> pd.DataFrame:
    from lightning_annot.data.run_labels import read_run_labels
    from lightning_annot.report.run_files import check_items, image_root, read_run
    from lightning_annot.report.unfinished import Belief, unfinished_items

    run = read_run(directory)
    check_items(run, log)
    soft = read_run_labels(directory, run.classes)
    questions, answers = log.questions(open_only=True, kind="annotation"), log.answers(kind="annotation")
    belief = Belief(soft.classes, soft.top.numpy(), soft.probability.numpy())
    root = image_root(run)
    return unfinished_items(run.labels, belief, questions, answers, run.summary, None if root is None else Path(root))


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        "lightning-annot unfinished",
        description="Write the items that a run left unfinished, for experts: what their answer gains (most first), the run's "
        "label, the most probable classes, the answers so far, why each item is there, and where its image is. Fill "
        "expert_label in and give the file to lightning-annot import DIR FILE --expert NAME. Or let an expert see the images, "
        "in the same order, on the page of lightning-annot serve: --ask NAME. fit then goes on with the answers.",
    )
    parser.add_argument("dir", type=Path, help="folder of a run")
    parser.add_argument("file", type=Path, nargs="?", help="CSV to write")
    parser.add_argument("--ask", metavar="NAME", help="ask this expert on the page; again asks what is new alone")
    parser.add_argument("--most", type=int, metavar="N", help="the first N items alone, and with --ask, of those that are new")
    parser.add_argument("--url", help="SQLAlchemy URL of the log, if it is not DIR/annotations.db")
    return parser
