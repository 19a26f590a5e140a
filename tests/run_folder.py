"""A made-up run folder with every file of the contract, for tests of what people see."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def make_run(
    directory: Path, n: int = 500, w: int = 20, rounds: int = 25, classes: list[str] = CLASSES, known_truth: bool = True
) -> Path:
    """Write the files of a finished run; without ``known_truth`` nothing that only the truth can tell."""
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True, exist_ok=True)
    _labels(rng, n, classes).to_csv(directory / "labels.csv", index=False)
    _workers(rng, w).to_csv(directory / "workers.csv", index=False)
    _rounds(rng, rounds, known_truth).to_csv(directory / "rounds.csv", index=False)
    noise = rng.dirichlet(np.full(len(classes), 0.3), len(classes))
    pooled = 0.85 * np.eye(len(classes)) + 0.15 * noise
    names = np.array([f"worker_{j:02d}" for j in range(w)])
    np.savez(directory / "confusions.npz", pooled=pooled, workers=names, classes=np.array(classes))
    (directory / "config.yaml").write_text(
        "seed_everything: 1\nannotation:\n  threshold: 0.1\n  database: postgresql://team:secret@db/run\n"
    )
    summary = {
        "stop_reason": "every item is finished or has reached its cap of answers",
        "classes": classes,
        "threshold": 0.1,
        "started": "2024-05-01 10:00",
        "finished": "2024-05-01 10:42",
        "prototypes_drawn": True,
    }
    if known_truth:
        counts = [0, 2, 5, 10, 12, 18, 25, 40, 90, 198]
        confidence = [0.0, *(0.05 + 0.1 * b for b in range(1, 10))]
        table = {"confidence": confidence, "accuracy": [max(0.0, c - 0.04) for c in confidence], "count": counts}
        summary["reliability"] = table
    (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def picture(item: str) -> Image.Image:
    """A small coloured image that depends on the item alone."""
    rng = np.random.default_rng(zlib.crc32(item.encode()))
    coarse = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)


def _labels(rng: np.random.Generator, n: int, classes: list[str]) -> pd.DataFrame:
    prototypes = min(n // 5, 10 * len(classes))
    risk = np.where(np.arange(n) < prototypes, 0, np.clip(rng.beta(0.25, 3, n), 0, 1 - 1 / len(classes)))
    status = np.where(risk < 0.1, "finished", "unfinished")
    status[:prototypes] = "prototype"
    return pd.DataFrame(
        {
            "task": [f"{i:05d}" for i in range(n)],
            "label": rng.choice(classes, n, p=rng.dirichlet(np.full(len(classes), 20.0))),
            "confidence": 1 - risk,
            "risk": risk,
            "n_annotations": np.where(status == "prototype", 0, rng.poisson(0.6 + 4 * risk)),
            "status": status,
        }
    )


def _workers(rng: np.random.Generator, w: int) -> pd.DataFrame:
    mean = rng.beta(9, 2, w)
    return pd.DataFrame(
        {
            "worker": [f"worker_{j:02d}" for j in range(w)],
            "n_annotations": rng.poisson(40, w),
            "accuracy_mean": mean,
            "accuracy_low": np.clip(mean - 0.08, 0, 1),
            "accuracy_high": np.clip(mean + 0.06, 0, 1),
        }
    )


def _rounds(rng: np.random.Generator, rounds: int, known_truth: bool) -> pd.DataFrame:
    number = np.arange(rounds)
    progress = 1 - np.exp(-number / (rounds / 4))
    table = pd.DataFrame(
        {
            "round": number,
            "annotations": 20 * number,
            "annotations_per_item": 20 * number / 400,
            "paid_per_item": 22 * number / 400,
            "finished_fraction": 0.2 + 0.75 * progress,
            "mean_risk": 0.4 * np.exp(-number / (rounds / 5)) + 0.02,
        }
    )
    for stage, seconds in {"train": 6, "predict": 1, "infer": 2, "sample": 0.2, "ask": 0.5, "save": 0.3}.items():
        table[f"seconds_{stage}"] = seconds * rng.uniform(0.7, 1.3, rounds)
    if known_truth:
        table["accuracy"] = 0.6 + 0.36 * progress
        table["top5_accuracy"] = 0.8 + 0.19 * progress
        table["finished_precision"] = np.where(number == 0, np.nan, 0.93 + 0.05 * progress)
        table["ece"] = 0.12 * (1 - progress) + 0.01
        table["learner_accuracy"] = 0.58 + 0.25 * progress
    return table
