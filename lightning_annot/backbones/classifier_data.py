"""A run's labels, and the images or features they are about, as a LightningDataModule for the classifier at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import LightningDataModule
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from lightning_annot.annotations.columns import matched
from lightning_annot.annotations.formats import read_labels, read_table
from lightning_annot.backbones.classifier_batches import Batches, FeatureInputs, ImageInputs, InOrder, Inputs, Shuffled, Step
from lightning_annot.data.classes import read_classes
from lightning_annot.data.features import load_features
from lightning_annot.data.images import Images
from lightning_annot.data.loading import tell
from lightning_annot.data.run_labels import RunLabels, class_factors, read_run_labels, soft_targets
from lightning_annot.data.sources import open_source, remap_ids
from lightning_annot.names import KnownNames
from lightning_annot.types import AnnotError

Loader = DataLoader[dict[str, Tensor]]

_SPLIT = 30_000  # with the seed, draws the rows that validate where there are no prototypes
_EVALUATION = 4  # such batches need no gradients: they may be so many times as large


@dataclass(frozen=True)
class AugmentSettings:
    """How training images are varied, as ``timm.data.create_transform`` has it; evaluation sees them as they are.

    ``scale_min`` is the least share of an image that a random crop keeps; ``no_aug`` turns all variation off.
    ``auto_augment`` is one of timm's policies, such as ``rand-m7-mstd0.5``.
    """

    scale_min: float = 0.35
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.2
    auto_augment: str | None = None
    re_prob: float = 0.0
    no_aug: bool = False

    def arguments(self) -> dict[str, Any]:
        """Keywords of ``create_transform``."""
        found = asdict(self)
        return found | {"scale": (found.pop("scale_min"), 1.0)}


class ClassifierDataModule(LightningDataModule):
    """What the classifier learns from: every labelled item but the prototypes, which validate it.

    Args:
        run: output folder of an annotation run, or a CSV ``task,label[,confidence][,status]``.
        root: images: a folder, a zip, a CSV or JSONL manifest, ``torchvision:NAME`` or ``digits``.
        features: instead of images a ready-made bank, .npy (N, D): the classifier is then a linear head without a backbone.
        items: CSV ``task``: row i of ``features`` is this item; by default the rows are those of the run.
        labels: CSV ``task,label`` with the truth, for ``test`` alone, of the items to be tested: best of none of the run.
        classes: names in order, or a CSV ``class[,name]``; by default the run's.
        id_pattern: maps task ids to names of images, such as ``%05d.jpg``.
        allow_outside: whether images may lie outside ``root``, by links, by ``..`` or by absolute paths of a manifest.
        batch_size: rows of a training step on each device.
        targets: learn the ``soft`` probabilities, or the ``hard`` decided labels.
        confidence_power: items count by their confidence to this power; 0: all alike.
        finished_only: leave out items that the run has not finished.
        balance: from 0 (classes count by their share) to 1 (all classes count alike).
        val_share: share of the items that validates, drawn by the seed, where the run has no prototypes; 0: none.
        augment: how training images are varied.
        num_workers: processes that read images; by default by the machine.
        seed: the run's seed (the command line sets it from ``seed_everything``).
    """

    def __init__(
        self,
        run: str | None = None,
        root: str | None = None,
        features: str | None = None,
        items: str | None = None,
        labels: str | None = None,
        classes: list[str] | str | None = None,
        id_pattern: str | None = None,
        batch_size: int = 64,
        targets: Literal["soft", "hard"] = "soft",
        confidence_power: float = 1.0,
        finished_only: bool = False,
        balance: float = 0.0,
        val_share: float = 0.1,
        augment: AugmentSettings = AugmentSettings(),
        num_workers: int | None = None,
        seed: int = 0,
        allow_outside: bool = False,
    ) -> None:
        super().__init__()
        if (root is None) == (features is None):
            raise AnnotError(f"data.root {root} and data.features {features} given; a classifier needs one of them, not both.")
        if batch_size < 2 or confidence_power < 0 or not 0 <= balance <= 1 or not 0 <= val_share < 1:
            raise AnnotError(
                f"batch_size {batch_size}, confidence_power {confidence_power}, balance {balance}, val_share {val_share} "
                "given; allowed are 2 or more, 0 or more, 0 to 1, and 0 to less than 1."
            )
        self.save_hyperparameters(ignore=["augment"])
        self.run, self.root, self.features, self.items, self.labels = run, root, features, items, labels
        self.class_setting, self.id_pattern, self.batch_size = classes, id_pattern, batch_size
        self.allow_outside = allow_outside
        self.targets, self.confidence_power, self.finished_only = targets, confidence_power, finished_only
        self.balance, self.val_share, self.augment, self.num_workers, self.seed = balance, val_share, augment, num_workers, seed
        self.classes: list[str] | None = None if classes is None else list(read_classes(classes).ids)
        self.predict_ids: Sequence[str] = ()
        self._known: RunLabels | None = None
        self._truth: pd.DataFrame | None = None
        self._bank: np.ndarray | None = None
        self._source: Images | None = None
        self._found: Images | np.ndarray | None = None

    @property
    def n_features(self) -> int | None:
        """Width of the ready-made features; None where there are images."""
        return None if self._bank is None else int(self._bank.shape[1])

    @property
    def images(self) -> Images | None:
        """Images of the items of the stage, after ``setup``; None where there are features."""
        return self._found if isinstance(self._found, Images) else None

    @property
    def known(self) -> RunLabels:
        """The run's labels; after ``setup`` for fit or validate."""
        if self._known is None:
            raise AnnotError("no labels given; name the output folder of an annotation run, or a CSV task,label, as data.run.")
        return self._known

    def setup(self, stage: str) -> None:
        """Read the labels that the stage needs, then open images or bank, and find every item in them."""
        if stage == "fit":
            self._refuse_a_folder_in_use()
        if stage == "test":
            if self.labels is None:
                raise AnnotError("test compares the classifier with the truth; give it as data.labels, a CSV task,label.")
            self._truth = read_labels(self.labels)
        if stage != "predict" and self.run is not None and self._known is None:
            self._known = read_run_labels(self.run, self.classes)
            self.classes = list(self._known.classes)
        wanted = None if stage in ("predict", "test") else self.known.ids  # told before a data set is downloaded
        if self.features is not None and self._bank is None:
            self._bank = load_features(self.features)
        if self.root is not None and self._source is None:
            self._source = open_source(self.root, allow_outside=self.allow_outside)
            if self.trainer is None or self.trainer.is_global_zero:
                tell(self._source.notes)
        if stage == "predict":
            self.predict_ids = self._all_ids()
        self._found = self._find(wanted if self._truth is None or stage != "test" else self._truth["task"].tolist())

    @cached_property
    def validates(self) -> Tensor:
        """(N,) bool: the prototypes, or, where there are none, a share drawn by the seed."""
        known, n = self.known, len(self.known.ids)
        if bool(known.prototype.any()):
            return known.prototype
        held = torch.zeros(n, dtype=torch.bool)
        held[np.random.default_rng((self.seed, _SPLIT)).permutation(n)[: round(self.val_share * n)]] = True
        return held

    @cached_property
    def learned(self) -> Tensor:
        """(N,) bool: the items to learn from."""
        use = ~self.validates
        if self.finished_only:
            use &= self.known.finished
        if not bool(use.any()):
            raise AnnotError(
                f"none of the {len(use)} items of {self.run} is left to learn from; ask more, or leave out data.finished_only."
            )
        return use

    @cached_property
    def columns(self) -> dict[str, Tensor]:
        """``top`` and ``probability`` (N, T): what is learned of each item; ``weight`` (N,), of mean 1 over ``learned``."""
        known, k = self.known, len(self.known.classes)
        top, probability = known.top, known.probability
        if self.targets == "hard":
            top, probability = known.label[:, None], torch.ones(len(known.label), 1)
        weight = known.confidence**self.confidence_power
        factors = class_factors(top, probability, weight * self.learned, k, self.balance)
        parts = zip(torch.split(top, 1 << 13), torch.split(probability, 1 << 13), strict=True)
        weight = weight * torch.cat([soft_targets(*part, k) @ factors for part in parts])
        return {"top": top, "probability": probability, "weight": weight / weight[self.learned].mean()}

    def train_dataloader(self) -> Loader:
        """This rank's batches of the Trainer's epoch."""
        trainer = self.trainer
        rank, world = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        sampler = Shuffled(self.learned.nonzero()[:, 0].numpy(), self.batch_size, self.seed, rank, world)
        if trainer is not None:
            sampler.set_epoch(trainer.current_epoch)
        return self._loader(sampler, self.columns, training=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Prototypes with their clean labels, or the held-out share with the run's; no loader where there are none."""
        rows = self.validates.nonzero()[:, 0].numpy()
        return self._loader(self._in_order(rows), {"label": self.known.label}) if len(rows) else []

    def test_dataloader(self) -> Loader:
        """The items of ``labels`` with their true classes."""
        assert self._truth is not None
        names = self.classes or []
        label = matched(self._truth["label"], names, ignore_case=True)
        code = pd.Index(names).get_indexer(label)
        if (code < 0).any():
            foreign = sorted(label[code < 0].unique())
            raise AnnotError(f"{self.labels} has labels outside the classes: {foreign[:5]}; the classes are {names[:20]}.")
        return self._loader(self._in_order(np.arange(len(code))), {"label": torch.from_numpy(code.astype(np.int64))})

    def predict_dataloader(self) -> Loader:
        """All images of the root, or all rows of the bank."""
        return self._loader(self._in_order(np.arange(len(self.predict_ids))), {})

    def state_dict(self) -> dict[str, Any]:
        """The class names, so that a checkpoint can label other images."""
        return {"classes": self.classes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the checkpoint's classes, or say that those of the data are others."""
        if self.classes is not None and self.classes != state_dict["classes"]:
            raise AnnotError(
                f"the checkpoint's classes are {state_dict['classes'][:20]}, and those of the data {self.classes[:20]}; they "
                "must be the same in the same order. Leave out data.classes, or use another annotation.output_dir."
            )
        self.classes = state_dict["classes"]

    def _in_order(self, rows: np.ndarray) -> InOrder:
        return InOrder(rows, _EVALUATION * self.batch_size)

    def _loader(self, sampler: Sampler[Step], columns: dict[str, Tensor], training: bool = False) -> Loader:
        workers = self.num_workers
        if workers is None:  # half of the cores: the other half computes on a CPU, and feeds the GPU where there is one
            workers = 0 if self._bank is not None else min(8, (os.cpu_count() or 1) // 2)
        batches, pin = Batches(self._inputs(training), columns), torch.cuda.is_available()
        return DataLoader(batches, batch_size=None, sampler=sampler, num_workers=workers, pin_memory=pin)

    def _inputs(self, training: bool) -> Inputs:
        """Inputs of the items that were found, images by the transform that the classifier's backbone asks for."""
        if isinstance(self._found, np.ndarray):
            assert self._bank is not None
            return FeatureInputs(self._bank, self._found)
        module = None if self.trainer is None else self.trainer.lightning_module
        preprocessing: dict[str, Any] | None = getattr(module, "preprocessing", None)
        if preprocessing is None:
            raise AnnotError(f"{type(module).__name__} does not say how images become its input; use ClassifierModule.")
        more = self.augment.arguments() if training else {}
        assert self._found is not None
        return ImageInputs(self._found, create_transform(**preprocessing, **more, is_training=training), self.seed)

    def _find(self, ids: Sequence[str] | None) -> Images | np.ndarray:
        """Images of ``ids`` (n), or their rows (n,) in the bank; None: of everything. What is not there is an error."""
        if self._source is not None:
            return self._source if ids is None else remap_ids(self._source, ids, self.id_pattern or "%s")
        listed = self._all_ids()
        names = listed if ids is None else list(map(KnownNames(listed).find, ids))
        rows: np.ndarray = pd.Index(listed).get_indexer(pd.Index(names))
        if (rows < 0).any():
            missing = [ids[i] for i in np.flatnonzero(rows < 0)[:3]] if ids is not None else []
            raise AnnotError(
                f"{int((rows < 0).sum())} of {len(rows)} items have no row of {self.features}, such as {missing}; data.items "
                "says which item each row is."
            )
        return rows

    def _all_ids(self) -> Sequence[str]:
        """Every item that there is an input of, in order."""
        if self._source is not None:
            return self._source.ids
        assert self._bank is not None
        if self.items is not None:
            ids: list[str] = read_table(Path(self.items), ("task",))["task"].tolist()
        else:
            ids = [str(row) for row in range(len(self._bank))] if self._known is None else list(self._known.ids)
        if len(ids) != len(self._bank) or len(set(ids)) < len(ids):
            raise AnnotError(
                f"{self.features} has {len(self._bank)} rows, and there are {len(set(ids))} items; give data.items, a CSV task "
                "with a line for each row, each of another item."
            )
        return ids

    def _refuse_a_folder_in_use(self) -> None:
        """The classifier's files must not replace those of an annotation run."""
        checkpoints = None if self.trainer is None else self.trainer.checkpoint_callback
        folder = None if checkpoints is None else getattr(checkpoints, "dirpath", None)
        if folder is not None and (Path(folder).parent / "labels.csv").is_file():
            raise AnnotError(
                f"{Path(folder).parent} holds an annotation run; give the classifier a folder of its own as "
                "--annotation.output_dir."
            )
