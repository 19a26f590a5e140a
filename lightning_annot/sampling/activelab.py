"""ActiveLab (Goh & Mueller 2023): which item's consensus label is least certain, given its answers and the model.

    quality_i = (c_i (w_M + sum_j w_j) + m / K) / (w_M + sum_j w_j + m)

c_i: CROWDLAB quality of the consensus label (without an answer, the model's largest probability); w_j, w_M: weights of the
item's workers and of the model; m: the mean worker's weight, as if one more answer said nothing. The lowest quality is asked
first. c and w come from cleanlab, an optional dependency (the extra ``peers``). Its ``get_active_learning_scores`` is not used:
in 2.9.0 it fits the temperature to answers whose counts it puts into the first columns, not into those of their classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from lightning_annot.types import Annotations, AnnotError

Floats = NDArray[np.float64]
HOTTEST = 8.0  # temperatures up to this, and down to a tenth, as cleanlab searches


def activelab(annotations: Annotations, log_probability: Tensor) -> Tensor:
    """Score (N,) of each item, higher = ask sooner: minus the quality above, so between -1 and 0.

    ``log_probability`` (N, K): log p(y | x) by a model that never saw the item's answers; it is tempered to fit the answers.
    While no item has two answers, all weights are 1. Needs memory for one (answered items, W) matrix.
    """
    crowdlab = _crowdlab()
    items, answers = wide_answers(annotations)
    given = ~np.isnan(answers)
    model, workers = 1.0, np.ones(answers.shape[1])
    log_p = log_probability.double().log_softmax(1)
    if (given.sum(1) > 1).any():
        log_p = (log_p / _temperature(log_p[torch.from_numpy(items)], answers)).log_softmax(1)
        p = log_p.exp().numpy()
        options = {"return_detailed_quality": False, "return_annotator_stats": False, "return_weights": True, "verbose": False}
        found = crowdlab(answers, p[items], **options)
        model, workers = float(found["model_weight"]), found["annotator_weight"]
        quality = found["label_quality"]["consensus_quality_score"].to_numpy()
    else:
        p = log_p.exp().numpy()
        quality = p[items, np.nansum(answers, axis=1).astype(np.int64)]  # the only answer
    best, weight, mean = p.max(1), np.full(len(p), model), workers.mean() if len(workers) else 1.0
    best[items], weight[items] = quality, model + given @ workers
    return torch.from_numpy(-(best * weight + mean / p.shape[1]) / (weight + mean))


def wide_answers(annotations: Annotations) -> tuple[NDArray[np.int64], Floats]:
    """The answered items (n,), rising, and their answers (n, workers who answered) as cleanlab wants them: NaN where none."""
    items, row = np.unique(annotations.item.numpy(), return_inverse=True)
    workers, column = np.unique(annotations.worker.numpy(), return_inverse=True)
    wide = np.full((len(items), len(workers)), np.nan)
    wide[row, column] = annotations.label.numpy()
    return items.astype(np.int64), wide


def best_first(score: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Rows of the ``n`` highest scores, best first; ties in an order drawn by ``generator``. Fewer if fewer exist."""
    shuffled = torch.randperm(len(score), generator=generator)
    return shuffled[score[shuffled].argsort(descending=True, stable=True)[:n]]


def _temperature(log_p: Tensor, answers: Floats) -> float:
    """Temperature of ``log_p`` (n, K) with the least cross-entropy to each item's share of answers, ``answers`` (n, W)."""
    row, column = (torch.from_numpy(index) for index in np.nonzero(~np.isnan(answers)))
    label = torch.from_numpy(answers)[row, column].long()
    weight = 1.0 / torch.bincount(row, minlength=len(log_p)).double()[row]

    def loss(log_t: float) -> float:
        return -float((weight * (log_p / math.exp(log_t)).log_softmax(1)[row, label]).sum())

    return math.exp(minimize_scalar(loss, bounds=(-math.log(10.0), math.log(HOTTEST)), method="bounded").x)


def _crowdlab() -> Callable[..., Any]:
    try:
        from cleanlab.multiannotator import get_label_quality_multiannotator
    except ImportError as error:
        raise AnnotError(
            "sampling.items activelab needs cleanlab, which is not installed. It comes with the extra `peers`: "
            "pip install 'lightning-annot[peers]'."
        ) from error
    crowdlab: Callable[..., Any] = get_label_quality_multiannotator
    return crowdlab
