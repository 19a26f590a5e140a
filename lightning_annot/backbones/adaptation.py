"""A backbone learns from the user's unlabelled images, as a LightningModule."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from lightly.utils.scheduler import cosine_warmup_schedule
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import EarlyStopping
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from lightning_annot.backbones.adapt_settings import Method, StartSettings
from lightning_annot.backbones.knn_probe import leave_one_out_knn
from lightning_annot.backbones.ssl_data import Inputs
from lightning_annot.backbones.ssl_objectives import make_objective
from lightning_annot.backbones.timm_models import BackboneSpec, build_backbone
from lightning_annot.backbones.transforms import Transform
from lightning_annot.learner.checked_weights import CheckedWeights
from lightning_annot.types import AnnotError


class SelfSupervisedModule(CheckedWeights, LightningModule):
    """Adapts ``backbone``, and logs ``train_loss``, ``lr``, ``spread`` and, where there are prototypes, ``val_knn``.

    Args:
        backbone: where it starts from.
        method: vicreg, simclr or byol.
        lr: highest learning rate, reached after the share ``warmup`` of all steps, from where a cosine brings it to 0.
        weight_decay: of AdamW.
        warmup: see ``lr``.
        hidden: width of the hidden layers of the heads.
        output: width of what the loss sees.
        temperature: of SimCLR.
        momentum: how slowly BYOL's teacher moves at first.
        neighbours: of each prototype that vote for its class in ``val_knn``.
        seed: of the weights that nothing is known of (the command line sets it from ``seed_everything``).
    """

    def __init__(
        self,
        backbone: StartSettings = StartSettings(),  # noqa: B008
        method: Method = "vicreg",
        lr: float = 3e-3,
        weight_decay: float = 1e-4,
        warmup: float = 0.1,
        hidden: int = 256,
        output: int = 256,
        temperature: float = 0.2,
        momentum: float = 0.99,
        neighbours: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if lr <= 0 or weight_decay < 0 or not 0 <= warmup < 1:
            raise AnnotError(
                f"lr {lr}, weight_decay {weight_decay}, warmup {warmup} given; lr must be above 0, weight_decay 0 or more, "
                "warmup a share of the steps below 1."
            )
        if not 0 <= momentum <= 1 or temperature <= 0 or min(hidden, output, neighbours) < 1:
            raise AnnotError(
                f"momentum {momentum}, temperature {temperature}, hidden {hidden}, output {output}, neighbours {neighbours} "
                "given; momentum is from 0 to 1, temperature above 0, the others at least 1."
            )
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__", "backbone")}
        self.save_hyperparameters({**given, "backbone": asdict(backbone)})  # plain values, which any reader may load
        self.lr, self.weight_decay, self.warmup, self.neighbours = lr, weight_decay, warmup, neighbours
        spec = BackboneSpec(backbone.name, backbone.weights, backbone.image_size, seed)
        self.backbone, self.transform, self.inputs = _trainable(spec)
        width = _width(self.backbone, self.inputs.size, backbone.name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.objective = make_objective(method, self.backbone, width, hidden, output, temperature, momentum)
        self._probe: list[tuple[Tensor, Tensor, Tensor]] = []
        self._total_steps = 1

    @override
    def setup(self, stage: str) -> None:
        """The loss compares images of all devices."""
        self.objective.gather(self.trainer.world_size > 1)

    @override
    def on_train_start(self) -> None:
        """A run that was stopped early stays so when it is started again."""
        stopped = [c for c in self.trainer.callbacks if isinstance(c, EarlyStopping) and c.wait_count >= c.patience]  # type: ignore[attr-defined]
        if stopped:
            self.trainer.should_stop = True

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of two views (B, 3, H, W) each of B images."""
        views = torch.cat(batch)
        features = self.backbone(views)
        loss: Tensor = self.objective(views, features)
        # 1 where features point everywhere alike, 0 where all images have become one.
        spread = normalize(features.detach().float(), dim=1).std(0).norm()
        size = len(batch[0])
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=size)
        self.log("spread", spread, on_step=False, on_epoch=True, sync_dist=True, batch_size=size)
        self.log("lr", self.optimizers().param_groups[0]["lr"], on_step=False, on_epoch=True, batch_size=size)  # type: ignore[union-attr]
        return loss

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move what follows the backbone."""
        self.objective.after_step(self.backbone, min(1.0, self.global_step / self._total_steps))

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Features of labelled images."""
        if batch:
            images, label, row = batch
            self._probe.append((self.backbone(images), label, row))

    @override
    def on_validation_epoch_end(self) -> None:
        """``val_knn``: each prototype is named by its nearest others. Devices may have seen the same ones or parts."""
        if not self._probe:
            return
        parts = [torch.cat(part) for part in zip(*self._probe, strict=True)]
        self._probe = []
        if self.trainer.world_size > 1:
            parts = [self.all_gather(part).flatten(0, 1) for part in parts]  # type: ignore[union-attr]
        features, label, row = parts
        order = row.argsort(stable=True)
        first = torch.ones_like(row, dtype=torch.bool)
        first[1:] = row[order].diff() > 0
        rows = order[first]
        if len(rows) > 1:
            score = leave_one_out_knn(features[rows], label[rows], self.neighbours)
            self.log("val_knn", score, prog_bar=True, sync_dist=True)

    @override
    def configure_optimizers(self) -> dict[str, Any]:  # type: ignore[override]
        """AdamW on whatever is not frozen, and a cosine after a warm-up, by steps."""
        steps = self._total_steps = self._steps()
        rise = min(round(self.warmup * steps), steps - 1)

        def factor(step: int) -> float:
            return float(cosine_warmup_schedule(min(step, steps), steps, 1.0, 0.0, rise, 0.0))

        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=self.weight_decay)
        # Not lightly's CosineWarmupScheduler: it keeps the end in its state, so that a run could not be made longer.
        schedule = _OneRate(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _steps(self) -> int:
        """Steps of the whole run."""
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise AnnotError("adaptation without an end given; set trainer.max_epochs, which the learning rate goes by.")
        return int(steps)


class _OneRate(LambdaLR):
    """The rate of the first group for all, those that are unfrozen later too, of which torch's own schedule knows nothing."""

    @override
    def get_lr(self) -> list[float | Tensor]:
        return [self.base_lrs[0] * self.lr_lambdas[0](self.last_epoch)] * len(self.optimizer.param_groups)


def _trainable(spec: BackboneSpec) -> tuple[nn.Module, Transform, Inputs]:
    model, transform = build_backbone(spec)
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    size = spec.image_size or min(config["input_size"][1:])
    # Convolutions of a CPU take two thirds of the time by it; in mixed precision they need it on a GPU too.
    model = model.to(memory_format=torch.channels_last)
    return model.requires_grad_(True).train(), transform, Inputs(size, tuple(config["mean"]), tuple(config["std"]))


def _width(backbone: nn.Module, size: int, name: str) -> int:
    """Width of the features of images of ``size`` pixels, which the backbone is tried on."""
    backbone.eval()
    try:
        with torch.no_grad():
            shape = backbone(torch.zeros(1, 3, size, size)).shape
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        raise AnnotError(
            f"timm's {name} cannot take images of {size} pixels ({error}); set backbone.image_size to what it can take."
        ) from error
    finally:
        backbone.train()
    if len(shape) != 2:
        raise AnnotError(f"timm's {name} gives {tuple(shape)} instead of pooled features (B, D); choose another backbone.")
    return int(shape[1])
