"""The learner as a LightningModule: cross-fitted heads trained on soft labels, MixMatch, and calibrated probabilities."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from lightning_annot.data.pools import OwnTargets
from lightning_annot.learner.bank_learner import BankLearner
from lightning_annot.learner.checked_weights import CheckedWeights
from lightning_annot.learner.heads import FoldHeads
from lightning_annot.learner.mixmatch import consistency, fold_use, mix, soft_cross_entropy, squared_error
from lightning_annot.learner.slices import Slice
from lightning_annot.types import AnnotError

Batch = dict[str, Tensor]
OPTIMIZERS = {"momentum": (0.5, 1.0), "adam": (0.06, 0.001)}  # step size and penalty, where none are given
_WEIGHTS = re.compile(r"learners\.(\d+)\.heads\.weights\.\d+")
CHECK_EVERY = 10  # steps between looks at the validation loss


class MixMatchModule(CheckedWeights, LightningModule):
    """F heads over fixed features, one a fold; an item's probability comes from the head that never saw its answers.

    The loss of a batch is the soft cross-entropy of its labelled part plus ``mixed_weight`` times the squared error of its
    mixed part (Liao et al. 2021, Eq. 2), where the data module draws one (``data.batches.objective: mixmatch``). With
    ``consistency`` it is plus ``consistency_weight`` times the cross-entropy of each head on mixed views of unanswered items to
    the class that the same head sees in the items themselves, where it is sure (FixMatch, Sohn et al. 2020).

    Args:
        hidden: units of a hidden tanh layer; None for a linear head.
        optimizer: ``momentum`` (Nesterov, .9; of a linear head) or ``adam`` (with a hidden layer, or classes without
            prototypes); null chooses so.
        lr: step size at the start of a round, falling linearly to 0; with ``schedule: sqrt`` constant, times the square root of
            the rows a step. Null: .06 with adam; .5 with momentum, in units of the inverse largest eigenvalue of the
            features' second moment, so that strong directions are learned first and none diverges.
        weight_decay: L2 penalty of the weights. Null: .001 with adam, divided by the number of classes; 1 with momentum,
            divided by the rows that the round learns from: a normal prior of the weights.
        mixed_weight: weight of the mixed term.
        ema: decay of an exponential moving average of the weights, used for prediction; None for the last weights.
        restart: start every round from fresh weights instead of the last round's.
        temperature_prior: standard deviation of log temperature around 0; small values trust few prototypes less.
        keep_best: predict with the weights that had the lowest loss on held-out prototypes, looked at every 10 steps: of this
            ``round``, or of the whole ``run``; ``none``: the last weights.
        average_folds: every item's probability is the mean of all folds, also of those that learned from its answers.
        fold_share: share of a batch that each of several folds learns from; at 0.6 five folds cost at most three trainings.
        schedule: how the step size goes.
        consistency_weight: weight of the consistency term.
        consistency_above: the calibrated probability above which a head is sure.
        calibration: ``fitted`` temperature, or the ``released`` code's rule (see ``released_temperature``).
    """

    def __init__(
        self,
        hidden: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        mixed_weight: float = 10.0,
        ema: float | None = None,
        restart: bool = False,
        temperature_prior: float = 0.5,
        keep_best: Literal["none", "round", "run"] = "none",
        average_folds: bool = False,
        fold_share: float = 0.6,
        schedule: Literal["falling", "sqrt"] = "falling",
        calibration: Literal["fitted", "released"] = "fitted",
        optimizer: Literal["momentum", "adam"] | None = None,
        consistency_weight: float = 1.0,
        consistency_above: float = 0.95,
    ) -> None:
        super().__init__()
        wrong = (lr is not None and lr <= 0) or (weight_decay is not None and weight_decay < 0)
        if wrong or mixed_weight < 0 or (hidden is not None and hidden < 1):
            raise AnnotError(
                f"lr {lr}, weight_decay {weight_decay}, mixed_weight {mixed_weight}, hidden {hidden} given; lr and hidden must "
                "be above 0, the others 0 or more."
            )
        if consistency_weight < 0 or not 0 < consistency_above < 1:
            raise AnnotError(
                f"consistency_weight {consistency_weight}, consistency_above {consistency_above} given; the weight must be 0 "
                "or more, the probability between 0 and 1."
            )
        if not 0 < fold_share <= 1:
            raise AnnotError(f"fold_share {fold_share} given; it must be above 0, and at most 1.")
        if ema is not None and not 0 < ema < 1:
            raise AnnotError(f"ema {ema} given; it must lie between 0 and 1, or be null.")
        if ema is not None and keep_best != "none":
            raise AnnotError(f"ema {ema} and keep_best {keep_best} given; predict with the average or with the best weights.")
        self.hidden, self.mixed_weight = hidden, mixed_weight
        self._given = (optimizer, lr, weight_decay)
        self._settle(optimizer or ("momentum" if hidden is None else "adam"))
        self.ema, self.restart, self.temperature_prior, self.fold_share = ema, restart, temperature_prior, fold_share
        self.keep_best, self.average_folds, self.schedule, self.calibration = keep_best, average_folds, schedule, calibration
        self.consistency_weight, self.consistency_above = consistency_weight, consistency_above
        self.learners = torch.nn.ModuleList()
        self._metrics: MetricCollection | None = None

    def _settle(self, optimizer: str) -> None:
        """Take this optimizer, with its own step size and penalty where none are given."""
        _, lr, weight_decay = self._given
        self.optimizer = optimizer
        self.lr = OPTIMIZERS[optimizer][0] if lr is None else lr
        self.weight_decay = OPTIMIZERS[optimizer][1] if weight_decay is None else weight_decay

    def setup(self, stage: str) -> None:
        """Build the heads for the data module's features and classes; ``predict`` takes them from the checkpoint."""
        if not self.learners and stage != "predict":
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self.check_items(data, stage)
            if self._given[0] is None and data.table.lacks_prototypes:
                self._settle("adam")  # an unseen class's bias runs away under momentum, and no answer brings it back
            self.build(data.n_folds, data.widths, len(data.table.classes), data.seed)

    def check_items(self, data: Any, stage: str) -> None:
        """Raise AnnotError where the weights are judged by prototypes that some head has none of."""
        judged = self.keep_best != "none" and stage != "predict" and not self.learners
        if judged and len(set(data.held_out_folds().tolist())) < data.n_folds:
            raise AnnotError(
                f"model.keep_best {self.keep_best} given, and some of the {data.n_folds} heads have no held-out prototype "
                "to be judged by. Give more prototypes, or set model.keep_best none."
            )

    def build(self, n_folds: int, widths: Sequence[int], n_classes: int, seed: int = 0) -> None:
        """Fresh heads for banks of these ``widths``, the learner's own first, started by ``seed``."""
        self.learners, first = torch.nn.ModuleList(), 0
        for width in widths:
            heads = FoldHeads(n_folds, width, n_classes, self.hidden)
            heads.reset(torch.Generator().manual_seed(seed))
            self.learners.append(BankLearner(heads, first, self.ema, self.keep_best != "none"))
            first += width

    @property
    def learner(self) -> BankLearner:
        """The learner of the run's own bank; the others are those of machine workers."""
        if not self.learners:
            raise AnnotError("the learner has no heads yet; train it, or load a checkpoint with --ckpt_path.")
        return self.learners[0]  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Class probabilities (B, K) of new items with projected features ``x`` (B, d): the mean of the folds."""
        probability: Tensor = self.learner(x)
        return probability

    def on_train_epoch_start(self) -> None:
        """Renew the optimizer, whose momentum belongs to the last round, and the weights if asked to."""
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        seed = data.seed if self.restart else None
        for learner in self.learners:
            learner.start_round(seed, self.keep_best == "round", data.batches.targets == "hard")  # type: ignore[operator]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch, summed over folds and banks."""
        return torch.stack([self._loss(learner, batch) for learner in self.learners]).sum()  # type: ignore[arg-type]

    def _loss(self, learner: BankLearner, batch: Batch) -> Tensor:
        heads, own = learner.heads, Slice.of_process()
        batch = {name: learner.columns(part) if name.startswith("x") else part for name, part in batch.items()}

        def in_windows(total: int, *rows: Tensor) -> Iterator[Tensor]:
            return (own.windows(part, total, heads.n_folds, self.fold_share) for part in rows)

        def usable(total: int, *folds: Tensor) -> Tensor:
            return fold_use(heads.n_folds, *folds) & own.present(total, heads.n_folds, self.fold_share, folds[0].device)

        n = self._rows_a_step(batch["x"], own)
        x, target, fold, free = in_windows(n, *(batch[name] for name in ("x", "target", "fold", "free")))
        said, sure = learner.own_targets(x, batch)
        target = torch.where(free[..., None], said.to(target), target)
        use = usable(n, fold) & (sure | ~free)
        loss = soft_cross_entropy(heads(x), target, use, own.rows_used(use))
        if "share" in batch:
            n = self._rows_a_step(batch["x_first"], own, paired=True)
            parts = ("x_first", "x_second", "target_first", "share", "fold_first", "fold_second")
            x, x_second, target, share, first, second = in_windows(n, *(batch[name] for name in parts))
            said, sure = learner.own_targets(x_second, batch)
            use = usable(n, first, second) & sure
            mixed = heads(mix(x, x_second, share))
            mixed_loss = squared_error(mixed, mix(target, said.to(target), share), use, own.rows_used(use))
            loss = loss + self.mixed_weight * mixed_loss
        if "share_view" in batch:
            view = mix(batch["x_own"], batch["x_other"], batch["share_view"])
            n = self._rows_a_step(view, own, paired=True)
            x, view, first, second = in_windows(n, batch["x_own"], view, batch["fold_own"], batch["fold_other"])
            use = usable(n, first, second)
            with torch.no_grad():
                clean = heads(x) / learner.temperature.to(x)
            agreement = consistency(clean, heads(view), use, self.consistency_above, own.rows_used(use))
            loss = loss + self.consistency_weight * agreement
        return loss

    def _rows_a_step(self, rows: Tensor, own: Slice, paired: bool = False) -> int:
        """Rows of the whole batch that ``rows`` (B, ...) of this process belong to; ``paired``: of its second set."""
        if own.world == 1:
            return len(rows)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return int(data.pairs_a_step if paired else data.rows_a_step)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Follow the weights with their moving average, or keep the best of them, if asked to."""
        look = self.keep_best != "none" and (batch_idx + 1) % CHECK_EVERY == 0
        held_out = [t.to(self.device) for t in self.trainer.datamodule.held_out()] if look else []  # type: ignore[attr-defined]
        for learner in self.learners:
            learner.follow()  # type: ignore[operator]
            if look:
                learner.offer(*held_out)  # type: ignore[operator]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Nesterov momentum or Adam, with an L2 penalty on the weights alone; two groups a bank, weights and biases."""
        groups: list[dict[str, Any]] = []
        for learner in self.learners:
            heads: FoldHeads = learner.heads  # type: ignore[assignment]
            groups.append({"params": list(heads.weights), "weight_decay": self.weight_decay / heads.n_classes})
            groups.append({"params": list(heads.biases), "weight_decay": 0.0})
        if self.optimizer == "adam":
            return torch.optim.Adam(groups, lr=self.lr, betas=(0.9, 0.99))
        return torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the step size: rounds differ in length, which the Trainer knows only once one has begun."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        falling = 1.0 - batch_idx / self.trainer.num_training_batches
        factor = math.sqrt(data.rows_a_step) if self.schedule == "sqrt" else falling
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * factor
            if self.optimizer == "momentum":
                weights, biases = optimizer.param_groups[::2], optimizer.param_groups[1::2]
                for own, bias, curvature in zip(weights, biases, data.curvatures, strict=True):
                    own["lr"] = bias["lr"] = self.lr * factor / curvature
                    own["weight_decay"] = self.weight_decay / data.rows_learned

    def calibrate(self, x: Tensor, fold: Tensor, label: Tensor) -> float:
        """Fit the temperatures on prototypes ``x`` (P, d), each through the head of its own ``fold``.

        Returns the learner's own. Prototypes of fold -1 were learned from, so have no say. ``label`` as in ``fit_temperature``.
        """
        released = self.calibration == "released"
        if released and label.ndim == 2:
            raise AnnotError("model.calibration released given, and classes without prototypes; set fitted, or give some.")
        held = fold >= 0
        for learner in self.learners:
            learner.calibrate(x[held], fold[held], label[held], self.temperature_prior, released)  # type: ignore[operator]
        return float(self.learner.temperature)

    def log_probability(self, x: Tensor, fold: Tensor, bank: int = 0) -> Tensor:
        """Calibrated log p(y | x) (B, K) by the learner of ``bank``, in float32 on the CPU, out of fold.

        Rows of fold -1 get the mean of all heads.
        """
        learner: BankLearner = self.learners[bank]  # type: ignore[assignment]
        return learner.log_probability(x, torch.full_like(fold, -1) if self.average_folds else fold)

    def sure_rows(self, x: Tensor, fold: Tensor, own: OwnTargets) -> Tensor:
        """Rows ``x`` (B, d) of folds (B,) that some head would learn from if nobody answered them, (B,) bool."""
        found = [learner.sure_rows(x, fold, own) for learner in self.learners]  # type: ignore[operator]
        return torch.stack(found).any(0)

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
        weights: dict[str, list[Tensor]] = {}
        for key in sorted(state):
            if match := _WEIGHTS.fullmatch(key):
                weights.setdefault(match[1], []).append(state[key])
        if not weights:
            raise AnnotError(
                "this checkpoint holds no annotation learner (no learners.0.heads in it); give one of this project's runs."
            )
        layers = [weights[number] for number in sorted(weights, key=int)]
        shape = (layers[0][0].shape[0], [own[0].shape[1] for own in layers], layers[0][-1].shape[2])
        if not self.learners:
            self.build(*shape)
        heads: list[FoldHeads] = [learner.heads for learner in self.learners]  # type: ignore[misc]
        own = (heads[0].n_folds, [h.weights[0].shape[1] for h in heads], heads[0].n_classes)
        if own != shape:
            raise AnnotError(
                f"the checkpoint's learner has {shape[0]} folds, {_listed(shape[1])} features and {shape[2]} classes; this "
                f"configuration needs {own[0]}, {_listed(own[1])} and {own[2]}. Use the configuration that the run was started "
                "with, or another output_dir."
            )


def _listed(widths: Sequence[int]) -> str:
    """Features of each bank."""
    return " + ".join(map(str, widths))
