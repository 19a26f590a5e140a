"""Images that are files: the store they share, and folders of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lightning_annot.data.decode import read_file
from lightning_annot.data.digests import file_digests
from lightning_annot.data.images import Images
from lightning_annot.data.listing import list_images
from lightning_annot.data.places import refuse_outside, walk
from lightning_annot.types import AnnotError


class FileStore:
    """Image files by index; digests are of their content and kept in ``cache_dir`` where one is given."""

    def __init__(self, paths: Sequence[str], cache_dir: str | os.PathLike[str] | None = None) -> None:
        self._paths = tuple(paths)
        self._cache_dir = cache_dir

    def read(self, index: int) -> bytes:
        """The file's content."""
        return read_file(self._paths[index])

    def digests(self, indices: Sequence[int]) -> list[str]:
        """Content digests, in order; unchanged files that the cache knows are not read."""
        return file_digests([self._paths[index] for index in indices], self._cache_dir)


def folder_source(
    root: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None, allow_outside: bool = False
) -> Images:
    """Images of a folder: ``root/<class>/**/image.jpg`` with labels, or ``root/image.jpg`` without.

    Ids are paths relative to ``root``, with slashes and without white space around names; rows are sorted by id; hidden files
    and folders are left out. One folder that holds everything is a wrapper, not a class. Links that lead out of ``root`` are an
    error unless ``allow_outside``.
    """
    root = Path(root)
    if not root.is_dir():
        raise AnnotError(f"{root} is no folder; give a folder of images, or of one folder a class")
    found = walk(root)
    listing = list_images(zip(found.files, found.files, strict=True), found.folders, str(root), found.passed_over)
    if not allow_outside:
        refuse_outside(root, sorted({*found.outside}.intersection(listing.names)))
    base = "" if str(root) == "." else str(root)
    paths = [os.path.join(base, name) for name in listing.names]
    store = FileStore(paths, cache_dir)
    return Images(listing.ids, paths, listing.labels, store, None, listing.passed_over, listing.notes)
