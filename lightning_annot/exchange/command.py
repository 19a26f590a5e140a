"""``lightning-annot import``, ``export`` and ``confusions``."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_annot.commandline.options import OptionParser
from lightning_annot.exchange.formats import find, listing
from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    from lightning_annot.annotations.log import AnnotationLog
    from lightning_annot.exchange.records import Reading, Records

FIELDS = ("task", "worker", "label", "seconds")


def export_command(args: list[str]) -> int:
    """Write what a run holds; returns 0, or raises AnnotError."""
    given = export_parser().parse_args(args)
    write = find(given.format, given.file, "write")
    from lightning_annot.exchange.outputs import Outgoing

    with open_log(given.dir, given.url) as log:
        left = write(given.file, Outgoing(given.dir, log, given.images, given.copy, given.prefix, given.finished))
    missing = ", ".join(f"{number} {word}" for word, number in left.items() if number)
    print(given.file)
    if missing:
        print(f"left out, as the format has no place for them: {missing}")
    return 0


def import_command(args: list[str]) -> int:
    """Take answers in; returns 0, or raises AnnotError."""
    given = import_parser().parse_args(args)
    read, how = find(given.format, given.file, "read"), _reading(given)
    from lightning_annot.annotations.addresses import file_name
    from lightning_annot.annotations.formats import write_table
    from lightning_annot.exchange import incoming

    words = None if given.labels is None else incoming.read_words(given.labels)
    task = file_name if given.basename else incoming.without(given.prefix) if given.prefix else None
    found = incoming.rename(given.file, read(given.file, how), words, task)
    if given.url is None and not (given.dir / "annotations.db").is_file():
        _convert(found, given)
    else:
        found = _take_in(found, given)
    if given.truth is not None:
        import pandas as pd

        write_table(given.truth, pd.DataFrame({"task": list(found.truth), "label": list(found.truth.values())}, dtype=object))
        print(f"{given.truth}: {len(found.truth)} known labels")
    return 0


def export_parser() -> argparse.ArgumentParser:
    """The options of ``export``."""
    parser = _parser("export", "Write a run's answers, labels or open questions.", "write")
    parser.add_argument("file", type=Path, help="file or folder to write")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images, if the run's settings do not say")
    parser.add_argument("--copy", action="store_true", help="class-folders: copy the images instead of linking them")
    parser.add_argument("--prefix", default="", metavar="TEXT", help="what stands before a task to make its image's address")
    parser.add_argument("--finished", action="store_true", help="leave out unfinished labels")
    return parser


def import_parser() -> argparse.ArgumentParser:
    """The options of ``import``."""
    about = (
        "Put answers into a run's log, as known before round 0; again changes nothing. Before there is a run, they are kept in "
        "DIR/answers_import.csv, for --annotation.import_answers."
    )
    parser = _parser("import", about, "read")
    parser.add_argument("file", type=Path, help="file or folder to read")
    parser.add_argument(
        "--map", action="append", default=[], metavar="FIELD=NAME", help=f"what the file calls {', '.join(FIELDS)}"
    )
    parser.add_argument("--labels", type=Path, metavar="CSV", help="what labels are called here: from,to")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--prefix", metavar="TEXT", help="what stands before each task in the file")
    where.add_argument("--basename", action="store_true", help="tasks are the file names at the end of paths or URLs")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--worker", metavar="NAME", help="who gave all these answers")
    who.add_argument("--expert", metavar="NAME", help="the same, and that is an expert, who is hardly ever wrong")
    parser.add_argument("--side", type=Path, metavar="FILE", help="second file of the format")
    parser.add_argument("--truth", type=Path, metavar="CSV", help="write the labels that the file knows to be true: task,label")
    parser.add_argument("--ignore-unknown", action="store_true", help="leave out answers about tasks that are not in the run")
    return parser


def open_log(directory: Path, url: str | None) -> AnnotationLog:
    """The log of a run, which must exist."""
    from lightning_annot.annotations.log import AnnotationLog

    path = directory / "annotations.db"
    if url is None and not path.is_file():
        raise AnnotError(f"{path} does not exist; give the folder of a run, or --url.")
    return AnnotationLog(url or path, create=False)


def _parser(name: str, about: str, direction: str) -> argparse.ArgumentParser:
    parser = OptionParser(
        f"lightning-annot {name}",
        description=about,
        epilog=f"formats:\n{listing(direction)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", type=Path, help="folder of a run")
    parser.add_argument("--format", metavar="NAME", help="see below; guessed by .csv, .jsonl, .pt and .parquet")
    parser.add_argument("--url", help="SQLAlchemy URL of the log, if it is not DIR/annotations.db")
    return parser


def _reading(given: argparse.Namespace) -> Reading:
    from lightning_annot.annotations.worker_names import worker_name
    from lightning_annot.exchange.records import Reading

    columns = dict(word.split("=", 1) for word in given.map if "=" in word)
    if len(columns) < len(given.map) or not set(columns) <= set(FIELDS) or not all(columns.values()):
        raise AnnotError(f"--map {' --map '.join(given.map)} given; each must be one of {', '.join(FIELDS)}, =, and a name")
    worker = given.worker if given.expert is None else given.expert
    return Reading(columns, None if worker is None else worker_name(worker), given.side)


def _convert(found: Records, given: argparse.Namespace) -> None:
    from lightning_annot.exchange.incoming import into_file

    if given.expert is not None:
        raise AnnotError(
            f"{given.dir} has no run yet, and --expert needs one; run fit first, or give --worker {given.expert} here and "
            f"--annotation.crowd.experts {shlex.quote(json.dumps([given.expert], ensure_ascii=False))} to fit."
        )
    path, new = into_file(found, given.dir)
    print(f"{given.dir} has no run yet. {path}: {new} new answers; begin the run with --annotation.import_answers {path}")


def _take_in(found: Records, given: argparse.Namespace) -> Records:
    """Put answers into the log of a run; returns them with the names that the run has for tasks and classes."""
    from lightning_annot.annotations.schema import EXPERT
    from lightning_annot.exchange import incoming
    from lightning_annot.report.run_files import check_items, read_run

    run = read_run(given.dir)
    found = incoming.fitted(given.file, found, run.labels["task"], run.classes)
    if given.ignore_unknown:
        n_given, found = len(found.answers), incoming.known_only(found, run.labels["task"])
        if found.answers.empty:
            raise AnnotError(f"no answer found in {given.file}: none of {n_given} is about an item of {given.dir}")
    source = incoming.SOURCE if given.expert is None else EXPERT
    with open_log(given.dir, given.url) as log:
        check_items(run, log)
        new = incoming.into_log(given.file, log, found, run.labels, run.classes, source)
    print(f"{given.file}: {new} new answers of {len(found.answers)}; fit goes on with them")
    return found
