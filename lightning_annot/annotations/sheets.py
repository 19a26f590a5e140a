"""Tables as text: columns separated by commas, semicolons or tabs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_annot.annotations.text import UTF_8, read_text, tell
from lightning_annot.names import clean
from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    import _csv

COMMA = ","
SEPARATORS = (COMMA, ";", "\t")
_NAMES = {COMMA: "','", ";": "';'", "\t": "tabs"}
_HINT = re.compile(r'("?)sep=([,;\t])"?([,;\t]*)(?:\r\n|\r|\n|$)', re.IGNORECASE)  # the first line that Excel may write
_TRIED = 20  # rows that tell what separates the columns


@dataclass(frozen=True)
class Sheet:
    """A table as written.

    Args:
        header: Names of the columns, without white space around them.
        rows: Cells of each row, as many as the header has. Rows without any text are left out.
        lines: The line that each of these rows ends on.
        separator: What is between the cells.
        broken: The other rows, by line.
    """

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    separator: str
    broken: dict[int, str]


def split_sheet(path: Path, has_header: bool = True) -> Sheet:
    """Read a table in whatever encoding it is, separated by commas, semicolons or tabs; report what is not the usual.

    Spreadsheets leave out empty cells at the end of a row, or add some: below a header both are as if they had not. Without a
    header the first row says how wide the others are.

    Raises:
        AnnotError: The file cannot be read, or a quote is left open.
    """
    text, encoding = read_text(path)
    hint = _HINT.match(text)
    body = text[hint.end() :] if hint else text
    as_written = hint is not None and not hint[1] and not hint[3]  # else a spreadsheet has saved the hint as a cell
    separator = hint[2] if hint and as_written else _separator(body)
    told = [] if encoding == UTF_8 else [f"read as {encoding}"]
    told += [] if separator == COMMA else [f"columns separated by {_NAMES[separator]}"]
    if told:
        tell(f"{path}: {', '.join(told)}")
    skipped = 1 if hint else 0
    rows, lines = _filled_rows(path, body, separator, skipped)
    header = [clean(name) for name in rows[0]] if has_header and rows else []
    width = len(header) if has_header else len(rows[0]) if rows else 0
    cut = rows[-1] if rows and not body.endswith(("\n", "\r")) else None
    kept: dict[int, list[str]] = {}
    broken: dict[int, str] = {}
    for line, row in islice(zip(lines, rows, strict=True), int(has_header), None):
        cells = _fitted(row, width, separator) if has_header and (row is not cut or len(row) > width) else row
        if len(cells) == width:
            kept[line] = cells
        else:
            broken[line] = separator.join(row)
    return Sheet(header, [*kept.values()], [*kept], separator, broken)


def _filled_rows(path: Path, body: str, separator: str, skipped: int) -> tuple[list[list[str]], list[int]]:
    """The rows that hold any text, and the line that each ends on, after so many lines ``skipped``."""
    reader = _reader(body, separator)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if any(map(clean, row)):
                rows.append(row)
                lines.append(reader.line_num + skipped)
    except csv.Error as error:
        place = f"{path}, line {reader.line_num + skipped}"
        raise AnnotError(f"{place}: {error}; a quote may be open, or the file cut") from error
    return rows, lines


def _fitted(row: list[str], width: int, separator: str) -> list[str]:
    """Cut or pad ``row`` with blank cells to ``width``; return it unchanged if its text does not fit this table."""
    if len(row) > width:
        return row if any(map(clean, row[width:])) else row[:width]
    other = any(mark in cell for cell in row for mark in SEPARATORS if mark != separator)
    return row if other and len(row) < width else row + [""] * (width - len(row))


def _reader(text: str, separator: str) -> _csv.Reader:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)


def _separator(text: str) -> str:
    """What separates the columns of the first line: where several marks may, one that the rows below bear out."""

    def key(mark: str) -> tuple[bool, int]:
        head = list(_head(text, mark))
        width = len(head[0]) if head else 0
        return width > 1 and all(len(row) == width for row in head), width

    first_line = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    able = [mark for mark in SEPARATORS if mark in first_line]
    return max(able, key=key) if len(able) > 1 else "".join(able) or COMMA


def _head(text: str, mark: str) -> Iterator[list[str]]:
    """The first rows that are not blank, up to one that cannot be read."""
    try:
        for row in islice(_reader(text, mark), _TRIED):
            if any(map(clean, row)):
                yield row
    except csv.Error:
        return
