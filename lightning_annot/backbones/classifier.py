"""The classifier at the end: a timm backbone, or none over ready-made features, that learns a run's soft labels."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.data.config import resolve_model_data_config
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from torchvision.transforms import v2

from lightning_annot.backbones.classifier_batches import seeded
from lightning_annot.backbones.finetuning import ProbeThenFinetune
from lightning_annot.backbones.step_sizes import adamw, rise_and_fall
from lightning_annot.backbones.timm_models import BackboneSpec, build_backbone
from lightning_annot.data.run_labels import soft_targets
from lightning_annot.learner.calibration import fit_temperature
from lightning_annot.learner.checked_weights import CheckedWeights
from lightning_annot.types import AnnotError

Batch = dict[str, Tensor]
KEY = "classifier"  # of a checkpoint, for what rebuilds the network without any configuration
_DRAW = 40_000  # with the seed and the step, draws what training draws


class Classifier(nn.Module):
    """Logits (B, K) of inputs: a ``backbone`` to (B, D), its features brought to one scale, and a linear ``head``."""

    def __init__(self, backbone: nn.Module, n_features: int, n_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = backbone
        scale = nn.BatchNorm1d(n_features, affine=False)  # a linear layer learns any further scale itself
        linear = nn.Linear(n_features, n_classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        self.head = nn.Sequential(scale, nn.Dropout(dropout), linear)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


class ClassifierModule(CheckedWeights, LightningModule):
    """Trains a linear probe on the frozen backbone, then all of it, on soft labels, each item by its weight.

    The loss is the cross-entropy to the soft labels. Predictions are those of the weights' moving average, and their confidence
    is calibrated on the items that validate.

    Args:
        backbone: a timm model; None over ready-made features.
        weights: ``pretrained``, ``random``, or the path of a local checkpoint.
        image_size: side of the input in pixels; None for the model's own.
        probe_epochs: epochs in which the head alone learns; as many as the Trainer has: a linear probe.
        lr: largest step size of the head (AdamW); it rises over the first ``warmup`` of the steps, then falls by a cosine to 0.
        backbone_lr: the backbone's step size, as a share of the head's; it rises anew when the backbone is released.
        layer_decay: the step size of each layer as a share of the next one's, nearer to the head; 1: all alike.
        weight_decay: decoupled decay of all matrices.
        warmup: share of the steps in which the step size rises.
        mixup: parameter of the beta distribution by which pairs of inputs, and their labels, are mixed; 0: none are.
        cutmix: the same for pairs where one image covers a part of the other; with both, each batch takes one by chance.
        smoothing: share of every label that is spread evenly over all classes.
        ema_decay: decay of the weights' moving average, less in the first steps; None: predict with the last weights.
        dropout: share of the features that is left out at random in training.
    """

    def __init__(
        self,
        backbone: str | None = None,
        weights: str = "pretrained",
        image_size: int | None = None,
        probe_epochs: int = 5,
        lr: float = 1e-3,
        backbone_lr: float = 0.1,
        layer_decay: float = 1.0,
        weight_decay: float = 0.05,
        warmup: float = 0.05,
        mixup: float = 0.2,
        cutmix: float = 0.0,
        smoothing: float = 0.0,
        ema_decay: float | None = 0.998,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(lr, backbone_lr) <= 0 or min(probe_epochs, weight_decay, mixup, cutmix) < 0 or not 0 < layer_decay <= 1:
            raise AnnotError(
                f"lr {lr}, backbone_lr {backbone_lr}, layer_decay {layer_decay}, probe_epochs {probe_epochs}, weight_decay "
                f"{weight_decay}, mixup {mixup}, cutmix {cutmix} given; the first two must be above 0, layer_decay above 0 and "
                "at most 1, the others 0 or more."
            )
        if not all(0 <= share < 1 for share in (smoothing, warmup, dropout)) or (
            ema_decay is not None and not 0 < ema_decay < 1
        ):
            raise AnnotError(
                f"smoothing {smoothing}, warmup {warmup}, dropout {dropout}, ema_decay {ema_decay} given; they are shares, "
                "below 1, and ema_decay above 0 or null."
            )
        self.save_hyperparameters()
        self.backbone_name, self.weights, self.image_size, self.probe_epochs = backbone, weights, image_size, probe_epochs
        self.lr, self.backbone_lr, self.layer_decay, self.weight_decay = lr, backbone_lr, layer_decay, weight_decay
        self.warmup, self.mixup, self.cutmix, self.smoothing = warmup, mixup, cutmix, smoothing
        self.ema_decay, self.dropout = ema_decay, dropout
        self.network: Classifier | None = None
        self.averaged: ModelEmaV3 | None = None
        self.preprocessing: dict[str, Any] = {}
        self.classes: list[str] = []
        self._metrics: dict[str, Metric] = {}
        self._held_out: list[tuple[Tensor, Tensor]] = []
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    def setup(self, stage: str) -> None:
        """Build the network for the data module's inputs and classes; all but ``fit`` take it from the checkpoint."""
        if self.network is None and stage == "fit":
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            n_features, classes = getattr(data, "n_features", None), getattr(data, "classes", None)
            if classes is None:
                raise AnnotError(f"{type(data).__name__} has no soft labels for a classifier; use ClassifierDataModule.")
            if (n_features is None) == (self.backbone_name is None):
                raise AnnotError(
                    f"model.backbone {self.backbone_name} given, and data.features {data.features}; images need a backbone (a "
                    "timm model, such as resnet50.a1_in1k), and ready-made features need none."
                )
            self.build(classes, n_features, self.weights, data.seed)
        if stage == "fit" and self.backbone_name is None and self.cutmix:
            raise AnnotError(f"model.cutmix {self.cutmix} given; features have no parts to cover each other; use mixup.")

    @property
    def n_features(self) -> int:
        """Width of what the head sees."""
        return int(self._built.head[-1].in_features)  # type: ignore[arg-type]

    def build(self, classes: list[str], n_features: int | None, weights: str, seed: int) -> None:
        """A fresh network; ``n_features`` is the width of ready-made features, None where there is a backbone."""
        backbone: nn.Module = nn.Identity()
        if self.backbone_name is not None:
            backbone, _ = build_backbone(BackboneSpec(self.backbone_name, weights, self.image_size, seed))
            self.preprocessing = resolve_model_data_config(backbone)  # type: ignore[no-untyped-call]
            if self.image_size is not None:
                channels = self.preprocessing["input_size"][0]
                self.preprocessing["input_size"] = (channels, self.image_size, self.image_size)
            with torch.no_grad():
                n_features = backbone(torch.zeros(1, *self.preprocessing["input_size"])).shape[1]
            backbone.requires_grad_(True).train()
        assert n_features is not None
        self.classes = classes
        self.network = Classifier(backbone, n_features, len(classes), self.dropout)
        if self.ema_decay is not None:
            self.averaged = ModelEmaV3(self.network, self.ema_decay, use_warmup=True)

    @property
    def backbone(self) -> nn.Module:
        """What is frozen at first."""
        return self._built.backbone

    @property
    def _built(self) -> Classifier:
        if self.network is None:
            raise AnnotError("the classifier has no network yet; train it, or load a checkpoint with --ckpt_path.")
        return self.network

    @property
    def predictor(self) -> nn.Module:
        """The network that predicts: the average if there is one."""
        return self._built if self.averaged is None else self.averaged.module

    def forward(self, x: Tensor) -> Tensor:
        """Class probabilities (B, K) of inputs ``x``."""
        probability: Tensor = (self.predictor(x).float() / self.temperature.float()).softmax(1)
        return probability

    def configure_callbacks(self) -> list[Callback]:
        """The backbone is frozen at first."""
        return [ProbeThenFinetune(self.probe_epochs)] if self.backbone_name is not None else []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW; each group's step size rises and falls from the step on in which it begins to learn."""
        total = self.trainer.estimated_stepping_batches
        epochs = self.trainer.max_epochs
        if math.isinf(total) or not epochs or epochs < 1:
            raise AnnotError("a classifier's step size falls until the last step; say which it is, by trainer.max_epochs.")
        steps = int(total)
        begin, warmup = steps * min(self.probe_epochs, epochs) // epochs, max(1, round(self.warmup * steps))
        network, rates = self._built, (self.lr, self.backbone_lr, self.layer_decay, self.weight_decay)
        optimizer = adamw(network.head, network.backbone, *rates)
        scheduler = rise_and_fall(optimizer, begin, warmup, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy to the soft labels of a batch, weighted, mixed and smoothed."""
        trainer, network = self.trainer, self._built
        seed = trainer.datamodule.seed  # type: ignore[attr-defined]
        mass = self._mass(batch)
        with seeded(seed, _DRAW, trainer.global_step, batch_idx, trainer.global_rank, devices=[self.device]):
            x, mass = self._mix(batch["x"], mass)
            logits: Tensor = network(x).float()
        loss = -(mass * logits.log_softmax(1)).sum(1).mean()
        self.log("train_loss", loss, batch_size=len(mass), on_step=False, on_epoch=True, sync_dist=True, prog_bar=True)
        self.log("lr", trainer.optimizers[0].param_groups[0]["lr"], batch_size=len(mass), on_step=False, on_epoch=True)
        return loss

    def _mass(self, batch: Batch) -> Tensor:
        """Soft labels times weights, (B, K): so a mixed pair has each part by its weight."""
        k = len(self.classes)
        target = soft_targets(batch["top"], batch["probability"], k)
        return batch["weight"][:, None] * (target * (1.0 - self.smoothing) + self.smoothing / k)

    def _mix(self, x: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
        """Mix neighbours in the batch; features (B, D) pass as images of one row."""
        kinds = [kind(alpha=alpha) for kind, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix)) if alpha]
        if not kinds:
            return x, mass
        mixed, mass_of_mixed = v2.RandomChoice(kinds)(x if x.ndim == 4 else x[:, None, None], mass)
        return mixed.reshape(x.shape), mass_of_mixed

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Follow every step of the weights with their moving average."""
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None:
            self.averaged.update(self._built, self.trainer.global_step + 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep logits and labels: prototypes are few."""
        self._held_out.append((self.predictor(batch["x"]).float(), batch["label"]))

    def on_validation_epoch_end(self) -> None:
        """Calibrate while training, then log loss, accuracy and ECE."""
        logits, label = (torch.cat(part) for part in zip(*self._held_out, strict=True))
        self._held_out = []
        if self.trainer.state.fn == "fit":
            self.temperature.fill_(fit_temperature(logits.cpu(), label.cpu()))
        self._evaluate(logits, label)
        self._log_metrics("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Compare with the truth."""
        self._evaluate(self.predictor(batch["x"]).float(), batch["label"])

    def on_test_epoch_end(self) -> None:
        """Log loss, accuracy and ECE."""
        self._log_metrics("test")

    def _evaluate(self, logits: Tensor, label: Tensor) -> None:
        log_prob = (logits / self.temperature.float()).log_softmax(1)
        if not self._metrics:
            k = log_prob.shape[1]
            ece, accuracy = MulticlassCalibrationError(k, n_bins=10), MulticlassAccuracy(k, average="micro")
            self._metrics = {"loss": MeanMetric(), "ece": ece, "accuracy": accuracy}
        seen = {"loss": (nn.functional.nll_loss(log_prob, label, reduction="none"),)}
        for name, metric in self._metrics.items():
            metric.to(self.device).update(*seen.get(name, (log_prob.exp(), label)))

    def _log_metrics(self, stage: str) -> None:
        self.log_dict({f"{stage}_{name}": metric.compute() for name, metric in self._metrics.items()}, prog_bar=True)
        self._metrics = {}

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Rows (B,) and probabilities (B, K)."""
        return batch["row"], self(batch["x"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say how the network is built, in plain values."""
        checkpoint[KEY] = {
            "backbone": self.backbone_name,
            "image_size": self.image_size,
            "n_features": self.n_features,
            "classes": list(self.classes),
            "ema_decay": self.ema_decay,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network that the checkpoint holds, or say how it differs from the one that is needed."""
        held = checkpoint.get(KEY)
        if held is None or not {"backbone", "image_size", "n_features", "classes", "ema_decay"} <= held.keys():
            raise AnnotError("this checkpoint holds no classifier; give one that ClassifierModule has left.")
        wanted: dict[str, Any] = {"backbone": self.backbone_name, "image_size": self.image_size, "ema_decay": self.ema_decay}
        if self.network is not None:
            wanted["classes"] = self.classes
        if different := [name for name, value in wanted.items() if held[name] != value]:
            raise AnnotError(
                f"the checkpoint's classifier has { ({name: held[name] for name in different}) }, and this configuration "
                f"{ ({name: wanted[name] for name in different}) }. Use the configuration it was trained with, or another "
                "annotation.output_dir."
            )
        if self.network is None:
            self.build(held["classes"], held["n_features"], "random", 0)
