"""Where image files lie: a folder's files, those that lead out of it, and files whose names are written in another form."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lightning_annot.names import KnownNames
from lightning_annot.types import AnnotError

UNREADABLE = "folders that cannot be read"
SPECIAL = "special files"


class Fence:
    """Tells whether a path leads out of ``root``, by a link, by ``..`` or by being absolute."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.realpath(root)
        self._folders: dict[str, bool] = {}

    def holds(self, path: str) -> bool:
        """Whether the file at ``path`` lies below the root, links resolved."""
        folder = os.path.dirname(path)
        if os.path.islink(path):
            return self._is_below(path)
        if folder not in self._folders:
            self._folders[folder] = self._is_below(folder)
        return self._folders[folder]

    def _is_below(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self._root or real.startswith(self._root.rstrip(os.sep) + os.sep)


def refuse_outside(where: str | os.PathLike[str], outside: Sequence[str]) -> None:
    """Raise AnnotError if any paths lead ``outside``."""
    if outside:
        shown = ", ".join(outside[:3]) + (", ..." if len(outside) > 3 else "")
        raise AnnotError(
            f"{len(outside)} images lie outside {where} ({shown}), by links, absolute paths or '..'. If that is meant, set "
            "data.allow_outside true; else copy the files into it"
        )


@dataclass
class Walk:
    """Files and folders below a root as relative posix paths, without hidden folders; ``outside``: files that lead out of it.

    ``passed_over`` counts what is neither.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def walk(root: Path) -> Walk:
    """List everything below ``root``. Links to folders are followed, but not in circles."""
    found, fence = Walk(), Fence(root)
    real = os.path.realpath(root)
    waiting: list[tuple[str, str, tuple[str, ...]]] = [(str(root), "", (real,))]
    while waiting:
        folder, relative, chain = waiting.pop()
        is_out = not fence.holds(os.path.join(folder, "."))
        try:
            entries = list(os.scandir(folder))
        except OSError:
            found.passed_over[UNREADABLE] += 1
            continue
        for entry in entries:
            name, is_link = relative + entry.name, entry.is_symlink()
            if entry.is_dir():
                target = os.path.realpath(entry.path) if is_link else os.path.join(chain[-1], entry.name)
                circular = is_link and any(f"{above}{os.sep}".startswith(f"{target}{os.sep}") for above in chain)
                if not entry.name.startswith(".") and not circular:
                    found.folders.append(name)
                    waiting.append((entry.path, f"{name}/", (*chain, target)))
            elif entry.is_file() or is_link:  # a link to nowhere is an image that cannot be read
                found.files.append(name)
                if is_out or (is_link and not fence.holds(entry.path)):
                    found.outside.append(name)
            else:
                found.passed_over[SPECIAL] += 1
    return found


class Finder:
    """Finds files below ``base`` by names that may differ in Unicode form, outer white space, or backslashes for slashes."""

    def __init__(self, base: str | os.PathLike[str]) -> None:
        self._base = os.fspath(base)
        self._names: dict[str, KnownNames] = {}

    def find(self, name: str) -> str:
        """The path of the file called ``name``; where there is none, the path as written."""
        written = os.path.join(self._base, name)
        if os.path.isfile(written):
            return written
        found = (self._descend(spelling) for spelling in dict.fromkeys((name, name.replace("\\", "/"))))
        return next((path for path in found if path is not None), written)

    def _descend(self, name: str) -> str | None:
        at = self._base
        for part in PurePosixPath(name).parts:
            step = os.path.join(at, part)
            if not os.path.exists(step):
                step = os.path.join(at, self._in(at).find(part))
            at = step
        return at if os.path.isfile(at) else None

    def _in(self, folder: str) -> KnownNames:
        if folder not in self._names:
            self._names[folder] = KnownNames(os.listdir(folder) if os.path.isdir(folder) else ())
        return self._names[folder]
