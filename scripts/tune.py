"""Search the learner's hyper-parameters over the ranges of the paper's Table 1, by the loss on held-out prototypes.

    pip install -e '.[tune]'
    python scripts/tune.py checkpoints/tune --method mixmatch --group dog --trials 30

Method mixmatch is searched over step size, weight decay, unlabelled ratio and weight of the mixed loss, others over the first
two. The truth of the images that are labelled has no say. The study is DIR/study.db: the same command goes on where it was
stopped, and more ``--trials`` add to it. Prints the best as JSON and writes it to DIR/best.json, or to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from lightning_annot.experiments.grid import METHODS, SIMULATED, Value, read_settings
from lightning_annot.experiments.tuning import Search, search
from lightning_annot.files import write_text
from lightning_annot.types import AnnotError

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    """Search; 1 if no run or not every run succeeded, 2 if the search cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="folder of the study and its runs")
    parser.add_argument("--method", default="ours", help=", ".join(METHODS))
    parser.add_argument("--faithful", action="store_true", help="as the released code has it")
    parser.add_argument("--group", help="whose confusions are simulated (default: as the configuration has it)")
    parser.add_argument("--config", default=SIMULATED, help=f"configuration of all runs (default {SIMULATED})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101], help="a score is the mean over them (default 101)")
    parser.add_argument("--trials", type=int, default=20, help="choices with a score (default 20)")
    parser.add_argument("--per_round", type=int, default=1000, help="labels a round (default 1000)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side (default: number of cores)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="any other setting of every run")
    parser.add_argument("--out", type=Path, help="JSON of the best (default DIR/best.json)")
    given = parser.parse_args(argv)
    coordinates: dict[str, Value] = {"method": given.method, "faithful": given.faithful, "per_round": given.per_round}
    try:
        plan = Search(given.dir, given.config, coordinates | {"group": given.group}, given.seeds, read_settings(given.set))
        best, outcome = search(plan, given.trials, ROOT, given.jobs)
    except AnnotError as error:
        print(f"tune: {error}", file=sys.stderr)
        return 2
    for name, tail in outcome.failed.items():
        print(f"\n{name} failed; the end of {given.dir / name / 'run.log'}:\n{tail}", file=sys.stderr)
    if best:
        write_text(given.out or given.dir / "best.json", json.dumps(best, indent=1))
        print(json.dumps(best, indent=1))
    return 1 if outcome.failed or not best else 0


if __name__ == "__main__":
    sys.exit(main())
