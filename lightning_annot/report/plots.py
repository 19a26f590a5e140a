"""Figures of a run, each a function from data to a ``Figure``; no global state of pyplot.

Ink and grid have fixed colours that ``figure_svg`` leaves in the text, so that a page can swap them for its own. Lines
use the colours of Okabe and Ito, which people with colour vision deficiencies tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from lightning_annot.report.reliability import Reliability

INK, GRID = "#1b2733", "#d9dfe5"
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
SIZE = (5.8, 3.3)
SQUARE = (5.8, 5.2)
MANY_CLASSES, MANY_WORKERS = 30, 30
_RISK_BINS = 40
_CELL_NUMBERS = 12  # up to here a cell is wide enough for its number

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,  # class names may contain dollar signs
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: searchable, small, and drawn in the reader's own fonts
    "svg.hashsalt": "lightning_annot",
}

_styled = mpl.rc_context(STYLE)  # as a decorator: the style holds while the function runs, and nowhere else
_STAGES = {"train": BLUE, "predict": SKY, "infer": GREEN, "sample": ORANGE, "ask": RED, "save": PURPLE}


@_styled
def plot_quality(rounds: pd.DataFrame) -> Figure:
    """Shares that should rise, over answers an item; columns that are absent or empty are left out."""
    series = [
        ("accuracy", "all labels correct", BLUE, "-"),
        ("finished_precision", "finished labels correct", GREEN, "-"),
        ("learner_accuracy", "learner alone correct", ORANGE, "--"),
        ("finished_fraction", "finished", PURPLE, "-"),
    ]
    figure, axes = _figure()
    _curves(axes, rounds, series)
    axes.set_ylim(0, 1.02)
    _percent(axes.yaxis)
    return figure


@_styled
def plot_error(rounds: pd.DataFrame) -> Figure:
    """The error a run believes in (mean risk) beside the true one, over answers an item, on a log scale."""
    shown = rounds.assign(error=1 - rounds["accuracy"]) if "accuracy" in rounds else rounds
    series = [
        ("mean_risk", "estimated error (mean risk)", BLUE, "-"),
        ("error", "true error", RED, "-"),
        ("ece", "calibration error", ORANGE, "--"),
    ]
    figure, axes = _figure()
    _curves(axes, shown, series)
    values = shown[[name for name, *_ in series if name in shown]].to_numpy(dtype=float)
    if (values > 0).any():  # zero has no place on a log scale; lines break there
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    _percent(axes.yaxis)
    return figure


@_styled
def plot_risk(risk: np.ndarray, threshold: float | None = None) -> Figure:
    """Histogram of the items' risk (N,), counts on a log scale, items below ``threshold`` in their own colour."""
    figure, axes = _figure()
    top = max(float(risk.max(initial=0.0)), 1.05 * (threshold or 0.0), 1e-3)
    width = top / _RISK_BINS
    steps = round(threshold / width) if threshold else 0  # the threshold is an edge, so that no bar has items of both sides
    if threshold and steps:
        width = threshold / steps
    edges = width * np.arange(np.ceil(top / width) + 1)
    if threshold and not steps:  # bars as narrow as a tiny threshold would be without number
        edges = np.append(0.0, threshold + edges)
    counts, edges = np.histogram(risk, bins=edges)
    limit = np.inf if threshold is None else threshold
    colours = [BLUE if centre < limit else ORANGE for centre in (edges[:-1] + edges[1:]) / 2]
    axes.bar(edges[:-1], counts, np.diff(edges) * 0.92, align="edge", color=colours)
    if threshold is not None:
        axes.axvline(threshold, color=INK, linewidth=1.2, linestyle=":")
        note = f"threshold {threshold:g}"
        axes.annotate(note, (threshold, 1), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points", va="top")
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(0.7, max(2.0, 2.0 * counts.max()))
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="risk of the label", ylabel="items (log scale)")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
    axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


@_styled
def plot_reliability(table: Reliability) -> Figure:
    """Accuracy within each bin of confidence against the diagonal; dots grow with the number of items."""
    figure, axes = _figure()
    count = np.asarray(table.count)
    kept = count > 0
    confidence, accuracy = np.asarray(table.confidence)[kept], np.asarray(table.accuracy)[kept]
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":", label="perfect")
    axes.vlines(confidence, confidence, accuracy, color=ORANGE, linewidth=2, label="gap")
    sizes = 18 + 160 * np.sqrt(count[kept] / max(1, count.max(initial=1)))
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1.4)
    axes.scatter(confidence, accuracy, s=sizes, color=BLUE, zorder=3, linewidths=0)
    axes.set(xlim=(-0.02, 1.03), ylim=(-0.03, 1.05), xlabel="confidence of the label", ylabel="labels correct")
    _percent(axes.xaxis)
    _percent(axes.yaxis)
    _legend(axes)
    return figure


