"""What a data module knows of its items before it has features of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_annot.data.items import ItemTable
from lightning_annot.data.loading import Loaded, fetch_weights, tell
from lightning_annot.data.preflight import ChecksItems, Sources
from lightning_annot.data.ranks import trainer_ranks
from lightning_annot.types import AnnotError


class ListedItems:
    """Lists items and checks them; a base class, before LightningDataModule, of ``AnnotationDataModule``."""

    trainer: Any

    def __init__(self, sources: Sources) -> None:
        super().__init__()
        self.sources = sources
        self.classes: list[str] | None = None
        self._listed: Loaded | None = None
        self._table: ItemTable | None = None
        self._checked = False

    def keep_no_digests(self) -> None:
        """Keep no digests of files, so that looking at them writes nothing."""
        self.sources = replace(self.sources, backbone=replace(self.sources.backbone, cache_dir=""))

    def list_items(self, stage: str) -> Loaded:
        """List items and images; no features yet."""
        if self._listed is None:
            classes = self.sources.owner.task_classes() if stage == "predict" else self.sources.classes()
            self.classes = None if classes.ids is None else list(classes.ids)
            self._listed = self.sources.list(None if stage == "predict" else classes)
        return self._listed

    def look(self, stage: str) -> None:
        """List the items, and check classes and prototypes against them (``predict`` needs neither); no features yet."""
        listed = self.list_items(stage)
        if self._table is None and stage != "predict":
            self._table = self.sources.table(listed, self.sources.classes())

    @property
    def listed(self) -> Loaded:
        """Items and images, including unreadable ones; after ``look``."""
        if self._listed is None:
            raise AnnotError("the data module has no items yet; call look('fit') first.")
        return self._listed

    @property
    def table(self) -> ItemTable:
        """The items; after ``look`` or ``setup`` of any stage but predict."""
        if self._table is None:
            raise AnnotError("the data module has no items yet; call setup('fit') first.")
        return self._table

    @property
    def may_shrink(self) -> bool:
        """Whether the extraction may leave out unreadable images, so that the run has fewer items than ``listed``."""
        return self.sources.backbone.on_error == "skip" and not self.listed.has_features

    def check_all(self, stage: str) -> None:
        """Refuse invalid settings and files before anything is downloaded, adapted or extracted; once."""
        if self._checked:
            return
        if (source := self.list_items(stage).source) is not None and trainer_ranks(self.trainer).rank == 0:
            tell(source.notes)
        self.look(stage)
        parts = () if self.trainer is None else (*self.trainer.callbacks, self.trainer.lightning_module)
        for part in parts:
            if isinstance(part, ChecksItems):
                part.check_items(self, stage)
        self.sources.check_features(self.listed, self._table)
        backbones = list(self.sources.backbones(self.listed).values())
        if len(backbones) > 1 or self.sources.adapted is not None:  # else the extraction downloads the weights first
            fetch_weights(backbones, self.sources.seed)
        self._checked = True
