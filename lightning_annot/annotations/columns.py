"""Check the columns of a file: report faults by line, and drop repeated rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.annotations.worker_names import RULE, is_worker_name
from lightning_annot.names import KnownNames, clean, is_allowed
from lightning_annot.types import AnnotError

LONGEST = 10_000  # characters of a name; a CSV that holds longer ones might not be read again
_SHOWN = 5
_WIDTH = 80  # characters of a value that a message shows


def check_none(path: Path, bad: pd.Series, problem: str, remedy: str) -> None:
    """Raise AnnotError that names the first few of the ``bad`` values by line, unless there are none.

    Where the index has a name, that is the word for a line.
    """
    if len(bad):
        word = bad.index.name or "line"
        shown = ", ".join(f"{word} {line}: {_short(value)}" for line, value in bad.head(_SHOWN).items())
        more = ", ..." if len(bad) > _SHOWN else ""
        raise AnnotError(f"{path}: {len(bad)} rows {problem} ({shown}{more}); {remedy}")


def check_members(path: Path, values: pd.Series, allowed: Collection[str] | None, name: str) -> None:
    """Raise AnnotError unless all values are among ``allowed`` (None: anything goes); ``name`` says what these are."""
    if allowed is not None:
        first = ", ".join(map(repr, list(allowed)[: 2 * _SHOWN])) + (", ..." if len(allowed) > 2 * _SHOWN else "")
        outside = values[~values.isin(list(allowed))]
        problem = f"have a {values.name} outside the {name}"
        check_none(path, outside, problem, f"the {len(allowed)} {name} are {first}; correct or remove these rows")


def check_names(path: Path, values: pd.Series) -> None:
    """Raise AnnotError unless all values, cleaned before, are names: not empty, and without control characters."""
    check_none(path, values[values == ""], f"have no {values.name}", "fill them or remove them")
    problem = f"have a line end or another control character in the {values.name}"
    check_none(path, values[~_holds(values, is_allowed)], problem, "take it out, or remove these rows")
    problem = f"have a {values.name} of more than {LONGEST} characters"
    check_none(path, values[values.str.len() > LONGEST], problem, "shorten it, or remove these rows")


def check_workers(path: Path, values: pd.Series) -> None:
    """Raise AnnotError unless all values, cleaned before, may be names of workers; the page has the same rule."""
    check_names(path, values)
    check_none(path, values[~_holds(values, is_worker_name)], f"have a {values.name} that is no name for one", RULE)


def cleaned(values: pd.Series) -> pd.Series:
    """Names without white space around them."""
    return _renamed(values, {name: clean(name) for name in values.unique()})


def matched(values: pd.Series, known: Collection[str] | None, ignore_case: bool = False) -> pd.Series:
    """The ``known`` name that each value stands for, see ``KnownNames``; the value itself where there is none."""
    if known is None or not len(values):
        return values
    return _renamed(values, KnownNames(known, ignore_case).find_all(values.unique()))


def distinct(
    path: Path, table: pd.DataFrame, keys: Sequence[str], value: str, problem: str, remedy: str = "keep one row of each"
) -> pd.DataFrame:
    """The first row of each of the ``keys``, which later ones may repeat.

    Raises:
        AnnotError: A row has another ``value`` than an earlier one of the same keys: ``problem``.
    """
    said = table.drop_duplicates([*keys, value])
    check_none(path, said.loc[said.duplicated([*keys]), keys[0]], problem, remedy)
    return table.drop_duplicates([*keys])


def settled(path: Path, answers: pd.DataFrame) -> pd.DataFrame:
    """One answer of each worker about each task: ``answers`` (task, worker, label; None: a skip) without repeats.

    A skip beside a label of the same worker is left out.

    Raises:
        AnnotError: A worker gave a task two labels.
    """
    numbered = answers.assign(_place=np.arange(len(answers)))
    labels, skips = numbered[numbered["label"].notna()], numbered[numbered["label"].isna()]
    problem = "answer a task that the same worker answered in another way above"
    first = distinct(path, labels, ("task", "worker"), "label", problem, "keep one answer of each worker")
    kept = pd.concat([first, skips]).drop_duplicates(["task", "worker"]) if len(skips) else first
    return answers.iloc[np.sort(kept["_place"].to_numpy())]


def parse_seconds(path: Path, values: pd.Series) -> pd.Series:
    """Parse times as float64, NaN where blank; AnnotError for invalid ones."""
    blank = values.str.strip() == ""
    seconds = numbers(values.mask(blank))
    possible = blank | ((seconds >= 0) & (seconds < np.inf))
    check_none(path, values[~possible], "have impossible seconds", "give a number from 0 on, or leave it blank")
    return seconds


def numbers(values: pd.Series) -> pd.Series:
    """Parse text as float64; NaN where it is not a number."""
    return pd.to_numeric(values, errors="coerce").astype("float64")


def parse_slots(path: Path, values: pd.Series) -> pd.Series:
    """Parse slots as int64; AnnotError where one is not a whole number."""
    whole = values.str.fullmatch(r"\d{1,18}").astype(bool)
    check_none(path, values[~whole], "have a slot that is no whole number", "slots count an item's answers: 1, 2, ...")
    return values.astype("int64")


def _holds(values: pd.Series, rule: Callable[[str], bool]) -> pd.Series:
    holds = {name: rule(name) for name in values.unique()}
    return pd.Series([holds[name] for name in values], index=values.index, dtype=bool)


def _renamed(values: pd.Series, names: Mapping[str, str]) -> pd.Series:
    """Not by ``Series.map``, which cannot take lone surrogates, and these are refused later by line."""
    return pd.Series([names[name] for name in values], index=values.index, name=values.name, dtype=object)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}..."
