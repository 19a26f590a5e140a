"""What the owner's page tells of a run or a study: from the files that the last round left, and from the log as it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_annot.annotations.columns import numbers
from lightning_annot.annotations.formats import read_table
from lightning_annot.data.page_task import PageTask
from lightning_annot.report.reading import CONFIG, CONFUSIONS, LABELS, MACHINES, ROUNDS, WORKERS
from lightning_annot.report.run_files import Headline, RunFiles, evidence_note, headlines, read_run
from lightning_annot.serve.tally import Tally
from lightning_annot.stored import SUMMARY
from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS = {
    "pace": "Answers an hour",
    "quality": "Progress: what the answers bought",
    "error": "The error that the run believes in, and the true one if known",
    "risk": "Risk of the labels",
    "answers": "Answers an item",
    "workers": "Estimated accuracy of each worker",
    "confusion": "Who takes what for what; row: class, column: answer",
    "people": "The same for each worker",
}
_FILES = (LABELS, ROUNDS)  # there once a round has ended
_MORE_FILES = (SUMMARY, WORKERS, MACHINES, CONFUSIONS, CONFIG)
_REDRAWN = 20  # seconds after which the pace is drawn anew; its bars are a minute wide, or more


@dataclass(frozen=True)
class Plot:
    """A plot that can be had: ``version`` changes when it does."""

    name: str
    caption: str
    version: str


@dataclass(frozen=True)
class Confusions:
    """``counts`` (W, K, K) of gold answers of the ``workers``: row = true class, column = answer; ``names`` (K) by class."""

    workers: list[str]
    counts: np.ndarray
    names: dict[str, str]


class Left:
    """What the last round left, put together once: the page is looked at again and again meanwhile."""

    def __init__(self, run: RunFiles) -> None:
        self.run = run

    @cached_property
    def headlines(self) -> list[Headline]:
        """The numbers that are looked for first."""
        return headlines(self.run)

    @cached_property
    def prices(self) -> dict[str, Any]:
        """What answers cost: ``per_answer``, ``per_second``, and ``workers`` by name."""
        if "prices" in self.run.summary:
            return dict(self.run.summary["prices"])
        given = (self.run.settings.get("annotation") or {}).get("prices") or {}
        listed = given.get("workers")
        return {**given, "workers": _listed(Path(listed)) if listed else {}}

    @cached_property
    def truth(self) -> dict[str, str]:
        """The class of each prototype."""
        known = self.run.labels[self.run.labels["status"] == "prototype"]
        return dict(zip(known["task"], known["label"], strict=True))

    @cached_property
    def believed(self) -> dict[str, dict[str, Any]]:
        """What the run thinks of each worker: a row of ``workers.csv``, by name."""
        workers = self.run.workers
        return {} if workers.empty else {row["worker"]: row for row in workers.to_dict("records")}


class Overview:
    """Reads a run's files when they have changed; before the first round has ended, and in a study, there are none."""

    def __init__(self, directory: Path, tally: Tally, task: Callable[[], PageTask | None]) -> None:
        self._directory, self._tally, self._task = directory, tally, task
        self._reading, self._drawing_one = threading.Lock(), threading.Lock()  # matplotlib draws one figure at a time
        self._stamp, self._left = 0, None  # type: int, Left | None
        self._damaged: list[str] = []
        self._drawn: dict[str, tuple[str, str]] = {}

    def task(self) -> PageTask | None:
        """What the page knows of the run; None before it has begun, and where its description is damaged."""
        try:
            return self._task()
        except AnnotError:
            return None

    def damaged(self) -> list[str]:
        """A sentence for each file of the run that cannot be read; the page shows what the others tell."""
        self._now()
        told = list(self._damaged)
        try:
            self._task()
        except AnnotError as error:
            told.append(str(error))
        return told

    def run(self) -> RunFiles | None:
        """The files of the last round that has ended."""
        left = self._now()
        return None if left is None else left.run

    def _now(self) -> Left | None:
        try:
            stamp = sum((self._directory / name).stat().st_mtime_ns for name in _FILES)
        except FileNotFoundError:
            return None
        for name in _MORE_FILES:
            with suppress(FileNotFoundError):
                stamp += (self._directory / name).stat().st_mtime_ns
        with self._reading:
            if stamp != self._stamp:
                told: list[str] = []
                try:
                    left = Left(read_run(self._directory, told))
                except AnnotError as error:
                    left = None
                    told.append(str(error))
                self._left, self._damaged, self._stamp = left, told, stamp
            return self._left

    def headlines(self) -> list[Headline]:
        """The numbers that are looked for first, as the last round left them."""
        left = self._now()
        return [] if left is None else left.headlines

    def evidence(self) -> str:
        """Say that stated confidence is not verified, as the last round left it; empty where it is."""
        left = self._now()
        return "" if left is None else evidence_note(left.run)

    def prices(self) -> dict[str, Any]:
        """What answers cost, as ``Left`` has it; nothing where no run says so: one each."""
        left = self._now()
        return {} if left is None else left.prices

    def truth(self) -> dict[str, str]:
        """The class of each prototype."""
        if (task := self.task()) is not None and task.study is not None:
            return task.study.truth
        left = self._now()
        return {} if left is None else left.truth

    def believed(self) -> dict[str, dict[str, Any]]:
        """What the run thinks of each worker, by name."""
        left = self._now()
        return {} if left is None else left.believed

    def confusions(self) -> Confusions:
        """Who took what for what in gold answers so far."""
        from lightning_annot.exchange.confusions import count_confusions

        task, run = self.task(), self.run()
        if task is None and run is None:
            return Confusions([], np.zeros((0, 0, 0), np.int64), {})
        names = dict(zip(task.classes, task.names, strict=True)) if task is not None else run.names  # type: ignore[union-attr]
        who, counts = count_confusions(self._tally.gold(), self.truth(), list(names))
        return Confusions(who, counts, names)

    def plots(self) -> list[Plot]:
        """The plots that there is data for."""
        return [Plot(name, caption, self._version(name)) for name, caption in PLOTS.items() if self._has(name)]

    def plot(self, name: str) -> str | None:
        """A plot as SVG; None where there is no data for it yet."""
        with self._drawing_one:
            if not self._has(name):
                return None
            version = self._version(name)
            if self._drawn.get(name, ("", ""))[0] != version:
                from lightning_annot.report.plots import figure_svg

                self._drawn[name] = version, figure_svg(self._drawing(name)())
            return self._drawn[name][1]

    def _version(self, name: str) -> str:
        if name == "pace":
            return str(int(time.time() / _REDRAWN))
        return str(self._tally.stamp if self._gold_alone(name) else self._stamp)

    def _gold_alone(self, name: str) -> bool:
        return name in ("confusion", "people") and self._stamp == 0

    def _has(self, name: str) -> bool:
        if name == "pace":
            return self._tally.stamp > 0
        run = self.run()
        if self._gold_alone(name):
            return bool(self.confusions().workers)
        if run is None or name == "people":
            return False
        if name == "confusion":
            return run.pooled is not None and len(run.pooled) > 0
        return len({"quality": run.rounds, "error": run.rounds, "workers": run.workers}.get(name, run.items)) > 0

    def _drawing(self, name: str) -> Callable[[], Figure]:
        """What draws a plot that there is data for."""
        from lightning_annot.report import plots
        from lightning_annot.report.pace import plot_pace
        from lightning_annot.report.study_plots import plot_people, shares

        if name == "pace":
            times = self._tally.times()
            return lambda: plot_pace(times, time.time())
        run = self.run()
        if run is None:
            found = self.confusions()
            if name == "people":
                return lambda: plot_people(found.counts, found.workers)
            return lambda: plots.plot_confusion(shares(found.counts.sum(0)), list(found.names.values()))
        items, pooled = run.items, run.pooled if run.pooled is not None else np.zeros((0, 0))
        table: dict[str, Callable[[], Figure]] = {
            "quality": lambda: plots.plot_quality(run.rounds),
            "error": lambda: plots.plot_error(run.rounds),
            "risk": lambda: plots.plot_risk(items["risk"].to_numpy(), run.summary.get("threshold")),
            "answers": lambda: plots.plot_answers_per_item(items["n_annotations"].to_numpy()),
            "workers": lambda: plots.plot_workers(run.workers),
            "confusion": lambda: plots.plot_confusion(pooled, list(run.names.values())),
        }
        return table[name]


def _listed(path: Path) -> dict[str, float]:
    """Prices by worker; none where the file, which the run has checked, has moved since."""
    try:
        table = read_table(path, ("worker", "price"), numbers=("price",))
    except AnnotError:
        return {}
    return dict(zip(table["worker"], numbers(table["price"]), strict=True))
