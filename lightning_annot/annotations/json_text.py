"""Read JSON files of other tools; every fault is an AnnotError with its place. A run's own files are read by ``stored.py``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_annot.annotations.text import UTF_8, read_text, tell
from lightning_annot.types import AnnotError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # an escape of one half of a character
_LONG = re.compile(r"\d{1000,}")


def read_json(path: Path) -> Any:
    """The content of a JSON file, in UTF-8, UTF-16 or UTF-32.

    Raises:
        AnnotError: The file cannot be read or is no JSON, see ``parse_json``.
    """
    return parse_json(_text(path), path)


def read_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Number and content of each line that is not blank.

    Raises:
        AnnotError: A line is no JSON object.
    """
    rows = []
    for number, line in enumerate(_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if line.strip():
            row = parse_json(line, path, number)
            if not isinstance(row, dict):
                raise AnnotError(f"{path}, line {number}: {line[:60]!r} is no JSON object; one a line is needed")
            rows.append((number, row))
    return rows


def parse_json(text: str, path: Path, line: int = 1) -> Any:
    """Parse JSON that begins on ``line`` of a file.

    Raises:
        AnnotError: Bad syntax, brackets nested too deeply, numbers that are not finite or have thousands of digits, an
            object that gives one key two values, text with a lone surrogate, which no file or database can hold.
    """
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_without_contradictions)
    except json.JSONDecodeError as error:
        raise AnnotError(f"{path}, line {line + error.lineno - 1}: {error.msg}; the file may be cut") from error
    except RecursionError as error:
        raise AnnotError(f"{path}, line {line}: brackets are nested too deeply; export the file anew") from error
    except ValueError as error:
        if long := _LONG.search(text):
            place = line + text.count("\n", 0, long.start())
            reason = f"{long[0][:10]}... is a number of {len(long[0])} digits"
        else:
            place, reason = line, str(error)
        raise AnnotError(f"{path}, from line {place} on: {reason}; correct it or export the file anew") from error
    if escape := _SURROGATE.search(text):
        _check_pairs(found, path, line + text.count("\n", 0, escape.start()))
    return found


def name_of(path: Path | str, where: str, value: object) -> str:
    """A JSON value as the name of a task, worker or class: text, a number, true or false.

    Raises:
        AnnotError: It is null, a list or an object.
    """
    if not isinstance(value, str | int | float):
        raise AnnotError(f"{path}, {where}: {json.dumps(value)[:60]} is no name; give text or a number")
    return text_of(value)


def text_of(value: object) -> str:
    """A JSON value as text: whole numbers without a point, other kinds as they are written."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _text(path: Path) -> str:
    text, encoding = read_text(path)
    if encoding != UTF_8:
        tell(f"{path}: read as {encoding}")
    return text


def _check_pairs(found: Any, path: Path, line: int) -> None:
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise AnnotError(
            f"{path}, from line {line} on: {error.object[error.start]!a} is half of a character; export the file anew"
        ) from error


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _without_contradictions(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"one object has the key {key[:60]!r} twice, with two values")
    return found
