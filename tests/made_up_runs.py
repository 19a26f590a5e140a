"""Run folders of a grid, made up without running anything, for tests of what is read from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from lightning_annot.experiments.grid import METHODS, Cell

CLASSES = ["ant", "bee", "cow", "dog", "eel", "fox"]
N, WORKERS = 1000, 12
RESOLVED = {
    "annotation": {
        "threshold": 0.1,
        "workers": {"class_path": "a.Class", "init_args": {"n_workers": 50, "noise": "structured"}},
        "sampling": {"workers": "random", "per_round": 200},
        "crowd": {"prior": "tiered", "strength": 10.0},
    }
}
MACHINE = {"cpu": "a CPU", "cores": "2", "memory": "8 GiB", "python": "3.11.0", "torch": "2.6.0", "commit": "abcdef1234"}


def make_up(cells: Sequence[Cell], directory: Path) -> None:
    """Every file of each cell that figures and tables read; later methods do better, higher thresholds end sooner."""
    for cell in cells:
        folder = directory / cell.name
        folder.mkdir(parents=True)
        seed = int(str(cell.coordinates["seed"]))
        rng = np.random.default_rng(seed)
        skill = METHODS.index(str(cell.coordinates.get("method", "ours"))) / len(METHODS)
        rounds = _rounds(rng, skill, float(str(cell.coordinates.get("threshold", 0.1))))
        rounds.to_csv(folder / "rounds.csv", index=False)
        about = {"name": cell.name, "config": cell.config, "extra": dict(cell.extra), "settings": cell.settings}
        coordinates = {"method": "ours", **cell.coordinates}
        (folder / "config.yaml").write_text(yaml.safe_dump(RESOLVED))
        (folder / "run.json").write_text(json.dumps({**about, "coordinates": coordinates, "environment": MACHINE}))
        oracle = bool(cell.coordinates.get("oracle"))
        summary = {"stop_reason": "made up", "n_items": N, "threshold": 0.1, "oracle_prior": oracle, "classes": CLASSES}
        by_class = list(rng.uniform(0.5, 1, len(CLASSES)))
        (folder / "summary.json").write_text(json.dumps({**summary, "learner_class_accuracy": by_class}))
        _workers(rng, folder, greedy=cell.coordinates.get("assignment") == "greedy")


def _rounds(rng: np.random.Generator, skill: float, threshold: float) -> pd.DataFrame:
    x = np.arange(0, 2.2 - 2 * threshold, 0.1)
    accuracy = 0.5 + (0.3 + 0.15 * skill) * (1 - np.exp(-x / 0.4)) + rng.normal(scale=0.004, size=len(x))
    return pd.DataFrame(
        {
            "round": np.arange(len(x)),
            "annotations": (N * x).astype(int),
            "annotations_per_item": x,
            "paid_per_item": x + 0.05,
            "finished_fraction": np.clip(0.4 * x, 0, 0.95),
            "accuracy": accuracy,
            "top5_accuracy": np.sqrt(accuracy),
            "finished_precision": np.where(x == 0, np.nan, 0.97),
            "ece": 0.1 * np.exp(-x),
            "seconds_train": 1.0,
        }
    )


def _workers(rng: np.random.Generator, folder: Path, greedy: bool) -> None:
    k = len(CLASSES)
    right = rng.uniform(0.3, 0.95, (WORKERS, k, 1))
    confusions = right * np.eye(k) + (1 - right) * (1 - np.eye(k)) / (k - 1)
    names = np.array([f"worker_{j:02d}" for j in range(WORKERS)])
    arrays = {"workers": names, "classes": np.array(CLASSES)}
    np.savez(folder / "simulated_workers.npz", **arrays, confusions=confusions)
    np.savez(folder / "confusions.npz", **arrays, confusions=confusions[:, ::-1, ::-1], pooled=confusions.mean(0))
    answers = (right.mean((1, 2)) * 200).astype(int) if greedy else rng.poisson(100, WORKERS)
    pd.DataFrame({"worker": names, "n_annotations": answers}).to_csv(folder / "workers.csv", index=False)
