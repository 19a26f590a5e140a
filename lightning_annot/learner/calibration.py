"""Temperature scaling (Guo et al. 2017) on held-out prototypes or on answers, shrunk towards 1 when they are few."""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_annot.types import AnnotError


def fit_temperature(logits: Tensor, label: Tensor, prior_scale: float = 0.5) -> float:
    """Temperature T that minimises the summed NLL of ``logits`` (P, K) / T, plus (log T)^2 / (2 prior_scale^2).

    ``logits`` must come from heads that never saw the row, ``label`` (P,) is its clean class. The penalty is a log-normal
    prior: without rows T is 1, with many it is what they say.

    Where no class is certain, ``label`` is (P, K), log p(answers | class) of each row: then the NLL is that of the answers,
    -log sum_y softmax(logits / T)_y p(answers | y).
    """
    if prior_scale <= 0.0:
        raise AnnotError(f"prior_scale {prior_scale} given; it must be above 0.")
    if not len(label):
        return 1.0
    logits = logits.double()

    def objective(log_t: float) -> float:
        log_prob = (logits / math.exp(log_t)).log_softmax(1)
        gain = log_prob.gather(1, label[:, None]) if label.ndim == 1 else (log_prob + label).logsumexp(1)
        return -float(gain.sum()) + log_t**2 / (2.0 * prior_scale**2)

    return math.exp(minimize_scalar(objective, bounds=(-4.0, 4.0), method="bounded", options={"xatol": 1e-5}).x)


def released_temperature(logits: Tensor, label: Tensor) -> float:
    """The temperature that the paper's released code ends with, for ``logits`` (P, K) of held-out rows with ``label`` (P,).

    Its optimiser starts at 1.5 and does not move from there; the result is kept unless it raises the NLL or the ECE (15 bins).
    """
    if not len(label):
        return 1.0

    def nll_and_ece(temperature: float) -> tuple[float, float]:
        scaled = logits.double() / temperature
        ece = multiclass_calibration_error(scaled.softmax(1), label, logits.shape[1], n_bins=15)
        return float(torch.nn.functional.cross_entropy(scaled, label)), float(ece)

    before, after = nll_and_ece(1.0), nll_and_ece(1.5)
    return 1.5 if all(new <= old for new, old in zip(after, before, strict=True)) else 1.0
