"""Images that are files: the store they share, and folders of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from lightning_annot.data.digests import file_digests
from lightning_annot.data.images import Images, class_labels, image_extensions, is_image_name
from lightning_annot.types import AnnotError


class FileStore:
    """Image files by index; digests are of their content and kept in ``cache_dir`` where one is given."""

    def __init__(self, paths: Sequence[str], cache_dir: str | os.PathLike[str] | None = None) -> None:
        self._paths = tuple(paths)
        self._cache_dir = cache_dir

    def open(self, index: int) -> Image.Image:
        """Decode the file; it is read whole first, so that no handle stays open."""
        return Image.open(BytesIO(Path(self._paths[index]).read_bytes()))

    def digests(self, indices: Sequence[int]) -> list[str]:
        """Content digests, in order; unchanged files that the cache knows are not read."""
        return file_digests([self._paths[index] for index in indices], self._cache_dir)


def folder_source(root: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None) -> Images:
    """Images of a folder: ``root/<class>/**/image.jpg`` with labels, or ``root/image.jpg`` without.

    Ids are paths relative to ``root``, with slashes; rows are sorted by id; hidden files and folders are left out. One
    folder that holds everything is a wrapper, not a class.
    """
    root = Path(root)
    if not root.is_dir():
        raise AnnotError(f"{root} is no folder; give a folder of images, or of one folder a class")
    names = sorted(name for name in _walk(root) if is_image_name(name))
    if not names:
        raise AnnotError(f"{root} holds no images; known extensions: {' '.join(sorted(image_extensions()))}")
    paths = [str(root / name) for name in names]
    return Images(names, paths, class_labels(names, str(root)), FileStore(paths, cache_dir))


def _walk(root: Path) -> list[str]:
    """Every file below ``root`` as a relative posix path; follows links to folders, enters no hidden ones."""
    found: list[str] = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        found += [(relative / name).as_posix() for name in files]
    return found
