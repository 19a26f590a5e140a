"""Choose whether features are standardised, keep their proportions, or are brought to unit norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_annot.data.known import Known

Scale = Literal["auto", "standard", "raw", "unit", "none"]
CHOICES: tuple[Scale, ...] = ("standard", "raw", "unit")
_MOST_CLASSES, _MOST_ROWS = 20, 400  # whose labels are looked at: more cost time and decide nothing
_LEAST_ROWS = 20  # fewer give no standard error worth the name
_FOLDS = 5
_CLEARLY = 2.0  # standard errors of the mean difference
_SORTED, _NOISE = 0.9, 3.0

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Chosen:
    """``scale``: any but ``auto``. ``reason``: why, in words; empty where it was given."""

    scale: Scale
    reason: str = ""


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and standard deviation (D,) of features; ``constant`` (D,): those that do not differ between the rows."""

    mean: Floats
    deviation: Floats
    constant: NDArray[np.bool_]


def unit_rows(rows: Floats) -> Floats:
    """``rows`` (n, D) divided by their norms; rows of zeros stay."""
    peak = np.maximum(rows.max(1, keepdims=True), -rows.min(1, keepdims=True))
    unit: Floats = rows / np.where(peak > 0, peak, np.float32(1.0))  # else the squares of small values are 0
    norm = np.sqrt(np.einsum("nd,nd->n", unit, unit))[:, None]
    unit /= np.where(norm > 0, norm, np.float32(1.0))
    return unit


def moments(sample: Floats) -> Moments:
    """Moments of ``sample`` (R, D)."""
    mean, deviation = sample.mean(0), sample.std(0)
    constant = deviation < 1e-6 * np.maximum(1.0, np.abs(mean))  # their differences are rounding errors
    return Moments(mean, deviation, constant)


def choose_scale(sample: Floats, known: Known, rows_of: Callable[[NDArray[np.int64]], Floats], seed: int) -> Chosen:
    """Choose among ``CHOICES`` for a bank.

    A linear classifier with the learner's own L2 penalty is cross-validated on the labelled rows under each scaling. Its
    log-loss, after a temperature, decides where the mean difference exceeds two standard errors. Otherwise the scaling is
    the one that the features' spread suggests: raw for principal components, standard for all others.

    Args:
        sample: Rows of the bank (R, D) that give the features' moments.
        known: Labelled rows of the bank.
        rows_of: Reads rows (n,) of the bank, (n, D).
        seed: Draws at most 400 of the labelled rows.
    """
    stats = moments(sample)
    if stats.constant.all():
        return Chosen("standard", "no feature differs between the items")
    components = _are_components(sample, stats)
    best: Scale = "raw" if components else "standard"
    kept, fold = _folds(known.label, seed)
    if int((fold >= 0).sum()) < _LEAST_ROWS:
        seen = "they look like principal components" if components else "they do not look like principal components"
        return Chosen(best, f"{seen}; too few labels to compare scalings by")
    label = known.label[kept]
    loss = {scale: _losses(rows, label, fold) for scale, rows in _scaled(sample, rows_of(known.row[kept]), stats)}
    for scale in CHOICES:
        if _is_clearly_less(loss[scale], loss[best]):
            best = scale
    figures = ", ".join(f"{scale} {loss[scale].mean():.2f}" for scale in CHOICES)
    return Chosen(best, f"log-loss on {len(loss[best])} labelled items: {figures}")


def _are_components(sample: Floats, stats: Moments) -> bool:
    """Whether features are uncorrelated, and their deviations sorted downwards."""
    from scipy.stats import spearmanr

    kept = np.flatnonzero(~stats.constant)
    if len(kept) < 8 or len(sample) < 8:
        return False
    if spearmanr(np.arange(len(kept)), stats.deviation[kept]).statistic > -_SORTED:
        return False
    some = kept[:: -(-len(kept) // 256)]
    z = (sample[:, some] - stats.mean[some]) / stats.deviation[some]
    correlation = z.T @ z / len(z)
    squares = np.square(correlation).sum() - np.square(np.diag(correlation)).sum()
    return bool(squares / (len(some) * (len(some) - 1)) * len(z) < _NOISE)


def _folds(label: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the rows that count (n,), and their folds (n,): -1 for a class's only row, which is always trained on."""
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.unique(label))[:_MOST_CLASSES]
    most = max(2, _MOST_ROWS // max(1, len(classes)))
    drawn = [rng.permutation(np.flatnonzero(label == k))[:most] for k in classes]
    fold = [np.arange(len(part)) % _FOLDS if len(part) > 1 else np.array([-1]) for part in drawn]
    if len(classes) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(drawn), np.concatenate(fold)


def _scaled(sample: Floats, rows: Floats, stats: Moments) -> Iterator[tuple[Scale, Floats]]:
    """Each of ``CHOICES`` with ``rows`` (n, D) scaled so that the bank's mean square norm is 1, in at most n dimensions."""
    vary = ~stats.constant
    centred = (rows - stats.mean)[:, vary]
    deviation = stats.deviation[vary]
    yield "standard", _turned(centred / deviation / np.sqrt(len(deviation)))
    yield "raw", _turned(centred / np.sqrt(np.square(deviation, dtype=np.float64).sum()))
    unit = moments(unit_rows(sample))
    spread = np.sqrt(np.square(unit.deviation, dtype=np.float64).sum()) or 1.0
    yield "unit", _turned((unit_rows(rows) - unit.mean) / spread)


def _turned(rows: Floats) -> Floats:
    """Rows (n, D) in the at most n dimensions that they span; a linear model with an L2 penalty sees no difference."""
    left, size, _ = np.linalg.svd(rows, full_matrices=False)
    return np.asarray(left * size, dtype=np.float32)


def _losses(rows: Floats, label: NDArray[np.int64], fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Out-of-fold log-loss of each row that has a fold."""
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax
    from sklearn.linear_model import LogisticRegression

    classes, code = np.unique(label, return_inverse=True)
    logits = np.zeros((len(label), len(classes)))
    for f in range(fold.max() + 1):
        held, train = fold == f, fold != f
        model = LogisticRegression(C=len(classes), max_iter=200).fit(rows[train], code[train])
        found = model.decision_function(rows[held])
        logits[held] = found if found.ndim == 2 else np.stack([-found / 2, found / 2], 1)
    scored = np.flatnonzero(fold >= 0)

    def losses(log_temperature: float) -> NDArray[np.float64]:
        log_probability = log_softmax(logits[scored] / np.exp(log_temperature), axis=1)
        return np.asarray(-log_probability[np.arange(len(scored)), code[scored]])

    best = minimize_scalar(lambda t: losses(t).mean(), bounds=(-3.0, 3.0), method="bounded")
    return losses(float(best.x))


def _is_clearly_less(loss: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    gain = other - loss
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    return bool(gain.mean() > _CLEARLY * error and gain.mean() > 1e-6)
