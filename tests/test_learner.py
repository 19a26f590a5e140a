from __future__ import annotations

import math
from copy import deepcopy
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_annot.learner.calibration import fit_temperature
from lightning_annot.learner.heads import FoldHeads
from lightning_annot.learner.mixmatch import consistency, fold_mean, fold_use, mix, soft_cross_entropy, squared_error
from lightning_annot.learner.module import MixMatchModule
from lightning_annot.learner.predictions import Predictions
from lightning_annot.types import AnnotError, Learner

F, D, K = 4, 6, 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_heads(hidden: int | None, seed: int = 0) -> FoldHeads:
    heads = FoldHeads(F, D, K, hidden)
    generator = seeded(seed)
    for parameter in heads.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return heads


def head(heads: FoldHeads, f: int, x: Tensor) -> Tensor:
    """One fold's logits, written out."""
    for i, (weight, bias) in enumerate(zip(heads.weights, heads.biases, strict=True)):
        x = (x.tanh() if i else x) @ weight[f] + bias[f, 0]
    return x


def make_batch(n: int = 40, seed: int = 0, mixed: bool = False) -> dict[str, Tensor]:
    generator = seeded(seed)
    batch = {}
    for suffix in ("", "_first", "_second") if mixed else ("",):
        batch["x" + suffix] = torch.randn(n, D, generator=generator)
        batch["target" + suffix] = torch.randn(n, K, generator=generator).softmax(1)
        batch["fold" + suffix] = torch.randint(0, F, (n,), generator=generator)
    if mixed:
        batch["share"] = torch.rand(n, generator=generator)
    return batch


def make_views(n: int = 40, seed: int = 0) -> dict[str, Tensor]:
    """A labelled batch, and unanswered items with others to mix them with."""
    generator = seeded(seed + 1000)
    batch = make_batch(n, seed)
    for suffix in ("_own", "_other"):
        batch["x" + suffix] = 3.0 * torch.randn(n, D, generator=generator)
        batch["fold" + suffix] = torch.randint(0, F, (n,), generator=generator)
    return batch | {"share_view": torch.rand(n, generator=generator)}


@pytest.mark.parametrize("hidden", [None, 5])
def test_forward_and_out_of_fold_equal_a_loop(hidden: int | None) -> None:
    heads, x = random_heads(hidden), torch.randn(50, D, generator=seeded(1))
    logits = heads(x)
    torch.testing.assert_close(logits, torch.stack([head(heads, f, x) for f in range(F)]))
    fold = torch.randint(0, F - 1, (50,), generator=seeded(2))  # the last fold has no row
    picked = torch.stack([logits[f, i] for i, f in enumerate(fold.tolist())])
    torch.testing.assert_close(heads.out_of_fold(x, fold), picked)
    assert heads.out_of_fold(x[:0], fold[:0]).shape == (0, K)


@pytest.mark.parametrize("hidden", [None, 5])
def test_a_folds_loss_moves_its_own_head_only(hidden: int | None) -> None:
    heads, batch = random_heads(hidden), make_batch()
    for f in range(F):
        heads.zero_grad()
        use = torch.zeros(F, len(batch["x"]), dtype=torch.bool)
        use[f] = True
        soft_cross_entropy(heads(batch["x"]), batch["target"], use).backward()
        for parameter in heads.parameters():
            assert parameter.grad is not None
            moved = parameter.grad.flatten(1).abs().amax(1) > 0
            assert moved.nonzero()[:, 0].tolist() == [f]


def test_reset_is_a_function_of_the_seed() -> None:
    a, b = random_heads(7, 0), random_heads(7, 1)
    a.reset(seeded(3))
    b.reset(seeded(3))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert 0.2 < float(a.weights[0].detach().std()) * math.sqrt(D) < 2.0
    assert all(not bias.any() for bias in a.biases)
    linear = random_heads(None)
    linear.reset(seeded(3))
    assert not any(parameter.any() for parameter in linear.parameters())


BATCHES = {
    "": make_batch,
    "_first _second": lambda **options: make_batch(**options, mixed=True),
    "_own _other": make_views,
}


