"""Figures over several runs, each from data to a ``Figure`` or to a small PNG; no global state of pyplot."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from lightning_annot.experiments.curves import PAID, Run, correlation, importance, mean_curve
from lightning_annot.experiments.specs import (
    COLUMN_NAMES,
    MOST_PANELS,
    SPECS,
    Panel,
    Paper,
    Spec,
    panels_of,
    paper_curve,
)
from lightning_annot.files import write_bytes
from lightning_annot.report.plots import BLUE, GREEN, INK, ORANGE, PURPLE, RED, SKY, STYLE, figure_png
from lightning_annot.types import AnnotError

PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, INK, "#8c6d31")
MOST_BYTES = 200_000
Dashed = Callable[[Run, str], np.ndarray | None]
_COUNTED = ("finished",)
_CELL_NUMBERS = 12

_styled = mpl.rc_context({**STYLE, "font.size": 10, "axes.titlesize": 10.5})


@_styled
def draw_curves(spec: Spec, panels: Sequence[Panel], dashed: Dashed, dashed_name: str = "the paper, other images") -> Figure:
    """Mean and standard deviation over seeds against answers an image: a row a measure, a column a panel.

    ``dashed(run, column)``: points (n, 2) of another's curve to draw beside the line, or None.
    """
    rows, columns = len(spec.columns), len(panels)
    figure = Figure(figsize=(max(5.8, 4.2 * columns), 2.7 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex="col", sharey="row")
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    colours = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}
    any_dashed = False
    for (row, column), axes in np.ndenumerate(grid):
        any_dashed |= _fill(axes, spec, panels[column], spec.columns[row], colours, dashed)
        if row == 0:
            axes.set_title(panels[column].title, loc="left")
        if row == rows - 1:
            axes.set_xlabel("paid answers an image, gold included" if spec.along == PAID else "answers an image")
        if column == 0:
            axes.set_ylabel(COLUMN_NAMES.get(spec.columns[row], spec.columns[row]))
    handles = [Line2D([], [], color=colour, linewidth=2.2, label=label) for label, colour in colours.items()]
    if any_dashed:
        handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1.2, label=dashed_name))
    _legend(figure, handles)
    return figure


@_styled
def draw_importance(lines: dict[str, list[Run]]) -> Figure:
    """Each worker's importance against the answers asked of it, a panel a way of assigning; r is the mean over seeds."""
    figure = Figure(figsize=(max(5.8, 3.6 * len(lines)), 3.4), layout="constrained")
    grid = figure.subplots(1, len(lines), squeeze=False, sharex=True)[0]
    for axes, (label, runs), colour in zip(grid, lines.items(), PALETTE, strict=False):
        tables = [importance(run) for run in runs]
        every = pd.concat(tables)
        axes.scatter(every["importance"], every["answers"], s=16, color=colour, alpha=0.7, linewidths=0)
        r = np.mean([correlation(table) for table in tables])
        axes.set_title(f"{label}: r = {r:.2f}", loc="left")
        axes.set_xlabel("worker importance")
        axes.set_ylim(bottom=0)
    grid[0].set_ylabel("answers of the worker")
    return figure


@_styled
def draw_confusions(run: Run) -> Figure:
    """The true confusion of the worker with most answers, its estimate, and the pooled estimate; row = true class."""
    name, true, estimated, pooled, classes = _confusions(run)
    figure = Figure(figsize=(11.4, 4.2), layout="constrained")
    titles = (f"{name}, simulated", f"{name}, estimated", "all workers pooled, estimated")
    for axes, title, matrix in zip(figure.subplots(1, 3), titles, (true, estimated, pooled), strict=True):
        axes.imshow(np.sqrt(np.clip(matrix, 0, 1)), cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes.set_title(title, loc="left")
        axes.grid(visible=False)
        if len(classes) <= _CELL_NUMBERS:
            axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=9)
            axes.set_yticks(range(len(classes)), classes if axes.get_subplotspec().is_first_col() else [], fontsize=9)
            for (row, column), value in np.ndenumerate(matrix):
                if value >= 0.01:
                    colour = "white" if value > 0.4 else INK
                    axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=8)
        else:
            axes.set(xticks=[], yticks=[])
        axes.set_xlabel("answer")
    figure.axes[0].set_ylabel("true class")
    return figure


