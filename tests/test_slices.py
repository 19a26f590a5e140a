"""Several processes, each with its slice of a batch, have the mean gradient of one process with the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_heads import F, make_batch, random_heads, seeded
from torch import Tensor

from lightning_annot.learner.mixmatch import consistency, fold_use, soft_cross_entropy, squared_error, windows
from lightning_annot.learner.slices import Slice

Loss = Callable[..., Tensor]


@given(n=st.integers(0, 50), world=st.integers(1, 5), folds=st.integers(1, 6), share=st.floats(0.05, 1.0))
@settings(max_examples=100, deadline=None)
def test_processes_share_out_the_windows_of_the_whole_batch(n: int, world: int, folds: int, share: float) -> None:
    rows = torch.arange(n)
    whole = windows(rows, folds, share)
    parts: list[list[int]] = [[] for _ in range(folds)]
    for rank in range(world):
        own = Slice(rank, world)
        mine = own.windows(rows[rank::world], n, folds, share)
        present = own.present(n, folds, share, rows.device).expand(mine.shape)
        for f in range(folds):
            parts[f] += mine[f][present[f]].tolist()
    assert [sorted(part) for part in parts] == [sorted(window) for window in whole.tolist()]


def cross_entropy(logits: Tensor, batch: dict[str, Tensor], rows: Tensor, use: Tensor, n: Tensor | None) -> Tensor:
    return soft_cross_entropy(logits, batch["target"][rows], use, n)


def square(logits: Tensor, batch: dict[str, Tensor], rows: Tensor, use: Tensor, n: Tensor | None) -> Tensor:
    return squared_error(logits, batch["target"][rows], use, n)


def agreement(logits: Tensor, batch: dict[str, Tensor], rows: Tensor, use: Tensor, n: Tensor | None) -> Tensor:
    return consistency(3.0 * batch["target"][rows].log(), logits, use, 0.6, n)


@pytest.mark.parametrize("loss", [cross_entropy, square, agreement])
@pytest.mark.parametrize(("size", "world", "share"), [(41, 2, 0.6), (37, 3, 0.6), (2, 3, 0.6), (40, 2, 1.0)])
def test_the_mean_gradient_is_that_of_the_whole_batch(loss: Loss, size: int, world: int, share: float) -> None:
    batch = make_batch(size)
    usable = torch.rand(F, size, generator=seeded(9)) < 0.7  # as where a head may not learn from every row

    def gradient(own: Slice, rows_used: Tensor | None) -> tuple[list[Tensor], Tensor]:
        heads, rows = random_heads(None), torch.arange(size)[own.rank :: own.world]
        rows = own.windows(rows, size, F, share)
        use = fold_use(F, batch["fold"][rows]) & usable.gather(1, rows)
        use &= own.present(size, F, share, rows.device)
        loss(heads(batch["x"][rows]), batch, rows, use, rows_used).backward()
        return [p.grad for p in heads.parameters() if p.grad is not None], use.sum(1)

    alone, n_rows = gradient(Slice(), None)
    slices = [Slice(rank, world) for rank in range(world)]
    assert torch.equal(sum(gradient(own, None)[1] for own in slices), n_rows)
    rows_used = n_rows.clamp(min=1) / world
    each = [gradient(own, rows_used)[0] for own in slices]
    for one, *several in zip(alone, *each, strict=True):
        torch.testing.assert_close(sum(several) / world, one, rtol=1e-5, atol=1e-7)


def test_a_single_process_counts_its_own_rows() -> None:
    use = torch.tensor([[True, False, True], [False, False, False]])
    assert Slice().rows_used(use).tolist() == [2.0, 1.0]
    assert Slice.of_process() == Slice()
