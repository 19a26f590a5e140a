"""Who should answer which item: the information of an answer, drawn confusions, and a worker's share of a round."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_annot.sampling.assignment import assign
from lightning_annot.sampling.matching import draw_confusions, information


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def simplex(*shape: int, seed: int) -> Tensor:
    """Positive rows that sum to 1."""
    return (2.0 * torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)).softmax(-1)


def slow_information(q: list[float], confusion: list[list[float]], top: int) -> float:
    """Plain loops over the most probable classes."""
    kept = sorted(range(len(q)), key=lambda y: -q[y])[:top]
    seen = sum(max(q[y] * confusion[y][z] for y in kept) for z in kept)
    right = sum(q[y] * confusion[y][y] for y in kept)
    return max(0.0, seen - max(q)) + 1e-3 * right


@given(
    n=st.integers(0, 6), k=st.integers(2, 7), w=st.integers(1, 4), top=st.integers(1, 8), seed=st.integers(0, 10**6)
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_information_equals_plain_loops(n: int, k: int, w: int, top: int, seed: int) -> None:
    q, confusions = simplex(n, k, seed=seed), simplex(w, k, k, seed=seed + 1)
    slow = [[slow_information(row, c, min(top, k)) for c in confusions.tolist()] for row in q.tolist()]
    got = information(q, confusions, top)
    torch.testing.assert_close(got, torch.tensor(slow, dtype=torch.float64).reshape(n, w), rtol=0.0, atol=1e-12)


@given(k=st.integers(2, 9), top=st.integers(1, 8), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_fewer_classes_give_a_lower_bound(k: int, top: int, seed: int) -> None:
    q, confusions = simplex(5, k, seed=seed), simplex(3, k, k, seed=seed + 1)
    few, all_ = information(q, confusions, top), information(q, confusions, k)
    assert bool((few <= all_ + 1e-12).all())
    assert bool((few >= 0.0).all())


def test_information_is_the_fall_of_the_error() -> None:
    """By enumeration: error before, less the error after each answer, weighed by its probability."""
    q, confusions = simplex(4, 3, seed=0), simplex(2, 3, 3, seed=1)
    for i in range(4):
        for j in range(2):
            joint = q[i][:, None] * confusions[j]
            chance = joint.sum(0)
            after = sum(float(chance[z] * (1.0 - (joint[:, z] / chance[z]).max())) for z in range(3))
            fall = 1.0 - float(q[i].max()) - after
            tie = 1e-3 * float((q[i] * confusions[j].diagonal()).sum())
            assert float(information(q, confusions)[i, j]) == pytest.approx(max(0.0, fall) + tie, abs=1e-12)


def test_perfect_and_useless_workers() -> None:
    q = torch.tensor([[0.5, 0.3, 0.2]])
    got = information(q, torch.stack([torch.eye(3), torch.full((3, 3), 1.0 / 3.0)]))
    torch.testing.assert_close(got, torch.tensor([[0.5 + 1e-3, 1e-3 / 3.0]]))


def test_many_items_are_done_in_parts() -> None:
    q, confusions = simplex(3000, 10, seed=0).float(), simplex(40, 10, 10, seed=1).float()
    whole = information(q, confusions)
    torch.testing.assert_close(whole[-7:], information(q[-7:], confusions))


def test_drawn_confusions_have_the_mean_and_spread_of_the_dirichlet() -> None:
    counts = torch.tensor([[[7.0, 2.0, 1.0], [0.5, 3.0, 0.5], [20.0, 20.0, 60.0]]])
    drawn = draw_confusions(counts.expand(20_000, 3, 3), seeded(0)).double()
    torch.testing.assert_close(drawn.sum(2), torch.ones(20_000, 3, dtype=torch.float64), rtol=0.0, atol=1e-6)
    total = counts[0].sum(1, keepdim=True).double()
    mean = counts[0].double() / total
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0.0, atol=0.01)
    torch.testing.assert_close(drawn.var(0), mean * (1.0 - mean) / (total + 1.0), rtol=0.06, atol=1e-3)


def test_drawn_confusions_are_a_function_of_the_generator() -> None:
    counts = 3.0 * torch.rand(5, 4, 4, generator=seeded(1)) + 0.1
    assert torch.equal(draw_confusions(counts, seeded(7)), draw_confusions(counts, seeded(7)))
    assert not torch.equal(draw_confusions(counts, seeded(7)), draw_confusions(counts, seeded(8)))
    generator = seeded(7)
    assert not torch.equal(draw_confusions(counts, generator), draw_confusions(counts, generator))


def test_tiny_counts_can_be_drawn() -> None:
    drawn = draw_confusions(torch.full((50, 3, 3), 1e-4), seeded(0))
    assert bool(drawn.isfinite().all())
    torch.testing.assert_close(drawn.sum(2), torch.ones(50, 3))


@given(
    n=st.integers(1, 60), w=st.integers(1, 12), share=st.floats(0.01, 1.0), chance=st.floats(0.2, 1.0),
    cap=st.one_of(st.none(), st.integers(0, 20)), seed=st.integers(0, 10**6),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_share(n: int, w: int, share: float, chance: float, cap: int | None, seed: int) -> None:
    allowed = torch.rand(n, w, generator=seeded(seed)) < chance
    score = torch.rand(n, w, generator=seeded(seed + 1))
    load = torch.randint(0, 6, (w,), generator=seeded(seed + 2))
    items = torch.randperm(100, generator=seeded(seed))[:n]
    kept, worker = assign(items, allowed, load, seeded(seed), "information", score, cap, share)
    row = {int(item): i for i, item in enumerate(items)}
    rows = [row[int(item)] for item in kept]
    assert rows == sorted(set(rows))
    assert bool(allowed[rows, worker].all())
    given_ = torch.bincount(worker, minlength=w)
    most = math.ceil(max(share, 2.0 / w) * n)
    if cap is not None:
        assert bool((given_ <= (cap - load).clamp(min=0)).all())
    else:
        assert kept.tolist() == items[allowed.any(1)].tolist()  # whoever may answer, is asked
    room = torch.full((w,), most) if cap is None else (cap - load).clamp(min=0, max=most)
    spare = given_ < room
    for j in (given_ > most).nonzero()[:, 0].tolist():
        beyond = torch.tensor([rows[i] for i in (worker == j).nonzero()[:, 0].tolist()])
        forced = ~(allowed[beyond] & spare).any(1)
        assert int(forced.sum()) >= int(given_[j]) - most  # nobody else had room for what is beyond the share


def test_the_best_gets_its_share_and_the_next_the_rest() -> None:
    score = torch.arange(10, 0, -1).double().expand(100, 10)
    everybody, none = torch.ones(100, 10, dtype=torch.bool), torch.zeros(10, dtype=torch.int64)
    _, worker = assign(torch.arange(100), everybody, none, seeded(0), "information", score, None, 0.3)
    assert torch.bincount(worker, minlength=10).tolist() == [30, 30, 30, 10, 0, 0, 0, 0, 0, 0]
    _, worker = assign(torch.arange(100), everybody, none, seeded(0), "information", score, None, 0.1)
    assert torch.bincount(worker, minlength=10).tolist() == [20] * 5 + [0] * 5  # twice an even share at least
    _, worker = assign(torch.arange(100), everybody, none, seeded(0), "information", score)
    assert torch.bincount(worker, minlength=10).tolist() == [100] + [0] * 9


def test_few_workers_take_all_items() -> None:
    score = torch.tensor([[0.9, 0.1]]).expand(30, 2)
    for allowed, expected in (([True, True], [30, 0]), ([False, True], [0, 30])):
        may = torch.tensor(allowed).expand(30, 2)
        _, worker = assign(torch.arange(30), may, torch.zeros(2, dtype=torch.int64), seeded(0), "information", score, None, 0.1)
        assert torch.bincount(worker, minlength=2).tolist() == expected
    only = torch.zeros(30, 8, dtype=torch.bool)
    only[:, 3] = True
    kept, worker = assign(
        torch.arange(30), only, torch.zeros(8, dtype=torch.int64), seeded(0), "information", only.float(), None, 0.1
    )
    assert len(kept) == 30
    assert set(worker.tolist()) == {3}


@pytest.mark.parametrize("rule", ["random", "least_loaded", "greedy"])
def test_other_rules_know_no_share(rule: str) -> None:
    allowed, load = torch.rand(40, 5, generator=seeded(0)) < 0.7, torch.arange(5)
    score = torch.arange(5.0).expand(40, 5)
    with_share = assign(torch.arange(40), allowed, load, seeded(3), rule, score, share=0.05)  # type: ignore[arg-type]
    without = assign(torch.arange(40), allowed, load, seeded(3), rule, score)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(with_share, without, strict=True))