@pytest.mark.parametrize("more", BATCHES)
@pytest.mark.parametrize("hidden", [None, 5])
def test_an_item_never_reaches_the_head_of_its_own_fold(hidden: int | None, more: str) -> None:
    """Trained a few steps with other features and targets for the items of fold f, head f is bitwise the same."""

    def train(changed_fold: int | None) -> FoldHeads:
        module = MixMatchModule(hidden=hidden, consistency_above=0.5)
        module.build(F, D, K, seed=1)
        assert module.heads is not None
        optimizer = torch.optim.Adam(module.heads.parameters(), lr=0.1)
        for step in range(4):
            batch, other = (BATCHES[more](seed=seed) for seed in (step, step + 100))
            for suffix in ("", *more.split()):
                rows = batch["fold" + suffix] == changed_fold
                for name in ("x" + suffix, "target" + suffix):
                    if name in batch:
                        batch[name][rows] = other[name][rows]
            optimizer.zero_grad()
            module.training_step(batch, step).backward()
            optimizer.step()
        return module.heads

    plain = train(None)
    for f in range(F):
        changed = train(f)
        for p, q in zip(plain.parameters(), changed.parameters(), strict=True):
            assert torch.equal(p[f], q[f])
            others = [g for g in range(F) if g != f]
            assert not torch.equal(p[others], q[others])


def test_losses_equal_loops() -> None:
    logits = torch.randn(F, 12, K, generator=seeded(0), dtype=torch.float64)
    target = torch.randn(12, K, generator=seeded(1), dtype=torch.float64).softmax(1)
    use = torch.rand(F, 12, generator=seeded(2)) < 0.6
    use[2] = False
    entropy = error = 0.0
    for f in range(F):
        rows = use[f].nonzero()[:, 0].tolist()
        for i in rows:
            p = logits[f, i].softmax(0)
            entropy -= float((target[i] * p.log()).sum()) / len(rows)
            error += float(((p - target[i]) ** 2).sum()) / K / len(rows)
    assert float(soft_cross_entropy(logits, target, use)) == pytest.approx(entropy)
    assert float(squared_error(logits, target, use)) == pytest.approx(error)
    assert fold_mean(torch.ones(F, 12), use).tolist() == [1.0, 1.0, 0.0, 1.0]


def test_consistency_equals_a_loop() -> None:
    clean, view = (2.0 * torch.randn(F, 12, K, generator=seeded(i), dtype=torch.float64) for i in range(2))
    use = torch.rand(F, 12, generator=seeded(2)) < 0.6
    use[2] = False
    want, n_sure = 0.0, 0
    for f in range(F):
        rows = use[f].nonzero()[:, 0].tolist()
        for i in rows:
            p = clean[f, i].softmax(0)
            if float(p.max()) > 0.7:
                n_sure += 1
                want -= float(view[f, i].log_softmax(0)[p.argmax()]) / len(rows)
    assert n_sure
    assert float(consistency(clean, view, use, 0.7)) == pytest.approx(want)
    assert float(consistency(clean, view, use, 1.0)) == 0.0


def test_no_gradient_reaches_the_teacher() -> None:
    clean, view = (torch.randn(F, 5, K, generator=seeded(i)).requires_grad_() for i in range(2))
    consistency(clean, view, torch.ones(F, 5, dtype=torch.bool), 0.0).backward()
    assert clean.grad is None
    assert view.grad is not None


def test_training_step_adds_the_weighted_consistency() -> None:
    module, batch = built(consistency_weight=3.0, consistency_above=0.6), make_views()
    module.temperature.fill_(2.0)
    assert module.heads is not None
    plain = module.training_step({name: batch[name] for name in ("x", "target", "fold")}, 0)
    share = torch.maximum(batch["share_view"], 1 - batch["share_view"])[:, None]
    view = share * batch["x_own"] + (1 - share) * batch["x_other"]
    use = fold_use(F, batch["fold_own"], batch["fold_other"])
    term = consistency(module.heads(batch["x_own"]) / 2.0, module.heads(view), use, 0.6)
    assert float(term.detach()) > 0
    torch.testing.assert_close(module.training_step(batch, 0), plain + 3.0 * term)


