"""Where images come from: one function that knows every kind of source, and the mapping from task ids to files."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from lightning_annot.data.archives import zip_source
from lightning_annot.data.datasets import (
    DOWNLOAD_DIR,
    TORCHVISION,
    digits_features,
    digits_source,
    torchvision_source,
)
from lightning_annot.data.files import folder_source
from lightning_annot.data.images import Images, first_few
from lightning_annot.data.manifest import MANIFEST_SUFFIXES, manifest_source
from lightning_annot.names import KnownNames, clean
from lightning_annot.types import AnnotError

__all__ = [
    "Images",
    "digits_features",
    "digits_source",
    "folder_source",
    "manifest_source",
    "open_source",
    "remap_ids",
    "torchvision_source",
    "zip_source",
]

_CONVERSION = re.compile(r"%(?P<flags>[-+ 0#]*\d*(?:\.\d+)?)(?P<kind>[a-zA-Z%])")


def open_source(
    root: str,
    *,
    split: str = "train",
    download_dir: str | os.PathLike[str] = DOWNLOAD_DIR,
    download: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    allow_outside: bool = False,
) -> Images:
    """Images that ``root`` names: a folder, a ``.zip``, a ``.csv`` or ``.jsonl``, ``digits``, or ``torchvision:NAME``.

    ``split``, ``download_dir`` and ``download`` matter to torchvision alone; ``cache_dir`` keeps the digests of files. Unless
    ``allow_outside``, images that links, ``..`` or absolute paths place outside the root are an error.
    """
    if root == "digits":
        return digits_source()
    if root.startswith(TORCHVISION):
        return torchvision_source(root.removeprefix(TORCHVISION), download_dir, split, download, allow_outside)
    path = Path(root).expanduser()
    if path.is_dir():
        return folder_source(path, cache_dir, allow_outside)
    if path.is_file() and path.suffix.lower() == ".zip":
        return zip_source(path, allow_outside)
    if path.is_file() and path.suffix.lower() in MANIFEST_SUFFIXES:
        return manifest_source(path, cache_dir=cache_dir, allow_outside=allow_outside)
    what = "is a file of another kind" if path.exists() else "does not exist"
    raise AnnotError(
        f"{root!r} {what}; data.root names where images come from: a folder, a .zip, a manifest "
        f"({', '.join(MANIFEST_SUFFIXES)}), 'digits' or '{TORCHVISION}NAME'"
    )


def remap_ids(source: Images, tasks: Sequence[str], pattern: str = "%s") -> Images:
    """The images of ``tasks``, in that order and under those ids.

    ``pattern`` turns a task id into an image id, such as ``"%05d.jpg"`` or ``"%s.png"``. An image matches by its full
    id, or by its base name where only one image has it; names match in either Unicode form and without outer white space.
    """
    wanted = _apply(pattern, tasks)
    rows = {name: row for row, name in enumerate(source.ids)}
    by_base: dict[str, list[int]] = defaultdict(list)
    for name, row in rows.items():
        by_base[PurePosixPath(name).name].append(row)
    full, base = KnownNames(rows), KnownNames(by_base)
    found = [_row(name, rows, by_base, full, base) for name in wanted]
    ambiguous = [name for name, row in zip(wanted, found, strict=True) if row is None and base.find(name) in by_base]
    if ambiguous:
        which = first_few([source.ids[row] for row in by_base[base.find(ambiguous[0])]])
        raise AnnotError(
            f"{len(ambiguous)} tasks match several images by base name ({ambiguous[0]!r}: {which}); "
            "let the pattern give full ids"
        )
    missing = [f"{task!r} -> {name!r}" for task, name, row in zip(tasks, wanted, found, strict=True) if row is None]
    if missing:
        raise AnnotError(
            f"{len(missing)} of {len(tasks)} tasks have no image under the pattern {pattern!r}: {first_few(missing)}; "
            f"image ids are like {first_few(source.ids)}"
        )
    return source.renamed(tasks, [row for row in found if row is not None])


def _row(
    name: str, rows: Mapping[str, int], by_base: Mapping[str, Sequence[int]], full: KnownNames, base: KnownNames
) -> int | None:
    """The row of the image that ``name`` stands for, if it is one."""
    if name not in rows and name not in by_base:
        alike = full.find(name)
        name = alike if alike in rows else base.find(name)
    same = by_base.get(name, ())
    return rows.get(name, same[0] if len(same) == 1 else None)


def _apply(pattern: str, tasks: Sequence[str]) -> list[str]:
    """Image id of each task; ``%d`` takes the task as a number, ``%s`` as text."""
    kinds = [match["kind"] for match in _CONVERSION.finditer(pattern) if match["kind"] != "%"]
    if len(kinds) != 1 or kinds[0] not in "dis":
        raise AnnotError(f"the pattern {pattern!r} needs exactly one %d or %s for the task id, such as '%05d.jpg'")
    if kinds[0] == "s":
        return [pattern % clean(task) for task in tasks]
    odd = [repr(task) for task in tasks if not task.strip().isdecimal()]
    if odd:
        raise AnnotError(f"the pattern {pattern!r} needs task ids that are numbers, got {first_few(odd)}; use %s for text")
    return [pattern % int(task) for task in tasks]
