from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from lightning_annot.sampling.assignment import allowed_workers, assign
from lightning_annot.sampling.items import candidates, expected_error_reduction, gumbel_top
from lightning_annot.sampling.stopping import StopSettings, has_risen, is_stalled, stop_reason
from lightning_annot.types import AnnotError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distributions(*shape: int, seed: int, sharpness: float = 2.0) -> Tensor:
    return (sharpness * torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)).softmax(-1)


def slow_gain(row: list[float], confusion: list[list[float]]) -> float:
    classes = range(len(row))
    return sum(max(row[y] * confusion[y][z] for y in classes) for z in classes) - max(row)


@given(n=st.integers(1, 12), k=st.integers(2, 6), seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_error_reduction_equals_loops(n: int, k: int, seed: int) -> None:
    q, confusion = distributions(n, k, seed=seed), distributions(k, k, seed=seed + 1)
    gain = expected_error_reduction(q, confusion)
    want = [max(0.0, slow_gain(row, confusion.tolist())) for row in q.tolist()]
    torch.testing.assert_close(gain, torch.tensor(want, dtype=torch.float64), rtol=0.0, atol=1e-12)


@given(k=st.integers(3, 10), top=st.integers(1, 6), seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_truncated_error_reduction_is_a_lower_bound(k: int, top: int, seed: int) -> None:
    q, confusion = distributions(8, k, seed=seed), distributions(k, k, seed=seed + 1)
    gain, exact = expected_error_reduction(q, confusion, top=top), expected_error_reduction(q, confusion)
    assert bool((gain >= 0).all())
    assert bool((gain <= exact + 1e-12).all())


def test_error_reduction_is_streamed() -> None:
    """More rows than a chunk holds."""
    q, confusion = distributions(5000, 40, seed=0), distributions(40, 40, seed=1)
    whole = expected_error_reduction(q, confusion, top=32)
    parts = [expected_error_reduction(part, confusion, top=32) for part in q.split(999)]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_a_certain_item_or_an_ignorant_worker_gains_nothing() -> None:
    certain = torch.eye(4)
    assert bool((expected_error_reduction(certain, distributions(4, 4, seed=0).float()) < 1e-6).all())
    ignorant = torch.full((4, 4), 0.25, dtype=torch.float64)
    assert bool((expected_error_reduction(distributions(50, 4, seed=1), ignorant) < 1e-12).all())
    perfect = expected_error_reduction(distributions(50, 4, seed=1), torch.eye(4))
    torch.testing.assert_close(perfect, 1.0 - distributions(50, 4, seed=1).amax(1))


def test_candidates() -> None:
    finished = torch.tensor([True, False, False, False, False])
    asked = torch.tensor([0, 0, 2, 3, 1])
    assert candidates(finished, asked, 3).tolist() == [1, 2, 4]
    assert candidates(finished, asked, 3, capacity=torch.tensor([9, 0, 3, 9, 1])).tolist() == [2]


def test_gumbel_top_draws_without_replacement_by_weight() -> None:
    """The ordered pairs have the probabilities of one draw after the other."""
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    generator, n = seeded(0), 4000
    drawn = Counter(tuple(gumbel_top(weight.log(), 2, generator).tolist()) for _ in range(n))
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    p = [float(weight[a] / 10 * weight[b] / (10 - weight[a])) for a, b in pairs]
    assert sum(drawn[pair] for pair in pairs) == n
    assert chisquare([drawn[pair] for pair in pairs], [n * value for value in p]).pvalue > 1e-3


@given(size=st.integers(0, 30), n=st.integers(0, 40), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_gumbel_top_is_total(size: int, n: int, seed: int) -> None:
    rows = gumbel_top(torch.randn(size, generator=seeded(seed)), n, seeded(seed)).tolist()
    assert len(rows) == len(set(rows)) == min(size, n)
    assert rows == gumbel_top(torch.randn(size, generator=seeded(seed)), n, seeded(seed)).tolist()


def test_weightless_rows_come_last_and_at_random() -> None:
    weight = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]).log()
    orders = [gumbel_top(weight, 5, seeded(seed)).tolist() for seed in range(60)]
    assert all(set(order[:2]) == {1, 3} for order in orders)
    assert {order[2] for order in orders} == {0, 2, 4}


@given(
    n=st.integers(0, 25), w=st.integers(1, 7), seed=st.integers(0, 10**6), rule=st.sampled_from(["random", "least_loaded"]),
    share=st.floats(0.0, 1.0),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_only_allowed_workers_are_asked(n: int, w: int, seed: int, rule: str, share: float) -> None:
    generator = seeded(seed)
    allowed = torch.rand(n, w, generator=generator) < share
    load = torch.randint(0, 50, (w,), generator=generator)
    items = torch.randperm(100, generator=generator)[:n]
    kept, worker = assign(items, allowed, load, generator, rule)  # type: ignore[arg-type]
    assert torch.equal(kept, items[allowed.any(1)])  # an item that nobody may answer is dropped, no other
    assert bool(allowed[allowed.any(1)].gather(1, worker[:, None]).all())


@given(n=st.integers(0, 60), load=st.lists(st.integers(0, 20), min_size=1, max_size=8), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_least_loaded_fills_up_to_one_level(n: int, load: list[int], seed: int) -> None:
    before = torch.tensor(load)
    _, worker = assign(torch.arange(n), torch.ones(n, len(load), dtype=torch.bool), before, seeded(seed), "least_loaded")
    given_ = torch.bincount(worker, minlength=len(load))
    after = before + given_
    if n:
        asked = given_ > 0
        assert int(after[asked].max()) - int(after.min()) <= 1
        assert int(after[asked].max() - after[asked].min()) <= 1


def test_least_loaded_keeps_level_where_workers_are_barred() -> None:
    """Ten workers, each barred from one item in ten."""
    load, generator = torch.zeros(10, dtype=torch.int64), seeded(0)
    for _ in range(10):
        allowed = torch.rand(100, 10, generator=generator) > 0.1
        _, worker = assign(torch.arange(100), allowed, load, generator, "least_loaded")
        load += torch.bincount(worker, minlength=10)
    assert int(load.max() - load.min()) <= 15


def test_random_is_even_and_hides_no_pattern() -> None:
    _, worker = assign(torch.arange(5000), torch.ones(5000, 10, dtype=torch.bool), torch.arange(10) * 100, seeded(0))
    assert chisquare(torch.bincount(worker, minlength=10).numpy()).pvalue > 1e-3


def test_least_loaded_hands_out_places_at_random() -> None:
    """The order of the items, best first, must not decide who gets them."""
    everybody = torch.ones(4, 4, dtype=torch.bool)
    first = [
        int(assign(torch.arange(4), everybody, torch.zeros(4, dtype=torch.int64), seeded(seed), "least_loaded")[1][0])
        for seed in range(40)
    ]
    assert set(first) == {0, 1, 2, 3}


def test_allowed_workers() -> None:
    items, asked_item, asked_worker = torch.tensor([7, 2]), torch.tensor([2, 2, 7, 5, 7]), torch.tensor([0, 2, 1, 1, -1])
    assert allowed_workers(items, 9, 3, asked_item, asked_worker, None).tolist() == [[True, False, True], [False, True, False]]
    possible = torch.tensor([7, 7, 2, 5]), torch.tensor([1, 2, 2, 0])
    assert allowed_workers(items, 9, 3, asked_item, asked_worker, possible).tolist() == [[False, False, True], [False] * 3]


FLAT = {  # but for noise
    "finished_history": [6, 5, 6, 5, 6, 6], "risk_history": [0.20, 0.22, 0.21, 0.22, 0.19, 0.21],
    "fresh_history": [0.60, 0.62, 0.58, 0.61, 0.60],
}  # fmt: skip


def reason(settings: StopSettings | None = None, **change: object) -> str | None:
    going_on = {
        "finished_history": [0, 1, 2], "n_items": 10, "n_annotations": 4, "n_candidates": 5, "n_open": 0, "last_round": False,
    }  # fmt: skip
    return stop_reason(settings or StopSettings(), **(going_on | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (None, {"finished_history": [0, 10]}, "every item is finished"),
        (None, {"n_candidates": 0}, "as many answers as it may get"),
        (None, {"n_candidates": 0, "n_in_doubt": 3}, "experts have seen all that is left: 3 items are in doubt"),
        (None, {"finished_history": [0, 10], "n_in_doubt": 0}, "every item is finished"),
        (StopSettings(budget=0.4), {}, r"budget of 0\.4 annotations per item is spent"),
        (StopSettings(budget=0.4), {"n_annotations": 5}, "budget"),
        (None, {"last_round": True}, "max_epochs"),
        (None, {"n_candidates": 39, "hit_size": 40}, "fewer items may be asked than one HIT of 40 holds"),
        (StopSettings(patience=2), {"finished_history": [1, 2, 3, 3, 3, 2]}, "no progress for 2 rounds"),
        (StopSettings(patience=3), FLAT, "no progress for 3 rounds"),
        (StopSettings(patience=3), FLAT | {"risk_history": [0.2, 0.2, 0.2, 0.3, 0.3, 0.3]}, "no progress"),
        (StopSettings(patience=3), FLAT | {"fresh_history": [0.5, 0.7, 0.6, 0.5, 0.4]}, "no progress"),
    ],
)
def test_stops(settings: StopSettings | None, change: dict[str, object], message: str) -> None:
    found = reason(settings, **change)
    assert found is not None
    assert re.search(message, found)


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        (None, {}),
        (None, {"n_candidates": 0, "n_open": 1}),
        (None, {"n_candidates": 40, "hit_size": 40}),
        (StopSettings(budget=0.5), {}),
        (StopSettings(patience=2), {"finished_history": [3, 3, 3]}),
        (StopSettings(patience=2), {"finished_history": [1, 3, 1, 4]}),
        (StopSettings(patience=3), {"finished_history": [6, 2, 3, 4, 5, 5]}),  # the first round was overconfident
        # Fewer are finished as the run becomes honest, while more labels are expected to be right,
        (StopSettings(patience=3), FLAT | {"risk_history": [0.22, 0.21, 0.22, 0.15, 0.14, 0.14]}),
        # or fewer of those too, while fresh answers are foreseen better.
        (
            StopSettings(patience=3),
            FLAT | {"risk_history": [0.2, 0.2, 0.2, 0.3, 0.3, 0.3], "fresh_history": [0.2, 0.25, 0.5, 0.52, 0.55]},
        ),
        (StopSettings(patience=1), {"finished_history": [3, 3], "fresh_history": [0.2]}),  # one value is no history
        (StopSettings(patience=None), {"finished_history": [3] * 100}),
        (StopSettings(patience=2), {"finished_history": [0] * 9}),  # nothing is finished yet: it has not begun
    ],
)
def test_goes_on(settings: StopSettings | None, change: dict[str, object]) -> None:
    assert reason(settings, **change) is None


def test_budget_left() -> None:
    assert StopSettings().left(10, 10) is None
    assert StopSettings(budget=0.5).left(3, 10) == 2
    assert StopSettings(budget=0.5).left(30, 10) == 0


def test_settings_are_checked() -> None:
    with pytest.raises(AnnotError, match="budget -1"):
        StopSettings(budget=-1)
    with pytest.raises(AnnotError, match="patience 0"):
        StopSettings(patience=0)


def test_noise_is_seldom_taken_for_progress() -> None:
    """Of flat histories a third seem to rise, not half; of those that rise by a tenth of the noise a round, all do."""
    noise = np.random.default_rng(0).normal(size=(500, 40))
    flat = np.mean([has_risen(history, 20) for history in noise.tolist()])
    rising = np.mean([has_risen(history, 20) for history in (noise + 0.1 * np.arange(40)).tolist()])
    assert 0.2 < flat < 0.4
    assert rising > 0.99
    assert not has_risen([0.3] * 40, 20)
    assert not has_risen([], 20)


def test_a_flat_run_ends_soon_and_one_that_becomes_honest_goes_on() -> None:
    """Rounds 0 to 9 of a run on 5,000 photographs, of which .59 were right at first and .84 at last."""
    shares = [0.168, 0.614, 0.603, 0.631, 0.608, 0.602, 0.621, 0.629, 0.636, 0.671]
    risk = [0.369, 0.141, 0.142, 0.132, 0.138, 0.137, 0.125, 0.120, 0.114, 0.102]
    fresh = [0.479, 0.518, 0.595, 0.499, 0.605, 0.660, 0.645, 0.673, 0.823]
    finished = [round(5000 * share) for share in shares]
    assert is_stalled(3, finished[:7], [], [])  # what finished items alone say
    for stop in range(2, 11):
        assert not is_stalled(3, finished[:stop], risk[:stop], fresh[: stop - 1])
    noise = np.random.default_rng(0).normal(size=(3, 60, 60))
    ends = []
    for items, doubt, said in noise.transpose(1, 0, 2):
        finished, risk, fresh = (
            (4500 + 10 * items).astype(int).tolist(),
            (0.05 + 1e-3 * doubt).tolist(),
            (1 + 0.1 * said).tolist(),
        )
        ends.append(next((n for n in range(61) if is_stalled(5, finished[:n], risk[:n], fresh[: max(0, n - 1)])), 61))
    assert np.mean(ends) < 10 + 2 * 5
