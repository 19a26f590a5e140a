"""Answers and labels as CSV: strict reading, atomic writing, and the way into and out of the log."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import IMPORT_ROUND
from lightning_annot.files import replacing
from lightning_annot.types import AnnotError, Answer, Question

EXPERT_LABEL = "expert_label"  # the column that an expert fills
_OLD_NAMES = {"performer": "worker"}  # crowd-kit before 1.0
_SHOWN = 5


def read_answers(path: str | Path, classes: Sequence[str] | None = None, items: Sequence[str] | None = None) -> pd.DataFrame:
    """Recorded answers in crowd-kit form, in the order of the file.

    Columns task, worker, label (text) and, where the file has them, seconds (float64, NaN: unknown) and slot (int64).
    ``performer`` counts as worker; other columns are left out. Missing columns, cut rows, empty cells, a worker who
    answers a task twice, labels outside ``classes`` and tasks outside ``items`` are errors that name the first lines.
    """
    path = Path(path)
    table = read_table(path, ("task", "worker", "label"), ("seconds", "slot"), _OLD_NAMES)
    for column in ("task", "worker", "label"):
        _check_filled(path, table[column])
    check_members(path, table["label"], classes, "classes")
    check_members(path, table["task"], items, "items")
    twice = table.loc[table.duplicated(["task", "worker"]), "task"]
    check_none(path, twice, "answer a task that the same worker answered above", "keep one answer of each worker")
    if "seconds" in table:
        table["seconds"] = parse_seconds(path, table["seconds"])
    if "slot" in table:
        table["slot"] = _parse_slots(path, table["slot"])
    return table.reset_index(drop=True)


def read_labels(path: str | Path, classes: Sequence[str] | None = None) -> pd.DataFrame:
    """Truth or prototypes: columns task, label (text), in the order of the file; as strict as ``read_answers``."""
    path = Path(path)
    table = read_table(path, ("task", "label"))
    for column in ("task", "label"):
        _check_filled(path, table[column])
    check_members(path, table["label"], classes, "classes")
    twice = table.loc[table.duplicated("task"), "task"]
    check_none(path, twice, "label a task that has a label above", "keep one row of each task")
    return table.reset_index(drop=True)


def read_table(
    path: Path, required: Sequence[str], optional: Sequence[str] = (), old_names: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The named columns of a CSV as text, as written; the index is the line each row ends on.

    Raises AnnotError for a file that cannot be read, a missing or repeated column, and rows that do not fit the header.
    """
    header, rows, lines = read_rows(path)
    names = [(old_names or {}).get(name, name) if name not in required else name for name in header]
    missing = [name for name in required if name not in names]
    if missing:
        raise AnnotError(f"{path} has columns {header}, without {missing}; its first line must name {list(required)}")
    wanted = [name for name in (*required, *optional) if name in names]
    repeated = [name for name in wanted if names.count(name) > 1]
    if repeated:
        raise AnnotError(f"{path} has more than one column {repeated} in {header}; keep one of each")
    cells = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    columns = {name: pd.Series(cells[names.index(name)], dtype=object) for name in wanted}
    return pd.DataFrame(columns).set_axis(pd.Index(lines, dtype="int64", name="line"))


