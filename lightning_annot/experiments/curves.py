"""Runs read back, and their curves and figures over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from lightning_annot.experiments.grid import AXES, DEFAULTS, Value
from lightning_annot.experiments.runner import DESCRIPTION
from lightning_annot.report.reading import read_rounds, read_summary
from lightning_annot.stored import read_object
from lightning_annot.types import AnnotError

LEVELS = (0.80, 0.85, 0.90, 0.95)
ANSWERS, PAID = "annotations_per_item", "paid_per_item"
END = (ANSWERS, PAID, "accuracy", "top5_accuracy", "finished_fraction", "finished_precision", "ece")
_DEFAULTS: dict[str, Value] = {**DEFAULTS, "gold": 0, "distractors": 0.0}


@dataclass(frozen=True)
class Run:
    """A run that has ended. ``given``: coordinates as the grid had them; ``rounds`` has also ``unfinished`` and ``finished``
    (a count), where the run tells the number of items.
    """

    folder: Path
    config: str
    given: dict[str, Value]
    extra: dict[str, str]
    rounds: pd.DataFrame
    summary: dict[str, Any]
    resolved: dict[str, Any]
    environment: dict[str, str]

    def at(self, axis: str) -> Value:
        """The coordinate: as given, else as the run's configuration resolved it, else the default."""
        if axis in self.given:
            return self.given[axis]
        return _find(self.resolved, AXES[axis].key, _DEFAULTS.get(axis)) if axis in AXES else None

    @property
    def oracle(self) -> bool:
        """Whether the crowd model read the simulated workers."""
        return bool(self.summary.get("oracle_prior", self.at("oracle")))

    @property
    def seconds(self) -> float:
        """Seconds of all rounds."""
        return float(self.rounds.filter(like="seconds_").sum().sum())


@dataclass(frozen=True)
class Curve:
    """Mean and standard deviation over ``n`` runs at ``x`` answers an item; nan where a run has no value."""

    x: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    n: int


def read_run(folder: Path) -> Run:
    """One run that has ended."""
    about, summary, rounds = read_object(folder / DESCRIPTION), read_summary(folder), read_rounds(folder)
    rounds["unfinished"] = 1 - rounds["finished_fraction"]
    if "n_items" in summary:
        rounds["finished"] = rounds["finished_fraction"] * summary["n_items"]
    config = folder / "config.yaml"
    resolved = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return Run(
        folder, about["config"], about["coordinates"], about["extra"], rounds, summary, resolved or {}, about["environment"]
    )


def read_runs(directory: Path) -> list[Run]:
    """All runs below ``directory`` that have ended, in order of their folders' names."""
    ended = [path.parent for path in sorted(directory.rglob(DESCRIPTION)) if (path.parent / "summary.json").is_file()]
    if not ended:
        raise AnnotError(f"{directory} has no run that has ended; start some by scripts/ablate.py or scripts/results.py.")
    return [read_run(folder) for folder in ended]


def group_by(runs: Iterable[Run], key: Callable[[Run], Any]) -> dict[Any, list[Run]]:
    """Runs by key, keys in order of appearance; of runs with one key and seed the first counts."""
    groups: dict[Any, dict[Value, Run]] = {}
    for run in runs:
        groups.setdefault(key(run), {}).setdefault(run.at("seed"), run)
    return {name: list(by_seed.values()) for name, by_seed in groups.items()}


def value_at(rounds: pd.DataFrame, column: str, x: np.ndarray | float, along: str = ANSWERS) -> np.ndarray:
    """A column of ``rounds.csv`` at ``x`` answers an item: linear between rounds, the last value from the end on, nan before
    the first value.
    """
    rows = rounds[[along, column]].dropna() if column in rounds else rounds[:0]
    if rows.empty:
        return np.full(np.shape(x), np.nan)
    return np.asarray(np.interp(x, rows[along], rows[column], left=np.nan))


