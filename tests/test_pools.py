from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.decomposition import PCA
from sklearn.kernel_approximation import Nystroem
from torch import Tensor

from lightning_annot.data.batches import Batch, BatchSettings, FixedRows, RoundBatches
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.items import ItemTable, build_items
from lightning_annot.data.pools import OBJECTIVES, Pools, balanced_weights, draw, make_pools
from lightning_annot.data.projection import Projection, ProjectionSettings, fit_projection
from lightning_annot.types import AnnotError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_pools(n: int = 300, k: int = 4, seed: int = 0) -> Pools:
    target = (4 * torch.randn(n, k, generator=seeded(seed))).softmax(1)
    known = torch.rand(n, generator=seeded(seed + 1)) < 0.3
    return make_pools(target, known, target.amax(1) > 0.9)


@given(n=st.integers(0, 50), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_pools_are_a_partition(n: int, seed: int) -> None:
    known, confident = (torch.rand(n, generator=seeded(seed + i)) < 0.5 for i in range(2))
    pools = make_pools(torch.zeros(n, 2), known, confident)
    assert sorted([*pools.labelled.tolist(), *pools.pseudo.tolist(), *pools.unlabelled.tolist()]) == list(range(n))
    assert bool(known[pools.labelled].all())
    assert bool((confident & ~known)[pools.pseudo].all())
    assert not bool((confident | known)[pools.unlabelled].any())


@pytest.mark.parametrize("chunk", [3, 1 << 16])
def test_balanced_weights(chunk: int) -> None:
    target = torch.randn(40, 4, generator=seeded(0), dtype=torch.float64).softmax(1)
    rows = torch.randperm(40, generator=seeded(1))[:25]
    weight = balanced_weights(target, rows, chunk)
    mass = [sum(float(target[i, k]) for i in rows) for k in range(4)]
    for w, i in zip(weight.tolist(), rows.tolist(), strict=True):
        assert w == pytest.approx(sum(float(target[i, k]) / mass[k] for k in range(4)))
    assert float(weight.sum()) == pytest.approx(4.0)


def test_classes_weigh_the_same_however_rare() -> None:
    label = torch.tensor([0] * 90 + [1] * 9 + [2])
    weight = balanced_weights(torch.eye(4)[label], torch.arange(100))
    torch.testing.assert_close(torch.zeros(3).index_add(0, label, weight), torch.ones(3))


def test_next_to_nothing_is_no_class() -> None:
    """A mass whose inverse float32 cannot hold."""
    target = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-41, 1e-7]])
    torch.testing.assert_close(balanced_weights(target, torch.arange(2)), torch.tensor([0.5, 1.5]))
    assert balanced_weights(target, torch.arange(0)).shape == (0,)


def test_draw_follows_the_weights() -> None:
    rows, weight = torch.tensor([5, 9, 2, 7]), torch.tensor([1.0, 0.0, 3.0, 4.0])
    drawn = draw(rows, weight, 8000, seeded(0))
    counts = Counter(drawn.tolist())
    assert counts[9] == 0
    assert chisquare([counts[5], counts[2], counts[7]], [1000, 3000, 4000]).pvalue > 1e-3
    assert torch.equal(drawn, draw(rows, weight, 8000, seeded(0)))


def batches(pools: Pools, objective: str, seed: tuple[int, int] = (0, 3), rank: int = 0, world: int = 1) -> list[Batch]:
    """Features are the row numbers, so that a batch says where it comes from."""
    n = len(pools.target)
    chosen = BatchSettings(size=32, steps=5, passes=0.0, objective=objective, ratio=1.5)  # type: ignore[arg-type]
    data = RoundBatches(torch.arange(n)[:, None].float(), torch.arange(n) % 5, pools, chosen, seed, rank, world)
    return [data[step] for step in range(len(data))]


def rows_of(parts: list[Batch], name: str = "x") -> Tensor:
    return torch.cat([batch[name][:, 0] for batch in parts]).long()


@pytest.mark.parametrize("objective", ["labelled", "pseudo", "mixmatch"])
def test_batches_come_from_their_pools(objective: str) -> None:
    pools = some_pools()
    parts = batches(pools, objective)
    assert len(parts) == 5
    allowed = set(pools.labelled.tolist())
    if objective == "pseudo":
        allowed |= set(pools.pseudo.tolist())
        assert set(rows_of(parts).tolist()) & set(pools.pseudo.tolist())
    assert set(rows_of(parts).tolist()) <= allowed
    for batch in parts:
        for suffix in ("", "_first", "_second") if objective == "mixmatch" else ("",):
            rows = batch["x" + suffix][:, 0].long()
            assert len(rows) == (48 if suffix else 32)
            assert torch.equal(batch["target" + suffix], pools.target[rows])
            assert torch.equal(batch["fold" + suffix], rows % 5)
    assert ("share" in parts[0]) == (objective == "mixmatch")


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_where_nothing_is_known_the_one_step_is_empty(objective: str, shrink: bool) -> None:
    nothing = torch.zeros(20, dtype=torch.bool)
    pools = make_pools(torch.full((20, 3), 1 / 3), nothing, nothing)
    chosen = BatchSettings(objective=objective, shrink=shrink)  # type: ignore[arg-type]
    data = RoundBatches(torch.zeros(20, 2), torch.arange(20) % 5, pools, chosen, (0, 0))
    assert len(data) == 1
    assert data.rows_a_step == 0
    assert {name: tuple(part.shape) for name, part in data[0].items()} == {"x": (0, 2), "target": (0, 3), "fold": (0,)}