@_styled
def draw_points(lines: dict[str, pd.DataFrame], x: str, y: str, names: tuple[str, str]) -> Figure:
    """Curves of tables that are no runs of ours: mean and standard deviation of ``y`` over the rows with one ``x``."""
    figure = Figure(figsize=(5.8, 3.8), layout="constrained")
    axes = figure.subplots()
    for table, colour in zip(lines.values(), itertools.cycle(PALETTE), strict=False):
        groups = table.groupby(x)[y]
        mean, sd = groups.mean(), groups.std().fillna(0)
        axes.plot(mean.index, mean, color=colour, marker="o", markersize=4)
        axes.fill_between(mean.index, mean - sd, mean + sd, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.yaxis.set_major_formatter(_percent)
    _legend(figure, [Line2D([], [], color=c, label=name) for name, c in zip(lines, itertools.cycle(PALETTE), strict=False)])
    return figure


def save_png(figure: Figure, path: Path) -> Path:
    """Write a PNG with few colours that stays below 200 kB, at less resolution where it must."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for dpi in (130, 100, 80, 60):
        picture = Image.open(io.BytesIO(figure_png(figure, dpi)))
        buffer = io.BytesIO()
        # Maximum coverage keeps the colours of thin lines, which a median cut gives away to those of large areas.
        picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(buffer, format="png", optimize=True)
        if buffer.tell() < MOST_BYTES:
            break
    write_bytes(path, buffer.getvalue())
    return path


def draw_all(runs: Sequence[Run], out: Path, paper: Paper, prefix: str = "") -> list[Path]:
    """Every figure that the runs can fill, as PNGs in ``out``."""
    written = [path for spec in SPECS for path in draw_spec(spec, runs, out, paper, prefix)]
    if not written and runs:
        one = panels_of(SPECS[0], runs, least_lines=1)[:MOST_PANELS]
        written.append(
            save_png(draw_curves(SPECS[0], one, partial(paper_curve, SPECS[0], paper)), out / f"{prefix}methods.png")
        )
    return [*written, *draw_assignment(runs, out, prefix), *draw_workers(runs, out, prefix)]


def draw_spec(spec: Spec, runs: Sequence[Run], out: Path, paper: Paper, prefix: str = "") -> list[Path]:
    """The figure of one kind, three panels to a file."""
    panels, dashed = panels_of(spec, runs), partial(paper_curve, spec, paper)
    parts = [panels[i : i + MOST_PANELS] for i in range(0, len(panels), MOST_PANELS)]
    names = [f"{prefix}{spec.name}{'' if i == 0 else f'_{i + 1}'}.png" for i in range(len(parts))]
    return [save_png(draw_curves(spec, part, dashed), out / name) for part, name in zip(parts, names, strict=True)]


def draw_assignment(runs: Iterable[Run], out: Path, prefix: str = "") -> list[Path]:
    """Worker importance for every group of workers whose assignment varies."""
    spec = next(spec for spec in SPECS if spec.name == "assignment")
    panels = panels_of(spec, [run for run in runs if tells_workers(run)])
    names = [f"{prefix}importance{'' if i == 0 else f'_{i + 1}'}.png" for i in range(len(panels))]
    return [save_png(draw_importance(panel.lines), out / name) for panel, name in zip(panels, names, strict=True)]


def draw_workers(runs: Sequence[Run], out: Path, prefix: str = "") -> list[Path]:
    """Confusions of the first run that tells its simulated workers."""
    shown = next((run for run in runs if (run.folder / "simulated_workers.npz").is_file()), None)
    return [] if shown is None else [save_png(draw_confusions(shown), out / f"{prefix}confusions.png")]


def _fill(axes: Axes, spec: Spec, panel: Panel, column: str, colours: dict[str, str], dashed: Dashed) -> bool:
    drawn = False
    for label, runs in panel.lines.items():
        curve, colour = mean_curve(runs, column, spec.along), colours[label]
        axes.plot(curve.x, curve.mean, color=colour)
        axes.fill_between(curve.x, curve.mean - curve.sd, curve.mean + curve.sd, color=colour, alpha=0.15, linewidth=0)
        axes.plot(curve.x[-1:], curve.mean[-1:], "o", color=colour, markersize=4)
        points = dashed(runs[0], column)
        if points is not None:
            axes.plot(points[:, 0], points[:, 1], color=colour, linestyle="--", linewidth=1.1)
            drawn = True
    if column in _COUNTED:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    else:
        axes.yaxis.set_major_formatter(_percent)
    axes.set_xlim(left=0)
    return drawn


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    """Above everything, in as many columns as the longest label lets fit."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = min(len(handles), max(1, int(figure.get_figwidth() / (0.072 * longest + 0.5))))
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(handles) // columns))  # the legend takes nothing from the panels
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=1.4, fontsize=9.5)


def _percent(value: float, _: Any = None) -> str:
    return f"{100 * value:.4g} %"


def tells_workers(run: Run) -> bool:
    """Whether a worker's importance can be told: a simulated run whose summary has the learner's accuracy by class."""
    return (run.folder / "simulated_workers.npz").is_file() and run.summary.get("learner_class_accuracy") is not None


def _confusions(run: Run) -> tuple[str, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    try:
        with np.load(run.folder / "simulated_workers.npz", allow_pickle=False) as arrays:
            true = dict(zip(arrays["workers"].astype(str), arrays["confusions"], strict=True))
        with np.load(run.folder / "confusions.npz", allow_pickle=False) as arrays:
            estimated = dict(zip(arrays["workers"].astype(str), arrays["confusions"], strict=True))
            pooled, classes = arrays["pooled"], [str(name) for name in arrays["classes"]]
    except (OSError, KeyError) as error:
        raise AnnotError(f"{run.folder} does not hold both simulated and estimated confusions ({error}).") from error
    answers = pd.read_csv(run.folder / "workers.csv", dtype={"worker": str}, keep_default_na=False)
    by_answers = answers.sort_values("n_annotations", ascending=False, kind="stable")["worker"]
    name = next((worker for worker in by_answers if worker in true and worker in estimated), None)
    if name is None:
        raise AnnotError(f"{run.folder}: no worker is both in simulated_workers.npz and in confusions.npz.")
    return name, true[name], estimated[name], pooled, classes
