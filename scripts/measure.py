"""What the shipped configurations reach: annotations per item to 80, 85, 90 and 95%, the end, calibration, and seconds.

    python scripts/measure.py                     # digits, recorded, dog and commodity, seeds 11 to 13
    python scripts/measure.py dog --seeds 1 2 3 --set annotation.threshold=0.05

Each run is the real command line in a process of its own. Prints JSON: one entry a run, and mean and standard deviation of each
setting. ``to_90`` is the first row of rounds.csv at or above 90%, without interpolation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
GROUP = "--annotation.workers.group"
SETTINGS = {
    "digits": ["--config", "configs/digits.yaml"],
    "recorded": ["--config", "configs/recorded.yaml"],
    **{
        name: ["--config", "configs/simulated.yaml", GROUP, name]
        for name in ("dog", "commodity", "vertebrate", "objects", "things")
    },
}
LEVELS = (0.80, 0.85, 0.90, 0.95)


def measure(setting: str, seed: int, extra: list[str]) -> dict[str, Any]:
    """One run of ``setting`` with ``seed``."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lightning_annot", "fit", *SETTINGS[setting], "--seed_everything", str(seed)]
        command += ["--annotation.output_dir", folder, "--trainer.enable_progress_bar", "false", *extra]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        rounds = pd.read_csv(Path(folder) / "rounds.csv")
        workers = pd.read_csv(Path(folder) / "workers.csv")
    last = rounds.iloc[-1]
    reached = {f"to_{level:.0%}".rstrip("%"): _first(rounds, level) for level in LEVELS}
    end = {
        name: float(last[name])
        for name in ("annotations_per_item", "accuracy", "finished_fraction", "finished_precision", "ece")
    }
    answered = int((workers["n_annotations"] > 0).sum())
    return {"setting": setting, "seed": seed, **reached, **end, "workers": answered, "rounds": len(rounds), "seconds": seconds}


def _first(rounds: pd.DataFrame, level: float) -> float | None:
    there = rounds[rounds["accuracy"] >= level]
    return None if there.empty else float(there["annotations_per_item"].iloc[0])


def main() -> None:
    """Run everything asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=["digits", "recorded", "dog", "commodity"], help=", ".join(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings passed on, such as model.lr=0.1")
    args = parser.parse_args()
    if unknown := set(args.settings) - set(SETTINGS):
        parser.error(f"unknown settings {sorted(unknown)}; allowed are {', '.join(SETTINGS)}")
    extra = [f"--{pair}" for pair in args.set]
    tasks = [(setting, seed) for setting in args.settings for seed in args.seeds]
    runs = [measure(*task, extra) for task in track(tasks, "runs", disable=not sys.stderr.isatty())]
    groups = pd.DataFrame(runs).drop(columns="seed").groupby("setting", sort=False)
    summary = {
        name: {
            "mean": json.loads(groups.mean().loc[name].round(4).to_json()),
            "sd": json.loads(groups.std().loc[name].round(4).to_json()),
        }
        for name in groups.groups
    }
    print(json.dumps({"runs": runs, "summary": summary}, indent=1))


if __name__ == "__main__":
    main()
