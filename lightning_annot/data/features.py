"""The feature bank: float16 rows on disk, found by image digest, that survive a kill at any moment.

A bank is one folder with ``bank.json`` (what made the features), ``features.f16`` (raw rows) and ``digests.bin`` (16
bytes a row). Where several processes share the work, process i writes a shard of its own, ``features.i.f16`` and
``digests.i.bin``, all at once; the bank is the union of its shards, whoever reads it later. ``shards.py`` says what a kill
leaves behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from lightning_annot.data.digests import DIGEST_BYTES
from lightning_annot.data.images import first_few
from lightning_annot.data.shards import DIGEST_TYPE, ITEM_BYTES, Shard, shard_numbers
from lightning_annot.files import unwritable, write_text
from lightning_annot.locks import told_if_slow
from lightning_annot.types import AnnotError

_FORMAT = 1
_CHUNK_ROWS = 8192
_LARGEST = 1e15  # squares of larger values, summed over the rows, leave float32
_IN_MEMORY = 1 << 28  # bytes of a copy of features; a larger one goes to a file without a name


class FeatureBank:
    """Features (R, D) float16 by digest. Reading needs no lock; one process at a time writes to each ``shard``."""

    def __init__(self, folder: Path, key_fields: Mapping[str, Any], shard: int = 0) -> None:
        self.folder = folder
        self.key_fields = dict(key_fields)
        self.dim: int | None = None
        self._number = shard
        self._shards = {shard: Shard(folder, shard)}
        self._digests = np.empty(0, DIGEST_TYPE)
        self._order: NDArray[np.int64] | None = None
        self._reload()

    @classmethod
    def open(cls, cache_dir: str | os.PathLike[str], key_fields: Mapping[str, Any], shard: int = 0) -> FeatureBank:
        """The bank of these fields (plain JSON values, at least one) below ``cache_dir``; empty if it is new.

        It writes to its own ``shard`` and reads all.
        """
        folder = bank_folder(cache_dir, key_fields)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, key_fields, shard)

    def __len__(self) -> int:
        """Rows that can be read."""
        return len(self._digests)

    def contains(self, digests: Sequence[str]) -> NDArray[np.bool_]:
        """Whether each digest has a row on disk now, (n,)."""
        self._reload()
        return self._positions(_as_bytes(digests)) >= 0

    def missing(self, digests: Sequence[str]) -> NDArray[np.int64]:
        """Indices into ``digests`` that must still be computed, rising; of equal digests only the first."""
        self._reload()
        wanted = _as_bytes(digests)
        first = np.sort(np.unique(wanted, return_index=True)[1])
        return first[self._positions(wanted[first]) < 0]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer of the shard; waits for another one, then sees all that it wrote."""
        lock = self._shards[self._number].lock
        with told_if_slow(self.folder):
            lock.acquire()
        try:
            self._reload()
            yield
        finally:
            lock.release()

    def append(self, digests: Sequence[str], features: NDArray[np.floating[Any]]) -> None:
        """Add one block of ``features`` (n, D), finite in float16, and force it to disk before returning.

        A digest that is there already keeps its first row.
        """
        block, keys = np.asarray(features), _as_bytes(digests)
        if block.ndim != 2 or len(block) != len(keys):
            raise AnnotError(
                f"features of shape {block.shape} came for {len(keys)} digests; they must be (n, D), one row a digest"
            )
        with np.errstate(over="ignore"):  # overflow becomes inf and is reported below
            block = np.ascontiguousarray(block, dtype="<f2")
        bad = np.flatnonzero(~np.isfinite(block).all(1))
        if len(bad):
            raise AnnotError(f"{len(bad)} feature rows are not finite in float16 (rows {first_few(bad.tolist())} of the block)")
        if not len(block):
            return
        with self.writing():
            self._fix_width(block.shape[1])
            self._shards[self._number].append(keys, block)
            self._join()

    def read(self, digests: Sequence[str]) -> NDArray[np.float16]:
        """Features (n, D) of the digests, in order: the memory map itself where they lie in order, else a copy.

        A copy of more than 256 MiB is in a file that nobody sees and that goes with the array, so memory stays bounded.
        """
        rows = self._positions(_as_bytes(digests))
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            which = first_few([digests[row] for row in absent[:4]])
            raise AnnotError(
                f"{len(absent)} of {len(rows)} images are not in the bank {self.folder} ({which}); extract them first"
            )
        if self.dim is None:
            return np.empty((0, 0), np.float16)
        if not len(rows):
            return np.empty((0, self.dim), np.float16)
        stored, starts = self._maps(self.dim)
        if np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            shard = int(np.searchsorted(starts, rows[0], side="right")) - 1
            first = rows[0] - starts[shard]
            if first + len(rows) <= len(stored[shard]):
                return stored[shard][first : first + len(rows)]
        chunks = (_gather(stored, starts, rows[start : start + _CHUNK_ROWS]) for start in range(0, len(rows), _CHUNK_ROWS))
        if len(rows) * self.dim * ITEM_BYTES <= _IN_MEMORY:
            return np.concatenate(list(chunks))
        try:
            with TemporaryFile(dir=self.folder) as file:
                for chunk in chunks:
                    file.write(chunk.tobytes())
                file.flush()
                return np.memmap(file, dtype="<f2", mode="r", shape=(len(rows), self.dim))
        except OSError as error:
            raise AnnotError(unwritable(self.folder, error)) from error

    @property
    def _header_path(self) -> Path:
        return self.folder / "bank.json"

    def _reload(self) -> None:
        """See the rows that are on disk now; cheap when nothing changed."""
        if self.dim is None and self._header_path.exists():
            self.dim = _read_header(self._header_path)
        if self.dim is None:
            return
        for number in shard_numbers(self.folder):
            self._shards.setdefault(number, Shard(self.folder, number))
        changed = [shard.reload(self.dim) for shard in self._shards.values()]
        if any(changed):
            self._join()

    def _join(self) -> None:
        """The digests of all shards, in the order of their numbers."""
        self._shards = dict(sorted(self._shards.items()))
        self._digests = np.concatenate([shard.digests for shard in self._shards.values()])
        self._order = None

    def _maps(self, dim: int) -> tuple[list[NDArray[np.float16]], NDArray[np.int64]]:
        """The shards that have rows as memory maps, and the row at which each starts."""
        filled = [shard for shard in self._shards.values() if len(shard.digests)]
        sizes = [len(shard.digests) for shard in filled]
        return [shard.features(dim) for shard in filled], np.cumsum([0, *sizes[:-1]])

    def _fix_width(self, dim: int) -> None:
        """Fix the width at the first block."""
        if self.dim is None:
            _write_header(self._header_path, self.key_fields, dim)
            self.dim = dim
        if dim != self.dim:
            raise AnnotError(f"features have {dim} values, those in {self.folder} have {self.dim}; use another cache folder")

    def _positions(self, wanted: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Row of each digest, or -1, (n,)."""
        if not len(self._digests):
            return np.full(len(wanted), -1)
        if self._order is None:
            self._order = np.argsort(self._digests, kind="stable")
        place = np.searchsorted(self._digests, wanted, sorter=self._order)
        rows = self._order[np.minimum(place, len(self._digests) - 1)]
        return np.where(self._digests[rows] == wanted, rows, -1)


def bank_folder(cache_dir: str | os.PathLike[str], key_fields: Mapping[str, Any]) -> Path:
    """The folder of the bank of these fields, which may not be there yet."""
    text = json.dumps(dict(key_fields), sort_keys=True)
    name = re.sub(r"[^\w.-]+", "_", str(key_fields[min(key_fields)]))[:64]  # for people; the hash decides
    return Path(cache_dir) / f"{name}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def load_features(path: str | os.PathLike[str]) -> NDArray[np.floating[Any]]:
    """Ready-made features: a ``.npy`` of shape (N, D), float16 or float32, memory-mapped and read-only.

    Every value is checked once, in chunks: NaN and inf are an error that names the first rows, and so are values above 1e15.
    """
    try:
        features = open_memmap(path, mode="r")
    except Exception as error:  # the parser of the header raises whatever the bytes make Python's tokenizer raise
        raise AnnotError(
            f"{path} cannot be read as .npy ({error}); save it with numpy.save, without pickled objects"
        ) from error
    if features.dtype not in (np.float16, np.float32) or features.ndim != 2 or 0 in features.shape:
        raise AnnotError(
            f"{path} holds {features.dtype} of shape {features.shape}; "
            "features are float16 or float32 of shape (N, D), one row an image"
        )
    bad: list[int] = []
    peak = 0.0
    for start in range(0, len(features), _CHUNK_ROWS):
        chunk = features[start : start + _CHUNK_ROWS]
        bad += (np.flatnonzero(~np.isfinite(chunk).all(1)) + start).tolist()
        if features.dtype == np.float32:
            peak = max(peak, float(np.abs(chunk).max()))
    if bad:
        raise AnnotError(
            f"{path} has NaN or inf in {len(bad)} of {len(features)} rows ({first_few(bad)}); compute these rows again"
        )
    if peak > _LARGEST:
        raise AnnotError(f"{path} has values up to {peak:.3g}; {_LARGEST:g} is the most. Divide all values by the same number.")
    return features


def _as_bytes(digests: Sequence[str]) -> NDArray[np.bytes_]:
    """Digests as (n,) fixed-size bytes."""
    odd = [digest for digest in digests if len(digest) != 2 * DIGEST_BYTES]
    try:
        if odd:
            raise ValueError(f"{odd[0]!r} has {len(odd[0])} characters")
        return np.frombuffer(bytes.fromhex("".join(digests)), DIGEST_TYPE)
    except ValueError as error:
        raise AnnotError(f"image digests must be {2 * DIGEST_BYTES} hexadecimal characters: {error}") from error


def _gather(stored: Sequence[NDArray[np.float16]], starts: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float16]:
    """Copies of ``rows`` (n,) of the bank, (n, D); ``stored`` begin at the rows ``starts``."""
    features = np.empty((len(rows), stored[0].shape[1]), np.float16)
    shard = np.searchsorted(starts, rows, side="right") - 1
    for number in np.unique(shard):
        here = shard == number
        features[here] = stored[number][rows[here] - starts[number]]
    return features


def _read_header(path: Path) -> int:
    """Number of values a row."""
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        dim = int(header["dim"])
        if header["format"] != _FORMAT or dim < 1:
            raise ValueError(f"format {header['format']}, dim {dim}")
    except (ValueError, KeyError, TypeError) as error:
        raise AnnotError(f"{path} is no header of a feature bank ({error}); delete its folder to extract again") from error
    return dim


def _write_header(path: Path, key_fields: Mapping[str, Any], dim: int) -> None:
    """Write ``bank.json`` whole or not at all; writers of other shards may do the same at the same time."""
    header = {
        "format": _FORMAT,
        "dim": dim,
        "dtype": "float16",
        "digest_bytes": DIGEST_BYTES,
        "made_by": dict(key_fields),
    }
    write_text(path, json.dumps(header, indent=2) + "\n")
