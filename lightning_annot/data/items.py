"""The items of a run: ids, classes, prototypes with their folds, and, for simulation and reporting alone, the truth."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_annot.names import KnownNames, refuse_unusable
from lightning_annot.types import AnnotError


@dataclass(frozen=True)
class ItemTable:
    """``prototype`` (N,) int64: the clean class of a prototype, else -1. ``truth`` (N,) or None.

    ``fold`` (N,) in [0, F): the head that does not learn from the item, or -1 where all do. ``names``: what people
    call the ``classes``; it is for people's eyes alone, files and answers have ``classes``.
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    prototype: Tensor
    fold: Tensor
    truth: Tensor | None
    drawn: bool
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_prototype(self) -> Tensor:
        """(N,) bool."""
        return self.prototype >= 0

    @property
    def lacks_prototypes(self) -> bool:
        """Whether some class has none."""
        count = torch.bincount(self.prototype[self.is_prototype], minlength=len(self.classes))
        return bool((count == 0).any())

    def identity(self, seed: int) -> dict[str, str]:
        """What makes two runs the same run, as short strings: items and prototypes, classes, seed."""
        return {
            "items": f"{len(self)} items, {digest(self.ids)}",
            "prototypes": f"{int(self.is_prototype.sum())} prototypes, {digest(map(str, self.prototype.tolist()))}",
            "classes": f"{len(self.classes)} classes, {digest(self.classes)}",
            "seed": str(seed),
        }


def build_items(
    ids: Sequence[str],
    classes: Sequence[str] | None,
    truth: Mapping[str, str] | None,
    prototypes: Mapping[str, str] | None,
    *,
    prototypes_per_class: int,
    n_folds: int,
    seed: int,
    holdout: Literal["items", "prototypes"] = "items",
    readable: Mapping[str, str] | None = None,
) -> ItemTable:
    """Check what came against each other, draw prototypes from the truth if none are given, and draw the folds by ``seed``.

    With ``prototypes_per_class`` 0 none are drawn, and a class needs none. ``readable``: what people call a class, where that
    is another word.
    """
    _check_unique(ids)
    names = _classes(classes, truth, prototypes)
    refuse_unusable("item ids", ids)
    refuse_unusable("classes", names)
    code = {name: k for k, name in enumerate(names)}
    truth_codes = None if truth is None else _codes(ids, truth, code, "data.labels", complete=True)
    generator = torch.Generator().manual_seed(seed)
    if prototypes_per_class == 0 and holdout == "prototypes":
        raise AnnotError(
            "data.holdout prototypes with data.prototypes_per_class 0 given; without prototypes nothing is held out. Leave "
            "data.holdout at items, or give prototypes."
        )
    if prototypes is not None:
        prototype = _codes(ids, prototypes, code, "data.prototypes", complete=False)
    elif prototypes_per_class == 0:
        prototype = torch.full((len(ids),), -1)
    elif truth_codes is not None:
        prototype = _draw_prototypes(truth_codes, len(names), prototypes_per_class, generator)
    else:
        raise AnnotError(
            "no prototypes given, and no truth to draw them from. Label a few items of each class yourself (10 a class do "
            "well), write them to a CSV with the columns task,label and give it as data.prototypes; or start without, by "
            "data.prototypes_per_class 0."
        )
    missing = [name for k, name in enumerate(names) if not bool((prototype == k).any())]
    if missing and prototypes_per_class != 0:
        cure = (
            "Each class needs at least one in data.prototypes, unless data.prototypes_per_class is 0."
            if prototypes is not None
            else ("No item has such a true label: correct data.classes, or give items of these classes.")
        )
        raise AnnotError(f"{len(missing)} classes without a prototype: {missing[:5]}. {cure}")
    fold = _folds(prototype, n_folds, generator, holdout)
    drawn = prototypes is None and prototypes_per_class > 0
    shown = tuple((readable or {}).get(name, name) for name in names)
    return ItemTable(tuple(ids), names, prototype, fold, truth_codes, drawn, shown)


