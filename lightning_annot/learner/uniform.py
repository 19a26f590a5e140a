"""No learner: every class is equally probable, so that answers alone decide (majority vote, online Dawid-Skene)."""

from __future__ import annotations

import math

import torch
from pytorch_lightning import LightningModule
from torch import Tensor


class UniformModule(LightningModule):
    """A learner that never learns; rounds with it aggregate answers and nothing else. Give it one batch a round."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))  # several processes need something to agree on
        self.n_classes: Tensor
        self.register_buffer("n_classes", torch.zeros((), dtype=torch.int64))

    def setup(self, stage: str) -> None:
        """Learn the number of classes, which is all there is to know; ``predict`` takes it from the checkpoint."""
        if stage != "predict":
            self.n_classes.fill_(len(self.trainer.datamodule.table.classes))  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Class probabilities (B, K) of ``x`` (B, d)."""
        return x.new_full((len(x), int(self.n_classes)), 1.0 / int(self.n_classes))

    def calibrate(self, x: Tensor, fold: Tensor, label: Tensor) -> float:
        """Nothing to calibrate: the temperature is 1."""
        return 1.0

    def log_probability(self, x: Tensor, fold: Tensor) -> Tensor:
        """-log K, (B, K)."""
        return torch.full((len(x), int(self.n_classes)), -math.log(int(self.n_classes)))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """A loss of 0: nothing to train."""
        return 0.0 * self.nothing

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The loss of knowing nothing."""
        self.log("val_loss", math.log(int(self.n_classes)), batch_size=len(batch["label"]), on_epoch=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The loss of knowing nothing."""
        self.log("test_loss", math.log(int(self.n_classes)), batch_size=len(batch["label"]), on_epoch=True)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """Rows (B,) and probabilities (B, K)."""
        return batch["row"], self(batch["x"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One that moves nothing."""
        return torch.optim.SGD([self.nothing], lr=0.0)
