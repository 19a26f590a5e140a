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
_HINT = re.compile(r"sep=([,;\t])\r?\n?|sep=([,;\t])\r", re.IGNORECASE)  # the first line that Excel may write
_TRIED = 20  # rows that tell what separates the columns


@dataclass(frozen=True)
class Sheet:
    """A table as written.

    Args:
        header: Names of the columns, without white space around them.
        rows: Cells of each row that is as wide as the header; blank lines are left out.
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

    Without a header the first row says how wide the others are.

    Raises:
        AnnotError: The file cannot be read, or a quote is left open.
    """
    text, encoding = read_text(path)
    hint = _HINT.match(text)
    body = text[hint.end() :] if hint else text
    separator = (hint[1] or hint[2]) if hint else _separator(body)
    told = [] if encoding == UTF_8 else [f"read as {encoding}"]
    told += [] if separator == COMMA else [f"columns separated by {_NAMES[separator]}"]
    if told:
        tell(f"{path}: {', '.join(told)}")
    rows: list[list[str]] = []
    lines: list[int] = []
    broken: dict[int, str] = {}
    reader, skipped = _reader(body, separator), 1 if hint else 0
    try:
        header = [clean(name) for name in next(reader, [])] if has_header else []
        width = len(header) if has_header else None
        for cells in filter(None, reader):
            width = len(cells) if width is None else width
            if len(cells) == width:
                rows.append(cells)
                lines.append(reader.line_num + skipped)
            else:
                broken[reader.line_num + skipped] = separator.join(cells)
    except csv.Error as error:
        place = f"{path}, line {reader.line_num + skipped}"
        raise AnnotError(f"{place}: {error}; a quote may be open, or the file cut") from error
    return Sheet(header, rows, lines, separator, broken)


def _reader(text: str, separator: str) -> _csv.Reader:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)


def _separator(text: str) -> str:
    """What separates the columns of the first line: where several marks may, one that the rows below bear out."""

    def key(mark: str) -> tuple[bool, int]:
        head = list(_head(text, mark))
        width = len(head[0]) if head else 0
        return width > 1 and all(len(row) == width for row in head), width

    first_line = text.partition("\n")[0].partition("\r")[0]
    able = [mark for mark in SEPARATORS if mark in first_line]
    return max(able, key=key) if len(able) > 1 else "".join(able) or COMMA


def _head(text: str, mark: str) -> Iterator[list[str]]:
    """The first rows that are not blank, up to one that cannot be read."""
    try:
        for row in islice(_reader(text, mark), _TRIED):
            if row:
                yield row
    except csv.Error:
        return
