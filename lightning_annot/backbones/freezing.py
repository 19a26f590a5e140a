"""Layers of the backbone that stay as they are, for good or for the first epochs."""

from __future__ import annotations

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BaseFinetuning
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_annot.data.images import first_few
from lightning_annot.types import AnnotError


class FreezeLayers(BaseFinetuning):
    """Freezes ``layers`` of the model's ``backbone``, by the names of its modules, until epoch ``until`` (None: for good).

    Normalisation layers among them keep following the images. Unfrozen layers learn at the rate of all others.
    """

    def __init__(self, layers: list[str], until: int | None = None) -> None:
        super().__init__()
        self.layers, self.until = layers, until

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.until is not None and trainer.world_size > 1:
            raise AnnotError(
                "FreezeLayers.until given on several devices, which would not share what unfrozen layers learn; freeze them "
                "for good (until: null), or use one device."
            )
        super().setup(trainer, pl_module, stage)

    @override
    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(self._modules_of(pl_module), train_bn=True)

    @override
    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        if epoch == self.until:
            self.unfreeze_and_add_param_group(self._modules_of(pl_module), optimizer, train_bn=False)

    def _modules_of(self, pl_module: LightningModule) -> list[nn.Module]:
        known = dict(pl_module.backbone.named_modules())  # type: ignore[union-attr]
        unknown = [name for name in self.layers if name not in known]
        if unknown:
            top = [name for name in known if name and name.count(".") < 2]
            raise AnnotError(f"the backbone has no layers {first_few(unknown)}; it has {first_few(top, 30)}.")
        return [known[name] for name in self.layers]
