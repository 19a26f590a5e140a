"""What self-supervised adaptation saves: answers an image until the labels are good, for each kind of features.

    python scripts/bench_adaptation.py                                  # digits, seeds 11 to 13
    python scripts/bench_adaptation.py --data cifar10n --items 1000 --seeds 101 --set data.adapt.epochs=5
    python scripts/bench_adaptation.py --features adapted --seeds 101 102 103 --set data.adapt.method=byol --csv byol.csv

``random`` is the network of configs/digits.yaml as it starts, ``adapted`` that network after it has seen the images, and
``pixels`` are the digits without a network. CIFAR-10 photographs (``cifar10n/images.zip`` below $ANNOT_DATA or
../shared/data) are labelled by simulated workers of the Dog group. Each run is the command line in a process of its own.
Prints JSON: one entry a run, then mean and standard deviation. ``to_97`` is the first row of rounds.csv at or above 97%; null
where there is none. ``cpu_seconds`` is a run's processor time,
with that of the processes that make views.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("ANNOT_DATA", ROOT.parent / "shared" / "data"))
FEATURES = ("pixels", "random", "adapted")
END = ("annotations_per_item", "accuracy", "finished_fraction", "finished_precision", "ece")
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98)
PHOTOGRAPHS = {
    "data.root": SHARED / "cifar10n" / "images.zip",
    "data.id_pattern": "%05d.jpg",
    "data.backbone.image_size": 32,
    "data.adapt.method": "simclr",
    "data.adapt.epochs": 40,
    "data.adapt.batch_size": 256,
    "data.adapt.precision": "bf16-mixed",
    "data.adapt.views": "{crop: 0.2, flip: 0.5, rotate: 0.0, jitter: 0.5, grey: 0.2}",
    "data.projection": "{dim: null, kernel: 1000}",
    "annotation.workers": "lightning_annot.workers.amt.AMTWorkers",
    "annotation.workers.workers_file": SHARED / "amt_imagenet100" / "group_workers.json",
    "annotation.workers.groups_file": SHARED / "amt_imagenet100" / "groups.txt",
    "annotation.workers.group": "dog",
    "annotation.workers.n_workers": 50,
    "annotation.stopping.budget": 2.0,
    "annotation.sampling.per_round": 200,
    "trainer.max_epochs": 100,
}


def settings(data: str, features: str, items: int | None, folder: Path) -> list[str]:
    """Words of the command line; files that it needs go to ``folder``."""
    given: dict[str, Any] = {"data.backbone.cache_dir": folder / "features"}
    if data == "cifar10n":
        labels = pd.read_csv(SHARED / "cifar10n" / "true_labels.csv", dtype=str, nrows=items)
        labels.to_csv(folder / "labels.csv", index=False)
        given |= {**PHOTOGRAPHS, "data.labels": folder / "labels.csv"}
    if features != "adapted":
        given = {key: value for key, value in given.items() if not key.startswith("data.adapt")} | {"data.adapt": "null"}
    if features == "pixels":
        given = {"data.adapt": "null", "data.backbone": "{name: null}"}
    return ["--config", str(ROOT / "configs" / "digits.yaml"), *(f"--{key}={value}" for key, value in given.items())]


def measure(data: str, features: str, seed: int, items: int | None, extra: list[str]) -> dict[str, Any]:
    """One run."""
    with tempfile.TemporaryDirectory() as name:
        folder, run = Path(name), Path(name) / "run"
        if features != "adapted":
            extra = [word for word in extra if not word.startswith("--data.adapt")]
        words = [*settings(data, features, items, folder), "--seed_everything", str(seed), *extra]
        command = [sys.executable, "-m", "lightning_annot", "fit", *words, "--annotation.output_dir", str(run)]
        begun, used = time.perf_counter(), _cpu_seconds()
        done = subprocess.run(
            [*command, "--trainer.enable_progress_bar", "false"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        cost = {"seconds": time.perf_counter() - begun, "cpu_seconds": _cpu_seconds() - used}
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        rounds = pd.read_csv(run / "rounds.csv")
        logged = sorted(run.glob("adapted/logs/version_*/metrics.csv"))
        knn = pd.concat(map(pd.read_csv, logged))["val_knn"].dropna() if logged else pd.Series(dtype=float)
    last = rounds.iloc[-1]
    reached = {f"to_{level * 100:.0f}": _first(rounds, level) for level in LEVELS}
    end = {name: float(last[name]) for name in END}
    probe = {"val_knn": float(knn.iloc[-1]) if len(knn) else None, "first_accuracy": float(rounds["accuracy"].iloc[0])}
    return {"data": data, "features": features, "seed": seed, **reached, **end, **probe, **cost}


def _cpu_seconds() -> float:
    """Seconds of processor time of all processes that were started here and have ended, with those that they started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _first(rounds: pd.DataFrame, level: float) -> float | None:
    there = rounds[rounds["accuracy"] >= level]
    return None if there.empty else float(there["annotations_per_item"].iloc[0])


def main() -> None:
    """Run everything asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("digits", "cifar10n"), default="digits")
    parser.add_argument("--features", nargs="+", choices=FEATURES, help="default: all that the data has")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--items", type=int, help="so many of the photographs; default: all 10,000")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings passed on, such as data.adapt.lr=0.01"
    )
    parser.add_argument("--csv", type=Path, help="write the runs to this file as well, each as it ends")
    args = parser.parse_args()
    kinds = args.features or (FEATURES if args.data == "digits" else FEATURES[1:])
    if args.data == "cifar10n" and "pixels" in kinds:
        parser.error("pixels are features of the digits alone")
    tasks = [(args.data, kind, seed, args.items, [f"--{pair}" for pair in args.set]) for kind in kinds for seed in args.seeds]
    done: list[dict[str, Any]] = []
    for task in track(tasks, "runs", disable=not sys.stderr.isatty()):
        done.append(measure(*task))
        if args.csv is not None:  # a kill loses one run
            pd.DataFrame(done).to_csv(args.csv, index=False)
    runs = pd.DataFrame(done)
    groups = runs.drop(columns=["seed", "data"]).groupby("features", sort=False)
    mean, spread = groups.mean().round(4), groups.std().round(4)
    summary = {
        kind: {"mean": json.loads(mean.loc[kind].to_json()), "sd": json.loads(spread.loc[kind].to_json())} for kind in kinds
    }
    print(json.dumps({"runs": json.loads(runs.to_json(orient="records")), "summary": summary}, indent=1))


if __name__ == "__main__":
    main()