def write_table(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a CSV so that any reader, and any crash, sees the old file or the new one, whole."""
    quoting = csv.QUOTE_NONNUMERIC if _has_carriage_return(frame) else csv.QUOTE_MINIMAL
    with replacing(Path(path)) as draft:
        frame.to_csv(draft, index=False, lineterminator="\n", quoting=quoting, encoding="utf-8")


def _has_carriage_return(frame: pd.DataFrame) -> bool:
    """Whether a text has one: Python before 3.13 quotes the ends of lines that it writes alone, and reads others as such."""
    columns = frame.select_dtypes(exclude=["number", "bool"]).items()
    texts = [frame.columns.astype(str), *(column.dropna().astype(str) for _, column in columns)]
    return any("\r" in value for text in texts for value in text)


def write_answers(log: AnnotationLog, path: str | Path) -> None:
    """Export the ordinary answers of the log in crowd-kit form: task, worker, label, seconds; skips are left out."""
    answers = log.answers(kind="annotation").rename(columns={"item": "task"})
    write_table(path, answers.loc[answers["label"].notna(), ["task", "worker", "label", "seconds"]])


def import_answers(
    log: AnnotationLog, path: str | Path, classes: Sequence[str] | None = None, items: Sequence[str] | None = None
) -> int:
    """Put recorded answers into the log, as known before round 0; returns how many were new.

    One transaction, and an item's answer by a worker counts once: importing the same file again changes nothing.
    """
    table = read_answers(path, classes, items)
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


def check_none(path: Path, bad: pd.Series, problem: str, remedy: str) -> None:
    """Raise AnnotError that names the first few of the ``bad`` values by line, unless there are none.

    Where the index has a name, that is the word for a line.
    """
    if len(bad):
        word = bad.index.name or "line"
        shown = ", ".join(f"{word} {line}: {value!r}" for line, value in bad.head(_SHOWN).items())
        more = ", ..." if len(bad) > _SHOWN else ""
        raise AnnotError(f"{path}: {len(bad)} rows {problem} ({shown}{more}); {remedy}")


def check_members(path: Path, values: pd.Series, allowed: Collection[str] | None, name: str) -> None:
    """Raise AnnotError unless all values are among ``allowed`` (None: anything goes); ``name`` says what these are."""
    if allowed is not None:
        first = ", ".join(map(repr, list(allowed)[: 2 * _SHOWN])) + (", ..." if len(allowed) > 2 * _SHOWN else "")
        outside = values[~values.isin(list(allowed))]
        problem = f"have a {values.name} outside the {name}"
        check_none(path, outside, problem, f"the {len(allowed)} {name} are {first}; correct or remove these rows")


def parse_seconds(path: Path, values: pd.Series) -> pd.Series:
    """Times as float64, NaN where blank; AnnotError for what is no time."""
    blank = values.str.strip() == ""
    seconds = pd.to_numeric(values.mask(blank), errors="coerce").astype("float64")
    possible = blank | ((seconds >= 0) & (seconds < np.inf))
    check_none(path, values[~possible], "have impossible seconds", "give a number from 0 on, or leave it blank")
    return seconds


def _parse_slots(path: Path, values: pd.Series) -> pd.Series:
    whole = values.str.fullmatch(r"\d{1,18}").astype(bool)
    check_none(path, values[~whole], "have a slot that is no whole number", "slots count an item's answers: 1, 2, ...")
    return values.astype("int64")


def _check_filled(path: Path, values: pd.Series) -> None:
    empty = values[values.str.strip() == ""]
    check_none(path, empty, f"have no {values.name}", "fill them or remove them")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """AnnotError where a file that is read within cannot be read, or is not UTF-8."""
    try:
        yield
    except OSError as error:
        raise AnnotError(f"{path} cannot be read: {error}; check the path and the permissions") from error
    except UnicodeDecodeError as error:
        raise AnnotError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error


def read_rows(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Header, rows as wide as the header, and the line each row ends on; blank lines are left out."""
    rows: list[list[str]] = []
    lines: list[int] = []
    broken: dict[int, str] = {}
    try:
        with readable(path), open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if len(header) == 1 and (odd := [mark for mark in ";\t" if mark in header[0]]):
                raise AnnotError(f"{path} has columns {header}, with {odd[0]!r} between them; save it with commas, as UTF-8")
            for cells in reader:
                if len(cells) == len(header):
                    rows.append(cells)
                    lines.append(reader.line_num)
                elif cells:
                    broken[reader.line_num] = ",".join(cells)
    except csv.Error as error:
        raise AnnotError(f"{path}, line {reader.line_num}: {error}; a quote may be open, or the file cut") from error
    problem = f"do not have the {len(header)} cells of the header"
    check_none(path, pd.Series(broken, dtype=object), problem, "the file may be cut: complete or remove these rows")
    return header, rows, lines
