"""Items by the addresses that other tools give to their images."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

logger = logging.getLogger(__name__)

_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)", re.DOTALL)  # what Label Studio makes of a file's name
_DROPPED = re.compile(r"[^-\w.]")  # by its storage, after spaces became underscores


def path_of(address: str) -> str:
    """The path of a URL, or the one that an address of Label Studio's local files has as ``?d=``, without escapes."""
    try:
        parts = urlsplit(address)
    except ValueError:  # such as http://[x
        return address
    inner = [value for key, _, value in (item.partition("=") for item in parts.query.split("&")) if key == "d"]
    return unquote(inner[0] if inner else parts.path if parts.scheme else address)


def file_name(address: str) -> str:
    """The last part of a path or URL, see ``path_of``."""
    return PurePosixPath(path_of(address)).name


def find_items(tasks: Iterable[str], items: Collection[str]) -> dict[str, str]:
    """The item of each task that is written as an address of it.

    An address belongs to an item if one path ends in the other, whole folders at a time. A file that was uploaded to Label
    Studio has lost its folder and got eight digits and a hyphen before its name; its name alone is compared.

    Returns:
        Item by task; tasks are left out that are items themselves, belong to no item or to several, or share one.
    """
    known = {*items}
    given = {*tasks}
    foreign = given - known
    if not foreign:
        return {}
    paths = {task: path_of(task) for task in foreign}
    index = _Index(known, paths.values())
    found = {task: item for task, path in paths.items() if (item := index.find(path)) is not None}
    count = Counter(found.values())
    return {task: item for task, item in found.items() if count[item] == 1 and item not in given}


def report_found(path: object, found: dict[str, str]) -> None:
    """Say in one line how many tasks were found by their addresses."""
    if found:
        task = min(found)
        logger.warning("%s: %d tasks found by file name, such as %r as %r", path, len(found), task, found[task])


class _Index:
    """Items by the ends of their paths; ends that no task of ``paths`` asks for are left out, so it stays small."""

    def __init__(self, items: Collection[str], paths: Iterable[str]) -> None:
        self._items = items
        wanted, uploads = _asked(paths)
        self._by_end: dict[str, set[str]] = {}
        self._by_upload: dict[str, set[str]] = {}
        for item in items:
            for end in wanted.intersection(_ends(item)):
                self._by_end.setdefault(end, set()).add(item)
            if uploads and (stored := _stored(item.rstrip("/").rpartition("/")[2])) in uploads:
                self._by_upload.setdefault(stored, set()).add(item)

    def find(self, path: str) -> str | None:
        """The one item at ``path``, if there is one."""
        folders, _, name = path.strip("/").rpartition("/")
        uploaded = _UPLOADED.fullmatch(name)
        if uploaded and "upload" in folders.split("/"):
            return _only(self._by_end.get(uploaded[1], set()) | self._by_upload.get(_stored(uploaded[1]), set()))
        path = path.strip("/")
        return _only({end for end in _ends(path) if end in self._items} | self._by_end.get(path, set()))


def _asked(paths: Iterable[str]) -> tuple[set[str], set[str]]:
    """The ends of items that ``_Index.find`` looks up for ``paths``, and the names as Label Studio's storage has them."""
    wanted: set[str] = set()
    uploads: set[str] = set()
    for path in paths:
        folders, _, name = path.strip("/").rpartition("/")
        wanted.add(path.strip("/"))
        if uploaded := _UPLOADED.fullmatch(name):
            wanted |= {uploaded[1], f"{folders}/{uploaded[1]}".strip("/")}
            uploads.add(_stored(uploaded[1]))
    return wanted, uploads


def _ends(path: str) -> list[str]:
    """``a/b/c``, ``b/c`` and ``c``."""
    parts = path.strip("/").split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _stored(name: str) -> str:
    return _DROPPED.sub("", name.replace(" ", "_"))


def _only(found: set[str]) -> str | None:
    return next(iter(found)) if len(found) == 1 else None
