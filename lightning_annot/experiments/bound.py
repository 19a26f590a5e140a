"""How few answers would do if nothing had to be estimated: true confusions, and a model that has learned from every true label.

Pure functions for evaluation alone. Truth is what they are made of, so no method may call them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_annot.crowd.risk import decide
from lightning_annot.learner.calibration import fit_temperature
from lightning_annot.report.metrics import label_metrics
from lightning_annot.sampling.items import expected_error_reduction
from lightning_annot.types import AnnotError

Ints = NDArray[np.int64]
Who = Literal["next", "random", "best"]
FOLDS = 5
WEIGHT_DECAY = 1e-4  # of the mean loss: least held-out loss of 3e-3 to 3e-5 on CIFAR-10 with 128 components
STRENGTH = 10.0  # pseudo-answers of the pooled confusion in each row of a recorded worker's
_CHUNK = 1 << 22  # numbers of an (n, S, K, K) array that are held at a time
_TIE = 1e-9  # far below any difference of two gains that matters


@dataclass(frozen=True)
class Source:
    """Whoever can answer. An item has S places; ``worker`` (N, S) is who answers at each, -1 where there is nobody.

    ``confusions`` (W, K, K) are true, ``pooled`` (K, K) is the average worker's. ``answer(items, places)`` gives labels (n,).
    """

    worker: Ints
    confusions: Tensor
    pooled: Tensor
    answer: Callable[[Ints, Ints], Ints]


def simulated_source(confusions: NDArray[np.float64], n_items: int, answer: Callable[[Ints, Ints], Ints]) -> Source:
    """Workers with true ``confusions`` (W, K, K), all of whom can answer each item; ``answer(worker, item)`` gives labels."""
    true = torch.from_numpy(np.array(confusions, dtype=np.float64))
    worker = np.broadcast_to(np.arange(len(true)), (n_items, len(true)))
    return Source(worker, true, true.mean(0), lambda items, places: answer(places, items))


def recorded_source(item: Ints, worker: Ints, label: Ints, truth: Ints, n_classes: int) -> Source:
    """Recorded answers (A,), sorted by item and, within one, in the order of the replay.

    A worker's confusion is the count of all its answers by the ``truth`` (N,), and ``STRENGTH`` times the pooled confusion.
    """
    counts = np.zeros((int(worker.max()) + 1, n_classes, n_classes))
    np.add.at(counts, (worker, truth[item], label), 1.0)
    pooled = counts.sum(0) / np.maximum(counts.sum((0, 2))[:, None], 1.0)
    weighted = counts + STRENGTH * pooled
    confusions = weighted / np.maximum(weighted.sum(2, keepdims=True), 1e-12)
    place = np.arange(len(item)) - np.searchsorted(item, item)
    who = np.full((len(truth), int(place.max()) + 1), -1, dtype=np.int64)
    said = who.copy()
    who[item, place], said[item, place] = worker, label
    return Source(who, torch.from_numpy(confusions), torch.from_numpy(pooled), lambda items, places: said[items, places])


def oracle_log_probability(features: Tensor, truth: Tensor, seed: int) -> Tensor:
    """log p(y | x) (N, K) in double precision, of linear heads that have learned from all true labels but the item's fold's.

    ``features`` (N, d), ``truth`` (N,). The temperature is fitted to the truth as well.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    fewest = int(torch.bincount(truth).min())
    if fewest < FOLDS:
        raise AnnotError(
            f"a class has {fewest} items; the bound cross-fits {FOLDS} folds and needs {FOLDS} items of each class."
        )
    n_learned = len(truth) * (FOLDS - 1) / FOLDS
    head = LogisticRegression(C=1.0 / (WEIGHT_DECAY * n_learned), max_iter=1000)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    score = cross_val_predict(head, features.numpy(), truth.numpy(), cv=folds, method="decision_function")
    logits = torch.from_numpy(np.asarray(score, dtype=np.float64))
    if logits.ndim == 1:  # one score for two classes
        logits = torch.stack([torch.zeros_like(logits), logits], 1)
    return (logits / fit_temperature(logits, truth)).log_softmax(1)


