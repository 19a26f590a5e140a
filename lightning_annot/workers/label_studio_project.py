"""What a project of Label Studio shows: the labelling configuration, and where the images are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from lightning_annot.exchange.label_studio import CONTROL, IMAGE, OBJECT
from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    from lightning_annot.workers.label_studio_client import LabelStudio

SUFFIXES = (".bmp", ".gif", ".jpg", ".jpeg", ".png", ".webp")  # of images that the server takes and a browser shows
NAME = "{item}"
MOST_FILES, MOST_BYTES = 50, 32_000_000  # of one upload; the server takes up to 100 files and 200 MB


def label_config(classes: Sequence[str], names: Sequence[str]) -> str:
    """One choice of the ``classes``, which people see under their ``names``; answers have the class.

    A name of several classes gets the class beside it.
    """
    shown = [f"{name} ({id_})" if names.count(name) > 1 else name for id_, name in zip(classes, names, strict=True)]
    choices = "".join(
        f"    <Choice value={quoteattr(name)}{'' if name == id_ else f' alias={quoteattr(id_)}'}/>\n"
        for id_, name in zip(classes, shown, strict=True)
    )
    return (
        f'<View>\n  <Image name="{OBJECT}" value="${IMAGE}"/>\n'
        f'  <Choices name="{CONTROL}" toName="{OBJECT}" choice="single-radio" showInline="true" required="true">\n'
        f"{choices}  </Choices>\n</View>\n"
    )


@dataclass(frozen=True)
class Control:
    """The control of a project that answers come from: its ``name``, the object ``shown``, and its ``key`` of a task's data."""

    name: str
    shown: str
    key: str

    @classmethod
    def of(cls, project: Mapping[str, Any], classes: Sequence[str], taken: Sequence[str] = ()) -> Control:
        """The choices of ``project``, as the server describes it, that are the ``classes``; AnnotError if none are, or if the
        key is ``taken``.
        """
        controls = project.get("parsed_label_config") or {}
        found = {name: part for name, part in controls.items() if part["type"] == "Choices"}
        for name, part in found.items():
            if set(part["labels"]) == set(classes) and part["inputs"]:
                key = part["inputs"][0]["value"]
                if key in taken:
                    raise AnnotError(
                        f"the Label Studio project {project['title']!r} takes its images from ${key}, which is needed for "
                        f"something else; name it otherwise, such as ${IMAGE}."
                    )
                return cls(name, part["to_name"][0], key)
        there = sorted({label for part in found.values() for label in part["labels"]})
        raise AnnotError(
            f"the Label Studio project {project['title']!r} is about other classes: it has {there[:10]}, this run has "
            f"{list(classes)[:10]}; set workers.project to another title, which is then created, or correct its choices "
            "(value, or alias where people see another name)."
        )


class Pictures:
    """Addresses of images: ``pattern`` with the item's name for ``{item}``, or at its end; without one, of files that are
    uploaded, each once.
    """

    def __init__(self, server: LabelStudio, pattern: str | None, paths: Mapping[str, str] | None) -> None:
        self._server, self._pattern, self._paths = server, pattern, paths or {}
        self._known: dict[str, str] | None = None
        if pattern is None:  # a run without images shall not start
            self._file(next(iter(self._paths), ""))

    def addresses(self, items: Sequence[str]) -> dict[str, str]:
        """Where each of the ``items`` is shown."""
        if self._pattern is not None:
            before, _, after = self._pattern.partition(NAME)
            return {item: before + quote(item) + after for item in items}
        if self._known is None:
            self._known = self._server.uploads()
        names: dict[str, str] = {}
        new: dict[str, bytes] = {}
        for item in items:
            path = self._file(item)
            try:
                content = path.read_bytes()
            except OSError as error:
                raise AnnotError(f"the image of {item!r} cannot be read: {error}; check the permissions") from error
            # By content, so that what a killed run has uploaded, or another one, is found again.
            names[item] = hashlib.sha256(content).hexdigest()[:32] + path.suffix.lower()
            if names[item] not in self._known:
                new[names[item]] = content
            if len(new) == MOST_FILES or sum(map(len, new.values())) > MOST_BYTES:
                self._known |= self._server.upload(new)
                new = {}
        if new:
            self._known |= self._server.upload(new)
        return {item: self._known[name] for item, name in names.items()}

    def _file(self, item: str) -> Path:
        path = Path(self._paths.get(item, ""))
        if path.suffix.lower() in SUFFIXES and path.is_file():
            return path
        raise AnnotError(
            f"Label Studio shows images, and item {item!r} has no file that ends in {', '.join(SUFFIXES)} (there is "
            f"{str(path)!r}); set data.root to a folder of such files, or workers.images to where the "
            f"images are, such as https://images.example.org/{NAME}."
        )
