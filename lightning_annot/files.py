"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import itertools
import os
import platform
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning_annot.types import AnnotError

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_count = itertools.count()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new file beside ``path``, and put it in the place of ``path`` once the block has ended.

    A reader, a crash, or a loss of power sees the old file or the new one, whole: the content is forced to disk before the
    name changes. Where the block fails, ``path`` stays as it was and nothing is left beside it.

    Raises:
        AnnotError: The file cannot be written: no such folder, no permission, a full or read-only disk.
    """
    draft = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{next(_count)}.tmp{path.suffix}")
    try:
        _remove_abandoned(path)
        yield draft
        _sync(draft)
        os.replace(draft, path)
        if os.name == "posix":  # elsewhere folders cannot be opened
            _sync(path.parent)
    except OSError as error:
        raise AnnotError(unwritable(path, error)) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` with ``text`` (UTF-8) in one step, see ``replacing``."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def check_writable(folder: Path) -> None:
    """Raise AnnotError where ``folder`` cannot be written to, or, where it is not there, cannot be made."""
    there = nearest(folder)
    if not there.is_dir():
        raise AnnotError(unwritable(folder, NotADirectoryError(f"{there} is no folder")))
    if not os.access(there, os.W_OK | os.X_OK):
        raise AnnotError(unwritable(folder, PermissionError(f"no permission to write in {there}")))


def nearest(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    path = path.absolute()
    return next((part for part in (path, *path.parents) if part.exists()), path)


def unwritable(path: Path | str, error: Exception) -> str:
    """The sentence for a file that cannot be written."""
    return f"{path} cannot be written: {error}; check the disk's free space and the permissions, then repeat the same command"


def _remove_abandoned(path: Path) -> None:
    """Remove drafts of ``path`` by processes of this machine that were killed meanwhile."""
    prefix = f".{path.name}.{_HOST}-"
    for name in os.listdir(path.parent):
        if name.startswith(prefix):
            process = name.removeprefix(prefix).partition("-")[0]
            if process.isdecimal() and not _is_alive(int(process)):
                (path.parent / name).unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # Windows takes signal 0 for Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _sync(path: Path) -> None:
    """Force a file's content, or a folder's names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
