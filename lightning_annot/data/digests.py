"""Content digests of images: 16 bytes of BLAKE2b as 32 hexadecimal characters.

Files are hashed once: their digests are kept in ``digests.sqlite`` by absolute path, size and time of change, so a
start over unchanged files reads none of them.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from lightning_annot.data.decode import read_file
from lightning_annot.files import unwritable
from lightning_annot.types import AnnotError

DIGEST_BYTES = 16
_CACHE_FILE = "digests.sqlite"
_CHUNK = 512  # below SQLite's oldest limit of 999 variables a statement; also the most hashes that a kill can lose
_SLICE = 64  # files a thread looks at in one go
_THREADS = 8  # hashing and waiting for the disk release the GIL; more than cores, to hide the latency of network disks

Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds."""


def content_digest(*parts: bytes) -> str:
    """Digest of the parts in order; each is preceded by its length, so that moving a boundary changes the digest."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def file_digests(paths: Sequence[str], cache_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """One digest a file, in order; files that ``cache_dir`` knows unchanged are not read.

    A file that cannot be read gets a digest of its path, never cached: opening it fails too, and that is where it is
    reported.
    """
    paths = [os.path.abspath(path) for path in paths]
    with ThreadPoolExecutor(_THREADS) as pool:
        if cache_dir is None:
            return [_or_by_path(*pair) for pair in zip(pool.map(_hash_file, paths), paths, strict=True)]
        digests: list[str] = []
        with _open_cache(Path(cache_dir)) as cache:
            for start in range(0, len(paths), _CHUNK):
                digests += _cached_chunk(cache, pool, paths[start : start + _CHUNK])
        return digests


def _cached_chunk(cache: sqlite3.Connection, pool: ThreadPoolExecutor, paths: Sequence[str]) -> list[str]:
    """Digests of at most ``_CHUNK`` files; hashes and commits those that are new or changed."""
    query = f"SELECT path, size, mtime_ns, digest FROM digest WHERE path IN ({','.join('?' * len(paths))})"
    found = cache.execute(query, paths)
    known: dict[tuple[str, Stamp | None], str] = {(path, (size, mtime)): digest for path, size, mtime, digest in found}
    # Stamps are taken before the files are read: a file that changes meanwhile is hashed again at the next start.
    slices = [paths[start : start + _SLICE] for start in range(0, len(paths), _SLICE)]
    stamps = [stamp for part in pool.map(_stamps, slices) for stamp in part]
    fresh = [i for i, key in enumerate(zip(paths, stamps, strict=True)) if key not in known]
    hashed = dict(zip(fresh, pool.map(_hash_file, [paths[i] for i in fresh]), strict=True))
    rows = [(paths[i], *stamp, digest) for i, digest in hashed.items() if digest and (stamp := stamps[i])]
    with cache:
        cache.executemany("INSERT OR REPLACE INTO digest VALUES (?, ?, ?, ?)", rows)
    return [_or_by_path(hashed[i], path) if i in hashed else known[path, stamps[i]] for i, path in enumerate(paths)]


def _stamps(paths: Sequence[str]) -> list[Stamp | None]:
    return [_stamp(path) for path in paths]


def _stamp(path: str) -> Stamp | None:
    """The file's stamp, or None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _hash_file(path: str) -> str | None:
    """Content digest, or None if the file cannot be read, or is larger than an image may be."""
    try:
        return content_digest(read_file(path))
    except OSError:
        return None


def _or_by_path(digest: str | None, path: str) -> str:
    return digest or content_digest(b"unreadable", os.fsencode(path))


@contextmanager
def _open_cache(cache_dir: Path) -> Iterator[sqlite3.Connection]:
    """The cache, created if absent; any SQLite error is an AnnotError that names the file."""
    path = cache_dir / _CACHE_FILE
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnnotError(unwritable(cache_dir, error)) from error
    try:
        with closing(sqlite3.connect(path, timeout=60.0)) as cache:
            cache.execute(
                "CREATE TABLE IF NOT EXISTS digest "
                "(path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, digest TEXT) WITHOUT ROWID"
            )
            yield cache
    except sqlite3.OperationalError as error:
        raise AnnotError(unwritable(path, error)) from error
    except sqlite3.Error as error:
        raise AnnotError(
            f"the digest cache {path} cannot be used ({error}); delete the file, it is built again from the images"
        ) from error
