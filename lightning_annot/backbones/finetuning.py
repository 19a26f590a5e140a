"""First a linear probe, then all of the network: Lightning's finetuning callback, told by epochs."""

from __future__ import annotations

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import BaseFinetuning
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.optim import Optimizer

from lightning_annot.types import AnnotError


class ProbeThenFinetune(BaseFinetuning):
    """Keeps ``pl_module.backbone`` frozen, batch statistics included, for the first ``probe_epochs``; then it learns, too.

    The optimizer has the backbone's parameters from the start and passes over those that have no gradient, so that a checkpoint
    of any epoch fits any other.
    """

    def __init__(self, probe_epochs: int) -> None:
        super().__init__()
        self.probe_epochs = probe_epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing: the module has no layers yet."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze, once several devices have been told of all parameters: what is frozen before would never be synchronised."""
        super().on_fit_start(trainer, pl_module)
        fraction = 0 < self.probe_epochs < (trainer.max_epochs or 0)
        if fraction and isinstance(trainer.strategy, DDPStrategy) and not trainer.strategy._ddp_kwargs.get(_UNUSED):
            raise AnnotError(
                f"model.probe_epochs {self.probe_epochs} given with several devices, which wait for gradients of the frozen "
                f"backbone; set trainer.strategy ddp_{_UNUSED}_true, or model.probe_epochs 0."
            )
        self.freeze_before_training(pl_module)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """No gradients for the backbone."""
        self.freeze(_backbone(pl_module), train_bn=False)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Release the backbone at its epoch, and at every later one, since a resumed run begins frozen."""
        learns = epoch >= self.probe_epochs
        if learns:
            self.make_trainable(_backbone(pl_module))
        _backbone(pl_module).train(learns)


_UNUSED = "find_unused_parameters"


def _backbone(pl_module: LightningModule) -> nn.Module:
    found = pl_module.backbone
    if not isinstance(found, nn.Module):
        raise AnnotError(f"{type(pl_module).__name__} has no backbone to freeze.")
    return found
