"""The learner as a LightningModule: cross-fitted heads trained on soft labels, MixMatch, and calibrated probabilities."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from lightning_annot.learner.calibration import fit_temperature
from lightning_annot.learner.heads import FoldHeads
from lightning_annot.learner.mixmatch import fold_use, mix, soft_cross_entropy, squared_error
from lightning_annot.types import AnnotError

Batch = dict[str, Tensor]


class MixMatchModule(LightningModule):
    """F heads over fixed features, one a fold; an item's probability comes from the head that never saw its answers.

    The loss of a batch is the soft cross-entropy of its labelled part plus ``mixed_weight`` times the squared error of its
    mixed part (Liao et al. 2021, Eq. 2), where the data module draws one (``data.batches.objective: mixmatch``).

    Args:
        hidden: units of a hidden tanh layer; None for a linear head.
        lr: Adam's step size at the start of a round, falling linearly to 0.
        weight_decay: L2 penalty of the weights, divided by the number of classes: a class has its share of the mean loss.
        mixed_weight: weight of the mixed term.
        ema: decay of an exponential moving average of the weights, used for prediction; None for the last weights.
        restart: start every round from fresh weights instead of the last round's.
        temperature_prior: standard deviation of log temperature around 0; small values trust few prototypes less.
    """

    def __init__(
        self,
        hidden: int | None = None,
        lr: float = 0.06,
        weight_decay: float = 0.003,
        mixed_weight: float = 10.0,
        ema: float | None = None,
        restart: bool = False,
        temperature_prior: float = 0.5,
    ) -> None:
        super().__init__()
        if lr <= 0 or weight_decay < 0 or mixed_weight < 0 or (hidden is not None and hidden < 1):
            raise AnnotError(
                f"lr {lr}, weight_decay {weight_decay}, mixed_weight {mixed_weight}, hidden {hidden} given; lr and hidden must "
                "be above 0, the others 0 or more."
            )
        if ema is not None and not 0 < ema < 1:
            raise AnnotError(f"ema {ema} given; it must lie between 0 and 1, or be null.")
        self.hidden, self.lr, self.weight_decay, self.mixed_weight = hidden, lr, weight_decay, mixed_weight
        self.ema, self.restart, self.temperature_prior = ema, restart, temperature_prior
        self.heads: FoldHeads | None = None
        self.averaged: AveragedModel | None = None
        self._metrics: MetricCollection | None = None
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    def setup(self, stage: str) -> None:
        """Build the heads for the data module's features and classes; ``predict`` takes them from the checkpoint."""
        if self.heads is None and stage != "predict":
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self.build(data.n_folds, data.n_inputs, len(data.table.classes), data.seed)

    def build(self, n_folds: int, n_inputs: int, n_classes: int, seed: int = 0) -> None:
        """Fresh heads for features of width ``n_inputs``, started by ``seed``."""
        self.heads = FoldHeads(n_folds, n_inputs, n_classes, self.hidden)
        self.heads.reset(torch.Generator().manual_seed(seed))
        if self.ema is not None:
            follow = get_ema_multi_avg_fn(self.ema)  # type: ignore[no-untyped-call]
            self.averaged = AveragedModel(deepcopy(self.heads), multi_avg_fn=follow)

    @property
    def predictor(self) -> FoldHeads:
        """The heads that predict: averaged if ``ema`` is set, else the trained ones."""
        heads = self.averaged.module if self.averaged is not None else self.heads
        if not isinstance(heads, FoldHeads):
            raise AnnotError("the learner has no heads yet; train it, or load a checkpoint with --ckpt_path.")
        return heads

    def forward(self, x: Tensor) -> Tensor:
        """Class probabilities (B, K) of new items with projected features ``x`` (B, d): the mean of the folds."""
        logits: Tensor = self.predictor(x)
        return (logits.double() / self.temperature).softmax(-1).mean(0).to(x.dtype)

    def on_train_epoch_start(self) -> None:
        """Renew the optimizer, whose momentum belongs to the last round, and the weights if asked to."""
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        if self.restart and self.heads is not None:
            self.heads.reset(torch.Generator().manual_seed(self.trainer.datamodule.seed))  # type: ignore[attr-defined]
        if self.averaged is not None and self.heads is not None:
            self.averaged.module.load_state_dict(self.heads.state_dict())
            self.averaged.n_averaged.zero_()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch, summed over folds."""
        assert self.heads is not None
        use = fold_use(self.heads.n_folds, batch["fold"])
        loss = soft_cross_entropy(self.heads(batch["x"]), batch["target"], use)
        if "share" in batch:
            x = mix(batch["x_first"], batch["x_second"], batch["share"])
            target = mix(batch["target_first"], batch["target_second"], batch["share"])
            use = fold_use(self.heads.n_folds, batch["fold_first"], batch["fold_second"])
            loss = loss + self.mixed_weight * squared_error(self.heads(x), target, use)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Follow the weights with their moving average, if there is one."""
        if self.averaged is not None and self.heads is not None:
            self.averaged.update_parameters(self.heads)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam with an L2 penalty on the weights alone; the step size falls to 0 within each round."""
        assert self.heads is not None
        groups = [
            {"params": list(self.heads.weights), "weight_decay": self.weight_decay / self.heads.n_classes},
            {"params": list(self.heads.biases), "weight_decay": 0.0},
        ]
        optimizer = torch.optim.Adam(groups, lr=self.lr, betas=(0.9, 0.99))
        # Asked at each step, because the Trainer does not know the length of a round before the first.
        schedule = LambdaLR(optimizer, lambda step: falling(step, self.trainer.num_training_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @torch.no_grad()
    def calibrate(self, x: Tensor, fold: Tensor, label: Tensor) -> float:
        """Fit the temperature on prototypes ``x`` (P, d), each through the head of its own ``fold``; returns it."""
        logits = self.predictor.out_of_fold(x.to(self.device), fold.to(self.device)).cpu()
        self.temperature.fill_(fit_temperature(logits, label, self.temperature_prior))
        return float(self.temperature)

    @torch.no_grad()
    def log_probability(self, x: Tensor, fold: Tensor) -> Tensor:
        """Calibrated out-of-fold log p(y | x) (B, K) in float32 on the CPU."""
        logits = self.predictor.out_of_fold(x.to(self.device), fold.to(self.device)).float()
        return (logits / float(self.temperature)).log_softmax(-1).cpu()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Out-of-fold loss and ECE of the prototypes."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Out-of-fold loss, ECE and accuracy of the learner alone on items with known truth."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Batch) -> None:
        log_prob, label = self.log_probability(batch["x"], batch["fold"]), batch["label"].cpu()
        if self._metrics is None:
            k = log_prob.shape[1]
            self._metrics = MetricCollection(
                {"ece": MulticlassCalibrationError(k, n_bins=10), "accuracy": MulticlassAccuracy(k, average="micro")}
            )
        self._metrics.update(log_prob.exp(), label)
        loss = torch.nn.functional.nll_loss(log_prob, label)
        self.log(f"{stage}_loss", loss, batch_size=len(label), on_epoch=True, sync_dist=True)

    def _log_metrics(self, stage: str) -> None:
        if self._metrics is not None:
            self.log_dict({f"{stage}_{name}": value for name, value in self._metrics.compute().items()})
            self._metrics = None

    def on_validation_epoch_end(self) -> None:
        """ECE and accuracy over all prototypes."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """ECE and accuracy over all items."""
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Rows (B,) and the mean probability of the folds (B, K)."""
        return batch["row"], self(batch["x"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the heads that the checkpoint holds, or say how they differ from those that the data needs."""
        state = checkpoint["state_dict"]
        weights = [state[key] for key in sorted(state) if key.startswith("heads.weights.")]
        if not weights:
            raise AnnotError(
                "this checkpoint holds no annotation learner (no heads.weights in it); give one of this project's runs."
            )
        shape = (weights[0].shape[0], weights[0].shape[1], weights[-1].shape[2])
        if self.heads is None:
            self.build(*shape)
        own = (self.heads.n_folds, self.heads.weights[0].shape[1], self.heads.n_classes)  # type: ignore[union-attr]
        if own != tuple(shape):
            raise AnnotError(
                f"the checkpoint's learner has {shape[0]} folds, {shape[1]} features and {shape[2]} classes; this "
                f"configuration needs {own[0]}, {own[1]} and {own[2]}. Use the configuration that the run was started with, or "
                "another output_dir."
            )


def falling(step: int, steps: float) -> float:
    """Factor of the step size at ``step`` of a run: from 1 down towards 0 in every round of ``steps`` steps."""
    return 1.0 - (step % steps) / steps
