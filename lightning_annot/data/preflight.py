"""Check items and sources of features before anything is downloaded, adapted or extracted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning_annot.data.banks import BankSettings, check_banks
from lightning_annot.data.items import ItemTable
from lightning_annot.data.loading import BackboneSettings, Loaded, check_backbone, list_items
from lightning_annot.data.owner import Owner, TaskClasses


@runtime_checkable
class ChecksItems(Protocol):
    """A part of the Trainer whose own settings fit the items or do not."""

    def check_items(self, data: Any, stage: str) -> None:
        """Raise AnnotError where they do not; ``data`` has its table and its images, and no features yet."""


@dataclass(frozen=True)
class Sources:
    """Settings of ``AnnotationDataModule`` that say where items and features come from.

    Args:
        adapted: The file of the adapted backbone, which may not be there yet; None where nothing is adapted.
        allow_outside: Whether images may lie outside ``root``.
    """

    root: str | None
    features: str | None
    labels: str | None
    items: str | None
    id_pattern: str | None
    backbone: BackboneSettings
    owner: Owner
    banks: tuple[BankSettings, ...]
    unlabelled_extra: str | None
    seed: int
    adapted: Path | None
    allow_outside: bool = False

    def classes(self) -> TaskClasses:
        """The classes, once the owner's files have been read: a broken one is found before a data set is downloaded."""
        self.owner.given()
        return self.owner.task_classes()

    def list(self, classes: TaskClasses | None) -> Loaded:
        """Items and images, unreadable ones among them; no features but ready-made ones. None: all, of whatever class."""
        subset = None if classes is None else classes.subset
        found = list_items(
            self.root, self.features, self.labels, self.items, self.id_pattern, self.backbone, subset, self.allow_outside
        )
        return found if classes is None else found.with_classes(classes.ids)

    @cached_property
    def extra(self) -> Loaded | None:
        """What ``unlabelled_extra`` names, listed once; None where it names nothing."""
        if self.unlabelled_extra is None:
            return None
        bank = self.unlabelled_extra.endswith(".npy")
        root, features = (None, self.unlabelled_extra) if bank else (self.unlabelled_extra, None)
        return list_items(root, features, None, None, None, self.backbone, allow_outside=self.allow_outside)

    def table(self, found: Loaded, classes: TaskClasses) -> ItemTable:
        """The items ``found``, their classes and prototypes; AnnotError where these do not fit each other."""
        return self.owner.table(found, classes, self.labels is not None)

    def check_features(self, listed: Loaded, table: ItemTable | None) -> None:
        """Raise AnnotError where a bank, a backbone or its file is missing or does not fit the items ``listed``."""
        check_backbone(listed, self.root, self.start, self.seed)
        if (extra := self.extra) is not None:
            check_backbone(extra, self.unlabelled_extra, self.start, self.seed)
        check_banks(self.banks, listed, None if table is None else table.names, self.seed)

    def backbones(self, listed: Loaded) -> Mapping[str, BackboneSettings]:
        """The backbones that features of ``listed`` are extracted by, by the setting that names each."""
        own = {} if listed.has_features or self.start.name is None else {"data.backbone": self.start}
        further = {f"data.banks[{i}].backbone": bank.backbone for i, bank in enumerate(self.banks)}
        return {**own, **{key: backbone for key, backbone in further.items() if backbone is not None}}

    @cached_property
    def is_adapted(self) -> bool:
        """Whether the adapted backbone is there and undamaged."""
        if self.adapted is None or not self.adapted.is_file():
            return False
        from lightning_annot.backbones.adapt_run import adapted_fault

        return adapted_fault(self.adapted) is None

    @property
    def start(self) -> BackboneSettings:
        """The learner's own backbone: the adapted one if it is there, otherwise the one that the settings name."""
        return replace(self.backbone, weights=str(self.adapted)) if self.is_adapted else self.backbone
