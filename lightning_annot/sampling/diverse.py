"""Items that differ from each other: what to ask while nobody has seen some class yet."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_annot.types import Annotations

MOST_ROWS = 20_000  # items that are clustered
MOST_CLUSTERS = 1_000  # of so many rows in a quarter of a minute; time grows with the product


def diverse(features: Tensor, among: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """At most ``n`` of the items ``among`` (A,) that lie far apart, (n,): the nearest to each centre of a k-means clustering.

    ``features`` (N, d). Clustered are at most ``MOST_ROWS`` items, or ``n`` if that is more, drawn by ``generator``. Where
    there are fewer clusters than ``n``, every cluster gives its second nearest item next, and so on.
    """
    from sklearn.cluster import MiniBatchKMeans

    sample = among[torch.randperm(len(among), generator=generator)[: max(n, MOST_ROWS)]]
    n = min(n, len(sample))
    if not n:
        return sample[:0]
    x = features[sample].float()
    # Of scikit-learn's two, mini batches add up in one order whatever the number of threads.
    clusters = MiniBatchKMeans(
        min(n, MOST_CLUSTERS), batch_size=4096, init_size=len(x), max_iter=10, n_init=1, tol=0.0, max_no_improvement=None,
        reassignment_ratio=0.0, random_state=int(torch.randint(1 << 31, (), generator=generator)),
    ).fit(x.numpy())  # fmt: skip
    label = torch.from_numpy(clusters.labels_).long()
    distance = (x - torch.from_numpy(clusters.cluster_centers_)[label]).square().sum(1)
    order = distance.argsort(stable=True)
    order = order[label[order].argsort(stable=True)]  # by cluster, and in it by distance
    place = torch.arange(len(order)) - torch.searchsorted(label[order], label[order])
    return sample[order[place.argsort(stable=True)[:n]]]


def unseen_classes(posterior: Tensor, annotations: Annotations, prototype: Tensor) -> Tensor:
    """Classes (n,) that no ``prototype`` (N,), -1 elsewhere, has, nor an answered item with ``posterior`` (N, K) above 1/2."""
    seen = torch.bincount(prototype[prototype >= 0], minlength=posterior.shape[1])
    for items in torch.split(annotations.item, max(1, (1 << 22) // len(seen))):
        best, label = posterior[items].max(1)
        seen += torch.bincount(label[best > 0.5], minlength=len(seen))
    return (seen == 0).nonzero()[:, 0]


def is_diverse_round(round_: int) -> bool:
    """Rounds 0, 1, 3, 7, 15, ...: an ever smaller share, since a class that was named may not be there at all."""
    return round_ & (round_ + 1) == 0