def mean_curve(runs: Sequence[Run], column: str, along: str = ANSWERS) -> Curve:
    """Mean over runs up to the longest one's end; one that ended earlier is carried on at its last value."""
    x = np.unique(np.concatenate([run.rounds[along].to_numpy(dtype=float) for run in runs]))
    values = np.stack([value_at(run.rounds, column, x, along) for run in runs])
    sd = values.std(0, ddof=1) if len(runs) > 1 else np.zeros(len(x))
    return Curve(x, values.mean(0), sd, len(runs))


def to_level(run: Run, level: float, column: str = "accuracy") -> float:
    """Answers an item at the first round with ``level`` or more; nan if it is never reached."""
    there = run.rounds[run.rounds[column] >= level] if column in run.rounds else run.rounds[:0]
    return float("nan") if there.empty else float(there["annotations_per_item"].iloc[0])


def figures_of(run: Run) -> dict[str, float]:
    """``to_80`` to ``to_95``, the last row's figures, and seconds."""
    reached = {f"to_{100 * level:.0f}": to_level(run, level) for level in LEVELS}
    last = run.rounds.iloc[-1]
    end = {name: float(last[name]) if name in last else float("nan") for name in END}
    return reached | end | {"seconds": run.seconds}


def table_of(groups: dict[Any, list[Run]]) -> dict[Any, pd.DataFrame]:
    """A row a run and a column a figure, for each group."""
    return {name: pd.DataFrame([figures_of(run) for run in runs]) for name, runs in groups.items()}


def importance(run: Run) -> pd.DataFrame:
    """``worker, importance, answers`` of a simulated run; AnnotError if it does not tell enough.

    A worker's importance is the mean of its true accuracy by class, weighted inversely to the learner's accuracy in the class:
    who is good at what the model is bad at counts most.
    """
    path, by_class = run.folder / "simulated_workers.npz", run.summary.get("learner_class_accuracy")
    if not path.is_file() or by_class is None:
        raise AnnotError(f"{run.folder} does not tell its simulated workers or the learner's accuracy by class.")
    with np.load(path, allow_pickle=False) as arrays:
        names, diagonal = arrays["workers"].astype(str), arrays["confusions"].diagonal(axis1=1, axis2=2)
    accuracy = np.array([np.nan if value is None else value for value in by_class], dtype=float)
    known = np.isfinite(accuracy)
    weight = 1 / np.clip(accuracy[known], 0.05, 1)
    shown = pd.DataFrame({"worker": names, "importance": diagonal[:, known] @ (weight / weight.sum())})
    answers = pd.read_csv(run.folder / "workers.csv", dtype={"worker": str}, keep_default_na=False)
    given = dict(zip(answers["worker"], answers["n_annotations"].astype(int), strict=True))
    return shown.assign(answers=[given.get(name, 0) for name in names])


def spreads(run: Run) -> tuple[float, float]:
    """Standard deviation of the simulated workers' true accuracy between workers, and between classes."""
    with np.load(run.folder / "simulated_workers.npz", allow_pickle=False) as arrays:
        diagonal = arrays["confusions"].diagonal(axis1=1, axis2=2)
    return float(diagonal.mean(1).std()), float(diagonal.mean(0).std())


def correlation(workers: pd.DataFrame) -> float:
    """Pearson's r of importance and answers; nan where one of them does not vary."""
    pair = workers[["importance", "answers"]].to_numpy(dtype=float)
    if len(pair) < 2 or (pair.std(0) == 0).any():
        return float("nan")
    return float(np.corrcoef(pair.T)[0, 1])


def _find(tree: Any, key: str, default: Value) -> Value:
    for part in key.split("."):
        if isinstance(tree, dict) and part not in tree and "init_args" in tree:
            tree = tree["init_args"]
        if not isinstance(tree, dict) or part not in tree:
            return default
        tree = tree[part]
    return ",".join(map(str, tree)) if isinstance(tree, list) else tree
