"""Unlabelled images for ``SelfSupervisedModule``, from wherever annotation takes them."""

from __future__ import annotations

from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_annot.backbones.adapt_settings import ViewSettings
from lightning_annot.backbones.adaptation import SelfSupervisedModule
from lightning_annot.backbones.ssl_data import KeptImages, ViewPairs, pair_loader, probe_loader, reading_processes
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.images import Images
from lightning_annot.data.loading import BackboneSettings, tell
from lightning_annot.types import AnnotError


class UnlabelledDataModule(LightningDataModule):
    """Two random views of each image for training, and the prototypes for ``val_knn``.

    Args:
        root, labels, items, prototypes, classes, distractors, id_pattern, prototypes_per_class, allow_outside: as in
            ``AnnotationDataModule``; with the same seed the prototypes are those of the annotation run. Without any there is no
            ``val_knn``.
        batch_size: images of a device's batch.
        views: what views may differ in.
        num_workers: processes that make views; by default by the machine.
        on_error: raise, or skip unreadable images.
        cache_dir: where digests of files are kept.
        seed: of views, order and prototypes (the command line sets it from ``seed_everything``).
    """

    def __init__(
        self,
        root: str | None = None,
        labels: str | None = None,
        items: str | None = None,
        prototypes: str | None = None,
        classes: list[str] | str | None = None,
        distractors: float | None = None,
        id_pattern: str | None = None,
        prototypes_per_class: int = 10,
        batch_size: int = 128,
        views: ViewSettings = ViewSettings(),  # noqa: B008
        num_workers: int | None = None,
        on_error: str = "raise",
        cache_dir: str = "checkpoints/features",
        seed: int = 0,
        allow_outside: bool = False,
    ) -> None:
        super().__init__()
        self.items = AnnotationDataModule(
            root, None, labels, items, prototypes, classes, distractors, id_pattern, prototypes_per_class,
            backbone=BackboneSettings(on_error=on_error, cache_dir=cache_dir), seed=seed, allow_outside=allow_outside,
        )  # fmt: skip
        self.batch_size, self.views, self.num_workers, self.seed = batch_size, views, num_workers, seed
        self.skip = on_error == "skip"

    @override
    def setup(self, stage: str) -> None:
        """Open the images, for the model's input."""
        model = None if self.trainer is None else self.trainer.lightning_module
        if not isinstance(model, SelfSupervisedModule):
            raise AnnotError(f"UnlabelledDataModule is for SelfSupervisedModule; the model is {type(model).__name__}.")
        self.source: Images
        self.label: Tensor | None
        self.source, self.label = self.items.images()
        if self.trainer is None or self.trainer.is_global_zero:
            tell(self.source.notes)
        self.transform = model.transform
        self._reading = reading_processes(len(self.source.ids), self.num_workers)
        kept = KeptImages(self.source, 2 * model.inputs.size, self._reading)
        self.pairs = ViewPairs(kept, self.views, model.inputs, self.seed, self.skip)

    @override
    def train_dataloader(self) -> DataLoader[list[Tensor]]:
        """Pairs of views of this device's part of the epoch's order."""
        assert self.trainer is not None
        return pair_loader(self.pairs, self.batch_size, self._reading, self.trainer.global_rank, self.trainer.world_size)

    @override
    def val_dataloader(self) -> DataLoader[list[Tensor]] | list[DataLoader[list[Tensor]]]:
        """The prototypes, if there are any; each device takes all."""
        return [] if self.label is None else probe_loader(self.source, self.label, self.transform)