def bound_rounds(
    log_prior: Tensor,
    truth: Tensor,
    keep: Tensor,
    source: Source,
    who: Who,
    *,
    threshold: float,
    cap: int,
    per_round: int,
    seed: int,
) -> pd.DataFrame:
    """Rounds of ``per_round`` questions until no item is open; a row a round, columns as in ``rounds.csv``.

    Asked are the items of the highest expected gain by the pooled confusion (the riskiest, at equal gain) among those ``keep``
    (N,) that have a risk of ``threshold`` or more, fewer than ``cap`` answers, and someone left to ask. ``who`` answers: the
    next in the order of the replay, one at random, or the best by the exact gain under the worker's own confusion. The
    posterior is p(y | x) prod_j w_j[y, z_j].
    """
    log_posterior, count = log_prior.double().clone(), np.zeros(len(truth), dtype=np.int64)
    log_confusions = source.confusions.clamp(min=1e-12).log()
    used = source.worker < 0
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, float]] = []
    while True:
        posterior = log_posterior.softmax(1)
        risk = decide(posterior).risk
        finished = risk < threshold
        row = _describe(len(rows), int(count.sum()), posterior, truth, finished, keep)
        rows.append(row | {"finished_risk": float(risk[finished & keep].double().mean())})
        allowed = (keep & ~finished).numpy() & (count < cap) & ~used.all(1)
        among = torch.from_numpy(np.flatnonzero(allowed))
        if not len(among):
            return pd.DataFrame(rows)
        gain = expected_error_reduction(posterior, source.pooled, among, top=posterior.shape[1])
        best_first = np.lexsort((-risk[among].numpy(), -gain.numpy().round(12)))[:per_round]  # no order by rounding errors
        items = among.numpy()[best_first]
        places = _places(posterior[items], source, items, used[items], who, generator)
        used[items, places] = True
        count[items] += 1
        label = source.answer(items, places)
        log_posterior[items] += log_confusions[source.worker[items, places], :, label]


def worker_gain(posterior: Tensor, confusions: Tensor, worker: Ints) -> Tensor:
    """Expected fall of the error from one answer of each worker, (n, S): sum_z max_y p(y) w[y, z] - max_y p(y).

    ``posterior`` (n, K), ``confusions`` (W, K, K), ``worker`` (n, S) rows of ``confusions``; exact, in chunks of rows.
    """
    n_places, k = worker.shape[1], posterior.shape[1]
    step = max(1, _CHUNK // (n_places * k * k))
    parts = []
    for start in range(0, len(posterior), step):
        p = posterior[start : start + step]
        joint = p[:, None, :, None] * confusions[worker[start : start + step]]  # (n, S, true y, answer z)
        parts.append(joint.amax(2).sum(2) - p.amax(1, keepdim=True))
    return torch.cat(parts)


def _places(p: Tensor, source: Source, items: Ints, used: NDArray[np.bool_], who: Who, generator: torch.Generator) -> Ints:
    """The place (n,) of each of ``items`` that answers, among those not ``used`` (n, S); at equal gains, one by chance."""
    if who == "next":
        return np.asarray((~used).argmax(1), dtype=np.int64)
    score = torch.rand(used.shape, generator=generator, dtype=torch.float64)
    if who == "best":
        score = worker_gain(p, source.confusions, source.worker[items]) + _TIE * score
    score[torch.from_numpy(used)] = -torch.inf
    return score.argmax(1).numpy()


def _describe(
    round_: int, annotations: int, posterior: Tensor, truth: Tensor, finished: Tensor, keep: Tensor
) -> dict[str, float]:
    total = int(keep.sum())
    row = {"round": round_, "annotations": annotations, "annotations_per_item": annotations / total}
    row["finished_fraction"] = int((finished & keep).sum()) / total
    return row | label_metrics(posterior, truth, finished, keep)
