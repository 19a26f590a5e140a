"""The EM of ``lightning_annot.crowd.em`` once more, from its formulas: dictionaries, plain loops, Python floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Matrix = list[list[float]]
Prior = Matrix | list[Matrix]  # one for all workers, or one each
Triple = tuple[int, int, int]  # item, worker, label


@dataclass(frozen=True)
class SlowResult:
    confusions: list[Matrix]
    pooled: Matrix
    history: list[float]
    converged: bool


def slow_posterior(triples: Sequence[Triple], log_prior: Matrix, confusions: list[Matrix]) -> tuple[Matrix, dict[int, float]]:
    """Posterior of all items, and the log evidence of those that have an annotation."""
    by_item: dict[int, list[tuple[int, int]]] = {}
    for item, worker, label in triples:
        by_item.setdefault(item, []).append((worker, label))
    posterior, evidence = [], {}
    for item, row in enumerate(log_prior):
        joint = [row[y] + sum(math.log(confusions[j][y][z]) for j, z in by_item.get(item, [])) for y in range(len(row))]
        peak = max(joint)
        total = peak + math.log(sum(math.exp(value - peak) for value in joint))
        posterior.append([math.exp(value - total) for value in joint])
        if item in by_item:
            evidence[item] = total
    return posterior, evidence


def of_worker(pseudo: Prior, worker: int) -> Matrix:
    """The prior of one worker: the common one, or their own."""
    return pseudo[worker] if isinstance(pseudo[0][0], list) else pseudo  # type: ignore[return-value]


def slow_objective(triples: Sequence[Triple], log_prior: Matrix, confusions: list[Matrix], pseudo: Prior) -> float:
    """L(w) of the module's docstring."""
    _, evidence = slow_posterior(triples, log_prior, confusions)
    density = 0.0
    for j, confusion in enumerate(confusions):
        for y, row in enumerate(confusion):
            for z, value in enumerate(row):
                density += of_worker(pseudo, j)[y][z] * math.log(value)
    return sum(evidence.values()) + density


def slow_em(
    triples: Sequence[Triple],
    log_prior: Matrix,
    pseudo: Prior,
    n_workers: int,
    m_step: str = "soft",
    max_iterations: int = 100,
    tolerance: float = 1e-4,
) -> SlowResult:
    counts: dict[Triple, float] = {}
    history: list[float] = []
    converged = False
    while not converged and len(history) < max_iterations:
        confusions = _confusions(counts, pseudo, n_workers)
        history.append(slow_objective(triples, log_prior, confusions, pseudo))
        posterior, _ = slow_posterior(triples, log_prior, confusions)
        if m_step == "hard":
            posterior = [[float(y == row.index(max(row))) for y in range(len(row))] for row in posterior]
        counts = _counts(triples, posterior)
        converged = len(history) > 1 and history[-1] - history[-2] <= tolerance * len(triples)
    together: dict[Triple, float] = {}
    for (_, y, z), count in counts.items():
        together[0, y, z] = together.get((0, y, z), 0.0) + count
    priors = [of_worker(pseudo, j) for j in range(n_workers)]
    mean = [[sum(cells) / n_workers for cells in zip(*rows, strict=True)] for rows in zip(*priors, strict=True)]
    return SlowResult(_confusions(counts, pseudo, n_workers), _confusions(together, mean, 1)[0], history, converged)


def slow_tiered_em(
    triples: Sequence[Triple], log_prior: Matrix, pseudo: Matrix, n_workers: int, strength: float, m_step: str = "soft"
) -> SlowResult:
    pooled = slow_em([(item, 0, label) for item, _, label in triples], log_prior, pseudo, 1, m_step).pooled
    prior = [[value * strength for value in row] for row in pooled]
    return slow_em(triples, log_prior, prior, n_workers, m_step)


def _counts(triples: Sequence[Triple], posterior: Matrix) -> dict[Triple, float]:
    """Expected annotations by (worker, true class, answer)."""
    counts: dict[Triple, float] = {}
    for item, worker, label in triples:
        for y, share in enumerate(posterior[item]):
            counts[worker, y, label] = counts.get((worker, y, label), 0.0) + share
    return counts


def _confusions(counts: dict[Triple, float], pseudo: Prior, n_workers: int) -> list[Matrix]:
    confusions = []
    for j in range(n_workers):
        own, rows = of_worker(pseudo, j), []
        classes = range(len(own))
        for y in classes:
            row = [own[y][z] + counts.get((j, y, z), 0.0) for z in classes]
            rows.append([value / sum(row) for value in row])
        confusions.append(rows)
    return confusions
