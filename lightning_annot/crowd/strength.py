"""How alike workers are: the strength of their common Dirichlet prior, learned from their answers by marginal likelihood."""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from lightning_annot.crowd.incidence import Incidence

LEAST, MOST = 1.0, 30.0  # pseudo-counts a row; with more, workers are told apart too late
TYPICAL, SPREAD = 10.0, 1.0  # log-normal prior of the strength: median, and standard deviation of the logarithm


def learn_strength(incidence: Incidence, counts: Tensor, mean: Tensor) -> float:
    """Strength s, pseudo-counts a row, that makes the workers' expected counts most probable under rows ~ Dir(s ``mean``).

    ``mean`` (K, K), rows sum to 1; ``counts`` (P, K) are the expected n_jyz of the pairs of ``incidence``. Each row of a worker
    is Dirichlet-multinomial (Minka 2000): log p = lgamma(s) - lgamma(s + n_jy) + sum_z lgamma(s mean_yz + n_jyz) -
    lgamma(s mean_yz). A log-normal prior keeps s near 10 where there are few answers.
    """
    counts, row = counts.double(), incidence.worker_sums(counts).double()
    by_pair = mean.double().T[incidence.pair_label]

    def objective(log_s: float) -> float:
        s = math.exp(log_s)
        gained = (torch.lgamma(s * by_pair + counts) - torch.lgamma(s * by_pair)).sum()
        spread = (torch.lgamma(s + row) - math.lgamma(s)).sum()
        return float(spread - gained) + (log_s - math.log(TYPICAL)) ** 2 / (2.0 * SPREAD**2)

    bounds = (math.log(LEAST), math.log(MOST))
    return math.exp(minimize_scalar(objective, bounds=bounds, method="bounded", options={"xatol": 0.02}).x)
