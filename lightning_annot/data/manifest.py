"""Images listed in a CSV or JSON-lines file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lightning_annot.annotations.json_text import read_json_lines
from lightning_annot.annotations.sheets import split_sheet
from lightning_annot.data.files import FileStore
from lightning_annot.data.images import Images, first_few
from lightning_annot.data.listing import about_splits, clean_path
from lightning_annot.data.places import Fence, Finder, refuse_outside
from lightning_annot.names import clean
from lightning_annot.types import AnnotError

PATH_COLUMNS = ("path", "file_name", "image")
ID_COLUMNS = ("task", "id")
LABEL_COLUMN = "label"
_USED_COLUMNS = (*PATH_COLUMNS, *ID_COLUMNS, LABEL_COLUMN)
MANIFEST_SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class _Row:
    """One line: ``values`` by column, as text."""

    line: int
    values: dict[str, str]


def manifest_source(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    allow_outside: bool = False,
) -> Images:
    """Images listed in a ``.csv`` or ``.jsonl`` file, in its order.

    The first of ``path``, ``file_name``, ``image`` that is a column says where each image is, relative to ``root``
    (default: the manifest's folder), in any Unicode form, with slashes or backslashes. The first of ``task``, ``id`` gives the
    id (default: the path as written). ``label`` is optional; an empty one means unknown. Duplicate ids, missing columns,
    missing files, cut rows and, unless ``allow_outside``, files outside the root are errors that name the first few.
    """
    path = Path(path)
    rows = _read(path)
    if not rows:
        raise AnnotError(f"{path} lists no images; give one row an image below a header, or one JSON object a line")
    columns = set().union(*(row.values for row in rows))
    path_column = next((name for name in PATH_COLUMNS if name in columns), None)
    if path_column is None:
        raise AnnotError(f"{path} has columns {sorted(columns)}; one of {', '.join(PATH_COLUMNS)} must name the image files")
    id_column = next((name for name in ID_COLUMNS if name in columns), path_column)
    files, ids = _column(path, rows, path_column), _column(path, rows, id_column)
    base = path.parent if root is None else Path(root)
    finder = Finder(base)
    paths = [finder.find(name) for name in files]
    missing = [name for name in paths if not os.path.isfile(name)]
    if missing:
        raise AnnotError(
            f"{len(missing)} of {len(paths)} files that {path} lists do not exist ({first_few(missing)}); "
            "paths are relative to the manifest's folder unless a root is given"
        )
    if not allow_outside:
        fence = Fence(base)
        refuse_outside(base, [name for name, place in zip(files, paths, strict=True) if not fence.holds(place)])
    if id_column == path_column:
        ids = list(map(clean_path, ids))
    given = [row.values.get(LABEL_COLUMN, "") for row in rows]
    labels = {name: label for name, label in zip(ids, given, strict=True) if clean(label)} if LABEL_COLUMN in columns else None
    try:
        return Images(ids, paths, labels, FileStore(paths, cache_dir), notes=about_splits(str(path), labels))
    except AnnotError as error:
        raise AnnotError(f"{path}, column {id_column!r}: {error}") from error


def _column(path: Path, rows: list[_Row], column: str) -> list[str]:
    """The column's values, none of them empty."""
    empty = [row.line for row in rows if not clean(row.values.get(column, ""))]
    if empty:
        raise AnnotError(
            f"{path} has {len(empty)} rows without a {column!r} (lines {first_few(empty)}); fill them or remove them"
        )
    return [row.values[column] for row in rows]


def _read(path: Path) -> list[_Row]:
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in readers:
        raise AnnotError(f"{path} is no manifest; allowed are files that end in {', '.join(MANIFEST_SUFFIXES)}")
    rows, broken = readers[path.suffix.lower()](path)
    if broken:
        raise AnnotError(f"{path} has {len(broken)} broken or cut rows ({first_few(broken)}); write the file again")
    return rows


def _read_csv(path: Path) -> tuple[list[_Row], list[str]]:
    """Rows, and what is wrong with the rows that do not fit the header."""
    sheet = split_sheet(path)
    rows = [
        _Row(line, dict(zip(sheet.header, map(clean, cells), strict=True)))
        for line, cells in zip(sheet.lines, sheet.rows, strict=True)
    ]
    return rows, [
        f"line {line}: {cells!r} has not the header's {len(sheet.header)} cells" for line, cells in sheet.broken.items()
    ]


def _read_jsonl(path: Path) -> tuple[list[_Row], list[str]]:
    """Rows, and what is wrong with the lines that are no flat JSON object; null counts as empty."""
    rows: list[_Row] = []
    broken: list[str] = []
    for number, record in read_json_lines(path):
        odd = [name for name in _USED_COLUMNS if not isinstance(record.get(name), str | int | None)]
        if odd:
            broken.append(f"line {number}: {odd[0]!r} is no text")
            continue
        rows.append(_Row(number, {name: "" if value is None else clean(str(value)) for name, value in record.items()}))
    return rows, broken