def test_mixed_pairs() -> None:
    pools = some_pools()
    parts = batches(pools, "mixmatch")
    known = torch.zeros(300, dtype=torch.bool)
    known[pools.labelled] = True
    first, second = rows_of(parts, "x_first"), rows_of(parts, "x_second")
    assert bool(known[first].all())
    assert not bool(known[second].any())
    assert bool((pools.target[second].amax(1) > 0.9).all())
    share = torch.cat([batch["share"] for batch in parts])
    assert bool(((share >= 0) & (share <= 1)).all())
    assert float(share.mean()) == pytest.approx(0.5, abs=0.1)


def test_mixmatch_without_sure_items_learns_from_labels_alone() -> None:
    target = torch.full((20, 3), 1 / 3)
    pools = make_pools(target, torch.arange(20) < 5, torch.zeros(20, dtype=torch.bool))
    assert "share" not in batches(pools, "mixmatch")[0]


def test_views_are_of_unanswered_items() -> None:
    pools = some_pools()
    parts = batches(pools, "consistency")
    free = {*pools.pseudo.tolist(), *pools.unlabelled.tolist()}
    assert set(rows_of(parts).tolist()) <= set(pools.labelled.tolist())
    for suffix in ("_own", "_other"):
        assert set(rows_of(parts, "x" + suffix).tolist()) <= free
        for batch in parts:
            assert len(batch["x" + suffix]) == len(batch["share_view"]) == 48
            assert torch.equal(batch["fold" + suffix], batch["x" + suffix][:, 0].long() % 5)
    drawn = torch.bincount(rows_of(parts, "x_own"), minlength=300)
    assert int(drawn[pools.pseudo].sum()) > 0
    assert int(drawn[pools.unlabelled].sum()) > 0


def test_without_unanswered_items_there_is_nothing_to_be_consistent_on() -> None:
    everything = torch.ones(20, dtype=torch.bool)
    pools = make_pools(torch.full((20, 3), 1 / 3), everything, ~everything)
    assert set(batches(pools, "consistency")[0]) == {"x", "target", "fold"}


