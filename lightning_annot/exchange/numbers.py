"""Forms that know numbers alone: names are numbered, and a table beside the file says what the numbers stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lightning_annot.annotations.columns import check_none
from lightning_annot.annotations.formats import read_table, write_table
from lightning_annot.types import AnnotError

COLUMNS = ("column", "number", "name")
WHOLE = r"0|[1-9][0-9]{0,17}"


def names_file(path: Path) -> Path:
    """``answers.names.csv`` beside ``answers.csv``: ``column,number,name``."""
    return path.with_name(f"{path.stem}.names.csv")


def write_numbered(path: Path, table: pd.DataFrame, names: Mapping[str, Sequence[str]]) -> None:
    """Write ``table``, in whose columns ``names`` all values are among the names given, or empty.

    A column whose names are whole numbers stays as it is; in any other each name becomes its place. Old ``names_file``s go.
    """
    table, rows = table.copy(), []
    for key, known in names.items():
        if not pd.Series(known, dtype=object).astype(str).str.fullmatch(WHOLE).all():
            place = {name: str(number) for number, name in enumerate(known)}
            table[key] = table[key].map(place | {"": ""})
            rows += [(key, number, name) for name, number in place.items()]
    beside = names_file(path)
    try:
        beside.unlink(missing_ok=True)  # first: numbers must never be read with the names of other ones
    except OSError as error:
        raise AnnotError(f"{beside} cannot be removed: {error}; it would name the new numbers wrongly") from error
    write_table(path, table)
    if rows:
        write_table(beside, pd.DataFrame(rows, columns=list(COLUMNS)))


def named(path: Path, column: str, values: pd.Series) -> pd.Series:
    """``values`` of a file's ``column`` as the table beside it names them; as they are where there is none."""
    beside = names_file(path)
    if not beside.is_file():
        return values
    table = read_table(beside, COLUMNS)
    table = table[table["column"] == column]
    if table.empty:
        return values
    names = dict(zip(table["number"], table["name"], strict=True)) | {"": ""}
    odd = values[~values.isin(list(names))]
    check_none(path, odd, f"have a {column} without a name in {beside.name} beside it", "correct it or remove that file")
    return values.map(names)
