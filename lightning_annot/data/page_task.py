"""What the labelling page must know of a run, as a file in the run's folder: classes, examples, and where images are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    from lightning_annot.data.images import Images

TASK_FILE = "task.json"
_FORMAT = 1


@dataclass(frozen=True)
class ImageSettings:
    """The settings of the data module that say which image an item is; ``numbered``: items are "0", "1", ... so many."""

    root: str
    labels: str | None = None
    items: str | None = None
    id_pattern: str | None = None
    numbered: int | None = None

    def open(self) -> Images:
        """Images of all items, by id."""
        from lightning_annot.data.loading import BackboneSettings, load_images
        from lightning_annot.data.sources import open_source, remap_ids

        if self.numbered is not None:
            return remap_ids(open_source(self.root), [str(i) for i in range(self.numbered)], self.id_pattern or "%s")
        source = load_images(self.root, self.labels, self.items, self.id_pattern, BackboneSettings()).source
        assert source is not None
        return source


@dataclass(frozen=True)
class PageTask:
    """``names``: what people call the ``classes``; ``examples``: prototypes by class; ``images``: None where there are none."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    examples: Mapping[str, tuple[str, ...]]
    images: ImageSettings | None

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def read(cls, path: Path) -> PageTask:
        """The task that ``to_json`` wrote; raises AnnotError for any other file."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.pop("format") != _FORMAT:
                raise ValueError("another format")
            images = None if found["images"] is None else ImageSettings(**found["images"])
            examples = {name: tuple(ids) for name, ids in found["examples"].items()}
            return cls(tuple(found["classes"]), tuple(found["names"]), examples, images)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnnotError(f"{path} is no description of a run ({error}); run fit again, which writes it anew.") from error


def whole_path(given: str) -> str:
    """A path that holds from any folder; what is no file here (``digits``, ``torchvision:NAME``) stays."""
    path = Path(given).expanduser()
    return str(path.absolute()) if given != "digits" and path.exists() else given
