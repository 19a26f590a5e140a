"""Images by row over a store of pixels: what every image source returns, whatever it reads from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import PurePosixPath
from typing import Protocol

from PIL import Image, UnidentifiedImageError

from lightning_annot.data.decode import HEIF_EXTENSIONS, HEIF_EXTRA, Room, decode, image_kinds
from lightning_annot.names import clean, refuse_unusable
from lightning_annot.types import AnnotError


class Store(Protocol):
    """Where pixels are, by index. Stores survive fork and pickle, since loaders read them in worker processes."""

    def read(self, index: int) -> bytes | Image.Image:
        """The encoded image, or one in any mode; raises whatever its reader raises."""

    def digests(self, indices: Sequence[int]) -> list[str]:
        """One content digest an index, in order."""


class Images:
    """An ``ImageSource``: row i is image ``index[i]`` of the store, known as ``ids[i]``, to be found at ``paths[i]``.

    ``labels`` maps ids to class names where the source knows them (it may lack some ids); None if it knows none.
    ``passed_over`` counts files that are not images, by kind; ``notes`` are sentences that the user should read.
    """

    ids: Sequence[str]
    paths: Sequence[str]
    labels: Mapping[str, str] | None
    passed_over: Mapping[str, int]
    notes: Sequence[str]

    def __init__(
        self,
        ids: Sequence[str],
        paths: Sequence[str],
        labels: Mapping[str, str] | None,
        store: Store,
        index: Sequence[int] | None = None,
        passed_over: Mapping[str, int] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.ids = tuple(map(clean, ids))
        _check_ids(self.ids, ids)
        self.paths = tuple(paths)
        self.labels = None if labels is None else {clean(name): clean(label) for name, label in labels.items()}
        self.passed_over, self.notes = dict(passed_over or {}), tuple(notes)
        self._store = store
        self._index = tuple(range(len(ids)) if index is None else index)
        self._digests: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def open(self, row: int) -> Image.Image:
        """The image as RGB, upright; raises OSError when unreadable, whatever its decoder raised."""
        return self._decoded(row, None, nullcontext)

    def small(self, row: int, edge: int, room: Room = nullcontext) -> Image.Image:
        """The same, perhaps smaller, but with a longest side of at least ``edge`` pixels where the image has as many."""
        return self._decoded(row, edge, room)

    def _decoded(self, row: int, edge: int | None, room: Room) -> Image.Image:
        try:
            return decode(self._store.read(self._index[row]), edge, room)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise anything from SyntaxError to struct.error on damaged files
            raise OSError(f"{self.paths[row]}: {_reason(self.paths[row], error)}") from error

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
        return Images(ids, paths, labels, self._store, [self._index[row] for row in rows], self.passed_over, self.notes)


def first_few(values: Sequence[object], n: int = 3) -> str:
    """The first ``n`` values for an error message."""
    return ", ".join(str(value) for value in values[:n]) + (", ..." if len(values) > n else "")


def _check_ids(ids: Sequence[str], written: Sequence[str]) -> None:
    """Raise AnnotError unless ``ids`` are some, distinct and legal; ``written``: the same with the white space around them."""
    if not ids:
        raise AnnotError("no images: a source needs at least one")
    if len(set(ids)) < len(ids):
        count = Counter(ids)
        twice = [name for name, times in count.items() if times > 1]
        forms = dict.fromkeys(written[row] for row, name in enumerate(ids) if name == twice[0])
        alike = f"{', '.join(map(repr, forms))} are one" if len(forms) > 1 else first_few(twice)
        raise AnnotError(f"{len(twice)} image ids occur more than once ({alike}); ids must be unique")
    refuse_unusable("names of images", ids)


def _reason(path: str, error: Exception) -> str:
    """Why an image cannot be read; Pillow would name the buffer that it was read into, which tells nobody anything."""
    if not isinstance(error, UnidentifiedImageError):
        return str(error) or type(error).__name__
    lacks_reader = PurePosixPath(path).suffix.lower() in HEIF_EXTENSIONS and "HEIF" not in image_kinds()
    return f"no image that Pillow knows ({HEIF_EXTRA} reads HEIC)" if lacks_reader else "no image that Pillow knows"
