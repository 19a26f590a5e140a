"""What the learner sees: features scaled, projected, mapped by a kernel, and with the mean of each row's neighbours.

Kernel and neighbours are optional; all is fitted once a run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_annot.data.graph import NeighbourMean
from lightning_annot.data.known import NOTHING_KNOWN, Known
from lightning_annot.data.scaling import Chosen, Scale, choose_scale, moments, unit_rows
from lightning_annot.types import AnnotError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProjectionSettings:
    """``dim``: principal components kept (None: all features). ``kernel``: landmarks of a Nystroem map (0: none).

    ``gamma``: width of its kernel exp(-gamma |a - b|^2), for features whose mean square norm is 1. ``rows``: most rows that
    are used to fit, and to find neighbours among.

    ``scale``: ``standard`` gives each feature mean 0 and variance 1, ``raw`` only mean 0, and ``unit`` divides each row by its
    norm first; all features together then have a mean square norm of 1. ``auto`` chooses among these by labelled items, once a
    run. ``none`` changes nothing: with ``dim: null`` and no kernel, features stay as they are.

    ``neighbours``: appended is the mean of so many nearest rows' features, times ``neighbour_weight`` (0: nothing is appended).
    """

    dim: int | None = 256
    kernel: int = 0
    gamma: float = 0.2
    rows: int = 20_000
    scale: Scale = "auto"
    neighbours: int = 5
    neighbour_weight: float = 0.7

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise AnnotError(f"projection.scale {self.scale!r} given; allowed are {', '.join(get_args(Scale))}.")
        if (self.dim is not None and self.dim < 1) or self.kernel < 0 or self.gamma <= 0 or self.rows < 2:
            raise AnnotError(f"projection {self} given; dim and gamma must be above 0, kernel 0 or more, rows 2 or more.")
        if self.neighbours < 0 or self.neighbours > self.rows - 2 or self.neighbour_weight <= 0:
            raise AnnotError(
                f"projection {self} given; neighbours must be 0 or more and at most rows - 2, neighbour_weight above 0."
            )

    def width(self, n: int, width: int) -> int:
        """Width of what a bank (``n``, ``width``) is projected to."""
        rows = min(n, self.rows)
        own = min(self.kernel, rows) if self.kernel else min(self.dim or width, width, rows)
        return 2 * own if self.neighbours else own


@dataclass(frozen=True)
class Projection:
    """x -> (x - mean) @ matrix (D, d), then, with landmarks (m, d), k(x, landmarks) @ root (m, m) - offset (m,).

    With ``scale`` unit, x is divided by its norm first; any other ``scale`` is in mean and matrix already. ``reason`` says why
    it was chosen. With ``neighbours``, the mean over the nearest rows of ``reference`` (R, d or m) float16 is appended, times
    ``neighbour_weight``.
    """

    mean: Tensor
    matrix: Tensor
    landmarks: Tensor
    root: Tensor
    offset: Tensor
    gamma: float
    reference: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float16))
    neighbours: int = 0
    neighbour_weight: float = 0.7
    scale: Scale = "standard"
    reason: str = ""

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Projection:
        """The projection with this ``state``; that of an older version names no scale."""
        known = "standard" if state["mean"].any() else "none"
        return cls(**{"scale": known, **state})

    @property
    def n_inputs(self) -> int:
        """Width D of the features it takes."""
        return len(self.mean)

    @property
    def n_outputs(self) -> int:
        """Width of the features it gives."""
        return self._own_width * (2 if self.neighbours else 1)

    @property
    def _own_width(self) -> int:
        return len(self.landmarks) or self.matrix.shape[1]

    def apply(self, features: np.ndarray, chunk: int = 8192) -> Tensor:
        """Project ``features`` (N, D), read once and in chunks, to float32 (N, d)."""
        if features.shape[1] != self.n_inputs:
            raise AnnotError(
                f"features of width {features.shape[1]} given; this run's learner takes {self.n_inputs}. "
                "Use the backbone or the feature bank that the run was trained with."
            )
        out, own = torch.empty(len(features), self.n_outputs), self._own_width
        near = NeighbourMean(self.reference, self.neighbours) if self.neighbours else None
        if near is not None:
            near.announce(len(features))
        for start in range(0, len(features), chunk):
            part = torch.from_numpy(np.array(features[start : start + chunk], dtype=np.float32))
            out[start : start + chunk, :own] = rows = self.apply_rows(part)
            if near is not None:
                out[start : start + chunk, own:] = self.neighbour_weight * near(rows)
        return out

    def apply_rows(self, rows: Tensor) -> Tensor:
        """Project float32 ``rows`` (n, D), without what neighbours append."""
        if self.scale == "unit":
            rows = torch.from_numpy(unit_rows(rows.numpy()))
        rows = (rows - self.mean) @ self.matrix
        if len(self.landmarks):
            rows = torch.exp(-self.gamma * torch.cdist(rows, self.landmarks).square()) @ self.root - self.offset
        return rows

    def state(self) -> dict[str, Tensor | float | str]:
        """Tensors and plain values, for a checkpoint."""
        return dict(self.__dict__)


def fit_projection(features: np.ndarray, settings: ProjectionSettings, seed: int, known: Known = NOTHING_KNOWN) -> Projection:
    """Fit on at most ``settings.rows`` rows of ``features`` (N, D), drawn by ``seed``; result has unit mean square norm.

    ``known``: labelled rows of ``features``, by which ``scale: auto`` chooses.
    """
    rng = np.random.default_rng(seed)
    n = len(features)
    rows = np.arange(n) if n <= settings.rows else np.sort(rng.choice(n, settings.rows, replace=False))
    sample = np.asarray(features[rows], dtype=np.float32)
    power = 1.0 if settings.scale == "none" else _power(sample)
    sample = sample if power == 1.0 else sample / power
    chosen = Chosen(settings.scale)
    if settings.scale == "auto":
        chosen = choose_scale(sample, known, lambda rows: np.asarray(features[rows], dtype=np.float32) / power, seed)
    if chosen.scale == "unit":
        sample, power = unit_rows(sample), 1.0  # a row's norm knows no power
    mean, matrix = _linear(sample, settings.dim, chosen.scale, seed)
    projected = (sample - mean) @ matrix
    size = 1.0 if chosen.scale == "none" else float(np.sqrt(np.square(projected).sum(1).mean())) or 1.0
    arrays = (mean * power, matrix / size / power, *_nystroem(projected / size, settings, seed))
    mean_, matrix_, landmarks_, root_, offset_ = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)
    fitted = Projection(mean_, matrix_, landmarks_, root_, offset_, settings.gamma, scale=chosen.scale, reason=chosen.reason)
    return _with_reference(fitted, sample * power, settings) if settings.neighbours else fitted


def _linear(sample: np.ndarray, dim: int | None, scale: Scale, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and matrix (D, d) of the scaling and the principal components of ``sample`` (R, D)."""
    from sklearn.decomposition import PCA

    n, width = sample.shape
    stats = moments(sample)
    mean, deviation = stats.mean, np.where(stats.constant, np.float32(1.0), stats.deviation)
    if scale != "none" and stats.constant.all():
        logger.warning("no feature differs between the items, so images tell nothing: labels come from answers alone")
    if scale == "none":
        mean = np.zeros_like(mean)
    if scale != "standard":
        deviation = np.ones_like(deviation)
    weight = (np.ones_like(deviation) if scale == "none" else ~stats.constant) / deviation
    matrix = np.eye(width, dtype=np.float32)
    dim = min(dim or width, width, n)
    if stats.constant.all():
        matrix = matrix[:, :dim]
    elif dim < width:
        matrix = PCA(dim, random_state=seed).fit((sample - mean) * weight).components_.T.astype(np.float32)
    return mean, matrix * weight[:, None]


