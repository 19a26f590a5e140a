"""The EM of ``lightning_annot.crowd`` once more, from its formulas: dictionaries, plain loops, Python floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.optimize import minimize

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


def slow_shrunk(counts: Matrix, accuracy: float) -> Matrix:
    """Posterior mean of ``counts`` under the nested prior of ``crowd.pooled``, whose rho, s and t a simplex search finds."""
    k = len(counts)
    right, total = [counts[y][y] for y in range(k)], [sum(row) for row in counts]

    def of_right(x: Sequence[float]) -> float:
        rho, s = 1.0 / (1.0 + math.exp(-x[0])), math.exp(x[1])
        value = 10.0 * accuracy * math.log(rho) + 10.0 * (1.0 - accuracy) * math.log(1.0 - rho)
        for r, n in zip(right, total, strict=True):
            value += _log_beta(s * rho + r, s * (1.0 - rho) + n - r) - _log_beta(s * rho, s * (1.0 - rho))
        return (x[1] - math.log(30.0)) ** 2 / 2.0 - value

    def of_errors(x: Sequence[float]) -> float:
        t = math.exp(x[0])
        value = 0.0
        for y in range(k):
            value += math.lgamma(t) - math.lgamma(t + total[y] - right[y])
            for z in range(k):
                if z != y:
                    value += math.lgamma(t / (k - 1) + counts[y][z]) - math.lgamma(t / (k - 1))
        return (x[0] - math.log(30.0)) ** 2 / 2.0 - value

    most = math.log(1000.0)
    search = {"method": "Nelder-Mead", "options": {"xatol": 1e-6, "fatol": 1e-10, "maxiter": 2000}}
    start = [math.log(accuracy / (1.0 - accuracy)), math.log(30.0)]
    logit, log_s = minimize(of_right, start, bounds=[(-7.0, 7.0), (0.0, most)], **search).x
    (log_t,) = minimize(of_errors, [math.log(30.0)], bounds=[(0.0, most)], **search).x
    rho, s, t = 1.0 / (1.0 + math.exp(-logit)), math.exp(log_s), math.exp(log_t)
    rows = []
    for y in range(k):
        accuracy_of_row = (s * rho + right[y]) / (s + total[y])
        errors = [(t / (k - 1) + counts[y][z]) / (t + total[y] - right[y]) for z in range(k)]
        rows.append([accuracy_of_row if z == y else (1.0 - accuracy_of_row) * errors[z] for z in range(k)])
    return rows


def slow_shares(model: Matrix, people: Matrix, start: Sequence[float]) -> tuple[list[float], float]:
    """Log class shares that make the answers most probable, found by a simplex search, and the nats gained on even shares."""
    k = len(start)

    def loss(theta: Sequence[float]) -> float:
        share = _normalised([*theta, 0.0])
        value = 2.0 * sum(share)
        for of_model, of_people in zip(model, people, strict=True):
            joint = [m + s for m, s in zip(of_model, share, strict=True)]
            value += _log_sum([j + p for j, p in zip(joint, of_people, strict=True)]) - _log_sum(joint)
        return -value

    search = {"xatol": 1e-7, "fatol": 1e-11, "maxiter": 20000, "maxfev": 20000}
    found = minimize(loss, [v - start[-1] for v in start[:-1]], method="Nelder-Mead", options=search)
    return _normalised([*found.x, 0.0]), loss([0.0] * (k - 1)) - found.fun


def slow_pooled(
    triples: Sequence[Triple], log_prior: Matrix, accuracy: float, with_shares: bool = False, m_step: str = "soft"
) -> tuple[Matrix, list[float], float]:
    """The first tier without experts: one confusion, log class shares and the nats that these gain."""
    k = len(log_prior[0])
    answered = sorted({item for item, _, _ in triples})
    together = [(item, 0, label) for item, _, label in triples]
    right = 0.95 if with_shares else accuracy
    confusion = [[right if y == z else (1.0 - right) / (k - 1) for z in range(k)] for y in range(k)]
    votes = [2.0 + sum(label == z for _, _, label in triples) for z in range(k)]
    share = [math.log(v / sum(votes)) for v in votes] if with_shares else [-math.log(k)] * k
    gain, before = 0.0, -math.inf
    for _ in range(100):
        prior = log_prior
        if with_shares:
            people = {i: [0.0] * k for i in answered}
            for item, _, z in together:
                people[item] = [value + math.log(confusion[y][z]) for y, value in enumerate(people[item])]
            share, gain = slow_shares([log_prior[i] for i in answered], [people[i] for i in answered], share)
            prior = [_normalised([m + s for m, s in zip(row, share, strict=True)]) for row in log_prior]
        posterior, evidence = slow_posterior(together, prior, [confusion])
        if m_step == "hard":
            posterior = [[float(y == row.index(max(row))) for y in range(k)] for row in posterior]
        counts = _counts(together, posterior)
        confusion = slow_shrunk([[counts.get((0, y, z), 0.0) for z in range(k)] for y in range(k)], accuracy)
        now = sum(evidence.values())
        if abs(now - before) <= 1e-4 * len(triples):
            break
        before = now
    return confusion, share, gain


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_sum(values: Sequence[float]) -> float:
    peak = max(values)
    return peak + math.log(sum(math.exp(v - peak) for v in values))


def _normalised(values: Sequence[float]) -> list[float]:
    total = _log_sum(values)
    return [v - total for v in values]


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
