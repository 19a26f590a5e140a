"""Who answered what, laid out so that the E and M steps are sums over rows of small tables.

Only the (worker, answer) pairs that occur get a row, so memory grows with the annotations and never with N x W or W x K x K.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lightning_annot.types import Annotations


@dataclass(frozen=True)
class Chunk:
    """Annotated items ``[start, stop)`` with their annotations, in item order and in pair order."""

    start: int
    stop: int
    pair: Tensor  # pair of each annotation, grouped by item
    item_offset: Tensor  # first annotation of each item
    item: Tensor  # local item of each annotation, grouped by pair
    pair_offset: Tensor  # first annotation of each pair in ``pairs``
    pairs: Tensor  # the distinct pairs of the chunk
    weight: Tensor | None  # how often each annotation counts, grouped by item; None: all once
    pair_weight: Tensor | None  # the same, grouped by pair

    @property
    def n_answers(self) -> Tensor:
        """Annotations of each item of the chunk, (stop - start,)."""
        return torch.diff(self.item_offset, append=torch.tensor([len(self.pair)], device=self.item_offset.device))


@dataclass(frozen=True)
class Incidence:
    """Annotations of ``n`` annotated items as P distinct (worker, answer) pairs.

    ``items`` (n,) are the annotated items in rising order; ``pair_worker`` and ``pair_label`` are (P,) and sorted by worker;
    ``worker_offset`` (W,) is each worker's first pair.
    """

    n_workers: int
    n_classes: int
    items: Tensor
    pair_worker: Tensor
    pair_label: Tensor
    worker_offset: Tensor
    chunks: tuple[Chunk, ...]

    def item_sums(self, chunk: Chunk, table: Tensor) -> Tensor:
        """Sum the rows of ``table`` (P, K) over each item's annotations: (items of the chunk, K)."""
        return embedding_bag(chunk.pair, table, chunk.item_offset, mode="sum", per_sample_weights=chunk.weight)

    def add_pair_sums(self, chunk: Chunk, rows: Tensor, into: Tensor) -> None:
        """Add ``rows`` (items of the chunk, K) to ``into`` (P, K), once for each annotation."""
        weight = None if chunk.pair_weight is None else chunk.pair_weight.to(rows)
        sums = embedding_bag(chunk.item, rows, chunk.pair_offset, mode="sum", per_sample_weights=weight)
        into.index_add_(0, chunk.pairs, sums)

    def worker_sums(self, table: Tensor) -> Tensor:
        """Sum the rows of ``table`` (P, K) over each worker's pairs: (W, K)."""
        index = torch.arange(len(self.pair_worker), device=table.device)
        return embedding_bag(index, table, self.worker_offset, mode="sum")


def build_incidence(
    annotations: Annotations, n_workers: int, n_classes: int, *, weight: Tensor | None = None, chunk_elements: int = 1 << 21
) -> Incidence:
    """Sort the annotations once for all iterations; a chunk holds at most ``chunk_elements`` values of (items, K).

    ``weight`` (A,): how often each annotation counts in all sums; None: once.
    """
    order = torch.argsort(annotations.item, stable=True)
    item, worker, label = (t[order] for t in (annotations.item, annotations.worker, annotations.label))
    items, local = torch.unique_consecutive(item, return_inverse=True)
    codes, pair = torch.unique(worker * n_classes + label, return_inverse=True)
    pair_worker = codes // n_classes
    workers = torch.arange(n_workers, device=codes.device)
    rows = max(1, chunk_elements // n_classes)
    return Incidence(
        n_workers=n_workers,
        n_classes=n_classes,
        items=items,
        pair_worker=pair_worker,
        pair_label=codes % n_classes,
        worker_offset=torch.searchsorted(pair_worker, workers),
        chunks=tuple(_chunks(local, pair, None if weight is None else weight[order], len(items), rows)),
    )


def _chunks(local: Tensor, pair: Tensor, weight: Tensor | None, n: int, rows: int) -> Iterator[Chunk]:
    bounds = torch.searchsorted(local, torch.arange(n + 1, device=local.device))
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        first, last = int(bounds[start]), int(bounds[stop])
        chunk_pair = pair[first:last]
        by_pair = torch.argsort(chunk_pair, stable=True)
        pairs, counts = torch.unique_consecutive(chunk_pair[by_pair], return_counts=True)
        yield Chunk(
            start=start,
            stop=stop,
            pair=chunk_pair,
            item_offset=bounds[start:stop] - first,
            item=(local[first:last] - start)[by_pair],
            pair_offset=torch.cumsum(counts, 0) - counts,
            pairs=pairs,
            weight=None if weight is None else weight[first:last],
            pair_weight=None if weight is None else weight[first:last][by_pair],
        )
