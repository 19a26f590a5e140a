"""What the owner's page tells of a run, from its files and its log."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_annot.annotations.log import AnnotationLog

if TYPE_CHECKING:  # what reads tables is loaded when the owner looks, so that the page starts sooner
    import pandas as pd
    from matplotlib.figure import Figure

    from lightning_annot.report.run_files import Headline, RunFiles

MOST_SHOWN = 12
PLOTS = {
    "quality": "Progress: what the answers bought",
    "error": "The error that the run believes in, and the true one if known",
    "risk": "Risk of the labels",
    "answers": "Answers an item",
    "workers": "Estimated accuracy of each worker",
}


@dataclass(frozen=True)
class Shelf:
    """Some items of one kind: (item, what is said about it)."""

    title: str
    items: list[tuple[str, str]]


class Overview:
    """Reads a run's files when they have changed; before the first round has ended there are none."""

    def __init__(self, directory: Path, log: AnnotationLog) -> None:
        self._directory, self._log = directory, log
        self._lock = threading.Lock()  # matplotlib draws one figure at a time
        self._stamp, self._run = 0, None  # type: int, RunFiles | None
        self._drawn: dict[str, str] = {}

    def run(self) -> RunFiles | None:
        """The files of the last round that has ended."""
        try:
            stamp = max((self._directory / name).stat().st_mtime_ns for name in ("labels.csv", "rounds.csv"))
        except FileNotFoundError:
            return None
        with self._lock:
            if stamp != self._stamp:
                from lightning_annot.report.run_files import read_run

                self._run, self._stamp = read_run(self._directory), stamp
                self._drawn.clear()
            return self._run

    def headlines(self) -> list[Headline]:
        """The numbers that are looked for first."""
        run = self.run()
        if run is None:
            return []
        from lightning_annot.report.run_files import headlines

        return headlines(run)

    def worker_accuracy(self) -> dict[str, str]:
        """Estimated accuracy of each worker with its interval."""
        run = self.run()
        if run is None or run.workers.empty:
            return {}
        columns = (run.workers[c] for c in ("worker", "accuracy_mean", "accuracy_low", "accuracy_high"))
        return {w: f"{m:.0%} ({low:.0%} to {high:.0%})" for w, m, low, high in zip(*columns, strict=True) if m == m}

    def shelves(self) -> list[Shelf]:
        """Unfinished items by their number of answers, riskiest first, and items on which people disagree."""
        run, shelves = self.run(), []
        if run is not None:
            left = run.items[run.items["status"] == "unfinished"].sort_values("risk", ascending=False, kind="stable")
            count = left["n_annotations"].clip(upper=3)
            for n, title in enumerate(("no answer", "1 answer", "2 answers", "3 answers or more")):
                some = left[count == n]
                rows = some.head(MOST_SHOWN)[["task", "label", "risk"]].itertuples(index=False, name=None)
                items = [(item, f"{run.names.get(label, label)}? risk {risk:.0%}") for item, label, risk in rows]
                shelves.append(Shelf(f"Unfinished, {title}: {len(some):,}", items))
        return [*shelves, self._disagreements()]

    def _disagreements(self) -> Shelf:
        given = self._log.answers(kind="annotation").dropna(subset=["label"])
        said = given.groupby("item")["label"].agg(["nunique", lambda labels: ", ".join(labels)])
        said = said[said["nunique"] > 1].iloc[::-1]
        shown: list[tuple[str, str]] = list(said.iloc[:MOST_SHOWN, 1].items())
        return Shelf(f"People disagree: {len(said):,}", shown)

    def plots(self) -> dict[str, str]:
        """Names and captions of the plots that the run has data for."""
        run = self.run()
        return {} if run is None else {name: text for name, text in PLOTS.items() if _drawing(run, name) is not None}

    def plot(self, name: str) -> str | None:
        """A plot as SVG; None where the run has no data for it yet."""
        run = self.run()
        if run is None:
            return None
        with self._lock:
            if name not in self._drawn:
                from lightning_annot.report.plots import figure_svg

                draw = _drawing(run, name)
                if draw is None:
                    return None
                self._drawn[name] = figure_svg(draw())
            return self._drawn[name]


def _drawing(run: RunFiles, name: str) -> Callable[[], Figure] | None:
    from lightning_annot.report import plots

    items: Any = run.items
    table: dict[str, tuple[pd.DataFrame, Callable[[], Figure]]] = {
        "quality": (run.rounds, lambda: plots.plot_quality(run.rounds)),
        "error": (run.rounds, lambda: plots.plot_error(run.rounds)),
        "risk": (items, lambda: plots.plot_risk(items["risk"].to_numpy(), run.summary.get("threshold"))),
        "answers": (items, lambda: plots.plot_answers_per_item(items["n_annotations"].to_numpy())),
        "workers": (run.workers, lambda: plots.plot_workers(run.workers)),
    }
    data, draw = table[name]
    return draw if len(data) else None
