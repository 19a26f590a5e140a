"""Images by row over a store of pixels: what every image source returns, whatever it reads from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lightning_annot.types import AnnotError

# torchvision.datasets.folder.IMG_EXTENSIONS, without the seconds that its import takes.
TORCHVISION_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Store(Protocol):
    """Where pixels are, by index. Stores survive fork and pickle, since loaders read them in worker processes."""

    def open(self, index: int) -> Image.Image:
        """The image in any mode; raises whatever its decoder raises."""

    def digests(self, indices: Sequence[int]) -> list[str]:
        """One content digest an index, in order."""


class Images:
    """An ``ImageSource``: row i is image ``index[i]`` of the store, known as ``ids[i]``, to be found at ``paths[i]``.

    ``labels`` maps ids to class names where the source knows them (it may lack some ids); None if it knows none.
    """

    ids: Sequence[str]
    paths: Sequence[str]
    labels: Mapping[str, str] | None

    def __init__(
        self,
        ids: Sequence[str],
        paths: Sequence[str],
        labels: Mapping[str, str] | None,
        store: Store,
        index: Sequence[int] | None = None,
    ) -> None:
        self.ids = tuple(ids)
        self.paths = tuple(paths)
        self.labels = labels
        self._store = store
        self._index = tuple(range(len(ids)) if index is None else index)
        self._digests: tuple[str, ...] | None = None
        _check_ids(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def open(self, row: int) -> Image.Image:
        """The image as RGB, upright; raises OSError when unreadable, whatever its decoder raised."""
        try:
            return to_rgb(self._store.open(self._index[row]))
        except MemoryError:
            raise
        except Exception as error:  # decoders raise anything from SyntaxError to struct.error on damaged files
            # Pillow would name the buffer that the image was read into, which tells nobody anything.
            reason = "no image that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
            raise OSError(f"{self.paths[row]}: {reason}") from error

    def digests(self) -> Sequence[str]:
        """One content digest an item, in row order; computed at the first call."""
        if self._digests is None:
            self._digests = tuple(self._store.digests(self._index))
        return self._digests

    def subset(self, rows: Sequence[int]) -> Images:
        """The images of ``rows``, in that order."""
        return self.renamed([self.ids[row] for row in rows], rows)

    def renamed(self, ids: Sequence[str], rows: Sequence[int]) -> Images:
        """The images of ``rows`` under new ``ids``, in that order; labels follow their images."""
        labels = self.labels
        if labels is not None:
            old = [self.ids[row] for row in rows]
            labels = {new: labels[was] for new, was in zip(ids, old, strict=True) if was in labels}
        paths = [self.paths[row] for row in rows]
        return Images(ids, paths, labels, self._store, [self._index[row] for row in rows])


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB, turned as its EXIF orientation says (people see it turned, so the model should)."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        # 16-bit grey: keep the upper byte. Pillow's own conversion clips at 255 and leaves a white image.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


@cache
def image_extensions() -> frozenset[str]:
    """Lower-case file extensions with their dot: torchvision's, and all that Pillow reads and calls an image."""
    known = Image.registered_extensions()
    readable = {ext for ext, kind in known.items() if kind in Image.OPEN and Image.MIME.get(kind, "").startswith("image/")}
    return frozenset(readable.union(TORCHVISION_EXTENSIONS))


def is_image_name(name: str) -> bool:
    """Whether a relative posix path names an image and no part of it is hidden (``.x``, ``__MACOSX`` of zip files)."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in image_extensions()


def class_labels(names: Sequence[str], where: str) -> dict[str, str] | None:
    """Class of each image by its first folder, or None if all lie in one folder.

    ``names`` are relative posix paths. A single folder that holds everything is a wrapper, not a class, and is looked
    into. Images both beside class folders and inside them are an error, since nobody can say what the outer ones are.
    """
    tails = {name: PurePosixPath(name).parts for name in names}
    while len({parts[0] for parts in tails.values()}) == 1 and all(len(parts) > 1 for parts in tails.values()):
        tails = {name: parts[1:] for name, parts in tails.items()}
    loose = [name for name, parts in tails.items() if len(parts) == 1]
    if len(loose) == len(tails):
        return None
    if loose:
        folders = sorted({parts[0] for parts in tails.values() if len(parts) > 1})
        raise AnnotError(
            f"{where} mixes {len(loose)} images at the top ({first_few(loose)}) with {len(folders)} class folders "
            f"({first_few(folders)}); use class folders or a flat folder: move the images or list them in a manifest"
        )
    return {name: parts[0] for name, parts in tails.items()}


def first_few(values: Sequence[object], n: int = 3) -> str:
    """The first ``n`` values for an error message."""
    return ", ".join(str(value) for value in values[:n]) + (", ..." if len(values) > n else "")


def _check_ids(ids: Sequence[str]) -> None:
    if not ids:
        raise AnnotError("no images: a source needs at least one")
    if len(set(ids)) < len(ids):
        twice = [name for name, count in Counter(ids).items() if count > 1]
        raise AnnotError(f"{len(twice)} image ids occur more than once ({first_few(twice)}); ids must be unique")
    odd = [repr(name) for name in ids if not name or not name.isprintable()]
    if odd:
        raise AnnotError(
            f"{len(odd)} image ids are empty or hold characters that no file can carry ({first_few(odd)}); "
            "rename the files in UTF-8, without control characters"
        )
