"""One command runs a grid: every combination of the values given, side by side, and goes on where it was stopped.

    python scripts/ablate.py checkpoints/c --group dog commodity --threshold 0.1 0.2 0.3 0.5 --seed 11 1012 2013
    python scripts/ablate.py checkpoints/priors --group dog --prior class worker --gold 20 --estimate gold --strength 10 30
    python scripts/ablate.py checkpoints/lean --method lean improved_lean --faithful false true --set annotation.sampling.cap=5

Each value left out stays as the method and the configuration have it; ``none`` stands for that in a list of values. Relative
paths among settings are read from the project's folder. Every run has a folder of its own with run.json (its place in the
grid), run.log and all that ``lightning-annot fit`` leaves. ``python scripts/figures.py DIR`` draws them.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lightning_annot.experiments.grid import AXES, SIMULATED, Value, expand, read_settings, read_value
from lightning_annot.experiments.runner import run_grid
from lightning_annot.types import AnnotError

ROOT = Path(__file__).resolve().parents[1]


def parser() -> argparse.ArgumentParser:
    """One option for each axis."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("dir", type=Path, help="folder of the runs")
    found.add_argument("--config", default=SIMULATED, help=f"configuration of all runs (default {SIMULATED})")
    for name, axis in AXES.items():
        allowed = f" ({', '.join(axis.choices)})" if axis.choices else ""
        found.add_argument(f"--{name}", nargs="*", metavar="VALUE", help=f"{axis.key}: {axis.help}{allowed}")
    found.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="any other setting, such as model.lr=0.1")
    found.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side (default: number of cores)")
    found.add_argument("--wandb", metavar="GROUP", help="record at Weights & Biases under this group")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the grid; 1 if a run failed, 2 if the grid cannot be."""
    given = parser().parse_args(argv)
    try:
        axes: dict[str, list[Value]] = {
            name: [read_value(name, text) for text in values] for name in AXES if (values := getattr(given, name)) is not None
        }
        cells = expand(axes, given.config, read_settings(given.set))
        outcome = run_grid(cells, given.dir, ROOT, given.jobs, given.wandb)
    except AnnotError as error:
        print(f"ablate: {error}", file=sys.stderr)
        return 2
    for name, tail in outcome.failed.items():
        print(f"\n{name} failed; the end of {given.dir / name / 'run.log'}:\n{tail}", file=sys.stderr)
    print(outcome)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