@pytest.mark.parametrize("objective", ["pseudo", "mixmatch", "consistency"])
def test_batches_are_a_function_of_seed_and_round(objective: str) -> None:
    pools = some_pools()
    once, again = (batches(pools, objective, (1, 2)) for _ in range(2))
    for a, b in zip(once, again, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    for other in ((1, 3), (2, 2), (2, 1)):
        assert not torch.equal(rows_of(once), rows_of(batches(pools, objective, other)))


@pytest.mark.parametrize("objective", ["pseudo", "mixmatch", "consistency"])
def test_ranks_together_see_what_one_process_sees(objective: str) -> None:
    pools = some_pools()
    alone, ranks = batches(pools, objective), [batches(pools, objective, rank=r, world=3) for r in range(3)]
    for step, batch in enumerate(alone):
        for name, whole in batch.items():
            for r in range(3):
                assert torch.equal(ranks[r][step][name], whole[r::3])


def test_released_batches_hold_no_targets() -> None:
    pools = some_pools()
    data = RoundBatches(torch.zeros(300, 2), torch.zeros(300), pools, BatchSettings(size=4, steps=2), (0, 0))
    data.release()
    with pytest.raises(IndexError):
        data[0]


def test_fixed_rows() -> None:
    features, folds, rows = torch.randn(30, 2, generator=seeded(0)), torch.arange(30) % 3, torch.arange(0, 30, 2)
    data = FixedRows(features, folds, rows, torch.arange(30) * 10, chunk=4)
    parts = [data[step] for step in range(len(data))]
    assert [len(part["row"]) for part in parts] == [4, 4, 4, 3]
    assert torch.equal(torch.cat([part["row"] for part in parts]), rows)
    assert torch.equal(torch.cat([part["label"] for part in parts]), rows * 10)
    assert torch.equal(parts[1]["x"], features[rows[4:8]])
    assert "label" not in FixedRows(features, folds, rows, None)[0]
    assert len(FixedRows(features, folds, rows[:0], None)) == 0


@pytest.mark.parametrize(
    "change", [{"size": 0}, {"steps": 0}, {"alpha": 0.0}, {"ratio": 0.0}, {"tau": 0.0}, {"tau": 1.0}, {"objective": "all"}]
)
def test_batch_settings_are_checked(change: dict[str, float]) -> None:
    with pytest.raises(AnnotError, match=next(iter(change))):
        BatchSettings(**change)  # type: ignore[arg-type]


def bank(n: int = 120, d: int = 10, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * rng.uniform(0.1, 9.0, d) + rng.normal(size=d)
    features[:, 3] = 7.0  # a constant column
    return features.astype(np.float16)


def test_projection_is_sklearns_pca() -> None:
    features = bank()
    got = fit_projection(features, ProjectionSettings(dim=4, neighbours=0), seed=0).apply(features, chunk=50).numpy()
    x = features.astype(np.float64)
    x = (x - x.mean(0)) / np.where(x.std(0) < 1e-6, 1.0, x.std(0))
    want = PCA(4).fit_transform(x)
    want /= np.sqrt((want**2).sum(1).mean())
    want *= np.sign((want * got).sum(0))
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert (got**2).sum(1).mean() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("dim", [None, 10, 99])
def test_projection_that_keeps_all_features_standardises_them(dim: int | None) -> None:
    features = bank()
    got = fit_projection(features, ProjectionSettings(dim=dim, neighbours=0), seed=0).apply(features).numpy()
    x = features.astype(np.float64)
    x = (x - x.mean(0)) / np.where(x.std(0) < 1e-6, 1.0, x.std(0))
    np.testing.assert_allclose(got, x / 3.0, atol=1e-3)  # nine columns that vary


def test_kernel_is_sklearns_nystroem_less_its_mean() -> None:
    features = bank()
    flat = fit_projection(features, ProjectionSettings(dim=4, neighbours=0), seed=0)
    curved = fit_projection(features, ProjectionSettings(dim=4, kernel=20, gamma=0.7, neighbours=0), seed=0)
    x = flat.apply(features).numpy()
    want = Nystroem(gamma=0.7, n_components=20, random_state=0).fit_transform(x)
    want = want - want.mean(0)
    got = curved.apply(features).numpy()
    np.testing.assert_allclose(got, want / np.sqrt((want**2).sum(1).mean()), atol=2e-3)
    assert float((got**2).sum(1).mean()) == pytest.approx(1.0, abs=1e-3)


def test_projection_is_fitted_on_few_rows_and_restored_from_its_state() -> None:
    features = bank(500)
    few = ProjectionSettings(dim=3, kernel=8, rows=50)
    fitted = fit_projection(features, few, seed=1)
    restored = Projection(**fitted.state())  # type: ignore[arg-type]
    assert torch.equal(restored.apply(features), fitted.apply(features))
    assert torch.equal(fit_projection(features, few, seed=1).apply(features), fitted.apply(features))
    assert not torch.allclose(fit_projection(features, few, seed=2).apply(features), fitted.apply(features), atol=1e-3)
    with pytest.raises(AnnotError, match="width 9 given; this run's learner takes 10"):
        fitted.apply(features[:, :9])


@pytest.mark.parametrize("change", [{"dim": 0}, {"kernel": -1}, {"gamma": 0.0}, {"rows": 1}])
def test_projection_settings_are_checked(change: dict[str, int]) -> None:
    with pytest.raises(AnnotError, match=next(iter(change))):
        ProjectionSettings(**change)


@pytest.mark.parametrize(
    "chosen",
    [
        ProjectionSettings(dim=None),
        ProjectionSettings(dim=4),
        ProjectionSettings(dim=128),
        ProjectionSettings(dim=128, neighbours=0),
        ProjectionSettings(dim=8, rows=5, neighbours=0),
        ProjectionSettings(dim=4, kernel=30),
        ProjectionSettings(dim=4, kernel=30, rows=12),
        ProjectionSettings(kernel=1000),
        ProjectionSettings(dim=4, neighbours=3),
        ProjectionSettings(kernel=30, neighbours=3, rows=20),
    ],
)
def test_width_is_known_before_the_projection(chosen: ProjectionSettings, tmp_path: Path) -> None:
    np.save(tmp_path / "bank.npy", bank())
    labels = pd.DataFrame({"task": range(120), "label": ["ab"[i % 2] for i in range(120)]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    data = AnnotationDataModule(
        features=str(tmp_path / "bank.npy"), labels=str(tmp_path / "labels.csv"), projection=chosen, prototypes_per_class=2
    )
    data.setup("fit")
    (before,) = data.widths
    features, folds = data.projected()
    assert before == data.widths[0] == features.shape[1]
    assert len(features) == len(folds) == 120
    restored = AnnotationDataModule(features=str(tmp_path / "bank.npy"), projection=chosen)
    restored.load_state_dict(data.state_dict())
    restored.setup("predict")
    assert torch.equal(restored.projected()[0], features)


IDS = [f"i{j}" for j in range(60)]
TRUTH = {name: "abc"[j % 3] for j, name in enumerate(IDS)}


def items(**change: object) -> ItemTable:
    good: dict[str, object] = {
        "ids": IDS, "classes": None, "truth": TRUTH, "prototypes": None, "prototypes_per_class": 6, "n_folds": 3, "seed": 0,
    }  # fmt: skip
    return build_items(**(good | change))  # type: ignore[arg-type]


def test_prototypes_and_folds_are_stratified() -> None:
    table = items()
    assert table.truth is not None
    assert table.drawn
    assert table.classes == ("a", "b", "c")
    assert torch.bincount(table.prototype[table.is_prototype]).tolist() == [6, 6, 6]
    assert torch.equal(table.prototype[table.is_prototype], table.truth[table.is_prototype])
    for k in range(3):
        assert torch.bincount(table.fold[table.prototype == k], minlength=3).tolist() == [2, 2, 2]
    assert int(torch.bincount(table.fold).min()) > 10


def test_items_are_a_function_of_the_seed() -> None:
    one, again, other = items(seed=1), items(seed=1), items(seed=2)
    assert torch.equal(one.prototype, again.prototype)
    assert torch.equal(one.fold, again.fold)
    assert not torch.equal(one.prototype, other.prototype)
    assert one.identity(1) == again.identity(1)
    assert one.identity(1)["prototypes"] != other.identity(1)["prototypes"]
    assert one.identity(1)["seed"] != one.identity(2)["seed"]
    assert one.identity(1)["classes"] != items(classes=["c", "b", "a"], seed=1).identity(1)["classes"]


def test_given_prototypes_and_class_order() -> None:
    table = items(truth=None, prototypes={"i5": "x", "i9": "y", "i11": "y"}, classes=["y", "x"])
    assert table.classes == ("y", "x")
    assert table.truth is None
    assert not table.drawn
    assert table.is_prototype.nonzero()[:, 0].tolist() == [5, 9, 11]
    assert table.prototype[[5, 9, 11]].tolist() == [1, 0, 0]


def test_a_start_without_prototypes_is_asked_for() -> None:
    none = items(prototypes_per_class=0)
    assert not bool(none.is_prototype.any())
    assert not none.drawn
    assert torch.bincount(none.fold).tolist() == [20, 20, 20]
    assert none.identity(0)["prototypes"].startswith("0 prototypes")
    named = items(prototypes_per_class=0, truth=None, classes=["a", "b"])
    assert torch.equal(named.fold, none.fold)
    some = items(prototypes_per_class=0, prototypes={"i4": "b"})
    assert some.prototype[some.is_prototype].tolist() == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": []}, "no items given"),
        ({"ids": [*IDS, "i3", "i4", "i4"]}, r"3 duplicate item ids, such as \['i3', 'i4', 'i4'\]"),
        ({"classes": ["a", "b", "a"]}, "names a class twice"),
        ({"truth": None}, "no classes given"),
        ({"truth": None, "classes": ["a", "b"]}, "no prototypes given"),
        ({"classes": ["a"]}, "at least 2"),
        ({"truth": dict.fromkeys(IDS, "a")}, "at least 2"),
        ({"truth": TRUTH | {"z1": "a"}}, r"1 ids only in data.labels, such as \['z1'\]"),
        ({"truth": {name: TRUTH[name] for name in IDS[2:]}}, r"2 items without a row there, such as \['i0', 'i1'\]"),
        ({"classes": ["a", "b"]}, r"data.labels has labels outside the classes: \['c'\]"),
        ({"prototypes": {"z1": "a"}}, r"1 ids only in data.prototypes, such as \['z1'\]"),
        ({"prototypes": {"i1": "d"}, "classes": ["a", "b", "c"]}, r"data.prototypes has labels outside the classes: \['d'\]"),
        ({"prototypes": {"i0": "a", "i1": "b"}}, r"1 classes without a prototype: \['c'\]"),
        ({"classes": ["a", "b", "c", "d"]}, r"1 classes without a prototype: \['d'\]"),
        ({"prototypes_per_class": -1}, "prototypes_per_class -1"),
        ({"prototypes_per_class": 0, "holdout": "prototypes"}, "data.holdout prototypes with data.prototypes_per_class 0"),
        ({"prototypes_per_class": 0, "truth": None}, "no classes given"),
        ({"prototypes_per_class": 20}, "20 prototypes a class take all 60 items"),
        ({"n_folds": 1}, "data.folds 1 given"),
    ],
)
def test_items_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        items(**change)
