"""What the learners see of an item: all banks projected, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lightning_annot.data.known import NOTHING_KNOWN, Known
from lightning_annot.data.projection import Projection, ProjectionSettings, fit_projection

_NOTHING = 1e-20  # of a moment: features of so little size are rounding errors


class FeatureView:
    """Banks (N, D) of the same items, projected each by itself.

    The learner's ``own`` banks come first, scaled so that together they have the mean square norm of one; then one for each of
    the ``machines``. ``extra`` (M, D) are rows that follow the items, where there is one bank alone. ``fitted``: projections
    of an earlier run, in this order. ``known``: labelled items, by which a bank's scaling is chosen when its projection is
    fitted.
    """

    def __init__(
        self,
        own: Sequence[np.ndarray],
        machines: Sequence[np.ndarray],
        extra: np.ndarray | None,
        settings: ProjectionSettings,
        seed: int,
        fitted: Sequence[Projection] = (),
        known: Known = NOTHING_KNOWN,
    ) -> None:
        self._own, self._machines, self._extra = list(own), list(machines), extra
        self._settings, self._seed = settings, seed
        self._fitted, self.known = list(fitted), known

    @property
    def projections(self) -> list[Projection]:
        """One a bank, fitted at the first call."""
        banks = [*self._own, *self._machines]
        for bank in banks[len(self._fitted) :]:
            self._fitted.append(fit_projection(bank, self._settings, self._seed, self.known))
        return self._fitted

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each learner, known before anything is projected."""
        known = dict(enumerate(self._fitted))
        every = [
            known[i].n_outputs if i in known else self._settings.width(*map(int, bank.shape))
            for i, bank in enumerate([*self._own, *self._machines])
        ]
        n_own = len(self._own)
        return (sum(every[:n_own]), *every[n_own:])

    @cached_property
    def rows(self) -> Tensor:
        """(N + M, sum of the widths) float32. Every bank is read once, at the first call."""
        scale = 1.0 / math.sqrt(len(self._own))
        banks, projections = [*self._own, *self._machines], self.projections
        if self._extra is not None or len(banks) == 1:
            parts = [projections[0].apply(bank) for bank in (banks[0], self._extra) if bank is not None]
            return torch.cat(parts) if len(parts) > 1 else parts[0]
        out, first = torch.empty(len(banks[0]), sum(self.widths)), 0
        for i, (bank, projection) in enumerate(zip(banks, projections, strict=False)):
            part = projection.apply(bank)
            out[:, first : first + part.shape[1]] = part * scale if i < len(self._own) else part
            first += part.shape[1]
        return out

    @cached_property
    def curvatures(self) -> tuple[float, ...]:
        """Largest eigenvalue of each learner's second moment, 1 where all features are 0.

        The step size of a linear head goes by its inverse.
        """
        sample = self.rows[:: max(1, len(self.rows) // 20_000)]
        moments = (part.T @ part / len(part) for part in torch.split(sample, list(self.widths), dim=1))
        largest = (float(torch.linalg.eigvalsh(moment)[-1]) for moment in moments)
        return tuple(value if value > _NOTHING else 1.0 for value in largest)