def test_an_empty_fold_gives_no_gradient_and_no_nan() -> None:
    logits = torch.randn(2, 5, K, generator=seeded(0)).requires_grad_()
    use = torch.tensor([[True] * 5, [False] * 5])
    soft_cross_entropy(logits, torch.full((5, K), 1 / K), use).backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
    assert not logits.grad[1].any()


@pytest.mark.parametrize("hidden", [None, 5])
def test_an_empty_batch_changes_no_bias_and_gives_no_nan(hidden: int | None) -> None:
    module = MixMatchModule(hidden=hidden, weight_decay=0.0)
    module.build(F, D, K)
    before = deepcopy(module.state_dict())
    optimizer = torch.optim.Adam(module.parameters())
    loss = module.training_step({name: part[:0] for name, part in make_batch().items()}, 0)
    loss.backward()
    optimizer.step()
    assert float(loss.detach()) == 0.0
    assert all(torch.equal(part, before[name]) for name, part in module.state_dict().items())


@given(share=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=10))
@settings(max_examples=30, deadline=None)
def test_mix_stays_nearer_to_the_first(share: list[float]) -> None:
    l = torch.tensor(share, dtype=torch.float64)  # noqa: E741  # the paper's letter
    first, second = torch.zeros(len(l), 2, dtype=torch.float64), torch.ones(len(l), 2, dtype=torch.float64)
    got = mix(first, second, l)
    for i, value in enumerate(share):
        assert got[i].tolist() == pytest.approx([1.0 - max(value, 1.0 - value)] * 2)
    assert torch.equal(got, mix(first, second, 1.0 - l))
    assert bool((got <= 0.5).all())


def test_fold_use() -> None:
    a, b = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 0])
    assert fold_use(3, a).tolist() == [[False, True, True], [True, False, True], [True, True, False]]
    assert fold_use(3, a, b).tolist() == [[False, True, False], [False, False, True], [True, True, False]]


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_temperature_is_recovered(true: float) -> None:
    z = 2.0 * torch.randn(20_000, 5, generator=seeded(0))
    label = torch.multinomial(z.softmax(1), 1, generator=seeded(1))[:, 0]
    assert fit_temperature(z * true, label) == pytest.approx(true, rel=0.03)


