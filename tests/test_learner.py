"""The module over rounds: steps, predictions, optimizers, checkpoints and settings."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

import pytest
import torch
from made_up_heads import FIRST_SET, D, F, K, built, head, make_batch, own_targets, random_heads, seeded
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_annot.data.batches import BatchSettings
from lightning_annot.learner.calibration import fit_temperature
from lightning_annot.learner.heads import FoldHeads
from lightning_annot.learner.mixmatch import fold_use, soft_cross_entropy, squared_error
from lightning_annot.learner.module import MixMatchModule
from lightning_annot.learner.predictions import Predictions
from lightning_annot.types import AnnotError, Learner


def test_probabilities_are_calibrated_and_out_of_fold() -> None:
    module, batch = built(4), make_batch()
    assert isinstance(module, Learner)
    label = batch["target"].argmax(1)
    temperature = module.calibrate(batch["x"], batch["fold"], label)
    logits = module.learner.heads.out_of_fold(batch["x"], batch["fold"])
    assert temperature == float(module.learner.temperature) == fit_temperature(logits.detach(), label)
    want = (logits / temperature).log_softmax(1)
    torch.testing.assert_close(module.log_probability(batch["x"], batch["fold"]), want)
    folds = torch.stack([(head(module.learner.heads, f, batch["x"]) / temperature).softmax(1) for f in range(F)])
    torch.testing.assert_close(module(batch["x"]), folds.mean(0))


def first_set_loss(heads: FoldHeads, teacher: FoldHeads, temperature: float, batch: dict[str, Tensor]) -> Tensor:
    """Of a row that nobody answered each head learns what it said itself, if it was sure."""
    said, sure = own_targets(teacher, temperature, batch["x"], batch)
    free = batch["free"]
    target = torch.stack([torch.where(free[:, None], own, batch["target"]) for own in said])
    return soft_cross_entropy(heads(batch["x"]), target, fold_use(F, batch["fold"]) & (sure | ~free))


def test_training_step_is_labelled_plus_weighted_mixed_term() -> None:
    module, batch = built(mixed_weight=7.0), make_batch(mixed=True)
    heads = module.learner.heads
    plain = module.training_step({name: batch[name] for name in FIRST_SET}, 0)
    torch.testing.assert_close(plain, first_set_loss(heads, heads, 1.0, batch))
    share = torch.maximum(batch["share"], 1 - batch["share"])[:, None]
    x = share * batch["x_first"] + (1 - share) * batch["x_second"]
    said, sure = own_targets(heads, 1.0, batch["x_second"], batch)
    target = share * batch["target_first"] + (1 - share) * said
    use = fold_use(F, batch["fold_first"], batch["fold_second"]) & sure
    assert bool(use.any(1).all())
    torch.testing.assert_close(module.training_step(batch, 0), plain + 7.0 * squared_error(heads(x), target, use))


@pytest.mark.parametrize("hidden", [None, 5])
def test_cached_predictions_equal_streamed_ones(hidden: int | None) -> None:
    module = built(hidden)
    x, fold = torch.randn(200, D, generator=seeded(1)), torch.randint(0, F, (200,), generator=seeded(2))
    cached, streamed = Predictions(module, x, fold), Predictions(module, x, fold, cached_elements=0)
    rows = torch.randint(0, 200, (70,), generator=seeded(3))
    torch.testing.assert_close(cached(rows), streamed(rows))
    torch.testing.assert_close(cached(rows), module.log_probability(x[rows], fold[rows]))
    assert torch.equal(cached.label(), streamed.label(chunk=17))
    assert torch.equal(cached.label(), module.log_probability(x, fold).argmax(1))


def test_predictions_are_renewed() -> None:
    module = built()
    x, fold, rows = torch.randn(20, D, generator=seeded(1)), torch.arange(20) % F, torch.arange(20)
    predictions = Predictions(module, x, fold)
    before = predictions(rows).clone()
    module.learner.heads = random_heads(None, seed=9)
    assert torch.equal(predictions(rows), before)
    predictions.renew()
    torch.testing.assert_close(predictions(rows), module.log_probability(x, fold))
    assert not torch.allclose(predictions(rows), before)


class Rounds(LightningDataModule):
    """The same batches every round; learns from 20 rows in the first and from 80 in the second."""

    curvatures = (4.0,)

    def __init__(self, parts: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.batches, self._parts = BatchSettings(), parts

    @property
    def rows_learned(self) -> int:
        assert self.trainer is not None
        return (20, 80)[self.trainer.current_epoch]

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self._parts, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ema", [None, 0.8])
@pytest.mark.parametrize("kind", ["adam", "momentum"])
def test_a_fit_equals_a_plain_loop(kind: Literal["adam", "momentum"], ema: float | None, tmp_path: object) -> None:
    """Two rounds, a step size that falls to 0 in each, a fresh momentum in each, and the moving average.

    What heads say of rows without an answer is that of the weights that predicted at the round's start. Momentum's step size
    is over the curvature of the features, and its penalty over the rows that the round learns from.
    """
    batches = [make_batch(seed=step) for step in range(6)]
    module = MixMatchModule(lr=0.05, weight_decay=0.01, ema=ema, fold_share=1.0, optimizer=kind)
    module.build(F, [D], K)
    module.learner.heads = random_heads(None)
    if module.learner.averaged is not None:
        module.learner.averaged.module.load_state_dict(module.learner.heads.state_dict())
    plain, teacher = (deepcopy(module.learner.heads) for _ in range(2))
    trainer = Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", default_root_dir=str(tmp_path),
    )  # fmt: skip
    trainer.fit(module, datamodule=Rounds(batches))
    for n_rows in (20, 80):
        penalty, lr = (0.01 / K, 0.05) if kind == "adam" else (0.01 / n_rows, 0.05 / 4.0)
        groups = [{"params": list(plain.weights), "weight_decay": penalty}, {"params": list(plain.biases)}]
        optimizer: torch.optim.Optimizer
        if kind == "adam":
            optimizer = torch.optim.Adam(groups, lr=lr, betas=(0.9, 0.99))
        else:
            optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
        average = None
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / 6)
            optimizer.zero_grad()
            first_set_loss(plain, teacher, 1.0, batch).backward()
            optimizer.step()
            now = [p.detach().clone() for p in plain.parameters()]
            average = now if average is None else [0.8 * a + 0.2 * b for a, b in zip(average, now, strict=True)]
        want = average if ema else [p.detach() for p in plain.parameters()]
        assert want is not None
        for p, q in zip(teacher.parameters(), want, strict=True):
            p.data.copy_(q)
    for p, q in zip(module.learner.predictor.parameters(), want, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("settings", "kind", "lr", "weight_decay"),
    [
        ({}, "momentum", 0.5, 1.0),
        ({"optimizer": "adam"}, "adam", 0.06, 0.001),
        ({"hidden": 5}, "adam", 0.06, 0.001),
        ({"hidden": 5, "optimizer": "momentum", "lr": 0.1}, "momentum", 0.1, 1.0),
    ],
)
def test_defaults_go_by_the_optimizer(settings: dict[str, Any], kind: str, lr: float, weight_decay: float) -> None:
    module = MixMatchModule(**settings)
    module.build(F, [D], K)
    assert (module.optimizer, module.lr, module.weight_decay) == (kind, lr, weight_decay)
    assert isinstance(module.configure_optimizers(), torch.optim.Adam if kind == "adam" else torch.optim.SGD)


@pytest.mark.parametrize("hidden", [None, 5])
def test_heads_are_built_from_a_checkpoint(hidden: int | None) -> None:
    trained = built(hidden)
    fresh = MixMatchModule(hidden=hidden)
    fresh.on_load_checkpoint({"state_dict": trained.state_dict()})
    fresh.load_state_dict(trained.state_dict())
    x = torch.randn(5, D, generator=seeded(0))
    assert torch.equal(fresh(x), trained(x))


def test_checkpoint_of_another_shape_or_kind() -> None:
    other = MixMatchModule()
    other.build(F, [D + 1], K)
    with pytest.raises(AnnotError, match="4 folds, 6 features and 3 classes; this configuration needs 4, 7 and 3"):
        other.on_load_checkpoint({"state_dict": built().state_dict()})
    with pytest.raises(AnnotError, match="no annotation learner"):
        other.on_load_checkpoint({"state_dict": {"model.weight": torch.zeros(1)}})
    with pytest.raises(AnnotError, match="no heads yet"):
        MixMatchModule()(torch.zeros(1, D))


@pytest.mark.parametrize(
    "options",
    [
        {"consistency_weight": -1.0},
        {"consistency_above": 1.0},
        {"lr": 0.0},
        {"weight_decay": -1.0},
        {"mixed_weight": -1.0},
        {"hidden": 0},
        {"ema": 0.0},
        {"ema": 1.0},
    ],
)
def test_settings_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(AnnotError, match=next(iter(options))):
        MixMatchModule(**options)  # type: ignore[arg-type]
