"""``lightning-annot study``: prepare a confusion study, in which everybody is asked about prototypes and about nothing else.

As in section 6 of the supplement of Liao, Kar & Fidler 2021: every worker answers a balanced set of prototypes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_annot.commandline.options import OptionParser
from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    import pandas as pd

    from lightning_annot.data.page_task import PageTask, Study

PROTOTYPES = "prototypes.csv"
_ABOUT = (
    "Prepare a confusion study in DIR: who is invited to lightning-annot serve DIR answers --each prototypes of every class, "
    "in random order. lightning-annot confusions DIR counts the answers, at any time. The same command again changes nothing."
)


def study_parser() -> argparse.ArgumentParser:
    """Parses what follows the word ``study``."""
    parser = OptionParser("lightning-annot study", description=_ABOUT)
    parser.add_argument("dir", type=Path, help="folder of the study, new or its own")
    parser.add_argument("--root", required=True, help="the images, as data.root: a folder, a .zip, a manifest, digits, ...")
    parser.add_argument("--prototypes", type=Path, required=True, metavar="CSV", help="images whose class is known: task,label")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="classes in order, or a CSV class,name (default: all of the prototypes)"
    )
    parser.add_argument("--allow-outside", action="store_true", help="images may lie outside the root, as data.allow_outside")
    parser.add_argument("--id-pattern", help="image of a task, as data.id_pattern, such as %%05d.jpg")
    parser.add_argument("--each", type=int, help="prototypes of each class that a worker answers (default: all that are there)")
    parser.add_argument("--examples", type=int, default=1, help="prototypes of each class to show, and never to ask about (1)")
    parser.add_argument("--seed", type=int, default=0, help="of who is asked what in which order (0)")
    return parser


def study_command(args: list[str]) -> int:
    """Prepare a study; returns 0, or raises AnnotError."""
    given = study_parser().parse_args(args)
    from lightning_annot.annotations.columns import matched
    from lightning_annot.annotations.formats import read_labels, write_table
    from lightning_annot.annotations.log import AnnotationLog
    from lightning_annot.annotations.schema import STUDY
    from lightning_annot.data.classes import read_classes
    from lightning_annot.data.page_task import TASK_FILE, ImageSettings, PageTask, whole_path
    from lightning_annot.files import write_text

    known = read_labels(given.prototypes)
    words = given.classes or sorted(known["label"].unique())
    table = read_classes(words[0] if len(words) == 1 and words[0].endswith(".csv") else words)
    known["label"] = matched(known["label"], table.ids, ignore_case=True)
    examples, study = draw(known, table.ids, given.each, given.examples, given.seed)
    items = str((given.dir / PROTOTYPES).absolute())
    images = ImageSettings(whole_path(given.root), items=items, id_pattern=given.id_pattern, allow_outside=given.allow_outside)
    task = PageTask(table.ids, table.names, examples, images, study)
    with AnnotationLog(given.dir / "annotations.db") as log:
        log.claim({STUDY: fingerprint(task)})
        write_table(given.dir / PROTOTYPES, known)
        _check_images(task)
        write_text(given.dir / TASK_FILE, task.to_json())
    print(
        f"{given.dir}: everybody is asked {study.size} questions, {study.each} about each of {len(table.ids)} classes. Invite "
        f"people: lightning-annot serve {given.dir} --invite NAME ..."
    )
    return 0


def draw(
    known: pd.DataFrame, classes: Sequence[str], each: int | None, n_examples: int, seed: int
) -> tuple[dict[str, tuple[str, ...]], Study]:
    """The first ``n_examples`` prototypes of each class as examples, and a study of the others.

    ``known``: task, label. Raises AnnotError where a class has too few, and where the numbers make no sense.
    """
    from lightning_annot.data.page_task import Study

    if (each is not None and each < 1) or n_examples < 0 or seed < 0:
        raise AnnotError(f"--each {each} --examples {n_examples} --seed {seed} given; each is 1 or more, the others 0 or more.")
    if len(classes) < 2:
        raise AnnotError(f"a study of {len(classes)} class given; it takes two or more to confuse any.")
    by_class = {name: tuple(known.loc[known["label"] == name, "task"]) for name in classes}
    fewest = min(by_class, key=lambda name: len(by_class[name]))
    wanted, there = (each or 1) + n_examples, len(by_class[fewest])
    if there < wanted:
        raise AnnotError(
            f"{fewest!r} has {there} prototypes, and {wanted} are needed: {each or 1} to ask about and {n_examples} to show. "
            "Give more of them, or lower --each or --examples."
        )
    examples = {name: items[:n_examples] for name, items in by_class.items()}
    asked = {name: items[n_examples:] for name, items in by_class.items()}
    return examples, Study(asked, each or there - n_examples, seed)


def fingerprint(task: PageTask) -> str:
    """What two studies must share to be the same one; where the images are may change."""
    assert task.study is not None
    said = [task.classes, dict(task.examples), dict(task.study.prototypes), task.study.each, task.study.seed]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _check_images(task: PageTask) -> None:
    assert task.images is not None
    assert task.study is not None
    there = set(task.images.open().ids)
    wanted: Mapping[str, str] = task.study.truth
    if missing := [item for item in wanted if item not in there]:
        raise AnnotError(f"{len(missing)} prototypes have no image below {task.images.root}: {missing[:3]}; check --root.")
