"""What the labelling page must know of a run, as a file in the run's folder: classes, examples, and where images are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_annot.stored import read_object, reading, texts

if TYPE_CHECKING:
    from lightning_annot.data.images import Images

TASK_FILE = "task.json"
_FORMAT = 1


@dataclass(frozen=True)
class ImageSettings:
    """The settings of the data module that say which image an item is; ``numbered``: items are "0", "1", ... so many.

    ``allow_outside``: images may lie outside the root, as ``data.allow_outside`` says.
    """

    root: str
    labels: str | None = None
    items: str | None = None
    id_pattern: str | None = None
    numbered: int | None = None
    allow_outside: bool = False

    def open(self) -> Images:
        """Images of all items, by id."""
        from lightning_annot.data.loading import BackboneSettings, load_images
        from lightning_annot.data.sources import open_source, remap_ids

        if self.numbered is not None:
            found = open_source(self.root, allow_outside=self.allow_outside)
            return remap_ids(found, [str(i) for i in range(self.numbered)], self.id_pattern or "%s")
        source = load_images(
            self.root, self.labels, self.items, self.id_pattern, BackboneSettings(), allow_outside=self.allow_outside
        ).source
        assert source is not None
        return source


@dataclass(frozen=True)
class Study:
    """A confusion study: everybody is asked about ``each`` of the ``prototypes`` of every class, and about nothing else."""

    prototypes: Mapping[str, tuple[str, ...]]
    each: int
    seed: int

    @property
    def size(self) -> int:
        """Questions to each worker."""
        return self.each * len(self.prototypes)

    @property
    def truth(self) -> dict[str, str]:
        """The class of each prototype that may be asked about."""
        return {item: label for label, items in self.prototypes.items() for item in items}

    def items_for(self, worker: str) -> list[str]:
        """What ``worker`` is asked, in order: a function of (seed, worker), as many of each class, in random order."""
        import numpy as np  # a study alone needs it: the page starts sooner without

        name = np.frombuffer(hashlib.sha256(worker.encode()).digest(), dtype=np.uint32)
        rng = np.random.default_rng([self.seed, *name.tolist()])
        drawn = [items[i] for items in self.prototypes.values() for i in rng.permutation(len(items))[: self.each]]
        return [drawn[i] for i in rng.permutation(len(drawn))]


@dataclass(frozen=True)
class PageTask:
    """``names``: what people call the ``classes``; ``examples``: prototypes by class that people may see, none of which is ever
    asked about; ``images``: None where there are none; ``study``: what to ask, where no run does.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    examples: Mapping[str, tuple[str, ...]]
    images: ImageSettings | None
    study: Study | None = None

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def read(cls, path: Path) -> PageTask:
        """The task that ``to_json`` wrote; raises AnnotError for any other file."""
        cure = "run fit, or study, again, which writes it anew"
        found = read_object(path, cure)
        with reading(path, cure):
            if found["format"] != _FORMAT:
                raise ValueError("another format")
            classes, names = texts(found["classes"]), texts(found["names"])
            if len(classes) != len(names):
                raise ValueError("classes and names differ in length")
            return cls(
                classes, names, _by_class(found["examples"]), _images(found["images"]), _study(found.get("study"), classes)
            )


def _by_class(found: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {name: texts(ids) for name, ids in found.items()}


def _images(found: dict[str, Any] | None) -> ImageSettings | None:
    if found is None:
        return None
    words = [found["root"], *(found.get(name) or "" for name in ("labels", "items", "id_pattern"))]
    if not all(isinstance(word, str) for word in words) or not isinstance(found.get("numbered") or 0, int):
        raise TypeError("images has other things than paths")
    return ImageSettings(**found)


def _study(found: dict[str, Any] | None, classes: tuple[str, ...]) -> Study | None:
    if found is None:
        return None
    study = Study(**{**found, "prototypes": _by_class(found["prototypes"])})
    if not isinstance(study.each, int) or not isinstance(study.seed, int) or {*study.prototypes} != {*classes}:
        raise TypeError("study has other things than numbers, or other classes")
    return study


def whole_path(given: str) -> str:
    """A path that holds from any folder; what is no file here (``digits``, ``torchvision:NAME``) stays."""
    path = Path(given).expanduser()
    return str(path.absolute()) if given != "digits" and path.exists() else given
