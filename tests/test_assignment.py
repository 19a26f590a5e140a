"""Greedy assignment, caps and HITs, against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_annot.round.settings import SamplingSettings
from lightning_annot.sampling.assignment import ASSIGNMENTS, assign, assign_hits, best_with_room
from lightning_annot.sampling.gold import gold_questions
from lightning_annot.types import AnnotError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_best_with_room(score: Tensor, room: list[int]) -> list[int]:
    """Row after row: the best worker that has room."""
    room, chosen = list(room), []
    for row in score.tolist():
        open_ = [j for j, value in enumerate(row) if room[j] > 0 and value > -float("inf")]
        best = max(open_, key=lambda j: row[j]) if open_ else -1
        if best >= 0:
            room[best] -= 1
        chosen.append(best)
    return chosen


@given(n=st.integers(0, 40), room=st.lists(st.integers(0, 12), min_size=1, max_size=6), seed=st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_caps_equal_a_plain_loop(n: int, room: list[int], seed: int) -> None:
    score = torch.rand(n, len(room), generator=seeded(seed))
    score[torch.rand(score.shape, generator=seeded(seed + 1)) < 0.3] = -torch.inf
    assert best_with_room(score, torch.tensor(room)).tolist() == slow_best_with_room(score, room)


def test_greedy_takes_the_most_reliable_worker_below_the_cap() -> None:
    reliability = torch.tensor([[0.9, 0.8, 0.1]] * 4)
    allowed = torch.ones(4, 3, dtype=torch.bool)
    allowed[0, 0] = False
    load = torch.tensor([3, 0, 0])
    items, worker = assign(torch.tensor([5, 6, 7, 8]), allowed, load, seeded(0), "greedy", reliability, cap=5)
    assert items.tolist() == [5, 6, 7, 8]
    assert worker.tolist() == [1, 0, 0, 1]
    assert assign(items, allowed, load, seeded(0), "greedy", reliability)[1].tolist() == [1, 0, 0, 0]


@given(
    n=st.integers(0, 40), w=st.integers(1, 6), size=st.integers(2, 9), most=st.integers(1, 30), seed=st.integers(0, 10**6),
    cap=st.one_of(st.none(), st.integers(9, 30)), rule=st.sampled_from(ASSIGNMENTS),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_hits(n: int, w: int, size: int, most: int, seed: int, cap: int | None, rule: str) -> None:
    allowed = torch.rand(n, w, generator=seeded(seed)) < 0.8
    load, reliability = torch.randint(0, 9, (w,), generator=seeded(seed)), torch.rand(n, w, generator=seeded(seed))
    items = torch.randperm(100, generator=seeded(seed))[:n]
    kept, worker = assign_hits(items, allowed, load, seeded(seed), size, most, rule, reliability, cap)  # type: ignore[arg-type]
    assert len(kept) == len(set(kept.tolist())) <= most
    row = {int(item): i for i, item in enumerate(items)}
    assert all(bool(allowed[row[i], j]) for i, j in zip(kept.tolist(), worker.tolist(), strict=True))
    after = load + torch.bincount(worker, minlength=w)
    if cap is not None:
        assert bool((after <= torch.maximum(load, torch.tensor(cap))).all())
    elif len(kept) < most:
        left = [i for i in range(n) if int(items[i]) not in set(kept.tolist())]
        assert not bool(allowed[left].any())  # nothing is left that anybody could be asked


def test_hits_go_to_different_workers_first() -> None:
    everybody = torch.ones(120, 5, dtype=torch.bool)
    _, worker = assign_hits(torch.arange(120), everybody, torch.zeros(5, dtype=torch.int64), seeded(0), 20, 120)
    assert sorted(torch.bincount(worker, minlength=5).tolist()) == [20, 20, 20, 20, 40]


def test_greedy_hits_go_to_the_best() -> None:
    reliability = torch.tensor([0.2, 0.9, 0.5]).expand(40, 3)
    everybody, none = torch.ones(40, 3, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    _, worker = assign_hits(torch.arange(40), everybody, none, seeded(0), 20, 40, "greedy", reliability)
    assert worker.tolist() == [1] * 20 + [2] * 20


def test_gold_questions() -> None:
    prototypes = torch.tensor([3, 8, 11, 20])
    items, workers = gold_questions(3, prototypes, 5, seeded(0))
    assert torch.bincount(workers).tolist() == [3] * 5
    assert len(set(zip(items.tolist(), workers.tolist(), strict=True))) == 15
    assert set(items.tolist()) <= set(prototypes.tolist())
    assert len(gold_questions(9, prototypes, 2, seeded(0))[0]) == 8  # no more than there are
    possible = torch.tensor([3, 8, 5, 8]), torch.tensor([0, 0, 0, 1])
    items, workers = gold_questions(3, prototypes, 2, seeded(0), possible)
    assert sorted(zip(items.tolist(), workers.tolist(), strict=True)) == [(3, 0), (8, 0), (8, 1)]


def test_a_cap_below_a_hit_is_refused() -> None:
    with pytest.raises(AnnotError, match="worker_cap 30 given, with HITs of 40"):
        SamplingSettings(worker_cap=30, hit_size=40)
    with pytest.raises(AnnotError, match=r"sampling\.hit_size 0"):
        SamplingSettings(hit_size=0)


def test_who_is_not_asked_takes_no_place_of_the_least_loaded() -> None:
    allowed = torch.ones(40, 5, dtype=torch.bool)
    allowed[:, 3] = False
    _, worker = assign(torch.arange(40), allowed, torch.tensor([9, 9, 9, 2, 9]), seeded(0), "least_loaded")
    assert torch.bincount(worker, minlength=5).tolist() == [10, 10, 10, 0, 10]
