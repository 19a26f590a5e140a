"""What a run left in its folder, read back for people: the report, the terminal and experiment trackers."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.report.reading import (
    LABELS,
    read_confusions,
    read_labels_table,
    read_machines,
    read_rounds,
    read_settings,
    read_summary,
    read_workers,
)
from lightning_annot.stored import damaged, items_of_run
from lightning_annot.types import AnnotError

T = TypeVar("T")

ENOUGH_FRESH = 500
"""Fresh answers from which on stated confidence counts as verified. Among n answers that are right in 9 of 10, the share of
right ones has a standard error of .3 / sqrt(n); with 500 it is .013: errors of a few percent can be told from twice as many."""

Thumbnails = dict[str, str]
"""Item id -> JPEG as base64 text."""


@dataclass(frozen=True)
class RunFiles:
    """A run as its files tell it.

    ``labels`` has the columns of ``LABEL_COLUMNS``; ``workers``, ``machines`` and ``rounds`` are empty frames where the file is
    absent, and ``pooled`` (K, K; row = true class, column = answer) is None without ``confusions.npz``. ``config`` is the text
    of ``config.yaml``, and ``settings`` what it says.
    """

    directory: Path
    labels: pd.DataFrame
    workers: pd.DataFrame
    machines: pd.DataFrame
    rounds: pd.DataFrame
    pooled: np.ndarray | None
    classes: list[str]
    config: str
    settings: dict[str, Any]
    summary: dict[str, Any]

    @property
    def names(self) -> dict[str, str]:
        """What people call each class, by the class as the files have it; the same word where there is no other."""
        known = dict(zip(self.summary.get("classes", ()), self.summary.get("class_names", ()), strict=False))
        return {name: known.get(name, name) for name in self.classes}

    @cached_property
    def items(self) -> pd.DataFrame:
        """The labels that were asked for: everything except prototypes."""
        return self.labels[self.labels["status"] != "prototype"]

    @property
    def last_round(self) -> dict[str, float]:
        """The last row of ``rounds.csv`` without its empty cells."""
        return {} if self.rounds.empty else self.rounds.iloc[-1].dropna().to_dict()


@dataclass(frozen=True)
class Headline:
    """One number a person looks for first."""

    name: str
    value: str
    note: str = ""


def read_run(run_dir: str | os.PathLike[str], told: list[str] | None = None) -> RunFiles:
    """Read a run's folder; only ``labels.csv`` must be there.

    Args:
        run_dir: The output folder of a run.
        told: Where given, a damaged file beside ``labels.csv`` counts as absent, and is described here.

    Raises:
        AnnotError: ``labels.csv`` is missing, or a file is damaged.
    """
    directory = Path(run_dir)
    if not (directory / LABELS).is_file():
        raise AnnotError(f"{directory} has no labels.csv; give the output folder of a run that has ended or stopped.")

    def part(read: Callable[[Path], T], absent: T) -> T:
        try:
            return read(directory)
        except AnnotError as error:
            if told is None:
                raise
            told.append(str(error))
            return absent

    no_values: dict[str, Any] = {}
    no_confusions: tuple[np.ndarray | None, list[str]] = None, []
    summary = part(read_summary, no_values)
    labels = read_labels_table(directory, part(lambda path: items_of_run(path, summary), None))
    pooled, classes = part(read_confusions, no_confusions)
    config, settings = part(read_settings, ("", no_values))
    return RunFiles(
        directory=directory,
        labels=labels,
        workers=part(read_workers, pd.DataFrame()),
        machines=part(read_machines, pd.DataFrame()),
        rounds=part(read_rounds, pd.DataFrame()),
        pooled=pooled,
        classes=classes or list(summary.get("classes", ())) or sorted(labels["label"].unique()),
        config=config,
        settings=settings,
        summary=summary,
    )


def check_items(run: RunFiles, log: AnnotationLog) -> None:
    """Raises AnnotError where ``labels.csv`` has not as many rows as the run that claimed the ``log`` has items."""
    claimed = log.identity().get("items")
    if claimed is not None and len(run.labels) != (n := int(claimed.split()[0])):
        raise damaged(run.directory / LABELS, f"it has {len(run.labels)} rows, and the run in {log.name} {n} items")


def headlines(run: RunFiles) -> list[Headline]:
    """What was reached, most important first; numbers that the run does not know are left out."""
    last, items = run.last_round, run.items
    finished = float((items["status"] == "finished").mean()) if len(items) else 0.0
    cost = "cost of a label" if (run.settings.get("annotation") or {}).get("cost") else "share of wrong labels"
    left_out, paused = (run.summary.get(f"{how}_workers", {}) for how in ("excluded", "paused"))
    scales = run.summary.get("feature_scale", {})
    numbers = [
        ("Accuracy", percent(last.get("accuracy")), "of all labels, against the known truth"),
        ("Accuracy of finished", percent(last.get("finished_precision")), "of the labels called final"),
        ("Answers an item", _decimals(last.get("annotations_per_item")), "ordinary answers and skips"),
        ("Paid an item", _decimals(last.get("paid_per_item")), "with gold questions and audits"),
        ("Money", _decimals(last.get("money")), "for all answers, at the given prices"),
        ("Finished", percent(finished), f"{int((items['status'] == 'finished').sum()):,} of {len(items):,} items"),
        ("Stated error", percent(last.get("finished_risk")), _stated(last, cost)),
        ("Mean risk", percent(float(items["risk"].mean())) if len(items) else "", f"expected {cost}, of all labels"),
        ("Calibration error", percent(last.get("ece")), "confidence against the known truth"),
        ("Workers", f"{len(run.workers):,}" if len(run.workers) else "", "gave at least one answer"),
        ("Left out", f"{len(left_out):,}" if left_out else "", f"workers who do not look, or lie: {_some(left_out)}"),
        ("Paused", f"{len(paused):,}" if paused else "", f"workers who are not good enough: {_some(paused)}"),
        ("Feature scale", ", ".join(dict.fromkeys(scales.values())), "how features were scaled for the learner"),
        ("Rounds", f"{len(run.rounds):,}" if len(run.rounds) else "", "of training, inferring and asking"),
    ]
    return [Headline(name, value, note) for name, value, note in numbers if value]


def evidence_note(run: RunFiles) -> str:
    """Say that stated confidence is not verified; empty where it is, and where an older run does not tell."""
    if run.rounds.empty or "fresh_answers" not in run.rounds:
        return ""
    fresh = run.rounds["fresh_answers"].iloc[-1]
    if np.isnan(fresh):
        return "confidence not verified: crowd.temper is off"
    return f"fewer than {ENOUGH_FRESH} fresh answers: confidence not verified yet" if fresh < ENOUGH_FRESH else ""


def image_root(run: RunFiles) -> str | None:
    """The folder of the images, where the run's settings name one."""
    data = run.settings.get("data") or {}
    given = data.get("init_args")
    root = (given if isinstance(given, dict) else data).get("root")
    return root if isinstance(root, str) else None


def percent(value: float | None) -> str:
    """``0.9312`` as ``93.1 %``; empty for None and nan."""
    return "" if value is None or np.isnan(value) else f"{100 * value:.1f} %"


def _stated(last: Mapping[str, float], cost: str) -> str:
    ends = [percent(last.get(f"finished_risk_{end}")) for end in ("low", "high")]
    return f"expected {cost}, of the finished" + (f"; 90% interval {ends[0]} to {ends[1]}" if all(ends) else "")


def _some(names: Collection[str], most: int = 5) -> str:
    return ", ".join(sorted(names)[:most]) + (" ..." if len(names) > most else "")


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
