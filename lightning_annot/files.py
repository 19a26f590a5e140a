"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import errno
import itertools
import os
import platform
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_annot.types import AnnotError

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_count = itertools.count()
_OF_THE_DISK = {
    getattr(errno, name)
    for name in ("EACCES", "EDQUOT", "EEXIST", "EFBIG", "EIO", "ENAMETOOLONG", "ENOSPC", "ENOTDIR", "EPERM", "EROFS", "ESTALE")
    if hasattr(errno, name)
}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new file beside ``path``, and put it in the place of ``path`` once the block has ended.

    A reader, a crash, or a loss of power sees the old file or the new one, whole: the content is forced to disk before the
    name changes. Where the block fails, ``path`` stays as it was and nothing is left beside it. The block may also make a
    folder; it replaces ``path`` if that is absent or an empty folder.

    Raises:
        AnnotError: The file cannot be written: no such folder, no permission, a full or read-only disk.
    """
    draft = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{next(_count)}.tmp{path.suffix}")
    try:
        _remove_abandoned(path)
        yield draft
        for part in (*sorted(draft.rglob("*"), reverse=True), draft):
            if not part.is_symlink():
                _sync(part)
        os.replace(draft, path)
        _sync(path.parent)
    except OSError as error:
        raise AnnotError(unwritable(path, error)) from error
    finally:
        with suppress(OSError):
            _remove(draft)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` with ``text`` (UTF-8) in one step, see ``replacing``."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` with ``content`` in one step, see ``replacing``."""
    with replacing(path) as draft:
        draft.write_bytes(content)


def write_torch(path: Path, content: Any) -> None:
    """Replace ``path`` with what ``torch.save`` makes of ``content`` in one step, see ``replacing``.

    The archive inside does not bear the file's name, so equal contents are equal bytes.
    """
    import torch

    with replacing(path) as draft, draft.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own words for a write that failed
            if isinstance(error.__context__, OSError):
                raise AnnotError(unwritable(path, error.__context__)) from error
            raise


def of_the_disk(error: OSError) -> bool:
    """Whether this is a full, read-only or failing disk, or a path that nothing can be written to, and no fault of the code."""
    return error.errno in _OF_THE_DISK


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
                _remove(path.parent / name)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    if os.name != "posix" and path.is_dir():  # elsewhere folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
