"""One shard of a feature bank: rows that one process at a time appends to two files.

A block is appended features first, digests second, each forced to disk. A row is valid when both files hold it whole; what
a kill left beyond that is cut off by the next writer, so at most the block under way is lost. A valid row never moves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lightning_annot.data.digests import DIGEST_BYTES
from lightning_annot.files import unwritable
from lightning_annot.types import AnnotError

ITEM_BYTES = 2  # float16
DIGEST_TYPE = np.dtype(f"S{DIGEST_BYTES}")  # NumPy sorts and compares bytes; only reading one out would strip zero bytes
_NAME = re.compile(r"digests(?:\.(\d+))?\.bin")


class Shard:
    """``digests`` (r,) of the rows that can be read; ``lock`` is to be held by who appends."""

    def __init__(self, folder: Path, number: int) -> None:
        tail = f".{number}" if number else ""
        self._features = folder / f"features{tail}.f16"
        self._digests = folder / f"digests{tail}.bin"
        self.lock = FileLock(folder / f"writer{tail}.lock")
        self.digests: NDArray[np.bytes_] = np.empty(0, DIGEST_TYPE)

    def reload(self, dim: int) -> bool:
        """See the rows that are on disk now, and tell whether any are new."""
        rows = min(_size(self._features) // (dim * ITEM_BYTES), _size(self._digests) // DIGEST_BYTES)
        if rows == len(self.digests):
            return False
        self.digests = np.fromfile(self._digests, DIGEST_TYPE, count=rows)
        return True

    def append(self, digests: NDArray[np.bytes_], features: NDArray[np.float16]) -> None:
        """Add ``features`` (n, D) and their ``digests`` (n,); cuts what an interrupted append left behind.

        Raises:
            AnnotError: The disk is full, read-only or failing. The rows that were there stay, and nothing of these does.
        """
        valid = {self._features: features.shape[1] * ITEM_BYTES, self._digests: DIGEST_BYTES}
        valid = {path: len(self.digests) * row_bytes for path, row_bytes in valid.items()}
        path = self._features
        try:
            _cut(valid)
            for path, content in ((self._features, features), (self._digests, digests)):
                append_bytes(path, content.tobytes())
        except OSError as error:
            with suppress(OSError):
                _cut(valid)
            raise AnnotError(unwritable(path, error)) from error
        self.digests = np.concatenate([self.digests, digests])

    def features(self, dim: int) -> NDArray[np.float16]:
        """All features (r, D), at least one row, as a read-only memory map."""
        return np.memmap(self._features, dtype="<f2", mode="r", shape=(len(self.digests), dim))


def shard_numbers(folder: Path) -> list[int]:
    """Numbers of the shards in a bank's folder, rising."""
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1] or 0) for match in found if match)


def append_bytes(path: Path, content: bytes) -> None:
    """Append, and return once the content is on disk."""
    with open(path, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _cut(sizes: Mapping[Path, int]) -> None:
    """Cut off what files have beyond these sizes in bytes."""
    for path, size in sizes.items():
        if _size(path) > size:
            os.truncate(path, size)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
