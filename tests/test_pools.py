"""Pools, and the batches that are drawn from them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_heads import OF_ALL_ROWS
from scipy.stats import chisquare
from torch import Tensor

from lightning_annot.data.batches import Batch, BatchSettings, FixedRows, RoundBatches
from lightning_annot.data.pools import OBJECTIVES, OwnTargets, Pools, balanced_weights, draw, first_pools, make_pools
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
        assert torch.equal(batch["free"], torch.isin(batch["x"][:, 0].long(), pools.pseudo))
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
    rows = {"x": (0, 2), "target": (0, 3), "fold": (0,), "free": (0,)}
    assert {name: tuple(part.shape) for name, part in data[0].items()} == rows | {
        "log_share": (3,),
        "exponent": (),
        "above": (),
    }


@pytest.mark.parametrize(("n_known", "sure"), [(20, 1.0), (400, 1.0), (400, 0.03), (1000, 1.0)])
def test_items_without_answers_weigh_less_while_answers_are_few(n_known: int, sure: float) -> None:
    """Of A answered items and K classes, all that nobody answered weighs A / (A + 100 K) of the answered ones at most."""
    n, k = 2000, 3
    target = torch.randn(n, k, generator=seeded(0)).softmax(1)
    known = torch.arange(n) < n_known
    pools = make_pools(target, known, known, known | (torch.rand(n, generator=seeded(1)) < sure))
    data = RoundBatches(
        torch.arange(n)[:, None].float(),
        torch.zeros(n),
        pools,
        BatchSettings(size=2000, steps=40, passes=0.0, pseudo_after=100.0),
        (0, 0),
    )
    rows = pools.rows("pseudo")
    weight = balanced_weights(target, rows)
    answered = float(weight[rows < n_known].sum())
    share = min(float(weight[rows >= n_known].sum()) / answered, n_known / (n_known + 100.0 * k))
    drawn = torch.bincount(torch.cat([data[step]["x"] for step in range(40)])[:, 0].long(), minlength=n)
    assert float(drawn[n_known:].sum() / drawn.sum()) == pytest.approx(share / (1.0 + share), abs=0.006)
    assert (share < n_known / (n_known + 300)) == (sure < 1.0)
    known_weight = torch.zeros(n).index_copy(0, rows, weight)[:n_known]  # among themselves, answered items are as they were
    heavy = known_weight > known_weight.median()
    got = float(drawn[:n_known][heavy].sum() / drawn[:n_known].sum())
    assert got == pytest.approx(float(known_weight[heavy].sum() / known_weight.sum()), abs=0.01)


def test_a_batch_says_on_what_terms_heads_teach_themselves() -> None:
    known = torch.arange(6) < 3
    share = torch.tensor([0.7, 0.3], dtype=torch.float64).log()
    settings = BatchSettings(size=4, steps=1)
    for own, want in ((OwnTargets(0.5, share, 0.8), (0.5, share.float(), 0.8)), (OwnTargets(), (1.0, torch.zeros(2), 0.9))):
        pools = make_pools(torch.full((6, 2), 0.5), known, known, None, own)
        batch = RoundBatches(torch.zeros(6, 1), torch.zeros(6), pools, settings, (0, 0))[0]
        assert float(batch["exponent"]) == want[0]
        assert torch.equal(batch["log_share"], want[1])
        assert float(batch["above"]) == pytest.approx(want[2])


def test_rows_that_heads_are_sure_of_need_no_low_risk() -> None:
    known, confident, sure = (torch.tensor(rows) == 1 for rows in ([1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 1, 0]))
    pools = make_pools(torch.zeros(5, 2), known, confident, sure)
    assert (pools.labelled.tolist(), pools.pseudo.tolist(), pools.unlabelled.tolist()) == ([0, 1], [3], [2, 4])
    assert pools.doubtful.tolist() == [1]


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
    assert set(batches(pools, "consistency")[0]) == {"x", "target", "fold", "free", *OF_ALL_ROWS}


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
                assert torch.equal(ranks[r][step][name], whole if name in OF_ALL_ROWS else whole[r::3])


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


def test_first_pools_are_the_prototypes_and_the_rest() -> None:
    pools = first_pools(torch.tensor([-1, 2, -1, 0]), n_rows=6, n_classes=3)
    assert pools.labelled.tolist() == [1, 3]
    assert pools.unlabelled.tolist() == [0, 2, 4, 5]
    assert not len(pools.pseudo)
    assert not len(pools.doubtful)
    assert torch.equal(pools.target[[1, 3]], torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    assert float(pools.target.sum()) == 2.0
