from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_annot.crowd.risk import check_cost, decide
from lightning_annot.types import AnnotError


def posterior(n: int, k: int, seed: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).softmax(1)


def cost_matrix(k: int, seed: int) -> Tensor:
    cost = torch.rand(k, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 5
    return cost.fill_diagonal_(0.0)


@given(n=st.integers(1, 20), k=st.integers(2, 7), seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_equals_loops(n: int, k: int, seed: int) -> None:
    q, cost = posterior(n, k, seed), cost_matrix(k, seed)
    plain, priced = decide(q), decide(q, cost)
    for i in range(n):
        row = q[i].tolist()
        assert float(plain.risk[i]) == pytest.approx(1.0 - max(row))
        assert int(plain.label[i]) == row.index(max(row))
        assert float(plain.confidence[i]) == max(row)
        expected = [sum(row[y] * float(cost[y, d]) for y in range(k)) for d in range(k)]
        assert float(priced.risk[i]) == pytest.approx(min(expected))
        assert int(priced.label[i]) == expected.index(min(expected))
        assert float(priced.confidence[i]) == row[expected.index(min(expected))]


def test_zero_one_cost_matrix_is_the_default() -> None:
    q = posterior(200, 5, 0)
    plain, priced = decide(q), decide(q, (1.0 - torch.eye(5)).double())
    assert torch.equal(plain.label, priced.label)
    torch.testing.assert_close(plain.risk, priced.risk)
    torch.testing.assert_close(plain.confidence, priced.confidence)


def test_costs_can_outweigh_probability() -> None:
    """Row = true class: calling class 1 by the name 0 costs 100."""
    decision = decide(torch.tensor([[0.9, 0.1]]), torch.tensor([[0.0, 1.0], [100.0, 0.0]]))
    assert decision.label.tolist() == [1]
    assert float(decision.risk) == pytest.approx(0.9)
    assert float(decision.confidence) == pytest.approx(0.1)


def test_good_cost_matrix_passes() -> None:
    check_cost(cost_matrix(4, 1), 4)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (torch.zeros(2, 3), r"shape \(2, 3\) given; 3 classes need 3 x 3"),
        (torch.zeros(2, 2), "3 classes need 3 x 3"),
        (torch.eye(3), "being right costs 0"),
        (torch.eye(3) - 1.0, "negative"),
        (torch.full((3, 3), float("nan")).fill_diagonal_(0.0), "infinite"),
        (torch.full((3, 3), float("inf")).fill_diagonal_(0.0), "infinite"),
    ],
)
def test_bad_cost_matrix(cost: Tensor, message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        check_cost(cost, 3)
