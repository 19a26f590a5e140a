"""Which names of a folder or zip are images, what they are called here, what their classes are, and what is passed over."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from posixpath import commonprefix, splitext

from PIL import Image

from lightning_annot.data.decode import HEIF_EXTENSIONS, HEIF_EXTRA, image_kinds
from lightning_annot.data.images import first_few
from lightning_annot.names import clean
from lightning_annot.types import AnnotError

# torchvision.datasets.folder.IMG_EXTENSIONS, without the seconds that its import takes.
TORCHVISION_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

_SYSTEM_FILES = {"__macosx", "thumbs.db", "desktop.ini"}  # as hidden as names with a dot
_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
_BARE, _EMPTY = "without extension", "folders without images"
_KINDS_SHOWN = 6


@dataclass(frozen=True)
class Listing:
    """Images by id, sorted: their real ``names`` and ``ids`` (N), their classes where the folders are classes.

    ``passed_over`` counts other files by extension, and folders without images; ``notes`` are sentences for the user.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]
    labels: dict[str, str] | None
    passed_over: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def list_images(
    names: Iterable[tuple[str, str]], folders: Iterable[str], where: str, other: Mapping[str, int] | None = None
) -> Listing:
    """Sort out what ``where`` holds.

    Args:
        names: All files: the relative posix path, and the name as it really is.
        folders: Relative posix paths of all folders.
        where: What holds them, for messages.
        other: More that was passed over, counted.

    Raises:
        AnnotError: No images, two with one id, or images both beside class folders and in them.
    """
    known, images, passed = image_extensions(), [], Counter(other or {})
    for path, name in names:
        item = clean_path(path)
        if not is_hidden(item):
            suffix = splitext(item)[1].lower()
            if suffix in known:
                images.append((item, name))
            else:
                passed[suffix if len(suffix) > 1 else _BARE] += 1
    images.sort()
    if not images:
        but = f", but {_counted(passed)}" if passed else ""
        raise AnnotError(f"{where} holds no images{but}; known extensions: {' '.join(sorted(image_extensions()))}")
    _check_distinct(images, where)
    ids = [item for item, _ in images]
    labels = class_labels(ids, where)
    empty = _without_images(ids, {clean_path(folder) for folder in folders})
    if empty:
        passed[_EMPTY] = len(empty)
    counts = dict(passed.most_common())
    notes = (*_about_passed_over(where, counts, empty), *about_splits(where, labels))
    return Listing(tuple(name for _, name in images), tuple(ids), labels, counts, notes)


@cache
def image_extensions() -> frozenset[str]:
    """Lower-case file extensions with their dot: torchvision's, and those of all formats that ``decode`` reads."""
    kinds = image_kinds()
    readable = {extension for extension, kind in Image.registered_extensions().items() if kind in kinds}
    return frozenset(readable.union(TORCHVISION_EXTENSIONS))


def clean_path(name: str) -> str:
    """A relative posix path without white space around any of its parts."""
    return "/".join(map(clean, name.split("/")))


def is_hidden(name: str) -> bool:
    """Whether any part of a relative posix path is hidden, or is what Windows and macOS leave behind."""
    return any((part[0] == "." and part != "..") or part.lower() in _SYSTEM_FILES for part in _parts(name))


def _check_distinct(images: Sequence[tuple[str, str]], where: str) -> None:
    twice = [f"{one!r} and {other!r}" for (item, one), (same, other) in pairwise(images) if item == same]
    if twice:
        raise AnnotError(
            f"{where} has {len(twice)} pairs of images whose names differ only in white space or slashes ({first_few(twice)}); "
            "rename one of each"
        )


def class_labels(names: Sequence[str], where: str) -> dict[str, str] | None:
    """Class of each image by its first folder, or None if all lie in one folder.

    ``names`` are relative posix paths. A single folder that holds everything is a wrapper, not a class, and is looked
    into. Images both beside class folders and inside them are an error, since nobody can say what the outer ones are.
    Folders that differ in their Unicode form alone are one class.
    """
    depth = len(_wrapper(names))
    tails = {name: _parts(name)[depth:] for name in names}
    loose = [name for name, parts in tails.items() if len(parts) == 1]
    if len(loose) == len(tails):
        return None
    if loose:
        folders = sorted({parts[0] for parts in tails.values() if len(parts) > 1})
        raise AnnotError(
            f"{where} mixes {len(loose)} images at the top ({first_few(loose)}) with {len(folders)} class folders "
            f"({first_few(folders)}); use class folders or a flat folder: move the images or list them in a manifest"
        )
    first: dict[str, str] = {}
    return {name: first.setdefault(unicodedata.normalize("NFC", parts[0]), parts[0]) for name, parts in tails.items()}


def about_splits(where: str, labels: Mapping[str, str] | None) -> tuple[str, ...]:
    """A sentence where classes are called like the splits of a data set."""
    found = sorted({*(labels or {}).values()})
    splits = [name for name in found if name.lower() in _SPLITS]
    if not splits:
        return ()
    return (
        f"{where}: {', '.join(splits)} count as classes here, but are named like splits of a data set; give one such folder as "
        "data.root, or list the images in a manifest",
    )


def _wrapper(names: Sequence[str]) -> tuple[str, ...]:
    """The folders, one in another, that hold everything."""
    common = commonprefix((min(names), max(names)))  # of two names, of all in between
    return _parts(common.rpartition("/")[0])


def _without_images(ids: Sequence[str], folders: Iterable[str]) -> list[str]:
    """Folders without images beside those that hold images as classes or wrappers."""
    wrapper = _wrapper(ids)
    levels = {wrapper[:depth] for depth in range(len(wrapper) + 1)}
    used = levels.union(_parts(item)[: len(wrapper) + 1] for item in ids)
    paths = [_parts(folder) for folder in folders if not is_hidden(folder)]
    return sorted(path[-1] for path in paths if path[:-1] in levels and path not in used)


def _about_passed_over(where: str, counts: Mapping[str, int], empty: Sequence[str]) -> tuple[str, ...]:
    if not counts:
        return ()
    names = f" ({first_few(empty)})" if empty else ""
    return (f"{where}: passed over {_counted(counts)}{names}",)


def _counted(counts: Mapping[str, int]) -> str:
    """``12 files: 7 .heic (how to read them), 3 without extension``, then other things."""
    files = {kind: n for kind, n in counts.items() if kind.startswith(".") or kind == _BARE}
    shown = [f"{n:,} {kind}" + (f" ({HEIF_EXTRA})" if kind in HEIF_EXTENSIONS else "") for kind, n in files.items()]
    if len(shown) > _KINDS_SHOWN:
        shown[_KINDS_SHOWN:] = [f"{sum(list(files.values())[_KINDS_SHOWN:]):,} of {len(files) - _KINDS_SHOWN} other kinds"]
    told = [f"{sum(files.values()):,} files: {', '.join(shown)}"] if files else []
    told += [f"{n:,} {kind}" for kind, n in counts.items() if kind not in files]
    return " and ".join(told)


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part not in ("", "."))