def _power(sample: np.ndarray) -> float:
    """A power of two that brings very small values near 1; 1 for others, and for those that are too small to tell apart."""
    peak = float(np.abs(sample).max())
    return float(2.0 ** np.floor(np.log2(peak))) if 1e-30 < peak < 1e-6 else 1.0


def _with_reference(fitted: Projection, sample: np.ndarray, settings: ProjectionSettings) -> Projection:
    """The projection with ``sample`` (R, D) as the rows to find neighbours among."""
    if len(sample) < settings.neighbours + 2:
        most = max(0, len(sample) - 2)
        raise AnnotError(
            f"projection.neighbours {settings.neighbours} given, of {len(sample)} items; it must be at most {most}."
        )
    reference = fitted.apply(sample).clamp(-6e4, 6e4).half()  # what half precision holds; unscaled features may be larger
    return replace(fitted, reference=reference, neighbours=settings.neighbours, neighbour_weight=settings.neighbour_weight)


def _nystroem(sample: np.ndarray, settings: ProjectionSettings, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Landmarks (m, d), root (m, m) and offset (m,) of the kernel map; empty without a kernel.

    The kernel is above 0, so that most of its map is the mean, which tells no class from another and would set the learner's
    step size. It is taken away, and the rest has a mean square norm of 1.
    """
    if not settings.kernel:
        return np.empty((0, sample.shape[1]), np.float32), np.empty((0, 0), np.float32), np.empty(0, np.float32)
    from sklearn.kernel_approximation import Nystroem

    components = min(settings.kernel, len(sample))
    fitted = Nystroem(gamma=settings.gamma, n_components=components, random_state=seed).fit(sample)
    mapped = fitted.transform(sample)
    mean = mapped.mean(0)
    scale = float(np.sqrt(np.square(mapped - mean).sum(1).mean()))
    scale = scale if scale > 1e-6 * float(np.abs(mean).max()) else 1.0  # all rows alike: what is left is rounding errors
    root, offset = fitted.normalization_.T / scale, mean / scale
    return fitted.components_.astype(np.float32), root.astype(np.float32), offset.astype(np.float32)