@_styled
def plot_confusion(pooled: np.ndarray, classes: Sequence[str]) -> Figure:
    """Pooled confusion (K, K), rows sum to 1: row = true class, column = answer; right answers blue, mistakes red.

    Strength of colour is the square root of the probability, so that rare mistakes are still seen. Names are thinned
    for many classes.
    """
    k = len(classes)
    figure, axes = _figure(SQUARE)
    rgba = np.empty((k, k, 4))
    rgba[..., :3] = to_rgb(RED)
    rgba[np.arange(k), np.arange(k), :3] = to_rgb(BLUE)
    rgba[..., 3] = np.sqrt(np.clip(pooled, 0, 1))
    axes.imshow(rgba, interpolation="nearest", aspect="auto")
    every = -(-k // MANY_CLASSES)
    ticks, names = np.arange(0, k, every), [_short(name) for name in classes[::every]]
    size = 9 if k <= 15 else 7
    axes.set_xticks(ticks, names, rotation=90 if k > 4 else 0, fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.set(xlabel="answer", ylabel="true class")
    axes.grid(visible=False)
    if k <= _CELL_NUMBERS:
        for (row, column), value in np.ndenumerate(pooled):
            if value >= 0.005:
                colour = "white" if rgba[row, column, 3] > 0.75 else INK
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    return figure


@_styled
def plot_workers(workers: pd.DataFrame) -> Figure:
    """Estimated accuracy of each worker with its interval, best on top; the two ends alone when there are many."""
    ranked = workers.sort_values("accuracy_mean", kind="stable").reset_index(drop=True)
    shown, gap = ranked, None
    if len(ranked) > MANY_WORKERS:
        gap = MANY_WORKERS // 2
        shown = pd.concat([ranked.head(gap), ranked.tail(gap)])
    figure, axes = _figure((SIZE[0], max(2.0, 0.6 + 0.165 * len(shown))))
    position = np.arange(len(shown)) + (0 if gap is None else np.arange(len(shown)) >= gap)
    axes.hlines(position, shown["accuracy_low"], shown["accuracy_high"], color=SKY, linewidth=4, alpha=0.6)
    axes.plot(shown["accuracy_mean"], position, "o", color=INK, markersize=4)
    axes.set_yticks(position, [_short(name) for name in shown["worker"]], fontsize=7.5)
    if gap is not None:
        hidden = f"{len(ranked) - len(shown):,} workers between"
        axes.text(0.5, gap, hidden, transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=8)
    axes.set_ylim(-0.8, float(position.max(initial=0)) + 0.8)
    axes.set_xlim(right=1.0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("estimated accuracy")
    _percent(axes.xaxis)
    return figure


@_styled
def plot_seconds(rounds: pd.DataFrame) -> Figure:
    """Seconds of each round, stacked by stage; a wait for people would dwarf them."""
    figure, axes = _figure()
    number = rounds["round"].to_numpy(dtype=float)
    edges = np.append(number, number[-1:] + 1) - 0.5
    bottom = np.zeros(len(number))
    for stage, colour in _STAGES.items():
        if (column := f"seconds_{stage}") in rounds:
            top = bottom + rounds[column].fillna(0).to_numpy(dtype=float)
            axes.stairs(top, edges, baseline=bottom, fill=True, color=colour, label=stage)
            bottom = top
    axes.set(xlabel="round", ylabel="seconds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    _legend(axes, columns=len(_STAGES))
    return figure


@_styled
def plot_answers_per_item(counts: np.ndarray) -> Figure:
    """How many items got 0, 1, 2, ... answers; ``counts`` is (N,) whole numbers."""
    figure, axes = _figure()
    frequency = np.bincount(counts.astype(np.int64))
    axes.bar(np.arange(len(frequency)), frequency, width=0.85, color=BLUE)
    axes.set(xlabel="answers an item", ylabel="items")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="x", visible=False)
    return figure


@_styled
def figure_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element for use inside HTML; no outside reference, equal input gives equal text."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


@_styled
def figure_png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG on white, for places without style sheets."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    return buffer.getvalue()


def _figure(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _curves(axes: Axes, rounds: pd.DataFrame, series: Sequence[tuple[str, str, str, str]]) -> None:
    marker = "o" if len(rounds) <= 15 else ""
    for column, label, colour, line in series:
        if column in rounds and rounds[column].notna().any():
            x, y = rounds["annotations_per_item"], rounds[column]
            axes.plot(x, y, label=label, color=colour, linestyle=line, marker=marker, markersize=4)
    axes.set_xlabel("answers an item")
    _legend(axes)


def _legend(axes: Axes, columns: int = 2) -> None:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            borderaxespad=0.2,
            handlelength=1.2,
            ncols=columns,
            columnspacing=1.1,
        )


def _percent(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")


def _short(name: str, length: int = 18) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
