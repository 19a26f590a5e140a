"""``scorecards.csv`` and ``scorecards.html``: one self-contained page about the workers, in the looks of the report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lightning_annot.annotations.formats import write_table
from lightning_annot.files import write_text
from lightning_annot.report import plots
from lightning_annot.report.page import inline_svg, template
from lightning_annot.report.run_files import Headline, percent, read_run
from lightning_annot.report.scorecards import TRUSTED, interval, scorecards

CSV, PAGE = "scorecards.csv", "scorecards.html"
_MOST_WORKERS = 200
_WIDTH, _HEIGHT, _MARGIN = 64.0, 22.0, 3.0  # of a drift line, as in its viewBox
_THIRDS = ("accuracy_first", "accuracy_second", "accuracy_third")


def write_scorecards(run_dir: str | os.PathLike[str], answers: pd.DataFrame) -> Path:
    """Write both files into a run's folder, and return the page's path; ``answers`` are those of the run's log.

    Raises AnnotError where the folder holds no run, or the answers are of another one.
    """
    run = read_run(run_dir)
    cards = scorecards(run, answers)
    write_table(run.directory / CSV, cards.round(6))
    write_text(run.directory / PAGE, render(cards, run.directory.resolve().name))
    return run.directory / PAGE


def render(cards: pd.DataFrame, title: str) -> str:
    """The page as HTML text."""
    most = cards.sort_values("answers", ascending=False, kind="stable").head(_MOST_WORKERS)
    rested = cards[cards["state"] != TRUSTED]
    page = template("scorecards.html", interval=interval, number=_number)
    return page.render(
        title=title,
        n_workers=len(cards),
        tiles=_tiles(cards),
        rested=rested.to_dict("records"),
        figures=_figures(cards),
        rows=[{**row, **_spark(row)} for row in most.to_dict("records")],
    )


def _tiles(cards: pd.DataFrame) -> list[Headline]:
    answers, gold = int(cards["answers"].sum()), int(cards["gold"].sum())
    states, drifts = cards["state"].value_counts(), cards["drift"].value_counts()
    not_asked = ", ".join(f"{n:,} {state}" for state, n in states.items() if state != TRUSTED)
    median, rest = cards["accuracy_mean"].median(), len(cards) - int(states.get(TRUSTED, 0))
    right = percent(cards["gold_right"].sum() / gold) if gold else ""
    numbers = [
        ("Answers", f"{answers:,}", f"and {int(cards['skips'].sum()):,} skips"),
        ("Median worker", percent(median), "accuracy, as the run believes"),
        ("Gold", right, f"of {gold:,} answers to prototypes are right"),
        ("Not asked", f"{rest:,}" if rest else "", not_asked),
        ("Get worse", f"{drifts['worse']:,}" if "worse" in drifts else "", "more than chance explains"),
        ("Cost", f"{cards['cost'].sum():,.2f}", "of all answers, skips and gold"),
    ]
    return [Headline(*tile) for tile in numbers if tile[1]]


def _figures(cards: pd.DataFrame) -> list[dict[str, Any]]:
    """Accuracy with its interval by the crowd model, and on gold."""
    gold = {"gold_accuracy": "accuracy_mean", "gold_low": "accuracy_low", "gold_high": "accuracy_high"}
    on_gold = cards[["worker", *gold]].rename(columns=gold)
    shown = [
        ("By all answers", "What the run believes, with a 90% interval.", cards),
        ("On gold", "Share of right answers to prototypes, with an exact 90% interval.", on_gold),
    ]
    drawn = []
    for title, caption, table in shown:
        if len(known := table.dropna(subset=["accuracy_mean"])):
            drawn.append({"title": title, "caption": caption, "svg": inline_svg(plots.plot_workers(known), title)})
    return drawn


def _spark(row: Mapping[str, Any]) -> dict[str, str]:
    """Points of a worker's drift line on a scale from 0 to 1, and the same in words; empty where a third has no answer."""
    values = np.array([row[name] for name in _THIRDS], dtype=np.float64)
    if np.isnan(values).any():
        return {"spark": "", "told": ""}
    x = np.linspace(_MARGIN, _WIDTH - _MARGIN, len(values))
    y = _HEIGHT - _MARGIN - values.clip(0, 1) * (_HEIGHT - 2 * _MARGIN)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return {"spark": points, "told": "accuracy " + ", then ".join(percent(value) for value in values)}


def _number(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:,.{digits}f}"