def test_temperature_is_shrunk_towards_1() -> None:
    assert fit_temperature(torch.empty(0, 5), torch.empty(0, dtype=torch.int64)) == 1.0
    logits, label = 9.0 * torch.eye(3), torch.tensor([0, 1, 0])  # one of three confident rows is wrong
    found = [fit_temperature(logits, label, scale) for scale in (0.01, 0.3, 1.0, 10.0)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(1.0, abs=0.05)
    assert found[-1] > 4.0
    with pytest.raises(AnnotError, match="prior_scale 0"):
        fit_temperature(logits, label, 0.0)


def test_temperature_minimises_the_stated_objective() -> None:
    logits = 3.0 * torch.randn(40, 4, generator=seeded(0), dtype=torch.float64)
    label = torch.randint(0, 4, (40,), generator=seeded(1))

    def objective(t: float) -> float:
        nll = -float((logits / t).log_softmax(1)[torch.arange(40), label].sum())
        return nll + math.log(t) ** 2 / (2 * 0.5**2)

    t = fit_temperature(logits, label)
    assert all(objective(t) <= objective(t * factor) for factor in (0.9, 0.99, 1.01, 1.1))


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_temperature_is_recovered_from_answers(true: float) -> None:
    """One answer a row, right with 0.7 and else anything: the classes themselves are not needed."""
    z = 2.0 * torch.randn(40_000, 5, generator=seeded(0))
    label = torch.multinomial(z.softmax(1), 1, generator=seeded(1))[:, 0]
    confusion = torch.full((5, 5), 0.3 / 4).fill_diagonal_(0.7)
    answer = torch.multinomial(confusion[label], 1, generator=seeded(2))[:, 0]
    assert fit_temperature(z * true, confusion.log()[:, answer].T) == pytest.approx(true, rel=0.06)


def test_certain_answers_are_labels() -> None:
    logits, label = 3.0 * torch.randn(40, 4, generator=seeded(0)), torch.randint(0, 4, (40,), generator=seeded(1))
    certain = torch.full((40, 4), -30.0)
    certain[torch.arange(40), label] = 0.0
    assert fit_temperature(logits, certain) == pytest.approx(fit_temperature(logits, label), rel=1e-4)
    nothing = torch.zeros(40, 4)  # answers that would be the same whatever the class
    assert fit_temperature(logits, nothing) == pytest.approx(1.0, abs=1e-3)
    released = built(calibration="released")
    with pytest.raises(AnnotError, match="calibration released"):
        released.calibrate(torch.zeros(2, D), torch.tensor([0, 1]), torch.zeros(2, K))


def built(hidden: int | None = None, **options: object) -> MixMatchModule:
    module = MixMatchModule(hidden=hidden, **{"fold_share": 1.0, **options})  # type: ignore[arg-type]
    module.build(F, D, K)
    module.heads = random_heads(hidden)
    return module


def test_probabilities_are_calibrated_and_out_of_fold() -> None:
    module, batch = built(4), make_batch()
    assert isinstance(module, Learner)
    label = batch["target"].argmax(1)
    temperature = module.calibrate(batch["x"], batch["fold"], label)
    assert module.heads is not None
    logits = module.heads.out_of_fold(batch["x"], batch["fold"])
    assert temperature == float(module.temperature) == fit_temperature(logits.detach(), label)
    want = (logits / temperature).log_softmax(1)
    torch.testing.assert_close(module.log_probability(batch["x"], batch["fold"]), want)
    folds = torch.stack([(head(module.heads, f, batch["x"]) / temperature).softmax(1) for f in range(F)])
    torch.testing.assert_close(module(batch["x"]), folds.mean(0))


def test_training_step_is_labelled_plus_weighted_mixed_term() -> None:
    module, batch = built(mixed_weight=7.0), make_batch(mixed=True)
    assert module.heads is not None
    plain = module.training_step({name: batch[name] for name in ("x", "target", "fold")}, 0)
    expected = soft_cross_entropy(module.heads(batch["x"]), batch["target"], fold_use(F, batch["fold"]))
    assert torch.equal(plain, expected)
    share = torch.maximum(batch["share"], 1 - batch["share"])[:, None]
    x = share * batch["x_first"] + (1 - share) * batch["x_second"]
    target = share * batch["target_first"] + (1 - share) * batch["target_second"]
    use = fold_use(F, batch["fold_first"], batch["fold_second"])
    torch.testing.assert_close(module.training_step(batch, 0), plain + 7.0 * squared_error(module.heads(x), target, use))


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
    module.heads = random_heads(None, seed=9)
    assert torch.equal(predictions(rows), before)
    predictions.renew()
    torch.testing.assert_close(predictions(rows), module.log_probability(x, fold))
    assert not torch.allclose(predictions(rows), before)


class Rounds(LightningDataModule):
    """The same batches every round; learns from 20 rows in the first and from 80 in the second."""

    curvature = 4.0

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.batches = batches

    @property
    def rows_learned(self) -> int:
        assert self.trainer is not None
        return (20, 80)[self.trainer.current_epoch]

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ema", [None, 0.8])
@pytest.mark.parametrize("kind", ["adam", "momentum"])
def test_a_fit_equals_a_plain_loop(kind: Literal["adam", "momentum"], ema: float | None, tmp_path: object) -> None:
    """Two rounds, a step size that falls to 0 in each, a fresh momentum in each, and the moving average.

    Momentum's step size is over the curvature of the features, and its penalty over the rows that the round learns from.
    """
    batches = [make_batch(seed=step) for step in range(6)]
    module = MixMatchModule(lr=0.05, weight_decay=0.01, ema=ema, fold_share=1.0, optimizer=kind)
    module.build(F, D, K)
    plain = deepcopy(module.heads)
    assert plain is not None
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
            soft_cross_entropy(plain(batch["x"]), batch["target"], fold_use(F, batch["fold"])).backward()
            optimizer.step()
            now = [p.detach().clone() for p in plain.parameters()]
            average = now if average is None else [0.8 * a + 0.2 * b for a, b in zip(average, now, strict=True)]
    want = average if ema else list(plain.parameters())
    assert want is not None
    for p, q in zip(module.predictor.parameters(), want, strict=True):
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
    module.build(F, D, K)
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
    other.build(F, D + 1, K)
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
