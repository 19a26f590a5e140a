"""Claims of a run against the truth: stated error, calibration, intervals of workers, and the F1 of one class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_annot.annotations.formats import read_labels
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.experiments.curves import Run
from lightning_annot.experiments.cuts import REST
from lightning_annot.report.reading import read_labels_table, read_workers

CLAIMS = ("ece_max", "claim_gap_max", "interval_coverage", "f1")
ENOUGH_FINISHED = 200  # finished items; with fewer, the gap of a round is mostly noise
ENOUGH_ANSWERS = 20  # answers of a worker; with fewer, a 90% interval covers nearly everything
_LOG = "annotations.db"


def claims_of(run: Run, root: Path) -> dict[str, float]:
    """Compare the claims of a run with the truth.

    Args:
        run: A run that has ended.
        root: Folder at which relative paths in its settings start.

    Returns:
        ``ece_max``: largest ECE over rounds from 1 on. ``claim_gap_max``: largest true minus stated error of the finished
        items, over rounds from 1 on with 200 or more of them. ``interval_coverage``: share of the workers with 20 or more
        answers whose 90% interval holds the share of these answers that is right. ``f1``: of the class against
        the rest, at the end. A figure that the run cannot tell is nan.
    """
    later = run.rounds[run.rounds["round"] >= 1]
    truth = _truth(run, root)
    return {
        "ece_max": _largest(later, "ece"),
        "claim_gap_max": claim_gap(later),
        "interval_coverage": float("nan") if truth is None else interval_coverage(run.folder, truth),
        "f1": float("nan") if truth is None else f1_of_run(run, truth),
    }


def claim_gap(rounds: pd.DataFrame) -> float:
    """Largest true minus stated error of the finished items, over ``rounds`` with enough of them; nan if there is none."""
    if not {"finished", "finished_precision", "finished_risk"} <= {*rounds}:
        return float("nan")
    enough = rounds[rounds["finished"].round() >= ENOUGH_FINISHED]
    return float(((1 - enough["finished_precision"]) - enough["finished_risk"]).max())


def interval_coverage(folder: Path, truth: Mapping[str, str]) -> float:
    """Share of workers whose interval in ``workers.csv`` holds the share of right answers among their own.

    Args:
        folder: A run's folder, with its log.
        truth: Class by item; answers about other items do not count.

    Returns:
        The share among workers with 20 or more ordinary answers, skips not counted; nan if there is no such worker.
    """
    workers = read_workers(folder)
    if workers.empty or not (folder / _LOG).is_file():
        return float("nan")
    with AnnotationLog(folder / _LOG, create=False) as log:
        answers = log.answers(kind="annotation")
    answers = answers[answers["label"].notna() & answers["item"].isin(list(truth))]
    right = (answers["label"] == answers["item"].map(truth)).groupby(answers["worker"]).agg(["mean", "size"])
    shown = workers.join(right, on="worker", how="inner")
    shown = shown[shown["size"] >= ENOUGH_ANSWERS]
    return float(shown["mean"].between(shown["accuracy_low"], shown["accuracy_high"]).mean())


def f1_of_run(run: Run, truth: Mapping[str, str]) -> float:
    """F1 of the class that was set against the rest, over the labels of ``labels.csv`` without prototypes; else nan."""
    classes = [name for name in run.summary.get("classes", []) if name != REST]
    if len(run.summary.get("classes", [])) != 2 or len(classes) != 1 or not (run.folder / "labels.csv").is_file():
        return float("nan")
    labels = read_labels_table(run.folder, None)
    labels = labels[labels["status"] != "prototype"]
    return f1_score(labels["label"] == classes[0], labels["task"].map(truth) == classes[0])


def f1_score(said: pd.Series, true: pd.Series) -> float:
    """Harmonic mean of precision and recall of ``said`` against ``true``, both bool; 0 if neither is ever true."""
    return float(2 * (said & true).sum() / max(1, said.sum() + true.sum()))


def _largest(rounds: pd.DataFrame, column: str) -> float:
    return float(rounds[column].max()) if column in rounds else float("nan")


def _truth(run: Run, root: Path) -> dict[str, str] | None:
    """The label file that the run was given; None where it had none."""
    data: Any = run.resolved.get("data") or {}
    path = data.get("init_args", data).get("labels")
    return None if path is None else dict(read_labels(root / path).itertuples(index=False, name=None))
