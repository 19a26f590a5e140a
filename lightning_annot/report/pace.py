"""How fast answers come: a rate over the last minutes, and a figure over the whole time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BARS = 48
WIDTHS = (60, 300, 900, 3600, 21_600, 86_400, 604_800)  # seconds of a bar
WINDOW = 900.0  # seconds that the present rate is taken over


def per_hour(seconds: np.ndarray, now: float) -> float:
    """Answers an hour in the last ``WINDOW`` seconds, or since the first answer if that is less; 0 without any.

    ``seconds`` (A,): when each answer came, since 1970.
    """
    recent = seconds[seconds > now - WINDOW]
    if not len(recent):
        return 0.0
    return 3600.0 * len(recent) / min(WINDOW, max(60.0, now - float(seconds.min())))


def bars(seconds: np.ndarray, now: float) -> tuple[np.ndarray, np.ndarray]:
    """Edges (B + 1,), in seconds since 1970, and answers an hour (B,) between them, up to ``now``; the last 48 bars at most.

    The last bar is not over yet: its rate is that of the part which is.
    """
    span = now - float(seconds.min(initial=now))
    width = next((w for w in WIDTHS if span <= w * (MOST_BARS - 1)), WIDTHS[-1])
    last = np.floor(now / width)
    first = max(np.floor(float(seconds.min(initial=now)) / width), last - MOST_BARS + 1)
    edges = width * np.arange(first, last + 2)
    counts, _ = np.histogram(seconds, edges)
    length = np.full(len(counts), float(width))
    length[-1] = max(60.0, now - edges[-2])
    return edges, 3600.0 * counts / length


def plot_pace(seconds: np.ndarray, now: float) -> Figure:
    """Answers an hour over time, by ``bars``; what draws is loaded here, since a page that only counts can do without."""
    import matplotlib as mpl
    from matplotlib import dates
    from matplotlib.figure import Figure

    from lightning_annot.report.plots import BLUE, SIZE, STYLE

    edges, rate = bars(seconds, now)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        axes.stairs(rate, edges / 86_400, fill=True, color=BLUE)  # days since 1970, as matplotlib counts them
        untyped: Any = dates
        locator = untyped.AutoDateLocator(minticks=3, maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(untyped.ConciseDateFormatter(locator))
        axes.grid(axis="x", visible=False)
        axes.set(xlabel="time (UTC)", ylabel="answers an hour", ylim=(0, None))
    return figure
