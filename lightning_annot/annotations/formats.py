"""Answers and labels as CSV: strict reading, atomic writing, and the way into and out of the log."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.annotations.addresses import find_items, report_found
from lightning_annot.annotations.columns import (
    check_members,
    check_names,
    check_none,
    check_workers,
    distinct,
    matched,
    parse_seconds,
    parse_slots,
    settled,
)
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import IMPORT_ROUND
from lightning_annot.annotations.sheets import COMMA, SEPARATORS, Sheet, split_sheet
from lightning_annot.files import replacing
from lightning_annot.names import KnownNames, clean
from lightning_annot.types import AnnotError, Answer, Question

EXPERT_LABEL = "expert_label"  # the column that an expert fills
_OLD_NAMES = {"performer": "worker"}  # crowd-kit before 1.0


def read_answers(path: str | Path, classes: Sequence[str] | None = None, items: Sequence[str] | None = None) -> pd.DataFrame:
    """Read recorded answers in crowd-kit form, in the order of the file.

    White space around names does not count. Labels find their class whatever their case, and tasks their item in either form
    of Unicode, or by its address, see ``find_items``. A worker's repeat of an answer is left out.

    Returns:
        Columns task, worker, label (text) and, where the file has them, seconds (float64, NaN: unknown) and slot (int64).
        ``performer`` counts as worker; other columns are left out.

    Raises:
        AnnotError: Missing columns, cut rows, empty cells, names that nobody can have, a worker who answers a task in two
            ways, labels outside ``classes`` or tasks outside ``items``; with the first lines.
    """
    path = Path(path)
    table = read_table(path, ("task", "worker", "label"), ("seconds", "slot"), _OLD_NAMES, numbers=("seconds",))
    for column in ("task", "label"):
        check_names(path, table[column])
    check_workers(path, table["worker"])
    table["label"] = matched(table["label"], classes, ignore_case=True)
    table["task"] = matched_tasks(path, table["task"], items)
    check_members(path, table["label"], classes, "classes")
    check_members(path, table["task"], items, "items")
    table = settled(path, table)
    if "seconds" in table:
        table["seconds"] = parse_seconds(path, table["seconds"])
    if "slot" in table:
        table["slot"] = parse_slots(path, table["slot"])
    return table.reset_index(drop=True)


def read_labels(path: str | Path, classes: Sequence[str] | None = None) -> pd.DataFrame:
    """Truth or prototypes: columns task, label (text), in the order of the file; as strict as ``read_answers``."""
    path = Path(path)
    table = read_table(path, ("task", "label"))
    for column in ("task", "label"):
        check_names(path, table[column])
    table["label"] = matched(table["label"], classes, ignore_case=True)
    check_members(path, table["label"], classes, "classes")
    problem = "label a task that has another label above"
    return distinct(path, table, ("task",), "label", problem, "keep one row of each task").reset_index(drop=True)


def matched_tasks(path: Path, tasks: pd.Series, items: Collection[str] | None) -> pd.Series:
    """The item that each task stands for; those found by their addresses are reported in one line."""
    if items is None:
        return tasks
    known = {*items}
    tasks = matched(tasks, known)
    found = find_items(tasks.unique(), known)
    report_found(path, found)
    return tasks.replace(found) if found else tasks


def read_table(
    path: Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    old_names: Mapping[str, str] | None = None,
    numbers: Collection[str] = (),
) -> pd.DataFrame:
    """The named columns of a CSV, in any case, as text without white space around it; the index is the line each row ends on.

    Where semicolons or tabs separate the columns, a decimal comma in the columns ``numbers`` becomes a point.

    Raises:
        AnnotError: The file cannot be read, a column is missing or there twice, or rows do not fit the header.
    """
    sheet = read_sheet(path)
    header = sheet.header
    known = KnownNames((*required, *optional, *(old_names or ())), ignore_case=True)
    found = {name: known.find(name) for name in header}
    names = [name if found[name] in header else found[name] for name in header]  # "Label", if nothing is called "label"
    names = [(old_names or {}).get(name, name) if name not in required else name for name in names]
    missing = [name for name in required if name not in names]
    if missing:
        raise AnnotError(f"{path} has columns {header}, without {missing}; its first line must name {list(required)}")
    wanted = [name for name in dict.fromkeys((*required, *optional)) if name in names]
    repeated = [name for name in wanted if names.count(name) > 1]
    if repeated:
        raise AnnotError(f"{path} has more than one column {repeated} in {header}; keep one of each")
    cells = list(zip(*sheet.rows, strict=True)) if sheet.rows else [()] * len(names)
    columns = {name: pd.Series(map(clean, cells[names.index(name)]), dtype=object) for name in wanted}
    if sheet.separator != COMMA:
        for name in {*numbers} & {*wanted}:
            columns[name] = columns[name].str.replace(r"^([+-]?\d*),(\d+)$", r"\1.\2", regex=True)
    return pd.DataFrame(columns).set_axis(pd.Index(sheet.lines, dtype="int64", name="line"))


def read_sheet(path: Path) -> Sheet:
    """All cells of a CSV as written, see ``split_sheet``; AnnotError for rows that do not fit the header."""
    sheet = split_sheet(path)
    problem = f"do not have the {len(sheet.header)} cells of the header"
    remedy = "the file may be cut: complete or remove these rows"
    check_none(path, pd.Series(sheet.broken, dtype=object), problem, remedy)
    return sheet


def write_table(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a CSV so that any reader, and any crash, sees the old file or the new one, whole."""
    quoting = csv.QUOTE_NONNUMERIC if _has_carriage_return(frame) or _may_be_split(frame) else csv.QUOTE_MINIMAL
    with replacing(Path(path)) as draft:
        frame.to_csv(draft, index=False, lineterminator="\n", quoting=quoting, encoding="utf-8")


