"""Arrays from files that anybody may have made."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_annot.types import AnnotError

MOST_BYTES = 1 << 30  # that any file may unpack to
_MOST_TIMES = 100  # its own size that a larger one may


def read_arrays(path: Path, names: Sequence[str], remedy: str) -> list[np.ndarray]:
    """The arrays ``names`` of an ``.npz``, in that order; nothing is unpickled.

    Raises:
        AnnotError: The file cannot be read, lacks an array, or unpacks to far more than it is; it ends in ``remedy``.
    """
    check_unpacked(path, remedy)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [np.asarray(arrays[name]) for name in names]
    except Exception as error:  # np.load raises whatever the bytes make its parsers raise, MemoryError among it
        reason = str(error)[:200] or type(error).__name__
        raise AnnotError(f"{path} cannot be read ({reason}); {remedy}") from error


def check_unpacked(path: Path, remedy: str) -> None:
    """Raise AnnotError where ``path`` is a zip file whose members unpack to more than memory should be given for."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise AnnotError(f"{path} cannot be read ({error}); {remedy}") from error
    if size > max(MOST_BYTES, _MOST_TIMES * path.stat().st_size):
        raise AnnotError(f"{path} would unpack to {size:,} bytes, over {_MOST_TIMES} times its size; {remedy}")
