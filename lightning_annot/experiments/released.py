"""Comparison with the curves of the method's released code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.experiments.curves import ANSWERS, Run, value_at
from lightning_annot.types import AnnotError

AT = (0.5, 1.0, 1.5, 2.0)
STOP = {"commodity": 1.7, "dog": 2.2}  # answers an image where the released code's own rule would stop
_NAMES = {"online_ds": "ds_model"}

Baselines = dict[str, pd.DataFrame]
"""Group of workers -> rows of the released code: method, seed, annotations_per_item, accuracy."""


def read_baselines(directory: Path) -> Baselines:
    """``released_code_GROUP.csv`` of each group; empty where there is none."""
    found = {}
    for path in sorted(directory.glob("released_code_*.csv")):
        table = pd.read_csv(path)
        if missing := {"method", "seed", ANSWERS, "accuracy"} - set(table):
            raise AnnotError(f"{path} has no column {', '.join(sorted(missing))}.")
        found[path.stem.removeprefix("released_code_")] = table
    return found


def released_curves(baselines: Baselines, run: Run) -> list[pd.DataFrame]:
    """The released code's rows for a run's group and method, one table a seed."""
    table = baselines.get(str(run.at("group")))
    if table is None:
        return []
    method = str(run.at("method"))
    chosen = table[table["method"] == _NAMES.get(method, method)]
    return [rows for _, rows in chosen.groupby("seed")]


def released_line(baselines: Baselines, run: Run, column: str) -> np.ndarray | None:
    """Mean over the released code's seeds as points (n, 2), for a figure."""
    curves = released_curves(baselines, run)
    if not curves or column not in curves[0]:
        return None
    x = np.unique(np.concatenate([rows[ANSWERS].to_numpy() for rows in curves]))
    mean: np.ndarray = np.mean([value_at(rows, column, x) for rows in curves], axis=0)
    return np.stack([x, mean], 1)


def gaps(baselines: Baselines, runs: list[Run]) -> pd.DataFrame | None:
    """Accuracy of our runs and of the released code at ``AT`` and at the released code's own stop, means over seeds.

    Columns ``at``, ``ours``, ``released``, ``gap``; a curve that ended early is carried on at its last value.
    """
    curves, group = released_curves(baselines, runs[0]), str(runs[0].at("group"))
    if not curves:
        return None
    at = np.array([*AT, STOP.get(group, max(AT))])
    ours = np.mean([value_at(run.rounds, "accuracy", at) for run in runs], axis=0)
    released = np.mean([value_at(rows, "accuracy", at) for rows in curves], axis=0)
    return pd.DataFrame({"at": at, "ours": ours, "released": released, "gap": ours - released})