def _has_carriage_return(frame: pd.DataFrame) -> bool:
    """Whether a text has one: Python before 3.13 quotes the ends of lines that it writes alone, and reads others as such."""
    columns = frame.select_dtypes(exclude=["number", "bool"]).items()
    texts = [frame.columns.astype(str), *(column.dropna().astype(str) for _, column in columns)]
    return any("\r" in value for text in texts for value in text)


def _may_be_split(frame: pd.DataFrame) -> bool:
    """Whether the name of a column has a mark that might be taken for what separates the columns."""
    return any(mark in str(name) for name in frame.columns for mark in SEPARATORS if mark != COMMA)


def write_answers(log: AnnotationLog, path: str | Path) -> None:
    """Export the ordinary answers of the log in crowd-kit form: task, worker, label, seconds; skips are left out."""
    answers = log.answers(kind="annotation").rename(columns={"item": "task"})
    write_table(path, answers.loc[answers["label"].notna(), ["task", "worker", "label", "seconds"]])


def import_answers(
    log: AnnotationLog, path: str | Path, classes: Sequence[str] | None = None, items: Sequence[str] | None = None
) -> int:
    """Put recorded answers into the log, as known before round 0; returns how many were new.

    One transaction, and an item's answer by a worker counts once: importing the same file again changes nothing.

    Raises:
        AnnotError: The file is refused by ``read_answers``, or holds no answer.
    """
    table = read_answers(path, classes, items)
    if table.empty:
        raise AnnotError(f"no answer found in {path}, which has no row below its header; export after labelling")
    seconds = table["seconds"].tolist() if "seconds" in table else [np.nan] * len(table)
    rows = zip(table["task"], table["worker"], table["label"], seconds, strict=True)
    return log.record(
        [
            (
                Question(task, worker, round=IMPORT_ROUND),
                Answer(0, worker, label, None if np.isnan(taken) else taken, source="import"),
            )
            for task, worker, label, taken in rows
        ]
    )
