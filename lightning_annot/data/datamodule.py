"""The pools of a run as a LightningDataModule: thin over the pure functions beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_annot.backbones.adapt_settings import ADAPTED, AdaptSettings, StartSettings
from lightning_annot.backbones.image_text import PREFIX
from lightning_annot.data.bank_digest import Origin, bank_digest
from lightning_annot.data.banks import Banks, BankSettings, load_banks
from lightning_annot.data.batches import Batch, BatchSettings, FixedRows, RoundBatches
from lightning_annot.data.images import Images
from lightning_annot.data.known import NOTHING_KNOWN, known_rows
from lightning_annot.data.listed_items import ListedItems
from lightning_annot.data.loading import BackboneSettings, Loaded, add_features
from lightning_annot.data.owner import Owner
from lightning_annot.data.pools import Pools, first_pools
from lightning_annot.data.preflight import Sources
from lightning_annot.data.projection import Projection, ProjectionSettings
from lightning_annot.data.ranks import trainer_ranks
from lightning_annot.data.view import FeatureView
from lightning_annot.types import AnnotError


class AnnotationDataModule(ListedItems, LightningDataModule):
    """Items, features and the labelled, pseudo-labelled and unlabelled pools.

    Args:
        root: images: a folder, a zip, a CSV or JSONL manifest, ``torchvision:NAME``, or ``digits`` (the default).
        features: ready-made bank, .npy of shape (N, D), float16 or float32; row i is row i of ``labels`` or ``items``.
        labels: CSV ``task,label`` with the truth of every item, for simulated workers and reporting only.
        items: CSV ``task`` with the ids of the items, where there are no labels.
        prototypes: CSV ``task,label`` with items labelled by the owner; drawn from the truth if absent.
        classes: names in order, or a CSV ``class[,name]`` whose readable names people see; sorted from the labels if absent.
        distractors: items of other classes for each item of ``classes``, drawn by the seed as the class ``other``; 0 leaves
            all of them out, and null takes them for mistakes. ``predict`` labels everything.
        id_pattern: maps ids to file names, such as ``%05d.jpg``.
        allow_outside: whether images may lie outside ``root``, by links, by ``..`` or by absolute paths of a manifest.
        prototypes_per_class: how many are drawn a class when ``prototypes`` is absent. With 0 none are drawn, and a class needs
            none: the first questions then go to items that differ from each other.
        folds: heads of the cross-fitted learner.
        holdout: what a head does not learn from: the ``items`` of its own fold (cross-fitting), or only half of the prototypes,
            which then validate and calibrate it.
        unlabelled_extra: a second bank (.npy) or root whose items the learner may use and nobody is asked about.
        backbone: the timm model that turns images into features.
        banks: further features of the same items, and machine workers who look at them.
        adapt: how the backbone learns from the images first, without labels; by default not at all.
        projection: what the learner sees of the features.
        batches: size, steps and objective of a round's training.
        seed: the run's seed (the command line sets it from ``seed_everything``).
        output_dir: the adapted backbone goes below it (the command line sets it from ``annotation.output_dir``).
    """

    def __init__(
        self,
        root: str | None = None,
        features: str | None = None,
        labels: str | None = None,
        items: str | None = None,
        prototypes: str | None = None,
        classes: list[str] | str | None = None,
        distractors: float | None = None,
        id_pattern: str | None = None,
        prototypes_per_class: int = 10,
        folds: int = 5,
        holdout: Literal["items", "prototypes"] = "items",
        unlabelled_extra: str | None = None,
        backbone: BackboneSettings = BackboneSettings(),  # noqa: B008
        banks: list[BankSettings] | None = None,
        adapt: AdaptSettings | None = None,
        projection: ProjectionSettings = ProjectionSettings(),  # noqa: B008
        batches: BatchSettings = BatchSettings(),  # noqa: B008
        seed: int = 0,
        output_dir: str = "checkpoints/run",
        allow_outside: bool = False,
    ) -> None:
        if adapt is not None and (features is not None or backbone.name is None):
            raise AnnotError(
                "data.adapt given, which needs images and a backbone; leave data.features out, and name a backbone, such as "
                "data.backbone.name small_resnet with data.backbone.weights random."
            )
        if adapt is not None and (backbone.name or "").startswith(PREFIX):
            raise AnnotError(f"data.adapt adapts timm's models, and {backbone.name} is none; leave data.adapt out.")
        if banks and unlabelled_extra is not None:
            raise AnnotError("data.banks given with data.unlabelled_extra, whose items have no such features; leave one out.")
        for bank in banks or ():
            bank.check()
        owner = Owner(classes, distractors, prototypes, prototypes_per_class, folds, holdout, seed)
        adapted = None if adapt is None else Path(output_dir) / "adapted" / ADAPTED
        super().__init__(
            Sources(
                root, features, labels, items, id_pattern, backbone, owner, tuple(banks or ()), unlabelled_extra, seed, adapted,
                allow_outside,
            )
        )  # fmt: skip
        self.adapt, self.output_dir, self.owner = adapt, output_dir, owner
        self.root, self.features, self.labels, self.items = root, features, labels, items
        self.id_pattern, self.n_folds, self.holdout, self.allow_outside = id_pattern, folds, holdout, allow_outside
        self.unlabelled_extra, self.backbone = unlabelled_extra, backbone
        self.projection_settings, self.batches, self.seed = projection, batches, seed
        self.loaded: Loaded | None = None
        self._extra: np.ndarray | None = None
        self._extra_origin: Origin = ""
        self.further = Banks()
        self._fitted: list[Projection] = []
        self._view: FeatureView | None = None
        self._folds: Tensor | None = None
        self._pools: Pools | None = None
        self._round_batches: RoundBatches | None = None

    def setup(self, stage: str) -> None:
        """Load ids and raw features, and check prototypes and classes (``predict`` needs neither)."""
        if self.loaded is not None:
            return
        if self.adapt is not None and stage != "fit":
            self._adapted(make=False)
        self.check_all(stage)
        ranks = trainer_ranks(self.trainer)
        if self.adapt is not None:
            self.backbone = replace(self.backbone, weights=str(self._adapted(stage == "fit")))
        self.loaded = add_features(self.listed, self.backbone, self.seed, ranks)
        if self.trainer is not None and self.loaded.extraction is not None:
            for logger in self.trainer.loggers:  # which write in the first process alone
                logger.log_hyperparams({"extraction": dict(self.loaded.extraction)})
        if (extra := self.sources.extra) is not None:
            extra = add_features(extra, self.backbone, self.seed, ranks)
            self._extra, self._extra_origin = extra.features, extra.origin
            if self._extra.shape[1] != self.loaded.features.shape[1]:
                raise AnnotError(
                    f"data.unlabelled_extra has features of width {self._extra.shape[1]}, the items of "
                    f"{self.loaded.features.shape[1]}. Both need the same backbone."
                )
        if stage != "predict" and self.loaded.unreadable:
            self._table = self.sources.table(self.loaded, self.sources.classes())
        names = None if self._table is None else self._table.names
        self.further = load_banks(self.sources.banks, self.loaded, names, self.seed, ranks)

    def prepare_data(self) -> None:
        """Adapt the backbone, in one process, before any other needs it."""
        if self.adapt is not None and self.trainer is not None and self.trainer.state.fn == "fit":
            self.check_all("fit")
            self._adapted(make=True)

    def images(self) -> tuple[Images, Tensor | None]:
        """Images of all items, unreadable ones too, and the prototypes' classes (N,), -1 elsewhere; None if there are none."""
        classes = self.sources.classes()
        found = self._listed or self.sources.list(classes)
        assert found.source is not None
        if not self.owner.knows_some(found):
            return found.source, None
        return found.source, (self._table or self.sources.table(found, classes)).prototype

    def _adapted(self, make: bool) -> Path:
        """The adapted backbone's file; unless ``make``, it must be there, whatever images these are."""
        from lightning_annot.backbones.adapt_run import adapt, required

        folder, backbone = Path(self.output_dir) / "adapted", self.backbone
        if not make:
            return required(folder)
        assert self.adapt is not None
        assert backbone.name is not None
        start = StartSettings(backbone.name, backbone.weights, backbone.image_size)
        return adapt(
            *self.images(), start, self.adapt, folder,
            seed=self.seed, device=backbone.device, skip=backbone.on_error == "skip", outer=self.trainer,
        )  # fmt: skip

    def identity(self) -> dict[str, str]:
        """What makes two runs the same run, as short strings: the items with their prototypes, classes and seed, and all
        features that a learner sees.
        """
        assert self.loaded is not None
        origins = (self.loaded.origin, self._extra_origin, *self.further.origins)
        return {**self.table.identity(self.seed), "features": bank_digest(origins)}

    @property
    def view(self) -> FeatureView:
        """What the learners see."""
        if self._view is None:
            assert self.loaded is not None
            own, machines = (self.loaded.features, *self.further.joined), list(self.further.machines.values())
            known = NOTHING_KNOWN if self._table is None else known_rows(self._table)
            self._view = FeatureView(own, machines, self._extra, self.projection_settings, self.seed, self._fitted, known)
        return self._view

    def know(self, item: Tensor, label: Tensor) -> None:
        """Choose how features are scaled by these answers, too: ``item`` (A,) and ``label`` (A,), -1 for none.

        What has been chosen already, or is in a checkpoint, stays.
        """
        self.view.known = known_rows(self.table, item, label)

    @property
    def scales(self) -> dict[str, tuple[str, str]]:
        """How each bank's features are scaled, and why; the learner's own is ``features``."""
        names = ["features", *(f"banks {i + 1}" for i in range(len(self.further.joined))), *self.further.machines]
        return {name: (p.scale, p.reason) for name, p in zip(names, self.view.projections, strict=True)}

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of the projected features by learner, known before they are computed: its own, then the machines'."""
        return self.view.widths

    def projected(self) -> tuple[Tensor, Tensor]:
        """Features (N + extra, d) float32 and folds (N + extra,); items first. The banks are read once, at the first call."""
        rows = self.view.rows
        if self._folds is None:
            assert self.loaded is not None
            n = len(self.loaded.ids)
            generator = torch.Generator().manual_seed(self.seed + 1)
            extra_fold = torch.randint(self.n_folds, (len(rows) - n,), generator=generator)
            if self.holdout == "prototypes":
                extra_fold.fill_(-1)
            own = self.table.fold if self._table is not None else torch.zeros(n, dtype=torch.int64)
            self._folds = torch.cat([own, extra_fold])
        return rows, self._folds

    @property
    def rows_learned(self) -> int:
        """Rows of the pools that this round learns from, at least 1."""
        return max(1, len(self.pools.rows(self.batches.objective)))

    @property
    def curvatures(self) -> tuple[float, ...]:
        """Of each learner, see ``FeatureView``."""
        return self.view.curvatures

    def held_out(self) -> tuple[Tensor, Tensor, Tensor]:
        """Prototypes that some head has not learned from: features (P, d), folds (P,), clean classes (P,)."""
        features, folds = self.projected()
        rows, label = self.held_out_labels()
        return features[rows], folds[rows], label

    def held_out_labels(self) -> tuple[Tensor, Tensor]:
        """Rows (P,) of those prototypes, and their clean classes (P,)."""
        rows = self._held_out_rows()
        return rows, self.table.prototype[rows]

    def held_out_folds(self) -> Tensor:
        """The fold of each held-out prototype, (P,)."""
        return self.table.fold[self._held_out_rows()]

    def _held_out_rows(self) -> Tensor:
        return (self.table.is_prototype & (self.table.fold >= 0)).nonzero()[:, 0]

    @property
    def rows_a_step(self) -> int:
        """Rows of each training step of this round, those of all processes together."""
        return self.batches.size if self._round_batches is None else self._round_batches.rows_a_step

    @property
    def pairs_a_step(self) -> int:
        """Rows of the second set of each training step of this round, those of all processes together."""
        assert self._round_batches is not None
        return self._round_batches.pairs_a_step

    def set_pools(self, pools: Pools | None) -> None:
        """Learn from these pools from the next round on; None lets go of them, and of the batches drawn from them."""
        if self._round_batches is not None:
            self._round_batches.release()
        self._pools, self._round_batches = pools, None

    @property
    def pools(self) -> Pools:
        """The pools of the round; without any yet, the prototypes are labelled and all else is unlabelled."""
        if self._pools is None:
            self._pools = first_pools(self.table.prototype, len(self.projected()[0]), len(self.table.classes))
        return self._pools

    def train_dataloader(self) -> DataLoader[Batch]:
        """The batches of the Trainer's current round."""
        features, folds = self.projected()
        trainer = self.trainer
        seed, rank, world = (self.seed, 0), 0, 1
        if trainer is not None:
            seed, rank, world = (self.seed, trainer.current_epoch), trainer.global_rank, trainer.world_size
        self._round_batches = RoundBatches(features, folds, self.pools, self.batches, seed, rank, world)
        return _whole(self._round_batches)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Prototypes that some head has not learned from, each with its own fold; no loader where there is none."""
        rows = self._held_out_rows()
        if not len(rows):
            if self.trainer is not None and self.trainer.state.fn == "validate":
                raise AnnotError("validate compares the learner with held-out prototypes, and this run has none; try test.")
            return []
        return _whole(FixedRows(*self.projected(), rows, self.table.prototype))

    def test_dataloader(self) -> DataLoader[Batch]:
        """Items that are not prototypes, with the truth."""
        if self.table.truth is None:
            raise AnnotError("test compares labels with the truth, and this data has none; give it as data.labels.")
        rows = (~self.table.is_prototype).nonzero()[:, 0]
        if not len(rows):
            raise AnnotError("test compares the labels of items that are no prototypes with the truth, and this run has none.")
        return _whole(FixedRows(*self.projected(), rows, self.table.truth))

    @property
    def predict_ids(self) -> tuple[str, ...]:
        """Ids of the rows of ``predict_dataloader``."""
        return () if self.loaded is None else self.loaded.ids

    def predict_dataloader(self) -> DataLoader[Batch]:
        """All items of the source, without labels."""
        assert self.loaded is not None
        return _whole(FixedRows(*self.projected(), torch.arange(len(self.loaded.ids)), None))

    def state_dict(self) -> dict[str, Any]:
        """The fitted projection and the class names, so that a checkpoint can label other images."""
        fitted = self._fitted if self._view is None else self._view.projections
        projections = [projection.state() for projection in fitted]
        return {"projections": projections, "classes": None if self._table is None else list(self._table.classes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the checkpoint's projections; the features are projected by them at their next use."""
        if state_dict["projections"]:
            self._fitted, self._view = [Projection.restored(state) for state in state_dict["projections"]], None
        self.classes = state_dict["classes"] or self.classes


def _whole(dataset: Dataset[Batch]) -> DataLoader[Batch]:
    """A loader that hands over the data set's batches as they are."""
    return DataLoader(dataset, batch_size=None, shuffle=False)
