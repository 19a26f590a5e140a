"""``lightning-annot unfinished``: the table for experts, who fill its last column and give it back to ``import --expert``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_annot.exchange.command import open_log


def unfinished_command(args: list[str]) -> int:
    """Write the table; returns 0, or raises AnnotError."""
    parser = argparse.ArgumentParser(
        "lightning-annot unfinished",
        description="Write the items that a run left unfinished, for experts: what their answer gains (most first), the run's "
        "label, the most probable classes, the answers so far, and why each item is there. Fill expert_label in and give the "
        "file to lightning-annot import DIR FILE --expert NAME.",
    )
    parser.add_argument("dir", type=Path, help="folder of a run")
    parser.add_argument("file", type=Path, help="CSV to write")
    parser.add_argument("--url", help="SQLAlchemy URL of the log, if it is not DIR/annotations.db")
    given = parser.parse_args(args)
    from lightning_annot.annotations.formats import write_table
    from lightning_annot.data.run_labels import read_run_labels
    from lightning_annot.report.run_files import read_run
    from lightning_annot.report.unfinished import Belief, unfinished_items

    run = read_run(given.dir)
    soft = read_run_labels(given.dir, run.classes)
    with open_log(given.dir, given.url) as log:
        questions, answers = log.questions(open_only=True, kind="annotation"), log.answers(kind="annotation")
    belief = Belief(soft.classes, soft.top.numpy(), soft.probability.numpy())
    left = unfinished_items(run.labels, belief, questions, answers, run.summary)
    write_table(given.file, left)
    print(f"{given.file}: {len(left)} items")
    return 0