def digest(parts: object) -> str:
    """A short digest of a sequence of strings."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=12).hexdigest()  # type: ignore[arg-type]


def _check_unique(ids: Sequence[str]) -> None:
    if not len(ids):
        raise AnnotError("no items given; there is nothing to label.")
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = [i for i in ids if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
        raise AnnotError(f"{len(twice)} duplicate item ids, such as {twice[:3]}. Ids must be unique.")


def _classes(
    classes: Sequence[str] | None, truth: Mapping[str, str] | None, prototypes: Mapping[str, str] | None
) -> tuple[str, ...]:
    if classes is not None:
        names = tuple(str(name) for name in classes)
        if len(set(names)) < len(names):
            raise AnnotError(f"data.classes names a class twice: {list(names)}.")
    else:
        known = set((truth or {}).values())
        same = KnownNames(known)
        names = tuple(sorted(known.union(same.find(name) for name in (prototypes or {}).values())))
        if not names:
            raise AnnotError("no classes given. Name them, as in data.classes: [cat, dog].")
    if len(names) < 2:
        raise AnnotError(f"classes {list(names)} given; a task needs at least 2.")
    return names


def _codes(ids: Sequence[str], labels: Mapping[str, str], code: Mapping[str, int], what: str, *, complete: bool) -> Tensor:
    """Class index of each id, -1 where there is none; unknown ids and classes are errors, missing ids too if ``complete``.

    Names match in either Unicode form and without outer white space, classes in either case too, where that is unique.
    """
    labels = _matched(labels, ids, code, what)
    known = set(ids)
    unknown = [i for i in labels if i not in known]
    absent = [i for i in ids if i not in labels] if complete else []
    if unknown or absent:
        raise AnnotError(
            f"{what} and the items do not match: {len(unknown)} ids only in {what}, such as {unknown[:3]}; {len(absent)} items "
            f"without a row there, such as {absent[:3]}. Items are like {list(ids[:3])}; "
            "data.id_pattern maps ids to file names (such as %05d.jpg)."
        )
    foreign = sorted({name for name in labels.values() if name not in code})
    if foreign:
        cure = " Where others are meant to be left out, set data.distractors." if complete else ""
        raise AnnotError(f"{what} has labels outside the classes: {foreign[:5]}; the classes are {list(code)[:20]}.{cure}")
    return torch.tensor([code[labels[i]] if i in labels else -1 for i in ids], dtype=torch.int64)


def _matched(labels: Mapping[str, str], ids: Sequence[str], code: Mapping[str, int], what: str) -> dict[str, str]:
    """The ``labels`` with ids and classes spelled as the items and the classes are."""
    items, classes = KnownNames(ids), KnownNames(code, ignore_case=True)
    found: dict[str, str] = {}
    for written, label in labels.items():
        name = items.find(written)
        if name in found:
            raise AnnotError(f"{what} labels {name!r} twice, in different spellings of its name; keep one row of it.")
        found[name] = classes.find(label)
    return found


def _draw_prototypes(truth: Tensor, n_classes: int, per_class: int, generator: torch.Generator) -> Tensor:
    if per_class < 1:
        raise AnnotError(f"data.prototypes_per_class {per_class} given; it must be 0 or more.")
    prototype = torch.full_like(truth, -1)
    for k in range(n_classes):
        rows = (truth == k).nonzero()[:, 0]
        prototype[rows[torch.randperm(len(rows), generator=generator)[:per_class]]] = k
    if bool((prototype >= 0).all()):
        raise AnnotError(f"{per_class} prototypes a class take all {len(truth)} items; lower data.prototypes_per_class.")
    return prototype


def _folds(prototype: Tensor, n_folds: int, generator: torch.Generator, holdout: str) -> Tensor:
    """Folds of equal size; each class's prototypes are dealt round the folds, so that every head knows every class.

    With ``holdout`` prototypes all else is in no fold (-1), and so is every second prototype of a class, from the first on.
    """
    if holdout not in ("items", "prototypes"):
        raise AnnotError(f"data.holdout {holdout!r} given; allowed are items, prototypes.")
    if n_folds < (2 if holdout == "items" else 1):
        raise AnnotError(f"data.folds {n_folds} given; cross-fitting needs at least 2, data.holdout prototypes at least 1.")
    n = len(prototype)
    fold = torch.empty(n, dtype=torch.int64)
    fold[torch.randperm(n, generator=generator)] = torch.arange(n) % n_folds
    rows = (prototype >= 0).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=generator)]
    rows = rows[torch.argsort(prototype[rows], stable=True)]
    fold[rows] = torch.arange(len(rows)) % n_folds
    if holdout == "prototypes":
        label = prototype[rows]
        place = torch.arange(len(rows)) - torch.searchsorted(label, label)
        fold = torch.full_like(fold, -1)
        fold[rows[place % 2 == 1]] = torch.arange(int((place % 2 == 1).sum())) % n_folds
    return fold
