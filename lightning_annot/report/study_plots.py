"""Pictures of a confusion study: one small matrix for each person."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lightning_annot.report.plots import BLUE, RED, STYLE

MOST_PEOPLE, COLUMNS = 48, 8
_SIDE = 1.15  # inches of one matrix


def shares(counts: np.ndarray) -> np.ndarray:
    """Rows of ``counts`` (..., K, K) as shares; a class that nobody was asked about has an empty row."""
    share: np.ndarray = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    return share


@mpl.rc_context(STYLE)
def plot_people(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Confusions (W, K, K) by counts, row = true class, column = answer, with each person's share of right answers.

    Of more than 48 people those with the most answers are shown.
    """
    shown = np.sort(np.argsort(-counts.sum((1, 2)), kind="stable")[:MOST_PEOPLE])
    columns = min(COLUMNS, max(1, len(shown)))
    n_rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(_SIDE * columns, (_SIDE + 0.3) * n_rows), layout="constrained")
    k = counts.shape[-1]
    colour = np.where(np.eye(k, dtype=bool)[..., None], to_rgb(BLUE), to_rgb(RED))
    for axes, person in zip(figure.subplots(n_rows, columns, squeeze=False).ravel(), shown, strict=False):
        strength = np.sqrt(shares(counts[person]))  # so that rare mistakes are still seen
        axes.imshow(np.concatenate([colour, strength[..., None]], axis=-1), interpolation="nearest")
        right = np.trace(counts[person]) / max(1, counts[person].sum())
        axes.set_title(f"{names[person][:12]}\n{100 * right:.0f} % of {counts[person].sum()}", fontsize=7)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.set_visible(axes.has_data())
    return figure
