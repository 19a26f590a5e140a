"""Keeping the best weights, the released temperature, windows of a batch, holdouts, hard targets, no learner at all."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_annot.data.batches import BatchSettings, RoundBatches
from lightning_annot.data.items import build_items
from lightning_annot.data.pools import make_pools
from lightning_annot.data.projection import ProjectionSettings, fit_projection
from lightning_annot.learner.best import BestHeads
from lightning_annot.learner.calibration import fit_temperature, released_temperature
from lightning_annot.learner.heads import FoldHeads
from lightning_annot.learner.mixmatch import windows
from lightning_annot.learner.module import MixMatchModule
from lightning_annot.learner.uniform import UniformModule
from lightning_annot.types import Learner

F, D, K = 3, 5, 4


def heads(seed: int) -> FoldHeads:
    made = FoldHeads(F, D, K, hidden=6)
    made.reset(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for bias in made.biases:
            bias.normal_(generator=torch.Generator().manual_seed(seed))
    return made


def test_each_fold_keeps_its_own_best() -> None:
    x, fold, label = torch.randn(60, D), torch.arange(60) % (F + 1) - 1, torch.randint(K, (60,))
    candidates = [heads(seed) for seed in range(6)]
    best = BestHeads(candidates[0])
    for one in candidates:
        best.offer(one, x, fold, label)
    for f in range(F):
        losses = [torch.nn.functional.cross_entropy(one(x[fold == f])[f], label[fold == f]).item() for one in candidates]
        winner = candidates[losses.index(min(losses))]
        torch.testing.assert_close(best.loss[f], torch.tensor(min(losses)))
        for own, new in zip(best.heads.parameters(), winner.parameters(), strict=True):
            assert torch.equal(own[f], new[f])
    best.forget()
    best.offer(candidates[-1], x, fold, label)
    assert all(torch.equal(a, b) for a, b in zip(best.heads.parameters(), candidates[-1].parameters(), strict=True))


def test_the_released_temperature_is_kept_only_if_it_helps() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 1.2 * torch.randn(400, K, generator=generator)
    label = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert released_temperature(3.0 * logits, label) == 1.5  # overconfident
    assert released_temperature(0.5 * logits, label) == 1.0
    assert fit_temperature(3.0 * logits, label) > 2.0
    assert released_temperature(logits[:0], label[:0]) == 1.0


@given(n=st.integers(1, 60), folds=st.integers(1, 7), share=st.floats(0.05, 1.0))
@settings(max_examples=100, deadline=None)
def test_windows_are_batches_that_cover_all_rows(n: int, folds: int, share: float) -> None:
    rows = torch.arange(2 * n).view(n, 2)
    out = windows(rows, folds, share)
    assert out.shape[0] == folds
    for window in out:
        assert len(set(window[:, 0].tolist())) == len(window)  # no row twice
    if share * folds >= 2 and n >= (folds - 1) ** 2:  # fewer rows do not divide evenly enough
        assert set(out[..., 0].flatten().tolist()) == set(rows[:, 0].tolist())
    same = windows(rows[:, 0], folds, share)
    assert torch.equal(same, out[..., 0])  # features, targets and folds of a row stay together


def test_rows_of_no_fold_get_the_mean_of_all_heads() -> None:
    module = MixMatchModule(hidden=6)
    module.build(F, [D], K)
    module.learner.heads = heads(3)
    x, fold = torch.randn(9, D), torch.tensor([-1, 0, 1, 2, -1, 0, 1, 2, -1])
    got = module.log_probability(x, fold).exp()
    each = module.learner.heads(x).softmax(-1)
    want = torch.stack([each[:, i].mean(0) if f < 0 else each[f, i] for i, f in enumerate(fold.tolist())])
    torch.testing.assert_close(got, want)
    module.average_folds = True
    torch.testing.assert_close(module.log_probability(x, fold).exp(), each.mean(0))


def test_half_of_the_prototypes_are_held_out() -> None:
    truth = {f"i{i}": "abc"[i % 3] for i in range(90)}
    table = build_items(list(truth), None, truth, None, prototypes_per_class=5, n_folds=1, seed=0, holdout="prototypes")
    assert bool((table.fold[~table.is_prototype] == -1).all())
    for k in range(3):
        assert sorted(table.fold[table.prototype == k].tolist()) == [-1, -1, -1, 0, 0]


def test_hard_targets_and_confident_rows() -> None:
    target = torch.tensor([[0.6, 0.4], [0.05, 0.95], [0.3, 0.7], [0.99, 0.01]])
    pools = make_pools(target, torch.tensor([True, True, False, False]), torch.tensor([False, True, False, True]))
    assert pools.rows("labelled").tolist() == [0, 1]
    assert pools.rows("pseudo").tolist() == [0, 1, 3]
    assert pools.rows("confident").tolist() == [1, 3]
    options = BatchSettings(size=8, steps=3, objective="confident", targets="hard", shrink=True)
    batches = RoundBatches(torch.arange(4.0)[:, None], torch.zeros(4, dtype=torch.int64), pools, options, (0, 0))
    assert batches.rows_a_step == 2
    assert len(batches) == 3
    for step in range(3):
        batch = batches[step]
        assert set(batch["x"][:, 0].tolist()) <= {1.0, 3.0}
        assert set(batch["target"].flatten().tolist()) <= {0.0, 1.0}
        assert (batch["target"][:, 1] == (batch["x"][:, 0] == 1.0)).all()


def test_features_can_stay_as_they_are() -> None:
    features = (3.0 + 2.0 * torch.randn(40, D)).numpy()
    projection = fit_projection(features, ProjectionSettings(dim=None, scale="none", neighbours=0), 0)
    torch.testing.assert_close(projection.apply(features), torch.from_numpy(features))


def test_no_learner_is_a_learner() -> None:
    module = UniformModule()
    module.n_classes.fill_(K)
    assert isinstance(module, Learner)
    x, fold = torch.randn(7, D), torch.zeros(7, dtype=torch.int64)
    torch.testing.assert_close(module.log_probability(x, fold).exp(), torch.full((7, K), 1 / K))
    torch.testing.assert_close(module(x).sum(1), torch.ones(7))
    assert module.calibrate(x, fold, fold) == 1.0


def test_a_round_sees_its_pool_at_least_once() -> None:
    pools = make_pools(torch.full((50, 2), 0.5), torch.ones(50, dtype=torch.bool), torch.zeros(50, dtype=torch.bool))
    features, folds = torch.zeros(50, 1), torch.zeros(50, dtype=torch.int64)

    def steps(**options: float) -> int:
        return len(RoundBatches(features, folds, pools, BatchSettings(size=5, steps=4, **options), (0, 0)))  # type: ignore[arg-type]

    assert steps() == 10
    assert steps(passes=3.0) == 30
    assert steps(passes=0.0) == 4
