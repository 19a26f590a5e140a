"""Files that a run keeps, read back: damage by a disk, or by a copy that was cut, is an AnnotError with the file's name."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    import numpy as np  # imported where arrays are read: the page starts sooner without


MOST_BYTES = 1 << 30  # that any file may unpack to
_MOST_TIMES = 100  # its own size that a larger one may
SUMMARY, POSTERIOR = "summary.json", "posterior.npz"
CURE = "copy it again from where the run was, or let the run write it anew by the same fit command"


def damaged(path: Path, error: object, cure: str = CURE) -> AnnotError:
    """The error for a file whose content is not what a run writes; ``cure``: what to do about it."""
    return AnnotError(f"{path} is damaged ({error}); {cure}")


@contextmanager
def reading(path: Path, cure: str = CURE) -> Iterator[None]:
    """Raise whatever reading a missing or damaged file raises as an AnnotError; see ``damaged``."""
    try:
        yield
    except AnnotError:
        raise
    except Exception as error:  # zipfile, NumPy, pandas and json raise some twenty kinds
        if isinstance(error, OSError) and error.errno is not None:  # none of the content's
            raise AnnotError(f"{path} cannot be read ({error}); {cure}") from error
        raise damaged(path, f"{type(error).__name__}: {error}", cure) from error


def read_text(path: Path, cure: str = CURE) -> str:
    """The text of a file in UTF-8."""
    with reading(path, cure):
        return path.read_text(encoding="utf-8")


def read_object(path: Path, cure: str = CURE) -> dict[str, Any]:
    """The JSON object of a file."""
    with reading(path, cure):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"a JSON {type(found).__name__} where an object belongs")
        return found


def read_arrays(path: Path, names: Sequence[str], cure: str = CURE) -> list[np.ndarray]:
    """The arrays ``names`` of an ``.npz``; others, which may be large, are not read, and nothing is unpickled."""
    import numpy as np

    with reading(path, cure):
        check_unpacked(path)
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise TypeError("it is no .npz")
            return [np.asarray(arrays[name]) for name in names]


def check_unpacked(path: Path) -> None:
    """Raise ValueError where ``path`` is a zip file that unpacks to more than memory should be given for."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > max(MOST_BYTES, _MOST_TIMES * path.stat().st_size):
        raise ValueError(f"it would unpack to {size:,} bytes, over {_MOST_TIMES} times its size")


def check_end(path: Path) -> None:
    """Raises ValueError unless the last line of a text file has its end, as a run writes it."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            raise ValueError("it is empty, or cut in the middle of a line")


def items_of_run(directory: Path, summary: Mapping[str, Any]) -> int | None:
    """How many rows ``labels.csv`` has by ``summary.json`` or else ``posterior.npz``; None where neither says so."""
    if {"n_items", "prototypes"} <= {*summary}:
        return int(summary["n_items"]) + int(summary["prototypes"])
    path = directory / POSTERIOR
    if not path.is_file():
        return None
    import numpy as np

    with reading(path), zipfile.ZipFile(path) as archive, archive.open("label.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return int(read(file)[0][0])


def texts(value: object) -> tuple[str, ...]:
    """A list of texts, as JSON has it; raises TypeError for anything else."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError("a list of texts is missing")
    return tuple(value)
