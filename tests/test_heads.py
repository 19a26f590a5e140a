"""The heads of the folds and their losses, against loops; no item reaches the head of its own fold."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_heads import FIRST_SET, OF_ALL_ROWS, D, F, K, built, head, make_batch, make_views, random_heads, seeded

from lightning_annot.learner.heads import FoldHeads
from lightning_annot.learner.mixmatch import consistency, fold_mean, fold_use, mix, soft_cross_entropy, squared_error
from lightning_annot.learner.module import MixMatchModule


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
        module.build(F, [D], K, seed=1)
        module.learner.heads = random_heads(hidden, seed=1)
        module.learner.start_round(None, False)
        optimizer = torch.optim.Adam(module.learner.heads.parameters(), lr=0.1)
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
        return module.learner.heads

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
    module.learner.temperature.fill_(2.0)
    plain = module.training_step({name: batch[name] for name in FIRST_SET}, 0)
    share = torch.maximum(batch["share_view"], 1 - batch["share_view"])[:, None]
    view = share * batch["x_own"] + (1 - share) * batch["x_other"]
    use = fold_use(F, batch["fold_own"], batch["fold_other"])
    term = consistency(module.learner.heads(batch["x_own"]) / 2.0, module.learner.heads(view), use, 0.6)
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
    module.build(F, [D], K)
    before = deepcopy(module.state_dict())
    optimizer = torch.optim.Adam(module.parameters())
    module.learner.start_round(None, False)
    batch = {name: part if name in OF_ALL_ROWS else part[:0] for name, part in make_batch().items()}
    loss = module.training_step(batch, 0)
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
